"""Which pictures go into the dataset by their scores, and why each of the others does not.

Millions of rows of scores go through DuckDB, which keeps to its memory limit and spills the rest; no picture is read.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from pahi.curation.reasons import REASONS
from pahi.errors import UserError
from pahi.settings import STRATA, Curate

MEMORY = "800MB"  # DuckDB's own; Arrow's batches and Python come on top
# The last 64 bits of the md5: what md5_number_lower gives, in a fifth of its time.
_TIE = "(md5_number(image_id) >> 64)::ubigint"
PROMPT_COLUMNS = ["prompt_id", *STRATA]
LIGHT = ["image_id", "prompt_id", "seed", "arm", "status", "reason", "pixels_sha256"]
PICTURES = pa.schema(
    [(n, pa.int64() if n == "seed" else pa.string()) for n in LIGHT]
    + [("id", pa.int64()), ("part", pa.int32()), ("row", pa.int32())]
)
SCORED = pa.schema(
    [("image_id", pa.string()), ("reward", pa.string()), ("score", pa.float32()), ("uplift_scale", pa.float32())]
)


class Selection:
    """A funnel over the `images` and `scores` tables. `roles` says of each reward whether it is train or held_out.

    Tables inside: `pictures` (all), `scored` (all that have every score, control pictures included), `alive` (ids that
    are still in) and `gone` (ids that are not, with reason and detail).
    """

    def __init__(self, settings: Curate, roles: dict[str, str], scratch: str, threads: int | None = None) -> None:
        """`scratch` is an empty folder for what does not fit into memory."""
        self.settings, self.roles = settings, roles
        self.db = duckdb.connect()
        self.db.execute(f"set memory_limit = '{MEMORY}'")
        self.db.execute(f"set temp_directory = '{scratch}'")
        # Arrow's streams are read as they come; orders that matter are asked for.
        self.db.execute("set preserve_insertion_order = false")
        if threads:
            self.db.execute(f"set threads = {threads}")
        self.rewards: list[str] = []
        self.funnel: list[dict[str, Any]] = []

    def close(self) -> None:
        self.db.close()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.db.execute(query).fetchall()

    def count(self, query: str) -> int:
        return int(self.rows(query)[0][0])

    def stream(self, query: str, rows: int = 100_000) -> pa.RecordBatchReader:
        """A query's result, batch by batch."""
        return self.db.sql(query).to_arrow_reader(rows)

    # ------------------------------------------------------------------------------------------------------- loading

    def load(self, pictures: Iterable[pa.Table], scores: Iterable[pa.Table], prompts: pa.Table) -> None:
        """Tables of pictures (LIGHT) and scores (SCORED), part by part, and the prompts (prompt_id, STRATA).

        `part` and `row` are where a picture lies; its id follows their order.
        """
        self.register([prompts], pa.schema([(n, pa.string()) for n in PROMPT_COLUMNS]))
        self.db.execute(
            "create table prompts as select row_number() over (order by prompt_id)::int prompt, * from source"
        )
        self.register(_numbered(pictures), PICTURES)
        # 128 bits of a digest tell pictures apart as well as 256 do.
        self.db.execute(
            f"""create table pictures as
            select id, image_id, prompt, seed, arm, status, reason, part, "row", {_TIE} tie,
                   try_cast(left(pixels_sha256, 32) as uuid) pixels
            from source left join prompts using (prompt_id)"""
        )
        lost = self.rows("select image_id from pictures where prompt is null limit 1")
        if lost:
            raise UserError(f"picture {lost[0][0]} has a prompt that was never ingested; run `pahi verify`")
        self.register(scores, SCORED)
        self.db.execute("create table scores as select * from source")
        found = dict(
            self.rows(
                "select reward, max(uplift_scale) filter (isfinite(uplift_scale) and uplift_scale > 0) "
                "from scores group by reward order by reward"
            )
        )
        self.rewards, self.scales = list(found), found
        self._check_names()
        pivot = [f"max(score) filter (reward = {_text(r)}) s{i}" for i, r in enumerate(self.rewards)]
        self.db.execute(
            f"create table wide as select {', '.join(['id', *pivot])} from scores join pictures using (image_id) "
            "group by id"
        )
        self.db.execute("drop table scores")
        self.db.execute("create table gone (id bigint, reason varchar, detail varchar)")
        self.db.execute("create table alive as select id from pictures")
        self.funnel = [{"name": "generated", "rows": self.count("select count(*) from alive"), "note": ""}]

    def register(self, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
        """Makes tables the view `source`, to be read once."""

        def batches() -> Iterator[pa.RecordBatch]:
            for table in tables:
                yield from table.select(schema.names).cast(schema).to_batches()

        self.db.register("source", pa.RecordBatchReader.from_batches(schema, batches()))

    def _check_names(self) -> None:
        s = self.settings
        for name, values in (
            ("weights", s.weights),
            ("min_score", s.min_score),
            ("min_quantile", s.min_quantile),
            ("min_uplift", s.min_uplift),
        ):
            for reward in values:
                if reward not in self.rewards:
                    there = ", ".join(self.rewards) or "none"
                    raise UserError(f"curate.{name} names reward {reward!r}; the pictures have scores of: {there}")
        for by, limit in s.quotas.items():
            known = {row[0] for row in self.rows(f'select distinct "{by}" from prompts')}
            for stratum in limit if isinstance(limit, dict) else ():
                if stratum not in known:
                    there = ", ".join(sorted(str(k) for k in known if k is not None)[:12])
                    raise UserError(f"curate.quotas.{by} names {stratum!r}; the prompts have {there}")

    # -------------------------------------------------------------------------------------------------------- funnel

    def drop(self, reason: str, note: str, query: str) -> None:
        """Takes the ids of a query (id, detail) out of what is alive."""
        assert reason in REASONS, reason
        self.db.execute(f"create or replace temp table step as select id, detail from ({query})")
        if self.count("select count(*) from step"):
            self.db.execute(f"insert into gone select id, '{reason}', detail from step")
            self.db.execute("create or replace table alive as select * from alive anti join step using (id)")
        self.funnel.append({"name": reason, "rows": self.count("select count(*) from alive"), "note": note})

    def run(self) -> None:
        """Every step that scores decide, in order."""
        self.drop(
            "failed",
            "pictures that could not be drawn",
            "select id, reason as detail from pictures where status is distinct from 'ok'",
        )
        # Where the whole dataset is drawn from the standard Gaussian, there is no control group.
        learned = self.count("select count(*) from pictures where arm <> 'standard'")
        self.drop(
            "control",
            "the control group of the standard Gaussian",
            f"select id, null detail from alive join pictures using (id) where arm = 'standard' and {learned} > 0",
        )
        self.drop(
            "duplicate",
            "pictures with the very same pixels",
            """select id, 'same pixels as ' || first_id detail from (
                 select id, row_number() over same n, first(image_id) over same first_id
                 from alive join pictures using (id) where pixels is not null
                 window same as (partition by pixels order by id)) where n > 1""",
        )
        self._score()
        s, names = self.settings, {r: f"s{i}" for i, r in enumerate(self.rewards)}
        for reward, least in sorted(s.min_score.items()):
            self.drop("min_score", f"{reward} under {least:g}", self._under(reward, names[reward], least))
        for reward, share in sorted(s.min_quantile.items()):
            column = names[reward]
            found = self.rows(f"select quantile_disc({column}, {share!r}) from candidates join scored using (id)")
            if found[0][0] is not None:
                note = f"the lowest {100 * share:g}% by {reward}"
                self.drop("min_quantile", note, self._under(reward, column, found[0][0]))
        for reward, least in sorted(s.min_uplift.items()):
            note = f"{reward} less than {least:g} above the control picture of the same noise, where there is one"
            self.drop("min_uplift", note, self._under(f"uplift of {reward}", f"u{names[reward][1:]}", least))
        if s.max_disagreement is not None:
            self.drop(
                "disagreement",
                f"training rewards more than {s.max_disagreement:g} standard deviations above the held-out ones",
                "select id, format('{:.3g} standard deviations', disagreement::double) detail "
                f"from alive join scored using (id) where disagreement > {s.max_disagreement!r}",
            )
        if s.pareto:
            self._pareto()
        if s.top_k is not None:
            self._best("top_k", f"the best {s.top_k} of each prompt", "prompt", f"n > {s.top_k}")
        for by, limit in sorted(s.quotas.items()):
            if isinstance(limit, int):
                self._best("quota", f"at most {limit:,} of each {by}", f'"{by}"', f"n > {limit}")
            else:
                cases = " ".join(f"when {_text(k)} then {v}" for k, v in limit.items())
                note = f"at most {', '.join(f'{v:,} of {by} {k}' for k, v in limit.items())}"
                self._best("quota", note, f'"{by}"', f"n > (case stratum {cases} end)")
        if s.keep_fraction < 1 and self.funnel[-1]["rows"]:
            count = max(1, round(s.keep_fraction * self.funnel[-1]["rows"]))
            note = f"not among the best {100 * s.keep_fraction:g}% by the combined score"
            self._best("keep_fraction", note, "true", f"n > {count}")

    def _score(self) -> None:
        """Standardises the rewards over the candidates, once, so that no later step moves what another has measured."""
        weights = {r: self.settings.weights.get(r, 0.0) for r in self.rewards}
        if not self.settings.weights:
            weights = dict.fromkeys(self.rewards, 1.0)
        used = [i for i, r in enumerate(self.rewards) if weights[r]]
        self.used = [f"s{i}" for i in used]
        lacks = " or ".join(f"s{i} is null or not isfinite(s{i})" for i in used) or "false"
        self.drop(
            "unscored",
            "pictures that lack a score",
            f"select id, null detail from alive left join wide using (id) where {lacks}",
        )
        self.db.execute("create table candidates as select id from alive")
        self.means: dict[str, tuple[float, float]] = {}
        for i, reward in enumerate(self.rewards):
            mean, deviation = self.rows(
                f"select avg(s{i}::double), stddev_pop(s{i}::double) from candidates join wide using (id) "
                f"where isfinite(s{i})"
            )[0]
            # The last digits depend on the order of threads; what is written must not.
            self.means[reward] = (float(f"{mean or 0:.6g}"), float(f"{deviation or 1:.6g}"))
        z = [f"((s{i}::double - {m!r}) / {d!r})" for i, (m, d) in enumerate(self.means.values())]
        total = sum(weights.values())
        combined = " + ".join(f"{weights[self.rewards[i]] / total!r} * {z[i]}" for i in used) or "0.0"
        train = [z[i] for i, r in enumerate(self.rewards) if self.roles.get(r) == "train"]
        held = [z[i] for i, r in enumerate(self.rewards) if self.roles.get(r) == "held_out"]
        disagreement = "null"
        if train and held:
            disagreement = f"({' + '.join(train)}) / {len(train)} - ({' + '.join(held)}) / {len(held)}"
        elif len(z) > 1:
            disagreement = f"greatest({', '.join(z)}) - least({', '.join(z)})"
        scores = [f"w.s{i}" for i in range(len(self.rewards))]
        uplifts = [
            f"((w.s{i}::double - c.s{i}) / {self.scales[r]!r})::float u{i}" if self.scales[r] else f"null::float u{i}"
            for i, r in enumerate(self.rewards)
        ]
        self.db.execute(
            f"""create table scored as
            with w as (select p.id, p.prompt, p.seed, p.tie, p.arm, p.pixels, wide.* exclude (id)
                       from pictures p left join wide using (id) where p.status = 'ok'),
                 c as (select * from w where arm = 'standard')
            select {", ".join(["w.id", "w.prompt", "w.tie", "w.pixels", *scores, *uplifts])},
                   w.combined::float combined, w.disagreement::float disagreement
            from (select *, {combined} combined, {disagreement} disagreement from w where not ({lacks})) w
            left join c on w.prompt = c.prompt and w.seed = c.seed and w.arm <> 'standard'"""
        )

    def _under(self, what: str, column: str, least: float) -> str:
        missing = f"or {column} is null" if column.startswith("s") else ""
        return (
            f"select id, {_text(what)} || coalesce(format(' {{:.4g}} under {{:.4g}}', {column}::double, "
            f"{float(least)!r}::double), ' missing') detail from alive join scored using (id) "
            f"where {column} < {float(least)!r}::float {missing}"
        )

    def _best(self, reason: str, note: str, by: str, beyond: str) -> None:
        """Drops what stands beyond a rank within each group; ties are broken by the picture's name."""
        self.drop(
            reason,
            note,
            f"""select id, 'rank ' || n || ' of ' || total detail from (
                  select id, {by} stratum, row_number() over ranked n, count(*) over (partition by {by}) total
                  from alive join scored using (id) join prompts using (prompt)
                  window ranked as (partition by {by} order by combined desc, tie)) where {beyond}""",
        )

    def _pareto(self) -> None:
        no_worse = " and ".join(f"b.{c} >= a.{c}" for c in self.used) or "false"
        better = " or ".join(f"b.{c} > a.{c}" for c in self.used) or "false"
        self.drop(
            "pareto",
            "another picture of the prompt is as good by every reward and better by one",
            f"""with here as (select scored.* from alive join scored using (id))
                select a.id, 'beaten by ' || min(p.image_id) detail
                from here a join here b on a.prompt = b.prompt and {no_worse} and ({better})
                join pictures p on p.id = b.id group by a.id""",
        )

    # -------------------------------------------------------------------------------------------------------- results

    def histograms(self, bins: int = 30) -> dict[str, dict[str, Any]]:
        """Of each reward: bounds, and counts of the candidates and of what is alive in equal bins."""
        found = {}
        for i, reward in enumerate(self.rewards):
            where = f"scored join candidates using (id) where isfinite(s{i})"
            low, high = self.rows(f"select min(s{i}), max(s{i}) from {where}")[0]
            if low is None:
                continue
            width = max(high - low, 1e-9) / bins
            counts = {"candidates": [0] * bins, "kept": [0] * bins}
            for name, kept in (("candidates", ""), ("kept", "and id in (select id from alive)")):
                for k, n in self.rows(
                    f"select least(floor((s{i} - {low!r}::double) / {width!r}), {bins - 1})::int k, count(*) "
                    f"from {where} {kept} group by k"
                ):
                    counts[name][k] = n
            found[reward] = {"low": low, "high": high, **counts}
        return found

    def reasons(self) -> dict[str, int]:
        """How many pictures each reason took out."""
        return dict(self.rows("select reason, count(*) from gone group by reason order by reason"))


def _numbered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    total = 0
    for part, table in enumerate(tables):
        n = len(table)
        yield pa.Table.from_arrays(
            [
                *(table.column(name) for name in LIGHT),
                np.arange(total, total + n),
                np.full(n, part, np.int32),
                np.arange(n, dtype=np.int32),
            ],
            names=PICTURES.names,
        )
        total += n


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
