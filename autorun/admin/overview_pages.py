"""The overview, and its actions on all runners."""

from collections.abc import Mapping, Sequence

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse
from django.utils.http import urlencode
from django.utils.translation import gettext as _, gettext_noop, ngettext

from autorun.admin.cards import Card, cards, worst_first
from autorun.admin.pages import Permission, action, page
from autorun.admin.row_access import message_for
from autorun.admin.runner_pages import RunnerPages
from autorun.admin.tables import as_options
from autorun.control import interventions
from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.nodes import node_of
from autorun.exceptions import AutorunError
from autorun.models import Node
from autorun.observe.glance import Tally, Topic, at_a_glance, progresses_and_tally
from autorun.state.parameters import read_text
from autorun.state.words import number

#: From so many runners on, the overview is a table.
LONG = 10
#: The page that tells more about each part of the line above the overview.
FACT_PAGES: Mapping[Topic, tuple[str, dict[str, str]]] = {
    "workers": ("health_changelist", {}),
    "runners": ("node_changelist", {"q": gettext_noop("cannot run")}),
    "failures": ("failure_changelist", {}),
    "held_up": ("run_changelist", {"state": "parked"}),
    "paused": ("node_changelist", {"q": gettext_noop("paused")}),
    "held": ("node_changelist", {"q": gettext_noop("sweeps held")}),
    "sweeps": ("batch_changelist", {"trigger": "sweep", "all": "1"}),
}


@admin.register(Node)
class NodeAdmin(RunnerPages):
    """Runners, which are nodes in the tables.

    These pages come before those of a runner, whose routes take any label.
    """

    @page("")
    def changelist(self, request: HttpRequest) -> HttpResponse:
        """A card for each runner; in a table, the troubled ones first, if there are many."""
        progresses, tally = progresses_and_tally()
        found = cards(progresses)
        text, app = read_text(request.GET, "q"), read_text(request.GET, "app")
        shown = [card for card in found if _matches(card, text, app)]
        is_long = len(found) >= LONG
        return self.render(
            request,
            "overview",
            _("Overview"),
            tally=tally,
            facts=self._facts(found, tally),
            cards=worst_first(shown) if is_long else shown,
            has_runners=bool(found),
            is_long=is_long,
            text=text,
            app=app,
            apps=as_options(sorted({_app_of(card) for card in found})),
            are_paused=bool(found) and all(card.paused_since or card.error for card in found),
        )

    @action("pause-all/", Permission.PAUSE)
    def pause_all(self, request: HttpRequest) -> HttpResponse:
        changed, left = interventions.change_all(interventions.pause_runner)
        message = ngettext(
            "%s runner paused. Runs in progress will finish.",
            "%s runners paused. Runs in progress will finish.",
            len(changed),
        )
        return self._changed_all(request, changed, message, left)

    @action("resume-all/", Permission.PAUSE)
    def resume_all(self, request: HttpRequest) -> HttpResponse:
        changed, left = interventions.change_all(interventions.resume_runner)
        message = ngettext("%s runner resumed.", "%s runners resumed.", len(changed))
        return self._changed_all(request, changed, message, left)

    def _facts(self, found: Sequence[Card], tally: Tally) -> list[tuple[str, str, str]]:
        """The level, the words and the address of each part of the line above the overview."""
        facts: list[tuple[str, str, str]] = []
        for each in at_a_glance(found, tally):
            name, query = FACT_PAGES[each.topic]
            if "q" in query:  # looks for the words on the cards
                query = {"q": _(query["q"])}
            address = self.url(f"autorun_{name}") + ("?" + urlencode(query) if query else "")
            facts.append((each.level, each.words, address))
        return facts

    def _changed_all(
        self,
        request: HttpRequest,
        changed: Sequence[Runner],
        message: str,
        left: Mapping[str, AutorunError],
    ) -> HttpResponse:
        if changed:
            self.note(request, message % number(len(changed)), *map(node_of, changed))
        for label, error in left.items():
            reason = message_for(request, self.admin_site, error, registry.find(label))
            of = {"label": label, "reason": reason}
            messages.warning(request, _("Runner %(label)s was not changed: %(reason)s") % of)
        return self.back(request, self.url("autorun_node_changelist"))


def _matches(card: Card, text: str, app: str) -> bool:
    """Whether a card's names or state contain the text, and its runner belongs to the app."""
    names = (card.name, card.title, card.runner.label, card.model_name)
    # A card has one state, and may be held beside it.
    states = (card.state[1], _("sweeps held") * bool(card.held_since))
    searched = " ".join((*names, *states))
    return text.lower() in searched.lower() and app in ("", _app_of(card))


def _app_of(card: Card) -> str:
    return card.runner.label.partition(".")[0]
