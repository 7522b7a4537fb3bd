"""The pictures of a page: a thumbnail each, and in full those of as many pairs as a number of bytes allows."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

PAGE_BYTES = 32_000_000  # of all pictures in a page, as text
THUMBNAIL_SHARE = 0.5  # of them, at most
SMALL = 128  # pixels: a picture up to this size is its own thumbnail, byte for byte
EDGES = (256, 192, 128, 96, 64)  # of thumbnails, in pixels
SAMPLE = 16  # pictures that tell how large thumbnails come out
THUMBNAIL_QUALITY, QUALITY = 70, 90
MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}


@dataclass
class Album:
    """Data URIs of pairs of pictures; "" for what is no picture or has no room."""

    thumbnails: list[str]  # two a pair
    widths: list[int]  # by pair, of the picture as it came, in pixels; 0 where there is none
    full: dict[int, tuple[str, str]] = field(default_factory=dict)  # by pair, of pictures larger than SMALL
    edge: int | None = None  # of thumbnails; None where all pictures are small

    def best(self, index: int) -> tuple[str, str]:
        """The largest that there is of a pair."""
        return self.full.get(index) or (self.thumbnails[2 * index], self.thumbnails[2 * index + 1])


def album(pairs: Sequence[tuple[Any, Any]], first: Sequence[int] = (), page_bytes: int = PAGE_BYTES) -> Album:
    """Pictures of all pairs (bytes, or anything else where there is none), within `page_bytes` of text.

    Room goes to thumbnails of all pairs, as large as THUMBNAIL_SHARE allows, then to full pictures: those of the pairs
    `first`, then from both ends of the given order.
    """
    sizes = [(_width(before), _width(after)) for before, after in pairs]
    made = Album([""] * (2 * len(pairs)), [max(size) for size in sizes])
    order = list(dict.fromkeys([*first, *both_ends(len(pairs))]))
    large = [picture for i in order for picture, width in zip(pairs[i], sizes[i], strict=True) if width > SMALL]
    if large:
        room = THUMBNAIL_SHARE * page_bytes / len(large)
        made.edge = next((edge for edge in EDGES if _mean_length(large[:SAMPLE], edge) <= room), EDGES[-1])
    left = page_bytes
    for i in order:
        before, after = (_thumbnail(p, w, made.edge) for p, w in zip(pairs[i], sizes[i], strict=True))
        left -= len(before) + len(after)
        if left < 0:
            return made
        made.thumbnails[2 * i : 2 * i + 2] = before, after
    for i in order:
        if made.widths[i] > SMALL:
            before, after = (_full(p, w) for p, w in zip(pairs[i], sizes[i], strict=True))
            left -= len(before) + len(after)
            if left < 0:
                return made
            made.full[i] = before, after
    return made


def both_ends(n: int) -> list[int]:
    """0, n - 1, 1, n - 2, ...: the best and the worst are what people look at."""
    return [n - 1 - i // 2 if i % 2 else i // 2 for i in range(n)]


def _width(content: Any) -> int:
    """Pixels; 0 for what is no picture."""
    if not isinstance(content, bytes | bytearray):
        return 0
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.width if image.format in MIME else 0
    except (OSError, ValueError, Image.DecompressionBombError):
        return 0


def _thumbnail(content: Any, width: int, edge: int | None) -> str:
    if not width:
        return ""
    return _uri(content) if width <= SMALL or edge is None else _smaller(content, edge, THUMBNAIL_QUALITY)


def _full(content: Any, width: int) -> str:
    """As it came, or as WebP where that is shorter."""
    if not width:
        return ""
    packed = _smaller(content, None, QUALITY)
    return packed if packed and len(packed) < 4 * len(content) / 3 else _uri(content)


def _smaller(content: bytes, edge: int | None, quality: int) -> str:
    try:
        with Image.open(io.BytesIO(content)) as image:
            picture: Image.Image = image.convert("RGB")
    except (OSError, ValueError):
        return ""  # its header was whole, the rest is not
    if edge is not None:
        picture.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    picture.save(sink, "WEBP", quality=quality)
    return _uri(sink.getvalue(), "image/webp")


def _uri(content: bytes, mime: str = "") -> str:
    if not mime:
        with Image.open(io.BytesIO(content)) as image:
            mime = MIME[str(image.format)]
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def _mean_length(pictures: Sequence[bytes], edge: int) -> float:
    return sum(len(_smaller(picture, edge, THUMBNAIL_QUALITY)) for picture in pictures) / len(pictures)
