"""Encoding pictures, and saying which of them are broken."""

import hashlib

import cv2
import numpy as np
import torch
from torch import Tensor

FLAT = 2 / 255  # a picture whose numbers all lie within this shows nothing


def encode(pixels: np.ndarray, kind: str = "png", quality: int = 90) -> bytes:
    """(h, w, 3) uint8 -> the bytes of a png, webp or jpeg.

    OpenCV's encoders let other threads run meanwhile; Pillow's PNG and JPEG, written to memory, do not.
    """
    options = {
        # Level 1 takes a third of the time of level 6, for files a sixth larger.
        "png": [cv2.IMWRITE_PNG_COMPRESSION, 1],
        "jpeg": [cv2.IMWRITE_JPEG_QUALITY, quality],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, quality],
    }[kind]
    done, data = cv2.imencode(f".{kind}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"a picture of shape {pixels.shape} cannot be encoded as {kind}")
    return data.tobytes()


def pixels_sha256(pixels: np.ndarray) -> str:
    """Of the uncompressed pixels, row by row."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def faults(images: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (batch, 3, h, w) around [0, 1] -> which of them are not finite, and which are flat: both (batch,), bool.

    Stays on the pictures' device: a bulk run never waits for it.
    """
    flat = torch.nan_to_num(images.detach().float()).clamp(0, 1).flatten(1)
    return ~torch.isfinite(images.detach()).flatten(1).all(1), flat.amax(1) - flat.amin(1) < FLAT
