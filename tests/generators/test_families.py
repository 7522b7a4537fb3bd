"""For every family: our differentiable step draws what diffusers' own pipeline draws, and its gradient is right.

Pictures lie in [0, 1]. diffusers' own float32 pictures are up to 4.3e-6 away from its float64 ones (the test measures
that again for each family), which is what rounding costs these networks; ours may differ from either by no more than
TOLERANCE. In float64 the two differ by less than 5e-7: diffusers' schedulers compute in float32 even there. A wrong
constant moves pictures by at least twenty times the tolerance, whichever constant it is.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from published import BY_NAME, CASES, PROMPTS, Case, draw, noise, theirs
from torch import Tensor

from pahi.generators import Conditioning, load_generator, standard_noise
from pahi.generators.load import FAMILIES, family_of
from pahi.generators.stable_diffusion import guidance_embedding
from pahi.predictors import NoisePredictor
from pahi.prompts.cleaning import prompt_id

TOLERANCE = 2e-5
FAR = 20 * TOLERANCE
Published = Callable[[Case], Path]
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def load(published: Published, case: Case, **options: Any) -> Any:
    return load_generator(str(published(case)), device="cpu", **case.options | options)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double().clamp(0, 1) - b.double().clamp(0, 1)).abs().max())


def test_every_family_has_its_case() -> None:
    assert {family_of("", case.pipeline) for case in CASES} == set(FAMILIES)


@every
def test_the_picture_is_diffusers_own(published: Published, case: Case) -> None:
    generator = load(published, case)
    z = noise(generator, len(PROMPTS))
    latents = generator.latents_for_pipeline(z)
    expected = theirs(case, published(case), PROMPTS, latents)
    got = draw(generator, PROMPTS, z)
    assert got.shape == expected.shape == (4, 3, *generator.size) and got.dtype == torch.float32
    # The comparison is worth something only where pictures are not clipped, and differ between prompts and noises.
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.3 and expected.std() > 0.05
    assert distance(got[:1], expected[1:2]) > FAR
    assert distance(got, expected) < TOLERANCE

    truth = theirs(case, published(case), PROMPTS, latents, torch.float64)
    assert distance(expected, truth) < TOLERANCE, "the tolerance is not what float32 costs"
    assert distance(got, truth) < TOLERANCE
    generator.pipe.to(torch.float64)
    exact = draw(generator, PROMPTS, z)
    assert exact.dtype == torch.float64 and distance(exact, truth) < 5e-7


# ---------------------------------------------------------------------------------------------------- one wrong at once

Break = Callable[[Any, Conditioning], None]


def other_guidance(generator: Any, c: Conditioning) -> None:
    generator.settings = generator.settings.model_copy(update={"guidance": 1.0})
    if hasattr(generator, "_timestep_cond"):
        generator._timestep_cond = guidance_embedding(generator)


def other_step(**changes: Callable[[float], float]) -> Break:
    def change(generator: Any, c: Conditioning) -> None:
        values = {name: f(getattr(generator.step, name)) for name, f in changes.items()}
        generator.step = replace(generator.step, **values)

    return change


def other_scaling(generator: Any, c: Conditioning) -> None:
    generator.vae.register_to_config(scaling_factor=generator.vae.config.scaling_factor * 0.9)


def other_embeds(generator: Any, c: Conditioning) -> None:
    c.embeds["prompt_embeds"] = c.embeds["prompt_embeds"].flip(0)


def other_mask(generator: Any, c: Conditioning) -> None:
    c.embeds["prompt_attention_mask"] = torch.ones_like(c.embeds["prompt_attention_mask"])


def other_pooled(generator: Any, c: Conditioning) -> None:
    c.pooled = c.pooled.flip(0)


def other_time_ids(generator: Any, c: Conditioning) -> None:
    generator._time_ids = generator._time_ids / 2


def other_places(generator: Any, c: Conditioning) -> None:
    generator._places = generator._places.flip(0)


COMMON: dict[str, Break] = {
    "timestep": other_step(timestep=lambda t: t * 0.8),
    "input scale": other_step(c_in=lambda c: c * 0.9),
    "output scale": other_step(c_out=lambda c: c * 0.95),
    "scaling factor": other_scaling,
    "embedding": other_embeds,
}
SPECIAL: dict[str, Break] = {
    "guidance": other_guidance,
    "mask": other_mask,
    "pooled": other_pooled,
    "time ids": other_time_ids,
    "places": other_places,
}
WRONGS = [(case, name) for case in CASES for name in (*COMMON, *case.breaks)]


@pytest.mark.parametrize(("case", "wrong"), WRONGS, ids=[f"{case.name}-{wrong}" for case, wrong in WRONGS])
def test_a_wrong_constant_is_far_away(published: Published, case: Case, wrong: str) -> None:
    generator = load(published, case)
    z, c = noise(generator, len(PROMPTS)), generator.encode(PROMPTS)
    right = generator.decode(generator.denoise(z, c))
    (COMMON | SPECIAL)[wrong](generator, c)
    assert distance(generator.decode(generator.denoise(z, c)), right) > FAR


# ------------------------------------------------------------------------------------------------------------ batches


@every
def test_a_row_does_not_know_its_batch(published: Published, case: Case) -> None:
    generator = load(published, case)
    z = noise(generator, len(PROMPTS))
    together = draw(generator, PROMPTS, z)
    for i, prompt in enumerate(PROMPTS):
        assert distance(draw(generator, [prompt], z[i : i + 1])[0], together[i]) < TOLERANCE
    conditioning = generator.encode(PROMPTS)
    swapped = generator.decode(generator.denoise(z[[2, 0]], conditioning.rows(torch.tensor([2, 0]))))
    assert distance(swapped, together[[2, 0]]) < TOLERANCE


@every
def test_conditioning(published: Published, case: Case) -> None:
    """float32 and finite, one row a prompt, as wide as stated; only the prompt that is too long was cut."""
    generator = load(published, case)
    c = generator.encode(PROMPTS)
    assert c.pooled.shape == (4, generator.pooled_width) and len(c) == 4
    assert c.truncated == [False, False, False, True]
    # Padded to one length whatever stands beside it: sorting prompts by length would save nothing.
    alone = generator.encode(PROMPTS[:1])
    assert {n: t.shape[1:] for n, t in alone.embeds.items()} == {n: t.shape[1:] for n, t in c.embeds.items()}
    for tensor in (c.pooled, *c.embeds.values()):
        assert tensor.dtype == torch.float32 and tensor.isfinite().all() and not tensor.requires_grad
        assert len(tensor) == 4
    assert len({row.numpy().tobytes() for row in c.pooled}) == 4


# ----------------------------------------------------------------------------------------------------------- gradients


@every
def test_the_gradient_is_the_finite_difference(published: Published, case: Case) -> None:
    generator = load(published, case)
    generator.pipe.to(torch.float64)
    z = noise(generator, 2).double().requires_grad_()
    c = generator.encode(PROMPTS[:2])
    weight = torch.randn(2, 3, *generator.size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def value(at: Tensor) -> Tensor:
        return (generator.decode(generator.denoise(at, c)) * weight).sum()

    (gradient,) = torch.autograd.grad(value(z), z)
    assert gradient.isfinite().all() and (gradient != 0).all()
    h, relative = (1e-3, 2e-3) if case.coarse else (1e-5, 1e-6)
    scale = float(gradient.abs().max())
    size = z[0].numel()
    with torch.no_grad():
        for row, where in ((0, 0), (0, size // 3), (1, size // 2 + 1), (1, size - 1)):
            step = torch.zeros_like(z)
            step[row].view(-1)[where] = h
            expected = float(value(z + step) - value(z - step)) / (2 * h)
            got = float(gradient[row].view(-1)[where])
            assert got == pytest.approx(expected, rel=relative, abs=relative * scale)


@every
def test_the_generator_is_frozen(published: Published, case: Case) -> None:
    generator = load(published, case)
    z = noise(generator, 1).requires_grad_()
    draw(generator, PROMPTS[:1], z).sum().backward()
    assert z.grad is not None and z.grad.isfinite().all()
    networks = [part for part in generator.pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(networks) >= 3
    for network in networks:
        assert not network.training
        assert all(not p.requires_grad and p.grad is None for p in network.parameters())


@every
def test_half_precision_keeps_arithmetic_in_float32(published: Published, case: Case) -> None:
    """In bfloat16 the networks alone are coarse: latents stay float32, and close to those of float32 networks."""
    generator = load(published, case, dtype="bfloat16")
    assert generator.dtype == torch.bfloat16
    z = noise(generator, 2)
    c = generator.encode(PROMPTS[:2])
    latents = generator.denoise(z, c)
    assert latents.dtype == torch.float32 == c.pooled.dtype
    out = generator.predict((generator.step.c_in * z).bfloat16(), c).float()
    assert torch.allclose(latents, generator.step.c_skip * z + generator.step.c_out * out, atol=1e-6)
    assert generator.decode(latents).dtype == torch.float32


@every
def test_a_predictors_noise_is_what_the_pipeline_takes(published: Published, case: Case) -> None:
    """predictor.sample(prompt, pipe=pipe) in plain diffusers, for every family."""
    generator = load(published, case)
    predictor = NoisePredictor.create("pahi", generator.latent_shape, generator.pooled_width, 8)
    torch.manual_seed(4)
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    latents = predictor.sample(PROMPTS[0], pipe=generator.pipe, seed=7)
    eps = standard_noise([prompt_id(PROMPTS[0])], [7], generator.latent_shape)
    with torch.no_grad():
        x = predictor(generator.encode(PROMPTS[:1]).pooled, eps)
        expected = generator.decode(generator.denoise(x, generator.encode(PROMPTS[:1])))
    assert torch.allclose(latents, generator.latents_for_pipeline(x), atol=1e-6)
    assert distance(theirs(case, published(case), PROMPTS[:1], latents), expected) < TOLERANCE


def test_a_prompt_that_just_fits_is_not_cut(published: Published) -> None:
    generator = load(published, BY_NAME["sd-turbo"])
    fits = "a " * (generator.pipe.tokenizer.model_max_length - 2)
    assert generator.encode([fits, fits + "a"]).truncated == [False, True]
