"""What the store holds, whether it is whole, and what nothing refers to any more."""

import importlib
import io
import json
import platform
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
from pahi.artifacts.schemas import VERSION_KEY
from pahi.artifacts.store import AGE
from pahi.errors import PahiError, UserError
from pahi.generation.pictures import encode, pixels_sha256
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
        inspection = _Inspection()
        for shard in manifest.data["shards"]:
            for table, entry in shard["tables"].items():
                key = output.key(f"{table}/{shard['name']}.parquet")
                problem = inspection.problem(table, ctx.store.read_or_none(key), entry)
                if problem:
                    damaged.append((shard["name"], f"{table}/{shard['name']}.parquet: {problem}"))
        for name, entry in manifest.data["files"].items():
            body = ctx.store.read_or_none(output.key(name))
            if body is None or content_hash(body) != entry["sha256"]:
                damaged.append(("", f"{name}: {'missing' if body is None else 'sha256 differs'}"))
        twice = inspection.twice() if not damaged else 0
        if damaged and repair:
            _withdraw(output, manifest.data, {shard for shard, _ in damaged if shard})
        detail = "; ".join(text for _, text in damaged) or "hashes, counts and schemas agree"
        if damaged:
            detail += "; withdrawn, run again to replace it" if repair else "; `pahi verify --repair`, then run again"
        if twice:
            detail = f"{twice} of {manifest.rows('images')} images are there more than once"
        checks.append({"check": output.prefix, "ok": not damaged and not twice, "detail": detail})
    if rows and all(check["ok"] for check in checks):
        checks += redraw(ctx, rows)
    return checks


class _Inspection:
    """Looks at one output's shards, one at a time."""

    def __init__(self) -> None:
        self.schemas: dict[str, pa.Schema] = {}
        self.ids: list[np.ndarray] = []  # 8 bytes an image

    def problem(self, table: str, data: bytes | None, entry: dict[str, Any]) -> str | None:
        if data is None:
            return "missing"
        if content_hash(data) != entry["sha256"]:
            return "sha256 differs"
        try:
            file = pq.ParquetFile(io.BytesIO(data))
            schema = file.schema_arrow
            if table == "images" and "image_id" in schema.names:
                ids = file.read(["image_id"]).column(0).to_pylist()
                self.ids.append(np.fromiter(map(hash, ids), np.int64, len(ids)))
        except (pa.ArrowInvalid, OSError):
            return "not Parquet"
        if file.metadata.num_rows != entry["rows"]:
            return "row count differs"
        if VERSION_KEY not in (schema.metadata or {}):
            return "no schema version"
        if not schema.equals(self.schemas.setdefault(table, schema)):
            return "schema differs from the first shard's"
        return None

    def twice(self) -> int:
        ids = np.concatenate(self.ids) if self.ids else np.empty(0)
        return len(ids) - len(np.unique(ids))


def _withdraw(output: Output, manifest: dict[str, Any], shards: set[str]) -> None:
    # The dataset's manifest goes first: from then on no reader believes any of it.
    output.store.delete(output.key("manifest.json"))
    for shard in manifest["shards"]:
        if shard["name"] in shards:
            output.store.delete(output.key(f"_manifest/{shard['name']}.json"))
            for table in shard["tables"]:
                output.store.delete(output.key(f"{table}/{shard['name']}.parquet"))


def redraw(ctx: Context, rows: int) -> list[Check]:
    """Draws random pictures again from (prompt_id, seed) and the predictor, and compares pixels.

    Bit for bit where they were drawn by one process on this machine, within TOLERANCE elsewhere.
    """
    from PIL import Image

    partitions = ingest.chain(ctx)
    drawn = generate.locate_all(ctx, partitions)
    if drawn is None:
        return [{"check": "redraw", "ok": True, "detail": "these settings have no finished pictures"}]
    plan = generate.prepare(ctx, partitions)
    shards = [(p, shard) for p, output in enumerate(drawn) for shard in output.require().data["shards"]]
    ends = np.cumsum([shard["tables"]["images"]["rows"] for _, shard in shards])
    total = int(ends[-1]) if len(ends) else 0
    chosen = sorted(np.random.default_rng().choice(total, size=min(rows, total), replace=False).tolist())
    drawer, origin = plan.drawer(), plan.origin()
    same, usable, worst, exact = 0, 0, 0.0, True
    for place in chosen:
        which = int(np.searchsorted(ends, place, side="right"))
        partition, entry = shards[which]
        output = drawn[partition]
        row = place - (int(ends[which - 1]) if which else 0)
        columns = ["image", "status", "pixels_sha256", "prompt_id", "seed", "arm"]
        stored = output.read_part("images", entry["name"], columns).slice(row, 1).to_pylist()[0]
        if stored["status"] != "ok":
            continue
        usable += 1
        exact = exact and _here(ctx, output.read_run())
        number = output.require().data["shards"].index(entry)
        shard = plan.shard((partition, number), drawer, origin)
        name = (stored["prompt_id"], stored["seed"], stored["arm"])
        samples = shard.plan
        names = [(shard.prompts[s.prompt]["prompt_id"], s.seed, s.arm) for s in samples]
        # The same batch again, not the row alone: its neighbours move the last bits of a float.
        start = names.index(name) // shard.batch_size * shard.batch_size
        again = drawer.draw(shard.prompts, samples[start : start + shard.batch_size], {})
        again.ready()
        pixels = again.pixels[names.index(name) - start].numpy()
        same += pixels_sha256(pixels) == stored["pixels_sha256"]
        # Both as they are read, since JPEG and WebP do not keep every bit.
        s = ctx.settings.generate
        now, then = (
            np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
            for data in (encode(pixels, s.format, s.quality), stored["image"]["bytes"])
        )
        worst = max(worst, float(np.abs(now - then).mean()) / 255)
    detail = (
        f"{same} of {usable} drawn again to the bit; largest mean difference {worst:.5f}, tolerance {TOLERANCE:.3f}"
    )
    if exact and same < usable:
        detail += "; they were drawn on this very machine, so every one should be"
    return [{"check": "redraw", "ok": worst <= TOLERANCE and (same == usable or not exact), "detail": detail}]


def _here(ctx: Context, run: dict[str, Any]) -> bool:
    """Whether a run was this machine's and in whole batches, so that its pictures can be had again to the bit."""
    import torch

    device = generate.device_name(ctx.device)  # sets the number of threads too
    now = {"host": platform.node(), "torch": torch.__version__, "threads": torch.get_num_threads(), "device": device}
    return run.get("batch") is None and {key: run.get(key) for key in now} == now


def leftovers(store: Store, *, clean: bool = False, age: float = AGE) -> Check:
    """What dead runs left behind and no reader sees; with `clean`, removes it.

    Temporary files and unfinished uploads older than `age` seconds, probes, and shards that the manifest of their
    finished stage does not list.
    """
    found = store.clean(age) if clean else store.leftovers(age)
    keys = store.list("_probe")
    for output in outputs(store):
        manifest = output.manifest()
        if manifest is not None:
            known = {f"_manifest/{shard['name']}.json" for shard in manifest.data["shards"]}
            known |= {
                f"{table}/{shard['name']}.parquet" for shard in manifest.data["shards"] for table in shard["tables"]
            }
            there = [key.removeprefix(f"{output.prefix}/") for key in store.list(output.prefix)]
            keys += [output.key(key) for key in there if "/part-" in f"/{key}" and key not in known]
    if clean:
        for key in keys:
            store.delete(key)
    found += [store.url(key) for key in keys]
    if not found:
        return {"check": "leftovers", "ok": True, "detail": "none of dead runs"}
    shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    what = "removed" if clean else "of dead runs, which `pahi doctor --clean` removes:"
    return {"check": "leftovers", "ok": True, "detail": f"{what} {shown}"}


def doctor(settings: Settings, *, reference: bool = False, clean: bool = False) -> list[Check]:
    """What this machine and this store can do; one row a check, with what to do about it.

    With `reference`, ImageReward's scores beside those of its published package too; with `clean`, what dead runs left
    behind is removed.
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
    attempt("leftovers", lambda: leftovers(ctx.store, clean=clean)["detail"])
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
