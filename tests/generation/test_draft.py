"""Drafts: the same noise and latents through a smaller decoder, told apart in place and lineage."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from randomised import randomise
from test_fan_out import ready

from pahi import models
from pahi.errors import UserError
from pahi.generators import standard_noise
from pahi.maintenance import redraw
from pahi.stages import generate, ingest
from pahi.stages.common import Context


def tiny_decoder(folder: Path, channels: tuple[int, ...] = (8, 8, 8)) -> Path:
    """As madebyollin/taesd, small and random."""
    torch.manual_seed(6)
    network = AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=(1,) * len(channels),
        num_decoder_blocks=(1,) * len(channels),
    )
    randomise(network, 6)
    network.save_pretrained(folder)
    return folder


def drawn(folder: Path, *sets: str):
    ctx = Context(ready(folder, "store", "generate.control_fraction=1", *sets))
    (output,), _ = generate.run(ctx, ingest.chain(ctx))
    return ctx, output


def test_a_draft_is_the_smaller_decoders_picture_of_the_same_noise(tmp_path: Path) -> None:
    decoder = tiny_decoder(tmp_path / "taesd")
    setting = f"generate.draft_decoder={{id: {decoder}}}"
    _, full = drawn(tmp_path)
    ctx, draft = drawn(tmp_path, setting)
    assert draft.fingerprint != full.fingerprint
    rows, others = ({r["image_id"]: r for r in o.read("images").to_pylist()} for o in (draft, full))
    assert rows.keys() == others.keys()
    assert {r["draft_decoder"] for r in rows.values()} == {models.model_hash(decoder)}
    assert {r["draft_decoder"] for r in others.values()} == {None}
    for name, row in rows.items():
        assert [row[c] for c in ("noise_norm", "kl")] == [others[name][c] for c in ("noise_norm", "kl")]
        assert row["pixels_sha256"] != others[name]["pixels_sha256"]
    # diffusers' own decoder of the same latents, of the standard Gaussian's picture.
    row = next(r for r in rows.values() if r["arm"] == "standard")
    eps = standard_noise([row["prompt_id"]], [row["seed"]], ctx.generator.latent_shape)
    network = AutoencoderTiny.from_pretrained(decoder)
    with torch.no_grad():
        latents = ctx.generator.denoise(eps, ctx.generator.encode([row["prompt"]]))
        expected = network.decode(latents / network.config.scaling_factor).sample[0] / 2 + 0.5
    pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).astype(int)
    wanted = (expected.clamp(0, 1) * 255).round().int().permute(1, 2, 0).numpy()
    assert np.abs(pixels - wanted).max() <= 1
    assert redraw(ctx, 4)[0]["detail"].startswith("4 of 4 drawn again to the bit")
    # It is known by its bytes, not by its place.
    moved = shutil.copytree(decoder, tmp_path / "elsewhere")
    assert drawn(tmp_path, f"generate.draft_decoder={{id: {moved}}}")[1].url == draft.url


def test_a_decoder_of_other_latents_is_refused_in_one_line(tmp_path: Path) -> None:
    decoder = tiny_decoder(tmp_path / "taesd", (8, 8))
    with pytest.raises(UserError, match=r"taesd: it decodes 4 channels 2 times as large, and .* 4 times as large"):
        drawn(tmp_path, f"generate.draft_decoder={{id: {decoder}}}")
