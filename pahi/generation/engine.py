"""The host's side of bulk generation: pictures are encoded and shards written while the device draws the next ones.

    device's thread -> queue of batches -> collector -> encoder threads -> writer threads -> store

Everything between two of them is bounded, so a slow encoder or store slows the device down and memory stays flat. An
error that is the user's (a full disk, too many bad rows) ends the run at once; any other is its shard's alone: that
shard is tried again at the end, and the others go on.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from pahi.errors import PahiError, first_line

POLL = 0.2  # seconds between looks at whether something ended the run


class Work(Protocol):
    """One shard, as the engine sees it."""

    name: str

    def batches(self) -> Iterator[Any]:
        """Draws; called in the device's thread."""
        ...

    def encode(self, batch: Any) -> list[Callable[[], Any]]:
        """What is to be done with a batch's pictures, each by an encoder thread; called in the collector's thread."""
        ...

    def write(self, encoded: list[Any]) -> None:
        """Writes the shard from what the encoders returned, in order; called in a writer's thread."""
        ...


@dataclass
class Report:
    """How a run went."""

    failed: dict[str, str] = field(default_factory=dict)  # shards that failed twice, and why
    seconds: float = 0.0
    waited: float = 0.0  # seconds in which the device's thread waited for encoders and writers
    batch: int | None = None  # pictures at once, where memory did not suffice for more


def run(
    shards: Sequence[Work],
    *,
    encoders: int,
    writers: int = 2,
    drawn: Callable[[Work], None] = lambda work: None,
    progress: Callable[[Work], None] | None = None,
) -> Report:
    """Draws and writes every shard. Raises the first PahiError; other errors are in the report.

    `drawn` is told of a shard after each of its batches, `progress` of each that is written.
    """
    started = time.perf_counter()
    report = Report()
    engine = _Engine(encoders, writers, drawn, progress)
    try:
        engine.draw(shards)
        again = [work for work in shards if work.name in engine.failed] if engine.failed else []
        engine.failed.clear()
        engine.draw(again)
        report.failed = engine.failed
    finally:
        engine.close()
    report.seconds, report.waited = time.perf_counter() - started, engine.waited
    return report


class _Engine:
    def __init__(
        self, encoders: int, writers: int, drawn: Callable[[Work], None], progress: Callable[[Work], None] | None
    ) -> None:
        self.failed: dict[str, str] = {}
        self.waited = 0.0
        self.drawn, self.progress = drawn, progress
        self.fatal: BaseException | None = None
        self.stopped = threading.Event()
        self.batches: queue.Queue[tuple[Work, str, Any]] = queue.Queue(maxsize=2)
        self.pictures = threading.BoundedSemaphore(4 * encoders)
        self.shards = threading.BoundedSemaphore(writers + 1)
        self.encoders = ThreadPoolExecutor(encoders, thread_name_prefix="encode")
        self.writers = ThreadPoolExecutor(writers, thread_name_prefix="write")
        self.open: dict[str, list[Future[Any]]] = {}
        self.written: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self.collector = threading.Thread(target=self._collect, name="collect", daemon=True)
        self.collector.start()

    # ----------------------------------------------------------------------------------------------- device's thread

    def draw(self, shards: Sequence[Work]) -> None:
        for work in shards:
            try:
                for batch in work.batches():
                    self._put((work, "batch", batch))
                    self.drawn(work)
                    if work.name in self.failed:
                        break
                self._put((work, "end", None))
            except PahiError:
                raise
            except Exception as error:
                self._fail(work, error)
                self._put((work, "drop", None))
        done = threading.Event()
        self._put((_NOTHING, "sync", done))
        while not done.wait(POLL):
            self._raise()
        self._raise()

    def _put(self, item: tuple[Work, str, Any]) -> None:
        started = time.perf_counter()
        while True:
            self._raise()
            try:
                self.batches.put(item, timeout=POLL)
                break
            except queue.Full:
                continue
        self.waited += time.perf_counter() - started

    def _raise(self) -> None:
        """Raises what ended the run; tells of written shards here, in the thread that knows Prefect's run."""
        if self.fatal is not None:
            raise self.fatal
        while self.progress is not None and not self.written.empty():
            self.progress(self.written.get())

    def close(self) -> None:
        """Lets what is being encoded or written come to its end, forgets the rest, and ends every thread."""
        self.stopped.set()
        self.encoders.shutdown(wait=True, cancel_futures=True)
        self.writers.shutdown(wait=True, cancel_futures=True)
        self.collector.join()

    # -------------------------------------------------------------------------------------------- collector's thread

    def _collect(self) -> None:
        try:
            while not self.stopped.is_set():
                try:
                    work, what, batch = self.batches.get(timeout=POLL)
                except queue.Empty:
                    continue
                if what == "sync":
                    # Every place of a writer taken means that every shard is written.
                    for _ in range(self.writers._max_workers + 1):
                        self._acquire(self.shards)
                    for _ in range(self.writers._max_workers + 1):
                        self.shards.release()
                    batch.set()
                elif what == "drop" or work.name in self.failed:
                    self.open.pop(work.name, None)
                elif what == "end":
                    self._acquire(self.shards)
                    self.writers.submit(self._write, work, self.open.pop(work.name, []))
                else:
                    self._encode(work, batch)
        except _Stopped:
            pass
        except BaseException as error:
            self.fatal = error

    def _encode(self, work: Work, batch: Any) -> None:
        try:
            jobs = work.encode(batch)
        except Exception as error:
            self._fail(work, error)
            return
        for job in jobs:
            self._acquire(self.pictures)
            try:
                future = self.encoders.submit(job)
            except RuntimeError:  # shut down meanwhile
                raise _Stopped from None
            future.add_done_callback(lambda _: self.pictures.release())
            self.open.setdefault(work.name, []).append(future)

    def _acquire(self, semaphore: threading.BoundedSemaphore) -> None:
        while not semaphore.acquire(timeout=POLL):
            if self.stopped.is_set():
                raise _Stopped

    # ----------------------------------------------------------------------------------------------- writers' threads

    def _write(self, work: Work, futures: list[Future[Any]]) -> None:
        try:
            work.write([future.result() for future in futures])
            if self.progress is not None:  # or they would all stay
                self.written.put(work)
        except Exception as error:
            self._fail(work, error)
        finally:
            self.shards.release()

    def _fail(self, work: Work, error: Exception) -> None:
        if isinstance(error, PahiError):
            self.fatal = self.fatal or error
        else:
            self.failed[work.name] = f"{type(error).__name__}: {first_line(error)}"


class _Stopped(Exception):
    """The run ends before this could be done."""


class _Nothing:
    name = ""

    def batches(self) -> Iterator[Any]:
        return iter(())

    def encode(self, batch: Any) -> list[Callable[[], Any]]:
        return []

    def write(self, encoded: list[Any]) -> None: ...


_NOTHING = _Nothing()
