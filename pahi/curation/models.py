"""Models that look at pictures for curation: a classifier of unsafe ones, and an embedder.

Each is a model that transformers loads, or any function: `module:function`, a list of RGB pictures (PIL) in; out comes
one probability a picture, or one vector a picture.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pahi import models
from pahi.errors import PahiError, UserError, first_line
from pahi.functions import find_function, function_hash
from pahi.generators.load import explained
from pahi.settings import Embedder, PictureClassifier

Pictures = list[Image.Image]


def digest(settings: PictureClassifier | Embedder) -> str:
    """What the fingerprint of the dataset knows of a model: a hash of its files, or of the function's module."""
    if _is_function(settings.id):
        _function(settings.id)  # whose absence is said before anything is hashed
        return function_hash(settings.id)
    return models.model_hash(_folder(settings))


def load_classifier(settings: PictureClassifier, device: torch.device) -> Callable[[Pictures], np.ndarray]:
    """Pictures -> (n,) probabilities that each is unsafe. Raises UserError when it cannot be loaded."""
    if _is_function(settings.id):
        return _checked(settings.id, _function(settings.id), 1)
    from transformers import AutoModelForImageClassification

    model, folder = _network(AutoModelForImageClassification, settings, device)
    known = {str(name).lower(): int(i) for i, name in model.config.id2label.items()}
    for label in settings.labels:
        if label.lower() not in known:
            raise UserError(f"curate.unsafe.labels: {settings.id} knows no {label!r}, but {', '.join(known)}")
    wanted = [known[label.lower()] for label in settings.labels]
    prepare = _processor(settings.id, folder)

    @torch.no_grad()
    def classify(pictures: Pictures) -> np.ndarray:
        logits = model(pixel_values=prepare(pictures).to(device, model.dtype)).logits
        return logits.float().softmax(-1)[:, wanted].sum(-1).cpu().numpy()

    return classify


def load_embedder(settings: Embedder, device: torch.device) -> Callable[[Pictures], np.ndarray]:
    """Pictures -> (n, d) vectors. Raises UserError when it cannot be loaded."""
    if _is_function(settings.id):
        return _checked(settings.id, _function(settings.id), 2)
    from transformers import AutoModel

    model, folder = _network(AutoModel, settings, device)
    prepare = _processor(settings.id, folder)

    @torch.no_grad()
    def embed(pictures: Pictures) -> np.ndarray:
        pixels = prepare(pictures).to(device, model.dtype)
        got = model.get_image_features(pixel_values=pixels) if hasattr(model, "get_image_features") else model(pixels)
        if not isinstance(got, torch.Tensor):
            pooled = getattr(got, "pooler_output", None)
            got = pooled if pooled is not None else got.last_hidden_state[:, 0]
        return got.float().flatten(1).cpu().numpy()

    return embed


def _is_function(target: str) -> bool:
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", target) is not None and not target.startswith("pkg:")


def _function(target: str) -> Any:
    return find_function(target, "curate")


def _checked(target: str, function: Any, dimensions: int) -> Callable[[Pictures], np.ndarray]:
    def call(pictures: Pictures) -> np.ndarray:
        try:
            got = function(pictures)
        except Exception as error:  # a service fails in as many ways as there are services
            raise PahiError(f"{target} failed: {type(error).__name__}: {first_line(error)}") from error
        try:
            values = np.asarray(got, dtype=np.float32)
        except (TypeError, ValueError):
            raise UserError(f"{target}: expected numbers, got {type(got).__name__}") from None
        if values.ndim != dimensions or len(values) != len(pictures):
            what = "one number" if dimensions == 1 else "one vector"
            raise UserError(f"{target}: expected {what} for each of {len(pictures)} pictures, got shape {values.shape}")
        return values

    return call


def _network(auto: Any, settings: PictureClassifier | Embedder, device: torch.device) -> tuple[Any, Path]:
    """The model by one of transformers' Auto classes, and its folder."""
    folder = _folder(settings)
    with explained(settings.id):
        return auto.from_pretrained(folder).to(device).eval(), folder


def _folder(settings: PictureClassifier | Embedder) -> Path:
    return models.resolve(settings.id, settings.revision)


def _processor(model_id: str, folder: Path) -> Callable[[Pictures], torch.Tensor]:
    from transformers import AutoImageProcessor

    with explained(model_id):
        processor = AutoImageProcessor.from_pretrained(folder)
    return lambda pictures: processor(images=pictures, return_tensors="pt")["pixel_values"]
