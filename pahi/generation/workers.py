"""Groups of shards on several processes of one machine, without a server.

Each worker has a pipe of its own and does one group at a time. A worker that dies gives its group to another; what it
had committed is found by its manifests. Nothing but names of shards goes through the pipes.
"""

import multiprocessing
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from pahi.errors import PahiError, UserError

ATTEMPTS = 3  # workers that may die of one group
Group = list[tuple[int, int]]  # partition and shard


def split(shards: Sequence[tuple[int, int]], workers: int, per_worker: int = 4) -> list[Group]:
    """Groups of neighbouring shards, several times more than workers, so that the slow and the dead hold up little."""
    count = min(len(shards), max(1, workers * per_worker))
    return [list(shards[i * len(shards) // count : (i + 1) * len(shards) // count]) for i in range(count)]


def run_groups(
    groups: Sequence[Group],
    workers: int,
    target: Callable[..., None],
    arguments: Callable[[int], tuple[Any, ...]],
    progress: Callable[[Any], None] = lambda answer: None,
) -> dict[str, str]:
    """Has every group done by `target(connection, *arguments(number))`; returns failures by what failed.

    A worker receives groups until it receives None, and answers each with ("done", failures), ("fatal", exit code and
    message of a PahiError, which ends the run), and ("step", what `progress` is told) for every shard on the way.
    """
    spawn = multiprocessing.get_context("spawn")
    waiting: deque[tuple[Group, int]] = deque((group, 0) for group in groups)
    running: dict[Connection, Any] = {}
    busy: dict[Connection, tuple[Group, int]] = {}
    failures: dict[str, str] = {}
    started = 0
    try:
        while waiting or busy:
            while waiting and len(running) < workers:
                ours, theirs = spawn.Pipe()
                process = spawn.Process(target=target, args=(theirs, *arguments(started)), daemon=True)
                process.start()
                theirs.close()
                running[ours] = process
                started += 1
            for connection in running:
                if waiting and connection not in busy:
                    busy[connection] = waiting.popleft()
                    connection.send(busy[connection][0])
            for ready in wait(list(running)):
                connection = cast(Connection, ready)
                try:
                    what, answer = connection.recv()
                except (EOFError, OSError):
                    running.pop(connection).join()
                    connection.close()
                    if connection in busy:
                        group, attempts = busy.pop(connection)
                        if attempts + 1 < ATTEMPTS:
                            waiting.append((group, attempts + 1))
                        else:
                            failures |= {f"partition {p}, shard {s}": "its workers died" for p, s in group}
                    continue
                if what == "step":
                    progress(answer)
                elif what == "fatal":
                    code, message = answer
                    raise (UserError if code == UserError.exit_code else PahiError)(message)
                else:
                    failures |= answer
                    busy.pop(connection)
    finally:
        for connection, process in running.items():
            if connection in busy:
                process.terminate()
            else:
                connection.send(None)
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
            connection.close()
    return failures
