"""The sizes of the measurements."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    rows: int = 1_000_000
    changed: int = 1_000
    python_rows: int = 100_000
    growth: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    memory: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    memory_python: tuple[int, ...] = (100_000, 1_000_000)
    long_table: int = 20_000_000
    progress: tuple[int, ...] = (1_000_000, 10_000_000)
    saves: int = 1_000
    end_to_end: int = 10_000
    by_hand: int = 2_000
    backfill: int = 100_000
    latency: int = 30
    long_run: int = 10_000  # milliseconds
    beside: int = 3_000
    starts: int = 15
    nodes: int = 2_000
    rounds: int = 5
    sets: int = 100_000


FULL = Scale()
#: All lines, except sizes that take a server many minutes to fill.
MEDIUM = Scale(
    growth=(10_000, 100_000, 1_000_000),
    memory=(100_000, 1_000_000),
    memory_python=(50_000, 100_000),
    python_rows=50_000,
    long_table=5_000_000,
    progress=(100_000, 1_000_000),
    end_to_end=5_000,
    by_hand=500,
    backfill=10_000,
)
QUICK = Scale(
    rows=30_000,
    changed=100,
    python_rows=5_000,
    growth=(3_000, 10_000, 30_000),
    memory=(10_000, 30_000),
    memory_python=(5_000, 10_000),
    long_table=200_000,
    progress=(20_000, 50_000),
    saves=300,
    end_to_end=1_000,
    by_hand=300,
    backfill=3_000,
    latency=10,
    long_run=3_000,
    beside=600,
    starts=5,
    nodes=200,
    rounds=5,
    sets=5_000,
)
