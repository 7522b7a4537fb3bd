"""What the command line shows: how far the stages are, and tables."""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from pahi.pace import Pace, line, rate
from pahi.tables import Row

SECONDS_BETWEEN_LINES = 10.0
WIDE = 130  # columns that a bar with a note of three rewards takes


class Display:
    """How far the stages are: bars on a terminal, plain lines elsewhere, nothing where `quiet`.

    It is the stages' `progress`: call it with the stage, how many of its items are done, how many there are (0 where
    that is unknown) and a note, such as the current uplift. Throughput and time remaining are its own.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.bars: _Bars | None = None
        self.tasks: dict[str, TaskID] = {}
        self.paces: dict[str, Pace] = {}
        self.last: dict[str, float] = {}

    def __enter__(self) -> "Display":
        if sys.stdout.isatty() and not self.quiet:
            self.bars = _Bars(Console())
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars is not None:
            self.bars.stop()

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        if self.quiet:
            return
        now = time.monotonic()
        if stage in self.paces:
            self.paces[stage].update(done, total, now)
        pace = self.paces.setdefault(stage, Pace(total, done, now))
        if self.bars is not None:
            self.bars.note = note
            if stage not in self.tasks:
                self.tasks[stage] = self.bars.add_task(stage, total=total or None, note=note, speed=None)
            self.bars.update(self.tasks[stage], completed=done, total=total or None, note=note, speed=pace.speed)
            return
        finished = bool(total) and done >= total
        if stage not in self.last or finished or now - self.last[stage] >= SECONDS_BETWEEN_LINES:
            self.last[stage] = now
            print(line(stage, pace, note), flush=True)

    def result(self, result: dict[str, Any]) -> None:
        how = "found finished" if result["skipped"] else f"finished in {result['seconds']:.1f} s"
        print(f"{result['stage']:<9} {how:<18}  {result['url']}", flush=True)


class _Bars(Progress):
    """A bar a stage. A note stands at the end of its line or, on a terminal too narrow for both, below all bars."""

    def __init__(self, console: Console) -> None:
        self.wide, self.note = console.width >= WIDE, ""
        columns = [
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=24 if self.wide else max(4, min(24, console.width - 58))),
            MofNCompleteColumn(),
            _Speed(),
            TimeElapsedColumn(),
            TextColumn("left", style="dim"),
            TimeRemainingColumn(),
        ]
        if self.wide:
            columns.append(TextColumn("{task.fields[note]}", style="dim", markup=False))
        super().__init__(*columns, console=console)

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.note and not self.wide:
            yield Text(f"{'':<10}{self.note}", style="dim", no_wrap=True, overflow="ellipsis")


class _Speed(ProgressColumn):
    """Items a second, as `Pace` knows it."""

    def render(self, task: Task) -> Text:
        speed = task.fields.get("speed")
        return Text(rate(speed) if speed else "", style="dim")


def print_table(rows: list[Row], title: str = "", spare: Sequence[str] = ()) -> None:
    """Rows as a table; its first column is text, and the others are figures.

    Where it is wider than the terminal, intervals get a line of their own; where that is not enough, the columns whose
    names begin with a word of `spare` are left out, the first words first, and it says so.
    """
    # A pipe or a log has no width: lines stay whole there.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False)

    def fits() -> bool:
        return Measurement.get(console, console.options.update(max_width=10_000), _grid(rows)).maximum <= console.width

    if not fits():
        rows = [{k.replace(" (", "\n("): str(v).replace(" [", "\n[") for k, v in row.items()} for row in rows]
    left_out = []
    for word in spare:
        if not fits():
            left_out += [name for name in rows[0] if name.startswith(word)]
            rows = [{name: value for name, value in row.items() if not name.startswith(word)} for row in rows]
    if title:
        console.print(title, soft_wrap=True)
    console.print(_grid(rows))
    if left_out:
        console.print(f"without {'; '.join(left_out)}: a wider terminal, `--json` and the report show all")


def _grid(rows: list[Row]) -> Table:
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, name in enumerate(rows[0]):
        figures = index > 0 and all(re.match(r"[-+]?[\d.]|-$", str(row[name])) for row in rows)
        grid.add_column(name, justify="right" if figures else "left", overflow="fold", no_wrap=not index)
    for row in rows:
        grid.add_row(*(str(value) for value in row.values()))
    return grid


def size(count: int) -> str:
    """Bytes as people read them."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
