"""Figures that grow with size, as an SVG of two panels side by side, both axes logarithmic."""

import math
from collections.abc import Sequence
from html import escape

Point = tuple[float, float]
COLOURS = ("#167860", "#b4541a", "#4a5fb0")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BELOW = 420, 320, 56, 16, 34, 64


def panels(charts: Sequence[tuple[str, dict[str, list[Point]]]], across: str) -> str:
    """(title, points of each line) of each chart -> SVG. `across` is what grows to the right."""
    inner = "".join(
        f'<g transform="translate({i * WIDTH} 0)">{_panel(title, lines, across)}</g>'
        for i, (title, lines) in enumerate(charts)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * len(charts)} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>{inner}</svg>\n'
    )


def _panel(title: str, lines: dict[str, list[Point]], across: str) -> str:
    points = [point for line in lines.values() for point in line]
    (x0, x1), (y0, y1) = (_decades([point[side] for point in points]) for side in (0, 1))

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(value) - x0) / (x1 - x0)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BELOW) * (y1 - math.log10(value)) / (y1 - y0)

    right, bottom = WIDTH - RIGHT, HEIGHT - BELOW
    svg = [f'<text x="{LEFT}" y="20" font-weight="bold">{escape(title)}</text>']
    for power in range(y0, y1 + 1):
        at = y(10.0**power)
        svg.append(f'<line x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        svg.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for power in range(x0, x1 + 1):
        at = x(10.0**power)
        svg.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}" stroke="#ddd"/>')
        svg.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{10**power:,}</text>')
    svg.append(f'<text x="{right}" y="{bottom + 32}" text-anchor="end">{escape(across)}</text>')
    for i, (name, line) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        place = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in sorted(line))
        svg.append(f'<polyline points="{place}" fill="none" stroke="{colour}" stroke-width="2"/>')
        svg += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{colour}"/>' for a, b in line]
        svg.append(f'<text x="{LEFT}" y="{bottom + 32 + 14 * i}" fill="{colour}">{escape(name)}</text>')
    return "".join(svg)


def _decades(values: list[float]) -> tuple[int, int]:
    """The powers of ten around the values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)
