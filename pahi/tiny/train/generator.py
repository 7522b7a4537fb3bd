"""The one-step generator in SD-Turbo's layout: a UNet2DConditionModel that predicts v at t = 999.

Published one-step models are distilled from a teacher that draws in many steps and so says where each noise leads. Here
the coupling says so outright (coupling.py), and the student learns from it without a teacher between. The text encoder
is taught before (text.py) and frozen.
"""

import random
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from pahi.tiny import scenes
from pahi.tiny.preferences import as_bytes
from pahi.tiny.scenes import Spec
from pahi.tiny.train.autoencoder import train_vae
from pahi.tiny.train.coupling import Coupling
from pahi.tiny.train.data import build_tokenizer, sample_specs, tokens
from pahi.tiny.train.loop import Loop
from pahi.tiny.train.text import WIDTH, train_text

EULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}
LATENTS = (4, 16, 16)
SQUARES = range(2000, 4000)  # steps of the student that minimise squares


def build_unet() -> UNet2DConditionModel:
    """Attention where the picture is 4x4: every token there sees a quarter's half, so it decides what goes where."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(40, 72, 120),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        use_linear_projection=True,
        # The whole prompt, pooled, beside the time step in every block: cross-attention alone learns slowly here.
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


@torch.no_grad()
def embed(text: CLIPTextModel, ids: Tensor) -> Tensor:
    """(n, tokens) -> (n, tokens, WIDTH)."""
    return torch.cat([text(part).last_hidden_state for part in ids.split(512)])


def worded(specs: list[Spec], seed: int) -> Tensor:
    """(n, CONTEXT): one wording of each spec."""
    rng = random.Random(seed)
    return tokens(build_tokenizer(), [scenes.wording(spec, rng) for spec in specs])


@torch.no_grad()
def coupling(work: Path, vae: AutoencoderKL) -> Coupling:
    """From noise to the latents of every scene of this world; these are kept in `work`."""
    drawn = list(dict.fromkeys(scene for spec in scenes.all_specs() for scene in scenes.possible(spec)))
    path = work / "scenes.pt"
    if not path.exists():
        parts = []
        for start in range(0, len(drawn), 256):
            x = as_bytes([scenes.draw(scene) for scene in drawn[start : start + 256]]).float() / 127.5 - 1
            parts.append(vae.encode(x).latent_dist.mode() * vae.config.scaling_factor)
        torch.save(torch.cat(parts).flatten(1), path)
    return Coupling({scene: i for i, scene in enumerate(drawn)}, torch.load(path, weights_only=True))


def emphasis(x0: Tensor) -> Tensor:
    """Scaled latents (n, 4, 16, 16) -> (n, 1, 16, 16), mean 1: how much each place counts.

    Most of a picture is background, and a wrong outline costs little beside a wrong one: things count five times.
    """
    away = (x0 - x0[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.4
    near = F.max_pool2d(away.float(), 3, 1, 1)  # and what lies around them
    weight = 1 + 4 * near
    return weight / weight.mean((1, 2, 3), keepdim=True)


def one_step(unet: Any, embeds: Tensor, z: Tensor) -> Tensor:
    """Unit noise z (n, 4, 16, 16) -> scaled latents, by one step of trailing Euler from t = 999."""
    sigma = float(EulerDiscreteScheduler(**EULER).init_noise_sigma)
    length = (sigma**2 + 1) ** 0.5
    x = (z * (sigma / length)).contiguous(memory_format=torch.channels_last)
    v = unet(x, torch.full((len(z),), 999), embeds).sample
    return z * (sigma / length**2) - v * (sigma / length)


def train_student(work: Path, steps: int = 5600, batch: int = 64) -> UNet2DConditionModel:
    """One step from noise to the scene that it leads to (coupling.py), by regression at t = 999 alone."""
    text, vae = train_text(work), train_vae(work)
    torch.manual_seed(3)
    modules = nn.ModuleDict({"unet": build_unet().to(memory_format=torch.channels_last)})
    loop = Loop("student", work, modules, steps, 1.5e-3, ema=0.995, muon=0.03)
    unet: Any = torch.compile(modules["unet"])
    leads_to = coupling(work, vae) if loop.step < steps else None
    while leads_to and loop.step < steps:
        specs, seed = sample_specs(batch, 2_000_000 + loop.step), 2_000_000 + loop.step
        eps = torch.randn(batch, *LATENTS, generator=loop.generator())
        x0 = leads_to(specs, eps)
        embeds = embed(text, worded(specs, seed))
        with torch.autocast("cpu", torch.bfloat16):
            out = one_step(unet, embeds, eps).float()
        # Where two scenes are almost equally near, absolute values prefer one to the mean of both: crisp pictures. But
        # what is still unread of the noise leaves no trace in a median, and does in a mean: so squares in between.
        far = F.mse_loss if loop.step in SQUARES else partial(F.smooth_l1_loss, beta=0.1)
        loop.update((emphasis(x0) * far(out, x0, reduction="none")).mean())
    return loop.averaged()["unet"]  # type: ignore[return-value]
