"""How rows are named."""

import pytest
from django.db import connection, models

from autorun.keys import KeyKind


@pytest.mark.parametrize("collation", ["NOCASE", "RTRIM", "und-x-icu"])
def test_keys_of_a_collation_of_their_own_are_not_bounded(collation):
    """Windows follow the model's order, and bounds on runs would follow another."""
    field = models.CharField(primary_key=True, max_length=8, db_collation=collation)

    assert not KeyKind(field).is_ordered_alike(connection)
