"""Encoding pictures, and saying which of them are broken."""

import hashlib
import io

import numpy as np
from PIL import Image


def encode(pixels: np.ndarray, kind: str = "png", quality: int = 90) -> bytes:
    """(h, w, 3) uint8 -> the bytes of a png, webp or jpeg."""
    sink = io.BytesIO()
    options = {"compress_level": 6} if kind == "png" else {"quality": quality}
    Image.fromarray(pixels).save(sink, format=kind, **options)
    return sink.getvalue()


def pixels_sha256(pixels: np.ndarray) -> str:
    """Of the uncompressed pixels, row by row."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def broken(picture: np.ndarray) -> str | None:
    """Why a picture (h, w, 3), float, around [0, 1] cannot be used, or None."""
    if not np.isfinite(picture).all():
        return "not finite"
    if np.ptp(picture.clip(0, 1)) < 2 / 255:
        return "flat"
    return None
