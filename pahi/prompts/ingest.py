"""Rows to prompts: cleaned, filtered, unique, split. Every row comes out once, as a prompt or with its reason."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
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
from pahi.prompts.spill import BATCH, Rows
from pahi.prompts.splits import SPLITS, Placed, Reject, drop_near, place, split_of
from pahi.settings import Ingest

REJECTED_CHARACTERS = 2000  # kept of a rejected row's text
RAW_FACTOR = 10  # raw text may be this much longer than cleaned, by entities and white space
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
    kept, rejects = sieve.kept, sieve.rejects
    del sieve  # and with it a dictionary of all prompts, before signatures take its place
    guarded = [
        (f"{name}:{row.row}", text)
        for name, row in evaluation
        if not row.error and row.text and (text := clean_fully(row.text, settings.clean).text)
    ]
    decided, rejected = _decided(kept, known, guarded, settings)
    prompts, start = Rows(PROMPTS), 0
    for batch in kept.batches():
        end = start + len(batch)
        stays = np.ones(len(batch), bool)
        for i in range(start, end) if rejected else ():
            if i in rejected:
                source, row, text, original = (
                    batch.column(name)[i - start].as_py() for name in ("source", "row", "text", "original")
                )
                rejects.add(source, row, (original or text)[:REJECTED_CHARACTERS], *rejected[i])
                stays[i - start] = False
        columns = {name: batch.column(name) for name in PROMPTS.names}
        columns["original"] = pc.coalesce(columns["original"], columns["text"])
        for name, values in decided.items():
            columns[name] = values.slice(start, len(batch))
        for part in pa.table(columns).filter(pa.array(stays)).cast(PROMPTS).combine_chunks().to_batches():
            prompts.extend(part)
        start = end
    return Ingested(prompts.table(), rejects.table().cast(REJECTS))


def _undecided(schema: pa.Schema) -> pa.Schema:
    """What is decided later (group, split, cluster) is empty until then."""
    return pa.schema([field.with_nullable(True) for field in schema])


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
        self.kept, self.rejects = Rows(_undecided(PROMPTS)), Rows(_undecided(REJECTS))

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


def _fraction(identity: str) -> float:
    """A prompt's place in [0, 1), by which a source's share is drawn."""
    return int.from_bytes(hashlib.sha256(f"weight:{identity}".encode()).digest()[:8], "big") / 2**64


def _decided(
    kept: Rows, known: pa.Table, guarded: Sequence[tuple[str, str]], settings: Ingest
) -> tuple[dict[str, Any], dict[int, Reject]]:
    """Columns of all kept prompts, and which of them are rejected after all."""
    ids, groups, splits = _columns(kept, ("prompt_id", "group", "split"))
    nothing_ties = all(column.null_count == len(column) for column in (groups, splits))
    if settings.near_duplicates == "ignore" and not guarded and nothing_ties:
        # Each goes by its own hash, and a million need no list of Python's strings.
        fractions = settings.validation_fraction, settings.test_fraction
        by_hash = [pa.array([split_of(i, *fractions) for i in part.to_pylist()], pa.string()) for part in ids.chunks]
        return {"group": ids, "split": pa.chunked_array(by_hash, pa.string()), "cluster": ids}, {}
    placed = _placed(kept, (ids, groups, splits), known, guarded, settings)
    return {name: pa.array(getattr(placed, name), pa.string()) for name in _DECIDED}, placed.rejected


def _columns(kept: Rows, names: Sequence[str]) -> list[pa.ChunkedArray]:
    """Small columns, whole."""
    # To concatenate is to copy: a column of a batch that was read holds on to all of the batch.
    parts = [[pa.concat_arrays([c, c[:0]]) for c in map(batch.column, names)] for batch in kept.batches()]
    kinds = [kept.schema.field(name).type for name in names]
    return [pa.chunked_array([part[i] for part in parts], kind) for i, kind in enumerate(kinds)]


def _placed(
    kept: Rows,
    columns: tuple[pa.ChunkedArray, pa.ChunkedArray, pa.ChunkedArray],
    known: pa.Table,
    guarded: Sequence[tuple[str, str]],
    settings: Ingest,
) -> Placed:
    """Near-duplicates, splits, and what is too near an evaluation set."""
    fractions = settings.validation_fraction, settings.test_fraction
    ids, groups, splits = (column.to_pylist() for column in columns)
    none = np.empty(0, np.int64)
    pairs = none, none, np.empty(0)
    dropped: dict[int, tuple[int, float]] = {}
    near = settings.near_duplicates != "ignore" and len(ids) > 0
    old = known if near else known.slice(0, 0)
    if near or (guarded and ids):
        # Evaluation sets first, then earlier partitions, then what is new: pairs of the former two do not matter.
        batches = chain(old.select(["text"]).to_batches(), kept.batches())
        texts = (text for batch in batches for text in batch.column("text").to_pylist())
        signatures = Signatures(chain((text for _, text in guarded), texts), settings.near_threshold)
        begin, frozen = len(guarded), len(guarded) + len(old)
        every = np.arange(len(signatures))
        contaminated = signatures.first_near(every[:begin], every[frozen:]) if guarded else {}
        if settings.near_duplicates == "drop":
            dropped = drop_near(signatures, every[begin:], frozen)
        elif near:
            pairs = signatures.pairs(every[begin:], frozen)
            pairs = pairs[0] - begin, pairs[1] - begin, pairs[2]
    else:
        begin, frozen, contaminated = 0, 0, {}
    all_ids = [*old.column("prompt_id").to_pylist(), *ids]
    placed = place(
        all_ids,
        old.column("group").to_pylist() + groups,
        old.column("split").to_pylist() + splits,
        pairs,
        len(old),
        old.column("cluster").to_pylist(),
        fractions,
    )
    for i, (j, similarity) in dropped.items():
        detail = f"similarity {similarity:.2f} to {all_ids[j - begin]}"
        placed.rejected[i - frozen] = "near_duplicate", detail, all_ids[j - begin]
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
