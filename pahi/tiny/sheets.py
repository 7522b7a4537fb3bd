"""Contact sheets of the small world: pictures with their prompts, framed green where the oracle calls them right."""

import random
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pahi.tiny import scenes
from pahi.tiny.figures import Asked, World, pictures, through_vae
from pahi.tiny.oracle import judge

COLUMNS, ROWS = 8, 6
SCALE, FRAME, GAP, CAPTION = 2, 4, 10, 36  # pictures are 128 pixels wide on a sheet
GREEN, RED = (40, 160, 60), (220, 60, 50)


def sheet(images: np.ndarray, captions: Sequence[str], frames: Sequence[tuple[int, int, int]]) -> Image.Image:
    """Pictures (64, 64, 3) in [0, 1] in rows of COLUMNS, captions below and frames around."""
    side = scenes.SIZE * SCALE + 2 * FRAME
    rows = -(-len(images) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * (side + GAP) + GAP, rows * (side + CAPTION + GAP) + GAP), "white")
    pen = ImageDraw.Draw(page)
    for i, (image, caption, frame) in enumerate(zip(images, captions, frames, strict=True)):
        x, y = GAP + i % COLUMNS * (side + GAP), GAP + i // COLUMNS * (side + CAPTION + GAP)
        pen.rectangle((x, y, x + side - 1, y + side - 1), fill=frame)
        tile = Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8))
        page.paste(tile.resize((side - 2 * FRAME,) * 2, Image.Resampling.NEAREST), (x + FRAME, y + FRAME))
        pen.multiline_text((x, y + side + 3), "\n".join(textwrap.wrap(caption, 24)[:3]), fill=(60, 60, 60), spacing=1)
    return page


def spread(asked: list[Asked], count: int) -> list[int]:
    """Indices of so many prompts, evenly over the list and so over the kinds."""
    return [int(i) for i in np.linspace(0, len(asked) - 1, min(count, len(asked)))]


def write_sheets(world: World, folder: Path) -> list[Path]:
    """tiny-scenes.png, tiny-vae.png (above a scene, below what the autoencoder makes of it), tiny-student.png."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(5)
    chosen = spread(world.asked, COLUMNS * ROWS)
    asked = [world.asked[i] for i in chosen]
    drawn = pictures([scenes.render(a.spec, rng) for a in asked])
    made: dict[str, tuple[np.ndarray, list[int]]] = {"scenes": (drawn, chosen)}
    half = chosen[::2]
    pairs = np.stack([drawn[::2], through_vae(world.vae, drawn[::2])], 1)  # (24, 2, 64, 64, 3)
    rows = [pairs[i : i + COLUMNS].swapaxes(0, 1).reshape(-1, *drawn.shape[1:]) for i in range(0, len(pairs), COLUMNS)]
    order = [j for i in range(0, len(half), COLUMNS) for j in half[i : i + COLUMNS] * 2]
    made["vae"] = (np.concatenate(rows), order)
    made["student"] = (world.student[chosen], chosen)
    paths = []
    for name, (images, indices) in made.items():
        prompts = [world.asked[i] for i in indices]
        frames = [GREEN if all(judge(x, a.spec).values()) else RED for x, a in zip(images, prompts, strict=True)]
        paths.append(folder / f"tiny-{name}.png")
        sheet(images, [a.text for a in prompts], frames).save(paths[-1], optimize=True)
    return paths
