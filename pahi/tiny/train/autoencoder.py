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
from pahi.tiny.train.data import sample_specs, to_tensor
from pahi.tiny.train.loop import Loop

NOISE = 0.05  # on latents while the decoder learns


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
    return to_tensor([scenes.render(spec, rng) for spec in sample_specs(count, seed, split)]).float() / 127.5 - 1


def train_vae(work: Path, steps: int = 2600, batch: int = 16) -> AutoencoderKL:
    """The autoencoder, frozen, with its scaling factor set so that latents have unit deviation."""
    torch.manual_seed(1)
    loop = Loop("vae", work, nn.ModuleDict({"vae": build_vae()}), steps, 2e-3)
    vae: Any = loop.modules["vae"]
    while loop.step < steps:
        g = loop.generator()
        if loop.step < 0.75 * steps:  # most is learned on cut-outs, at a quarter of the cost
            top, left = 4 * torch.randint(9, (2,), generator=g)
            x = pictures(batch, 50_000 + loop.step)[..., top : top + 32, left : left + 32]
        else:
            x = pictures(batch // 2, 50_000 + loop.step)
        posterior = vae.encode(x).latent_dist
        z = posterior.mean
        noisy = z + (posterior.std + NOISE) * torch.randn(z.shape, generator=g)
        out = vae.decode(noisy).sample
        colors = F.mse_loss(z[:, :3], F.avg_pool2d(x, 4))
        # Edges are few pixels of a flat picture: squares weigh them, absolute values keep the flats flat.
        loop.update(F.l1_loss(out, x) + 2 * F.mse_loss(out, x) + 0.2 * colors + 1e-4 * posterior.kl().mean() / 1024)
    vae = loop.averaged()["vae"]
    with torch.no_grad():
        x = pictures(512, 3, "validation")
        z = vae.encode(x).latent_dist.mode()
        error = (vae.decode(z).sample.clamp(-1, 1) - x).square().mean((1, 2, 3)) / 4
        x = pictures(1024, 2)
        vae.register_to_config(scaling_factor=1 / float(vae.encode(x).latent_dist.mode().std()))
    print(
        f"vae: {float(-10 * error.log10().mean()):.1f} dB on validation scenes, "
        f"scaling factor {vae.config.scaling_factor:.4f}, channels' deviations {z.std((0, 2, 3)).tolist()}"
    )
    return vae
