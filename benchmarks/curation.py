"""Curation's selection over millions of scores: seconds and peak memory, of a process of its own each.

    python benchmarks/curation.py                     10,000 to 1,000,000 rows of scores
    python benchmarks/curation.py --rows 10000000     the size that is promised: at most 60 s and 2 GB

Every score filter is on. Pictures are not read: their rows are there, their bytes are not. Making the tables is not
counted; reading them from Parquet is.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pahi.curation.select import LIGHT, PICTURES, PROMPT_COLUMNS, SCORED, Selection
from pahi.settings import Curate, Preferences

REWARDS = ("alpha", "beta")
SEEDS, PART = 8, 200_000  # pictures a prompt, and a file
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


def make(folder: Path, rows: int) -> None:
    """`rows` rows of scores, two a picture; each tenth prompt has control pictures of the same noise."""
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
        pq.write_table(table, folder / f"images-{part:05d}.parquet", compression="zstd")
        common = rng.normal(size=n) - control
        columns = [
            np.repeat(np.array(image_ids, dtype=object), len(REWARDS)),
            np.tile(np.array(REWARDS, dtype=object), n),
            (20 + np.repeat(common, len(REWARDS)) + 0.5 * rng.normal(size=n * len(REWARDS))).astype(np.float32),
            np.ones(n * len(REWARDS), dtype=np.float32),
        ]
        table = pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, SCORED, strict=True)], schema=SCORED)
        pq.write_table(table, folder / f"scores-{part:05d}.parquet", compression="zstd")


def read(folder: Path, kind: str) -> Iterator[pa.Table]:
    for path in sorted(folder.glob(f"{kind}-*.parquet")):
        with pq.ParquetFile(path) as file:
            yield file.read()


def select(folder: Path) -> None:
    """Prints what a selection took, as JSON."""
    from pahi.curation.preferences import choose_pairs

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        selection = Selection(SETTINGS, {"alpha": "train", "beta": "held_out"}, scratch)
        prompts = pq.read_table(folder / "prompts.parquet", columns=PROMPT_COLUMNS)
        selection.load(read(folder, "images"), read(folder, "scores"), prompts)
        del prompts
        loaded = time.perf_counter()
        selection.run()
        choose_pairs(selection, SETTINGS.preferences)
        seconds = time.perf_counter() - started
        disk = sum(p.stat().st_size for p in Path(scratch).rglob("*") if p.is_file())
        found = {
            "seconds": seconds,
            "reading": loaded - started,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "disk_mb": disk / 1e6,
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
    print("| rows of scores | pictures | seconds | of it reading | peak MB | scratch MB | kept | pairs |")
    print("|---|---|---|---|---|---|---|---|")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), rows)
            command = [sys.executable, __file__, "--select", folder]
            f = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"| {rows:,} | {rows // len(REWARDS):,} | {f['seconds']:.1f} | {f['reading']:.1f} | {f['peak_mb']:.0f} | "
            f"{f['disk_mb']:.0f} | {f['kept']:,} | {f['pairs']:,} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
