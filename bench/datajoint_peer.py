"""Prints how many rows per second DataJoint's `populate` processes on the same PostgreSQL.

It knows only what there is to compute when asked, so its rows are inserted before the clock starts.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import django


def main(rows: int) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bench.settings")
    django.setup()
    from django.conf import settings

    where = settings.DATABASES["default"]
    os.environ |= {
        "DJ_BACKEND": "postgresql",
        "DJ_HOST": where["HOST"],
        "DJ_PORT": str(where["PORT"]),
        "DJ_USER": where["USER"],
        "DJ_PASS": where["PASSWORD"] or "unused",
        "DJ_DATABASE_NAME": where["NAME"],
        "DJ_LOG_LEVEL": "ERROR",
    }
    import datajoint

    datajoint.config["safemode"] = False
    schema = datajoint.Schema("bench_datajoint")

    @schema
    class Item(datajoint.Manual):
        definition = """
        item_id : int64
        ---
        title : varchar(100)
        """

    @schema
    class Length(datajoint.Computed):
        definition = """
        -> Item
        ---
        length : int64
        """

        def make(self, key: dict[str, Any]) -> None:
            title = (Item & key).fetch1("title")
            self.insert1({**key, "length": len(title) * 2})

    Item.insert((number, f"A title of usual length, number {number}") for number in range(rows))
    try:
        began = time.perf_counter()
        Length.populate(reserve_jobs=True)
        seconds = time.perf_counter() - began
        assert len(Length()) == rows, f"{len(Length())} of {rows}"
        print(rows / seconds)
    finally:
        schema.drop()


if __name__ == "__main__":
    main(int(sys.argv[1]))
