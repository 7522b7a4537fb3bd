"""datatrove's pipelines over JSON lines, with the work that `ingestion.py` does: what it is compared with.

    PYTHON benchmarks/parts/datatrove_pipelines.py FOLDER exact           of *.jsonl; prints JSON
    PYTHON benchmarks/parts/datatrove_pipelines.py FOLDER minhash 5 14 8  words a shingle, buckets, hashes a bucket

The same cleaning (as few lines as it takes: NFKC, entities, control characters, white space), the same filters, then
datatrove's own duplicates: ExactDedup's three steps, or MinHash's four with the clusters recorded. Hashes are xxhash's,
its default. Words are divided at spaces, which takes less time than the tokenizers that datatrove brings. A task a file
of the folder, a process a core. What is not done: originals, flags, rejects with reasons, splits, a manifest.

It needs datatrove and nothing of ours, so that it runs in an environment of its own.
"""

import html
import json
import os
import re
import resource
import sys
import tempfile
import time
import unicodedata
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.exact_dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import LambdaFilter, RegexFilter
from datatrove.pipeline.formatters.base import BaseFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.word_tokenizers import WordTokenizer

CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f\u200b-\u200f\u2060\ufeff]")


class Cleaned(BaseFormatter):
    name = "cleaning"

    def format(self, text: str) -> str:
        return " ".join(CONTROL.sub("", html.unescape(unicodedata.normalize("NFKC", text))).split())


class Spaces(WordTokenizer):
    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


def varied(document: Document) -> bool:
    words = document.text.casefold().split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return not triples or 1 - len(set(triples)) / len(triples) <= 0.5


def content(document: Document) -> str:
    return document.text


def prepared(folder: Path, cleaned: Path) -> list[PipelineStep]:
    """What both begin with; leaves the cleaned documents for the last step."""
    return [
        JsonlReader(str(folder)),
        Cleaned(),
        LambdaFilter(lambda document: 3 <= len(document.text) <= 2000),
        RegexFilter("(?i)watermark"),
        LambdaFilter(varied),
        JsonlWriter(str(cleaned), compression=None),
    ]


def exact(folder: Path, root: Path, files: int) -> list[tuple[list[PipelineStep], int]]:
    config = ExactDedupConfig(content)
    signatures, found = str(root / "signatures"), str(root / "found")
    return [
        ([*prepared(folder, root / "cleaned"), ExactDedupSignature(signatures, config)], files),
        ([ExactFindDedups(signatures, found, config)], 1),
        ([JsonlReader(str(root / "cleaned")), ExactDedupFilter(found, config), written(root)], files),
    ]


def minhash(folder: Path, root: Path, files: int, *shape: int) -> list[tuple[list[PipelineStep], int]]:
    config = MinhashConfig(*shape)
    signatures, buckets, found = str(root / "signatures"), str(root / "buckets"), str(root / "found")
    return [
        ([*prepared(folder, root / "cleaned"), MinhashDedupSignature(signatures, config, Spaces())], files),
        ([MinhashDedupBuckets(signatures, buckets, config=config)], config.num_buckets),
        ([MinhashDedupCluster(buckets, found, config, save_cluster_id=True)], 1),
        ([JsonlReader(str(root / "cleaned")), MinhashDedupFilter(found), written(root)], files),
    ]


def written(root: Path) -> JsonlWriter:
    return JsonlWriter(str(root / "out"), compression=None)


def clusters(root: Path, files: int) -> np.ndarray:
    """(documents of clusters, 2) int64: the document's id, its cluster."""
    found = []
    for file in range(files):
        lines = (root / "cleaned" / f"{file:05d}.jsonl").read_text().splitlines()
        ids = np.array([int(json.loads(line)["id"]) for line in lines])
        pairs = np.fromfile(root / "found" / f"{file:06d}.clusters", "<u4").reshape(-1, 2).astype(np.int64)
        found.append(np.stack([ids[pairs[:, 0]], pairs[:, 1]], axis=1))
    return np.concatenate(found)


def cpu_seconds() -> float:
    """Of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_gb() -> float:
    """The most memory that this process had at once, as Linux says."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20


def main(folder: Path, which: str, shape: list[int]) -> None:
    files, cores = len(list(folder.glob("*.jsonl"))), len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        steps = exact(folder, root, files) if which == "exact" else minhash(folder, root, files, *shape)
        imported = peak_gb()
        started, cpu = time.perf_counter(), cpu_seconds()
        for number, (step, tasks) in enumerate(steps):
            executor = LocalPipelineExecutor(
                step, tasks=tasks, workers=min(cores, tasks), start_method="fork", logging_dir=f"{root}/logs/{number}"
            )
            executor.run()
        seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu
        found = {
            "seconds": seconds,
            "cpu": cpu,
            "memory": max(peak_gb(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20),
            "imports": imported,
            "kept": sum(len(file.read_text().splitlines()) for file in (root / "out").glob("*.jsonl")),
        }
        if which == "minhash":
            np.save(folder / "clusters.npy", clusters(root, files))
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [int(value) for value in sys.argv[3:]])
