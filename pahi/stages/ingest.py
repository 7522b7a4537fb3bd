"""Prompts in: every run adds what is new as a partition; what is there is never rewritten.

The partitions of one dataset and one way of cleaning form a chain, kept as create-only entries

    <dataset>/ingest/_chain/<chain key>/00003.json   {"fingerprint": ..., "sources": ...}

so that two ingestions at once get one place each, and the second sees the first's prompts as known.
"""

import json
import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pahi.artifacts import Output, content_hash
from pahi.artifacts.fingerprint import canonical_json
from pahi.artifacts.output import shard_name
from pahi.artifacts.schemas import PROMPTS, REJECTS
from pahi.errors import PahiError, UserError
from pahi.prompts import ingest_rows, read_source, source_hash, source_name
from pahi.stages.common import Context, environment

STAGE, VERSION = "ingest", 1


@dataclass(frozen=True)
class Chain:
    """The finished partitions of a dataset, oldest first."""

    key: str
    outputs: list[Output]
    sources: list[str]  # what each was made from

    def prompts(self, columns: list[str] | None = None) -> pa.Table:
        return pa.concat_tables([output.read("prompts", columns) for output in self.outputs])

    @property
    def hashes(self) -> list[str]:
        return [output.require().hash for output in self.outputs]


def _settings(ctx: Context) -> dict[str, Any]:
    data = ctx.settings.ingest.fingerprinted()
    data.pop("sources")
    return data


def chain(ctx: Context) -> Chain:
    """What has been ingested so far; empty where nothing has."""
    key = content_hash({"version": VERSION, "settings": _settings(ctx)})[:12]
    prefix = f"{ctx.settings.name}/{STAGE}/_chain/{key}"
    outputs, sources = [], []
    for index in range(1_000_000):
        data = ctx.store.read_or_none(f"{prefix}/{index:05d}.json")
        if data is None:
            break
        entry = json.loads(data)
        outputs.append(Output(ctx.store, ctx.settings.name, STAGE, entry["fingerprint"]))
        sources.append(entry["sources"])
    return Chain(key, outputs, sources)


def run(ctx: Context) -> tuple[Output, bool]:
    """Reads the sources; returns the partition that holds them, and whether it was there already."""
    started = time.time()
    sources = ctx.settings.ingest.sources
    hashes = content_hash([[source_name(source), source_hash(source)] for source in sources])
    while True:
        before = chain(ctx)
        if hashes in before.sources:
            return before.outputs[before.sources.index(hashes)], True
        inputs = {"sources": hashes, "parent": before.outputs[-1].fingerprint if before.outputs else ""}
        output = ctx.output(STAGE, VERSION, _settings(ctx), inputs)
        if output.manifest() is None:
            _write(ctx, output, before, inputs)
            output.write_run(environment(started, sources=[source.path for source in sources]))
        entry = canonical_json({"fingerprint": output.fingerprint, "sources": hashes})
        if ctx.store.create(f"{ctx.settings.name}/{STAGE}/_chain/{before.key}/{len(before.outputs):05d}.json", entry):
            return output, False
        # Another ingestion took this place while ours was at work: what it added is known now, so begin again.


def _write(ctx: Context, output: Output, before: Chain, inputs: dict[str, str]) -> None:
    known: dict[str, str] = {}
    if before.outputs:
        table = before.prompts(["prompt_id", "split"])
        known = dict(zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True))
    read = 0

    def rows():
        nonlocal read
        for source in ctx.settings.ingest.sources:
            for row in read_source(source):
                read += 1
                if read % 5000 == 0:
                    ctx.progress(STAGE, read, 0, "prompts read")
                yield source_name(source), row

    prompts, rejects = ingest_rows(rows(), ctx.settings.ingest, known)
    if len(prompts) + len(rejects) != read:
        raise PahiError(f"ingest: {read} rows in, {len(prompts)} out and {len(rejects)} rejected do not add up")
    if not prompts and not before.outputs:
        reasons = sorted({r["reason"] for r in rejects})
        raise UserError(f"none of the {read} rows is a usable prompt ({', '.join(reasons) or 'the sources are empty'})")
    # A partition's rows are held whole while near-equal ones are compared; what is written is bounded by the shard.
    size = ctx.settings.ingest.shard_rows
    count = max(1, -(-max(len(prompts), len(rejects)) // size))
    shards = [shard_name(i) for i in range(count)]
    for i, shard in enumerate(shards):
        part = slice(i * size, (i + 1) * size)
        tables = {
            "prompts": pa.Table.from_pylist(prompts[part], schema=PROMPTS),
            "rejects": pa.Table.from_pylist(rejects[part], schema=REJECTS),
        }
        output.commit_shard(shard, lambda t=tables: (t, {}))  # type: ignore[misc]
        ctx.progress(STAGE, i + 1, count, "shards written")
    summary = {
        "rows_in": read,
        "prompts": len(prompts),
        "rejected": {k: sum(r["reason"] == k for r in rejects) for k in sorted({r["reason"] for r in rejects})},
        "splits": {k: sum(p["split"] == k for p in prompts) for k in ("train", "validation", "test")},
        "partition": len(before.outputs),
    }
    output.finish(version=VERSION, settings=_settings(ctx), inputs=inputs, shards=shards, summary=summary)
