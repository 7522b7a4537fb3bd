"""Chooses the family of a checkpoint from what it says of itself."""

import json

import torch

from pahi import models
from pahi.errors import UserError
from pahi.generators.base import Generator
from pahi.generators.stable_diffusion import StableDiffusion


def load_generator(
    model_id: str, revision: str | None = None, dtype: str = "float32", device: str = "auto"
) -> Generator:
    """A frozen generator from a diffusers folder or Hub id. Raises UserError for a family that is not supported."""
    folder = models.resolve(model_id, revision)
    index = folder / "model_index.json"
    if not index.exists():
        raise UserError(f"{model_id}: no model_index.json, so it is not a diffusers pipeline")
    try:
        name = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{model_id}: model_index.json names no pipeline; fetch the model again") from None
    if name != "StableDiffusionPipeline":
        raise UserError(f"{model_id}: {name} is not supported yet; StableDiffusionPipeline is")
    return StableDiffusion.load(model_id, folder, getattr(torch, dtype), pick_device(device))


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
