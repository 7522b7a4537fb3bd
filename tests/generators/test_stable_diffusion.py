"""Our differentiable step draws what diffusers' own pipeline draws, and its gradient is the right one."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pahi.errors import UserError
from pahi.generators import load_generator, standard_noise
from pahi.generators.stable_diffusion import StableDiffusion

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
PROMPTS = ["a red circle", "", "a large blue star on a white background", "word " * 100]
# Pictures lie in [0, 1]. Both sides run the same fp32 networks; only the scheduler's arithmetic and the order of the
# batch differ, which leaves a few 1e-6.
TOLERANCE = 5e-5
FAR = 20 * TOLERANCE

CASES = [
    (EulerDiscreteScheduler, "epsilon"),
    (EulerDiscreteScheduler, "v_prediction"),
    (EulerDiscreteScheduler, "sample"),
    (EulerAncestralDiscreteScheduler, "epsilon"),
    (EulerAncestralDiscreteScheduler, "v_prediction"),  # it has no "sample"
]
IDS = [f"{scheduler.__name__}-{prediction}" for scheduler, prediction in CASES]


@pytest.fixture(scope="session")
def networks(tokenizer: CLIPTokenizer, shake: Callable[[torch.nn.Module, int], None]) -> dict[str, torch.nn.Module]:
    """A UNet, a VAE and a text encoder in the published layout: small, and every weight matters."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
        scaling_factor=0.37,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    made = {"unet": unet, "vae": vae, "text_encoder": text}
    for i, network in enumerate(made.values()):
        shake(network, i)
        network.eval()
    return made


@pytest.fixture(scope="session")
def published(
    networks: dict[str, torch.nn.Module], tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A pipeline's folder, made once for each scheduler."""
    made: dict[str, Path] = {}

    def save(scheduler: type, prediction: str, **config: Any) -> Path:
        key = f"{scheduler.__name__}-{prediction}-{config}"
        if key not in made:
            config = {"timestep_spacing": "trailing", **config}
            pipe = StableDiffusionPipeline(
                **networks,
                tokenizer=tokenizer,
                scheduler=scheduler(**BETAS, prediction_type=prediction, **config),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
            made[key] = tmp_path_factory.mktemp("pipeline") / "model"
            pipe.save_pretrained(made[key], safe_serialization=True)
        return made[key]

    return save


def load(folder: Path) -> StableDiffusion:
    generator = load_generator(str(folder), device="cpu")
    assert isinstance(generator, StableDiffusion)
    return generator


def noise(generator: StableDiffusion, count: int) -> Tensor:
    return standard_noise([f"p{i}" for i in range(count)], [7] * count, generator.latent_shape)


def draw(generator: StableDiffusion, prompts: list[str], z: Tensor) -> Tensor:
    return generator.decode(generator.denoise(z, generator.encode(prompts)))


def theirs(folder: Path, prompts: list[str], z: Tensor) -> Tensor:
    """diffusers' own pictures."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe(prompts, latents=z, num_inference_steps=1, guidance_scale=0.0, output_type="pt").images


@pytest.mark.parametrize(("scheduler", "prediction"), CASES, ids=IDS)
def test_the_picture_is_diffusers_own(published: Callable[..., Path], scheduler: type, prediction: str) -> None:
    folder = published(scheduler, prediction)
    generator = load(folder)
    assert generator.latent_shape == (4, 8, 8) and generator.pooled_width == 32
    z = noise(generator, len(PROMPTS))
    expected, got = theirs(folder, PROMPTS, z), draw(generator, PROMPTS, z)
    assert got.shape == expected.shape == (4, 3, 16, 16) and got.dtype == torch.float32
    # The comparison is worth something only where pictures are not clipped, and differ between prompts and noises.
    inside = (expected > 0) & (expected < 1)
    assert inside.float().mean() > 0.3 and expected.std() > 0.05
    assert (got.clamp(0, 1) - expected).abs().max() < TOLERANCE
    assert (expected[0] - theirs(folder, PROMPTS[::-1], z)[0]).abs().max() > FAR, "the prompt does not matter"

    def off() -> float:
        return float((draw(generator, PROMPTS, z).clamp(0, 1) - expected).abs().max())

    # What a wrong constant would do.
    right = generator.timestep
    generator.timestep = 980.0
    assert off() > FAR
    generator.timestep = right
    sigma, generator.sigma = generator.sigma, generator.sigma * 0.95
    assert prediction == "sample" or off() > FAR
    generator.sigma = sigma
    generator.vae.register_to_config(scaling_factor=0.18215)
    assert off() > FAR
    generator.vae.register_to_config(scaling_factor=0.37)
    assert off() < TOLERANCE


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
def test_less_usual_configurations_are_drawn_right_or_refused(published: Callable[..., Path], config: Any) -> None:
    folder = published(EulerDiscreteScheduler, "v_prediction", **config)
    try:
        generator = load(folder)
    except UserError as error:
        assert next(iter(config)) in str(error) and "\n" not in str(error)
        return
    z = noise(generator, 2)
    expected, got = theirs(folder, PROMPTS[:2], z), draw(generator, PROMPTS[:2], z)
    # diffusers goes from x_T to x_0 by adding, so that the rounding of x_T (sigma 4096 without SNR) stays in its x_0.
    tolerance = TOLERANCE * max(1, generator.sigma / 15)
    assert (got.clamp(0, 1) - expected).abs().max() < tolerance


@pytest.mark.parametrize(("scheduler", "prediction"), CASES, ids=IDS)
def test_constants_are_the_last_of_training(published: Callable[..., Path], scheduler: type, prediction: str) -> None:
    """t = 999, and the sigma of its alpha-bar: 14.6146 for Stable Diffusion's betas."""
    generator = load(published(scheduler, prediction))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = float((1 - betas).prod())
    assert generator.timestep == 999
    assert generator.sigma == pytest.approx(((1 - alpha_bar) / alpha_bar) ** 0.5, rel=1e-4)
    assert generator.sigma == pytest.approx(14.6146, abs=1e-3)


@pytest.mark.parametrize(("scheduler", "prediction"), CASES, ids=IDS)
def test_a_row_does_not_know_its_batch(published: Callable[..., Path], scheduler: type, prediction: str) -> None:
    generator = load(published(scheduler, prediction))
    z = noise(generator, len(PROMPTS))
    together = draw(generator, PROMPTS, z)
    for i, prompt in enumerate(PROMPTS):
        alone = draw(generator, [prompt], z[i : i + 1])[0]
        assert (alone - together[i]).abs().max() < TOLERANCE
    conditioning = generator.encode(PROMPTS)
    swapped = generator.decode(generator.denoise(z[[2, 0]], conditioning.rows(torch.tensor([2, 0]))))
    assert (swapped - together[[2, 0]]).abs().max() < TOLERANCE


def reference(generator: StableDiffusion) -> Callable[[Tensor, Tensor], Tensor]:
    """The same picture in float64, in the variance-preserving form of DDPM (alpha-bar, no sigma anywhere)."""
    unet, vae = copy.deepcopy(generator.unet).double(), copy.deepcopy(generator.vae).double()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    ab = (1 - betas).prod()

    def picture(z: Tensor, embeds: Tensor) -> Tensor:
        xt = (1 - ab).sqrt() * z
        out = unet(xt, 999, encoder_hidden_states=embeds).sample
        x0 = {
            "epsilon": (xt - (1 - ab).sqrt() * out) / ab.sqrt(),
            "v_prediction": ab.sqrt() * xt - (1 - ab).sqrt() * out,
            "sample": out,
        }[generator.prediction]
        return vae.decode(x0 / vae.config.scaling_factor).sample / 2 + 0.5

    return picture


@pytest.mark.parametrize(("scheduler", "prediction"), CASES, ids=IDS)
def test_the_gradient_is_the_finite_difference(
    published: Callable[..., Path], scheduler: type, prediction: str
) -> None:
    generator = load(published(scheduler, prediction))
    prompts = PROMPTS[:2]
    z = noise(generator, 2).requires_grad_()
    weight = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    conditioning = generator.encode(prompts)
    picture = generator.decode(generator.denoise(z, conditioning))
    (gradient,) = torch.autograd.grad((picture.double() * weight).sum(), z)
    assert gradient.isfinite().all() and (gradient != 0).all()
    slow, embeds = reference(generator), conditioning.embeds["prompt_embeds"].double()
    base = z.detach().double()
    with torch.no_grad():
        assert (slow(base, embeds) - picture).abs().max() < 20 * TOLERANCE
        for row, where in ((0, 0), (0, 100), (1, 37), (1, 255)):
            step = torch.zeros_like(base).view(2, -1)
            step[row, where] = 1e-4
            step = step.view_as(base)
            high, low = ((slow(base + s * step, embeds) * weight).sum() for s in (1, -1))
            expected = float(high - low) / 2e-4
            got = float(gradient.view(2, -1)[row, where])
            assert got == pytest.approx(expected, rel=2e-3, abs=2e-4 * float(gradient.abs().max()))


def test_the_generator_is_frozen(published: Callable[..., Path]) -> None:
    generator = load(published(*CASES[2]))
    z = noise(generator, 1).requires_grad_()
    draw(generator, ["a red circle"], z).sum().backward()
    assert z.grad is not None
    for network in (generator.unet, generator.vae, generator.text_encoder):
        assert not network.training
        assert all(not p.requires_grad and p.grad is None for p in network.parameters())
    assert not generator.encode(["a"]).pooled.requires_grad


def test_conditioning(published: Callable[..., Path], tokenizer: CLIPTokenizer) -> None:
    """float32, one row a prompt; the pooled row is the last hidden state at the end token."""
    generator = load(published(*CASES[0]))
    just_fits = "a " * (tokenizer.model_max_length - 2)
    prompts = [*PROMPTS, just_fits, just_fits + "a"]
    got = generator.encode(prompts)
    assert got.truncated == [False, False, False, True, False, True]
    embeds = got.embeds["prompt_embeds"]
    assert len(got) == 6 and embeds.shape == (6, tokenizer.model_max_length, 32) and embeds.dtype == torch.float32
    for i, prompt in enumerate(prompts):
        end = min(len(tokenizer(prompt)["input_ids"]), tokenizer.model_max_length) - 1
        assert torch.allclose(got.pooled[i], embeds[i, end], atol=1e-6)
    assert len({row.numpy().tobytes() for row in got.pooled[:4]}) == 4


# ---------------------------------------------------------------------------------------------------------- refusals


def refused(model: str, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        load_generator(model, device="cpu")
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_other_spacings_are_refused(published: Callable[..., Path], spacing: str) -> None:
    folder = published(EulerDiscreteScheduler, "epsilon", timestep_spacing=spacing)
    refused(str(folder), str(folder), spacing, "trailing")


def test_other_schedulers_are_refused(published: Callable[..., Path]) -> None:
    refused(str(published(LCMScheduler, "epsilon")), "LCMScheduler")


def test_what_is_no_pipeline_is_refused(published: Callable[..., Path], tmp_path: Path) -> None:
    refused(str(tmp_path), str(tmp_path), "model_index.json")
    refused(str(tmp_path / "absent"), "neither a folder here nor a Hub id")
    refused("pkg:pahi/absent", "pahi", "absent")
    refused("pkg:no_such_package/x", "no_such_package")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    refused(str(tmp_path), "FluxPipeline")
    (tmp_path / "model_index.json").write_text("{")
    refused(str(tmp_path), "model_index.json")


@pytest.mark.parametrize("damage", ["weights torn", "weights gone", "config gone"])
def test_a_damaged_download_is_one_line(published: Callable[..., Path], tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(published(*CASES[0]), folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "weights torn":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "weights gone":
        weights.unlink()
    else:
        (folder / "unet" / "config.json").unlink()
    refused(str(folder), str(folder))


def test_an_absent_gpu_is_one_line(published: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="unknown device"):
        load_generator(str(published(*CASES[0])), device="warp")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no GPU"):
            load_generator(str(published(*CASES[0])), device="cuda:0")


def test_the_hash_is_the_weights(published: Callable[..., Path], tmp_path: Path) -> None:
    """The same under another name, another after one bit of one weight."""
    original = published(*CASES[0])
    shutil.copytree(original, tmp_path / "copy")
    shutil.copytree(original, tmp_path / "nudged")
    weights = tmp_path / "nudged" / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    hashes = [load(folder).hash for folder in (original, tmp_path / "copy", tmp_path / "nudged")]
    assert hashes[0] == hashes[1] != hashes[2]
