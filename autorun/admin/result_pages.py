"""Pages of a runner's results: a comparison of versions, and downloads."""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from tempfile import TemporaryFile
from typing import Any
from wsgiref.util import FileWrapper

from asgiref.sync import sync_to_async
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.core.handlers.asgi import ASGIRequest
from django.db.models import Exists, OuterRef, Q, Subquery, Value
from django.db.models.functions import Coalesce
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.translation import gettext as _

from autorun.admin import cards
from autorun.admin.markup import OutputLine
from autorun.admin.pages import PageAdmin, Permission, get_runner, page, sees_payload
from autorun.admin.row_access import database_of, may_view, message_for, name_of, sees_all, visible
from autorun.admin.tables import runner_name
from autorun.declare import page_time, registry
from autorun.declare.base import Runner
from autorun.declare.nodes import digest_of, nodes_over
from autorun.exceptions import AutorunError, RunTimeout
from autorun.models import Chunk, Node
from autorun.observe.comparison import Comparison, compare_nodes
from autorun.observe.formats import TEXTS, as_text
from autorun.observe.glance import digest_or_problem, progresses_and_tally
from autorun.observe.new_versions import about_version, is_new, other_code
from autorun.observe.records import Records
from autorun.state.counts import Progress
from autorun.state.keys import key_kind
from autorun.state.words import approximate, number

#: The page compares versions if it has the time for it, and one of them at most so many successes;
#: the command any.
MOST_COMPARED = 5_000
#: Bytes of a file that are sent at a time.
PIECE = 1 << 16


class ShowingResults(PageAdmin):
    @page("<str:label>/compare/")
    def compare(self, request: HttpRequest, label: str) -> HttpResponse:
        """The candidate beside the runner's version, or that beside the one before it."""
        runner = get_runner(label)
        versions, tally = progresses_and_tally(versions_of(runner))
        candidate, digest = candidate_of(runner, versions), digest_or_problem(runner)[0]
        now = next((node for node in versions if node.digest == digest), None)
        name = runner_name(runner.label)
        older = [node for node in versions if now is None or node.created_at < now.created_at]
        pair = (now, candidate) if candidate else (older[0] if older else None, now)
        before, after = pair
        found, is_large = None, False
        if before is not None and after is not None:
            sizes = versions[before].succeeded, versions[after].succeeded
            is_large = min(sizes) > MOST_COMPARED
            try:
                if not is_large:
                    with page_time.spent(f"The comparison of {before} and {after}"):
                        found = compare_nodes(runner, before, after, sizes=sizes)
            except RunTimeout:
                is_large = True
        return self.render(
            request,
            "compare",
            _("%s: compare versions") % name,
            tally=tally,
            runner=runner,
            name=name,
            versions=pair,
            now=now,
            news=news_of(runner, now, versions, cards.next_sweeps([runner])[label]),
            candidate=candidate,
            found=found,
            is_large=is_large,
            outputs=[] if found is None else self._seen_outputs(request, runner, found),
        )

    def _seen_outputs(
        self, request: HttpRequest, runner: Runner, found: Comparison
    ) -> list[dict[str, Any]]:
        """The lines of the outputs, with those of the rows that the user may see.

        If some rows may be hidden, there are no medians, and only outputs of rows that are shown.
        """
        model, database = runner.get_model(), database_of(runner)
        if not sees_payload(request) or not may_view(request, self.admin_site, model):
            return []
        to_pk = key_kind(model).to_pk
        keys = [to_pk(row.key) for change in found.outputs for row in change.rows]
        seen = visible(request, self.admin_site, model, keys, database)
        names = {pk: str(name_of(self.admin_site, row)) for pk, row in seen.items()}
        are_all_seen = sees_all(request, self.admin_site, model)
        lines: list[dict[str, Any]] = []
        for change in found.outputs:
            rows = [
                (
                    row.key,
                    names[to_pk(row.key)],
                    [OutputLine.of(change.name, each) for each in (row.before, row.after)],
                )
                for row in change.rows
                if to_pk(row.key) in names
            ]
            if rows or are_all_seen:
                both = (change.median_before, change.median_after)
                medians = [approximate(each if are_all_seen else None) for each in both]
                different = number(change.different)
                lines.append(
                    {"name": change.name, "different": different, "medians": medians, "rows": rows}
                )
        return lines

    @page("<str:label>/export/<str:form>/", Permission.SEE_PAYLOAD)
    def export(self, request: HttpRequest, label: str, form: str) -> HttpResponseBase:
        """The results of the rows that the user may see, as CSV or JSON Lines, bit by bit."""
        # If some may be hidden, the file is made in the request, whose middleware may have noted by
        # what to hide them.
        runner = get_runner(label)
        if form not in TEXTS:
            raise Http404(f"There is no export as {form!r}. Choose {' or '.join(TEXTS)}.")
        model, database = runner.get_model(), database_of(runner)
        if not may_view(request, self.admin_site, model):
            raise PermissionDenied

        is_whole = sees_all(request, self.admin_site, model)

        def among(instances: list[Any]) -> list[Any]:
            keys = [each.pk for each in instances]
            seen = visible(request, self.admin_site, model, keys, database)
            return [each for each in instances if each.pk in seen]

        def step(work: Callable[[], Any]) -> Any:
            """Give the project's code the time of a page for each page of rows."""
            with page_time.budget(), page_time.spent(f"A page of rows of {label}"):
                return work()

        lines = as_text(Records(runner, among=list if is_whole else among, step=step), form)
        pieces: Iterator[str | bytes]
        try:
            # So that an error is a page, and no end of a file.
            pieces = chain([next(lines, "")], lines) if is_whole else _spooled(lines)
        except AutorunError as error:
            messages.error(request, message_for(request, self.admin_site, error, runner))
            return self.redirect("autorun_node_runner", label)
        headers = {
            "Content-Disposition": f'attachment; filename="{label}.{form}"',
            "X-Content-Type-Options": "nosniff",
        }
        stream = _without_blocking(pieces) if isinstance(request, ASGIRequest) else pieces
        return StreamingHttpResponse(stream, content_type=TEXTS[form], headers=headers)


def _spooled(lines: Iterable[str]) -> Iterator[bytes]:
    """The lines, all made before the first is returned, in a file that ends with the response."""
    file = TemporaryFile()  # noqa: SIM115  closed with its wrapper
    try:
        file.writelines(map(str.encode, lines))
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return FileWrapper(file, PIECE)


async def _without_blocking(pieces: Iterator[str | bytes]) -> AsyncIterator[str | bytes]:
    """The pieces one by one: under ASGI, Django would collect them all before it sends any."""
    try:
        while piece := await sync_to_async(lambda: next(pieces, ""))():
            yield piece
    finally:
        if isinstance(pieces, FileWrapper):
            pieces.close()


def news_of(
    runner: Runner,
    now: Node | None,
    versions: Mapping[Node, Progress],
    next_sweep: cards.NextSweep,
) -> str:
    """The sentence about the runner's node `now`, one of its `versions_of`, if it is new or held.

    '' about any other.
    """
    is_held = now is not None and now.held_at is not None
    # `versions_of` has annotated it.
    is_new = bool(versions) if now is None else now.is_new  # type: ignore[attr-defined]
    count = None if now is None else cards.Counted.read(now.counted, versions[now])
    is_done = count is not None and not count.pending
    if not is_held and (is_done or not is_new):
        return ""
    version, pending = runner.get_analysis().version, None if count is None else count.pending
    return about_version(
        version, now, pending, is_swept=not next_sweep.is_off, next_sweep=next_sweep.at
    )


def versions_of(runner: Runner) -> list[Node]:
    """The newest nodes of the runner's analysis and model, except those of other runners."""
    try:
        title, own = runner.get_analysis().title, digest_of(runner)
    except Exception:  # noqa: BLE001  the card says what is wrong
        return []
    others = [other for other in registry.runners() if other.label != runner.label]
    planned_by = Chunk.objects.filter(node=OuterRef("pk")).values("runner")[:1]
    is_others = Q(digest__in=[digest_or_problem(other)[0] for other in others])
    is_others |= Q(planned_by__in=[other.label for other in others])
    nodes = nodes_over(runner.get_model()).filter(title=title)
    nodes = nodes.annotate(
        is_new=is_new(runner.label),
        has_other_code=Exists(other_code(runner)),
        planned_by=Coalesce(Subquery(planned_by), Value("")),
    )
    found = nodes.filter(Q(digest=own) | ~is_others)
    return list(found.order_by("-created_at", "-pk")[:20])


def candidate_of(runner: Runner, versions: Iterable[Node]) -> Node | None:
    """The node of the runner's candidate version, if it is one of these."""
    with suppress(AutorunError):
        if (trial := registry.trial_of(runner)) is not None:
            digest = digest_of(trial)
            return next((node for node in versions if node.digest == digest), None)
    return None
