"""One step of a scheduler is one line: from unit-scale noise z and the network's output F,

    x_0 = c_skip z + c_out F(c_in z, t)

The coefficients are those of diffusers' schedulers for num_inference_steps = 1, derived in float64 from the very
constants (float32 tables) that the schedulers use. With alpha-bar ab and sigma = sqrt((1 - ab) / ab) at timestep t:

    Euler         z is scaled to x_T = sigma z, and c_in = sigma / sqrt(sigma^2 + 1)
                  epsilon  x_0 = sigma z - sigma F
                  v        x_0 = sigma z / (sigma^2 + 1) - sigma F / sqrt(sigma^2 + 1)
    LCM, DDPM     c_in = 1
                  epsilon  x_0 = (z - sqrt(1 - ab) F) / sqrt(ab)
                  v        x_0 = sqrt(ab) z - sqrt(1 - ab) F
                  LCM then mixes some z back in: c_out' x_0 + c_skip' z, by its boundary condition
    TCD           sqrt(ab_0) x_0 + sqrt(1 - ab_0) eps, the sample at timestep 0, eps what F says of the noise
    SCM           s = 1.5708, t = sin s / (sin s + cos s), c_in = sqrt(t^2 + (1 - t)^2),
                  v = ((1 - 2t) c_in z + (1 - 2t + 2t^2) F) / c_in,   x_0 = cos(s) z - sin(s) v
    flow match    x_0 = z - sigma F, sigma = 1

everywhere with x_0 = F where the network predicts the sample itself.
"""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pahi.errors import UserError


@dataclass(frozen=True)
class OneStep:
    """Coefficients of one step; `timestep` is what the network is told."""

    timestep: float
    c_in: float
    c_skip: float
    c_out: float
    clip: float | None = None  # x_0 is held within +-clip, where the scheduler's configuration says so
    boundary: tuple[float, float] = (1.0, 0.0)  # LCM's c_out' and c_skip', only where x_0 is clipped before them

    def x0(self, z: Tensor, out: Tensor) -> Tensor:
        """Noise and the network's output, both (batch, ...), -> clean latents."""
        x0 = self.c_skip * z + self.c_out * out
        if self.clip is None:
            return x0
        return self.boundary[0] * x0.clamp(-self.clip, self.clip) + self.boundary[1] * z


def from_scheduler(scheduler: Any, timestep: int | None = None) -> OneStep:
    """A scheduler's one step, from `timestep` where its class allows the choice. Raises UserError, without the model's
    name, for what is not one deterministic step to clean latents."""
    name, config = type(scheduler).__name__, scheduler.config
    if name in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"):
        if timestep is not None:
            raise UserError(f"{name} draws its one step at its own timestep; leave generator.timestep empty")
        return _euler(scheduler)
    makers = {"LCMScheduler": _lcm, "DDPMScheduler": _ddpm, "TCDScheduler": _tcd}
    if name not in makers:
        raise UserError(f"one step of {name} is not supported; trailing Euler, LCM, TCD and DDPM are")
    if config.get("thresholding"):
        raise UserError("a scheduler with thresholding on is not supported")
    own = type(scheduler).from_config(config)
    if timestep is None:
        own.set_timesteps(1)
    elif timestep < config.num_train_timesteps:
        own.set_timesteps(timesteps=[timestep])
    else:
        raise UserError(f"timestep {timestep} is not below the {config.num_train_timesteps} of training")
    return makers[name](own, int(own.timesteps[0]))


def _euler(scheduler: Any) -> OneStep:
    config = scheduler.config
    if config.timestep_spacing != "trailing":
        raise UserError(f"timestep_spacing is {config.timestep_spacing!r}, expected 'trailing'")
    # One step that stops short of sigma = 0 is another formula.
    if getattr(config, "final_sigmas_type", "zero") != "zero":
        raise UserError(f"final_sigmas_type is {config.final_sigmas_type!r}, expected 'zero'")
    own = type(scheduler).from_config(config)
    own.set_timesteps(1)
    sigma, timestep = float(own.sigmas[0]), float(own.timesteps[0])
    norm = math.sqrt(sigma**2 + 1)
    c_skip, c_out = {
        "epsilon": (sigma, -sigma),
        "v_prediction": (sigma / norm**2, -sigma / norm),
        "sample": (0.0, 1.0),
    }[_prediction(config)]
    return OneStep(timestep, sigma / norm, c_skip, c_out)


def _lcm(scheduler: Any, timestep: int) -> OneStep:
    c_skip, c_out = _x0_and_eps(scheduler, timestep)[0]
    skip, out = (float(c) for c in scheduler.get_scalings_for_boundary_condition_discrete(timestep))
    if scheduler.config.clip_sample:
        return OneStep(timestep, 1.0, c_skip, c_out, scheduler.config.clip_sample_range, (out, skip))
    return OneStep(timestep, 1.0, out * c_skip + skip, out * c_out)


def _ddpm(scheduler: Any, timestep: int) -> OneStep:
    c_skip, c_out = _x0_and_eps(scheduler, timestep)[0]
    clip = scheduler.config.clip_sample_range if scheduler.config.clip_sample else None
    return OneStep(timestep, 1.0, c_skip, c_out, clip)


def _tcd(scheduler: Any, timestep: int) -> OneStep:
    # The step ends at timestep 0, whose alpha-bar is 0.99915, whatever eta is.
    end = float(scheduler.alphas_cumprod[0])
    a, b = math.sqrt(end), math.sqrt(1 - end)
    (x0_skip, x0_out), (eps_skip, eps_out) = _x0_and_eps(scheduler, timestep)
    return OneStep(timestep, 1.0, a * x0_skip + b * eps_skip, a * x0_out + b * eps_out)


def _x0_and_eps(scheduler: Any, timestep: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """(skip, out) of x_0 and of eps, as the network's output F tells them of z = sqrt(ab) x_0 + sqrt(1 - ab) eps."""
    alpha_bar = float(scheduler.alphas_cumprod[timestep])
    a, b = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    return {
        "epsilon": ((1 / a, -b / a), (0.0, 1.0)),
        "v_prediction": ((a, -b), (b, a)),
        "sample": ((0.0, 1.0), (1 / b, -a / b)),
    }[_prediction(scheduler.config)]


def _prediction(config: Any) -> str:
    if config.prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise UserError(f"prediction_type {config.prediction_type!r} is not supported")
    return config.prediction_type


def scm(scheduler: Any, max_timestep: float = 1.57080) -> OneStep:
    """SANA-Sprint's step (trigonometric flow), from sCM's angle in radians. sigma_data cancels out."""
    if type(scheduler).__name__ != "SCMScheduler" or scheduler.config.prediction_type != "trigflow":
        raise UserError(f"one step of {type(scheduler).__name__} is not supported here; SCMScheduler with trigflow is")
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(1, max_timesteps=max_timestep, intermediate_timesteps=None)
    s = float(scheduler.timesteps[0])
    sin, cos = math.sin(s), math.cos(s)
    t = sin / (cos + sin)
    c_in = math.sqrt(t**2 + (1 - t) ** 2)
    return OneStep(t, c_in, cos - sin * (1 - 2 * t), -sin * (1 - 2 * t + 2 * t**2) / c_in)


def flow_match(scheduler: Any, tokens: int) -> OneStep:
    """FLUX's step; `tokens` is the length of its packed latents, on which some schedulers' shift depends."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    if type(scheduler).__name__ != "FlowMatchEulerDiscreteScheduler":
        raise UserError(
            f"one step of {type(scheduler).__name__} is not supported here; FlowMatchEulerDiscreteScheduler is"
        )
    config = scheduler.config
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    defaults = (256, 4096, 0.5, 1.15)
    mu = calculate_shift(tokens, *(config.get(n, d) for n, d in zip(names, defaults, strict=True)))
    own = type(scheduler).from_config(config)
    own.set_timesteps(sigmas=[1.0], mu=mu)
    sigma, end = float(own.sigmas[0]), float(own.sigmas[1])
    if end != 0:
        raise UserError(f"the scheduler's one step ends at sigma {end}, expected 0")
    return OneStep(float(own.timesteps[0]) / 1000, 1.0, 1.0, -sigma)
