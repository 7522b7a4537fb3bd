"""Shards, manifests and fingerprints: killed anywhere, a rerun ends in the same dataset; other programs read it."""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from pahi.artifacts import Output, Store, content_hash, fingerprint, schemas
from pahi.artifacts.fingerprint import canonical_json
from pahi.artifacts.output import parquet_bytes, shard_name
from pahi.errors import PahiError, UserError

SHARDS = [shard_name(i) for i in range(3)]


def baseline(shard: str, rows: int = 20) -> pa.Table:
    """A table whose content is a function of the shard's name."""
    rng = np.random.default_rng(SHARDS.index(shard))
    columns = {
        "prompt_id": [f"{shard}-{i:03d}" for i in range(rows)],
        "seed": list(range(rows)),
        "reward": ["pick"] * rows,
        "score": rng.normal(size=rows).astype(np.float32),
    }
    return pa.table(columns, schema=schemas.BASELINE)


def embeds(shard: str, rows: int = 5) -> pa.Table:
    schema = schemas.embeds_schema({"pooled": (4,), "prompt_embeds": (3, 4)}, truncated=True)
    rng = np.random.default_rng(100 + SHARDS.index(shard))
    columns = [pa.array([f"{shard}-{i:03d}" for i in range(rows)]), pa.array([False] * rows)]
    columns += [
        schemas.tensor_column(rng.normal(size=(rows, *shape)).astype(np.float32), schema.field(name).type)
        for name, shape in (("pooled", (4,)), ("prompt_embeds", (3, 4)))
    ]
    return pa.table(columns, schema=schema)


def tables(shard: str) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    return {"baseline": baseline(shard), "conditioning": embeds(shard)}, {"prompts": 5}


def write(store: Store, order: list[str] | None = None) -> Output:
    """A whole stage."""
    output = Output(store, "demo", "cache", "0123456789ab")
    for shard in order or SHARDS:
        output.commit_shard(shard, lambda shard=shard: tables(shard))
    output.put_file("models.json", b"{}")
    output.finish(
        version=1,
        settings={"seeds": 4},
        inputs={"ingest": "ab"},
        shards=SHARDS,
        files=["models.json"],
        summary={"n": 1},
    )
    output.write_run({"host": "somewhere", "seconds": random.random()})
    return output


def objects(store: Store) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list("") if not key.endswith("/run.json")}


@pytest.fixture(scope="module")
def reference() -> dict[str, bytes]:
    store = Store("memory://pahi-test-reference")
    write(store)
    return objects(store)


# --------------------------------------------------------------------------------------------------- commit and rerun


def test_same_bytes_on_every_store_in_any_order(store: Store, reference: dict[str, bytes]) -> None:
    write(store, SHARDS[::-1])
    assert objects(store) == reference
    assert store.base.strip("/").encode() not in reference["demo/cache/0123456789ab/manifest.json"]


def test_a_rerun_builds_nothing(tmp_path: Path) -> None:
    output = write(Store(str(tmp_path)))
    before = objects(output.store)

    def never() -> Any:
        raise AssertionError("built again")

    for shard in SHARDS:
        output.commit_shard(shard, never)
    write(output.store)
    assert objects(output.store) == before


class Killed(BaseException):
    pass


class Dying(Store):
    """A store whose process dies at its nth write, before it or after it."""

    def __init__(self, root: str, at: int, after: bool) -> None:
        super().__init__(root)
        self.left, self.after = at, after

    def create(self, key: str, data: bytes) -> bool:
        if self.left == 0 and not self.after:
            raise Killed
        done = super().create(key, data)
        if self.left == 0:
            raise Killed
        self.left -= 1
        return done


@pytest.mark.parametrize("after", [False, True])
def test_killed_anywhere_a_rerun_ends_the_same(tmp_path: Path, reference: dict[str, bytes], after: bool) -> None:
    # Three shards of two tables and a manifest, a file, the stage's manifest.
    for at in range(3 * 3 + 2):
        root = str(tmp_path / str(at))
        with pytest.raises(Killed):
            write(Dying(root, at, after))
        output = Output(Store(root), "demo", "cache", "0123456789ab")
        finished = at == 10 and after
        assert (output.manifest() is not None) == finished, "only the last write makes the dataset exist"
        write(Store(root))
        assert objects(Store(root)) == reference


@pytest.mark.parametrize("what", ["whole", "torn", "empty", "foreign", "fewer rows", "other rows"])
def test_killed_between_table_and_manifest(store: Store, reference: dict[str, bytes], what: str) -> None:
    data = parquet_bytes(baseline(SHARDS[0]))
    left = {
        "whole": data,
        "torn": data[: len(data) // 2],
        "empty": b"",
        "foreign": b"<html>",
        "fewer rows": parquet_bytes(baseline(SHARDS[0], rows=19)),
        "other rows": parquet_bytes(baseline(SHARDS[1])),
    }[what]
    store.create(f"demo/cache/0123456789ab/baseline/{SHARDS[0]}.parquet", left)
    write(store)
    assert objects(store) == reference


def test_another_devices_shard_is_kept_and_described_as_stored(tmp_path: Path) -> None:
    """The same rows with other values in the last digits: the stored bytes stay, and the manifest is theirs."""
    store = Store(str(tmp_path))
    table = baseline(SHARDS[0])
    nudged = table.set_column(3, table.schema.field(3), pa.array(np.asarray(table["score"]) + np.float32(1e-6)))
    stored = parquet_bytes(nudged)
    assert stored != parquet_bytes(table)
    key = f"demo/cache/0123456789ab/baseline/{SHARDS[0]}.parquet"
    store.create(key, stored)
    output = write(store)
    assert store.read(key) == stored
    entry = output.require().data["shards"][0]["tables"]["baseline"]
    assert entry == {"rows": 20, "bytes": len(stored), "sha256": content_hash(stored)}


def test_the_manifest_is_true(store: Store) -> None:
    output = write(store)
    manifest = output.require()
    assert [shard["name"] for shard in manifest.data["shards"]] == SHARDS
    for shard in manifest.data["shards"]:
        for name, entry in shard["tables"].items():
            data = store.read(output.key(f"{name}/{shard['name']}.parquet"))
            assert entry["sha256"] == content_hash(data) and entry["bytes"] == len(data)
            assert entry["rows"] == pq.read_metadata(io.BytesIO(data)).num_rows
    assert manifest.rows("baseline") == output.read("baseline").num_rows == 60
    assert manifest.rows("nothing") == 0
    assert output.read("baseline")["prompt_id"].to_pylist() == [f"{s}-{i:03d}" for s in SHARDS for i in range(20)]
    assert output.read_file("models.json") == b"{}"
    assert output.read_run()["host"] == "somewhere"


def test_the_manifests_hash_hangs_on_every_byte(tmp_path: Path) -> None:
    base = write(Store(str(tmp_path / "a"))).require().hash
    assert write(Store(str(tmp_path / "b"))).require().hash == base
    output = Output(Store(str(tmp_path / "c")), "demo", "cache", "0123456789ab")
    for shard in SHARDS:
        output.commit_shard(shard, lambda shard=shard: tables(shard))
    output.put_file("models.json", b"{ }")
    other = output.finish(
        version=1,
        settings={"seeds": 4},
        inputs={"ingest": "ab"},
        shards=SHARDS,
        files=["models.json"],
        summary={"n": 1},
    )
    assert other.hash != base


def test_a_stage_is_not_finished_while_a_shard_is_missing(tmp_path: Path) -> None:
    output = Output(Store(str(tmp_path)), "demo", "cache", "0123456789ab")
    output.commit_shard(SHARDS[0], lambda: tables(SHARDS[0]))
    with pytest.raises(PahiError, match=SHARDS[1]):
        output.finish(version=1, settings={}, inputs={}, shards=SHARDS, summary={})
    assert output.manifest() is None
    with pytest.raises(UserError, match="run `pahi cache` first") as error:
        output.read("baseline")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_a_damaged_shard_is_one_line(tmp_path: Path, damage: str) -> None:
    output = write(Store(str(tmp_path)))
    key = output.key(f"baseline/{SHARDS[1]}.parquet")
    if damage == "torn":
        output.store.replace(key, output.store.read(key)[:-50])
    else:
        output.store.delete(key)
    with pytest.raises(UserError, match="pahi verify demo") as error:
        output.read("baseline")
    assert "\n" not in str(error.value) and output.store.url(key) in str(error.value)


# ------------------------------------------------------------------------------------------------ what others read


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.integers(0, 256, (12 + i, 16, 3), dtype=np.uint8) for i in range(count)]


def curated(count: int) -> pa.Table:
    schema = schemas.curated_schema(["pick_alpha", "pick_beta"])
    encoded = []
    for array in pictures(count):
        sink = io.BytesIO()
        Image.fromarray(array).save(sink, format="png")
        encoded.append({"bytes": sink.getvalue(), "path": None})
    columns: dict[str, Any] = {}
    for field in schema:
        if field.name == "image":
            columns["image"] = encoded
        elif pa.types.is_string(field.type):
            columns[field.name] = [f"{field.name} {i}" for i in range(count)]
        else:
            columns[field.name] = list(range(count))
    columns["kind"] = [None] * count
    return pa.table(columns, schema=schema)


def test_datasets_opens_the_published_pictures(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "train.parquet"
    path.write_bytes(parquet_bytes(curated(7), row_group_rows=3))
    data = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(data.features["image"], datasets.Image)
    assert data.column_names == schemas.curated_schema(["pick_alpha", "pick_beta"]).names
    assert len(data) == 7
    for row, expected in zip(data, pictures(7), strict=True):
        assert isinstance(row["image"], Image.Image)
        np.testing.assert_array_equal(np.asarray(row["image"]), expected)
    assert data[3]["score_pick_beta"] == 3.0 and data[3]["kind"] is None and data[3]["prompt"] == "prompt 3"


def test_duckdb_reads_every_table(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    output = write(Store(str(tmp_path / "store")))
    glob = output.store.path(output.key("baseline/*.parquet"))
    total, low, high = duckdb.sql(f"select count(*), min(score), max(score) from '{glob}'").fetchall()[0]
    scores = np.asarray(output.read("baseline")["score"])
    assert (total, low, high) == (60, scores.min(), scores.max())
    glob = output.store.path(output.key("conditioning/*.parquet"))
    rows = duckdb.sql(f"select prompt_id, prompt_embeds from '{glob}' order by prompt_id").fetchall()
    expected = schemas.read_tensor(output.read("conditioning"), "prompt_embeds").reshape(15, -1)
    np.testing.assert_array_equal(np.array([row[1] for row in rows], dtype=np.float32), expected)
    path = tmp_path / "curated.parquet"
    path.write_bytes(parquet_bytes(curated(4), row_group_rows=2))
    rows = duckdb.sql(f"select image.bytes, score_pick_alpha from '{path}' order by seed").fetchall()
    assert [row[0] for row in rows] == [cell["bytes"] for cell in curated(4)["image"].to_pylist()]
    flags = pa.table({n: [] for n in schemas.PROMPTS.names}, schema=schemas.PROMPTS)
    path.write_bytes(parquet_bytes(flags))
    assert duckdb.sql(f"select flags from '{path}'").fetchall() == []


def test_the_parquet_layout() -> None:
    data = parquet_bytes(curated(7), row_group_rows=3)
    meta = pq.read_metadata(io.BytesIO(data))
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [3, 3, 1]
    schema = pq.read_schema(io.BytesIO(data))
    assert schema.metadata[schemas.VERSION_KEY] == str(schemas.SCHEMA_VERSION).encode()
    assert b"huggingface" in schema.metadata and schema.field("image").metadata
    columns = {meta.row_group(0).column(i).path_in_schema: meta.row_group(0).column(i) for i in range(meta.num_columns)}
    blob, seed = columns["image.bytes"], columns["seed"]
    assert not blob.is_stats_set and not blob.has_dictionary_page
    # What is compressed already is not compressed again; everything else is.
    assert {c.compression for path, c in columns.items() if path != "image.bytes"} == {"ZSTD"}
    assert blob.compression == "UNCOMPRESSED"
    assert seed.is_stats_set and seed.has_offset_index and seed.has_column_index


def test_no_row_is_no_problem() -> None:
    for schema in (schemas.PROMPTS, schemas.IMAGES, schemas.noise_schema((4, 2, 2)), schemas.curated_schema(["a"])):
        back = pq.read_table(io.BytesIO(parquet_bytes(schema.empty_table())))
        assert back.schema.equals(schema) and len(back) == 0
    empty = schemas.noise_schema((4, 2, 2)).empty_table()
    assert schemas.read_tensor(empty, "mu").shape == (0, 4, 2, 2)


# ------------------------------------------------------------------------------------------------------- tensors

DTYPES = {"float32": pa.float32(), "float16": pa.float16()}


@hypothesis_settings(max_examples=60)
@given(
    rows=st.integers(1, 7),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    dtype=st.sampled_from(sorted(DTYPES)),
    cut=st.integers(0, 6),
    seed=st.integers(0, 1000),
)
def test_tensors_come_back_bit_by_bit(rows: int, shape: tuple[int, ...], dtype: str, cut: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(rows, *shape)).astype(dtype)
    values.reshape(-1)[0] = np.inf
    schema = pa.schema([schemas.tensor_field("x", shape, "anything", DTYPES[dtype])])
    table = pa.table([schemas.tensor_column(values, schema.field("x").type)], schema=schema)
    back = pq.read_table(io.BytesIO(parquet_bytes(table, row_group_rows=2)))
    got = schemas.read_tensor(back, "x")
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got.view(np.uint8), values.view(np.uint8))
    cut = min(cut, rows - 1)
    np.testing.assert_array_equal(schemas.read_tensor(back.slice(cut), "x"), values[cut:])
    np.testing.assert_array_equal(
        schemas.read_tensor(pa.concat_tables([back, back]), "x"), np.concatenate([values] * 2)
    )


def test_non_contiguous_tensors() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(0, 2, 1)
    field = schemas.tensor_field("x", (4, 3), "anything")
    table = pa.table([schemas.tensor_column(values, field.type)], schema=pa.schema([field]))
    np.testing.assert_array_equal(schemas.read_tensor(table, "x"), values)


def test_datasets_reads_tensor_columns(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    shape = (4, 2, 3)
    values = np.random.default_rng(0).normal(size=(5, *shape)).astype(np.float16)
    schema = schemas.noise_schema(shape)
    columns = [pa.array([f"p{i}" for i in range(5)])]
    columns += [schemas.tensor_column(values, schema.field(name).type) for name in ("mu", "sigma")]
    path = tmp_path / "noise.parquet"
    path.write_bytes(parquet_bytes(pa.table(columns, schema=schema)))
    data = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    got = np.array(data.with_format("numpy")["mu"][:])
    np.testing.assert_array_equal(got.reshape(values.shape).astype(np.float16), values)


# --------------------------------------------------------------------------------------------------- fingerprints

LEAF = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
VALUES = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def typed(value: Any) -> str:
    """A value's identity as JSON sees it: True is not 1, 1 is not 1.0, a mapping has no order."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{typed(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(typed, value)) + "]"
    return f"{type(value).__name__} {value!r}"


def reordered(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(key, reordered(inner, rng)) for key, inner in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [reordered(inner, rng) for inner in value] if isinstance(value, list) else value


@given(VALUES, st.randoms(use_true_random=False))
def test_canonical_json_is_json_and_has_no_order(value: Any, rng: random.Random) -> None:
    data = canonical_json(value)
    assert typed(json.loads(data)) == typed(value)
    assert canonical_json(json.loads(data)) == data
    assert canonical_json(reordered(value, rng)) == data


@given(VALUES, VALUES)
def test_equal_hashes_mean_equal_values(one: Any, other: Any) -> None:
    assert (content_hash(one) == content_hash(other)) == (typed(one) == typed(other))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_what_json_cannot_say_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        canonical_json(value)


def test_a_fingerprint_hangs_on_each_of_its_parts() -> None:
    base: dict[str, Any] = {"stage": "train", "version": 1, "settings": {"lr": 0.1}, "inputs": {"cache": "ab"}}
    other: dict[str, Any] = {"stage": "cache", "version": 2, "settings": {"lr": 0.2}, "inputs": {"cache": "ac"}}
    made = {fingerprint(**base)} | {fingerprint(**{**base, key: other[key]}) for key in base}
    assert len(made) == 5
    assert all(len(f) == 12 and set(f) <= set("0123456789abcdef") for f in made)
    assert fingerprint(**base) == fingerprint(**base)


def test_output_places(open_store: Callable[[str], Store]) -> None:
    output = Output(open_store("local"), "demo", "cache", "0123456789ab")
    output.commit_shard(SHARDS[2], lambda: tables(SHARDS[2]))
    assert output.store.list("") == [
        "demo/cache/0123456789ab/_manifest/part-00002.json",
        "demo/cache/0123456789ab/baseline/part-00002.parquet",
        "demo/cache/0123456789ab/conditioning/part-00002.parquet",
    ]
