"""A small model of each kind of reward, in its published layout: a new kind is one more function here."""

from collections.abc import Callable
from pathlib import Path

import open_clip_recipe
import torch
from test_aesthetic import clip as aesthetic_clip
from test_clip_score import bert_and_convnext, clip
from test_image_reward import small_model
from torch import nn
from transformers import CLIPTokenizer

from pahi.rewards.aesthetic import HEAD
from pahi.rewards.hpsv2 import WEIGHTS
from pahi.rewards.image_reward import PUBLISHED_HEAD, Head
from pahi.settings import RewardModel

Shake = Callable[[nn.Module, int], None]
Builder = Callable[[Path, CLIPTokenizer, Shake], None]


def pickscore(folder: Path, tokenizer: CLIPTokenizer, shake: Shake) -> None:
    model = clip(tokenizer)
    shake(model, 1)
    model.save_pretrained(folder)


def clip_score(folder: Path, tokenizer: CLIPTokenizer, shake: Shake) -> None:
    model = bert_and_convnext(tokenizer)
    shake(model, 2)
    model.save_pretrained(folder)


def image_reward(folder: Path, tokenizer: CLIPTokenizer, shake: Shake) -> None:
    model = small_model(tokenizer)
    shake(model, 3)
    model.save_pretrained(folder)


def hpsv2(folder: Path, tokenizer: CLIPTokenizer, shake: Shake) -> None:
    torch.save({"state_dict": open_clip_recipe.weights(len(tokenizer))}, folder / WEIGHTS)


def aesthetic(folder: Path, tokenizer: CLIPTokenizer, shake: Shake) -> None:
    aesthetic_clip(folder, width=24)
    head = Head(24, PUBLISHED_HEAD)
    shake(head, 4)
    torch.save(head.state_dict(), folder / HEAD)


def brightness(images, prompts):
    """A judge without a gradient."""
    return images.reshape(len(images), -1).mean(1)


def callable_(folder: Path, tokenizer: CLIPTokenizer, shake: Shake) -> None:
    """Nothing to make: it is `brightness`."""


BUILDERS: dict[str, Builder] = {
    "aesthetic": aesthetic,
    "callable": callable_,
    "clip_score": clip_score,
    "hpsv2": hpsv2,
    "image_reward": image_reward,
    "pickscore": pickscore,
}


def settings(kind: str, folder: Path) -> RewardModel:
    target = "small:brightness" if kind == "callable" else str(folder)
    return RewardModel.model_validate({"name": f"small_{kind}", "kind": kind, "id": target})
