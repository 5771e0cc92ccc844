"""Each page in a real browser: empty and full, dark, narrow, without JavaScript, by keyboard."""

import datetime as dt
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db.models import CharField, Value
from django.db.models.functions import Cast, Concat
from django.utils import timezone

from autorun.dispatch.publishing import Message
from autorun.limits import Limit
from autorun.models import Batch, Chunk, Failure, Node, Run
from autorun.planning.named import plan_keys
from autorun.runner import QuerySetRunner
from sample_app.models import Scan
from tests.browser import scenes

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="make test-browser")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # A message to the broker, whose connection the live server keeps, is none of this.
    pytest.mark.django_db(transaction=True),
]

LABEL = "sample_app.ScanPreprocessingRunner"
PAGES = {
    "overview": "node/",
    "runner": f"node/{LABEL}/",
    "runs": "run/",
    "runs-failed": "run/?state=failed&since=24h",
    "runs-runner": f"run/?runner={LABEL}",
    "runs-batch": "run/?batch={batch}",
    "run": "run/{run}/change/",
    "failures": "failure/",
    "batches": "batch/",
    "batch": "batch/{batch}/change/",
    "choose": "batch/backfill/",
    "prepare": f"batch/backfill/{LABEL}/?only=all",
    "health": "health/",
    "why": f"node/{LABEL}/why/?row={{row}}",
}
EVERYTHING = (
    *("view_run", "start_run", "backfill_run", "retry_run", "cancel_run", "pause_run"),
    *("view_payload", "view_scan", "change_scan"),
)
#: What has the focus, is ours, and has no outline.
FOCUSED_UNSEEN = """() => {
    const each = document.activeElement;
    const isSeen = getComputedStyle(each).outlineStyle !== "none" || !each.closest(".ar");
    return isSeen ? [] : [each.outerHTML.slice(0, 200)];
}"""


@pytest.fixture(autouse=True)
def no_broker(sent: list[Message]) -> None:
    """No worker gets a message: started work stays queued."""


@pytest.fixture
def runner() -> QuerySetRunner:
    return scenes.few()


@pytest.fixture
def user() -> User:
    return scenes.add_user("ada", *EVERYTHING)


def addresses() -> Iterator[tuple[str, str]]:
    """Name and address of each page that there is something to show on."""
    failed = Run.objects.filter(status=Run.Status.FAILED).order_by("-pk").first()
    batch = Batch.objects.first()
    for name, path in PAGES.items():
        if "{" in path and (failed is None or batch is None):
            continue
        values = (
            {"run": failed.pk, "row": failed.object_id, "batch": batch.pk}
            if failed is not None and batch is not None
            else {}
        )
        yield name, f"/admin/autorun/{path.format(**values)}"


def settle(page: Any) -> None:
    """Wait until what the page fetches is there."""
    page.wait_for_load_state("load")
    page.wait_for_selector("[aria-busy]", state="detached", timeout=90_000)


def look(page: Any, name: str, *, has_script: bool = True, part: str = ".ar") -> list[str]:
    """Return the problems of autorun's part of an open page."""
    page.locator(part).first.wait_for()
    page.wait_for_load_state("load")  # without its style sheets it has another width
    problems = [f"{name}: {complaint}" for complaint in page.complaints]
    if not has_script:
        return problems
    width = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    if width > 0:
        problems.append(f"{name}: {width} pixels too wide")
    found = axe.Axe().run(page, context=part, options={"resultTypes": ["violations"]})
    problems += [
        f"{name}: {each['id']}: {each['nodes'][0]['target']}: {each['nodes'][0]['failureSummary']}"
        for each in found.response["violations"]
    ]
    return problems


@pytest.mark.parametrize("mode", ["light", "dark", "narrow", "without-script"])
@pytest.mark.parametrize("scene", ["nothing", "few"])
def test_every_page_is_sound(scene: str, mode: str, user, open_as, keep) -> None:
    if scene == "few":
        scenes.few()
    page = open_as(user, mode)
    has_script = mode != "without-script"
    problems = []

    for name, address in addresses():
        page.complaints.clear()
        response = page.goto(address)
        if response.status != 200:
            problems.append(f"{name}: {response.status}")
            continue
        if has_script:
            settle(page)
        problems += look(page, name, has_script=has_script)
        keep(page, f"{scene}-{name}-{mode}")

    assert problems == []


@pytest.mark.parametrize(
    ("language", "mode"), [("ar", "light"), ("he", "narrow"), ("de", "narrow")]
)
def test_every_page_is_sound_in_another_language(
    language: str, mode: str, runner, user, open_as, keep, settings
) -> None:
    settings.LANGUAGE_CODE = language
    page = open_as(user, mode)
    problems = []

    for name, address in addresses():
        page.complaints.clear()
        page.goto(address)
        settle(page)
        problems += look(page, name)
        keep(page, f"{language}-{name}-{mode}")
        first, second = (page.locator(".ar-tabs a").nth(place).bounding_box() for place in (0, 1))
        if (first["x"] > second["x"]) != (language != "de"):
            problems.append(f"{name}: the tabs are in the wrong order")

    assert problems == []


@pytest.mark.parametrize("mode", ["light", "dark", "narrow"])
@pytest.mark.parametrize("address", ["", "?autorun=failed:" + LABEL, "{row}/change/"])
def test_the_pages_of_a_model_are_sound(
    address: str, mode: str, runner, user, open_as, keep
) -> None:
    page = open_as(user, mode)
    row = Run.objects.filter(status=Run.Status.FAILED).first().object_id

    page.goto(f"/admin/sample_app/scan/{address.format(row=row)}")
    is_list = "change" not in address
    problems = look(page, address, part=".ar-state" if is_list else ".ar-panel")
    keep(page, f"scan-{'list' if is_list else 'change'}-{mode}")

    assert page.locator(".ar-state.ar-failed").count() >= 1
    assert problems == []


@pytest.mark.parametrize("mode", ["light", "dark", "narrow", "without-script"])
def test_versions_side_by_side_and_limits_are_sound(
    mode: str, runner, user, open_as, keep, settings, monkeypatch
) -> None:
    monkeypatch.setattr(type(runner), "LIMIT", "archive")
    settings.AUTORUN = {"LIMITS": {"archive": Limit(parallel=20, rate="3000/m")}}
    before = Node.objects.get(version="0.9")
    done = Run.objects.current().succeeded().of(runner.get_node())
    Run.objects.bulk_create(
        Run(
            node=before,
            object_id=run.object_id,
            fingerprint=run.fingerprint,
            chunk_id=run.chunk_id,
            status=Run.Status.SUCCEEDED,
            finished_at=run.finished_at,
            outputs={**run.outputs, "mean": 1_000.5},
        )
        for run in done
    )
    page = open_as(user, mode)
    problems = []

    for name, address in {"compare": f"node/{LABEL}/compare/", "limits": "health/"}.items():
        page.goto(f"/admin/autorun/{address}")
        if mode != "without-script":
            settle(page)
        problems += look(page, name, has_script=mode != "without-script")
        keep(page, f"{name}-{mode}")

    assert page.get_by_text("of 3,000").count() >= 1
    assert problems == []


@pytest.mark.parametrize("mode", ["light", "narrow"])
def test_long_names_and_messages_fit(mode: str, runner, user, open_as, keep) -> None:
    long = "sub-" + "0123456789" * 24 + ".nii.gz"
    Scan.objects.update(path=Concat(Value(f"/data/{long}-"), Cast("pk", CharField())))
    Failure.objects.update(
        exception_class="scans.errors." + "VeryLongNameOfAnException" * 6, message=f"{long} is bad"
    )
    Batch.objects.update(description=f"pending rows in {long}"[:255], reason=long)
    page = open_as(user, mode)
    problems = []

    for name, address in addresses():
        page.goto(address)
        settle(page)
        problems += look(page, name)
        keep(page, f"long-{name}-{mode}")

    assert problems == []


def test_the_question_before_the_deed_is_sound(runner, user, open_as, keep) -> None:
    page = open_as(user, "narrow")
    page.goto("/admin/autorun/run/?state=failed")

    page.get_by_label("Action").select_option("ignore")
    page.get_by_role("button", name=re.compile(r"All \d+ matching…")).click()
    page.get_by_role("button", name=re.compile(r"Ignore \d+ runs")).wait_for()
    settle(page)

    assert look(page, "confirm") == []
    keep(page, "confirm-narrow")


def test_a_backfill_from_preview_to_cancelled(runner, user, open_as, keep) -> None:
    page = open_as(user)
    page.goto("/admin/autorun/node/")
    settle(page)
    page.get_by_role("link", name=f"Backfill… {LABEL}").click()
    page.get_by_label("All of these: pending and failed").check()
    page.get_by_role("button", name="Preview").click()
    settle(page)
    page.get_by_role("button", name="Start 7 runs").click()
    keep(page, "batch-started")

    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Cancel remaining runs").click()

    page.wait_for_selector(".ar-state.ar-cancelled")
    batch = Batch.objects.order_by("-pk").first()
    assert (batch.state, batch.requested_by) == (Batch.State.CANCELLED, "ada")
    assert page.complaints == []


def test_a_backfill_without_javascript(runner, user, open_as) -> None:
    page = open_as(user, "without-script")
    page.goto(f"/admin/autorun/batch/backfill/{LABEL}/")

    page.get_by_label("Rows whose run failed").check()
    page.get_by_role("button", name="Preview").click()
    page.get_by_role("button", name="Start 5 runs").click()

    assert Batch.objects.count() == 2
    assert ": failed rows" in page.content()


def test_progress_is_live_while_somebody_looks(runner, user, open_as) -> None:
    page = open_as(user)
    page.goto(f"/admin/autorun/batch/{Batch.objects.get().pk}/change/")
    assert "7 succeeded" in page.locator(".ar-legend").inner_text()
    page.evaluate("window.stayed = true")

    _succeed_running()
    page.locator(".ar-legend", has_text="9 succeeded").wait_for()

    assert page.evaluate("window.stayed") is True
    assert page.complaints == []


@pytest.mark.parametrize("mode", ["light", "narrow", "dark"])
def test_new_runs_wait_until_they_are_shown(mode, runner, user, open_as, keep) -> None:
    page = open_as(user, mode)
    page.goto("/admin/autorun/run/")
    ticked = page.locator("tbody input[type=checkbox]").nth(2)
    ticked.check()
    key = ticked.get_attribute("value")
    ticked.focus()
    at_first = page.locator("tbody tr").count()
    running = Run.objects.filter(chunk__state=Chunk.State.RUNNING).first()

    _succeed_running()
    plan_keys(runner, list(Scan.objects.order_by("-pk").values_list("pk", flat=True)[:2]))
    page.locator("#new", has_text="2 new runs").wait_for()
    page.locator(f"#run-{running.pk}", has_text="succeeded").wait_for()
    keep(page, f"new-runs-{mode}")
    problems = look(page, "new runs")
    while_waiting = page.locator("tbody tr").count()
    has_focus = page.evaluate("document.activeElement.value")
    page.get_by_role("button", name="Show").click()

    assert (while_waiting, page.locator("tbody tr").count()) == (at_first, at_first + 2)
    assert has_focus == key
    assert page.locator("tbody input:checked").evaluate_all("all => all.map(e => e.value)") == [key]
    assert page.locator("#new").is_hidden()
    assert problems == page.complaints == []


def test_the_title_of_a_batch_says_how_far_it_is(runner, user, open_as) -> None:
    page = open_as(user)
    page.goto(f"/admin/autorun/batch/{Batch.objects.get().pk}/change/")
    at_first = page.title()

    _succeed_running()
    page.locator(".ar-legend", has_text="9 succeeded").wait_for()

    assert at_first.startswith("66 % Backfill")
    assert page.title().startswith("77 % Backfill")


def test_an_idle_page_comes_alive(runner, user, open_as) -> None:
    Chunk.objects.exclude(state=Chunk.State.FINISHED).delete()
    page = open_as(user)
    page.clock.install()
    page.goto("/admin/autorun/node/")
    settle(page)
    assert page.locator(".ar-legend .ar-running").count() == 0

    at_work = {"state": Chunk.State.RUNNING, "size": 3}
    Chunk.objects.create(node=runner.get_node(), runner=runner.label, **at_work)
    alive = page.locator('#cards[data-autorun-refresh="5"] .ar-legend', has_text="3 running")
    for _ in range(15):
        # The pause may begin only now, after what the counts have changed has been fetched.
        page.clock.run_for(31_000)
        page.wait_for_timeout(500)
        if alive.count():
            break

    assert alive.count() >= 1
    assert page.complaints == []


def test_the_page_of_a_run_is_live_until_it_ends(runner, user, open_as) -> None:
    run = Run.objects.filter(chunk__state=Chunk.State.RUNNING).first()
    page = open_as(user)
    page.goto(f"/admin/autorun/run/{run.pk}/change/")

    _succeed_running()
    page.locator("#state", has_text="succeeded").wait_for()
    page.locator(".ar-timeline", has_text="ucceeded").wait_for()

    assert page.locator("[data-autorun-refresh]").count() == 0
    assert page.complaints == []


@pytest.mark.parametrize("target", ["a[href*='state=succeeded']", "#cancel"])
def test_what_has_the_focus_keeps_it(target: str, runner, user, open_as) -> None:
    page = open_as(user)
    page.goto(f"/admin/autorun/batch/{Batch.objects.get().pk}/change/")
    page.locator(target).focus()

    _succeed_running()
    page.locator(".ar-legend", has_text="9 succeeded").wait_for()

    assert page.evaluate(f'document.activeElement.matches("{target}")')


def test_nothing_is_taken_away_from_under_the_focus(runner, user, open_as) -> None:
    page = open_as(user)
    page.goto(f"/admin/autorun/batch/{Batch.objects.get().pk}/change/")
    page.locator("#pause").focus()

    Batch.objects.update(state=Batch.State.FINISHED)
    with page.expect_response("**/change/"):
        pass
    page.wait_for_timeout(200)
    has_focus = page.evaluate("document.activeElement.id")
    page.locator("h1").first.evaluate("() => document.activeElement.blur()")
    page.locator("#progress", has_text="finished, 5 failed").wait_for()

    assert has_focus == "pause"


def test_what_is_to_be_counted_is_counted_in_a_page_that_is_refreshed(
    runner, user, open_as
) -> None:
    page = open_as(user)
    page.goto("/admin/autorun/node/")
    page.get_by_text("Recount").first.wait_for()
    settle(page)
    counted = page.get_by_text("Recount").count()

    Node.objects.update(counted={})
    with page.expect_response("**/count/"):
        pass
    settle(page)

    assert page.get_by_text("Recount").count() == counted


def test_a_page_that_cannot_be_refreshed_says_since_when(runner, user, open_as) -> None:
    page = open_as(user)
    page.goto(f"/admin/autorun/batch/{Batch.objects.get().pk}/change/")
    settle(page)
    cookies = page.context.cookies()

    page.context.clear_cookies()
    page.get_by_text("Are you still signed in?").wait_for()
    page.context.add_cookies(cookies)
    page.get_by_text("Are you still signed in?").wait_for(state="hidden")

    assert re.search(r"\d:\d\d", page.locator("[data-autorun-stale]").text_content())


def test_a_hidden_tab_asks_for_nothing(runner, user, open_as) -> None:
    page = open_as(user)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"/admin/autorun/batch/{Batch.objects.get().pk}/change/")
    settle(page)

    page.evaluate(
        "() => Object.defineProperty(document, 'hidden', {value: true, configurable: true})"
    )
    page.wait_for_timeout(2_500)
    requests.clear()
    page.wait_for_timeout(4_500)
    asked_while_hidden = len(requests)
    page.evaluate(
        "() => { Object.defineProperty(document, 'hidden', {value: false, configurable: true});"
        " document.dispatchEvent(new Event('visibilitychange')); }"
    )
    with page.expect_request("**/change/"):
        pass

    assert asked_while_hidden == 0


def test_a_finished_batch_is_not_asked_for_again(runner, user, open_as) -> None:
    Batch.objects.update(state=Batch.State.FINISHED, finished_at=timezone.now())
    page = open_as(user)
    requests: list[str] = []
    page.goto(f"/admin/autorun/batch/{Batch.objects.get().pk}/change/")
    settle(page)

    page.on("request", lambda request: requests.append(request.url))
    page.wait_for_timeout(3_000)

    assert requests == []


def test_the_keyboard_does_it_too(runner, user, open_as) -> None:
    page = open_as(user)
    page.goto(f"/admin/autorun/node/{LABEL}/")
    settle(page)

    go_to(page, "document.activeElement.innerText.startsWith('Pause')")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Resume").wait_for()

    assert outline == "solid"
    assert Node.objects.get(pk=runner.get_node().pk).paused_at is not None


def test_a_backfill_by_keyboard_alone(runner, user, open_as) -> None:
    page = open_as(user)
    page.goto(f"/admin/autorun/batch/backfill/{LABEL}/")
    settle(page)

    go_to(page, "document.activeElement.name === 'only'")
    page.keyboard.press("ArrowUp")  # from the first choice to the last
    page.keyboard.press("ArrowUp")
    go_to(page, "document.activeElement.innerText === 'Preview'")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Start 7 runs").wait_for()
    settle(page)
    go_to(page, "document.activeElement.innerText.startsWith('Start 7 runs')")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Pause").wait_for()

    assert Batch.objects.order_by("-pk").first().description == "all rows"


def test_whatever_has_the_focus_shows_it(runner, user, open_as) -> None:
    page = open_as(user)
    unseen = []

    for name, address in addresses():
        page.goto(address)
        settle(page)
        page.locator(".ar").first.evaluate(
            "each => { each.tabIndex = -1; each.focus(); each.removeAttribute('tabindex'); }"
        )
        for _ in range(12):
            page.keyboard.press("Tab")
            unseen += [f"{name}: {each}" for each in page.evaluate(FOCUSED_UNSEEN)]

    assert unseen == []


def test_runs_are_ticked_and_retried(runner, user, open_as) -> None:
    page = open_as(user)
    page.goto("/admin/autorun/run/?state=failed")

    page.get_by_label("Select all runs on this page").check()
    page.get_by_label("Action").select_option("retry")
    page.get_by_role("button", name="Selected…").click()
    page.get_by_role("button", name=re.compile(r"Retry \d+ runs")).click()

    page.get_by_text("5 failed runs queued for retry.").wait_for()


@pytest.mark.parametrize("mode", ["narrow", "without-script"])
def test_a_group_of_failures_is_looked_at_and_retried(mode, runner, user, open_as, keep) -> None:
    page = open_as(user, mode)
    has_script = mode != "without-script"
    page.goto("/admin/autorun/failure/")

    page.get_by_role("link", name="has no pixel data").click()
    page.get_by_label("Finished from").wait_for()
    keep(page, f"group-{mode}")
    problems = look(page, "runs of a group", has_script=has_script)
    number = page.locator(".ar tbody tr").count()
    page.get_by_label("Finished from").fill("2026-01-01T00:00")
    page.get_by_role("button", name="Filter").click()
    is_kept = page.get_by_label("This failure group only").is_checked()
    page.locator(".ar-tabs").get_by_role("link", name="Failures").click()
    page.get_by_role("button", name="Retry all… of this ValueError").click()
    page.get_by_role("button", name=re.compile(r"Retry \d+ runs")).wait_for()
    problems += look(page, "question", has_script=has_script)
    page.get_by_role("button", name=re.compile(r"Retry \d+ runs")).click()
    page.get_by_text("3 failed runs queued for retry.").wait_for()
    is_of_batch = "/batch/" in page.url
    page.get_by_role("link", name="Go back").click()

    assert problems == []
    assert (number, is_kept, is_of_batch) == (3, True, True)
    assert "/failure/" in page.url


@pytest.mark.parametrize(
    "codename",
    ["start_run", "backfill_run", "retry_run", "cancel_run", "pause_run", "view_payload", ""],
)
def test_buttons_are_there_for_those_who_may(codename: str, runner, open_as) -> None:
    page = open_as(scenes.add_user("bea", "view_run", "view_scan", codename))
    buttons = {
        "start_run": ("node/", "Sweep now"),
        "backfill_run": ("node/", "New backfill…"),
        "retry_run": ("failure/", "Retry all"),
        "cancel_run": ("failure/", "Ignore all"),
        "pause_run": ("node/", "Pause"),
        "view_payload": ("failure/", "Latest message"),
    }

    found = set()
    for name, (address, text) in buttons.items():
        page.goto(f"/admin/autorun/{address}")
        if page.locator(".ar-button, summary", has_text=text).count():
            found.add(name)

    assert found == {codename} - {""}


def go_to(page: Any, condition: str) -> None:
    """Press the tabulator until the condition on what has the focus holds."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate(condition):
            return
    raise AssertionError(f"The keyboard does not reach it: {condition}")


def _succeed_running() -> None:
    now = timezone.now()
    chunk = Chunk.objects.get(state=Chunk.State.RUNNING)
    Run.objects.filter(chunk=chunk).update(status=Run.Status.SUCCEEDED, finished_at=now)
    Chunk.objects.filter(pk=chunk.pk).update(
        state=Chunk.State.FINISHED,
        succeeded=2,
        started_at=now - dt.timedelta(seconds=2),
        finished_at=now,
    )
