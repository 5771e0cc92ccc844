"""The result of one examination."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Literal

from django.utils.translation import gettext as _

from autorun.state.masking import masked


@dataclass(frozen=True)
class Finding:
    """A result of the doctor; warnings and errors have a `hint` that says what to do.

    `bare` replaces a message that quotes the project's code, for users who may not see payload.
    """

    level: Literal["ok", "warning", "error"]
    message: str
    hint: str = ""
    subject: str = ""
    bare: str = ""


ok = partial(Finding, "ok")
warning = partial(Finding, "warning")
error = partial(Finding, "error")

Examination = Callable[[], Iterator[Finding]]


def examination(subject: str) -> Callable[[Examination], Examination]:
    """Name the findings that name no subject; an exception becomes the only finding."""

    def decorate(examine: Examination) -> Examination:
        @wraps(examine)
        def examine_safely() -> Iterator[Finding]:
            try:
                findings = list(examine())
            except Exception as problem:  # noqa: BLE001
                bare = _("It could not be examined: %s") % type(problem).__name__
                hint = _("Fix the other findings, and check again.")
                findings = [error(f"{bare}: {problem}", hint, bare=f"{bare}.")]
            for each in findings:
                message = masked(each.message)
                yield replace(each, message=message, subject=each.subject or _(subject))

        return examine_safely

    return decorate
