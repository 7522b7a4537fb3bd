"""Predictors: untrained they are the standard Gaussian, saved they come back, misused they say so."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch.distributions import Normal, kl_divergence

from pahi import NoisePredictor, models
from pahi.errors import UserError

KINDS = ["standard", "scale", "hpi", "pahi", "residual", "refined"]
TINY = "pkg:pahi.tiny/weights/generator"


def predictor(kind: str = "pahi") -> NoisePredictor:
    return NoisePredictor.create(kind, (4, 16, 16), 64, 16)


def shaken(kind: str) -> NoisePredictor:
    p = predictor(kind)
    with torch.no_grad():
        for q in p.parameters():
            q.normal_(0, 0.1)
    return p


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_it_is_the_standard_gaussian_to_the_bit(kind: str) -> None:
    eps = torch.randn(3, 4, 16, 16)
    assert torch.equal(predictor(kind)(torch.randn(3, 64), eps), eps)


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_it_has_not_left_the_prior(kind: str) -> None:
    assert torch.equal(predictor(kind).draw(torch.randn(3, 64), torch.randn(3, 4, 16, 16))[1], torch.zeros(3))


def test_the_divergence_of_gaussians_is_torchs(kind: str = "pahi") -> None:
    p = shaken(kind)
    pooled = torch.randn(3, 64)
    mu, log_sigma = p.distribution(pooled)  # type: ignore[operator]
    theirs = kl_divergence(Normal(mu, log_sigma.exp()), Normal(0.0, 1.0)).flatten(1).mean(1)
    assert torch.allclose(p.draw(pooled, torch.randn(3, 4, 16, 16))[1], theirs, rtol=1e-5)


@pytest.mark.parametrize("kind", ["residual", "refined"])
def test_a_residual_reads_noise_and_prompt_and_knows_how_far_it_went(kind: str) -> None:
    p, eps, pooled = shaken(kind), torch.randn(3, 4, 16, 16), torch.randn(3, 64)
    x, divergence = p.draw(pooled, eps)
    f = p.residual(pooled, eps)  # type: ignore[operator]
    assert torch.allclose(divergence, f.square().sum((1, 2, 3)) / 2 / 1024, rtol=1e-5)
    assert not torch.allclose(f, p.residual(pooled.roll(1, 0), eps))  # type: ignore[operator]
    other = eps.clone()
    other[:, 0, 0, 0] += 3  # one corner is seen in the opposite one
    assert not torch.allclose(f[:, :, -1, -1], p.residual(pooled, other)[:, :, -1, -1], atol=1e-6)  # type: ignore[operator]
    alone = p.draw(pooled[1:2], eps[1:2])[0]
    assert torch.allclose(alone, x[1:2], rtol=1e-4, atol=1e-3)
    norms = x.flatten(1).norm(dim=1) / eps.flatten(1).norm(dim=1)
    assert torch.allclose(norms, torch.ones(3), atol=1e-5) == (kind == "refined")


@pytest.mark.parametrize("shape", [(4, 64, 64), (16, 128, 128), (32, 32, 32), (4, 90, 64), (4, 5, 7)])
def test_residuals_fit_every_latent(shape: tuple[int, int, int]) -> None:
    p, eps = NoisePredictor.create("residual", shape, 32, 8), torch.randn(1, *shape)
    assert torch.equal(p(torch.randn(1, 32), eps), eps)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(UserError, match="no predictor of kind 'magic'; there are standard, scale"):
        NoisePredictor.create("magic", (4, 16, 16), 64)


def test_a_zero_head_is_hpi_to_the_bit() -> None:
    hpi, pahi = predictor("hpi"), predictor("pahi")
    with torch.no_grad():
        hpi.mu.normal_()
        hpi.log_sigma.normal_()
    pahi.load_state_dict(hpi.state_dict())
    eps, pooled = torch.randn(3, 4, 16, 16), torch.randn(3, 64)
    assert torch.equal(hpi(pooled, eps), pahi(pooled, eps))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_it_comes_back_equal(kind: str, tmp_path: Path) -> None:
    p = shaken(kind)
    p.save_pretrained(tmp_path)
    back = NoisePredictor.from_pretrained(str(tmp_path))
    eps, pooled = torch.randn(2, 4, 16, 16), torch.randn(2, 64)
    assert torch.equal(p(pooled, eps), back(pooled, eps))


def test_one_line_with_a_plain_diffusers_pipeline() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(models.resolve(TINY), dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    p = predictor()
    latents = p.sample("a red circle", pipe=pipe, seed=7)
    assert torch.equal(latents, p.sample("a red circle", pipe=pipe, seed=7))
    assert not torch.equal(latents, p.sample("a red circle", pipe=pipe, seed=8))
    pair = p.sample(["a blue star", "a red circle"], pipe=pipe, seed=7)
    assert torch.equal(pair[1:], latents), "a prompt's noise depends on nothing beside it"
    image = pipe("a red circle", latents=latents, num_inference_steps=1, guidance_scale=0.0).images[0]
    assert image.size == (64, 64)


def test_another_models_predictor_is_refused(tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(models.resolve(TINY), dtype=torch.float32, safety_checker=None)
    with pytest.raises(UserError, match="was trained for"):
        NoisePredictor.create("pahi", (4, 64, 64), 1024).sample("a red circle", pipe=pipe)
    with pytest.raises(UserError, match="no predictor at"):
        NoisePredictor.from_pretrained(str(tmp_path))
