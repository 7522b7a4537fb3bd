"""Scores of open_clip's own CLIP on weights, pictures and ids that are rebuilt from nothing.

Run by an interpreter that has open_clip 2.24 (`make image-reward`): prints the scores as JSON. The tests import the
same recipe, and hold transformers' CLIP under renamed weights against what was printed.
"""

import hashlib
import json
from typing import Any

import numpy as np
import torch
from PIL import Image

EMBED, VOCABULARY, CONTEXT, SIZE = 48, 500, 16, 32
# ViT-H-14's head widths: 80 in the picture tower, 64 in the text tower.
VISION = {"image_size": SIZE, "layers": 2, "width": 160, "head_width": 80, "patch_size": 8}
TEXT = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 128, "heads": 2, "layers": 2}
SHAPES = ((32, 32), (64, 64), (90, 40), (25, 61))  # height, width


def fill(name: str, like: torch.Tensor) -> torch.Tensor:
    """The value of a weight, from its name alone."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    if name == "logit_scale":
        return torch.tensor(4.6)
    if "ln_" in name and name.endswith("weight"):
        return 1 + 0.1 * noise
    if name.endswith("bias") or like.ndim == 1:
        return 0.1 * noise
    if like.ndim == 4:
        return noise / like[0].numel() ** 0.5
    return noise if "embedding" in name else noise / like.shape[-1] ** 0.5


def shapes(vocabulary: int = VOCABULARY) -> dict[str, tuple[int, ...]]:
    """The state dict of open_clip's CLIP of the sizes above."""
    width, words = VISION["width"], TEXT["width"]
    found: dict[str, tuple[int, ...]] = {
        "positional_embedding": (CONTEXT, words),
        "text_projection": (words, EMBED),
        "logit_scale": (),
        "token_embedding.weight": (vocabulary, words),
        "ln_final.weight": (words,),
        "ln_final.bias": (words,),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((SIZE // VISION["patch_size"]) ** 2 + 1, width),
        "visual.proj": (width, EMBED),
        "visual.conv1.weight": (width, 3, VISION["patch_size"], VISION["patch_size"]),
    }
    for norm in ("ln_pre", "ln_post"):
        found |= {f"visual.{norm}.weight": (width,), f"visual.{norm}.bias": (width,)}
    for prefix, size, layers in (("visual.", width, VISION["layers"]), ("", words, TEXT["layers"])):
        for layer in range(layers):
            block = f"{prefix}transformer.resblocks.{layer}."
            for norm in ("ln_1", "ln_2"):
                found |= {f"{block}{norm}.weight": (size,), f"{block}{norm}.bias": (size,)}
            found |= {f"{block}attn.in_proj_weight": (3 * size, size), f"{block}attn.in_proj_bias": (3 * size,)}
            for name, rows, columns in (
                ("attn.out_proj", size, size),
                ("mlp.c_fc", 4 * size, size),
                ("mlp.c_proj", size, 4 * size),
            ):
                found |= {f"{block}{name}.weight": (rows, columns), f"{block}{name}.bias": (rows,)}
    return found


def weights(vocabulary: int = VOCABULARY) -> dict[str, torch.Tensor]:
    return {name: fill(name, torch.empty(shape)) for name, shape in shapes(vocabulary).items()}


def picture(i: int) -> Image.Image:
    height, width = SHAPES[i]
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * (7 + i) % 256, y * (5 + i) % 256, (x + y) * (3 + i) % 256], -1).astype(np.uint8)
    pixels[(x - width // 2) ** 2 + (y - height // 3) ** 2 < (5 + 2 * i) ** 2] = (250 - 40 * i, 30 * i, 200)
    return Image.fromarray(pixels)


def token_ids() -> torch.Tensor:
    """(4, CONTEXT): start, words, end (the highest id), zeros."""
    rng = np.random.RandomState(7)
    ids = np.zeros((4, CONTEXT), np.int64)
    for row, length in zip(ids, (4, 7, 11, 16), strict=True):
        row[:length] = rng.randint(1, VOCABULARY - 2, length)
        row[0], row[length - 1] = VOCABULARY - 2, VOCABULARY - 1
    return torch.tensor(ids)


def pil_pixels(image: Image.Image) -> torch.Tensor:
    """HPSv2's ResizeMaxSize by PIL: the longest side fitted, the rest black; normalised (1, 3, SIZE, SIZE)."""
    scale = SIZE / max(image.size)
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    padded = Image.new("RGB", (SIZE, SIZE))
    padded.paste(small, ((SIZE - small.width) // 2, (SIZE - small.height) // 2))
    pixels = torch.from_numpy(np.asarray(padded).copy()).permute(2, 0, 1)[None].float() / 255
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
    return (pixels - mean) / torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)


def open_clip_model() -> Any:
    import open_clip

    model = open_clip.model.CLIP(EMBED, open_clip.CLIPVisionCfg(**VISION), open_clip.CLIPTextCfg(**TEXT))
    return model.eval()


@torch.no_grad()
def main() -> None:
    model = open_clip_model()
    model.load_state_dict(weights())
    image = model.encode_image(torch.cat([pil_pixels(picture(i)) for i in range(4)]), normalize=True)
    text = model.encode_text(token_ids(), normalize=True)
    print(json.dumps((image @ text.T).tolist()))


if __name__ == "__main__":
    main()
