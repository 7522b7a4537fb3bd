"""The CLIP text encoder, taught to tell what a prompt says before any generator reads it.

CLIP's own encoder comes to Stable Diffusion already trained; here the labels of the scenes take the place of captions:
linear readings of the pooled output, and of the mean of all tokens, must name every attribute of the spec.
"""

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pahi.tiny import scenes
from pahi.tiny.train.data import ATTRIBUTES, CONTEXT, attributes, build_tokenizer, sample_specs, tokens
from pahi.tiny.train.loop import Loop

WIDTH = 96


def text_config(tokenizer: CLIPTokenizer, width: int = WIDTH, layers: int = 2) -> CLIPTextConfig:
    """A CLIP text tower of this world's size."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


class AttributeHeads(nn.Module):
    """Linear readings of a feature, one an attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, len(values)) for values in ATTRIBUTES.values())

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """(n, width) and (n, attributes) -> the mean cross-entropy."""
        losses = [F.cross_entropy(head(features), y) for head, y in zip(self.heads, labels.T, strict=True)]
        return torch.stack(losses).mean()

    def right(self, features: Tensor, labels: Tensor) -> Tensor:
        """(n,): whether every attribute is read right."""
        hits = [head(features).argmax(-1) == y for head, y in zip(self.heads, labels.T, strict=True)]
        return torch.stack(hits).all(0)


def train_text(work: Path, steps: int = 1000) -> CLIPTextModel:
    """The text encoder, frozen."""
    tokenizer = build_tokenizer()
    torch.manual_seed(4)
    modules = nn.ModuleDict(
        {
            "text": CLIPTextModel(text_config(tokenizer)),
            "pooled": AttributeHeads(WIDTH),
            "mean": AttributeHeads(WIDTH),
        }
    )
    finished = (work / "text.pt").exists()
    loop = Loop("text", work, modules, steps, 2e-3, ema=0.99)
    while loop.step < steps:
        specs = sample_specs(128, 1_000 + loop.step)
        rng = random.Random(loop.step)
        ids, labels = tokens(tokenizer, [scenes.wording(s, rng) for s in specs]), attributes(specs)
        out = modules["text"](ids)
        loss = modules["pooled"](out.pooler_output, labels) + modules["mean"](out.last_hidden_state.mean(1), labels)
        loop.update(loss)
    averaged = loop.averaged()
    if finished:
        return averaged["text"]  # type: ignore[return-value]
    specs = sample_specs(2000, 7, "validation")
    rng = random.Random(8)
    with torch.no_grad():
        out = averaged["text"](tokens(tokenizer, [scenes.wording(s, rng) for s in specs]))
        heads: Any = averaged["pooled"]
        right = heads.right(out.pooler_output, attributes(specs)).float().mean()
    print(f"text: {100 * float(right):.1f}% of validation prompts are read right in every attribute")
    return averaged["text"]  # type: ignore[return-value]
