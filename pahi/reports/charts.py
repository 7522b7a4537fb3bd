"""Charts as SVG text. Colours are classes that the page's style sheet fills, so that light and dark both work.

Every chart has a text alternative with its numbers; what is drawn beside its own numbers is hidden from screen readers.
"""

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from pahi.evaluation import summary
from pahi.predictors.base import kinds
from pahi.reports.text import finite, interval, short, signed

# The shape that tells an arm from others without colour, by the class of its colour.
SQUARE, DIAMOND, TRIANGLE = "arm-hpi", "arm-best", "arm-shuffled"
MAX_POINTS = 240  # a line drawn with more is not seen better


def arm_class(name: Any) -> str:
    """The class that carries an arm's colour: arms that are never shown beside each other share one."""
    name = str(name)
    if name == "standard":
        return "arm-standard"
    if name.endswith(summary.SHUFFLED):
        return TRIANGLE
    if name.startswith(summary.BEST_OF):
        return DIAMOND
    kind = kinds().get(name)
    return "arm-other" if kind is None else "arm-pahi" if kind.adaptive else SQUARE


def short_name(arm: dict[str, Any]) -> str:
    """What fits beside a point."""
    name = str(arm.get("arm"))
    if name.endswith(summary.SHUFFLED):
        return "shuffled"
    if name.startswith((summary.BEST_OF, summary.OPTIMISED, summary.CHOSEN)):
        return name.replace("_", " ")
    return kinds()[name].name if name in kinds() else str(arm.get("label") or name)[:16]


def nice_ticks(low: float, high: float, n: int = 5) -> list[float]:
    """About n round numbers that cover [low, high]; the first is at or below low, the last at or above high."""
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / max(n - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def axis(low: float, high: float, n: int = 5) -> tuple[float, float, list[float]]:
    """An axis with a little air around [low, high], and the round numbers on it."""
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    air = 0.05 * (high - low)
    low, high = low - air, high + air
    return low, high, [tick for tick in nice_ticks(low, high, n) if low <= tick <= high]


def interval_bar(uplift: Any, low: float, high: float, kind: str) -> Markup:
    """One interval on the axis that all rows of a column share. The numbers stand beside it."""
    u = interval(uplift)
    if u is None:
        return Markup("")
    width, height = 150.0, 20.0

    def x(v: float) -> float:
        return 5 + (width - 10) * (min(max(v, low), high) - low) / ((high - low) or 1)

    value = u["value"] or 0.0
    parts = [f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{height}"/>']
    if u["low"] is not None and u["high"] is not None:
        a, b = x(u["low"]), x(u["high"])
        parts.append(f'<rect class="span" x="{a:.1f}" y="7" width="{max(b - a, 1):.1f}" height="6" rx="3"/>')
    parts.append(f'<circle class="dot" cx="{x(value):.1f}" cy="10" r="4"/>')
    return Markup(f'<svg class="bar {kind}" viewBox="0 0 150 20" aria-hidden="true">{"".join(parts)}</svg>')


def bounds(uplifts: Sequence[Any]) -> tuple[float, float]:
    """An axis that holds every interval and zero, with a little air."""
    numbers = [0.0]
    for uplift in uplifts:
        u = interval(uplift)
        numbers += [v for v in (u or {}).values() if v is not None]
    low, high = min(numbers), max(numbers)
    air = 0.04 * ((high - low) or 1)
    return (low - air if low < 0 else -air), high + air


def mark(kind: str, x: float, y: float, r: float = 6) -> str:
    """A point in the shape of its class."""
    if kind == SQUARE:
        s = 0.88 * r
        points = [(x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s)]
    elif kind == DIAMOND:
        points = [(x, y - r * 1.3), (x + r * 1.3, y), (x, y + r * 1.3), (x - r * 1.3, y)]
    elif kind == TRIANGLE:
        points = [(x, y - r * 1.2), (x + r * 1.2, y + r), (x - r * 1.2, y + r)]
    else:
        return f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    return f'<polygon class="dot {kind}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>'


def compute_plot(arms: Sequence[dict[str, Any]], reward: str, limits: tuple[float, float]) -> Markup:
    """Uplift against generator calls an image, with intervals; the standard arm is the zero line."""
    rows = []
    for arm in arms:
        u = interval(((arm.get("rewards") or {}).get(reward) or {}).get("uplift"))
        calls = finite(arm.get("calls"))
        if u is not None and calls is not None and arm.get("arm") != "standard":
            rows.append((calls, arm, u))
    if not rows:
        return Markup("")
    width, height, left, right, top, bottom = 520.0, 330.0, 52.0, 14.0, 14.0, 46.0
    low, high, ticks = axis(*limits, 6)

    def y(v: float) -> float:
        return top + (height - top - bottom) * (high - v) / (high - low)

    groups = sorted({calls for calls, _, _ in rows})
    slot = (width - left - right) / len(groups)
    svg = _y_axis(ticks, y, left, width - right)
    svg.append(f'<text class="axis" x="{width - right}" y="{y(0) - 6:.1f}" text-anchor="end">standard noise</text>')
    alternatives = []
    for g, calls in enumerate(groups):
        x0 = left + slot * g
        word = "call" if calls == 1 else "calls"
        svg.append(
            f'<text class="axis strong" x="{x0 + slot / 2:.1f}" y="{height - 14}" text-anchor="middle">'
            f"{short(calls)} {word} an image</text>"
        )
        members = sorted((m for m in rows if m[0] == calls), key=lambda m: -(m[2]["value"] or 0.0))
        step = min(26.0, slot * 0.36 / max(len(members), 1))
        start = x0 + slot * (0.5 if len(members) == 1 else 0.36) - step * (len(members) - 1) / 2 - 12
        labels = []
        for i, (_, arm, u) in enumerate(members):
            # The lowest stands leftmost, so that no label's leader crosses another arm's interval by much.
            x, value, kind = start + step * (len(members) - 1 - i), u["value"] or 0.0, arm_class(arm.get("arm"))
            if u["low"] is not None and u["high"] is not None:
                svg.append(
                    f'<line class="stem {kind}" x1="{x:.1f}" x2="{x:.1f}"'
                    f' y1="{y(u["low"]):.1f}" y2="{y(u["high"]):.1f}"/>'
                )
            svg.append(mark(kind, x, y(value)))
            labels.append((y(value), short_name(arm), signed(value), kind, x))
            alternatives.append(f"{arm.get('label') or arm.get('arm')}, {short(calls)} {word}: {signed(value)}")
        tx = start + step * (len(members) - 1) + 22
        placed = _spread([label[0] for label in labels], 17.0, top + 6, y(low) - 4)
        for ly, (py, text, value_text, kind, px) in zip(placed, labels, strict=True):
            if abs(ly - py) > 3 or tx - px > 24:
                svg.append(f'<line class="leader" x1="{px + 9:.1f}" x2="{tx - 4:.1f}" y1="{py:.1f}" y2="{ly:.1f}"/>')
            svg.append(
                f'<text class="label {kind}" x="{tx:.1f}" y="{ly + 4:.1f}">{escape(text)} '
                f'<tspan class="value">{value_text}</tspan></text>'
            )
    title = f"Uplift on {reward} against calls an image. " + "; ".join(alternatives)
    return _svg(svg, width, height, title)


def line_chart(name: str, phases: dict[str, list[tuple[float, float]]]) -> Markup:
    """One quantity over steps, a line a phase."""
    phases = {phase: sorted(points) for phase, points in phases.items() if points}
    if not phases:
        return Markup("")
    width, height, left, right, top, bottom = 340.0, 190.0, 46.0, 12.0, 10.0, 26.0
    xs = [p[0] for points in phases.values() for p in points]
    ys = [p[1] for points in phases.values() for p in points]
    low, high, ticks = axis(min(ys), max(ys), 4)
    x_low, x_high = min(xs), max(xs)

    def x(v: float) -> float:
        return left + (width - left - right) * ((v - x_low) / (x_high - x_low) if x_high > x_low else 0.5)

    def y(v: float) -> float:
        return top + (height - top - bottom) * (high - v) / (high - low)

    svg = _y_axis(ticks, y, left, width - right)
    svg.append(f'<text class="axis" x="{left}" y="{height - 8}">{short(x_low)}</text>')
    svg.append(
        f'<text class="axis" x="{width - right}" y="{height - 8}" text-anchor="end">{short(x_high)} steps</text>'
    )
    said = []
    for i, (phase, points) in enumerate(phases.items()):
        kind = phase_class(phase, i)
        thin = _thin(points)
        if len(thin) == 1:
            svg.append(f'<circle class="dot {kind}" cx="{x(thin[0][0]):.1f}" cy="{y(thin[0][1]):.1f}" r="3.5"/>')
        else:
            d = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in thin)
            svg.append(f'<polyline class="curve {kind}" points="{d}"/>')
            end = thin[-1]
            svg.append(f'<circle class="dot {kind}" cx="{x(end[0]):.1f}" cy="{y(end[1]):.1f}" r="3"/>')
        said.append(f"{phase}: from {short(points[0][1])} to {short(points[-1][1])}")
    return _svg(svg, width, height, f"{name} over training steps. " + "; ".join(said))


def phase_class(phase: str, index: int) -> str:
    """HPI and PAHI keep the colours of their arms."""
    return arm_class(phase.lower()) if phase.lower() in ("hpi", "pahi") else f"series-{index % 4}"


def histogram(name: str, samples: dict[str, Sequence[Any]], bins: int = 32) -> Markup:
    """Overlaid densities of raw scores on common bins, with a tick at each mean."""
    data = {arm: [v for v in (finite(s) for s in scores or []) if v is not None] for arm, scores in samples.items()}
    data = {arm: values for arm, values in data.items() if values}
    if not data:
        return Markup("")
    width, height, left, right, top, bottom = 520.0, 220.0, 12.0, 12.0, 22.0, 28.0
    low, high, ticks = axis(min(map(min, data.values())), max(map(max, data.values())), 6)
    heights: dict[str, list[float]] = {}
    for arm, values in data.items():
        counts = [0.0] * bins
        for v in values:
            counts[min(int((v - low) / (high - low) * bins), bins - 1)] += 1 / len(values)
        heights[arm] = counts
    peak = max(max(counts) for counts in heights.values())

    def x(v: float) -> float:
        return left + (width - left - right) * (v - low) / (high - low)

    def y(v: float) -> float:
        return top + (height - top - bottom) * (1 - v / peak)

    svg = [f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>']
    for tick in ticks:
        if low <= tick <= high:
            svg.append(
                f'<text class="axis" x="{x(tick):.1f}" y="{height - 9}" text-anchor="middle">{short(tick)}</text>'
            )
    said = []
    for arm, counts in heights.items():
        kind = arm_class(arm)
        edge = [f"{x(low):.1f},{y(0):.1f}"]
        for i, c in enumerate(counts):
            a, b = low + (high - low) * i / bins, low + (high - low) * (i + 1) / bins
            edge += [f"{x(a):.1f},{y(c):.1f}", f"{x(b):.1f},{y(c):.1f}"]
        edge.append(f"{x(high):.1f},{y(0):.1f}")
        svg.append(f'<polygon class="area {kind}" points="{" ".join(edge)}"/>')
        mean = sum(data[arm]) / len(data[arm])
        said.append(f"{arm}: mean {short(round(mean, 4))} of {len(data[arm])} pictures")
        svg.append(f'<line class="mean {kind}" x1="{x(mean):.1f}" x2="{x(mean):.1f}" y1="{top - 8}" y2="{y(0):.1f}"/>')
    return _svg(svg, width, height, f"Distribution of {name}. " + "; ".join(said))


def _y_axis(ticks: list[float], y: Any, left: float, right: float) -> list[str]:
    parts = []
    for tick in ticks:
        kind = "grid zero" if tick == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(
            f'<text class="axis" x="{left - 7}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{short(tick)}</text>'
        )
    return parts


def _svg(parts: list[str], width: float, height: float, title: str) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _spread(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted (ascending) ones, `gap` apart and inside [low, high] where they fit."""
    placed: list[float] = []
    for w in wanted:
        placed.append(max(w, low, placed[-1] + gap if placed else low))
    ceiling = high
    for i in range(len(placed) - 1, -1, -1):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS: means of equal slices, the last point kept as it is."""
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(len(points) / (MAX_POINTS - 1))
    slices = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(p[0] for p in s) / len(s), sum(p[1] for p in s) / len(s)) for s in slices] + [points[-1]]
