"""Plots with two logarithmic axes, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 40, 50
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#8250df")

Points = Sequence[Sequence[float]]


def log_log(series: Mapping[str, Points], *, title: str, unit: str) -> str:
    """Cost against rows, one line per series."""
    every = [point for points in series.values() for point in points]
    x_from, x_to = _decades([x for x, _ in every])
    y_from, y_to = _decades([y for _, y in every])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - x_from) / (x_to - x_from)
        up = (math.log10(y) - y_from) / (y_to - y_from)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="sans-serif" font-size="12" role="img">'
        ),
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    for decade in range(x_from, x_to + 1):
        x, low = place(10**decade, 10**y_from)
        _, high = place(10**decade, 10**y_to)
        parts.append(_line([(x, low), (x, high)], "#d0d7de", 1))
        parts.append(
            f'<text x="{x:.0f}" y="{low + 18:.0f}" text-anchor="middle">{_number(decade)}</text>'
        )
    for decade in range(y_from, y_to + 1):
        left, y = place(10**x_from, 10**decade)
        right, _ = place(10**x_to, 10**decade)
        parts.append(_line([(left, y), (right, y)], "#d0d7de", 1))
        parts.append(
            f'<text x="{left - 8:.0f}" y="{y + 4:.0f}" text-anchor="end">{_number(decade)}</text>'
        )
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 12}" text-anchor="end">rows</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 4}" fill="#57606a">{escape(unit)}</text>')
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        placed = [place(x, y) for x, y in points]
        parts.append(_line(placed, colour, 2))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in placed]
        parts.append(
            f'<text x="{WIDTH - RIGHT + 12}" y="{TOP + 20 + 18 * number}" fill="{colour}">'
            f"{escape(name)}</text>"
        )
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _number(decade: int) -> str:
    return f"{10**decade:,}" if decade >= 0 else f"{10.0**decade:g}"


def _line(points: Sequence[tuple[float, float]], colour: str, width: int) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
