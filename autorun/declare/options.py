"""The value of an option that the setting of the same name decides."""

from __future__ import annotations

from typing import Any


class _BySetting:
    def __repr__(self) -> str:
        return "BY_SETTING"


BY_SETTING: Any = _BySetting()
