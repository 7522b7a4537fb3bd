"""Columns and rows of a stage's tables, without the rest of their files: pictures are large, what selects is not."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pahi.artifacts import Output
from pahi.errors import UserError, first_line

Part = tuple[Output, str]  # an output and one of its shards


def parts_of(outputs: list[Output], table: str = "images") -> list[Part]:
    """Every shard of a table, in the order of outputs and manifests."""
    return [(o, s["name"]) for o in outputs for s in o.require().data["shards"] if table in s["tables"]]


def columns(parts: list[Part], table: str, names: list[str]) -> Iterator[pa.Table]:
    """Some columns of each shard in turn."""
    for part in parts:
        with _opened(part, table) as file:
            yield file.read(columns=names)


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
    try:
        with output.store.fs.open(output.store.path(key), "rb") as raw, pq.ParquetFile(raw) as file:
            yield file
    except (FileNotFoundError, pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"cannot read {output.store.url(key)}: {first_line(error)}; run `pahi verify {output.dataset}`"
        ) from None
