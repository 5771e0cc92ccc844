"""Runners, rows, runs, failures and batches as JSON, read-only.

    path("autorun/api/", include("autorun.contrib.api")),

A user needs the permissions of autorun's pages in `django.contrib.admin.site`, which must be
installed. The answers are described in docs/openapi.json. Each has an ETag; a request that sends it
back as If-None-Match gets 304 as long as nothing has changed.
"""

from collections.abc import Callable, Collection
from dataclasses import asdict, fields
from functools import wraps
from typing import Any

from django.contrib.admin import site
from django.core.exceptions import BadRequest
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.urls import URLPattern, path, register_converter
from django.urls.converters import StringConverter
from django.views.decorators.cache import cache_control
from django.views.decorators.http import conditional_page, require_safe

from autorun.admin.cards import Card, card_of, cards
from autorun.admin.pages import Permission, get_runner, is_admitted
from autorun.admin.row_access import find_row, message_for, open_runs, quotes_for, sees_texts
from autorun.admin.stories import explanation_of
from autorun.declare import page_time
from autorun.exceptions import AutorunError, RunTimeout, bare_message
from autorun.models import Batch, Chunk, Run
from autorun.observe.explanation import last_failure
from autorun.observe.failures import FailureGroup, group_failures, log_tails, runners_of
from autorun.observe.glance import at_a_glance, take_tally
from autorun.observe.held_up import HeldUp, held_up
from autorun.observe.listing import RunFilter
from autorun.observe.run_states import Cursor, describe_batch, describe_run
from autorun.state.counts import Progress
from autorun.state.parameters import SINCE, no_number, read_number

PAGE, MOST_RUNS = 50, 200
MOST_GROUPS = 100
FILTERS = tuple(each.name for each in fields(RunFilter) if each.name != "at")

View = Callable[..., dict[str, Any]]


class _Key(StringConverter):
    """Any primary key: `path` takes none with a line break."""

    regex = "(?s:.+)"


app_name = "autorun_api"
register_converter(_Key, "autorun_key")
urlpatterns: list[URLPattern] = []


def _answer(route: str, *parameters: str) -> Callable[[View], View]:
    """Serve what a view returns at that route, and accept these query parameters."""

    def served(view: View) -> View:
        @require_safe
        @cache_control(private=True, no_cache=True)
        @conditional_page
        @wraps(view)
        def answered(request: HttpRequest, **named: Any) -> HttpResponse:
            if (refusal := _refusal(request)) is not None:
                return refusal
            try:
                _check_names(request.GET, parameters)
                with page_time.budget():
                    return JsonResponse(view(request, **named))
            except BadRequest as error:
                return _error(400, str(error))
            except Http404 as error:
                return _error(404, str(error))
            except RunTimeout as error:
                return _error(503, f"{bare_message(error)} Try again later.")
            except AutorunError as error:  # of a wrong declaration, and perhaps with its data
                return _error(503, f"{message_for(request, site, error)} See: manage.py check")

        urlpatterns.append(path(route, answered, name=view.__name__))
        return view

    return served


@_answer("status/")
def status(_request: HttpRequest) -> dict[str, Any]:
    """Whether all is well, the worst first, and the current runs of all runners by state."""
    found, tally = cards(), take_tally()
    facts = at_a_glance(found, tally)
    by_node = {card.node: asdict(card.progress) for card in found if card.node is not None}
    return {
        "level": facts[0].level if facts else "ok",
        "facts": [asdict(each) for each in facts],
        "runs": {name: sum(each[name] for each in by_node.values()) for name in asdict(Progress())},
    }


@_answer("runners/")
def runners(request: HttpRequest) -> dict[str, Any]:
    """All registered runners, by label."""
    held = held_up()
    return {"runners": [_runner(request, card, held) for card in cards()]}


@_answer("runners/<str:label>/")
def runner(request: HttpRequest, label: str) -> dict[str, Any]:
    """One runner."""
    return _runner(request, card_of(get_runner(label)), held_up(label))


@_answer("runners/<str:label>/rows/<autorun_key:key>/")
def row(request: HttpRequest, label: str, key: str) -> dict[str, Any]:
    """The state of a row for a runner; with `view_payload`, also its outputs and messages."""
    of = get_runner(label)
    instance = find_row(request, site, of, key)
    if instance is None:
        raise Http404(f"{label} has no row “{key[:40]}” that you may see. Check the primary key.")
    quotes = quotes_for(request, site, of)
    shows, found = quotes.messages, explanation_of(of, instance, quotes)
    run = found.run
    is_success = run is not None and run.status == Run.Status.SUCCEEDED
    failure = None if run is None or is_success else last_failure(run)
    answer: dict[str, Any] = {
        "runner": label,
        "model": of.get_model()._meta.label,
        "row": str(instance.pk),
        "is_pending": found.is_pending,
        "code": found.code,
        "reason": found.reason,
        "run": run and describe_run(run),
        "failure": failure
        and {
            "attempt": failure.attempt,
            "exception_class": failure.exception_class,
            "failed_at": failure.failed_at,
            **({"message": failure.message, "log_tail": failure.log_tail} if shows else {}),
        },
    }
    return {**answer, "outputs": run.outputs if run and is_success else None} if shows else answer


@_answer("runs/", *FILTERS, "after", "limit")
def runs(request: HttpRequest) -> dict[str, Any]:
    """Runs by filter, the newest first; `next` is `after` of the next page."""
    given = request.GET
    if problems := RunFilter.not_understood(given):
        raise BadRequest(" ".join(problems))
    if problem := no_number(given.get("limit"), least=1, most=MOST_RUNS):
        raise BadRequest(f"limit: {problem}")
    after = Cursor.read(given.get("after", ""))
    if given.get("after") and after is None:
        raise BadRequest(f"after: “{given['after'][:40]}” is not the `next` of a page. Omit it.")
    chosen = RunFilter.read(given)
    label = chosen.runner
    if label and not Chunk.objects.filter(runner=label).exists():
        get_runner(label)
    found = chosen.page(after, size=read_number(given.get("limit"), least=1) or PAGE)
    return {
        "runs": [describe_run(run) for run in found.runs],
        "next": None if found.after is None else str(found.after),
    }


@_answer("failures/", "runner", "since")
def failures(request: HttpRequest) -> dict[str, Any]:
    """Failed runs by cause, the most frequent first; messages with `view_payload`."""
    since, label = request.GET.get("since", ""), request.GET.get("runner", "")
    if since and since not in SINCE:
        raise BadRequest(f"Unknown since “{since[:40]}”. Choose {', '.join(SINCE)}.")
    of = get_runner(label) if label else None
    groups = group_failures(of, within=SINCE.get(since))
    shown = groups[:MOST_GROUPS]
    labels, _former = runners_of(each.node_id for each in shown)
    readable = open_runs(request, site, [each.run_id for each in shown])
    logs = log_tails(readable)
    return {
        "causes": [
            {
                **_cause(each, labels),
                **(
                    {
                        "message": each.message,
                        "shape": each.shape,
                        "log_tail": logs.get(each.run_id, ""),
                    }
                    if each.run_id in readable
                    else {}
                ),
            }
            for each in shown
        ],
        "left_out": len(groups) - len(shown),
    }


@_answer("batches/<int:number>/")
def batch(request: HttpRequest, number: int) -> dict[str, Any]:
    """A batch and its progress; with `view_payload`, the reason why it ended."""
    known = read_number(number)
    batches = Batch.objects.defer("scope").select_related("node")
    found = batches.filter(pk=known).first() if known else None
    if found is None:
        raise Http404(f"There is no batch {str(number)[:20]}. See: manage.py autorun batches")
    answer = describe_batch(found)
    return answer if sees_texts(request, site, found.node) else _without(answer, "reason")


@_answer("")
@_answer("<autorun_key:address>/")
def unknown(_request: HttpRequest, address: str = "") -> dict[str, Any]:
    """Any other address: an error in JSON as well."""
    raise Http404(f"There is nothing at “{address[:40]}”. All addresses: docs/howto/api.md")


def _refusal(request: HttpRequest) -> HttpResponse | None:
    user: Any = getattr(request, "user", None)  # without Django's middleware, there is none
    if user is None or not user.is_authenticated:
        refusal = _error(401, "Log in first.")
        refusal["WWW-Authenticate"] = 'Session realm="autorun"'
        return refusal
    may_view = hasattr(user, "has_perm") and user.has_perm(Permission.VIEW)
    if not (may_view and is_admitted(request, site)):
        words = "be staff with" if hasattr(user, "is_staff") else "have"
        return _error(403, f"You need to {words} the permission {Permission.VIEW}.")
    return None


def _error(code: int, message: str) -> HttpResponse:
    return JsonResponse({"error": message}, status=code)


def _check_names(given: Collection[str], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            choice = f"Choose {', '.join(known)}." if known else "There are none here."
            raise BadRequest(f"Unknown parameter “{name[:40]}”. {choice}")


def _without(answer: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in names}


def _runner(request: HttpRequest, card: Card, held: Collection[HeldUp]) -> dict[str, Any]:
    """A runner without anything that changes by itself with time, which would change the ETag."""
    node, label = card.node, card.runner.label
    of_runner = [_without(asdict(each), "runner") for each in held if each.runner == label]
    answer = {
        "runner": label,
        "analysis": str(card.runner.ANALYSIS) if node is None else node.title,
        "version": None if node is None else node.version,
        "state": card.state[0],
        "error": card.error,
        "runs": asdict(card.progress),
        "pending": card.counted.pending if card.counted else None,
        "paused_at": card.paused_at,
        "held_at": card.held_at,
        "run_seconds": node and node.run_seconds,
        "held_up": of_runner,
    }
    if sees_texts(request, site, card.runner):
        return {**answer, "paused_because": node.paused_because if node else ""}
    return {**answer, "held_up": [_without(each, "reason") for each in of_runner]}


def _cause(group: FailureGroup, labels: dict[int, str]) -> dict[str, Any]:
    return {
        "runner": labels.get(group.node_id),
        "analysis": group.title,
        "version": group.version,
        "exception_class": group.exception_class,
        "cause": group.cause,
        "group": group.key,
        "runs": group.runs,
        "run": group.run_id,
        "first_at": group.first_at,
        "last_at": group.last_at,
    }
