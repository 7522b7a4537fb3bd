"""Training specs, pictures and tokens. Nothing here knows a spec of the validation or test split."""

import json
import random
from functools import cache

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from pahi.tiny import scenes
from pahi.tiny.scenes import Spec

CONTEXT = 24  # tokens
# The harder kinds are seen more often.
KIND_WEIGHTS = {
    "single_object": 0.08,
    "two_object": 0.20,
    "counting": 0.20,
    "colors": 0.10,
    "position": 0.24,
    "color_attr": 0.18,
}


def sample_specs(count: int, seed: int, split: str = "train", weights: dict[str, float] = KIND_WEIGHTS) -> list[Spec]:
    """Specs of a split, kinds by `weights`."""
    rng, by_kind = random.Random(seed), _by_kind(split)
    kinds = rng.choices(list(weights), weights=list(weights.values()), k=count)
    return [rng.choice(by_kind[kind]) for kind in kinds]


@cache
def _by_kind(split: str) -> dict[str, list[Spec]]:
    found: dict[str, list[Spec]] = {kind: [] for kind in KIND_WEIGHTS}
    for spec in scenes.all_specs():
        if spec.split == split:
            found[spec.kind].append(spec)
    return found


@cache
def build_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE with the merges of this world's prompts; any other text falls back to bytes."""
    rng = random.Random(0)
    corpus = [scenes.wording(spec, rng) for spec in sample_specs(8000, 0)]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    vocab = alphabet + [letter + "</w>" for letter in alphabet]
    vocab += [a + b for a, b in merges if a + b not in vocab] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(dict.fromkeys(vocab))}, merges=merges, model_max_length=CONTEXT
    )


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(n, CONTEXT) ids."""
    return tokenizer(texts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt").input_ids


SHAPE_STATES = ("absent", "free", *scenes.COLORS)
ATTRIBUTES: dict[str, tuple[str | None, ...]] = {
    "kind": scenes.KINDS,
    "size": (None, *scenes.SIZES),
    "background": (None, *scenes.BACKGROUNDS),
    "relation": (None, *scenes.RELATIONS),
    "count": ("1", "2", "3", "4"),
    "leftmost": (None, *scenes.SHAPES),
    "upmost": (None, *scenes.SHAPES),
    **dict.fromkeys(scenes.SHAPES, SHAPE_STATES),
}


def attributes(specs: list[Spec]) -> Tensor:
    """(n, len(ATTRIBUTES)): what each spec says, as classes."""
    rows = []
    for spec in specs:
        said: dict[str, str | None] = dict.fromkeys(scenes.SHAPES, "absent")
        said |= {item.shape: item.color or "free" for item in spec.items}
        said |= {"kind": spec.kind, "size": spec.size, "background": spec.background, "relation": spec.relation}
        said["count"] = str(spec.items[0].count)
        said |= {"leftmost": None, "upmost": None}
        if spec.relation:
            said["leftmost" if spec.relation == "left" else "upmost"] = spec.items[0].shape
        rows.append([values.index(said[name]) for name, values in ATTRIBUTES.items()])
    return torch.tensor(rows)
