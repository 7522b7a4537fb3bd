"""The curated dataset: pictures by split as Parquet, preference pairs, a card, every exclusion with its reason."""

import json
import time
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import yaml

from pahi.artifacts import Output
from pahi.artifacts.output import shard_name
from pahi.artifacts.schemas import EXCLUDED
from pahi.curation import dataset, models, preferences, reading
from pahi.curation.card import Facts, card, preferences_card, require_license
from pahi.curation.dataset import portable
from pahi.curation.drawing import SAMPLES, histogram_sheet, sample_sheet
from pahi.curation.inspection import Inspection
from pahi.curation.select import LIGHT, PROMPT_COLUMNS, SCORED, Selection
from pahi.errors import PahiError, UserError
from pahi.generators.load import replaced_parts
from pahi.settings import Curate
from pahi.stages import generate, ingest
from pahi.stages.common import Context, environment, missing

STAGE, VERSION = "curate", 2
SPLITS = dataset.SPLITS
REJECT_ROWS = 1_000_000  # excluded pictures a file; they are small
FILES = ["README.md", "statistics.json", "recipe.yaml", "samples.png", "histograms.png"]


def place(ctx: Context, drawn: list[Output], partitions: ingest.Chain) -> tuple[Output, dict[str, Any], dict[str, str]]:
    """Where the dataset of these pictures lies."""
    own = ctx.settings.curate
    settings = {"curate": own.fingerprinted(), "license": ctx.settings.generator.license, "roles": _roles(ctx)}
    inputs = {f"generate/{i:05d}": output.require().hash for i, output in enumerate(drawn)}
    inputs |= {f"ingest/{i:05d}": h for i, h in enumerate(partitions.hashes)}
    for name, model in (("unsafe", own.unsafe), ("embedder", own.embedder)):
        if model is not None:
            # What it is counts, not where it lies.
            del settings["curate"][name]["id"], settings["curate"][name]["revision"]  # type: ignore[index]
            inputs[name] = models.digest(model)
    return ctx.output(STAGE, VERSION, settings, inputs), settings, inputs


def locate(ctx: Context, partitions: ingest.Chain) -> Output | None:
    """The finished dataset, or None."""
    drawn = generate.locate_all(ctx, partitions)
    if drawn is None:
        return None
    output = place(ctx, drawn, partitions)[0]
    return output if output.manifest() is not None else None


def run(ctx: Context, partitions: ingest.Chain) -> tuple[Output, bool]:
    """Selects from every partition's pictures; returns the dataset, and whether it was there already."""
    started = time.time()
    require_license(ctx.settings.generator.license)
    return build(ctx, _drawn(ctx, partitions), partitions, started)


def build(ctx: Context, drawn: list[Output], partitions: ingest.Chain, started: float) -> tuple[Output, bool]:
    """As `run`, of these pictures."""
    output, settings, inputs = place(ctx, drawn, partitions)
    if output.manifest() is not None:
        return output, True
    with TemporaryDirectory() as scratch:
        chosen = Chosen(ctx, partitions, drawn, scratch)
        summary, shards = _write(ctx, chosen, output, inputs)
        chosen.selection.close()
    files = [*FILES, "preferences/README.md"] if any(summary["preferences"].values()) else FILES
    output.finish(version=VERSION, settings=settings, inputs=inputs, shards=shards, files=files, summary=summary)
    output.write_run(environment(started))
    return output, False


def plan(ctx: Context, partitions: ingest.Chain) -> dict[str, Any]:
    """What `run` would keep and drop, and why; nothing is written."""
    drawn = _drawn(ctx, partitions)
    with TemporaryDirectory() as scratch:
        chosen = Chosen(ctx, partitions, drawn, scratch)
        summary = chosen.summary()
        chosen.selection.close()
    return summary


class Chosen:
    """The pictures that go into the dataset, and the pairs: by scores first, then by what the pictures show."""

    def __init__(self, ctx: Context, partitions: ingest.Chain, drawn: list[Output], scratch: str) -> None:
        s = ctx.settings.curate
        self.ctx, self.parts = ctx, reading.parts_of(drawn)
        self.selection = Selection(s, _roles(ctx), scratch, ctx.settings.threads)
        self.selection.load(
            reading.columns(self.parts, "images", LIGHT),
            reading.columns(self.parts, "scores", SCORED.names),
            partitions.prompts(PROMPT_COLUMNS),
        )
        self.selection.run()
        preferences.choose_pairs(self.selection, s.preferences)
        unsafe = models.load_classifier(s.unsafe, ctx.device) if s.unsafe else None
        embed = models.load_embedder(s.embedder, ctx.device) if s.embedder else None
        self.inspection = Inspection(self.selection, self.read, scratch, unsafe, embed)
        self.inspection.run(lambda done, total: ctx.progress(STAGE, done, total, "pictures looked at"))
        self.splits = dataset.number_rows(self.selection)
        preferences.number_pairs(self.selection)
        pairs = dict(self.selection.rows("select split, count(*) from numbered group by split"))
        self.pairs = {split: pairs.get(split, 0) for split in SPLITS}
        self._noise: tuple[int, pa.Table] | None = None

    def read(self, part: int, rows: list[int], columns: list[str]) -> pa.Table:
        return reading.rows(self.parts[part], "images", rows, columns)

    def noise(self, part: int) -> pa.Table:
        """A part's noise; of one part at a time."""
        if self._noise is None or self._noise[0] != part:
            output, shard = self.parts[part]
            self._noise = part, output.read_part("noise", shard)
        return self._noise[1]

    def summary(self) -> dict[str, Any]:
        """Counts, which must add up."""
        s = self.selection
        total, gone = s.count("select count(*) from pictures"), s.count("select count(*) from gone")
        kept = sum(self.splits.values())
        if kept + gone != total:
            raise PahiError(f"curate: {total} pictures in, {kept} kept and {gone} excluded do not add up")
        return {
            "images_in": total,
            "kept": kept,
            "excluded": gone,
            "splits": self.splits,
            "preferences": self.pairs,
            "reasons": s.reasons(),
            "funnel": s.funnel,
        }


def _write(ctx: Context, chosen: Chosen, output: Output, inputs: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    summary, selection, size = chosen.summary(), chosen.selection, ctx.settings.curate.shard_rows
    noise = _noise_schema(chosen) if ctx.settings.curate.noise and summary["kept"] else None
    schema = dataset.schema_of(selection, chosen.inspection, noise)
    most = max(*chosen.splits.values(), *chosen.pairs.values())
    shards = [shard_name(i) for i in range(max(1, -(-most // size), -(-summary["excluded"] // REJECT_ROWS)))]
    for i, shard in enumerate(shards):
        output.commit_shard(shard, lambda i=i: (_tables(chosen, schema, i, size), {}), row_group_rows=100)  # type: ignore[misc]
        ctx.progress(STAGE, i + 1, len(shards), "shards written")
    histograms = selection.histograms()
    facts = _facts(ctx, chosen, schema, summary, inputs)
    output.put_file("README.md", card(facts).encode())
    if any(chosen.pairs.values()):
        columns = {f.name: _meaning(f) for f in preferences.pair_schema(selection.rewards)}
        output.put_file("preferences/README.md", preferences_card(facts, columns).encode())
    output.put_file("statistics.json", json.dumps(summary | {"histograms": histograms}, indent=1).encode())
    output.put_file("recipe.yaml", yaml.safe_dump(recipe(ctx), sort_keys=False, allow_unicode=True).encode())
    output.put_file("samples.png", sample_sheet(_samples(chosen)))
    output.put_file("histograms.png", histogram_sheet(histograms))
    return summary, shards


def _tables(chosen: Chosen, schema: pa.Schema, i: int, size: int) -> dict[str, pa.Table]:
    tables = {}
    for split in SPLITS:
        if chosen.splits[split] > i * size:
            tables[split] = dataset.picture_rows(
                chosen.selection, chosen.inspection, chosen.read, chosen.noise, schema, split, i * size, size
            )
        if chosen.pairs[split] > i * size:
            tables[f"preferences/{split}"] = dataset.preference_rows(
                chosen.selection, chosen.read, portable(chosen.ctx.settings.generator.id), split, i * size, size
            )
    rejects = chosen.selection.db.sql(
        f"""select image_id, prompt_id, gone.reason, detail
        from gone join pictures using (id) join prompts using (prompt)
        order by gone.id limit {REJECT_ROWS} offset {i * REJECT_ROWS}"""
    ).to_arrow_table()
    if len(rejects) or i == 0:
        tables["rejects"] = rejects.cast(EXCLUDED)
    return tables


def _facts(ctx: Context, chosen: Chosen, schema: pa.Schema, summary: dict[str, Any], inputs: dict[str, str]) -> Facts:
    s, selection = ctx.settings, chosen.selection
    scores = {}
    for i, reward in enumerate(selection.rewards):
        candidates, kept = selection.rows(
            f"select avg(s{i}::double) filter (isfinite(s{i}) and id in (select id from candidates)), "
            f"avg(s{i}::double) filter (isfinite(s{i}) and id in (select id from alive)) from scored"
        )[0]
        if candidates is not None and kept is not None:
            scores[reward] = {"candidates": candidates, "kept": kept}
    notes = ["No classifier of unsafe pictures was run on them."] if s.curate.unsafe is None else []
    untouched = Curate().model_dump(mode="json")  # type: ignore[call-arg]
    changed = {k: v for k, v in s.curate.model_dump(mode="json").items() if v != untouched[k]}
    return Facts(
        title=s.curate.title or s.name,
        license=s.generator.license,
        generator=portable(s.generator.id),
        splits=chosen.splits,
        pairs=chosen.pairs,
        funnel=selection.funnel,
        reasons=summary["reasons"],
        scores=scores,
        columns={f.name: _meaning(f) for f in schema},
        lineage=_lineage(ctx, chosen, inputs),
        settings=yaml.safe_dump({"curate": changed}, sort_keys=False).splitlines() if changed else [],
        notes=notes,
    )


def _lineage(ctx: Context, chosen: Chosen, inputs: dict[str, str]) -> list[dict[str, str]]:
    """Everything that made these pictures, down to the bytes of the weights."""
    s = ctx.settings
    record = ctx.checkpoints.record(s.generator.id, s.generator.revision, (), replaced_parts(s.generator))
    revision = record["commit"] if record is not None else s.generator.revision or ""
    rows = [("generator", s.generator.id, revision, ctx.model_hashes["generator"])]
    first = chosen.parts[0][0].require()
    rows.append(("predictor of the noise", s.generate.predictor or "", "", first.inputs["predictor"]))
    for model in ctx.reward_models:
        if model.name in chosen.selection.rewards:
            digest = ctx.model_hashes[f"reward/{model.name}"]
            rows.append((f"reward {model.name} ({model.kind})", model.id, model.revision or "", digest))
    for name, used in (("unsafe", s.curate.unsafe), ("embedder", s.curate.embedder)):
        if used is not None:
            rows.append((f"curation's {name}", used.id, used.revision or "", inputs[name]))
    rows += [(f"manifest {name}", "", "", h) for name, h in inputs.items() if "/" in name]
    return [{"what": a, "name": portable(b), "revision": c, "sha256": d} for a, b, c, d in rows]


def recipe(ctx: Context) -> dict[str, Any]:
    """The settings that made the dataset, for `pahi run --config`; of a local path only its last name."""
    data = ctx.settings.model_dump(mode="json", include={"name", "ingest", "generator", "rewards", "cache", "train"})
    data |= ctx.settings.model_dump(mode="json", include={"generate", "curate"})

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: portable(v) if k in ("id", "path", "base") and v else walk(v) for k, v in value.items()}
        return [walk(v) for v in value] if isinstance(value, list) else value

    data = walk(data)
    if data["generate"]["predictor"]:
        data["generate"]["predictor"] = portable(data["generate"]["predictor"])
    return data


def _samples(chosen: Chosen) -> list[bytes]:
    # In the order of a hash: nobody picked them.
    places = chosen.selection.rows(
        f'select part, "row" from alive join pictures using (id) order by tie limit {SAMPLES}'
    )
    return [chosen.read(part, [row], ["image"])["image"][0].as_py()["bytes"] for part, row in places]


def _noise_schema(chosen: Chosen) -> pa.Schema:
    for part in range(len(chosen.parts)):
        table = chosen.noise(part)
        if len(table):
            return table.schema
    raise UserError("curate.noise: this predictor has no mu and sigma to publish; its noise can only be drawn again")


def _drawn(ctx: Context, partitions: ingest.Chain) -> list[Output]:
    drawn = generate.locate_all(ctx, partitions)
    if drawn is None:
        raise missing(ctx, STAGE, generate.STAGE)
    return drawn


def _roles(ctx: Context) -> dict[str, str]:
    r = ctx.settings.rewards
    return {m.name: "train" for m in r.train} | {m.name: "held_out" for m in r.held_out}


def _meaning(field: pa.Field) -> str:
    return (field.metadata or {}).get(b"meaning", b"").decode()
