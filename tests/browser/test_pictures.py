"""The pictures of the documentation; `make pictures` takes them anew."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autorun.declare import registry
from autorun.models import Batch, Failure, Run
from tests.browser import scenes
from tests.browser.test_pages import EVERYTHING, LABEL, settle

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.django_db(transaction=True),
]

PICTURES = Path(__file__).parent.parent.parent / "docs" / "_static"
MARGIN, TALLEST = 20, 860
#: Name, address, whether it is of the page's own part alone, and in which looks it is taken.
PAGES = (
    ("overview", "node/", False, ("light", "dark")),
    ("runner", f"node/{LABEL}/", True, ("light",)),
    ("run", "run/{run}/change/", True, ("light",)),
    ("failures", "failure/", True, ("light", "dark")),
    ("backfill", f"batch/backfill/{LABEL}/?only=all", True, ("light",)),
    ("batch", "batch/{batch}/change/", True, ("light",)),
    ("narrow", f"node/{LABEL}/", False, ("narrow",)),
)


@pytest.fixture
def own_runners_only() -> Iterator[None]:
    """The sample app's runners, without those of the test suite."""
    own = [type(each) for each in registry.runners() if "sample_app" in each.label]
    with registry.registered(*own, alone=True):
        yield


def test_the_documentation_has_its_pictures(own_runners_only, open_as) -> None:
    scenes.lively()
    user = scenes.add_user("ada", *EVERYTHING)
    pages = {mode: open_as(user, mode) for mode in ("light", "dark", "narrow")}
    values = {
        "run": Failure.objects.filter(exception_class="ValueError").latest("pk").run_id,
        "batch": Batch.objects.filter(trigger=Batch.Trigger.BACKFILL).latest("pk").pk,
    }

    for name, address, is_own_part, modes in PAGES:
        for mode in modes:
            page = pages[mode]
            page.goto(f"/admin/autorun/{address.format(**values)}")
            settle(page)
            file = f"{name}-dark.png" if mode == "dark" else f"{name}.png"
            _take(page, PICTURES / file, is_own_part=is_own_part)

            assert page.complaints == []
            assert (PICTURES / file).exists()
    assert Run.objects.filter(status=Run.Status.FAILED).exists()


def _take(page: Any, path: Path, *, is_own_part: bool) -> None:
    """Take the picture, where pictures are wanted; the page is looked at in any case."""
    if "AUTORUN_PICTURES" not in os.environ:
        return
    if not is_own_part:
        page.screenshot(path=str(path))
        return
    box = page.locator(".ar").first.bounding_box()
    height = min(box["height"], TALLEST) + 2 * MARGIN
    clip = {
        "x": box["x"] - MARGIN,
        "y": box["y"] - MARGIN,
        "width": box["width"] + 2 * MARGIN,
        "height": height,
    }
    page.screenshot(path=str(path), full_page=True, clip=clip)
