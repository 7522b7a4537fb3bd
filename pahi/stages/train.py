"""The noise, learned: the predictor, its HPI, and what was measured on the way.

Training again is a decision. A dataset that grew keeps its predictor until `pahi train` is asked for by name; the
newest predictor whose prompts the dataset still begins with is the one that evaluate and generate use.
"""

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from pahi.artifacts import Output
from pahi.artifacts.schemas import METRICS
from pahi.errors import PahiError, UserError
from pahi.predictors import NoisePredictor
from pahi.predictors.base import CONFIG, WEIGHTS
from pahi.predictors.card import CARD, Facts, card
from pahi.stages import cache, ingest
from pahi.stages.common import Context, environment, missing
from pahi.training import trainer
from pahi.training.parallel import Group
from pahi.training.tensorboard import Board

STAGE, VERSION = "train", 2
STATE = "_state/training.pt"
HPI = "hpi"  # beside the predictor, where it was learned on the way


def place(ctx: Context, cached: Output) -> tuple[Output, dict[str, Any], dict[str, str]]:
    """Where the predictor of this cache lies; its settings and inputs."""
    settings = {"train": ctx.settings.train.fingerprinted()}
    inputs = {"cache": cached.require().hash}
    return ctx.output(STAGE, VERSION, settings, inputs), settings, inputs


def newest(ctx: Context, partitions: ingest.Chain) -> tuple[Output, ingest.Chain] | None:
    """The finished predictor trained on most of these partitions, and those partitions; None where there is none."""
    for count in range(len(partitions.outputs), 0, -1):
        prefix = ingest.Chain(partitions.key, partitions.outputs[:count], partitions.sources[:count])
        cached = cache.locate(ctx, prefix)
        if cached is not None:
            output = place(ctx, cached)[0]
            if output.manifest() is not None:
                return output, prefix
    return None


def run(ctx: Context, partitions: ingest.Chain) -> tuple[Output, bool]:
    """Trains on these partitions; returns the predictor's output, and whether it was there already."""
    started = time.time()
    cached = cache.locate(ctx, partitions)
    if cached is None:
        raise missing(ctx, STAGE, cache.STAGE)
    output, settings, inputs = place(ctx, cached)
    if output.manifest() is not None:
        return output, True
    group, own = Group(), ctx.settings.train
    if own.devices > 1 and group.size == 1:
        from pahi.stages import train_worker  # which imports this module

        train_worker.start(ctx, partitions)
        return output, False
    folder = f"{own.tensorboard}/{ctx.settings.name}-{output.fingerprint}" if own.tensorboard else None
    board = Board(folder) if folder else None  # before anything is loaded
    manifest = cached.require()
    data, validation = cache.prompt_sets(ctx, cached, manifest)
    units = manifest.summary["units"]
    rewards = []
    for model in ctx.settings.rewards.train:
        if units[model.name] is None:
            raise UserError(f"reward {model.name!r} has no finite score of any training prompt; look for NaN in it")
        if not units[model.name]:
            raise UserError(f"reward {model.name!r} is the same for every picture of a prompt, so it can teach nothing")
        if model.weight:
            rewards.append((ctx.reward(model), model.weight, units[model.name]))
    judges = [(ctx.reward(m), units[m.name]) for m in ctx.settings.rewards.held_out if units[m.name]]
    state = output.key(STATE)

    def save(packed: bytes) -> None:
        if board is not None:
            board.flush()
        ctx.store.replace(state, packed)

    trained = trainer.train(
        ctx.generator,
        rewards,
        judges,
        data,
        validation,
        own,
        load=lambda: ctx.store.read_or_none(state),
        save=save,
        progress=lambda done, total, note: ctx.progress(STAGE, done, total, note),
        watch=board,
    )
    if board is not None:
        board.close()
    if not group.writes:
        return output, False
    facts = _facts(ctx, trained, settings["train"], len(data), len(validation))
    files = []
    parts = {"predictor": trained.predictor, HPI: trained.hpi}
    for part, predictor in parts.items():
        if predictor is None:
            continue
        # The figures are those of the predictor, not of the HPI that was learned on the way.
        for name, body in _predictor_files(predictor, facts if part == "predictor" else None).items():
            output.put_file(f"{part}/{name}", body)
            files.append(f"{part}/{name}")
    table = pa.Table.from_pylist(trained.metrics, schema=METRICS)
    output.commit_shard("part-00000", lambda: ({"metrics": table}, {}))
    summary = {
        "kind": trained.predictor.kind,
        "best_step": trained.best_step,
        "skipped_steps": trained.skipped_steps,
        "stopped_early": trained.stopped,
        "parameters": sum(p.numel() for p in trained.predictor.parameters()),
        "train_prompts": len(data),
        "left_out_prompts": trained.left_out,
    }
    output.finish(
        version=VERSION, settings=settings, inputs=inputs, shards=["part-00000"], files=files, summary=summary
    )
    output.write_run(environment(started, devices=group.size))
    ctx.store.delete(state)
    return output, False


def _facts(ctx: Context, trained: trainer.Trained, settings: dict[str, Any], train: int, validation: int) -> Facts:
    """What the predictor's card says of its training."""
    s, r = ctx.settings, ctx.settings.rewards
    finite = {name: value for name, value in trained.figures.items() if math.isfinite(value)}
    roles = (("trains", [m for m in r.train if m.weight]), ("held_out", r.held_out))
    return Facts(
        license=s.generator.license,
        revision=ctx.generator.revision,
        settings=settings,
        rewards=[(m.name, role, ctx.model_hashes[f"reward/{m.name}"]) for role, models in roles for m in models],
        figures={n.removeprefix("validation/"): v for n, v in finite.items() if n.startswith("validation/")},
        kl=finite.get("kl"),
        train_prompts=train,
        validation_prompts=validation,
        best_step=trained.best_step,
        stopped=trained.stopped,
    )


def _predictor_files(predictor: NoisePredictor, facts: Facts | None) -> dict[str, bytes]:
    predictor.card = card(predictor.config, sum(p.numel() for p in predictor.parameters()), facts)
    with tempfile.TemporaryDirectory() as folder:
        predictor.save_pretrained(folder)
        return {name: (Path(folder) / name).read_bytes() for name in (CONFIG, WEIGHTS, CARD)}


def load_predictor(ctx: Context, output: Output, part: str = "predictor") -> NoisePredictor:
    """A trained predictor out of the store, onto the run's device."""
    entries = output.require().data["files"]
    with tempfile.TemporaryDirectory() as folder:
        for name in (CONFIG, WEIGHTS):
            key = f"{part}/{name}"
            if key not in entries:
                raise PahiError(f"{output.url} holds no {key}")
            (Path(folder) / name).write_bytes(output.read_file(key))
        return NoisePredictor.from_pretrained(folder).to(ctx.device)
