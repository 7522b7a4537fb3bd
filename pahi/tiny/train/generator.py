"""The generator in SD-Turbo's layout: a multi-step teacher, and the student that draws its pictures in one step.

    teacher  UNet2DConditionModel, v-prediction on SD's own noise schedule, on latents of training scenes
    pairs    (noise, prompt) -> the latents that the teacher reaches from that noise in STEPS Euler steps
    student  starts as the teacher, and learns that map at t = 999 alone, by regression

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
from pahi.tiny.train.coupling import nearest, noise_of
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
PAIRS = 6_144  # of noise and the teacher's picture
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
def coupled(work: Path, vae: AutoencoderKL, groups: int = 1536, size: int = 64) -> tuple[list[Spec], Tensor, Tensor]:
    """Training specs (n = groups * size), scaled latents of a scene of each and the noise paired with it, both
    (n, 4, 16, 16); kept in `work`.

    Each group is one spec: `size` of its scenes and as much noise, paired as coupling.py says.
    """
    specs = [spec for spec in sample_specs(groups, 11) for _ in range(size)]
    noise, path = noise_of(len(specs), 15), work / f"coupled-{groups}-{size}.pt"
    if not path.exists():
        rng, parts = random.Random(12), []
        for start in range(0, len(specs), size):
            part = slice(start, start + size)
            x = to_tensor([scenes.render(spec, rng) for spec in specs[part]]).float() / 127.5 - 1
            latents = vae.encode(x).latent_dist.mode() * vae.config.scaling_factor
            parts.append(latents[nearest(noise[part], latents)])
        torch.save(torch.cat(parts).half(), path)
    return specs, torch.load(path, weights_only=True).float(), noise


def train_teacher(work: Path, steps: int = 6000, batch: int = 64) -> UNet2DConditionModel:
    """v-prediction: v = sqrt(ab) eps - sqrt(1 - ab) x_0, between each scene and the noise that is paired with it.

    Angles are spread evenly between data and noise, but a third of all are the very first step's, which decides most.
    """
    text, vae = train_text(work), train_vae(work)
    alpha_bar = EulerDiscreteScheduler(**EULER).alphas_cumprod
    angles = torch.acos(alpha_bar.sqrt())  # (1000,), rising
    torch.manual_seed(3)
    modules = nn.ModuleDict({"unet": build_unet().to(memory_format=torch.channels_last)})
    unet: Any = torch.compile(modules["unet"])
    loop = Loop("teacher", work, modules, steps, 1.5e-3, ema=0.998, muon=0.03)
    if loop.step < steps:
        specs, latents, noise = coupled(work, vae)
        ids = torch.stack([worded(specs, seed) for seed in range(4)])  # (4, n, CONTEXT)
        empty = tokens(build_tokenizer(), [""])
    while loop.step < steps:
        g = loop.generator()
        index = torch.randint(len(specs), (batch,), generator=g)
        angle = angles[0] + (angles[-1] - angles[0]) * torch.rand(batch, generator=g)
        t = torch.searchsorted(angles, angle).clamp(max=999)
        t[: batch // 3] = 999
        a, s = alpha_bar[t].sqrt().view(-1, 1, 1, 1), (1 - alpha_bar[t]).sqrt().view(-1, 1, 1, 1)
        x0, eps = latents[index], noise[index]
        said = ids[torch.randint(4, (batch,), generator=g), index]
        said[torch.rand(batch, generator=g) < UNSAID] = empty  # what classifier-free guidance compares with
        embeds = embed(text, said)
        x = (a * x0 + s * eps).contiguous(memory_format=torch.channels_last)
        loop.update(F.mse_loss(unet(x, t, embeds).sample, a * eps - s * x0))
    return loop.averaged()["unet"]  # type: ignore[return-value]


@torch.no_grad()
def sample_teacher(
    unet: UNet2DConditionModel, text: CLIPTextModel, ids: Tensor, z: Tensor, steps: int = STEPS, guidance: float = GUIDANCE
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


def make_pairs(work: Path, count: int = PAIRS) -> tuple[list[Spec], Tensor, Tensor, Tensor]:
    """Specs, ids (n, CONTEXT), noise and the teacher's latents (n, 4, 16, 16); continues where it was stopped."""
    specs = sample_specs(count, 21)
    ids = worded(specs, 22)
    noise = noise_of(count, 23)
    folder, size = work / "pairs", 512
    folder.mkdir(exist_ok=True)
    missing = [i for i in range(0, count, size) if not (folder / f"{i:06d}.pt").exists()]
    if missing:
        # bfloat16 in the network halves the time; the student has to smooth over more than that.
        unet, text = train_teacher(work).bfloat16().to(memory_format=torch.channels_last), train_text(work)
        for i in missing:
            part = slice(i, min(i + size, count))
            both = zip(ids[part].split(64), noise[part].split(64), strict=True)
            latents = torch.cat([sample_teacher(unet, text, said, z) for said, z in both])
            torch.save(latents.half(), folder / "tmp")
            (folder / "tmp").replace(folder / f"{i:06d}.pt")
            print(f"pairs {part.stop}/{count}", flush=True)
    parts = [torch.load(folder / f"{i:06d}.pt", weights_only=True).float() for i in range(0, count, size)]
    return specs, ids, noise, torch.cat(parts)[:count]


def train_student(work: Path, steps: int = 800, batch: int = 64) -> UNet2DConditionModel:
    """One step from noise to where the teacher would end, by regression."""
    _, ids, noise, x0 = make_pairs(work)
    embeds = embed(train_text(work), ids)
    modules = nn.ModuleDict({"unet": build_unet().to(memory_format=torch.channels_last)})
    modules["unet"].load_state_dict(train_teacher(work).state_dict())
    loop = Loop("student", work, modules, steps, 1e-3, ema=0.998)
    unet: Any = torch.compile(modules["unet"])
    while loop.step < steps:
        index = torch.randint(len(noise), (batch,), generator=loop.generator())
        out = one_step(unet, embeds[index], noise[index])
        # Between squares and absolute values: where two scenes are possible it prefers one to the mean of both.
        loop.update(F.smooth_l1_loss(out, x0[index], beta=0.1))
    return loop.averaged()["unet"]  # type: ignore[return-value]


@torch.no_grad()
def student_latents(work: Path, part: slice) -> Tensor:
    """The student's latents for a part of the pairs' noise and prompts."""
    _, ids, noise, _ = make_pairs(work)
    student, embeds = train_student(work), embed(train_text(work), ids[part])
    both = zip(embeds.split(256), noise[part].split(256), strict=True)
    return torch.cat([one_step(student, e, z) for e, z in both])
