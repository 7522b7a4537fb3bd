"""What a picture shows, as far as plain image processing tells: broken, blank, and two signatures of how it looks."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.fft import dctn

THUMB = 8  # the thumbnail's side
COLOUR_TOLERANCE = 24  # of 255: how far a thumbnail's pixels may differ between near-duplicates


@dataclass(frozen=True)
class Look:
    """`reason` and `detail` where the picture cannot be used; else the picture, its perceptual hash and thumbnail."""

    reason: str | None
    detail: str | None
    image: Image.Image | None = None
    hash: int = 0
    thumb: bytes = b""


def look(data: bytes | None, width: int, height: int, min_contrast: float) -> Look:
    """Looks at an encoded picture of which a row says that it is width x height."""
    try:
        image = Image.open(io.BytesIO(data or b"")).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return Look("broken", (str(error).splitlines() or [type(error).__name__])[0])
    if image.size != (width, height):
        return Look("broken", f"{image.width}x{image.height}, its row says {width}x{height}")
    contrast = float(np.asarray(image, dtype=np.float32).std(axis=(0, 1)).max()) / 255
    if contrast < min_contrast:
        return Look("blank", f"contrast {contrast:.4f} under {min_contrast:g}")
    return Look(None, None, image, perceptual_hash(image), thumbnail(image))


def perceptual_hash(image: Image.Image) -> int:
    """64 bits: the signs of the 8x8 lowest frequencies of the grey 32x32 picture, about their median (pHash)."""
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    low = dctn(grey, norm="ortho")[:8, :8].flatten()
    # The mean brightness says nothing of the shape; rounding keeps what is zero but for arithmetic on one side.
    bits = np.round(low, 3) > np.median(np.round(low[1:], 3))
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def thumbnail(image: Image.Image) -> bytes:
    """8x8 mean colours: the hash is blind to colour."""
    return image.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes()


def same_colours(a: bytes, b: bytes) -> bool:
    first, second = (np.frombuffer(x, dtype=np.uint8).astype(np.int16) for x in (a, b))
    return int(np.abs(first - second).max()) <= COLOUR_TOLERANCE
