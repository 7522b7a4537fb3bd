"""Speed and memory settings: the same pictures and gradients, and less memory where that is what they are for."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from allocations import peak_bytes
from published import BY_NAME, CASES, PROMPTS, Case, noise
from torch import Tensor

from pahi.generators import Conditioning, load_generator

Published = Callable[[Case], Path]
NAMES = ["sd-turbo", "sdxl-turbo", "pixart-dmd", "sana-sprint", "flux-schnell"]  # one of each architecture
FAMILIES = [case for case in CASES if case.name in NAMES]
every = pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
BATCH = 4


def load(published: Published, case: Case, **options: Any) -> Any:
    # Larger than elsewhere where that can be chosen, so that activations outweigh what is constant.
    size = {} if case.name == "pixart-dmd" else {"size": 64}
    return load_generator(str(published(case)), device="cpu", **case.options | size | options)


def gradient(generator: Any, c: Conditioning) -> Tensor:
    z = noise(generator, BATCH).requires_grad_()
    picture = generator.decode(generator.denoise(z, c))
    picture.square().sum().backward()
    assert z.grad is not None and z.grad.abs().max() > 0
    return z.grad


def picture(generator: Any, c: Conditioning) -> Tensor:
    with torch.no_grad():
        return generator.decode(generator.denoise(noise(generator, BATCH), c))


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 2e-5 * max(1.0, float(b.abs().max())))


def same(other: Any, plain: Any) -> Conditioning:
    """Asserts that two generators draw the same, with the same gradient; returns their conditioning."""
    c = plain.encode(PROMPTS[:BATCH])
    assert close(picture(other, c), picture(plain, c)) and close(gradient(other, c), gradient(plain, c))
    return c


@every
def test_checkpointing_is_on_in_eval_mode_and_saves_memory(published: Published, case: Case) -> None:
    plain, checked = load(published, case), load(published, case, checkpointing=True)
    assert not checked.denoiser.training and not checked.vae.training
    c = same(checked, plain)
    with_it, without = (peak_bytes(lambda g=g: gradient(g, c)) for g in (checked, plain))
    print(f"{case.name}: {without / 1e6:.1f} MB plain, {with_it / 1e6:.1f} MB checkpointed")
    assert with_it < 0.85 * without


@every
@pytest.mark.parametrize("part", ["denoiser", "vae"])
def test_both_denoiser_and_decoder_are_checkpointed(published: Published, case: Case, part: str) -> None:
    """Each alone: a decoder whose checkpointing was a silent no-op would hide behind the denoiser's."""
    peaks = []
    for options in ({}, {"checkpointing": True}):
        generator = load(published, case, **options)
        c = generator.encode(PROMPTS[:BATCH])
        z = noise(generator, BATCH).requires_grad_()
        run = partial(generator.denoise, z, c) if part == "denoiser" else partial(generator.decode, z)
        run().sum().backward()
        peaks.append(peak_bytes(lambda run=run: run().sum().backward()))
    assert peaks[1] < 0.95 * peaks[0]


@every
def test_slicing_draws_the_same_with_less_memory(published: Published, case: Case) -> None:
    plain, sliced = load(published, case), load(published, case, vae_slicing=True)
    same(sliced, plain)
    latents = noise(plain, BATCH)
    with torch.no_grad():
        peaks = [peak_bytes(lambda g=g: g.decode(latents)) for g in (plain, sliced)]
    assert peaks[1] < 0.7 * peaks[0]


@every
def test_channels_last_draws_the_same(published: Published, case: Case) -> None:
    plain, other = load(published, case), load(published, case, channels_last=True)
    weights = [p for p in other.vae.decoder.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    same(other, plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd-turbo", "sdxl-turbo", "pixart-dmd", "sana-sprint", "flux-schnell"])
def test_compiled_networks_draw_the_same(published: Published, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through dynamo and AOTAutograd; only the last step, generating code for this CPU, is left out for time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    case = BY_NAME[name]
    options = case.options | {"checkpointing": name == "sd-turbo"}
    plain, compiled = (
        load_generator(str(published(case)), device="cpu", **options | {"compile": c}) for c in (False, True)
    )
    frames = torch._dynamo.utils.counters["frames"]
    before = frames["ok"]
    same(compiled, plain)
    assert frames["ok"] > before, "nothing was compiled"
