"""An unfinished count that goes to the client and comes back, so that it can be continued.

It is signed: anyone who may see a page could otherwise send numbers that everybody is then shown.
The signature binds it to its rows, its user and a few minutes. Within these the user can still send
an earlier part of their own count again: it then covers rows as they were up to so long ago.
"""

from django.core import signing
from django.http import HttpRequest

from autorun.planning.counting import Count

SALT = "autorun.admin.continued:"
#: Seconds after which a count starts again.
MOST_AGE = 600


def signed(request: HttpRequest, count: Count, subject: str) -> str:
    """The count as text, from which only that user's count of the same `subject` can continue."""
    return signing.dumps(count.written(), salt=_salt(request, subject), compress=True)


def begun(request: HttpRequest, subject: str) -> Count | None:
    """The count of `subject` that the request continues; None if it begins one."""
    try:
        salt = _salt(request, subject)
        written = signing.loads(request.GET.get("begun", ""), salt=salt, max_age=MOST_AGE)
    except signing.BadSignature:
        return None
    return Count.read(written)


def _salt(request: HttpRequest, subject: str) -> str:
    return f"{SALT}{request.user.pk}:{subject}"
