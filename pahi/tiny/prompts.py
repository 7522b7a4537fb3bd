"""The tiny world's prompts: one wording for a stratified part of its scenes.

`python -m pahi.tiny.prompts` writes prompts.jsonl beside this file.
"""

import hashlib
import json
import random
from pathlib import Path

from pahi.tiny.scenes import Spec, all_specs, wording

PATH = Path(__file__).with_name("prompts.jsonl")
COMPOSITIONS = 40  # per cent kept; they are two thirds of all scenes, and every other kind is kept whole


def build() -> list[dict[str, str]]:
    """Rows of text, kind, scene and split; texts and scenes are unique, splits are by scene.

    In the order of a hash of the scene, so that the first rows of any number are a fair sample.
    """
    rows: dict[str, dict[str, str]] = {}
    for spec in sorted(filter(_kept, all_specs()), key=lambda s: _digest("order", s)):
        rng = random.Random(scene_key(spec))
        text = wording(spec, rng)
        while text in rows:
            text = wording(spec, rng)
        rows[text] = {"text": text, "kind": spec.kind, "scene": scene_key(spec), "split": spec.split}
    return list(rows.values())


def scene_key(spec: Spec) -> str:
    """shape/color/size/background/place, with - for what is left free: `circle/red/small/-/left`."""
    return "/".join(value or "-" for value in (spec.shape, spec.color, spec.size, spec.background, spec.place))


def _kept(spec: Spec) -> bool:
    return spec.kind != "composition" or _digest("keep", spec) % 100 < COMPOSITIONS


def _digest(purpose: str, spec: Spec) -> int:
    # Another hash for each purpose, none of them the one that splits: what is kept says nothing about the split.
    return int.from_bytes(hashlib.sha256(f"{purpose}:{scene_key(spec)}".encode()).digest(), "big")


if __name__ == "__main__":
    PATH.write_text("".join(json.dumps(row) + "\n" for row in build()), newline="\n")
