"""The generator in SD-Turbo's layout: a multi-step teacher, and the student that draws its pictures in one step.

    teacher  UNet2DConditionModel, v-prediction on SD's own noise schedule, on latents of training scenes
    student  starts as the teacher, and learns where paths end at t = 999 alone, by regression

The text encoder is taught before (text.py) and frozen, so that teacher and student share it.
"""

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from pahi.tiny import scenes
from pahi.tiny.scenes import Spec
from pahi.tiny.train.autoencoder import train_vae
from pahi.tiny.train.coupling import Transport, code
from pahi.tiny.train.data import build_tokenizer, sample_specs, to_tensor, tokens
from pahi.tiny.train.loop import Loop
from pahi.tiny.train.text import WIDTH, train_text

EULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}
STEPS = 12  # of the teacher
GUIDANCE = 2.0  # of the teacher; the student needs none
UNSAID = 0.1  # share of prompts that are left out when the teacher learns
LATENTS = (4, 16, 16)


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
def transport(work: Path, vae: AutoencoderKL) -> Transport:
    """From noise to the latents of every scene of this world; these are kept in `work`."""
    drawn = list(dict.fromkeys(scene for spec in scenes.all_specs() for scene in scenes.possible(spec)))
    path = work / "scenes.pt"
    if not path.exists():
        parts = []
        for start in range(0, len(drawn), 256):
            x = to_tensor([scenes.draw(scene) for scene in drawn[start : start + 256]]).float() / 127.5 - 1
            parts.append(vae.encode(x).latent_dist.mode() * vae.config.scaling_factor)
        torch.save(torch.cat(parts).flatten(1), path)
    codes = torch.stack([code(scene) for scene in drawn]).flatten(1)
    return Transport({scene: i for i, scene in enumerate(drawn)}, torch.load(path, weights_only=True), codes)


def emphasis(x0: Tensor) -> Tensor:
    """Scaled latents (n, 4, 16, 16) -> (n, 1, 16, 16), mean 1: how much each place counts.

    Most of a picture is background, and a wrong outline costs little beside a wrong one: things count five times.
    """
    away = (x0 - x0[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.4
    near = F.max_pool2d(away.float(), 3, 1, 1)  # and what lies around them
    weight = 1 + 4 * near
    return weight / weight.mean((1, 2, 3), keepdim=True)


def train_teacher(work: Path, steps: int = 3600, batch: int = 64) -> UNet2DConditionModel:
    """v-prediction: v = sqrt(ab) eps - sqrt(1 - ab) x_0, between noise and the scene that it leads to (coupling.py).

    Angles are spread evenly between data and noise, but half of all are the very first step's, which decides most.
    """
    text, vae = train_text(work), train_vae(work)
    alpha_bar = EulerDiscreteScheduler(**EULER).alphas_cumprod
    angles = torch.acos(alpha_bar.sqrt())  # (1000,), rising
    torch.manual_seed(3)
    modules = nn.ModuleDict({"unet": build_unet().to(memory_format=torch.channels_last)})
    unet: Any = torch.compile(modules["unet"])
    loop = Loop("teacher", work, modules, steps, 1.5e-3, ema=0.998, muon=0.03)
    if loop.step < steps:
        leads_to = transport(work, vae)
        empty = tokens(build_tokenizer(), [""])
    while loop.step < steps:
        g = loop.generator()
        specs, eps = sample_specs(batch, 10_000 + loop.step), torch.randn(batch, *LATENTS, generator=g)
        angle = angles[0] + (angles[-1] - angles[0]) * torch.rand(batch, generator=g)
        t = torch.searchsorted(angles, angle).clamp(max=999)
        t[: batch // 2] = 999
        a, s = alpha_bar[t].sqrt().view(-1, 1, 1, 1), (1 - alpha_bar[t]).sqrt().view(-1, 1, 1, 1)
        x0, said = leads_to(specs, eps), worded(specs, loop.step)
        said[torch.rand(batch, generator=g) < UNSAID] = empty  # what classifier-free guidance compares with
        embeds = embed(text, said)
        x = (a * x0 + s * eps).contiguous(memory_format=torch.channels_last)
        loop.update((emphasis(x0) * (unet(x, t, embeds).sample - (a * eps - s * x0)).square()).mean())
    return loop.averaged()["unet"]  # type: ignore[return-value]


@torch.no_grad()
def sample_teacher(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    ids: Tensor,
    z: Tensor,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> Tensor:
    """ids (n, CONTEXT) and unit noise z (n, 4, 16, 16) -> scaled latents by `steps` Euler steps with guidance."""
    scheduler = EulerDiscreteScheduler(**EULER)
    scheduler.set_timesteps(steps)
    embeds = embed(text, torch.cat([tokens(build_tokenizer(), [""]).expand_as(ids), ids])).to(unet.dtype)
    x = z * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t).to(unet.dtype)
        unsaid, said = unet(torch.cat([scaled, scaled]), t, embeds).sample.float().chunk(2)
        x = scheduler.step(unsaid + guidance * (said - unsaid), t, x).prev_sample
    return x


def one_step(unet: Any, embeds: Tensor, z: Tensor) -> Tensor:
    """Unit noise z (n, 4, 16, 16) -> scaled latents, by one step of trailing Euler from t = 999."""
    sigma = float(EulerDiscreteScheduler(**EULER).init_noise_sigma)
    length = (sigma**2 + 1) ** 0.5
    x = (z * (sigma / length)).contiguous(memory_format=torch.channels_last)
    v = unet(x, torch.full((len(z),), 999), embeds).sample
    return z * (sigma / length**2) - v * (sigma / length)


def train_student(work: Path, steps: int = 1500, batch: int = 64) -> UNet2DConditionModel:
    """One step from noise to where its path ends, by regression from the teacher's weights on.

    The teacher's own pictures would do as targets; but they only approach the scenes that the transport leads to, and
    these are known.
    """
    text, vae = train_text(work), train_vae(work)
    modules = nn.ModuleDict({"unet": build_unet().to(memory_format=torch.channels_last)})
    modules["unet"].load_state_dict(train_teacher(work).state_dict())
    loop = Loop("student", work, modules, steps, 1e-3, ema=0.995, muon=0.02)
    unet: Any = torch.compile(modules["unet"])
    leads_to = transport(work, vae) if loop.step < steps else None
    while leads_to and loop.step < steps:
        specs, seed = sample_specs(batch, 2_000_000 + loop.step), 2_000_000 + loop.step
        eps = torch.randn(batch, *LATENTS, generator=loop.generator())
        x0 = leads_to(specs, eps)
        embeds = embed(text, worded(specs, seed))
        with torch.autocast("cpu", torch.bfloat16):
            out = one_step(unet, embeds, eps).float()
        # Nearly absolute values: where two scenes are almost equally near they prefer one to the mean of both.
        loop.update((emphasis(x0) * F.smooth_l1_loss(out, x0, beta=0.1, reduction="none")).mean())
    return loop.averaged()["unet"]  # type: ignore[return-value]
