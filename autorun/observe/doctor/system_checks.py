"""Examines the project's settings and code."""

from collections.abc import Iterator

from celery import current_app
from django.core import checks
from django.db import connections
from django.utils.translation import gettext as _, ngettext
from django.utils.translation.trans_null import gettext_noop

from autorun.declare import registry
from autorun.observe.celery_app import setting_of
from autorun.observe.doctor.finding import Finding, error, examination, ok, warning
from autorun.observe.new_versions import edits
from autorun.state.words import number


@examination(gettext_noop("system checks"))
def examine_checks() -> Iterator[Finding]:
    """Autorun's own system checks, except silenced ones."""
    found_now = checks.run_checks(tags=["autorun"], databases=list(connections))
    messages = [each for each in found_now if not each.is_silenced()]
    for message in sorted(messages, key=lambda each: (-each.level, str(each.obj), str(each.id))):
        found = error if message.is_serious() else warning
        place = f"{message.obj}: " if message.obj else ""
        subject, bare = _("check %s") % message.id, _("`manage.py check` says what is wrong.")
        yield found(f"{place}{message.msg}", message.hint or "", subject, f"{place}{bare}")
    runners = len(registry.runners())
    if not runners:
        yield warning(
            _("No runner is registered."),
            _("Declare one, with a DATA_MODEL, in the module `runners` of an installed app."),
            _("runners"),
        )
    elif not messages:
        words = ngettext("%s runner, no problems.", "%s runners, no problems.", runners)
        yield ok(words % number(runners))


@examination(gettext_noop("eager mode"))
def examine_eagerness() -> Iterator[Finding]:
    if current_app.conf.task_always_eager:
        yield error(
            _("Celery's task_always_eager is on: each save waits for the row's analysis."),
            _("Remove %s from the settings; it is for tests.") % setting_of("task_always_eager"),
        )


@examination(gettext_noop("code"))
def examine_code() -> Iterator[Finding]:
    """Current successes that other code of the same version has made."""
    found = [warning(str(each), each.advice) for each in edits(registry.runners())]
    yield from found or [ok(_("Unchanged since it made the current results."))]
