"""The pytest fixture `autorun`. Pytest loads this module in every project with autorun."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from autorun.testing import AutorunFixture


# A parameter, not `getfixturevalue`: pytest-django creates test databases only for tests
# that are known to need one, so a late request would get the project's own database.
@pytest.fixture
def autorun(db: None) -> Iterator[AutorunFixture]:  # noqa: ARG001
    """The functions of `autorun.testing` as methods, and `register(...)` for runners of the test.

    Runners and analyses that the test declares are forgotten when it ends.
    """
    # Imported late, because pytest also loads this module in projects without Django settings.
    from autorun.testing import AutorunFixture

    with AutorunFixture() as tools:
        yield tools
