"""One picture for a README or a slide: the same noise before and after, for prompts nobody picked."""

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
