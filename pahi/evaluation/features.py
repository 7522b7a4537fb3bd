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
from pahi.prompts.location import shown
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


class Reference:
    """Given pictures, below a folder or fsspec URL; read one at a time, however many there are."""

    def __init__(self, path: str) -> None:
        """Raises UserError where there are fewer than two."""
        self.path = path
        try:
            self.fs, root = fsspec.core.url_to_fs(path)
            found = [name for name in sorted(self.fs.find(root)) if name.lower().endswith(PICTURES)]
        except Exception as error:  # every file system has its own
            raise UserError(f"evaluate.reference: cannot read {shown(path)}: {first_line(error)}") from None
        self.files = {name.removeprefix(root).lstrip("/"): name for name in found}
        if len(found) < 2:
            raise UserError(
                f"evaluate.reference: {shown(path)} holds {len(found)} pictures; a comparison needs two at least"
            )

    @property
    def names(self) -> list[str]:
        return list(self.files)

    def hash(self) -> str:
        """What the fingerprint sees of them: names below the folder, and contents."""
        return content_hash({name: hashlib.sha256(self._read(name)).hexdigest() for name in self.files})

    def features(self, encoder: Encoder, device: torch.device) -> np.ndarray:
        """(pictures, width). Raises UserError where one is no picture."""
        rows = []
        for name in self.files:
            try:
                with Image.open(io.BytesIO(self._read(name))) as image:
                    pixels = np.array(image.convert("RGB"))
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                raise UserError(f"evaluate.reference: {name} is no picture: {first_line(error)}") from None
            tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device).float() / 255
            rows.append(features(encoder, tensor))
        return np.concatenate(rows)

    def _read(self, name: str) -> bytes:
        return self.fs.cat_file(self.files[name])
