"""The two pictures of the card: a sheet of samples, and histograms of the scores."""

import io
from typing import Any

from PIL import Image, ImageDraw, ImageFont

GAP, SIDE, ACROSS = 4, 128, 8
SAMPLES = 24
GREY, GREEN, INK = (203, 208, 214), (22, 120, 96), (40, 44, 52)


def sample_sheet(pictures: list[bytes]) -> bytes:
    """Encoded pictures -> one PNG, eight across, each fitted into a square."""
    lines = max(1, -(-len(pictures) // ACROSS))
    across = min(ACROSS, max(1, len(pictures)))
    canvas = Image.new("RGB", (across * (SIDE + GAP) + GAP, lines * (SIDE + GAP) + GAP), "white")
    for i, data in enumerate(pictures):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        scale = SIDE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        # Small pictures keep their pixels' edges.
        image = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
        x, y = GAP + i % ACROSS * (SIDE + GAP), GAP + i // ACROSS * (SIDE + GAP)
        canvas.paste(image, (x + (SIDE - size[0]) // 2, y + (SIDE - size[1]) // 2))
    return _png(canvas)


def histogram_sheet(histograms: dict[str, dict[str, Any]]) -> bytes:
    """Counts of all candidates (grey) and of what was kept (green) of each reward, one below the other, as PNG."""
    width, height, left, top, below = 640, 180, 16, 28, 24
    canvas = Image.new("RGB", (width, max(1, len(histograms)) * (height + top + below)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    for k, (reward, h) in enumerate(histograms.items()):
        y0 = k * (height + top + below) + top
        bar = (width - 2 * left) / len(h["candidates"])
        peak = max(1, *h["candidates"])
        title = f"{reward}: {sum(h['candidates']):,} candidates (grey), {sum(h['kept']):,} kept (green)"
        draw.text((left, y0 - 22), title, fill=INK, font=font)
        for name, colour in (("candidates", GREY), ("kept", GREEN)):
            for i, n in enumerate(h[name]):
                if n:
                    x = left + i * bar
                    box = (
                        round(x),
                        y0 + round(height * (1 - n / peak)),
                        max(round(x), round(x + bar) - 2),
                        y0 + height,
                    )
                    draw.rectangle(box, fill=colour)
        draw.line((left, y0 + height, width - left, y0 + height), fill=INK)
        draw.text((left, y0 + height + 4), f"{h['low']:.4g}", fill=INK, font=font)
        draw.text((width - left, y0 + height + 4), f"{h['high']:.4g}", fill=INK, font=font, anchor="ra")
    return _png(canvas)


def _png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format="png")
    return sink.getvalue()
