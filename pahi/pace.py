"""How fast a stage goes, and how long it will still take."""


class Pace:
    """How fast one stage is, from its first report on: loading models, and what was finished before, do not count."""

    def __init__(self, total: int, done: int, now: float) -> None:
        self.total, self.done, self.now = total, done, now
        self.begun, self.began = done, now

    def update(self, done: int, total: int, now: float) -> None:
        if done < self.done:  # another partition, or another phase, that counts from its own start
            self.begun, self.began = done, now
        self.total, self.done, self.now = total, done, now

    @property
    def speed(self) -> float | None:
        """Items a second; None while nothing is known."""
        passed = self.now - self.began
        return (self.done - self.begun) / passed if passed > 0 and self.done > self.begun else None

    @property
    def remaining(self) -> float | None:
        """Seconds to the end; None while nothing is known."""
        return max(self.total - self.done, 0) / self.speed if self.speed and self.total else None

    @property
    def going(self) -> str:
        """Speed and what is left, such as `3.1/s, 2:03 left`; empty where nothing is known, or nothing remains."""
        if not self.speed or (self.total and not self.remaining):
            return ""
        return ", ".join(filter(None, (rate(self.speed), self.left)))

    @property
    def left(self) -> str:
        """The same in words, such as `2:03 left`; empty where nothing is known, or nothing remains."""
        return f"{duration(self.remaining)} left" if self.remaining else ""


def rate(speed: float) -> str:
    """Items a second, or a minute where they are slow."""
    if speed >= 1:
        return f"{speed:.0f}/s" if speed >= 10 else f"{speed:.1f}/s"
    return f"{60 * speed:.1f}/min"


def duration(seconds: float) -> str:
    """0:07, 2:03, 1:10:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def line(stage: str, pace: Pace, note: str) -> str:
    """One report, for a log: `train     120/500  3.1/s, 2:03 left  uplift pickscore +0.41`."""
    return "  ".join(filter(None, (f"{stage:<9} {pace.done}/{pace.total or '?'}", pace.going, note)))
