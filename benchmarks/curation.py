"""Curation's selection over millions of scores: seconds and peak memory, of a process of its own each.

    python benchmarks/curation.py                     10,000 to 1,000,000 rows of scores
    python benchmarks/curation.py --rows 10000000     the size that is promised: at most 60 s and 2 GB

Every score filter is on. Pictures are not read: their rows are there, their bytes are not. The tables lie in a store,
in shards of 2,048 pictures, as the generation stage writes them. Making them is not counted; reading them is.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pahi.artifacts import Output, Store
from pahi.artifacts.output import shard_name
from pahi.curation import reading
from pahi.curation.select import LIGHT, PICTURES, PROMPT_COLUMNS, SCORED, Selection
from pahi.settings import Curate, Preferences

REWARDS = ("alpha", "beta")
SEEDS, PART = 8, 2048  # pictures a prompt, and a shard
BOUND = 10_000_000, 60, 2000  # rows, and for them seconds and MB on two cores
SETTINGS = Curate(
    weights={"alpha": 2, "beta": 1},
    min_score={"alpha": 18},
    min_quantile={"beta": 0.1},
    min_uplift={"alpha": -1},
    max_disagreement=2.5,
    pareto=True,
    top_k=3,
    quotas={"kind": 200_000, "source": 400_000},
    keep_fraction=0.8,
    preferences=Preferences(per_prompt=1),
)


def drawn(folder: Path) -> Output:
    return Output(Store(str(folder)), "benchmark", "generate", "0" * 12)


def make(folder: Path, rows: int) -> None:
    """`rows` rows of scores, two a picture; each tenth prompt has control pictures of the same noise."""
    files = {}
    for name in ("images", "scores"):
        files[name] = Path(drawn(folder).store.path(drawn(folder).key(name)))
        files[name].mkdir(parents=True)
    rng = np.random.default_rng(0)
    pictures = rows // len(REWARDS)
    prompts = -(-pictures // SEEDS)
    names = [f"{i:020x}" for i in rng.permutation(prompts)]
    ids = np.array(names, dtype=object)
    kinds, sources = ("counting", "colours", "position", "single", "two", "attribution"), ("parti", "hpd", "own")
    pq.write_table(
        pa.table(
            {
                "prompt_id": names,
                "source": [sources[i % 3] for i in range(prompts)],
                "kind": [kinds[i % 6] for i in range(prompts)],
                "group": names,
                "cluster": names,
                "split": [("train", "validation", "test")[min(i % 10, 2)] for i in range(prompts)],
            }
        ),
        folder / "prompts.parquet",
    )
    for part, start in enumerate(range(0, pictures, PART)):
        index = np.arange(start, min(start + PART, pictures))
        prompt, place = index // SEEDS, index % SEEDS
        control = (prompt % 10 == 0) & (place >= SEEDS // 2)
        seed = 1000 + np.where(control, place - SEEDS // 2, place)
        arms = np.where(control, "standard", "pahi")
        of = ids[prompt]
        image_ids = [f"{p}-{a}-{s}" for p, a, s in zip(of, arms, seed, strict=True)]
        n = len(index)
        digests = [f"{i:016x}" * 4 for i in rng.integers(0, 2**62, n)]
        images = [image_ids, of, seed, arms, ["ok"] * n, [None] * n, digests]
        schema = pa.schema([PICTURES.field(name) for name in LIGHT])
        table = pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(images, schema, strict=True)], schema=schema)
        pq.write_table(table, files["images"] / f"{shard_name(part)}.parquet", compression="zstd")
        common = rng.normal(size=n) - control
        columns = [
            np.repeat(np.array(image_ids, dtype=object), len(REWARDS)),
            np.tile(np.array(REWARDS, dtype=object), n),
            (20 + np.repeat(common, len(REWARDS)) + 0.5 * rng.normal(size=n * len(REWARDS))).astype(np.float32),
            np.ones(n * len(REWARDS), dtype=np.float32),
        ]
        table = pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, SCORED, strict=True)], schema=SCORED)
        pq.write_table(table, files["scores"] / f"{shard_name(part)}.parquet", compression="zstd")


@contextmanager
def watched(folder: Path) -> Iterator[list[int]]:
    """The most bytes that lay in a folder, looked at five times a second."""
    most, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(0.2):
            with suppress(FileNotFoundError):  # one that went meanwhile
                most[0] = max(most[0], sum(path.stat().st_size for path in folder.iterdir()))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield most
    done.set()
    thread.join()


def select(folder: Path) -> None:
    """Prints what a selection took, as JSON."""
    from pahi.curation.preferences import choose_pairs

    output = drawn(folder)
    parts = [(output, Path(key).stem) for key in output.store.list(f"{output.prefix}/images")]
    started, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as scratch, watched(Path(scratch)) as most:
        selection = Selection(SETTINGS, {"alpha": "train", "beta": "held_out"}, scratch)
        prompts = pq.read_table(folder / "prompts.parquet", columns=PROMPT_COLUMNS)
        images, scores = (
            reading.columns(parts, table, names) for table, names in (("images", LIGHT), ("scores", SCORED.names))
        )
        selection.load(images, scores, prompts)
        del prompts
        loaded = time.perf_counter()
        selection.run()
        choose_pairs(selection, SETTINGS.preferences)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        found = {
            "seconds": seconds,
            "cpu": cpu,
            "reading": loaded - started,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "disk_mb": most[0] / 1e6,
            "kept": selection.funnel[-1]["rows"],
            "pairs": selection.count("select count(*) from pairs"),
        }
        selection.close()
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--select", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.select:
        return select(Path(arguments.select))
    print("| rows of scores | pictures | seconds | of it reading | CPU seconds | peak MB | scratch MB | kept | pairs |")
    print("|---|---|---|---|---|---|---|---|---|")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), rows)
            command = [sys.executable, __file__, "--select", folder]
            f = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"| {rows:,} | {rows // len(REWARDS):,} | {f['seconds']:.1f} | {f['reading']:.1f} | {f['cpu']:.1f} | "
            f"{f['peak_mb']:.0f} | {f['disk_mb']:.0f} | {f['kept']:,} | {f['pairs']:,} |",
            flush=True,
        )
        if rows == BOUND[0]:
            met = "met" if f["seconds"] <= BOUND[1] and f["peak_mb"] <= BOUND[2] else "NOT met"
            print(f"bound: {BOUND[1]} s, {BOUND[2]} MB: {met}", file=sys.stderr)


if __name__ == "__main__":
    main()
