"""Bulk generation: each figure is a ratio within one run, both sides in turns, the median of the rounds.

    loop       a user's loop in public code: StableDiffusionPipeline one prompt at a time, scored, saved as PNG; and
               what the networks alone gain from the batch
    forward    the networks alone, at the same batch: no noise to make, nothing encoded or written
    write      the write path alone, fed with constant 512x512 pictures, against the encoder on all cores, and against
               the encoder and the sha256 of the pixels that every row carries
    batch      the batch size that `generate.batch_size=null` finds, and its speed against the preset's
    memory     peak memory after few rows and after many
    rerun      a run over finished rows: what is listed and read before anything is drawn
    workers    two processes against one, models loaded in both

`python benchmarks/generation.py [names] [--quick]`; --quick says whether it runs, not how fast.
"""

import argparse
import itertools
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from parts.timing import Work, in_turns, ratio
from parts.user_loop import UserLoop
from PIL import Image

from pahi.artifacts import Output, Store
from pahi.artifacts.fingerprint import canonical_json
from pahi.artifacts.output import shard_name
from pahi.artifacts.schemas import PROMPTS
from pahi.generation import batch, engine
from pahi.generation.drawing import SCORES, Drawer, Drawn
from pahi.generation.host import keep_freed_memory
from pahi.generation.pictures import encode, pixels_sha256
from pahi.generation.plan import kept_rows, plan
from pahi.generation.shard import Origin, Shard
from pahi.generators import standard_noise
from pahi.predictors import NoisePredictor
from pahi.settings import Generate, load_settings
from pahi.stages import generate, ingest
from pahi.stages.common import Context

LINEAGE = {
    "generator": "g",
    "generator_revision": None,
    "generator_hash": "",
    "predictor_hash": "",
    "dtype": "float32",
    "draft_decoder": None,
}
CORES = len(os.sched_getaffinity(0))


def row(name: str, what: str, result: str) -> None:
    print(f"| {name} | {what} | {result} |", flush=True)


def timer(device: str) -> tuple[Callable[[], float], str]:
    """The clock, and what a row says of it: one core that does all has its own, which leaves out the machine's rest."""
    alone = device == "cpu" and CORES == 1
    return (time.process_time, ", CPU seconds") if alone else (time.perf_counter, "")


def tiny(**overrides: Any) -> Context:
    sets = ["rewards.judges=[]", "generate.control_fraction=0", *(f"{k}={v}" for k, v in overrides.items())]
    return Context(load_settings("tiny", overrides=sets))


def embedded_prompts(count: int) -> list[dict[str, Any]]:
    import json

    lines = (resources.files("pahi.tiny") / "prompts.jsonl").read_text().splitlines()
    texts = itertools.cycle(json.loads(line)["text"] for line in lines)
    return [{"prompt_id": f"{i:020x}", "text": text} for i, text in zip(range(count), texts, strict=False)]


def write_shards(shards: int, store: Store, prompts: list[dict[str, Any]], drawer: Any, settings: Generate) -> Any:
    """Runs the engine over so many shards of the same prompts, made as they are needed, into a new place."""
    output = Output(store, "bench", "generate", os.urandom(6).hex())
    origin = Origin(settings, LINEAGE, {}, {})
    commit = lambda shard, build: output.commit_shard(shard.part, build, row_group_rows=100)  # noqa: E731
    size = settings.batch_size or 32

    def make(i: int) -> Shard:
        return Shard(str(i), shard_name(i), prompts, drawer, origin, commit, size, first=i == 0)

    return engine.run(generate.Lazy(range(shards), make), encoders=settings.encoders or CORES)


def networks(names: set[str], dtype: str, rounds: int, count: int) -> None:
    ctx = tiny(**{"generator.dtype": dtype})
    g, prompts, generator = ctx.settings.generate, embedded_prompts(count), ctx.generator
    rewards = [ctx.reward(m) for m in (*ctx.settings.rewards.train, *ctx.settings.rewards.held_out)]
    predictor = NoisePredictor.create("pahi", generator.latent_shape, generator.pooled_width).to(ctx.device)
    drawer, size = Drawer(generator, predictor, rewards), g.batch_size or 32
    eps = standard_noise([p["prompt_id"] for p in prompts], [0] * count, generator.latent_shape).to(ctx.device)
    clock, seconds = timer(ctx.device.type)

    @torch.no_grad()
    def forward(size: int = size) -> None:
        for start in range(0, count, size):
            texts = [p["text"] for p in prompts[start : start + size]]
            conditioning = generator.encode(texts)
            x_T = predictor.draw(conditioning.pooled, eps[start : start + len(texts)])[0]
            images = drawer.decode(generator.denoise(x_T, conditioning))
            for reward in rewards:
                reward.score(images, reward.prepare(texts), texts).cpu()

    with tempfile.TemporaryDirectory() as folder:
        store, reports = Store(folder), []

        def ours() -> None:
            reports.append(write_shards(1, store, prompts, drawer, g))

        what = f"{ctx.device.type}, {dtype}, {torch.get_num_threads()} threads, {count} pictures{seconds}"
        if "loop" in names:
            user, texts = UserLoop(ctx), [p["text"] for p in prompts]
            works = {"ours": ours, "loop": lambda: user(texts, Path(folder)), "ones": lambda: forward(1)}
            times = in_turns(rounds, clock, **works, batched=forward)
            row("loop", what, f"{ratio(times['loop'], times['ours'], 1)} times as fast as a user's loop")
            gain = ratio(times["ones"], times["batched"], 1)
            row("loop", f"of it the networks alone, {size} at once against one", f"{gain} times as fast")
        if "forward" in names:
            reports.clear()
            times = in_turns(rounds, clock, ours=ours, forward=forward)
            busy = statistics.median(1 - r.waited / r.seconds for r in reports[1:])
            row("forward", what, f"{ratio(times['forward'], times['ours'])} of the networks' own speed")
            row("forward", "the device's thread did not wait for encoders or store", f"{busy:.1%} of the time")


def batches(rounds: int, count: int) -> None:
    """The size that is found, in its own time, and whole shards drawn with it and with the preset's."""
    ctx = tiny()
    g, prompts, generator = ctx.settings.generate, embedded_prompts(count), ctx.generator
    rewards = [ctx.reward(m) for m in (*ctx.settings.rewards.train, *ctx.settings.rewards.held_out)]
    predictor = NoisePredictor.create("pahi", generator.latent_shape, generator.pooled_width).to(ctx.device)
    drawer = Drawer(generator, predictor, rewards)
    started = time.perf_counter()
    found = batch.find(drawer, prompts, plan([p["prompt_id"] for p in prompts], g, predictor.kind))
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)

        def at(size: int | None) -> Work:
            return lambda: write_shards(1, store, prompts, drawer, g.model_copy(update={"batch_size": size}))

        times = in_turns(rounds, found=at(found), preset=at(g.batch_size))
    what = f"{ctx.device.type}, {torch.get_num_threads()} threads: {found} pictures at once, found in {seconds:.1f} s"
    row("batch", what, f"{ratio(times['preset'], times['found'])} times as fast as {g.batch_size} at once")


class Constant:
    """A drawer that has drawn already."""

    rewards: tuple[()] = ()
    predictor = NoisePredictor("standard", (1, 1, 1), 1)

    class generator:
        latent_shape = (1, 1, 1)

    def __init__(self, pictures: torch.Tensor) -> None:
        self.pictures = pictures  # (n, h, w, 3)

    def draw(self, prompts: Any, samples: list[Any], pooled: Any) -> Drawn:
        n = len(samples)
        return Drawn(samples, self.pictures[:n], torch.zeros(n, SCORES), [None] * n, [False] * n, lambda: None)


def smooth(count: int, size: int) -> torch.Tensor:
    """Pictures that compress as photographs do: a smooth field with a little noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, size // 32 + 1, size // 32 + 1, 3), dtype=np.uint8)
    large = [np.asarray(Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC)) for c in coarse]
    noisy = np.stack(large).astype(np.int16) + rng.integers(-3, 4, (count, size, size, 3))
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))


def write(rounds: int, count: int) -> None:
    pictures, prompts = smooth(32, 512), embedded_prompts(256)
    clock, seconds = timer("cpu")
    for kind in ("png", "jpeg", "webp"):
        s = Generate(control_fraction=0, format=kind)
        shards = max(1, count // 256 // (4 if kind == "webp" else 1))  # its encoder is so much slower

        def encoder(kind: str = kind, shards: int = shards) -> None:
            with ThreadPoolExecutor(CORES) as pool:
                for _ in pool.map(lambda i: encode(pictures[i % 32].numpy(), kind), range(shards * 256)):
                    pass

        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)

            def ours(s: Generate = s, shards: int = shards, store: Store = store) -> None:
                write_shards(shards, store, prompts, Constant(pictures), s)
                store.delete("bench")

            def hashed(kind: str = kind, shards: int = shards) -> None:
                def one(i: int) -> None:
                    pixels = pictures[i % 32].numpy()
                    encode(pixels, kind)
                    pixels_sha256(pixels)

                with ThreadPoolExecutor(CORES) as pool:
                    for _ in pool.map(one, range(shards * 256)):
                        pass

            times = in_turns(rounds, clock, ours=ours, encoder=encoder, hashed=hashed)
        speed = shards * 256 / statistics.median(times["ours"])
        what = f"{shards * 256} {kind} of 512x512, {CORES} cores, {speed:.0f}/s, to a disk, synced{seconds}"
        row("write", what, f"{ratio(times['encoder'], times['ours'])} of the encoder's own speed")
        row("write", f"the same {kind}", f"{ratio(times['hashed'], times['ours'])} of encoder and sha256")


def memory(few: int, many: int) -> None:
    prompts, drawer = embedded_prompts(1000), Constant(smooth(32, 32)[:, :8, :8].contiguous())
    s, peaks = Generate(control_fraction=0, shard_rows=1000), []
    with tempfile.TemporaryDirectory() as folder:
        for rows in (few, many):
            write_shards(rows // 1000, Store(folder), prompts, drawer, s)
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    what = f"peak after {few:,} rows and after {many:,}"
    row("memory", what, f"{peaks[0]:.0f} and {peaks[1]:.0f} MB, {peaks[1] / peaks[0]:.3f} times")


def rerun(rows: int) -> None:
    """Finished shards as their manifests alone; the prompts are real rows."""
    with tempfile.TemporaryDirectory() as folder:
        ctx = tiny()
        size = ctx.settings.generate.shard_rows
        ctx.store = Store(folder)
        partition = Output(ctx.store, "bench", "ingest", "0" * 12)
        chunk = 10_000
        names = [shard_name(i) for i in range(-(-rows // chunk))]
        for k, name in enumerate(names):
            ids = [f"{i:020x}" for i in range(k * chunk, min((k + 1) * chunk, rows))]
            columns = {f.name: ids if pa.types.is_string(f.type) else [None] * len(ids) for f in PROMPTS}
            columns |= {"row": list(range(len(ids))), "flags": [[]] * len(ids)}
            table = pa.table(columns, schema=PROMPTS)
            partition.commit_shard(name, lambda table=table: ({"prompts": table}, {}))  # type: ignore[misc]
        partition.finish(version=1, settings={}, inputs={}, shards=names, summary={})
        output = Output(ctx.store, "bench", "generate", "0" * 12)
        predictor = NoisePredictor("pahi", (1, 1, 1), 1)
        shards = -(-rows // size)
        for i in range(shards):
            count = kept_rows([f"{j:020x}" for j in range(i * size, min((i + 1) * size, rows))], Generate(), "standard")
            tables = {t: {"rows": count, "bytes": 1, "sha256": "0" * 64} for t in ("images", "scores", "noise")}
            entry = {"name": shard_name(i), "tables": tables}
            entry["statistics"] = {"images": count, "failed": 0, "reasons": {}}
            (Path(folder) / output.key("_manifest")).mkdir(parents=True, exist_ok=True)
            (Path(folder) / output.key(f"_manifest/{shard_name(i)}.json")).write_bytes(canonical_json(entry))

        def once() -> generate.Plan:
            target = generate.Target(partition, output, {}, {}, "pahi")
            return generate.Plan(ctx, [target], "", predictor, {})

        started = time.perf_counter()
        assert once().undone() == []
        found = time.perf_counter() - started
        again = once()
        started = time.perf_counter()
        generate.finish(again, again.targets[0])
        finished = time.perf_counter() - started
        started = time.perf_counter()
        assert once().undone() == [] and output.manifest() is not None
        skipped = time.perf_counter() - started
    what = f"{rows:,} finished rows in {shards:,} shards, a local disk"
    row("rerun", what, f"{found:.2f} s to see that none is missing, {finished:.2f} s to reconcile and finish")
    row("rerun", what, f"{skipped:.2f} s when the stage is finished")


def workers(rounds: int, count: int) -> None:
    """From finished prompts to the finished stage, imports and loading of models included in both."""
    import json

    times: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        texts = (f"a red circle beside {i} blue squares number {i * 7919}" for i in range(count))
        prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        generator = tiny().generator
        predictor = NoisePredictor.create("pahi", generator.latent_shape, generator.pooled_width)
        predictor.save_pretrained(Path(folder) / "predictor")
        for number in range(rounds):
            for processes in (1, 2):
                sets = [
                    f"ingest.sources=[{{path: {prompts}}}]",
                    f"generate.predictor={folder}/predictor",
                    "rewards.judges=[]",
                    f"generate.shard_rows={max(1, count // 16)}",
                    f"generate.workers={processes}",
                    "threads=1",
                ]
                ctx = Context(load_settings("tiny", overrides=sets, root=f"{folder}/{number}-{processes}"))
                ingest.run(ctx)
                started = time.perf_counter()
                generate.run(ctx, ingest.chain(ctx))
                times[processes].append(time.perf_counter() - started)
    what = f"{count} prompts, two processes of one thread against one, {CORES} cores"
    row("workers", what, f"{ratio(times[1], times[2])} times as fast, start included")


def chosen(names: list[str]) -> Iterator[str]:
    every = ("loop", "forward", "batch", "write", "memory", "rerun", "workers")
    yield from names or every


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="which of them; all where none is named")
    parser.add_argument("--quick", action="store_true", help="small sizes and one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="of loop and forward, both sides")
    options = parser.parse_args()
    names, quick = set(chosen(options.names)), options.quick
    rounds = 1 if quick else options.rounds
    keep_freed_memory()  # as the stage does; both sides gain from it
    print("| generation | what | result: median (smallest to largest round) |\n|---|---|---|")
    if names & {"loop", "forward"}:
        for dtype in options.dtypes:
            networks(names, dtype, rounds, 16 if quick else 256)
    if "batch" in names:
        batches(rounds, 16 if quick else 256)
    if "write" in names:
        write(rounds, 256 if quick else 1024)
    if "memory" in names:
        memory(*((2_000, 6_000) if quick else (10_000, 1_000_000)))
    if "rerun" in names:
        rerun(20_000 if quick else 1_000_000)
    if "workers" in names:
        workers(1 if quick else 3, 32 if quick else 2048)


if __name__ == "__main__":
    main()
