"""An unfinished count that goes to the client and comes back, so that it can be continued.

It is signed: anyone who may see a page could otherwise send numbers that everybody is then shown.
The signature binds it to its rows, the runner's version, its user and a few minutes. Within these
the user can still send an earlier part of their own count again: it then covers rows as they were
up to so long ago, as does the count of a long table.
"""

from django.core import signing
from django.http import HttpRequest

from autorun.declare.base import Runner
from autorun.observe.glance import digest_or_problem
from autorun.planning.counting import Count

SALT = "autorun.admin.continued:"
#: Seconds after which a count starts again.
MOST_AGE = 600


def signed(request: HttpRequest, count: Count, runner: Runner, query: str = "") -> str:
    """The count as text, from which only that user's count of the same rows can continue.

    They are those of the runner, or of the `query` of a backfill.
    """
    return signing.dumps(count.written(), salt=_salt(request, runner, query), compress=True)


def begun(request: HttpRequest, runner: Runner, query: str = "") -> Count | None:
    """The count of these rows that the request continues; None if it begins one."""
    try:
        salt = _salt(request, runner, query)
        written = signing.loads(request.GET.get("begun", ""), salt=salt, max_age=MOST_AGE)
    except signing.BadSignature:
        return None
    return Count.read(written)


def _salt(request: HttpRequest, runner: Runner, query: str) -> str:
    digest, _ = digest_or_problem(runner)
    return SALT + repr((str(request.user.pk), runner.label, digest, query))
