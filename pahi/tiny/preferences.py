"""Preference pairs: a right scene, and the same prompt's scene spoiled in one of many ways.

What a reward learns from, and what it is tested on. Labels come from how a picture was made, never from the oracle.
"""

import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from pahi.tiny import scenes
from pahi.tiny.scenes import Scene, Spec

# Ways that give a whole scene of something else; `scenes.alter` chooses among those that a spec has.
WRONG = ("shape", "color", "count", "position", "swap", "size", "background")
DAMAGE = ("missing", "extra", "blur", "smear", "noise", "ghost")
MODELS = ("vae", "model")  # artefacts of a bad latent; what a generator draws against a right scene


@dataclass(frozen=True)
class Picture:
    """A picture of a prompt, how it was spoiled ("right" where it was not), and its scene where one is whole."""

    image: Image.Image
    way: str
    scene: Scene | None


def right(spec: Spec, rng: random.Random) -> Picture:
    """A scene that shows `spec`."""
    scene = scenes.compose(spec, rng)
    return Picture(scenes.draw(scene), "right", scene)


def spoil(spec: Spec, good: Picture, rng: random.Random, wrong_share: float = 0.6) -> Picture:
    """A picture worse than `good` for `spec`: something else is shown, or the right thing is shown badly."""
    if rng.random() < wrong_share:
        way, other = scenes.alter(spec, rng)
        scene = scenes.compose(other, rng)
        return Picture(scenes.draw(scene), way, scene)
    assert good.scene is not None
    way = rng.choice([w for w in DAMAGE if w != "extra" or _room(good.scene)])
    if way == "missing":
        things = list(good.scene.things)
        things.pop(rng.randrange(len(things)))
        scene = replace(good.scene, things=tuple(things))
        return Picture(scenes.draw(scene), way, scene if things else None)
    if way == "extra":
        column, row = rng.choice(_room(good.scene))
        thing = scenes.in_quarter(rng.choice(scenes.SHAPES), rng.choice(list(scenes.COLORS)), column, row)
        if abs(good.scene.things[0].cx - scenes.SIZE / 2) < scenes.SIZE / 8:  # in the middle: corners have little room
            thing = replace(thing, cx=11 + 42 * column, cy=11 + 42 * row, r=7.0)
        return Picture(scenes.draw(replace(good.scene, things=(*good.scene.things, thing))), way, None)
    if way == "ghost":
        other_scene = scenes.compose(scenes.alter(spec, rng)[1], rng)
        image = Image.blend(good.image, scenes.draw(other_scene), rng.uniform(0.25, 0.75))
    elif way == "blur":
        image = good.image.filter(ImageFilter.GaussianBlur(rng.uniform(1.2, 4)))
    elif way == "smear":
        low = rng.choice([6, 8, 10, 12])
        image = good.image.resize((low, low), Image.Resampling.BILINEAR).resize((64, 64), Image.Resampling.BICUBIC)
    else:
        dirt = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(15, 60), (64, 64, 3))
        image = Image.fromarray((np.asarray(good.image) + dirt).clip(0, 255).astype(np.uint8))
    return Picture(image, way, None)


def _room(scene: Scene) -> list[tuple[int, int]]:
    """Quarters of the picture (column, row) in whose middle no thing lies."""

    def free(*middle: float) -> bool:
        return all(max(abs(t.cx - middle[0]), abs(t.cy - middle[1])) > scenes.SIZE / 8 for t in scene.things)

    return [q for q in scenes.QUARTERS if free(*(scenes.SIZE / 4 + at * scenes.SIZE / 2 for at in q))]


@torch.no_grad()
def through_vae(vae: torch.nn.Module, pixels: Tensor, dirt: Tensor | None = None) -> Tensor:
    """(n, 3, 64, 64) uint8 -> after the autoencoder, with `dirt` (n, 4, 16, 16) added to unit-scale latents."""
    parts = []
    for start in range(0, len(pixels), 128):
        x = pixels[start : start + 128].float() / 127.5 - 1
        z = vae.encode(x).latent_dist.mode()  # type: ignore[operator]
        if dirt is not None:
            z = z + dirt[start : start + 128] / vae.config.scaling_factor  # type: ignore[operator,union-attr]
        out = vae.decode(z).sample  # type: ignore[operator]
        parts.append(((out.clamp(-1, 1) + 1) * 127.5).round().byte())
    return torch.cat(parts)
