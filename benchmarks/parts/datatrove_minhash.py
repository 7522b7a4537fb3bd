"""datatrove's four steps of MinHash over JSON lines, in two processes: what `ingestion.py` is compared with.

    PYTHON benchmarks/parts/datatrove_minhash.py FOLDER     of 0.jsonl and 1.jsonl; prints JSON

It needs datatrove and nothing of ours, so that it runs in an environment of its own. Words are divided at spaces, which
takes less time than the tokenizers that datatrove brings. Hashes are sha1's; xxhash would be one more package.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WordTokenizer


class Spaces(WordTokenizer):
    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


def main(folder: Path) -> None:
    config = MinhashConfig(n_grams=3, num_buckets=25, hashes_per_bucket=5, hash_config=HashConfig(hash_fc="sha1"))
    with tempfile.TemporaryDirectory() as root:
        signatures, buckets, remove, done = f"{root}/signatures", f"{root}/buckets", f"{root}/remove", Path(root, "out")
        steps = [
            [JsonlReader(str(folder)), MinhashDedupSignature(signatures, config, language=Spaces())],
            [MinhashDedupBuckets(signatures, buckets, config=config)],
            [MinhashDedupCluster(buckets, remove, config=config)],
            [JsonlReader(str(folder)), MinhashDedupFilter(remove), JsonlWriter(str(done), compression=None)],
        ]
        started = time.perf_counter()
        for number, (step, tasks) in enumerate(zip(steps, (2, 25, 1, 2), strict=True)):
            LocalPipelineExecutor(
                step, tasks=tasks, workers=2, start_method="fork", logging_dir=f"{root}/logs/{number}"
            ).run()
        seconds = time.perf_counter() - started
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        found = {
            "seconds": seconds,
            "cpu": sum(one.ru_utime + one.ru_stime for one in used),
            "memory": max(one.ru_maxrss for one in used) / 2**20,
            "imports": 0.0,
            "kept": sum(len(file.read_text().splitlines()) for file in done.glob("*.jsonl")),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
