"""Pictures in bulk: one output for each partition of prompts, with a predictor frozen by its hash.

Shards are drawn in this process, by several of this machine, or by flow runs elsewhere; whoever drew them, what counts
is which manifests are there.
"""

import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa
import torch

from pahi import models
from pahi.artifacts import Output
from pahi.artifacts.fingerprint import canonical_json
from pahi.artifacts.output import shard_name
from pahi.errors import PahiError, StageFailed
from pahi.generation import batch, engine, workers
from pahi.generation.drawing import Drawer
from pahi.generation.plan import kept_rows
from pahi.generation.shard import Built, Origin, Shard
from pahi.generation.uplift import Uplift
from pahi.generators.load import part_files, part_folder, with_decoder
from pahi.predictors import NoisePredictor
from pahi.predictors.base import WEIGHTS
from pahi.settings import Part, Settings
from pahi.stages import cache, ingest, train
from pahi.stages.common import Context, environment, missing

STAGE, VERSION = "generate", 3
ENOUGH = 100  # rows before their share of bad ones says anything
BATCH = "batch.json"  # the batch size that was found


Frozen = tuple[str, Callable[[], NoisePredictor], dict[str, float | None]]


def frozen_predictor(ctx: Context, partitions: ingest.Chain) -> Frozen | None:
    """The predictor's hash, how to load it, and the rewards' units; None where nothing was trained yet."""
    found = train.newest(ctx, partitions)
    units: dict[str, float | None] = {}
    if found is not None:
        cached = cache.locate(ctx, found[1])
        assert cached is not None
        units = cached.require().summary["units"]
    given = ctx.settings.generate.predictor
    if given:
        folder = models.resolve(given)
        return models.model_hash(folder), lambda: NoisePredictor.from_pretrained(str(folder)).to(ctx.device), units
    if found is None:
        return None
    digest = found[0].require().data["files"][f"predictor/{WEIGHTS}"]["sha256"]
    return digest, lambda: train.load_predictor(ctx, found[0]), units


def place(ctx: Context, partition: Output, predictor_hash: str) -> tuple[Output, dict[str, Any], dict[str, str]]:
    """Where one partition's pictures lie."""
    own = ctx.settings.generate.fingerprinted()
    own.pop("predictor")  # its hash is an input, and so is the decoder's
    own.pop("draft_decoder")
    rewards = [r for r in ctx.reward_settings() if r["role"] != "judge"]
    settings = {"generate": own, "dtype": ctx.settings.generator.dtype, "rewards": rewards}
    inputs = ctx.model_hashes | {"predictor": predictor_hash, "ingest": partition.require().hash}
    decoder = draft_decoder(ctx)
    if decoder is not None:
        inputs["draft_decoder"] = models.model_hash(part_folder(decoder), part_files(decoder))
    return ctx.output(STAGE, VERSION, settings, inputs), settings, inputs


def draft_decoder(ctx: Context) -> Part | None:
    """The smaller decoder of drafts, in the store once it was fetched; None where the generator's own decodes."""
    part = ctx.settings.generate.draft_decoder
    if part is None:
        return None
    return part.model_copy(update={"id": str(ctx.checkpoints.keep(part.id, part.revision, part_files(part)))})


def locate_all(ctx: Context, partitions: ingest.Chain) -> list[Output] | None:
    """Every partition's finished pictures, or None while one is missing."""
    frozen = frozen_predictor(ctx, partitions)
    if frozen is None:
        return None
    outputs = [place(ctx, partition, frozen[0])[0] for partition in partitions.outputs]
    return outputs if outputs and all(output.manifest() is not None for output in outputs) else None


@dataclass
class Target:
    """One partition's pictures, finished or not."""

    partition: Output
    output: Output
    settings: Any
    inputs: dict[str, str]
    kind: str  # the arm that the predictor draws
    _part: tuple[str, pa.Table] | None = None

    @cached_property
    def _ends(self) -> list[tuple[int, str]]:
        """For each of the prompts' own shards, the number of rows up to its end, and its name."""
        entries = self.partition.require().data["shards"]
        ends = itertools.accumulate(entry["tables"]["prompts"]["rows"] for entry in entries)
        return list(zip(ends, (entry["name"] for entry in entries), strict=True))

    @property
    def rows(self) -> int:
        return self._ends[-1][0]

    def shards(self, size: int) -> int:
        return max(1, -(-self.rows // size))

    def prompts(self, start: int, size: int) -> pa.Table:
        """prompt_id and text of some rows. Only the files that hold them are read, and one is kept in memory."""
        stop = min(start + size, self.rows)
        found, first = [], 0
        for end, name in self._ends:
            if first < stop and end > start:
                if self._part is None or self._part[0] != name:
                    self._part = name, self.partition.read_part("prompts", name, ["prompt_id", "text"])
                low = max(start, first)
                found.append(self._part[1].slice(low - first, min(stop, end) - low))
            first = end
        if not found:
            return pa.table({"prompt_id": pa.array([], pa.string()), "text": pa.array([], pa.string())})
        return pa.concat_tables(found)


@dataclass
class Plan:
    """Everything that there is to draw, and what draws it."""

    ctx: Context
    targets: list[Target]
    digest: str
    predictor: NoisePredictor
    units: dict[str, float | None]
    _batch_sizes: dict[int, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.ctx.settings.generate.shard_rows

    def undone(self) -> list[tuple[int, int]]:
        """Partition and number of every shard that has no manifest: one listing a partition, no row is read."""
        found = []
        for p, target in enumerate(self.targets):
            if target.output.manifest() is None:
                there = target.output.committed()
                found += [(p, i) for i in range(target.shards(self.size)) if shard_name(i) not in there]
        return found

    def drawer(self) -> Drawer:
        ctx, r = self.ctx, self.ctx.settings.rewards
        self.predictor.check(ctx.generator.id, ctx.generator.latent_shape, ctx.generator.pooled_width)
        generator, decoder = ctx.generator, draft_decoder(ctx)
        if decoder is not None:
            generator = with_decoder(generator, ctx.generator_settings, decoder)
        return Drawer(generator, self.predictor, [ctx.reward(model) for model in (*r.train, *r.held_out)])

    def batch_size(self, partition: int, drawer: Drawer) -> int:
        """Pictures at once. Where it is to be found, whoever asks first finds it and writes it down for all others."""
        given = self.ctx.settings.generate.batch_size
        if given is not None:
            return given
        if partition not in self._batch_sizes:
            output = self.targets[partition].output
            if output.store.read_or_none(output.key(BATCH)) is None:
                first = self._shard((partition, 0), drawer, self.origin(), 1)
                found = {
                    "batch_size": batch.find(drawer, first.prompts, first.plan),
                    "device": device_name(self.ctx.device),
                }
                output.store.create(output.key(BATCH), canonical_json(found))
            self._batch_sizes[partition] = json.loads(output.read_file(BATCH))["batch_size"]
        return self._batch_sizes[partition]

    def origin(self) -> Origin:
        s = self.ctx.settings
        lineage = {
            "generator": s.generator.id,
            "generator_revision": self.ctx.generator.revision,
            "generator_hash": self.ctx.model_hashes["generator"],
            "predictor_hash": self.digest,
            "dtype": s.generator.dtype,
            "draft_decoder": self.targets[0].inputs.get("draft_decoder"),
        }
        return Origin(s.generate, lineage, self.units, {m.name: m.weight for m in s.rewards.train if m.weight})

    def shard(self, pair: tuple[int, int], drawer: Drawer, origin: Origin, commit: Any = None) -> Shard:
        return self._shard(pair, drawer, origin, self.batch_size(pair[0], drawer), commit)

    def _shard(
        self, pair: tuple[int, int], drawer: Drawer, origin: Origin, batch_size: int, commit: Any = None
    ) -> Shard:
        partition, i = pair
        prompts = self.targets[partition].prompts(i * self.size, self.size).to_pylist()
        name = f"partition {partition}, shard {i}"
        return Shard(name, shard_name(i), prompts, drawer, origin, commit, batch_size, first=i == 0)


def prepare(ctx: Context, partitions: ingest.Chain) -> Plan:
    """What is to be drawn. Raises UserError where nothing was trained yet."""
    return _planned(ctx, partitions, _frozen(ctx, partitions))


def _frozen(ctx: Context, partitions: ingest.Chain) -> Frozen:
    found = frozen_predictor(ctx, partitions)
    if found is None:
        raise missing(ctx, STAGE, train.STAGE)
    return found


def _planned(ctx: Context, partitions: ingest.Chain, frozen: Frozen) -> Plan:
    digest, load, units = frozen
    predictor = load()
    targets = [Target(partition, *place(ctx, partition, digest), predictor.kind) for partition in partitions.outputs]
    return Plan(ctx, targets, digest, predictor, units)


def run(ctx: Context, partitions: ingest.Chain) -> tuple[list[Output], bool]:
    """Draws what no earlier run drew; returns every partition's output, and whether all were there already."""
    frozen = _frozen(ctx, partitions)
    outputs = [place(ctx, partition, frozen[0])[0] for partition in partitions.outputs]
    if all(output.manifest() is not None for output in outputs):
        return outputs, True
    started = time.time()
    plan = _planned(ctx, partitions, frozen)
    unfinished = [target for target in plan.targets if target.output.manifest() is None]
    undone, count = plan.undone(), ctx.settings.generate.workers
    spread = count > 1 and len(undone) > 1
    report = engine.Report(_in_processes(ctx, plan, undone, count)) if spread else draw(plan, undone)
    failed = report.failed
    if failed:
        name, reason = next(iter(failed.items()))
        raise StageFailed(
            f"{len(failed)} of {len(undone)} shards failed, the first ({name}) with: {reason}; run again to draw them"
        )
    for target in unfinished:
        finish(plan, target)
        # Where others drew, and who knows on what, pictures are not expected again to the bit.
        device = None if spread or not undone else device_name(ctx.device)
        facts = {"device": device, "batch": report.batch, "waited": round(report.waited, 3), "drawn": len(undone)}
        target.output.write_run(environment(started, **facts))
    return outputs, False


def draw(
    plan: Plan, pairs: Sequence[tuple[int, int]], step: Callable[[Uplift], None] | None = None, *, part: bool = False
) -> engine.Report:
    """Draws these shards in this process and commits them. Raises UserError; other errors are in the report.

    `step` is told what each written shard gained. Progress counts all prompts that there are, or these shards' alone
    where they are a `part` of what is drawn elsewhere.
    """
    if not pairs:
        return engine.Report()
    ctx = plan.ctx
    drawer, origin = plan.drawer(), plan.origin()
    left = Counter[int]()
    for p, i in pairs:
        left[p] += max(0, min(plan.size, plan.targets[p].rows - i * plan.size))
    for p in left:
        plan.batch_size(p, drawer)  # while nothing else is at work
    total = left.total() if part else sum(target.rows for target in plan.targets)
    live = Live(ctx, total - left.total(), total)
    tallies = {p: Tally(plan, p, rows) for p, rows in left.items()}

    def commit_to(p: int) -> Callable[[Shard, Callable[[], Built]], None]:
        def commit(shard: Shard, build: Callable[[], Built]) -> None:
            def checked() -> Built:
                built = build()
                tallies[p].add(built[1])
                return built

            plan.targets[p].output.commit_shard(shard.part, checked, row_group_rows=100)

        return commit

    def written(work: engine.Work) -> None:
        assert isinstance(work, Shard)
        live.written(work)
        if step is not None:
            step(work.uplift)

    shards = Lazy(pairs, lambda pair: plan.shard(pair, drawer, origin, commit_to(pair[0])))
    encoders = ctx.settings.generate.encoders or _cores()
    report = engine.run(shards, encoders=encoders, drawn=live.drawn, progress=written)
    report.batch = drawer.limit
    return report


class Live:
    """How far the drawing is, and what the noise gained so far. A prompt counts when its last picture is drawn."""

    def __init__(self, ctx: Context, done: int, total: int) -> None:
        self.ctx, self.done, self.total = ctx, done, total
        self.open: dict[str, tuple[int, Uplift]] = {}  # prompts and gains of shards that are not written yet
        self.uplift = Uplift()
        self.shown = done

    def drawn(self, work: engine.Work) -> None:
        assert isinstance(work, Shard)
        self.open[work.name] = work.drawn, work.uplift
        self._show()

    def written(self, shard: Shard) -> None:
        self.open.pop(shard.name, None)
        self.done += len(shard.prompts)
        self.uplift.merge(shard.uplift)
        self._show()

    def _show(self) -> None:
        uplift, done = Uplift(), self.done
        uplift.merge(self.uplift)
        for drawn, gained in self.open.values():
            done += drawn
            uplift.merge(gained)
        # A shard that is drawn again does not turn it back, and the end is reached when everything is written.
        self.shown = max(self.shown, min(done, self.total - bool(self.open)))
        self.ctx.progress(STAGE, self.shown, self.total, uplift.note or "prompts")


class Lazy(Sequence[engine.Work]):
    """Shards that exist while they are at work, so that a run of a million does not hold their prompts."""

    def __init__(self, pairs: Sequence[Any], make: Callable[[Any], engine.Work]) -> None:
        self.pairs, self.make = pairs, make

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any) -> Any:
        return self.make(self.pairs[index])


class Tally:
    """Counts rows and bad ones as shards are built, and stops the run before it fills the store with failures."""

    def __init__(self, plan: Plan, partition: int, prompts: int) -> None:
        self.url, self.s = plan.targets[partition].output.url, plan.ctx.settings.generate
        self.enough = min(ENOUGH, prompts * self.s.images_per_prompt)
        self.rows, self.reasons, self.lock = 0, dict[str, int](), threading.Lock()

    def add(self, statistics: dict[str, Any]) -> None:
        """Raises PahiError when too many rows are bad."""
        with self.lock:
            self.rows += statistics["images"]
            for reason, count in statistics["reasons"].items():
                self.reasons[reason] = self.reasons.get(reason, 0) + count
            bad = sum(self.reasons.values())
            if self.rows >= self.enough and bad > self.s.max_bad_fraction * self.rows:
                worst = sorted(self.reasons.items(), key=lambda item: -item[1])[:3]
                why = ", ".join(f"{count} times {reason!r}" for reason, count in worst)
                raise PahiError(
                    f"{bad} of {self.rows} pictures failed ({why}), more than generate.max_bad_fraction = "
                    f"{self.s.max_bad_fraction} allows, in {self.url}: mend the cause, or raise the fraction, and run "
                    "again"
                )


def finish(plan: Plan, target: Target) -> None:
    """Reconciles a partition's shards, which may have been drawn anywhere, and writes its manifest."""
    shards = [shard_name(i) for i in range(target.shards(plan.size))]
    entries = target.output.shard_manifests(shards)
    tally = Tally(plan, plan.targets.index(target), target.rows)
    for i, (shard, entry) in enumerate(zip(shards, entries, strict=True)):
        if entry is None:
            raise StageFailed(f"{target.output.url}: shard {shard} is missing; run again to draw it")
        ids = target.prompts(i * plan.size, plan.size).column("prompt_id").to_pylist()
        planned, rows = kept_rows(ids, plan.ctx.settings.generate, target.kind), entry["tables"]["images"]["rows"]
        if rows != planned:
            raise PahiError(f"{target.output.url}: {planned} pictures were planned in {shard} and {rows} written")
        tally.add(entry["statistics"])
    summary = {
        "prompts": target.rows,
        "images": tally.rows,
        "failed": sum(tally.reasons.values()),
        "reasons": tally.reasons,
    }
    target.output.finish(
        version=VERSION, settings=target.settings, inputs=target.inputs, shards=shards, summary=summary
    )


# ------------------------------------------------------------------------------------------------------------ fan-out


def groups(settings: Settings, count: int) -> list[workers.Group]:
    """At most `count` groups of the shards that nobody has drawn yet; empty where all are there."""
    ctx = Context(settings)
    return workers.split(prepare(ctx, ingest.chain(ctx)).undone(), count, per_worker=1)


def draw_group(settings: Settings, group: workers.Group, progress: Any = None) -> dict[str, Any]:
    """Draws one group's shards, less those that are there meanwhile. Raises StageFailed when some of them failed."""
    ctx = Context(settings, progress) if progress else Context(settings)
    plan = prepare(ctx, ingest.chain(ctx))
    mine = []
    for partition, shards in itertools.groupby(sorted(group), key=lambda pair: pair[0]):
        numbers = [shard for _, shard in shards]
        # Its own shards' manifests alone: a listing of all of them would be made by every group.
        there = plan.targets[partition].output.shard_manifests([shard_name(i) for i in numbers])
        mine += [(partition, i) for i, entry in zip(numbers, there, strict=True) if entry is None]
    report = draw(plan, mine, part=True)
    if report.failed:
        raise StageFailed(f"{len(report.failed)} of {len(mine)} shards failed: {next(iter(report.failed.values()))}")
    return {"shards": len(group), "drawn": len(mine), "seconds": round(report.seconds, 2)}


def _in_processes(ctx: Context, plan: Plan, undone: list[tuple[int, int]], count: int) -> dict[str, str]:
    done, uplift = 0, Uplift()

    def step(gained: Uplift) -> None:
        nonlocal done
        done += 1
        uplift.merge(gained)
        ctx.progress(STAGE, done, len(undone), f"shards, {uplift.note}" if uplift.note else "shards")

    gpus = torch.cuda.device_count() if ctx.settings.device == "auto" else 0
    cores = max(1, _cores() // count)

    def arguments(number: int) -> tuple[Any, ...]:
        own = {"device": f"cuda:{number % gpus}"} if gpus else {}
        own["threads"] = ctx.settings.threads or cores  # type: ignore[assignment]
        drawing = ctx.settings.generate.model_copy(update={"encoders": ctx.settings.generate.encoders or cores})
        return (ctx.settings.model_copy(update=own | {"generate": drawing}).model_dump_json(),)

    return workers.run_groups(workers.split(undone, count), count, _worker, arguments, step)


def _worker(connection: Connection, settings: str) -> None:
    """A process of `_in_processes`: the models are loaded once, for all of its groups."""
    ctx = Context(Settings.model_validate_json(settings))
    try:
        plan = prepare(ctx, ingest.chain(ctx))
        for group in iter(connection.recv, None):
            report = draw(plan, group, lambda gained: connection.send(("step", gained)))
            connection.send(("done", report.failed))
    except PahiError as error:
        connection.send(("fatal", (error.exit_code, str(error))))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # whoever started this is gone


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """What rows are bit for bit the same on: the GPU's name, or the CPU's architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
