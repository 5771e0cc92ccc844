"""A real Chromium, under a strict Content-Security-Policy, that looks at a live server.

`make test-browser` runs these tests; AUTORUN_SCREENSHOTS names a directory for screenshots.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import services

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
MODES: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 800}},
    "dark": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"},
    "narrow": {"viewport": {"width": 380, "height": 800}},
    "without-script": {
        "viewport": {"width": 1280, "height": 800},
        "java_script_enabled": False,
    },
}

Open = Callable[..., Any]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="make test-browser installs it")
    path = os.environ.get("AUTORUN_CHROMIUM") or shutil.which("chromium")
    if path is None:
        missing = pytest.fail if services.are_required() else pytest.skip
        missing("There is no chromium: `apt-get install chromium`.")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def open_as(browser: Any, live_server: Any, settings: Any, client: Any) -> Iterator[Open]:
    """`open_as(user, mode)`: a page of a browser in which the user is signed in.

    Whatever the console complains of is in the page's `complaints`.
    """
    contexts = []

    def open_page(user: Any, mode: str = "light") -> Any:
        context = browser.new_context(base_url=live_server.url, **MODES[mode])
        contexts.append(context)
        client.force_login(user)
        cookie = client.cookies[settings.SESSION_COOKIE_NAME].value
        context.add_cookies(
            [{"name": settings.SESSION_COOKIE_NAME, "value": cookie, "url": live_server.url}]
        )
        if "unfold" not in settings.INSTALLED_APPS:  # its own scripts evaluate expressions
            context.route("**/*", _with_policy)
        page = context.new_page()
        page.complaints = []
        page.on("console", lambda said: _note(page, said))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.set_default_timeout(15_000)
        return page

    yield open_page
    for context in contexts:
        context.unroute_all(behavior="ignoreErrors")
        context.close()


@pytest.fixture
def keep() -> Callable[[Any, str], None]:
    """Keeps a screenshot of the whole page under a name, where that was asked for."""

    def keep_screenshot(page: Any, name: str) -> None:
        if directory := os.environ.get("AUTORUN_SCREENSHOTS"):
            Path(directory).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=str(Path(directory, f"{name}.png")), full_page=True)

    return keep_screenshot


@pytest.fixture(scope="session", autouse=True)
def ask_in_this_thread() -> None:
    """Playwright runs an event loop in this thread, where Django would refuse to query."""
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"


def _with_policy(route: Any) -> None:
    if route.request.resource_type != "document":
        route.continue_()
        return
    response = route.fetch(max_redirects=0)
    headers = {**response.headers, "content-security-policy": POLICY}
    route.fulfill(response=response, headers=headers)


def _note(page: Any, said: Any) -> None:
    if said.type in ("error", "warning"):
        page.complaints.append(said.text)
