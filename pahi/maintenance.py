"""What the store holds, whether it is whole, and what nothing refers to any more."""

import importlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pahi import machine
from pahi.artifacts import Output, Store
from pahi.artifacts.fingerprint import content_hash
from pahi.errors import PahiError, UserError
from pahi.generation.pictures import pixels_sha256
from pahi.rewards.files import pinned
from pahi.rewards.load import kind_of, source
from pahi.settings import RewardModel, Settings, reward_kinds
from pahi.stages import STAGES, generate, ingest
from pahi.stages.common import Context

Check = dict[str, Any]
TOLERANCE = 3 / 255  # mean difference of a picture drawn again on another device or library set


def outputs(store: Store, dataset: str | None = None) -> list[Output]:
    """Every stage output there is, finished or not."""
    found = []
    for name in [dataset] if dataset else store.children(""):
        for stage in STAGES:
            for fingerprint in store.children(f"{name}/{stage}"):
                if fingerprint != "_chain":
                    found.append(Output(store, name, stage, fingerprint))
    return found


def list_store(store: Store) -> list[dict[str, Any]]:
    """One row an output: dataset, stage, fingerprint, whether it is finished, rows, bytes."""
    rows = []
    for output in outputs(store):
        manifest = output.manifest()
        tables = [t for shard in manifest.data["shards"] for t in shard["tables"].values()] if manifest else []
        rows.append(
            {
                "dataset": output.dataset,
                "stage": output.stage,
                "fingerprint": output.fingerprint,
                "finished": manifest is not None,
                "rows": sum(t["rows"] for t in tables),
                "bytes": sum(t["bytes"] for t in tables),
            }
        )
    return rows


def garbage(store: Store, dataset: str | None = None) -> list[str]:
    """Prefixes that nothing refers to: ingestions that are in no chain, and what was made from inputs that are gone.

    An unfinished output is never garbage: it may be at work, and a rerun continues it.
    """
    found: list[str] = []
    everything = outputs(store, dataset)
    linked: set[tuple[str, str]] = set()
    for name in {output.dataset for output in everything}:
        for key in store.list(f"{name}/ingest/_chain"):
            linked.add((name, json.loads(store.read(key))["fingerprint"]))
    alive: set[tuple[str, str]] = set()  # dataset and manifest hash
    for output in sorted(everything, key=lambda o: STAGES.index(o.stage)):
        manifest = output.manifest()
        if output.stage == "ingest":
            good = (output.dataset, output.fingerprint) in linked or manifest is None
        elif manifest is None:
            good = True
        else:
            upstream = [h for name, h in manifest.inputs.items() if name.split("/")[0] in STAGES]
            good = all((output.dataset, h) in alive for h in upstream)
        if good and manifest is not None:
            alive.add((output.dataset, manifest.hash))
        if not good:
            found.append(output.prefix)
    return found


def verify(
    settings: Settings, rows: int = 8, *, repair: bool = False, progress: Callable[[str], None] | None = None
) -> list[Check]:
    """Recomputes hashes and counts of every finished output of the dataset, and draws `rows` pictures again.

    With `repair`, the manifests of a damaged shard are withdrawn with its files, so that a rerun writes exactly that
    shard again. One row a check: check, ok, detail.
    """
    ctx = Context(settings)
    mine = outputs(ctx.store, settings.name)
    if not mine:
        raise UserError(f"{ctx.store.root} holds no dataset {settings.name!r}; `pahi ls` shows what there is")
    checks: list[Check] = []
    for output in mine:
        if progress:
            progress(output.prefix)
        manifest = output.manifest()
        if manifest is None:
            checks.append({"check": output.prefix, "ok": True, "detail": "not finished; a rerun continues it"})
            continue
        damaged = []
        for shard in manifest.data["shards"]:
            for table, entry in shard["tables"].items():
                problem = _problem(ctx.store, output.key(f"{table}/{shard['name']}.parquet"), entry)
                if problem:
                    damaged.append((shard["name"], f"{table}/{shard['name']}.parquet: {problem}"))
        for name, entry in manifest.data["files"].items():
            body = ctx.store.read_or_none(output.key(name))
            if body is None or content_hash(body) != entry["sha256"]:
                damaged.append(("", f"{name}: {'missing' if body is None else 'sha256 differs'}"))
        if damaged and repair:
            _withdraw(output, manifest.data, {shard for shard, _ in damaged if shard})
        detail = "; ".join(text for _, text in damaged) or "hashes and counts agree"
        if damaged:
            detail += "; withdrawn, run again to replace it" if repair else "; `pahi verify --repair`, then run again"
        checks.append({"check": output.prefix, "ok": not damaged, "detail": detail})
    if rows and all(check["ok"] for check in checks):
        checks += redraw(ctx, rows)
    return checks


def _problem(store: Store, key: str, entry: dict[str, Any]) -> str | None:
    data = store.read_or_none(key)
    if data is None:
        return "missing"
    if content_hash(data) != entry["sha256"]:
        return "sha256 differs"
    try:
        if pq.read_metadata(io.BytesIO(data)).num_rows != entry["rows"]:
            return "row count differs"
    except (pa.ArrowInvalid, OSError):
        return "not Parquet"
    return None


def _withdraw(output: Output, manifest: dict[str, Any], shards: set[str]) -> None:
    # The dataset's manifest goes first: from then on no reader believes any of it.
    output.store.delete(output.key("manifest.json"))
    for shard in manifest["shards"]:
        if shard["name"] in shards:
            output.store.delete(output.key(f"_manifest/{shard['name']}.json"))
            for table in shard["tables"]:
                output.store.delete(output.key(f"{table}/{shard['name']}.parquet"))


def redraw(ctx: Context, rows: int) -> list[Check]:
    """Draws pictures again from (prompt_id, seed) and the predictor, and compares pixels."""
    from PIL import Image

    partitions = ingest.chain(ctx)
    drawn = generate.locate_all(ctx, partitions)
    frozen = generate.frozen_predictor(ctx, partitions)
    if drawn is None or frozen is None:
        return [{"check": "redraw", "ok": True, "detail": "these settings have no finished pictures"}]
    places = [
        (partition, output, shard, row)
        for partition, output in zip(partitions.outputs, drawn, strict=True)
        for shard in output.require().data["shards"]
        for row in range(shard["tables"]["images"]["rows"])
    ]
    chosen = sorted(np.random.default_rng(0).choice(len(places), size=min(rows, len(places)), replace=False).tolist())
    drawer = generate.Drawer(ctx, frozen[1](), frozen[0], frozen[2])
    size, batch = ctx.settings.generate.shard_rows, ctx.settings.generate.batch_size
    same, usable, worst = 0, 0, 0.0
    for partition, output, shard, row in (places[i] for i in chosen):
        stored = (
            output.read_part("images", shard["name"], ["image", "status", "pixels_sha256"]).slice(row, 1).to_pylist()[0]
        )
        if stored["status"] != "ok":
            continue
        usable += 1
        # The same batch again, not the row alone: its neighbours move the last bits of a float.
        first = output.require().data["shards"].index(shard) * size
        prompts = partition.read("prompts", ["prompt_id", "text"]).slice(first, size).to_pylist()
        drawer.prepare(prompts)
        start = row // batch * batch
        pixels = drawer.draw(prompts, drawer.samples(prompts)[start : start + batch])["pixels"][row - start]
        before = np.asarray(Image.open(io.BytesIO(stored["image"]["bytes"])).convert("RGB"))
        worst = max(worst, float(np.abs(pixels.astype(int) - before).mean()) / 255)
        same += pixels_sha256(pixels) == stored["pixels_sha256"]
    lossy = ctx.settings.generate.format != "png"
    limit = 0.05 if lossy else TOLERANCE
    detail = f"{same} of {usable} drawn again to the bit; largest mean difference {worst:.5f}, tolerance {limit:.3f}"
    return [{"check": "redraw", "ok": worst <= limit, "detail": detail}]


def doctor(settings: Settings, *, reference: bool = False) -> list[Check]:
    """What this machine and this store can do; one row a check, with what to do about it.

    With `reference`, ImageReward's scores beside those of its published package too.
    """
    checks: list[Check] = [machine.python(), machine.torch_and_device(settings.device)]

    def attempt(name: str, work: Callable[[], str]) -> None:
        try:
            checks.append({"check": name, "ok": True, "detail": work()})
        except PahiError as error:
            checks.append({"check": name, "ok": False, "detail": str(error)})

    ctx = Context(settings)
    checks += machine.disks(ctx.store)
    attempt("store", lambda: machine.probe(ctx.store))
    attempt("generator", lambda: f"{settings.generator.id}, weights {ctx.model_hashes['generator'][:12]}")
    for model in ctx.reward_models:
        attempt(f"reward {model.name}", lambda m=model: _describe(ctx, m))  # type: ignore[misc]
    for kind in reward_kinds():
        checks.append({"check": f"kind {kind}", "ok": True, "detail": _published(kind)})
    if reference:
        try:
            checks += _reference(ctx)
        except PahiError as error:
            checks.append({"check": "reference", "ok": False, "detail": str(error)})
    return checks


def _describe(ctx: Context, model: RewardModel) -> str:
    kind = kind_of(model)
    gradient = "with a gradient" if kind.differentiable else "no gradient"
    found = source(model, ctx.checkpoints.find)
    size = sum(int(entry["bytes"]) for entry in pinned(found.folder, kind.files).values()) if kind.files else 0
    loads = f"{type(ctx.reward(model)).__name__} loads"
    return f"{model.kind}, {loads}, {gradient}, {found.hash[:12]}" + (f", {size / 1e6:.1f} MB" if size else "")


def _published(kind: str) -> str:
    """Whether a kind's published checkpoint can be run here, and why not."""
    from huggingface_hub import try_to_load_from_cache

    about = importlib.import_module(f"pahi.rewards.{kind}").KIND
    if about.digest is not None:
        return "any function of this Python: id module:function"
    for repository, patterns in ((about.checkpoint, about.files), (about.base, about.base_files)):
        own = ("tokenizer.json", "vocab.json")
        if not repository or (
            # A checkpoint with a tokenizer of its own needs no base.
            repository == about.base
            and about.checkpoint
            and any(isinstance(try_to_load_from_cache(about.checkpoint, n), str) for n in own)
        ):
            continue
        probe = "config.json" if any(p.startswith("*") for p in patterns) else patterns[0].replace("*", ".json")
        if not isinstance(try_to_load_from_cache(repository, probe), str):
            return (
                f"not now: {repository} is not on this machine; name it in the settings, and "
                "`pahi cache --fetch-only` fetches it where the Hub can be reached"
            )
    if not about.checkpoint:
        return f"{about.base} is here; its own weights ({', '.join(about.files)}) are on no Hub: name their folder"
    return f"{about.checkpoint} is here, licence {about.license}"


def _reference(ctx: Context) -> list[Check]:
    """The published checkpoint of the settings by both networks, or a stand-in of the same size."""
    from pahi.rewards import reference

    reference.interpreter()  # before gigabytes are written
    with tempfile.TemporaryDirectory() as scratch:
        folder = tokenizer = Path(scratch)
        what = "random weights"
        for model in ctx.reward_models:
            if model.kind == "image_reward":
                found = source(model, ctx.checkpoints.find)
                if (found.folder / reference.PUBLISHED_WEIGHTS).is_file():
                    folder, tokenizer, what = found.folder, found.base, model.id
        if what == "random weights":
            reference.stand_in(folder)
        return [
            {
                "check": f"reference {row.picture}",
                "ok": row.ok,
                "detail": f"{what}: package {row.package:+.5f}, ours {row.pil:+.5f} of PIL's pixels (difference "
                f"{abs(row.pil - row.package):.6f}), {row.tensor:+.5f} of the tensor "
                f"({abs(row.tensor - row.package):.4f})",
            }
            for row in reference.compare(folder, tokenizer)
        ]
