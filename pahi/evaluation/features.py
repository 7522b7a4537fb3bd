"""Features of pictures, from a reward that is loaded anyway: what looks alike to it lies close."""

import hashlib
import io
from collections.abc import Iterable
from typing import Any, Protocol

import fsspec
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pahi.artifacts.fingerprint import content_hash
from pahi.errors import UserError, first_line
from pahi.rewards import Reward
from pahi.rewards.preprocess import Pixels
from pahi.rewards.towers import Towers

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Encoder(Protocol):
    """A reward with a picture tower: PickScore, CLIPScore, HPSv2."""

    name: str
    towers: Towers
    pixels: Pixels


def encoder(rewards: Iterable[Reward]) -> Encoder | None:
    """The first reward with a picture tower, or None."""
    found: Any = next((r for r in rewards if isinstance(getattr(r, "towers", None), Towers)), None)
    return found


@torch.no_grad()
def features(encoder: Encoder, images: Tensor) -> np.ndarray:
    """Pictures (batch, 3, h, w) around [0, 1] -> (batch, width), float32, of unit length."""
    return encoder.towers.image(encoder.pixels(images)).float().cpu().numpy()


def reference_files(path: str) -> dict[str, bytes]:
    """Every picture file below a folder or fsspec URL, by its path there. Raises UserError where there is none."""
    try:
        fs, root = fsspec.core.url_to_fs(path)
        found = [name for name in sorted(fs.find(root)) if name.lower().endswith(PICTURES)]
        files = {name.removeprefix(root).lstrip("/"): fs.cat_file(name) for name in found}
    except Exception as error:  # every file system has its own
        raise UserError(f"evaluate.reference: cannot read {path}: {first_line(error)}") from None
    if len(files) < 2:
        raise UserError(f"evaluate.reference: {path} holds {len(files)} pictures; a comparison needs two at least")
    return files


def reference_hash(files: dict[str, bytes]) -> str:
    """What the fingerprint sees of them."""
    return content_hash({name: hashlib.sha256(body).hexdigest() for name, body in files.items()})


def reference_features(encoder: Encoder, files: dict[str, bytes], device: torch.device) -> np.ndarray:
    """(pictures, width). Raises UserError where one is no picture."""
    rows = []
    for name, body in files.items():
        try:
            with Image.open(io.BytesIO(body)) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"evaluate.reference: {name} is no picture: {first_line(error)}") from None
        tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(device).float() / 255
        rows.append(features(encoder, tensor))
    return np.concatenate(rows)
