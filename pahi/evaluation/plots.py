"""The two plots that people look at, as SVG files that stand alone: uplift against diversity, and against compute."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import escape

from pahi.evaluation.frontier import Arm, Frontier, dial_of, name_of, shown
from pahi.reports.charts import axis

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860.0, 470.0, 64.0, 250.0, 30.0, 54.0
# Okabe and Ito's colours and a few more: told apart by colour-blind eyes, on white. Baselines are grey.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b2182b", "#117733", "#882255", "#999933")
GREYS = ("#222222", "#777777", "#aaaaaa")
STYLE = (
    "text{font:12px sans-serif;fill:#222}.axis{fill:#555}.grid{stroke:#e4e4e4}.zero{stroke:#999}"
    ".title{font-size:14px;font-weight:600}.halo{stroke:#fff;stroke-width:3;paint-order:stroke}"
)


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    low: float
    high: float
    label: str


@dataclass
class Line:
    name: str
    colour: str
    points: list[Point]


def frontier_svg(f: Frontier, reward: str) -> str:
    """Uplift in a reward, with its interval, against what is left of the pixel diversity; a line a predictor."""
    lines: dict[str, Line] = {}
    colours = _colours(f)
    for (name, beta), group in f.groups(shown).items():
        x, y, low, high = f.share(group, "diversity")["value"], *_uplift(f, group, reward)
        if math.isfinite(x) and math.isfinite(y):
            line = lines.setdefault(name, Line(name_of(name), colours[name], []))
            line.points.append(Point(x, y, low, high, "" if beta is None else dial_of(name, beta)))
    title = f"Uplift in {reward} ({_unit(f, reward)}) against diversity; the numbers are beta"
    xs = [1.0, *(p.x for line in lines.values() for p in line.points)]
    low, high, ticks = axis(min(xs), max(xs), 7)
    labels = [(tick, f"{tick:g}") for tick in ticks]
    return _draw(list(lines.values()), (low, high), labels, title, "pixel diversity, of the standard Gaussian's", 1.0)


def compute_svg(f: Frontier, reward: str, kept: float) -> str:
    """Uplift against generator calls an image, on a scale of doublings; of each predictor the beta with most uplift.

    One that keeps less than `kept` of the diversity says so.
    """
    lines: dict[str, Line] = {}
    colours = _colours(f)
    for (name, beta), group in f.groups(shown).items():
        y, low, high = _uplift(f, group, reward)
        if not math.isfinite(y):
            continue
        if beta is None:
            family = name.rpartition("_")[0]
            line = lines.setdefault(family, Line(name_of(family), colours[name], []))
            line.points.append(Point(math.log2(group[0].calls), y, low, high, str(group[0].calls)))
        elif name not in lines or lines[name].points[0].y < y:
            share = f.share(group, "diversity")["value"]
            said = name_of(name) + ("" if name == "selected" else ", beta") + f" {dial_of(name, beta)}"
            said += "" if share >= kept else f", diversity {share:.2f}"
            # Beside each other, since all are at one call.
            place = lines[name].points[0].x if name in lines else 0.06 * sum(c in COLOURS for c in _used(lines))
            lines[name] = Line(said, colours[name], [Point(place, y, low, high, "")])
    most = max((p.x for line in lines.values() for p in line.points), default=0.0)
    ticks = [(float(t), f"{2**t}") for t in range(math.ceil(most) + 1)]
    title = f"Uplift in {reward} ({_unit(f, reward)}) against generator calls an image"
    return _draw(list(lines.values()), (-0.3, ticks[-1][0] + 0.3), ticks, title, "generator calls an image")


def _draw(
    lines: list[Line],
    reach: tuple[float, float],
    x_ticks: list[tuple[float, str]],
    title: str,
    below: str,
    standard: float | None = None,
) -> str:
    points = [p for line in lines for p in line.points]
    y_low, y_high, y_ticks = axis(min([0.0, *(p.low for p in points)]), max([0.0, *(p.high for p in points)]), 6)

    def x(v: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (v - reach[0]) / (reach[1] - reach[0])

    def y(v: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (y_high - v) / (y_high - y_low)

    svg = [f'<text class="title" x="{LEFT}" y="18">{escape(title)}</text>']
    for tick in y_ticks:
        kind = "zero" if tick == 0 else "grid"
        svg.append(f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        svg.append(f'<text class="axis" x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick, words in x_ticks:
        svg.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        svg.append(f'<text class="axis" x="{x(tick):.1f}" y="{HEIGHT - 34}" text-anchor="middle">{words}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    svg.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{escape(below)}</text>')
    if standard is not None:
        svg.append(f'<circle cx="{x(standard):.1f}" cy="{y(0):.1f}" r="5" fill="#222"/>')
        svg.append(
            f'<text class="halo" x="{x(standard) - 4:.1f}" y="{y(0) + 18:.1f}" text-anchor="middle">standard</text>'
        )
    for i, line in enumerate(lines):
        row = TOP + 14 + 20 * i
        svg += _mark(WIDTH - RIGHT + 18, row - 4, line.colour)
        svg.append(f'<text x="{WIDTH - RIGHT + 28}" y="{row}">{escape(line.name)}</text>')
        ordered = sorted(line.points, key=lambda p: p.x)
        if len(ordered) > 1:
            path = " ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in ordered)
            svg.append(f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="1.5"/>')
        for p in ordered:
            svg.append(
                f'<line x1="{x(p.x):.1f}" x2="{x(p.x):.1f}" y1="{y(p.low):.1f}" y2="{y(p.high):.1f}" '
                f'stroke="{line.colour}" stroke-opacity="0.45" stroke-width="2"/>'
            )
            svg += _mark(x(p.x), y(p.y), line.colour)
            svg.append(f'<text class="halo" x="{x(p.x) + 7:.1f}" y="{y(p.y) - 6:.1f}">{escape(p.label)}</text>')
    said = "; ".join(f"{line.name} {p.label}: {p.x:.2f}, {p.y:+.2f}" for line in lines for p in line.points)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(said)}</desc><style>{STYLE}</style>"
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(svg)}</svg>\n'
    )


def _mark(x: float, y: float, colour: str) -> list[str]:
    if colour in GREYS:
        corners = f"{x:.1f},{y - 6:.1f} {x + 6:.1f},{y:.1f} {x:.1f},{y + 6:.1f} {x - 6:.1f},{y:.1f}"
        return [f'<polygon points="{corners}" fill="{colour}"/>']
    return [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>']


def _colours(f: Frontier) -> dict[str, str]:
    """By arm, the same in every plot of a frontier."""
    learned = dict.fromkeys(arm.label for arm in f.arms if shown(arm) and arm.beta is not None)
    others = dict.fromkeys(arm.label for arm in f.arms if shown(arm) and arm.beta is None)
    found = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(learned)}
    return found | {name: GREYS[i % len(GREYS)] for i, name in enumerate(others)}


def _used(lines: dict[str, Line]) -> Iterable[str]:
    return (line.colour for line in lines.values())


def _uplift(f: Frontier, group: list[Arm], reward: str) -> tuple[float, float, float]:
    value = f.uplift(group, reward)
    factor = 100 if f.roles[reward] == "judge" else 1
    return factor * value["value"], factor * value["low"], factor * value["high"]


def _unit(f: Frontier, reward: str) -> str:
    return "points of a hundred" if f.roles[reward] == "judge" else "within-prompt SD"
