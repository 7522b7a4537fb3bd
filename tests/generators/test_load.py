"""Loading: what is put together from several places, what is refused, and what the hash says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, EulerDiscreteScheduler, LCMScheduler
from published import BY_NAME, ONE, PROMPTS, SD, TRAILING, XL, Case, draw, noise, theirs, unet, vae, variant
from safetensors.torch import save_file

from pahi.errors import UserError
from pahi.generators import load_generator
from pahi.generators.load import generator_hash, lineage
from pahi.settings import Generator as GeneratorSettings

Published = Callable[[Case], Path]
TOLERANCE = 2e-5


def settings(folder: Path, **options: Any) -> GeneratorSettings:
    return GeneratorSettings.model_validate({"id": str(folder)} | options)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double().clamp(0, 1) - b.double().clamp(0, 1)).abs().max())


# ----------------------------------------------------------------------------------------------------- several places


@pytest.fixture(scope="module")
def hyper(published: Published, shake: Callable, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """SDXL as its base is published (Euler, leading), and another repository with a UNet's weights as one file."""
    torch.manual_seed(5)
    base = variant(BY_NAME["sdxl-turbo"], "base", scheduler=EulerDiscreteScheduler(**TRAILING | LEADING))
    folder = published(base)
    other = diffusers.UNet2DConditionModel.from_config(diffusers.UNet2DConditionModel.load_config(folder / "unet"))
    shake(other, 77)
    repository = tmp_path_factory.mktemp("hyper")
    save_file(other.state_dict(), repository / "one-step.safetensors")
    torch.save(other.state_dict(), repository / "one-step.bin")
    save_file({"nothing": torch.zeros(1)}, repository / "other.safetensors")
    return folder, repository


LEADING = {"timestep_spacing": "leading"}


@pytest.mark.parametrize("file", ["one-step.safetensors", "one-step.bin"])
def test_hyper_sdxl_is_a_base_and_a_unet(hyper: tuple[Path, Path], file: str) -> None:
    """As its card puts it together: from_config, load_state_dict, LCMScheduler.from_config, timesteps=[800]."""
    base, repository = hyper
    options = {"parts": {"unet": {"id": str(repository), "file": file}}, "scheduler": "LCMScheduler", "timestep": 800}
    generator = load_generator(str(base), device="cpu", **options)
    z = noise(generator, len(PROMPTS))

    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(base)
    pipe.unet.load_state_dict(torch.load(repository / "one-step.bin", weights_only=True))
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(PROMPTS, latents=z, timesteps=[800], output_type="pt", **ONE).images
    assert distance(draw(generator, PROMPTS, z), expected) < TOLERANCE
    # The base's own weights would draw something else.
    own = load_generator(str(base), device="cpu", scheduler="LCMScheduler", timestep=800)
    assert distance(draw(own, PROMPTS, z), expected) > 100 * TOLERANCE


def test_the_base_is_read_without_the_weights_it_does_not_need(hyper: tuple[Path, Path], tmp_path: Path) -> None:
    base, repository = hyper
    lean = tmp_path / "lean"
    shutil.copytree(base, lean)
    (lean / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    options = {"parts": {"unet": {"id": str(repository), "file": "one-step.safetensors"}}, "scheduler": "LCMScheduler"}
    both = [load_generator(str(folder), device="cpu", **options) for folder in (base, lean)]
    assert both[0].hash == both[1].hash
    z = noise(both[0], 1)
    assert torch.equal(draw(both[0], ["a"], z), draw(both[1], ["a"], z))
    names = lineage(settings(base, **options))
    assert "unet/config.json" in names["files"] and "unet/diffusion_pytorch_model.safetensors" not in names["files"]
    assert list(names["parts"]["unet"]["files"]) == ["one-step.safetensors"]


def test_a_transformer_and_its_scheduler_come_as_folders(published: Published, tmp_path: Path, shake: Callable) -> None:
    """PixArt-DMD: the transformer and the scheduler of one repository inside the pipeline of another."""
    case = BY_NAME["pixart-dmd"]
    base = published(variant(case, "base", scheduler=DDIMScheduler()))
    options = {
        "timestep": 400,
        "parts": {
            "transformer": {"id": str(published(case)), "subfolder": "transformer"},
            "scheduler": {"id": str(published(case)), "subfolder": "scheduler"},
        },
    }
    generator = load_generator(str(base), device="cpu", **options)
    z = noise(generator, len(PROMPTS))
    assert distance(draw(generator, PROMPTS, z), theirs(case, published(case), PROMPTS, z)) < TOLERANCE


def test_lightning_is_a_scheduler_of_other_entries(published: Published, hyper: tuple[Path, Path]) -> None:
    base, _ = hyper
    entries = {"timestep_spacing": "trailing", "prediction_type": "sample"}
    generator = load_generator(str(base), device="cpu", scheduler_config=entries)
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(base)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, **entries)
    pipe.set_progress_bar_config(disable=True)
    z = noise(generator, 2)
    expected = pipe(PROMPTS[:2], latents=z, output_type="pt", **ONE).images
    assert distance(draw(generator, PROMPTS[:2], z), expected) < TOLERANCE


@pytest.mark.parametrize("pipeline", [SD, XL])
def test_a_lora_is_fused_as_diffusers_does(published: Published, tmp_path: Path, pipeline: str) -> None:
    """Hyper-SD's one step for Stable Diffusion 1.5 is published as a LoRA alone."""
    case = BY_NAME["hyper-sd" if pipeline == SD else "sdxl-turbo"]
    folder = published(case)
    names = [name for name in unet_names(folder) if name.endswith(("to_q", "to_v", "conv1"))]
    assert len(names) > 4
    draws = torch.Generator().manual_seed(9)
    state = {}
    for name, shape in ((n, unet_names(folder)[n]) for n in names):
        out, *inner = shape
        state[f"unet.{name}.lora_A.weight"] = 0.3 * torch.randn(2, *inner, generator=draws)
        state[f"unet.{name}.lora_B.weight"] = 0.3 * torch.randn(out, 2, *[1] * (len(inner) - 1), generator=draws)
    save_file(state, tmp_path / "one-step.safetensors")
    part = {"id": str(tmp_path), "file": "one-step.safetensors"}
    generator = load_generator(str(folder), device="cpu", parts={"lora": part})
    assert not any("lora" in name for name, _ in generator.denoiser.named_parameters())

    pipe = getattr(diffusers, pipeline).from_pretrained(folder)
    pipe.load_lora_weights(str(tmp_path), weight_name="one-step.safetensors")
    pipe.set_progress_bar_config(disable=True)
    z = noise(generator, len(PROMPTS))
    expected = pipe(PROMPTS, latents=z, output_type="pt", **case.call).images
    assert distance(draw(generator, PROMPTS, z), expected) < TOLERANCE
    assert distance(draw(load_generator(str(folder), device="cpu"), PROMPTS, z), expected) > 100 * TOLERANCE


def unet_names(folder: Path) -> dict[str, torch.Size]:
    """Shapes of a UNet's weights, by the names of their layers."""
    network = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    return {n.removesuffix(".weight"): p.shape for n, p in network.named_parameters() if n.endswith(".weight")}


# ------------------------------------------------------------------------------------------------------- autoencoders


@pytest.fixture(scope="module")
def small(shake: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AutoencoderTiny of the same latents."""
    torch.manual_seed(6)
    network = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    shake(network, 6)
    folder = tmp_path_factory.mktemp("taesd")
    network.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["sd-turbo", "sdxl-turbo", "flux-schnell"])
def test_another_autoencoder_draws_as_in_diffusers(published: Published, small: Path, name: str) -> None:
    case = BY_NAME[name]
    generator = load_generator(str(published(case)), device="cpu", **case.options, parts={"vae": {"id": str(small)}})
    assert isinstance(generator.vae, AutoencoderTiny) and generator.size == (16, 16)
    pipe = getattr(diffusers, case.pipeline).from_pretrained(published(case))
    pipe.vae = AutoencoderTiny.from_pretrained(small)
    pipe.set_progress_bar_config(disable=True)
    z = noise(generator, len(PROMPTS))
    latents = generator.latents_for_pipeline(z)
    expected = pipe(PROMPTS, latents=latents, output_type="pt", **case.call).images
    assert distance(draw(generator, PROMPTS, z), expected) < TOLERANCE


def test_a_training_autoencoder_decodes_only_what_gradients_flow_through(published: Published, small: Path) -> None:
    folder = str(published(BY_NAME["sd-turbo"]))
    plain = load_generator(folder, device="cpu")
    draft = load_generator(folder, device="cpu", parts={"vae": {"id": str(small)}})
    both = load_generator(folder, device="cpu", training_autoencoder={"id": str(small)})
    z = noise(plain, 2)
    with torch.no_grad():
        assert torch.equal(draw(both, PROMPTS[:2], z), draw(plain, PROMPTS[:2], z))
    z.requires_grad_()
    gradients = []
    for generator in (both, draft, plain):
        picture = draw(generator, PROMPTS[:2], z)
        gradients.append(torch.autograd.grad(picture.square().sum(), z)[0])
    assert torch.allclose(gradients[0], gradients[1], atol=1e-5) and gradients[0].abs().max() > 0
    assert not torch.allclose(gradients[0], gradients[2], atol=1e-3)


def test_an_autoencoder_that_overflows_in_float16_stays_in_float32(published: Published, tmp_path: Path) -> None:
    folder = str(published(BY_NAME["sdxl-turbo"]))
    assert load_generator(folder, device="cpu", dtype="float16").vae.dtype == torch.float32  # force_upcast, by default
    assert load_generator(folder, device="cpu", dtype="bfloat16").vae.dtype == torch.bfloat16
    assert load_generator(folder, device="cpu", dtype="bfloat16", vae_dtype="float32").vae.dtype == torch.float32
    vae(force_upcast=False).save_pretrained(tmp_path)
    fixed = load_generator(folder, device="cpu", dtype="float16", parts={"vae": {"id": str(tmp_path)}})
    assert fixed.vae.dtype == torch.float16 == fixed.dtype


def test_latent_statistics_are_applied(published: Published, shake: Callable, tmp_path: Path) -> None:
    """SDXL checkpoints whose autoencoder names the mean and standard deviation of its latents."""
    network = vae(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.5, 0.6, 0.7, 0.8])
    shake(network, 8)
    network.save_pretrained(tmp_path)
    case = BY_NAME["sdxl-turbo"]
    generator = load_generator(str(published(case)), device="cpu", parts={"vae": {"id": str(tmp_path)}})
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(
        published(case), vae=AutoencoderKL.from_pretrained(tmp_path)
    )
    pipe.set_progress_bar_config(disable=True)
    z = noise(generator, 2)
    expected = pipe(PROMPTS[:2], latents=z, output_type="pt", **case.call).images
    assert distance(draw(generator, PROMPTS[:2], z), expected) < TOLERANCE


# -------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("name", ["sd-turbo", "sdxl-turbo", "flux-schnell", "sana-sprint"])
def test_another_size_draws_as_in_diffusers(published: Published, name: str) -> None:
    case = BY_NAME[name]
    side = 64 if name == "sana-sprint" else 24
    generator = load_generator(str(published(case)), device="cpu", **case.options | {"size": side})
    assert generator.size == (side, side)
    z = noise(generator, 2)
    there = variant(case, "size", call=case.call | {"height": side, "width": side})
    expected = theirs(there, published(case), PROMPTS[:2], generator.latents_for_pipeline(z))
    assert distance(draw(generator, PROMPTS[:2], z), expected) < TOLERANCE


# ----------------------------------------------------------------------------------------------------------- refusals


def refused(model: Path | str, *words: str, **options: Any) -> None:
    with pytest.raises(UserError) as error:
        load_generator(str(model), device="cpu", **options)
    message = str(error.value)
    assert "\n" not in message
    for word in (str(model), *words):
        assert word in message


def test_what_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "model_index.json")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    refused(tmp_path, "KandinskyPipeline is not supported", "FluxPipeline")
    for text in ("{", "[]", "{}", '{"_class_name": 3}'):
        (tmp_path / "model_index.json").write_text(text)
        refused(tmp_path, "model_index.json names no pipeline")


def test_what_is_not_one_step_is_refused(published: Published) -> None:
    case = BY_NAME["sd-turbo"]
    refused(published(variant(case, "ddim", scheduler=DDIMScheduler())), "DDIMScheduler")
    leading = variant(case, "leading", scheduler=EulerDiscreteScheduler(**TRAILING | LEADING))
    refused(published(leading), "'leading'", "'trailing'")
    refused(published(case), "guidance 7.5 needs a second pass", guidance=7.5)
    refused(published(BY_NAME["flux-schnell"]), "guidance", guidance=3.5, size=16)
    refused(published(variant(BY_NAME["pixart-dmd"], "base", scheduler=DDIMScheduler())), "DDPMScheduler")
    refused(published(BY_NAME["hyper-sd"]), "timestep 1000", timestep=1000)


def test_sizes_that_do_not_fit_are_refused(published: Published) -> None:
    refused(published(BY_NAME["sd-turbo"]), "multiple of 2", size=17)
    refused(published(BY_NAME["flux-schnell"]), "multiple of 4", size=18)
    refused(published(BY_NAME["pixart-dmd"]), "16 pixels only", size=32, timestep=400)


def test_what_a_network_was_not_made_for_is_refused(published: Published, tmp_path: Path) -> None:
    unet(in_channels=9).save_pretrained(tmp_path / "inpainting")
    unet(time_cond_proj_dim=16).save_pretrained(tmp_path / "guided")
    unet(sample_size=(8, 16)).save_pretrained(tmp_path / "wide")
    folder = published(BY_NAME["sd-turbo"])
    for name, words in (("inpainting", "9 channels"), ("guided", "generator.guidance"), ("wide", "square")):
        refused(folder, words, parts={"unet": {"id": str(tmp_path / name)}})


def test_parts_that_do_not_fit_are_refused(published: Published, hyper: tuple[Path, Path], tmp_path: Path) -> None:
    base, repository = hyper
    here = {"id": str(repository)}
    refused(base, "no part 'transformer'", "unet", parts={"transformer": here})
    with pytest.raises(UserError, match=r"has no two-step\.safetensors"):
        load_generator(str(base), device="cpu", parts={"unet": here | {"file": "two-step.safetensors"}})
    with pytest.raises(UserError, match=r"other\.safetensors does not fit the unet"):
        load_generator(str(base), device="cpu", parts={"unet": here | {"file": "other.safetensors"}})
    with pytest.raises(UserError, match="a single file"):
        load_generator(str(base), device="cpu", parts={"text_encoder": here | {"file": "other.safetensors"}})
    with pytest.raises(UserError, match="name its file"):
        load_generator(str(base), device="cpu", parts={"lora": here})
    refused(base, "no diffusers class 'WrongScheduler'", scheduler="WrongScheduler")


@pytest.mark.parametrize("damage", ["weights torn", "weights gone", "config gone", "part gone"])
@pytest.mark.parametrize("name", ["sd-turbo", "flux-schnell"])
def test_a_damaged_folder_is_one_line(published: Published, tmp_path: Path, damage: str, name: str) -> None:
    case = BY_NAME[name]
    folder = tmp_path / "model"
    shutil.copytree(published(case), folder)
    part = folder / ("unet" if name == "sd-turbo" else "transformer")
    weights = part / "diffusion_pytorch_model.safetensors"
    if damage == "weights torn":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "weights gone":
        weights.unlink()
    elif damage == "config gone":
        (part / "config.json").unlink()
    else:
        shutil.rmtree(folder / "text_encoder")
    refused(folder, **case.options)


def test_an_absent_gpu_is_one_line(published: Published) -> None:
    folder = str(published(BY_NAME["sd-turbo"]))
    with pytest.raises(UserError, match="unknown device"):
        load_generator(folder, device="warp")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no GPU"):
            load_generator(folder, device="cuda:0")


# -------------------------------------------------------------------------------------------------------------- hashes


def test_the_hash_is_the_weights(published: Published, tmp_path: Path) -> None:
    """The same under another name and beside other files, another after one bit of one weight."""
    original = published(BY_NAME["sd-turbo"])
    for name in ("copy", "nudged"):
        shutil.copytree(original, tmp_path / name)
    (tmp_path / "copy" / "README.md").write_text("a card")
    (tmp_path / "copy" / ".cache").mkdir()
    (tmp_path / "copy" / ".cache" / "x.json").write_text("{}")
    weights = tmp_path / "nudged" / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    hashes = [generator_hash(settings(folder)) for folder in (original, tmp_path / "copy", tmp_path / "nudged")]
    assert hashes[0] == hashes[1] != hashes[2]
    assert load_generator(str(original), device="cpu").hash == hashes[0]


def test_the_hash_knows_what_changes_the_picture(published: Published, small: Path, hyper: tuple[Path, Path]) -> None:
    base, repository = hyper
    part = {"id": str(repository), "file": "one-step.safetensors"}
    changes: list[dict[str, Any]] = [
        {},
        {"timestep": 800},
        {"guidance": 0.5},
        {"size": 32},
        {"vae_dtype": "bfloat16"},
        {"scheduler": "LCMScheduler"},
        {"scheduler_config": {"prediction_type": "sample"}},
        {"parts": {"unet": part}},
        {"parts": {"unet": part | {"file": "one-step.bin"}}},
        {"parts": {"vae": {"id": str(small)}}},
        {"training_autoencoder": {"id": str(small)}},
    ]
    hashes = [generator_hash(settings(base, **change)) for change in changes]
    assert len(set(hashes)) == len(changes)
    # What only says how fast, or where from.
    for change in ("checkpointing", "vae_slicing", "channels_last", "compile"):
        assert generator_hash(settings(base, **{change: True})) == hashes[0]
    assert generator_hash(settings(base, revision="x", license="y", dtype="bfloat16")) == hashes[0]
