"""One picture for a README or a slide: the same noise before and after, for prompts nobody picked."""

import base64
import io
from typing import Any

from PIL import Image

GAP, COLUMNS = 6, 10


def sheet(gallery: list[dict[str, Any]], columns: int = COLUMNS, rows: int = 2) -> bytes:
    """The first pairs of a `gallery` table, in its own order, as a PNG: above the standard Gaussian's, below ours."""
    pairs = gallery[: columns * rows]
    open_ = [
        [Image.open(io.BytesIO(pair[side]["bytes"])).convert("RGB") for side in ("before", "after")] for pair in pairs
    ]
    width, height = open_[0][0].size
    scale = max(1, 96 // width)
    width, height = width * scale, height * scale
    lines = -(-len(pairs) // columns)
    across = min(columns, len(pairs))
    size = (across * (width + GAP) + GAP, lines * (2 * height + 3 * GAP) + GAP)
    canvas = Image.new("RGB", size, (255, 255, 255))
    for i, pair in enumerate(open_):
        x = GAP + i % columns * (width + GAP)
        y = GAP + i // columns * (2 * height + 3 * GAP)
        for k, picture in enumerate(pair):
            canvas.paste(picture.resize((width, height), Image.Resampling.NEAREST), (x, y + k * (height + GAP)))
    sink = io.BytesIO()
    canvas.save(sink, format="png", optimize=True)
    return sink.getvalue()


def data_uri(picture: bytes, width: int = 720) -> str:
    """A picture as an address that holds it, at most `width` pixels wide: some 40 kB, for pages kept in a database."""
    with Image.open(io.BytesIO(picture)) as image:
        image.thumbnail((width, 10 * width))
        sink = io.BytesIO()
        image.convert("RGB").save(sink, format="webp", quality=70)
    return f"data:image/webp;base64,{base64.b64encode(sink.getvalue()).decode()}"
