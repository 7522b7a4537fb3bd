"""The closed forms against the steps of diffusers' own schedulers, at every timestep that they may be asked for."""

import inspect
import math
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    SCMScheduler,
    TCDScheduler,
)
from torch import Tensor

from pahi.errors import UserError
from pahi.generators.closed_form import OneStep, flow_match, from_scheduler, scm

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TRAILING = BETAS | {"timestep_spacing": "trailing", "steps_offset": 1}
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
# z is noise, F what a network might say; a few rows of each, as the arithmetic is elementwise.
Z, F = (torch.randn(16, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


def diffusers_step(scheduler: Any, timestep: int | None = None) -> tuple[Tensor, Tensor]:
    """What the pipelines do with a scheduler in one step: the network's input, and clean latents."""
    scheduler = type(scheduler).from_config(scheduler.config)
    if timestep is None:
        scheduler.set_timesteps(1)
    else:
        scheduler.set_timesteps(timesteps=[timestep])
    t = scheduler.timesteps[0]
    x = Z * scheduler.init_noise_sigma
    extra = {"eta": 1.0} if "eta" in inspect.signature(scheduler.step).parameters else {}
    inputs = scheduler.scale_model_input(x, t)
    out = scheduler.step(F, t, x, **extra, return_dict=False)
    return inputs, out[1] if isinstance(scheduler, DDPMScheduler) else out[0]


def compare(step: OneStep, inputs: Tensor, x0: Tensor, relative: float = 2e-6) -> None:
    """Ours in float64, since the scheduler's float32 is what is uncertain."""
    assert torch.allclose((step.c_in * Z.double()).float(), inputs, rtol=1e-6, atol=1e-6)
    got = step.x0(Z.double(), F.double())
    assert (got - x0.double()).abs().max() <= relative * max(1.0, float(x0.abs().max()), abs(step.c_skip))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("cls", [LCMScheduler, TCDScheduler, DDPMScheduler])
def test_every_timestep(cls: Any, prediction: str) -> None:
    config = BETAS | {"prediction_type": prediction}
    if cls is DDPMScheduler:
        config["clip_sample"] = False
    scheduler = cls(**config)
    for timestep in range(1000):
        step = from_scheduler(scheduler, timestep)
        assert step.timestep == timestep
        compare(step, *diffusers_step(scheduler, timestep))
    if cls is not DDPMScheduler:
        assert from_scheduler(scheduler).timestep == 999
        compare(from_scheduler(scheduler), *diffusers_step(scheduler))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("cls", [LCMScheduler, DDPMScheduler])
def test_a_clipped_sample_is_clipped(cls: Any, prediction: str) -> None:
    scheduler = cls(**BETAS, prediction_type=prediction, clip_sample=True, clip_sample_range=0.7)
    for timestep in (0, 1, 5, 400, 999):  # LCM's boundary mixes much of z in at the first ones
        compare(from_scheduler(scheduler, timestep), *diffusers_step(scheduler, timestep))


def rounding(scheduler: Any) -> float:
    """diffusers' Euler goes from x_T to x_0 by adding, so that the rounding of x_T stays in its x_0: sigma is 15 as a
    rule, but 4096 without SNR and 20291 with cosine betas."""
    return 2e-6 * max(1.0, float(scheduler.init_noise_sigma) / 15)


EULER = [(EulerDiscreteScheduler, p) for p in PREDICTIONS]
EULER += [(EulerAncestralDiscreteScheduler, p) for p in PREDICTIONS[:2]]  # it has no "sample"


@pytest.mark.parametrize(("cls", "prediction"), EULER)
@pytest.mark.parametrize("schedule", ["scaled_linear", "linear", "squaredcos_cap_v2"])
def test_trailing_euler(cls: Any, prediction: str, schedule: str) -> None:
    scheduler = cls(**TRAILING | {"beta_schedule": schedule}, prediction_type=prediction)
    step = from_scheduler(scheduler)
    assert step.timestep == 999
    compare(step, *diffusers_step(scheduler), relative=rounding(scheduler))


@pytest.mark.parametrize("cls", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler])
def test_stable_diffusions_constants(cls: Any) -> None:
    """sigma 14.6146 of Stable Diffusion's betas, from a float64 product of our own."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = float((1 - betas).prod())
    step = from_scheduler(cls(**TRAILING))
    assert step.c_skip == pytest.approx(((1 - alpha_bar) / alpha_bar) ** 0.5, rel=1e-4)
    assert step.c_skip == pytest.approx(14.6146, abs=1e-3) and step.c_out == -step.c_skip
    assert step.c_in == pytest.approx((1 - alpha_bar) ** 0.5, rel=1e-6)
    assert from_scheduler(LCMScheduler(**BETAS)).c_skip == pytest.approx(alpha_bar**-0.5, rel=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        {"use_karras_sigmas": True},
        {"rescale_betas_zero_snr": True},
        {"timestep_type": "continuous"},
        {"final_sigmas_type": "sigma_min"},
    ],
    ids=lambda config: next(iter(config)),
)
def test_less_usual_configurations_are_right_or_refused(config: dict[str, Any]) -> None:
    scheduler = EulerDiscreteScheduler(**TRAILING | config, prediction_type="v_prediction")
    try:
        step = from_scheduler(scheduler)
    except UserError as error:
        assert next(iter(config)) in str(error) and "\n" not in str(error)
        return
    compare(step, *diffusers_step(scheduler), relative=rounding(scheduler))


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 0.3])
@pytest.mark.parametrize("angle", [1.5708, 1.56454, 1.3, 0.7, 0.1])
def test_sana_sprint(angle: float, sigma_data: float) -> None:
    """As SanaSprintPipeline's loop does it, line by line."""
    scheduler = SCMScheduler(sigma_data=sigma_data)
    step = scm(scheduler, angle)
    scheduler.set_timesteps(1, max_timesteps=angle, intermediate_timesteps=None)
    scheduler.set_begin_index(0)
    latents, s = Z * sigma_data, scheduler.timesteps[0]
    t = torch.sin(s) / (torch.cos(s) + torch.sin(s))
    norm = torch.sqrt(t**2 + (1 - t) ** 2)
    inputs = latents / sigma_data * norm
    v = ((1 - 2 * t) * inputs + (1 - 2 * t + 2 * t**2) * F) / norm * sigma_data
    denoised = scheduler.step(v, s, latents, return_dict=False)[1]
    assert step.timestep == pytest.approx(float(t), rel=1e-6)
    compare(step, inputs, denoised / sigma_data)


@pytest.mark.parametrize("config", [{"shift": 1.0}, {"shift": 3.0}, {"use_dynamic_shifting": True}])
@pytest.mark.parametrize("tokens", [16, 1024, 4096])
def test_flow_matching(config: dict[str, Any], tokens: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    step = flow_match(scheduler, tokens)
    mu = 0.5 + (tokens - 256) / (4096 - 256) * (1.15 - 0.5)
    scheduler.set_timesteps(sigmas=[1.0], mu=mu)
    scheduler.set_begin_index(0)
    x0 = scheduler.step(F, scheduler.timesteps[0], Z, return_dict=False)[0]
    assert step.timestep == float(scheduler.timesteps[0]) / 1000
    compare(step, Z, x0)


def test_what_is_not_one_step_to_clean_latents_is_refused() -> None:
    for scheduler, timestep, words in [
        (DDIMScheduler(), None, "DDIMScheduler"),
        (EulerDiscreteScheduler(**TRAILING | {"timestep_spacing": "leading"}), None, "'leading'"),
        (EulerDiscreteScheduler(**TRAILING | {"timestep_spacing": "linspace"}), None, "'linspace'"),
        (EulerDiscreteScheduler(**TRAILING), 800, "generator.timestep"),
        (LCMScheduler(thresholding=True), None, "thresholding"),
        (LCMScheduler(), 1000, "timestep 1000"),
        (DDPMScheduler.from_config({"prediction_type": "score"}), 400, "'score'"),
    ]:
        with pytest.raises(UserError) as error:
            from_scheduler(scheduler, timestep)
        assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="LCMScheduler"):
        scm(LCMScheduler())
    with pytest.raises(UserError, match="EulerDiscreteScheduler"):
        flow_match(EulerDiscreteScheduler(), 64)
    with pytest.raises(UserError, match="ends at sigma"):
        flow_match(FlowMatchEulerDiscreteScheduler(invert_sigmas=True), 64)


def test_no_gradient_is_lost_in_the_arithmetic() -> None:
    step = from_scheduler(LCMScheduler(**BETAS), 800)
    z = Z.double().requires_grad_()
    (gradient,) = torch.autograd.grad(step.x0(z, F.double()).sum(), z)
    assert torch.allclose(gradient, torch.full_like(gradient, step.c_skip)) and math.isfinite(step.c_skip)
