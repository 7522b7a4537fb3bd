"""What the benchmarks share: works in turns, and ratios that do not depend on the machine's other work."""

import resource
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

Work = Callable[[], Any]


def in_turns(rounds: int, clock: Callable[[], float] = time.perf_counter, **works: Work) -> dict[str, list[float]]:
    """Seconds of each work by `clock`, by round; a first round warms all of them up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = clock()
            work()
            if number:
                times[name].append(clock() - started)
    return times


def ratio(over: list[float], under: list[float], digits: int = 2) -> str:
    """The rounds' ratios: median, and smallest to largest."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return f"{statistics.median(ratios):.{digits}f} ({min(ratios):.{digits}f} to {max(ratios):.{digits}f})"


def peak_gb() -> float:
    """The most memory that this process had at once."""
    # getrusage's figure begins with that of the process that started this one.
    with suppress(OSError), open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
