"""Preference pairs: a right scene, and the same prompt's scene spoiled in one of many ways.

What a reward learns from, and what it is tested on. Labels come from how a picture was made, never from the oracle.
"""

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from pahi.tiny import scenes
from pahi.tiny.scenes import Scene, Spec

# Ways that give a whole scene of something else; `scenes.alter` chooses among those that a spec has.
WRONG = ("shape", "color", "count", "position", "swap", "size", "background")
DAMAGE = ("missing", "extra", "blur", "smear", "noise", "ghost")
LATENT = ("vae", "melt")  # a dirty latent; two scenes' latents mixed, as a one-step generator does that is in doubt


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
        cx, cy, r = rng.choice(_room(good.scene))
        thing = scenes.Thing(rng.choice(scenes.SHAPES), rng.choice(list(scenes.COLORS)), cx, cy, r)
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


def exchange(spec: Spec, rng: random.Random) -> Picture | None:
    """A scene with two things' places or colours exchanged, or of the other size; None where a prompt names neither."""
    other, way = scenes.exchanged(spec), "position" if spec.relation else "swap"
    if spec.size:
        other, way = scenes.resized(spec), "size"
    if other == spec:
        return None
    scene = scenes.compose(other, rng)
    return Picture(scenes.draw(scene), way, scene)


def _room(scene: Scene) -> list[tuple[float, float, float]]:
    """Where one more thing has room: centre and half extent. In the quarters, or smaller in the corners."""
    spots = [(16.0 * x, 16.0 * y, scenes.SLOT_SIZE) for x, y in (*scenes.ROW, *scenes.COLUMN, *scenes.QUARTERS)]
    spots += [(x, y, 7.0) for x in (11.0, 53.0) for y in (11.0, 53.0)]

    def free(cx: float, cy: float, r: float) -> bool:
        return all(max(abs(t.cx - cx), abs(t.cy - cy)) > t.r + r for t in scene.things)

    found = [spot for spot in spots if free(*spot)]
    return [spot for spot in found if spot[2] > 7] or found


def doubt(spec: Spec, good: Picture, rng: random.Random) -> Scene:
    """Another scene that `spec` allows, or one of an altered spec where it allows no other or by chance.

    Mostly one of the nearest: who is in doubt is so about one thing, more often than about all.
    """
    assert good.scene is not None
    others = [scene for scene in scenes.possible(spec) if scene != good.scene]
    if not others or rng.random() < 0.3:
        others = list(scenes.possible(scenes.alter(spec, rng)[1]))
    if rng.random() < 0.75:
        apart = [_apart(scene, good.scene) for scene in others]
        others = [scene for scene, distance in zip(others, apart, strict=True) if distance == min(apart)]
    return rng.choice(others)


def _apart(a: Scene, b: Scene) -> int:
    """In how much two scenes differ: background, layout, and the colour of each shape."""
    colors = {(t.shape, t.color) for t in a.things} - {(t.shape, t.color) for t in b.things}
    places = {(t.shape, t.cx, t.cy, t.r) for t in a.things} != {(t.shape, t.cx, t.cy, t.r) for t in b.things}
    return (a.background != b.background) + places + len(colors)


@torch.no_grad()
def encoded(vae: Any, pixels: Tensor) -> Tensor:
    """(n, 3, 64, 64) uint8 -> latents (n, 4, 16, 16) of unit scale."""
    parts = [vae.encode(part.float() / 127.5 - 1).latent_dist.mode() for part in pixels.split(128)]
    return torch.cat(parts) * vae.config.scaling_factor


@torch.no_grad()
def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Latents (n, 4, 16, 16) of unit scale -> (n, 3, 64, 64) uint8."""
    parts = [vae.decode(part / vae.config.scaling_factor).sample.clamp(-1, 1) for part in latents.split(128)]
    return ((torch.cat(parts) + 1) * 127.5).round().byte()


def in_latents(vae: Any, good: list[Picture], specs: list[Spec], rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """Right scenes after the autoencoder, with a dirty latent, and with another scene's mixed in; uint8 each.

    Every other mixture is one of places: here the one scene, there the other, and a bit of both between.
    """
    g = torch.Generator().manual_seed(rng.getrandbits(32))
    clean = encoded(vae, as_bytes([p.image for p in good]))
    other = encoded(vae, as_bytes([scenes.draw(doubt(spec, p, rng)) for spec, p in zip(specs, good, strict=True)]))
    count = (len(good), 1, 1, 1)
    dirt = torch.randn(clean.shape, generator=g) * (0.25 + 0.6 * torch.rand(count, generator=g))
    share = 0.3 + 0.3 * torch.rand(count, generator=g)
    coarse = torch.randn(len(good), 1, 8, 8, generator=g)
    field = F.interpolate(coarse, clean.shape[2:], mode="bicubic", align_corners=False)
    apart = (other - clean).square().sum(1, keepdim=True)
    # Balanced where the two scenes differ: one of them alone would be no mixture, and might be right.
    field = field - (apart * field).sum((2, 3), keepdim=True) / apart.sum((2, 3), keepdim=True)
    here = torch.sigmoid(4 * field + 2 * torch.rand(count, generator=g) - 1)
    share = torch.where(torch.rand(count, generator=g) < 0.5, share, here)
    mixed = clean + share * (other - clean)
    return decoded(vae, clean), decoded(vae, clean + dirt), decoded(vae, mixed)


def as_bytes(pictures: list[Image.Image]) -> Tensor:
    """Pictures of 64x64 -> (n, 3, 64, 64), uint8."""
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).contiguous()
