"""Prompts in: every run adds what is new as a partition; what is there is never rewritten.

The partitions of one dataset and one way of cleaning form a chain, kept as create-only entries

    <dataset>/ingest/_chain/<chain key>/00003.json   {"fingerprint": ..., "sources": ...}

so that two ingestions at once get one place each, and the second sees the first's prompts as known.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import yaml

from pahi.artifacts import Output, content_hash
from pahi.artifacts.fingerprint import canonical_json
from pahi.artifacts.output import shard_name
from pahi.errors import PahiError, UserError
from pahi.functions import find_function, function_hash
from pahi.prompts import Row, expand, ingest_rows, read_source, source_hash, source_name, source_statistics
from pahi.prompts.filters import is_function, word_list
from pahi.prompts.location import shown
from pahi.settings import Source
from pahi.stages.common import Context, environment

STAGE, VERSION = "ingest", 3
KNOWN = ["prompt_id", "text", "group", "split", "cluster"]


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
    """What decides how rows become prompts; files by their content."""
    ingest = ctx.settings.ingest
    data = ingest.fingerprinted()
    data.pop("sources")
    data["evaluation"] = [source_hash(source) for given in ingest.evaluation for source in expand(given)]
    data["filters"]["word_lists"] = [source_hash(word_list(path)) for path in ingest.filters.word_lists]
    for given, classifier in zip(ingest.filters.classifiers, data["filters"]["classifiers"], strict=True):
        if is_function(given):
            find_function(given.id, f"classifier {given.name!r}")
            classifier["source"] = function_hash(given.id)
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
    sources = _sources(ctx)
    hashes = content_hash([[source_name(source), source_hash(source)] for source in sources])
    while True:
        before = chain(ctx)
        if hashes in before.sources:
            return before.outputs[before.sources.index(hashes)], True
        inputs = {"sources": hashes, "parent": before.outputs[-1].fingerprint if before.outputs else ""}
        output = ctx.output(STAGE, VERSION, _settings(ctx), inputs)
        if output.manifest() is None:
            _write(ctx, output, before, inputs, sources)
            output.write_run(environment(started, sources=[source.path for source in sources]))
            ctx.store.replace(output.key("recipe.yaml"), recipe(ctx, sources))
        entry = canonical_json({"fingerprint": output.fingerprint, "sources": hashes})
        if ctx.store.create(f"{ctx.settings.name}/{STAGE}/_chain/{before.key}/{len(before.outputs):05d}.json", entry):
            return output, False
        # Another ingestion took this place while ours was at work: what it added is known now, so begin again.


def _sources(ctx: Context) -> list[Source]:
    """The settings' sources, a file each. Raises UserError where two have one name but not one weight."""
    sources = [one for source in ctx.settings.ingest.sources for one in expand(source)]
    weights: dict[str, float] = {}
    for source in sources:
        if weights.setdefault(source_name(source), source.weight) != source.weight:
            raise UserError(f"two sources are called {source_name(source)!r} and have different weights; name them")
    return sources


def recipe(ctx: Context, sources: list[Source]) -> bytes:
    """Settings that make this partition again (`pahi ingest --config recipe.yaml`), and what its sources were."""
    ingest = ctx.settings.ingest
    files = [*sources, *(one for source in ingest.evaluation for one in expand(source))]
    files += [word_list(path) for path in ingest.filters.word_lists]
    lines = [f"# Ingest, version {VERSION}. What was read, and its hashes:"]
    lines += [f"#   {shown(source.path)} {source_hash(source)}" for source in files]
    data = ingest.model_dump(mode="json", exclude_defaults=True)
    for source in [*data["sources"], *data.get("evaluation", [])]:
        source["path"] = shown(source["path"])  # never a URL's credentials
    body = yaml.safe_dump({"name": ctx.settings.name, "ingest": data}, sort_keys=False, allow_unicode=True)
    return ("\n".join(lines) + "\n" + body).encode()


def _write(ctx: Context, output: Output, before: Chain, inputs: dict[str, str], sources: list[Source]) -> None:
    ingest = ctx.settings.ingest
    read = 0

    def rows() -> Iterator[tuple[str, Row]]:
        nonlocal read
        for source in sources:
            name = source_name(source)
            for row in read_source(source, ingest.max_expansion):
                read += 1
                if read % 5000 == 0:
                    ctx.progress(STAGE, read, 0, "prompts read")
                yield name, row

    def guarded() -> Iterator[tuple[str, Row]]:
        for source in (one for given in ingest.evaluation for one in expand(given)):
            for row in read_source(source, ingest.max_expansion):
                yield source_name(source), row

    weights = {source_name(source): source.weight for source in sources}
    found = ingest_rows(rows(), ingest, before.prompts(KNOWN) if before.outputs else None, guarded(), weights)
    prompts, rejects = found.prompts, found.rejects
    if len(prompts) + len(rejects) != read:
        raise PahiError(f"ingest: {read} rows in, {len(prompts)} out and {len(rejects)} rejected do not add up")
    # Its hash names the place of what was read: a file that someone writes to meanwhile must not get that name.
    if inputs["sources"] != content_hash([[source_name(source), source_hash(source)] for source in sources]):
        raise UserError("a source changed while it was read; run again when nothing writes to it any more")
    reasons = _counts(rejects, "reason")
    if not prompts and not before.outputs:
        raise UserError(f"none of the {read} rows is a usable prompt ({', '.join(reasons) or 'the sources are empty'})")
    size = ctx.settings.ingest.shard_rows
    count = max(1, -(-max(len(prompts), len(rejects)) // size))
    shards = [shard_name(i) for i in range(count)]
    for i, shard in enumerate(shards):
        tables = {
            name: table.slice(i * size, size).combine_chunks()
            for name, table in (("prompts", prompts), ("rejects", rejects))
        }
        output.commit_shard(shard, lambda t=tables: (t, {}))  # type: ignore[misc]
        ctx.progress(STAGE, i + 1, count, f"shards written, {len(prompts):,} of {read:,} rows kept")
    summary = {
        "rows_in": read,
        "prompts": len(prompts),
        "rejected": reasons,
        "splits": {"train": 0, "validation": 0, "test": 0} | _counts(prompts, "split"),
        "sources": source_statistics(found),
        "partition": len(before.outputs),
    }
    output.finish(version=VERSION, settings=_settings(ctx), inputs=inputs, shards=shards, summary=summary)


def _counts(table: pa.Table, column: str) -> dict[str, int]:
    counted = table.group_by(column).aggregate([(column, "count")]).to_pylist()
    return {row[column]: row[f"{column}_count"] for row in sorted(counted, key=lambda row: row[column])}
