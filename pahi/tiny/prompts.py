"""The tiny world's prompts: a stratified part of its scenes, in words.

`python -m pahi.tiny.prompts` writes prompts.jsonl beside this file.
"""

import hashlib
import json
import random
from pathlib import Path

from pahi.tiny.scenes import Spec, all_specs, wording

PATH = Path(__file__).with_name("prompts.jsonl")
# Share of a kind's specs that is kept; where there are few, each is said in several ways instead, so that no kind is
# rare: color_attr alone has more specs than all others together.
KEPT = {"counting": 0.35, "colors": 0.45, "color_attr": 0.17}
WORDINGS = {"single_object": 2, "two_object": 3}
TEST_WORDINGS = {"single_object": 3, "two_object": 5}


def build() -> list[dict[str, str]]:
    """Rows of text, kind, scene and split; texts are unique, and a scene's rows are of its split.

    Kinds are spread evenly, each in the order of a hash of text: the first rows of any number are a fair sample.
    """
    by_kind: dict[str, list[dict[str, str]]] = {}
    for spec in filter(_kept, all_specs()):
        rng = random.Random(spec.key)
        texts: dict[str, None] = {}
        while len(texts) < (TEST_WORDINGS if spec.split == "test" else WORDINGS).get(spec.kind, 1):
            texts[wording(spec, rng)] = None
        by_kind.setdefault(spec.kind, []).extend(
            {"text": text, "kind": spec.kind, "scene": spec.key, "split": spec.split} for text in texts
        )
    placed = []
    for kind, rows in by_kind.items():
        rows.sort(key=lambda row: _digest("order", row["text"]))
        placed += [((i + 0.5) / len(rows), kind, row) for i, row in enumerate(rows)]
    return [row for _, _, row in sorted(placed, key=lambda entry: entry[:2])]


def _kept(spec: Spec) -> bool:
    return _digest("keep", spec.key) % 1000 < 1000 * KEPT.get(spec.kind, 1)


def _digest(purpose: str, text: str) -> int:
    # Another hash for each purpose, none of them the one that splits: what is kept says nothing about the split.
    return int.from_bytes(hashlib.sha256(f"{purpose}:{text}".encode()).digest(), "big")


if __name__ == "__main__":
    PATH.write_text("".join(json.dumps(row) + "\n" for row in build()), newline="\n")
