"""Predictors: untrained they are the standard Gaussian, saved they come back, misused they say so."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from pahi import NoisePredictor, models
from pahi.errors import UserError

TINY = "pkg:pahi.tiny/weights/generator"


def predictor(kind: str = "pahi") -> NoisePredictor:
    return NoisePredictor(kind, (4, 16, 16), 64)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["standard", "hpi", "pahi"])
def test_untrained_it_is_the_standard_gaussian_to_the_bit(kind: str) -> None:
    eps = torch.randn(3, 4, 16, 16)
    assert torch.equal(predictor(kind)(torch.randn(3, 64), eps), eps)


def test_a_zero_head_is_hpi_to_the_bit() -> None:
    hpi, pahi = predictor("hpi"), predictor("pahi")
    with torch.no_grad():
        hpi.mu.normal_()
        hpi.log_sigma.normal_()
    pahi.load_state_dict(hpi.state_dict())
    eps, pooled = torch.randn(3, 4, 16, 16), torch.randn(3, 64)
    assert torch.equal(hpi(pooled, eps), pahi(pooled, eps))


def test_saved_it_comes_back_equal(tmp_path: Path) -> None:
    p = predictor()
    with torch.no_grad():
        for q in p.parameters():
            q.normal_()
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
        NoisePredictor("pahi", (4, 64, 64), 1024).sample("a red circle", pipe=pipe)
    with pytest.raises(UserError, match="no predictor at"):
        NoisePredictor.from_pretrained(str(tmp_path))
