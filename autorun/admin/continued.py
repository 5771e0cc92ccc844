"""An unfinished count that goes to the client and comes back, so that it can be continued.

It is signed: anyone who may see a page could otherwise send numbers that everybody is then shown.
"""

from django.core import signing
from django.http import HttpRequest

from autorun.planning.counting import Count

SALT = "autorun.admin.continued:"
#: Seconds after which a count is begun anew.
MOST_AGE = 3600


def signed(count: Count, subject: str) -> str:
    """The count as text, from which only a count of the same `subject` can continue."""
    return signing.dumps(count.written(), salt=SALT + subject, compress=True)


def begun(request: HttpRequest, subject: str) -> Count | None:
    """The count of `subject` that the request continues; None if it begins one."""
    try:
        written = signing.loads(request.GET.get("begun", ""), salt=SALT + subject, max_age=MOST_AGE)
    except signing.BadSignature:
        return None
    return Count.read(written)
