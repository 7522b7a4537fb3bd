"""Reading what selects without what is selected, from any store."""

import os
import threading
from pathlib import Path

import made_up
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated_world import World
from hypothesis import given, settings
from hypothesis import strategies as st

from pahi.artifacts import Output, Store
from pahi.artifacts.output import parquet_bytes
from pahi.curation import reading
from pahi.curation.select import LIGHT
from pahi.errors import UserError
from pahi.stages import curate
from pahi.stages.common import Context
from pahi.stages.ingest import Chain


@settings(max_examples=40)
@given(st.data())
def test_rows_are_those_that_were_asked_for(world: World, data: st.DataObject) -> None:
    parts = reading.parts_of(world.drawn)
    part = data.draw(st.sampled_from(parts))
    whole = part[0].read_part("images", part[1])
    wanted = sorted(data.draw(st.sets(st.integers(0, len(whole) - 1), min_size=1)))
    got = reading.rows(part, "images", wanted, ["image_id", "image"])
    assert got.equals(whole.select(["image_id", "image"]).take(wanted))


def test_selection_reads_no_picture(world: World, tmp_path: Path) -> None:
    """Where every byte of the pictures is gone, their other columns are read as before."""
    output = Output(Store(str(tmp_path)), "made-up", "generate", "g" * 12)
    source = world.drawn[0]
    for key in source.store.list(source.prefix):
        output.store.create(key, source.store.read(key))
    path = Path(output.store.path(output.key("images/part-00000.parquet")))
    body, meta = bytearray(path.read_bytes()), pq.read_metadata(path)
    for g in range(meta.num_row_groups):
        for c in range(meta.num_columns):
            chunk = meta.row_group(g).column(c)
            if chunk.path_in_schema == "image.bytes":
                start = chunk.data_page_offset
                body[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(bytes(body))
    parts = reading.parts_of([output])
    light = pa.concat_tables(reading.columns(parts, "images", LIGHT))
    assert light.equals(world.drawn[0].read("images", LIGHT))
    with pytest.raises(UserError, match="pahi verify"):
        reading.rows(parts[0], "images", [0], ["image"])


def test_from_a_remote_store_no_picture_travels_either(open_store, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    output = Output(open_store("s3"), "made-up", "generate", "g" * 12)
    names = [f"{i:04d}" for i in range(40)]
    blobs = [os.urandom(100_000) for _ in names]
    table = pa.table({"image_id": names, "image": blobs, "status": ["ok"] * len(names)})
    parts = [(output, f"part-{i:05d}") for i in range(12)]
    for i, (_, shard) in enumerate(parts):
        size = 40 if i < 2 else 1  # two large objects, and ten that one request is enough for
        output.store.create(output.key(f"images/{shard}.parquet"), parquet_bytes(table.slice(i % 40, size), 10))
    fetched: list[int] = []
    fetch = s3fs.S3File._fetch_range

    def counted(self, start: int, end: int) -> bytes:
        data = fetch(self, start, end)
        fetched.append(len(data))
        return data

    monkeypatch.setattr(s3fs.S3File, "_fetch_range", counted)
    light = list(reading.columns(parts, "images", ["image_id", "status"]))
    assert [t["image_id"][0].as_py() for t in light] == names[:12], "in the order of the shards"
    assert sum(fetched) < 10 * 110_000 + 2 * 200_000, "less than a tenth of the two large ones"
    fetched.clear()
    assert reading.rows(parts[0], "images", [15], ["image"])["image"][0].as_py() == blobs[15]
    assert sum(fetched) < 1_200_000, "one row group of four"


def test_an_early_end_leaves_no_thread(world: World) -> None:
    before = threading.active_count()
    parts = reading.parts_of(world.drawn) * 20
    for _ in reading.columns(parts, "images", ["image_id"]):
        break
    assert threading.active_count() <= before  # those of earlier tests may end meanwhile


def test_a_missing_file_is_one_line(world: World, tmp_path: Path) -> None:
    part = (Output(Store(str(tmp_path)), "made-up", "generate", "g" * 12), "part-00000")
    with pytest.raises(UserError, match=r"cannot read .*part-00000.*pahi verify made-up") as error:
        reading.rows(part, "images", [0], ["image"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_another_store_gives_the_same_dataset(open_store, kind: str, world: World, curated: Output) -> None:
    store: Store = open_store(kind)
    for output in (*world.partitions.outputs, *world.drawn):
        for key in output.store.list(output.prefix):
            store.create(key, output.store.read(key))
    ctx = world.context("curate.keep_fraction=1")
    ctx = Context(ctx.settings.model_copy(update={"root": store.root}))
    moved = [Output(store, o.dataset, o.stage, o.fingerprint) for o in (*world.partitions.outputs, *world.drawn)]
    chain = Chain("chain", moved[:1], ["sources"])
    output, skipped = curate.build(ctx, moved[1:], chain, 0.0)
    assert not skipped and output.require().data == curated.require().data
    assert output.read("train").equals(curated.read("train"))


def test_a_picture_of_an_unknown_prompt_is_said(world: World) -> None:
    few = world.partitions.prompts(curate.PROMPT_COLUMNS).slice(1)

    class Fewer(Chain):
        def prompts(self, columns: list[str] | None = None) -> pa.Table:
            return few

    chain = Fewer(world.partitions.key, world.partitions.outputs, world.partitions.sources)
    with pytest.raises(UserError, match=f"{made_up.prompt_id(0)}.* never ingested"):
        curate.build(world.context("curate.title=other"), world.drawn, chain, 0.0)
