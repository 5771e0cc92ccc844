"""The pytest fixture `autorun`. Pytest loads this wherever autorun is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from autorun.testing import AutorunFixture


# `db` stands here, and is not asked for later: pytest-django makes test databases for those tests
# only that are known to need one, and a later one would be given the project's own database.
@pytest.fixture
def autorun(db: None) -> Iterator[AutorunFixture]:  # noqa: ARG001
    """`autorun.testing` as methods, with the database of pytest-django, which it needs.

    Rows are processed without a worker: `run_inline()` and `work_off()`. `register(...)` registers
    runners until the test ends. Analyses that the test declares are forgotten when it ends.
    """
    # Not before: pytest loads this module in projects without Django settings, too.
    from autorun.testing import AutorunFixture

    with AutorunFixture() as tools:
        yield tools
