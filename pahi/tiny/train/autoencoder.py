"""AutoencoderKL, 64x64x3 <-> 4x16x16, with latents that a small generator can learn.

The first three channels are held near the picture's own colours at 16x16, so that latents half-way between two
pictures decode to colours half-way between them; the fourth is free to say where edges run. The decoder sees noisy
latents, since a generator's are never exact.
"""

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from pahi.tiny import scenes
from pahi.tiny.preferences import as_bytes
from pahi.tiny.train.data import sample_specs
from pahi.tiny.train.loop import Loop

SCALING_FACTOR = 0.5  # what makes latents of the data unit scale


def build_vae() -> AutoencoderKL:
    """0.4 M parameters."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=scenes.SIZE,
    )


def pictures(count: int, seed: int, split: str = "train") -> Tensor:
    """(count, 3, 64, 64) in [-1, 1]: scenes of a split."""
    rng = random.Random(seed)
    return as_bytes([scenes.render(spec, rng) for spec in sample_specs(count, seed, split)]).float() / 127.5 - 1


@torch.no_grad()
def standardise(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Folds each channel's mean and deviation over pictures x into the 1x1 convolutions around the latent.

    Afterwards every channel has mean 0 and deviation 1 / SCALING_FACTOR: a pipeline knows one factor for all of them.
    Returns what was taken off and divided by, (4,) each.
    """
    z = vae.encode(x).latent_dist.mean
    mean, gain = z.mean((0, 2, 3)), z.std((0, 2, 3)) * SCALING_FACTOR
    inward, outward = vae.quant_conv, vae.post_quant_conv
    outward.bias += outward.weight[:, :, 0, 0] @ mean
    outward.weight *= gain.view(1, 4, 1, 1)
    inward.bias[:4] -= mean
    inward.bias[:4] /= gain
    inward.weight[:4] /= gain.view(4, 1, 1, 1)
    inward.bias[4:] -= 2 * gain.log()
    return mean, gain


def train_vae(work: Path, steps: int = 2600, more: int = 500, batch: int = 16) -> AutoencoderKL:
    """The autoencoder, frozen. Its second round is on standardised latents and with more noise on them."""
    torch.manual_seed(1)
    vae: Any = build_vae()
    finished = (work / "vae-2.pt").exists()
    mean, gain = torch.zeros(4), torch.ones(4)
    for name, length, lr, noise in (("vae", steps, 2e-3, 0.05), ("vae-2", more, 5e-4, 0.1 / SCALING_FACTOR)):
        if name == "vae-2":
            mean, gain = standardise(vae, pictures(1024, 2))
        loop = Loop(name, work, nn.ModuleDict({"vae": vae}), length, lr)
        while loop.step < length:
            g = loop.generator()
            if name == "vae" and loop.step < 0.75 * length:  # most is learned on cut-outs, at a quarter of the cost
                top, left = 4 * torch.randint(9, (2,), generator=g)
                x = pictures(batch, 50_000 + loop.step)[..., top : top + 32, left : left + 32]
            else:
                x = pictures(batch // 2, 50_000 + loop.step)
            posterior = vae.encode(x).latent_dist
            z = posterior.mean
            out = vae.decode(z + (posterior.std + noise) * torch.randn(z.shape, generator=g)).sample
            plain = z * gain.view(4, 1, 1) + mean.view(4, 1, 1)
            colors = F.mse_loss(plain[:, :3], F.avg_pool2d(x, 4))
            # Edges are few pixels of a flat picture: squares weigh them, absolute values keep the flats flat.
            loop.update(F.l1_loss(out, x) + 2 * F.mse_loss(out, x) + 0.2 * colors + 1e-4 * posterior.kl().mean() / 1024)
        vae = loop.averaged()["vae"].requires_grad_(True)
    vae.requires_grad_(False)
    vae.register_to_config(scaling_factor=SCALING_FACTOR)
    if not finished:
        report(vae)
    return vae


@torch.no_grad()
def report(vae: Any) -> None:
    """Prints how well validation scenes come back."""
    x = pictures(512, 3, "validation")
    z = vae.encode(x).latent_dist.mode()
    error = (vae.decode(z).sample.clamp(-1, 1) - x).square().mean((1, 2, 3)) / 4
    deviations = ", ".join(f"{d:.2f}" for d in (z * SCALING_FACTOR).std((0, 2, 3)))
    print(f"vae: {float(-10 * error.log10().mean()):.1f} dB on validation scenes; latents' deviations {deviations}")
