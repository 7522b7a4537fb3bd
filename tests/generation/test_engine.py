"""The bounded pipeline: nothing lost, nothing unbounded, and every error somewhere it is heard."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pahi.errors import PahiError, UserError
from pahi.generation import engine


class Numbers:
    """A shard of numbers, in batches; each is doubled by an encoder."""

    def __init__(self, name: str, batches: int = 3, size: int = 4) -> None:
        self.name, self.count, self.size = name, batches, size
        self.results: list[list[int]] = []
        self.begun = 0
        self.failures: dict[str, list[BaseException]] = {}
        self.pause = 0.0

    def _maybe(self, where: str) -> None:
        if self.failures.get(where):
            raise self.failures[where].pop()

    def batches(self) -> Iterator[list[int]]:
        for b in range(self.count):
            self._maybe("draw")
            self.begun += 1
            yield list(range(b * self.size, (b + 1) * self.size))

    def encode(self, batch: list[int]) -> list[Callable[[], int]]:
        self._maybe("collect")

        def job(x: int) -> int:
            self._maybe("encode")
            time.sleep(self.pause)
            return 2 * x

        return [lambda x=x: job(x) for x in batch]  # type: ignore[misc]

    def write(self, encoded: list[Any]) -> None:
        self._maybe("write")
        self.results.append(encoded)


def run(shards: list[Numbers], **options: Any) -> engine.Report:
    return engine.run(shards, encoders=options.pop("encoders", 3), **options)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    names = [t.name for t in threading.enumerate() if t.name.startswith(("encode", "write", "collect"))]
    assert names == []


def test_every_shard_whole_and_in_order() -> None:
    shards = [Numbers(f"s{i}", batches=i) for i in range(7)]
    told: list[str] = []
    report = run(shards, progress=lambda work: told.append((work.name, threading.current_thread().name)))
    assert report.failed == {}
    for i, shard in enumerate(shards):
        assert shard.results == [[2 * x for x in range(4 * i)]]
    assert sorted(name for name, _ in told) == [f"s{i}" for i in range(7)]
    assert {thread for _, thread in told} == {threading.current_thread().name}


@pytest.mark.parametrize("where", ["draw", "collect", "encode", "write"])
def test_a_shard_that_fails_once_is_tried_again(where: str) -> None:
    shards = [Numbers(f"s{i}") for i in range(4)]
    shards[1].failures[where] = [RuntimeError("once")]
    report = run(shards)
    assert report.failed == {}
    assert all(shard.results == [[2 * x for x in range(12)]] for shard in shards)


@pytest.mark.parametrize("where", ["draw", "collect", "encode", "write"])
def test_a_shard_that_fails_twice_is_reported_and_the_others_go_on(where: str) -> None:
    shards = [Numbers(f"s{i}") for i in range(4)]
    shards[2].failures[where] = [RuntimeError("again\nsecond line")] * 50
    report = run(shards)
    assert report.failed == {"s2": "RuntimeError: again"}
    assert [len(shard.results) for shard in shards] == [1, 1, 0, 1]


@pytest.mark.parametrize("where", ["draw", "collect", "encode", "write"])
def test_a_users_error_ends_the_run_at_once(where: str) -> None:
    shards = [Numbers(f"s{i}", batches=50) for i in range(20)]
    shards[1].failures[where] = [UserError("the disk is full; free some space")]
    with pytest.raises(UserError, match="the disk is full"):
        run(shards)
    assert shards[-1].results == [] and shards[-1].begun == 0


def test_an_interrupt_ends_every_thread() -> None:
    shards = [Numbers(f"s{i}") for i in range(4)]
    shards[2].failures["draw"] = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        run(shards)


def test_a_slow_encoder_slows_the_drawing_down() -> None:
    """Back-pressure: at no time are more pictures drawn and not encoded than the bounds allow."""
    shard, done, most = Numbers("s", batches=60, size=4), [0], [0]
    shard.pause = 0.002
    plain = shard.encode

    def counted(batch: list[int]) -> list[Callable[[], int]]:
        def job(one: Callable[[], int]) -> int:
            result = one()
            done[0] += 1
            return result

        most[0] = max(most[0], 4 * shard.begun - done[0])
        return [lambda one=one: job(one) for one in plain(batch)]  # type: ignore[misc]

    shard.encode = counted  # type: ignore[method-assign]
    report = run([shard], encoders=1)
    # Four pictures with the encoder, two batches in the queue, one on either side of it.
    assert most[0] <= 4 + 4 * 4 + 1
    assert report.waited > 0
    assert shard.results == [[2 * x for x in range(240)]]


def test_a_slow_store_slows_the_drawing_down() -> None:
    gate = threading.Event()
    shards = [Numbers(f"s{i}") for i in range(12)]
    for shard in shards:
        shard.write = lambda encoded: gate.wait(30)  # type: ignore[method-assign, assignment, misc]
    threading.Timer(1.0, gate.set).start()
    begun: list[int] = []
    threading.Timer(0.8, lambda: begun.append(sum(shard.begun > 0 for shard in shards))).start()
    run(shards, writers=2)
    assert begun[0] <= 6, "three shards wait to be written, one is collected, two batches are in the queue"


def test_progress_that_raises_is_heard() -> None:
    def progress(work: engine.Work) -> None:
        raise PahiError("nobody listens")

    with pytest.raises(PahiError, match="nobody listens"):
        run([Numbers("s")], progress=progress)
