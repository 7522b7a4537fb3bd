"""Rows to prompts: cleaned, filtered, unique, split. Every row comes out once, as a prompt or with its reason."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pahi.artifacts.schemas import PROMPTS, REJECTS
from pahi.errors import UserError
from pahi.prompts.cleaning import Cleaned, clean_fully, prompt_id
from pahi.prompts.filters import judge, make_filters
from pahi.prompts.near import Signatures
from pahi.prompts.rows import EMPTY, NO_TEXT, Row
from pahi.prompts.splits import SPLITS, Placed, Reject, drop_near, place, split_of
from pahi.settings import Ingest

REJECTED_CHARACTERS = 2000  # kept of a rejected row's text
RAW_FACTOR = 10  # raw text may be this much longer than cleaned, by entities and white space
BATCH = 10_000  # rows that filters see at once
_DECIDED = ("group", "split", "cluster")  # once all rows are known
_NONE: list[Any] = []  # one for all: a million lists of nothing are work for the garbage collector

SourceRow = tuple[str, Row]
Verdict = tuple[str, str | None]  # reason, detail


@dataclass(frozen=True)
class Ingested:
    """What became of the rows: tables of `schemas.PROMPTS` and `schemas.REJECTS`, as many rows in all as came in."""

    prompts: pa.Table
    rejects: pa.Table


def ingest_rows(
    source_rows: Iterable[SourceRow],
    settings: Ingest,
    known: pa.Table | None = None,
    evaluation: Iterable[SourceRow] = (),
    weights: dict[str, float] | None = None,
) -> Ingested:
    """(source name, row) pairs -> prompts and rejects.

    known: what earlier partitions hold (prompt_id, text, group, split, cluster). evaluation: rows of the evaluation
    sets. weights: the share of each source that is kept. The first of equal prompts is kept, so sources come in order
    of precedence. `reasons.REASONS` lists the reasons. Raises UserError where the fractions leave nothing to train on.
    """
    if settings.validation_fraction + settings.test_fraction >= 1:
        raise UserError("ingest.validation_fraction and ingest.test_fraction leave no prompt to train on")
    if known is None:
        known = PROMPTS.empty_table()
    sieve = _Sieve(settings, known, weights or {})
    rows = iter(source_rows)
    while batch := list(islice(rows, BATCH)):
        sieve.add(batch)
    kept, rejects = sieve.kept.table(), sieve.rejects
    del sieve  # and with it a dictionary of all prompts, before signatures take its place
    guarded = [
        (f"{name}:{row.row}", text)
        for name, row in evaluation
        if not row.error and row.text and (text := clean_fully(row.text, settings.clean).text)
    ]
    decided, rejected = _decided(kept, known, guarded, settings)
    gone = np.array(sorted(rejected), np.int64)
    left = kept.select(["source", "row", "text", "original"]).take(gone).to_pylist()
    for i, one in zip(gone.tolist(), left, strict=True):
        text = (one["original"] or one["text"])[:REJECTED_CHARACTERS]
        rejects.add(one["source"], one["row"], text, *rejected[i])
    stays = np.ones(len(kept), bool)
    stays[gone] = False
    batches, start = [], 0
    waiting = kept.to_batches()[::-1]
    del kept
    while waiting:  # batch by batch, so that the table is never there twice
        batch = waiting.pop()
        columns = {name: batch.column(name) for name in PROMPTS.names}
        columns["original"] = pc.coalesce(columns["original"], columns["text"])
        for name, values in decided.items():
            columns[name] = values.slice(start, len(batch))
        part = pa.table(columns).filter(pa.array(stays[start : start + len(batch)]))
        batches += part.cast(PROMPTS).to_batches()
        start += len(batch)
    return Ingested(pa.Table.from_batches(batches, PROMPTS), rejects.table().cast(REJECTS))


class _Sieve:
    """What one row can tell of itself: cleaning, exact duplicates and filters."""

    def __init__(self, settings: Ingest, known: pa.Table, weights: dict[str, float]) -> None:
        self.settings, self.weights = settings, weights
        self.filters = make_filters(settings.filters)
        self.known = {bytes.fromhex(i): n for n, i in enumerate(known.column("prompt_id").to_pylist())}
        self.known_splits = known.column("split").to_pylist()
        self.first: dict[bytes, int | Verdict] = {}  # the kept prompt, or why the first of its kind was left out
        self.rows = array("q")  # of the kept prompts
        self.sources: list[str] = []
        self.kept, self.rejects = _Rows(PROMPTS), _Rows(REJECTS)

    def add(self, batch: Sequence[SourceRow]) -> None:
        cleaned = [self._clean(row) for _, row in batch]
        ids = [prompt_id(c.text) if isinstance(c, Cleaned) else "" for c in cleaned]
        verdicts = self._judged(ids, cleaned)
        for (source, row), c, identity in zip(batch, cleaned, ids, strict=True):
            if not isinstance(c, Cleaned):
                self._reject(source, row, *c)
                continue
            key = bytes.fromhex(identity)
            if key in verdicts:
                self._reject(source, row, *verdicts[key])
            elif key in self.known:
                split = self.known_splits[self.known[key]]
                self._reject(source, row, "known", f"{identity} is in an earlier partition's {split} split", identity)
            elif key in self.first:
                i = self.first[key]
                if isinstance(i, int):
                    self._reject(source, row, "duplicate", f"{self.sources[i]}:{self.rows[i]}", identity)
                else:
                    self._reject(source, row, *i)
            elif (weight := self.weights.get(source, 1.0)) < 1 and weight <= _fraction(identity):
                self._reject(source, row, "not_sampled", f"weight {self.weights[source]:g}")
            else:
                self.first[key] = len(self.rows)
                self.rows.append(row.row)
                self.sources.append(source)
                original = None if row.text == c.text else row.text  # of most prompts; filled in at the end
                self.kept.add(
                    identity, c.text, original, source, row.row, row.kind or None, row.group or None,
                    row.split or None, c.flags, None,
                    [{"name": n, "value": v} for n, v in c.parameters] if c.parameters else _NONE,
                    [{"text": t, "weight": w} for t, w in c.weights] if c.weights else _NONE,
                )  # fmt: skip
        for key, verdict in verdicts.items():
            self.first.setdefault(key, verdict)

    def _clean(self, row: Row) -> Cleaned | Verdict:
        if row.error == EMPTY:
            return "empty", None
        if row.error or row.text is None:
            return "unreadable", row.error or NO_TEXT
        limit = self.settings.max_characters
        # Before cleaning, whose time can grow with the square of what someone made up to that end.
        if len(row.text) > RAW_FACTOR * limit:
            return "too_long", f"{len(row.text)} characters before cleaning; at most {limit}"
        cleaned = clean_fully(row.text, self.settings.clean)
        if not cleaned.text.strip():
            return "empty", "nothing is left after cleaning"
        if len(cleaned.text) > limit:
            return "too_long", f"{len(cleaned.text)} characters; at most {limit}"
        if row.split and row.split not in SPLITS:
            return "unreadable", f"split {row.split!r} is none of {', '.join(SPLITS)}"
        return cleaned

    def _judged(self, ids: Sequence[str], cleaned: Sequence[Cleaned | Verdict]) -> dict[bytes, Verdict]:
        """What the filters say against the new ones among these."""
        if not self.filters:
            return {}
        new: dict[bytes, str] = {}
        for identity, c in zip(ids, cleaned, strict=True):
            if isinstance(c, Cleaned) and (key := bytes.fromhex(identity)) not in self.first and key not in self.known:
                new[key] = c.text
        found = judge(list(new.values()), self.filters)
        return {key: verdict for key, verdict in zip(new, found, strict=True) if verdict is not None}

    def _reject(self, source: str, row: Row, reason: str, detail: str | None, instead: str | None = None) -> None:
        text = None if row.text is None else row.text[:REJECTED_CHARACTERS]
        self.rejects.add(source, row.row, text, reason, detail, instead)


class _Rows:
    """A table that grows by rows, held as Arrow so that a million of them stay small."""

    def __init__(self, schema: pa.Schema) -> None:
        # What is decided later (group, split, cluster) is empty until then.
        self.schema = pa.schema([field.with_nullable(True) for field in schema])
        self.batches: list[pa.RecordBatch] = []
        self.waiting: list[tuple[Any, ...]] = []

    def add(self, *values: Any) -> None:
        self.waiting.append(values)
        if len(self.waiting) == BATCH:
            self._pack()

    def table(self) -> pa.Table:
        self._pack()
        return pa.Table.from_batches(self.batches, self.schema)

    def _pack(self) -> None:
        if self.waiting:
            columns = zip(*self.waiting, strict=True)
            arrays = [pa.array(c, field.type) for c, field in zip(columns, self.schema, strict=True)]
            self.batches.append(pa.RecordBatch.from_arrays(arrays, schema=self.schema))
            self.waiting = []


def _fraction(identity: str) -> float:
    """A prompt's place in [0, 1), by which a source's share is drawn."""
    return int.from_bytes(hashlib.sha256(f"weight:{identity}".encode()).digest()[:8], "big") / 2**64


def _decided(
    kept: pa.Table, known: pa.Table, guarded: Sequence[tuple[str, str]], settings: Ingest
) -> tuple[dict[str, Any], dict[int, Reject]]:
    """Columns of all kept prompts, and which of them are rejected after all."""
    nothing_ties = all(kept.column(name).null_count == len(kept) for name in ("group", "split"))
    if settings.near_duplicates == "ignore" and not guarded and nothing_ties:
        # Each goes by its own hash, and a million need no list of Python's strings.
        fractions = settings.validation_fraction, settings.test_fraction
        ids = kept.column("prompt_id")
        splits = [pa.array([split_of(i, *fractions) for i in part.to_pylist()], pa.string()) for part in ids.chunks]
        return {"group": ids, "split": pa.chunked_array(splits, pa.string()), "cluster": ids}, {}
    placed = _placed(kept, known, guarded, settings)
    return {name: pa.array(getattr(placed, name), pa.string()) for name in _DECIDED}, placed.rejected


def _placed(kept: pa.Table, known: pa.Table, guarded: Sequence[tuple[str, str]], settings: Ingest) -> Placed:
    """Near-duplicates, splits, and what is too near an evaluation set."""
    fractions = settings.validation_fraction, settings.test_fraction
    ids, groups, splits = (kept.column(name).to_pylist() for name in ("prompt_id", "group", "split"))
    none = np.empty(0, np.int64)
    pairs = none, none, np.empty(0)
    dropped: dict[int, tuple[int, float]] = {}
    near = settings.near_duplicates != "ignore" and len(kept) > 0
    old = known if near else known.slice(0, 0)
    if near or (guarded and len(kept)):
        # Evaluation sets first, then earlier partitions, then what is new: pairs of the former two do not matter.
        texts = [
            *(text for _, text in guarded), *old.column("text").to_pylist(), *kept.column("text").to_pylist()
        ]  # fmt: skip
        signatures = Signatures(texts, settings.near_threshold)
        begin, frozen = len(guarded), len(guarded) + len(old)
        contaminated = signatures.first_near(np.arange(begin), np.arange(frozen, len(texts))) if guarded else {}
        rest = np.arange(begin, len(texts))
        if settings.near_duplicates == "drop":
            dropped = drop_near(signatures, rest, frozen)
        elif near:
            pairs = signatures.pairs(rest, frozen)
            pairs = pairs[0] - begin, pairs[1] - begin, pairs[2]
    else:
        begin, frozen, contaminated = 0, 0, {}
    old_ids = old.column("prompt_id").to_pylist()
    placed = place(
        old_ids + ids,
        old.column("group").to_pylist() + groups,
        old.column("split").to_pylist() + splits,
        pairs,
        len(old),
        old.column("cluster").to_pylist(),
        fractions,
    )
    every = [*old_ids, *ids]
    for i, (j, similarity) in dropped.items():
        detail = f"similarity {similarity:.2f} to {every[j - begin]}"
        placed.rejected[i - frozen] = "near_duplicate", detail, every[j - begin]
    for i, (j, similarity) in contaminated.items():
        if placed.split[i - frozen] != "test":
            detail = f"similarity {similarity:.2f} to {guarded[j][0]}"
            placed.rejected.setdefault(i - frozen, ("contaminated", detail, None))
    return placed


def source_statistics(found: Ingested) -> list[dict[str, Any]]:
    """One row a source, in order of their names: rows, prompts, each reason's rows, and what cleaning changed."""
    table: dict[str, dict[str, Any]] = {}

    def of(name: str) -> dict[str, Any]:
        return table.setdefault(name, {"source": name, "rows": 0, "prompts": 0, "rejected": {}, "cleaned": {}})

    lengths = pc.utf8_length(found.prompts.column("text"))
    sums = found.prompts.select(["source"]).append_column("characters", lengths).group_by("source")
    for row in sums.aggregate([("characters", "count"), ("characters", "mean")]).to_pylist():
        one = of(row["source"])
        one["rows"] = one["prompts"] = row["characters_count"]
        one["characters"] = round(row["characters_mean"], 1)
    for row in found.rejects.group_by(["source", "reason"]).aggregate([("row", "count")]).to_pylist():
        one = of(row["source"])
        one["rows"] += row["row_count"]
        one["rejected"][row["reason"]] = row["row_count"]
    flags = found.prompts.column("flags").combine_chunks()
    flat = pa.table({
        "source": found.prompts.column("source").take(pc.list_parent_indices(flags)), "flag": pc.list_flatten(flags)
    })  # fmt: skip
    for row in flat.group_by(["source", "flag"]).aggregate([("flag", "count")]).to_pylist():
        of(row["source"])["cleaned"][row["flag"]] = row["flag_count"]
    return [
        {**one, **{name: dict(sorted(one[name].items())) for name in ("rejected", "cleaned")}}
        for _, one in sorted(table.items())
    ]


__all__ = ["Ingested", "ingest_rows", "source_statistics", "split_of"]
