"""Chooses the family of a checkpoint from what it says of itself, and puts it together where it has several parts.

The next family is one more line in FAMILIES and one more file beside this one.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pahi import fetch, models
from pahi.artifacts.fingerprint import content_hash
from pahi.errors import UserError, missing
from pahi.generators.base import Generator
from pahi.generators.flux import Flux
from pahi.generators.latent_consistency import LatentConsistency
from pahi.generators.pipeline import OneStepPipeline, autoencoder_dtype
from pahi.generators.pixart import PixArt
from pahi.generators.sana import SanaSprint
from pahi.generators.stable_diffusion import StableDiffusion
from pahi.generators.stable_diffusion_xl import StableDiffusionXL
from pahi.settings import Generator as GeneratorSettings
from pahi.settings import Part

FAMILIES: tuple[type[OneStepPipeline], ...] = (
    StableDiffusion,
    LatentConsistency,
    StableDiffusionXL,
    PixArt,
    SanaSprint,
    Flux,
)
LORA = "lora"
# What says where the weights are or how fast they run, but does not change the picture (their hashes do).
PLACES = {"id", "revision", "license", "dtype", "parts", "training_autoencoder"}


def load_generator(
    model_id: str, revision: str | None = None, dtype: str = "float32", device: str = "auto", **options: Any
) -> Generator:
    """A frozen generator from a diffusers folder, fsspec URL or Hub id; `options` are settings of `generator`.

    Raises UserError for a family that is not supported, and for files that are missing, damaged or out of reach.
    """
    settings = GeneratorSettings.model_validate({"id": model_id, "revision": revision, "dtype": dtype} | options)
    return load(settings, pick_device(device))


def load(settings: GeneratorSettings, device: torch.device) -> OneStepPipeline:
    """The generator that the settings describe, frozen, on the device. Raises UserError."""
    import diffusers

    folder = base_folder(settings)
    index = read_index(settings.id, folder)
    family = family_of(settings.id, index["_class_name"])
    dtype = getattr(torch, settings.dtype)
    replaced: dict[str, Any] = {name: None for name in fetch.NEVER if name in index}
    known = (*fetch.components(index), LORA)
    for name in settings.parts:
        if name not in known:
            raise UserError(f"{settings.id} has no part {name!r}; it has {', '.join(known)}")
    with explained(settings.id):
        for name, part in settings.parts.items():
            if name != LORA:
                replaced[name] = load_part(name, part, folder, index[name], dtype)
        if settings.scheduler or settings.scheduler_config:
            replaced["scheduler"] = other_scheduler(settings, folder, replaced.get("scheduler"))
        pipe = getattr(diffusers, index["_class_name"]).from_pretrained(folder, dtype=dtype, **replaced)
        if LORA in settings.parts:
            fuse_lora(pipe, settings.parts[LORA])
        pipe.vae.to(autoencoder_dtype(settings, pipe.vae, dtype))
        pipe.to(device)
        generator = family(pipe, settings, generator_hash(settings))
        if settings.training_autoencoder is not None:
            vae = load_part("training_autoencoder", settings.training_autoencoder, folder, index["vae"], dtype)
            generator.add_training_vae(vae.to(device, autoencoder_dtype(settings, vae, dtype)))
    generator.revision = fetch.commit_of(folder) or settings.revision
    return generator


def with_decoder(generator: Generator, settings: GeneratorSettings, part: Part) -> OneStepPipeline:
    """The same generator with another decoder of the same latents, beside the one that is loaded. Raises UserError."""
    assert isinstance(generator, OneStepPipeline)
    folder = base_folder(settings)
    declared, dtype = read_index(settings.id, folder)["vae"], getattr(torch, settings.dtype)
    with explained(part.id):
        vae = load_part("vae", part, folder, declared, dtype)
        return generator.with_vae(vae.to(generator.device, autoencoder_dtype(settings, vae, dtype)))


def from_pipeline(pipe: Any, side: int | None = None) -> OneStepPipeline:
    """A diffusers pipeline that is loaded already, frozen where it is. Raises UserError where it is not one step.

    `side` is that of the latents, for families whose configuration names none (FLUX).
    """
    name = str(getattr(pipe.config, "_name_or_path", "") or "pipeline")
    family = family_of(name, type(pipe).__name__)
    size = None if family.sized or side is None else side * pipe.vae_scale_factor
    return family(pipe, GeneratorSettings.model_validate({"id": name, "size": size}))


def family_of(model_id: str, pipeline: str) -> type[OneStepPipeline]:
    """The family that a pipeline's class name belongs to."""
    for family in FAMILIES:
        if pipeline in family.pipelines:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.pipelines)
    raise UserError(f"{model_id}: {pipeline} is not supported; supported are {known}")


# ------------------------------------------------------------------------------------------------------------- lineage


def base_folder(settings: GeneratorSettings) -> Path:
    """The folder of the pipeline itself, fetched without the weights of parts that come from elsewhere."""
    return models.resolve(settings.id, settings.revision, skip=replaced_parts(settings))


def part_folder(part: Part) -> Path:
    """The folder that a part's patterns are relative to."""
    folder = models.resolve(part.id, part.revision, only=part_files(part))
    if part.file and not (folder / part_files(part)[0]).is_file():
        raise UserError(f"{part.id} has no {part_files(part)[0]}")
    return folder


def generator_hash(settings: GeneratorSettings) -> str:
    """One hash over everything that draws: every part's files, and the settings that change the picture.

    That of a plain checkpoint is the hash of its files.
    """
    weights = models.model_hash(base_folder(settings), skip=replaced_parts(settings))
    plain = GeneratorSettings(id=settings.id).fingerprinted()  # type: ignore[call-arg]
    own = {k: v for k, v in settings.fingerprinted().items() if k not in PLACES and v != plain[k]}
    parts = {
        name: models.model_hash(part_folder(part), part_files(part)) for name, part in _all_parts(settings).items()
    }
    return content_hash({"weights": weights, "parts": parts, "settings": own}) if parts or own else weights


def lineage(settings: GeneratorSettings) -> dict[str, Any]:
    """Every repository that the generator is made of: its commit, and sha256 and size of each file."""
    folder = base_folder(settings)
    found: dict[str, Any] = {
        "revision": fetch.commit_of(folder) or settings.revision,
        "files": models.files(folder, skip=replaced_parts(settings)),
    }
    for name, part in _all_parts(settings).items():
        where = part_folder(part)
        entry = {"id": part.id, "revision": fetch.commit_of(where) or part.revision}
        found.setdefault("parts", {})[name] = entry | {"files": models.files(where, part_files(part))}
    return found


def _all_parts(settings: GeneratorSettings) -> dict[str, Part]:
    extra = {"training_autoencoder": settings.training_autoencoder} if settings.training_autoencoder else {}
    return settings.parts | extra


def replaced_parts(settings: GeneratorSettings) -> tuple[str, ...]:
    """The parts that come from elsewhere, so that the pipeline's own repository need not be asked for them."""
    return tuple(sorted(name for name in settings.parts if name != LORA))


def part_files(part: Part) -> tuple[str, ...]:
    """Patterns of the files that a part is read from."""
    prefix = f"{part.subfolder}/" if part.subfolder else ""
    if part.file:
        return (prefix + part.file,)
    names = ("*.json", "*.safetensors", "*.txt", "*.model")
    return tuple(prefix + name for name in names)


Find = Callable[[str, str | None, tuple[str, ...], tuple[str, ...]], str]


def located(settings: GeneratorSettings, find: Find) -> GeneratorSettings:
    """The same generator from other places: `find(id, revision, only, skip)` says where each repository is."""

    def here(part: Part) -> Part:
        return part.model_copy(update={"id": find(part.id, part.revision, part_files(part), ())})

    extra = settings.training_autoencoder
    return settings.model_copy(
        update={
            "id": find(settings.id, settings.revision, (), replaced_parts(settings)),
            "parts": {name: here(part) for name, part in settings.parts.items()},
            "training_autoencoder": None if extra is None else here(extra),
        }
    )


# --------------------------------------------------------------------------------------------------------------- parts


def read_index(model_id: str, folder: Path) -> dict[str, Any]:
    """A pipeline's model_index.json."""
    path = folder / fetch.INDEX
    if not path.exists():
        raise UserError(f"{model_id}: no {fetch.INDEX}, so it is not a diffusers pipeline")
    try:
        index = json.loads(path.read_text())
        if isinstance(index["_class_name"], str):
            return index
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{model_id}: {fetch.INDEX} names no pipeline; fetch the model again")


def load_part(name: str, part: Part, base: Path, declared: list[str], dtype: torch.dtype) -> Any:
    """A part that comes from elsewhere: of the class that its own configuration names, or for a single file of weights
    the architecture of the pipeline's own part. `declared` is the library and class that the pipeline's index names."""
    folder = part_folder(part) / part.subfolder
    if part.file:
        return _from_file(name, part, folder / part.file, base, declared, dtype)
    if name == "scheduler":
        config = json.loads((folder / "scheduler_config.json").read_text())
        return _class("diffusers", config["_class_name"]).from_config(config)
    library, class_name = declared
    config_file = folder / "config.json"
    if library == "diffusers" and config_file.exists():
        class_name = json.loads(config_file.read_text()).get("_class_name", class_name)
    cls = _class(library, class_name)
    return cls.from_pretrained(folder, dtype=dtype) if issubclass(cls, nn.Module) else cls.from_pretrained(folder)


def _from_file(name: str, part: Part, file: Path, base: Path, declared: list[str], dtype: torch.dtype) -> nn.Module:
    library, class_name = declared
    if library != "diffusers":
        raise UserError(f"part {name!r} ({part.id}): a single file can replace a denoiser or an autoencoder only")
    cls = _class(library, class_name)
    network = cls.from_config(cls.load_config(base / name)).to(dtype)
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(file)
    else:
        state = torch.load(file, map_location="cpu", weights_only=True)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:160]
        raise UserError(f"{part.id}: {part.file} does not fit the {name} of {base.name}: {detail}") from None
    return network


def other_scheduler(settings: GeneratorSettings, folder: Path, part: Any) -> Any:
    """The scheduler with the class and the entries that the settings name, over the configuration that is there."""
    config = dict(part.config) if part is not None else {}
    if part is None:
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    cls = _class("diffusers", settings.scheduler or config["_class_name"])
    return cls.from_config(config, **settings.scheduler_config)


def fuse_lora(pipe: Any, part: Part) -> None:
    """Adds a LoRA to the weights, for good, as diffusers does: W + B A."""
    folder = part_folder(part)
    if not part.file:
        raise UserError(f"part 'lora' ({part.id}): name its file")
    pipe.load_lora_weights(str(folder), weight_name=part_files(part)[0])
    pipe.fuse_lora()
    pipe.unload_lora_weights()


def _class(library: str, name: str) -> Any:
    import importlib

    cls = getattr(importlib.import_module(library), name, None) if library in ("diffusers", "transformers") else None
    if cls is None:
        raise UserError(f"there is no {library} class {name!r} here")
    return cls


@contextmanager
def explained(model_id: str) -> Iterator[None]:
    """Turns what the libraries raise while loading into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except UserError as error:
        raise UserError(str(error) if model_id in str(error) else f"{model_id}: {error}") from None
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, ImportError, EOFError, RuntimeError, TypeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{model_id}: cannot be loaded: {reason}{missing(error)}") from None


def pick_device(device: str) -> torch.device:
    """auto is the first GPU where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"unknown device {device!r}; try auto, cpu or cuda") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device!r}: torch sees no GPU here")
    return chosen
