"""The two plots that people look at, as SVG files that stand alone: uplift against diversity, and against compute."""

import math

from markupsafe import escape

from pahi.evaluation.frontier import Arm, Frontier, beta_of, name_of, shown
from pahi.reports.charts import axis

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760.0, 460.0, 64.0, 150.0, 28.0, 54.0
# Okabe and Ito's colours: told apart by colour-blind eyes, on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b2182b", "#4d4d4d", "#117733")
STYLE = (
    "text{font:12px sans-serif;fill:#222}.axis{fill:#555}.grid{stroke:#ddd}.zero{stroke:#999}"
    ".title{font-size:14px;font-weight:600}.halo{stroke:#fff;stroke-width:3;paint-order:stroke}"
)


def frontier_svg(f: Frontier, reward: str) -> str:
    """Uplift in a reward against what is left of the pixel diversity; a line a predictor, over its betas."""
    lines: dict[str, list[tuple[float, float, str]]] = {}
    for (name, beta), group in f.groups(shown).items():
        x, y = f.share(group, "diversity")["value"], _value(f, group, reward)
        if math.isfinite(x) and math.isfinite(y):
            label = name_of(name) if beta is None else beta_of(beta)
            lines.setdefault(name, []).append((x, y, label))
    xs = [1.0, *(x for points in lines.values() for x, _, _ in points)]
    title = f"Uplift in {reward} ({_unit(f, reward)}) against diversity; the numbers are beta"
    return _draw(lines, xs, title, "pixel diversity, of the standard Gaussian's", standard=1.0)


def compute_svg(f: Frontier, reward: str, kept: float) -> str:
    """Uplift against generator calls an image, on a scale of doublings: the best beta of every predictor at one call.

    A predictor's best beta is the one with most uplift; one that keeps less than `kept` of the diversity says so.
    """
    lines: dict[str, list[tuple[float, float, str]]] = {}
    for (name, beta), group in f.groups(shown).items():
        y = _value(f, group, reward)
        if not math.isfinite(y):
            continue
        if beta is None:
            family = name.rpartition("_")[0]
            lines.setdefault(family, []).append((math.log2(group[0].calls), y, str(group[0].calls)))
        elif name not in lines or lines[name][0][1] < y:
            share = f.share(group, "diversity")["value"]
            lines[name] = [(0.0, y, f"{beta_of(beta)}" + ("" if share >= kept else f", diversity {share:.2f}"))]
    xs = [0.0, *(x for points in lines.values() for x, _, _ in points)]
    title = f"Uplift in {reward} ({_unit(f, reward)}) against generator calls an image"
    return _draw(lines, xs, title, "generator calls an image", calls=True)


def _draw(
    lines: dict[str, list[tuple[float, float, str]]],
    xs: list[float],
    title: str,
    below: str,
    standard: float | None = None,
    calls: bool = False,
) -> str:
    ys = [0.0, *(y for points in lines.values() for _, y, _ in points)]
    x_low, x_high, x_ticks = axis(min(xs), max(xs), 6)
    y_low, y_high, y_ticks = axis(min(ys), max(ys), 6)
    if calls:
        x_ticks = [float(t) for t in range(math.floor(min(xs)), math.ceil(max(xs)) + 1)]

    def x(v: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (v - x_low) / (x_high - x_low)

    def y(v: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (y_high - v) / (y_high - y_low)

    svg = [f'<text class="title" x="{LEFT}" y="18">{escape(title)}</text>']
    for tick in y_ticks:
        kind = "zero" if tick == 0 else "grid"
        svg.append(f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        svg.append(f'<text class="axis" x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        shown = f"{2**tick:g}" if calls else f"{tick:g}"
        svg.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        svg.append(f'<text class="axis" x="{x(tick):.1f}" y="{HEIGHT - 34}" text-anchor="middle">{shown}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    svg.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{escape(below)}</text>')
    if standard is not None:
        svg.append(f'<circle cx="{x(standard):.1f}" cy="{y(0):.1f}" r="5" fill="#222"/>')
        svg.append(f'<text class="halo" x="{x(standard) - 8:.1f}" y="{y(0) - 8:.1f}" text-anchor="end">standard</text>')
    for i, (name, points) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        points = sorted(points)
        if len(points) > 1:
            path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b, _ in points)
            svg.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for a, b, label in points:
            svg.append(f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="4.5" fill="{colour}"/>')
            svg.append(f'<text class="halo" x="{x(a) + 7:.1f}" y="{y(b) - 6:.1f}">{escape(label)}</text>')
        row = TOP + 14 + 20 * i
        svg.append(f'<circle cx="{WIDTH - RIGHT + 18}" cy="{row - 4}" r="4.5" fill="{colour}"/>')
        svg.append(f'<text x="{WIDTH - RIGHT + 28}" y="{row}">{escape(name_of(name))}</text>')
    said = "; ".join(f"{name_of(n)} {lab}: {a:.2f}, {b:+.2f}" for n, points in lines.items() for a, b, lab in points)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(said)}</desc><style>{STYLE}</style>"
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(svg)}</svg>\n'
    )


def _value(f: Frontier, group: list[Arm], reward: str) -> float:
    value = f.uplift(group, reward)["value"]
    return 100 * value if f.roles[reward] == "judge" else value


def _unit(f: Frontier, reward: str) -> str:
    return "points of a hundred" if f.roles[reward] == "judge" else "within-prompt SD"
