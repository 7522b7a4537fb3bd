"""Columns and rows of a stage's tables, without the rest of their files: pictures are large, what selects is not."""

import io
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pahi.artifacts import Output
from pahi.errors import UserError, first_line

Part = tuple[Output, str]  # an output and one of its shards
AHEAD = 8  # shards fetched at once: a remote store takes far longer to answer than the answer takes to send
WHOLE = 2 << 20  # bytes of a remote object up to which one request for all of it is cheaper than one for each part


def parts_of(outputs: list[Output], table: str = "images") -> list[Part]:
    """Every shard of a table, in the order of outputs and manifests."""
    return [(o, s["name"]) for o in outputs for s in o.require().data["shards"] if table in s["tables"]]


def columns(parts: list[Part], table: str, names: list[str]) -> Iterator[pa.Table]:
    """Some columns of each shard in turn, while the next ones are on their way."""

    def one(part: Part) -> pa.Table:
        with _opened(part, table) as file:
            return file.read(columns=names, use_threads=False)

    pool = ThreadPoolExecutor(AHEAD, "columns")
    waiting: deque[Future[pa.Table]] = deque()
    try:
        for part in parts:
            waiting.append(pool.submit(one, part))
            if len(waiting) == AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def rows(part: Part, table: str, wanted: list[int], names: list[str]) -> pa.Table:
    """Some rows (ascending) of one shard: only the row groups that hold them are read."""
    with _opened(part, table) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        ends = np.cumsum(sizes)
        group_of = np.searchsorted(ends, wanted, side="right")
        groups = sorted(set(group_of.tolist()))
        # Where each wanted row lies once only those groups are read.
        offset = np.zeros(len(sizes), dtype=np.int64)
        offset[groups] = np.cumsum([0, *(sizes[g] for g in groups)])[:-1]
        starts = ends - sizes
        table_ = file.read_row_groups(groups, columns=names)
        return table_.take(pa.array(np.asarray(wanted) - starts[group_of] + offset[group_of]))


@contextmanager
def _opened(part: Part, table: str) -> Iterator[pq.ParquetFile]:
    output, shard = part
    key = output.key(f"{table}/{shard}.parquet")
    remote = not output.store.local
    try:
        with _raw(output, key) as raw, pq.ParquetFile(raw, pre_buffer=remote) as file:
            yield file
    except (FileNotFoundError, pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"cannot read {output.store.url(key)}: {first_line(error)}; run `pahi verify {output.dataset}`"
        ) from None


@contextmanager
def _raw(output: Output, key: str) -> Iterator[Any]:
    store = output.store
    if store.local:
        with store.fs.open(store.path(key), "rb") as raw:
            yield raw
        return
    # fsspec would read megabytes ahead of each column: all pictures, where only what is beside them is asked for.
    # Arrow itself knows the ranges that it wants.
    with store.fs.open(store.path(key), "rb", cache_type="none") as raw:
        yield io.BytesIO(raw.read()) if raw.size <= WHOLE else raw
