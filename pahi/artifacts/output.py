"""A stage's output: shards that are committed one by one, and the manifest that makes them a dataset.

    <dataset>/<stage>/<fingerprint>/<table>/part-00042.parquet     the data
                                   /_manifest/part-00042.json      one for all tables of the shard
                                   /<file>                         a predictor, a card, a page
                                   /manifest.json                  comes last; without it nothing is there
                                   /run.json                       host, timings: differs from run to run

Readers believe manifests only. Every object is create-only and every key deterministic, so a stage that was killed
anywhere continues by writing what is missing, and two writers of one shard leave one shard.
"""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pahi.artifacts.fingerprint import canonical_json, content_hash
from pahi.artifacts.schemas import IMAGE, SCHEMA_VERSION, VERSION_KEY
from pahi.artifacts.store import Store
from pahi.errors import PahiError, UserError

Tables = dict[str, pa.Table]


@dataclass(frozen=True)
class Manifest:
    """A finished stage: what it was made from, what it holds."""

    data: dict[str, Any]

    @property
    def stage(self) -> str:
        return self.data["stage"]

    @property
    def fingerprint(self) -> str:
        return self.data["fingerprint"]

    @property
    def summary(self) -> dict[str, Any]:
        """What the stage says of itself: counts and figures, small."""
        return self.data["summary"]

    @property
    def inputs(self) -> dict[str, str]:
        return self.data["inputs"]

    @property
    def hash(self) -> str:
        """What a stage downstream names as its input."""
        return content_hash(self.data)

    def rows(self, table: str) -> int:
        return sum(shard["tables"][table]["rows"] for shard in self.data["shards"] if table in shard["tables"])


class Output:
    """The place of one stage's output, for writing and for reading."""

    def __init__(self, store: Store, dataset: str, stage: str, fingerprint: str) -> None:
        self.store, self.dataset, self.stage, self.fingerprint = store, dataset, stage, fingerprint
        self.prefix = f"{dataset}/{stage}/{fingerprint}"

    def key(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    @property
    def url(self) -> str:
        return self.store.url(self.prefix)

    # ------------------------------------------------------------------------------------------------------- reading

    def manifest(self) -> Manifest | None:
        """The manifest, or None while the stage is not finished."""
        data = self.store.read_or_none(self.key("manifest.json"))
        return None if data is None else Manifest(json.loads(data))

    def require(self) -> Manifest:
        """The manifest of a stage that must be there."""
        manifest = self.manifest()
        if manifest is None:
            raise UserError(f"{self.url} is not finished; run `pahi {self.stage}` first")
        return manifest

    def read(self, table: str, columns: list[str] | None = None) -> pa.Table:
        """A whole table, in shard order."""
        return pa.concat_tables(self.read_shards(table, columns))

    def read_shards(self, table: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """A table, shard by shard, as the manifest lists them."""
        for shard in self.require().data["shards"]:
            if table in shard["tables"]:
                yield self.read_part(table, shard["name"], columns)

    def read_part(self, table: str, shard: str, columns: list[str] | None = None) -> pa.Table:
        """One shard of a table. Raises UserError when it is damaged or gone."""
        key = self.key(f"{table}/{shard}.parquet")
        try:
            return pq.read_table(io.BytesIO(self.store.read(key)), columns=columns)
        except (FileNotFoundError, pa.ArrowInvalid, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"cannot read {self.store.url(key)}: {reason}; run `pahi verify {self.dataset}`") from None

    def read_file(self, name: str) -> bytes:
        return self.store.read(self.key(name))

    # ------------------------------------------------------------------------------------------------------- writing

    def shard_manifest(self, shard: str) -> dict[str, Any] | None:
        """The manifest of one committed shard, or None."""
        data = self.store.read_or_none(self.key(f"_manifest/{shard}.json"))
        return None if data is None else json.loads(data)

    def committed(self) -> set[str]:
        """The names of the shards that have a manifest, from one listing."""
        keys = self.store.list(f"{self.prefix}/_manifest")
        return {key.rsplit("/", 1)[-1].removesuffix(".json") for key in keys}

    def shard_manifests(self, shards: list[str]) -> list[dict[str, Any] | None]:
        """As `shard_manifest` of each, with as many requests at once as the store takes."""
        found = self.store.read_many([self.key(f"_manifest/{shard}.json") for shard in shards])
        return [None if data is None else json.loads(data) for data in found]

    def commit_shard(
        self, shard: str, build: Callable[[], tuple[Tables, dict[str, Any]]], row_group_rows: int | None = None
    ) -> dict[str, Any]:
        """Writes a shard's tables, then its manifest; does nothing when that is there.

        `build`, called only if needed, returns the tables by name and the shard's own small statistics.
        """
        done = self.shard_manifest(shard)
        if done is not None:
            return done
        tables, statistics = build()
        entry: dict[str, Any] = {"name": shard, "statistics": statistics, "tables": {}}
        for name, table in tables.items():
            entry["tables"][name] = self._put_table(name, shard, table, row_group_rows)
        self.store.create(self.key(f"_manifest/{shard}.json"), canonical_json(entry))
        done = self.shard_manifest(shard)
        assert done is not None
        return done

    def _put_table(self, name: str, shard: str, table: pa.Table, row_group_rows: int | None) -> dict[str, Any]:
        key = self.key(f"{name}/{shard}.parquet")
        data: bytes | memoryview = _parquet(table, row_group_rows)
        if not self.store.create(key, data):
            stored = self.store.read(key)
            if stored != data:
                # Another writer's shard is as good as ours when it is whole: the same rows, drawn on another device.
                # A torn or foreign one is replaced, as no manifest refers to it yet.
                if _whole(stored, table):
                    data = stored
                else:
                    self.store.replace(key, data)
        return {"rows": table.num_rows, "bytes": len(data), "sha256": content_hash(data)}

    def put_file(self, name: str, data: bytes) -> None:
        """A file of the output that is no table; the same bytes again are no change."""
        if not self.store.create(self.key(name), data) and self.store.read(self.key(name)) != data:
            self.store.replace(self.key(name), data)

    def finish(
        self,
        *,
        version: int,
        settings: Any,
        inputs: dict[str, str],
        shards: list[str],
        files: list[str] | None = None,
        summary: dict[str, Any],
    ) -> Manifest:
        """Writes manifest.json from what was committed. It holds nothing that differs from run to run."""
        entries = self.shard_manifests(shards)
        for shard, entry in zip(shards, entries, strict=True):
            if entry is None:
                raise PahiError(f"{self.url}: shard {shard} is missing, so the stage is not finished; run it again")
        data = {
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            "version": version,
            "schema_version": SCHEMA_VERSION,
            "settings": settings,
            "inputs": inputs,
            "shards": entries,
            "files": {
                name: {"bytes": len(body), "sha256": content_hash(body)}
                for name in sorted(files or [])
                for body in [self.read_file(name)]
            },
            "summary": summary,
        }
        self.store.create(self.key("manifest.json"), canonical_json(data))
        manifest = self.manifest()
        assert manifest is not None
        return manifest

    def write_run(self, record: dict[str, Any]) -> None:
        """What differs from run to run; nothing compares it."""
        self.store.replace(self.key("run.json"), json.dumps(record, indent=1, sort_keys=True, default=str).encode())

    def read_run(self) -> dict[str, Any]:
        data = self.store.read_or_none(self.key("run.json"))
        return {} if data is None else json.loads(data)


def shard_name(index: int) -> str:
    return f"part-{index:05d}"


def parquet_bytes(table: pa.Table, row_group_rows: int | None = None) -> bytes:
    """As `_parquet`, copied."""
    return bytes(_parquet(table, row_group_rows))


def _parquet(table: pa.Table, row_group_rows: int | None) -> memoryview:
    """A Parquet file in memory: zstd, page index, no dictionary or statistics on blobs and vectors.

    Pictures are compressed already: zstd would only cost time, in writing and in reading.
    """
    metadata = {**(table.schema.metadata or {}), VERSION_KEY: str(SCHEMA_VERSION).encode()}
    plain = [
        field.name
        for field in table.schema
        if not (
            pa.types.is_binary(field.type) or pa.types.is_struct(field.type) or pa.types.is_fixed_size_list(field.type)
        )
    ]
    sink = pa.BufferOutputStream()  # Python's own BytesIO copies several times more
    table = table.replace_schema_metadata(metadata)
    pq.write_table(
        table,
        sink,
        compression=_compression(table.schema),
        use_dictionary=plain,
        write_statistics=plain,
        write_page_index=True,
        row_group_size=row_group_rows,
    )
    return memoryview(sink.getvalue()).cast("B")


def _compression(schema: pa.Schema) -> str | dict[str, str]:
    pictures = {f"{field.name}.bytes" for field in schema if field.type == IMAGE}
    if not pictures:
        return "zstd"
    leaves = pq.ParquetFile(io.BytesIO(_empty(schema))).schema
    paths = [leaves.column(i).path for i in range(len(leaves))]
    return {path: "none" if path in pictures else "zstd" for path in paths}


def _empty(schema: pa.Schema) -> bytes:
    sink = io.BytesIO()
    pq.write_table(schema.empty_table(), sink)
    return sink.getvalue()


def _whole(data: bytes, expected: pa.Table) -> bool:
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowInvalid, OSError):
        return False
    keys = [name for name in ("prompt_id", "image_id", "seed", "arm") if name in expected.column_names]
    return table.schema.equals(expected.schema) and table.num_rows == expected.num_rows and (
        table.select(keys).equals(expected.select(keys))
    )  # fmt: skip
