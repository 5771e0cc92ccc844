"""The code and environment that execute runs, recorded once per process and node."""

import hashlib

from django.db import DatabaseError, IntegrityError, InterfaceError, connections, transaction

from autorun.analysis import Analysis
from autorun.conf import settings
from autorun.declare import nodes
from autorun.declare.code_digest import code_digest
from autorun.models import Build, Environment, Node
from autorun.state.environment import environment, environment_digest
from autorun.state.logs import get_logger

logger = get_logger(__name__)

#: A build's id is the start of its digest, in hex: the most digits that are never negative.
ID_DIGITS = 7


def build_of(node: Node, analysis: Analysis) -> int | None:
    """Return the id of this process's build, recording it on first use. None if that fails."""
    try:
        found = _noted(node, code_digest(analysis.function))
    except (DatabaseError, InterfaceError) as error:
        # The results matter more; the next chunk tries again.
        logger.warning("%s: what code executes it could not be noted: %s", analysis, error)
        return None
    # An open transaction may still be rolled back.
    if not connections[settings.DATABASE].in_atomic_block:
        nodes.builds[settings.DATABASE, node.pk] = found
    return found


def _noted(node: Node, code: str) -> int:
    known_environment, _ = Environment.objects.get_or_create(
        digest=environment_digest(), defaults={"facts": environment()}
    )
    named = {"node": node, "code": code, "environment_id": known_environment.pk}
    known = Build.objects.filter(**named).values_list("pk", flat=True)
    found = known.first()
    if found is not None:
        return found
    digest = hashlib.sha256(f"{node.digest} {code} {environment_digest()}".encode()).hexdigest()
    for begin in (0, ID_DIGITS):
        try:
            with transaction.atomic(using=settings.DATABASE):
                return Build.objects.create(pk=int(digest[begin:][:ID_DIGITS], 16), **named).pk
        except IntegrityError:  # another process has noted it, or another build has the number
            found = known.first()
            if found is not None:
                return found
    raise DatabaseError(f"Both numbers of the build {digest} are another's.")
