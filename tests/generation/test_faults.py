"""Faults that really happen. After each: every row there once, and the manifests of an undisturbed run."""

import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from small_world import manifests, world

from pahi.artifacts import Store
from pahi.artifacts.store import TEMPORARY
from pahi.errors import UserError
from pahi.generation import workers
from pahi.maintenance import leftovers, verify
from pahi.stages import generate, ingest
from pahi.stages.common import Context

Calm = tuple[Path, dict[str, bytes]]


def run(ctx: Context) -> None:
    generate.run(ctx, ingest.chain(ctx))


def fork(work: Callable[[], None]) -> int:
    """A process that does the work; its exit code is 0 when that ends well, 3 where a user's error ends it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except UserError as error:
        os.write(2, f"{error}\n".encode())
        code = 3
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def every_row_once(root: Path) -> None:
    ids = [
        i
        for part in root.glob("small/generate/*/images/*.parquet")
        for i in pq.read_table(part)["image_id"].to_pylist()
    ]
    assert ids and len(ids) == len(set(ids))


def test_killed_at_twenty_random_moments(calm: Calm, tmp_path: Path) -> None:
    folder, expected = calm
    rng, killed = random.Random(0), 0
    for i in range(20):
        root = tmp_path / str(i)
        ctx = world(root, folder)
        ctx.generator.pause = 0.005
        started = time.monotonic()
        pid = fork(lambda ctx=ctx: run(ctx))  # type: ignore[misc]
        # A moment counted in what is there, not in seconds, so that a slow machine is killed in the middle too.
        objects = rng.randrange(24)
        while time.monotonic() - started < 60 and len(list(root.glob("small/generate/*/*/*"))) < objects:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        killed += wait(pid) == -signal.SIGKILL
        if not (root / "small/generate").exists():
            assert objects == 0
        run(world(root, folder))
        assert manifests(ctx.store) == expected
        every_row_once(root)
        assert all(check["ok"] for check in verify(ctx.settings, rows=0))
    assert killed >= 15, "most kills have to come before the end to test anything"


def test_two_workers_given_the_same_shards_at_once(calm: Calm, tmp_path: Path) -> None:
    folder, expected = calm
    for i in range(3):
        root = tmp_path / str(i)
        ctx = world(root, folder)
        pids = [fork(lambda ctx=ctx: run(ctx)) for _ in range(3)]  # type: ignore[misc]
        assert [wait(pid) for pid in pids] == [0, 0, 0]
        assert manifests(ctx.store) == expected
        every_row_once(root)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone"])
def test_a_damaged_shard_is_found_and_a_rerun_repairs_exactly_it(calm: Calm, tmp_path: Path, damage: str) -> None:
    folder, expected = calm
    ctx = world(tmp_path, folder)
    run(ctx)
    victim = next(tmp_path.glob("small/generate/*/images/part-00003.parquet"))
    body = victim.read_bytes()
    if damage == "flipped":
        victim.write_bytes(body[:1000] + bytes([body[1000] ^ 16]) + body[1001:])
    elif damage == "truncated":
        victim.write_bytes(body[:-77])
    else:
        victim.unlink()
    others = {p: p.stat().st_mtime_ns for p in tmp_path.glob("small/generate/*/*/part-*") if "part-00003" not in p.name}
    (bad,) = [check for check in verify(ctx.settings, rows=0) if not check["ok"]]
    assert "images/part-00003.parquet" in bad["detail"] and "part-00002" not in bad["detail"]
    verify(ctx.settings, rows=0, repair=True)
    run(world(tmp_path, folder))
    assert victim.read_bytes() == body and manifests(ctx.store) == expected
    assert {p: p.stat().st_mtime_ns for p in others} == others
    assert all(check["ok"] for check in verify(ctx.settings, rows=0))


def test_a_full_disk_is_one_line_and_loses_nothing(calm: Calm, tmp_path: Path) -> None:
    """No file may grow beyond a size: for the writer, that is a disk that is full."""
    folder, expected = calm
    ctx = world(tmp_path, folder)

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        run(ctx)

    assert wait(fork(limited)) == 3, "a user's error, as one line"
    assert all(p.stat().st_size > 0 for p in tmp_path.glob("small/generate/*/*/part-*"))
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))
    run(world(tmp_path, folder))
    assert manifests(ctx.store) == expected


def test_leftovers_of_dead_runs_are_found_and_removed(calm: Calm, tmp_path: Path) -> None:
    folder, expected = calm
    ctx = world(tmp_path, folder)
    run(ctx)
    place = next(tmp_path.glob("small/generate/*"))
    old, fresh = place / "images" / f"{TEMPORARY}old", place / "images" / f"{TEMPORARY}fresh"
    stray = place / "images" / "part-00077.parquet"
    for path in (old, fresh, stray):
        path.write_bytes(b"torn")
    os.utime(old, (0, 0))
    told = leftovers(ctx.store)
    assert str(old) in told["detail"] and str(stray) in told["detail"] and "fresh" not in told["detail"]
    assert old.exists() and stray.exists(), "without --clean nothing is removed"
    leftovers(ctx.store, clean=True)
    assert fresh.exists() and not old.exists() and not stray.exists()
    assert manifests(ctx.store) == expected and all(check["ok"] for check in verify(ctx.settings, rows=0))
    assert leftovers(ctx.store)["detail"] == "none of dead runs"


# ---------------------------------------------------------------------------------------------- several processes


def small_worker(connection, root: str, folder: str, dies: bool, pause: float) -> None:
    """As generate's own worker, with the small world's models; one that dies does so in the middle of a shard."""
    ctx = world(Path(root), Path(folder))
    ctx.generator.pause = pause
    plan = generate.prepare(ctx, ingest.chain(ctx))

    def before(count: int) -> None:
        if dies and ctx.generator.drawn:
            (Path(root) / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    ctx.generator.before = before
    for group in iter(connection.recv, None):
        report = generate.draw(plan, group, lambda gained: connection.send(("step", gained)))
        connection.send(("done", report.failed))


def test_a_dead_workers_shards_are_done_by_the_two_that_go_on(calm: Calm, tmp_path: Path) -> None:
    folder, expected = calm
    ctx = world(tmp_path, folder)
    plan = generate.prepare(ctx, ingest.chain(ctx))
    groups = workers.split(plan.undone(), 3)
    steps: list[Any] = []
    failures = workers.run_groups(
        groups,
        3,
        small_worker,
        lambda number: (str(tmp_path), str(folder), number == 0, 0.02),
        steps.append,
    )
    assert failures == {} and len(steps) >= 5 and all(step.pairs for step in steps)
    assert (tmp_path / "died").exists()
    run(world(tmp_path, folder))
    assert manifests(ctx.store) == expected
    every_row_once(tmp_path)
    assert not [p for p in multiprocessing.active_children() if p.name.startswith("SpawnProcess")]


def hopeless(connection) -> None:
    connection.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def refusing(connection) -> None:
    connection.recv()
    connection.send(("fatal", (2, "the disk is full; free some space")))
    connection.recv()


def test_a_group_that_kills_its_workers_is_given_up_and_named() -> None:
    failures = workers.run_groups([[(0, 5), (0, 6)]], 1, hopeless, lambda number: ())
    assert failures == {"partition 0, shard 5": "its workers died", "partition 0, shard 6": "its workers died"}


def test_a_users_error_in_a_worker_ends_the_run() -> None:
    with pytest.raises(UserError, match="the disk is full"):
        workers.run_groups([[(0, 1)], [(0, 2)]], 1, refusing, lambda number: ())


@pytest.mark.parametrize(("shards", "count"), [(0, 2), (1, 4), (7, 2), (100, 3)])
def test_groups_hold_every_shard_once(shards: int, count: int) -> None:
    pairs = [(0, i) for i in range(shards)]
    groups = workers.split(pairs, count)
    assert [pair for group in groups for pair in group] == pairs
    assert len(groups) == min(shards, 4 * count) and all(groups)


def test_stores_agree(calm: Calm, store: Store) -> None:
    """The same bytes on a disk, in memory and on S3."""
    folder, expected = calm
    ctx = world(store.root, folder)
    run(ctx)
    assert manifests(ctx.store) == expected
