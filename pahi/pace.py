"""How long a stage will still take, from how it went so far."""

import time


class Pace:
    """One stage's steps since this run began; a resumed run begins in the middle."""

    def __init__(self) -> None:
        self.start: tuple[float, int] | None = None

    def left(self, done: int, total: int) -> float | None:
        """Seconds that remain after `done` of `total` steps, or None as long as nothing tells."""
        now = time.monotonic()
        if self.start is None or done < self.start[1]:
            self.start = (now, done)
        began, first = self.start
        if done == first or not total:
            return None
        return (now - began) / (done - first) * max(0, total - done)

    def note(self, done: int, total: int) -> str:
        """The same in words, such as "4 min left"; empty where nothing tells, or nothing remains."""
        seconds = self.left(done, total)
        return f"{span(seconds)} left" if seconds and done < total else ""


def span(seconds: float) -> str:
    """Seconds as people read them: "40 s", "4 min", "2 h 5 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
