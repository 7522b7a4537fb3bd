"""Our ImageReward beside the published package's, on the same files: `pahi doctor --reference`.

The package needs transformers 4, so it has an interpreter of its own, which `make image-reward` builds. Where the
settings name no published checkpoint, both read the same stand-in: the full network, with random weights.
"""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer

from pahi.errors import PahiError, UserError
from pahi.rewards.image_reward import (
    PUBLISHED_WEIGHTS,
    ImageRewardModel,
    published_text_config,
    published_vision_config,
)
from pahi.rewards.preprocess import Pixels
from pahi.rewards.towers import tokenize

ENVIRONMENT = ".venv-image-reward"
PIL_LIMIT, TENSOR_LIMIT = 1e-4, 0.05
PROMPTS = ["a red circle", "two blue squares to the left of a star", "a photo of a cat", "a green triangle on white"]
SHAPES = [(512, 512), (320, 480), (500, 333), (64, 64)]  # height, width
MED = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "type_vocab_size": 2,
    "attention_probs_dropout_prob": 0.1,
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "add_cross_attention": True,
    "hidden_act": "gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "vocab_size": 30524,
    "encoder_width": 1024,
}


@dataclass(frozen=True)
class Compared:
    """One picture under one prompt: the package's score, ours of the same pixels, and ours of the picture's tensor."""

    picture: str
    package: float
    pil: float
    tensor: float

    @property
    def ok(self) -> bool:
        return abs(self.pil - self.package) <= PIL_LIMIT and abs(self.tensor - self.package) <= TENSOR_LIMIT


def interpreter() -> Path:
    """The Python that has the package. Raises UserError where there is none."""
    named = os.environ.get("PAHI_IMAGE_REWARD_PYTHON")
    path = Path(named) if named else Path(__file__).parents[2] / ENVIRONMENT / "bin" / "python"
    if not path.is_file():
        raise UserError(
            f"there is no {path}: `make image-reward` in a checkout builds it, or name one in PAHI_IMAGE_REWARD_PYTHON"
        )
    return path


def compare(folder: Path, tokenizer: Path) -> list[Compared]:
    """Scores drawn pictures by both, with the checkpoint in `folder`. Raises PahiError where the package fails."""
    python = interpreter()
    with tempfile.TemporaryDirectory() as scratch:
        pictures = [_draw(Path(scratch), i, shape) for i, shape in enumerate(SHAPES)]
        theirs = run_package(python, folder, tokenizer, pictures, PROMPTS)["scores"]
        model = ImageRewardModel.from_pretrained(folder)
        batch, _ = tokenize(AutoTokenizer.from_pretrained(tokenizer), PROMPTS, model.tokens)
        rows = []
        for i, (path, score) in enumerate(zip(pictures, theirs, strict=True)):
            image = Image.open(path).convert("RGB")
            values = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255
            text = batch["input_ids"][i : i + 1], batch["attention_mask"][i : i + 1]
            with torch.no_grad():
                pil = float(model(pil_pixels(image, model.image_size), *text))
                tensor = float(model(model.pixels(values), *text))
            rows.append(Compared(f"{image.width}x{image.height}", score, pil, tensor))
    return rows


def run_package(python: Path, folder: Path, tokenizer: Path, pictures: list[Path], prompts: list[str]) -> dict:
    """`scores` of each picture under its prompt, and `seconds`, by the package."""
    job = {
        "folder": str(folder),
        "tokenizer": str(tokenizer),
        "pictures": [str(p) for p in pictures],
        "prompts": prompts,
        "threads": torch.get_num_threads(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "job.json"
        file.write_text(json.dumps(job))
        script = Path(__file__).with_name("_image_reward_package.py")
        # A folder of ours on its path would hide the packages that share a name with one of our files.
        done = subprocess.run([python, "-P", script, file], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PahiError(f"the image-reward package failed: {reason}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def pil_pixels(image: Image.Image, size: int) -> Tensor:
    """The package's preprocessing, by PIL: shortest side, torchvision's centre crop, CLIP's mean and deviation."""
    short = min(image.size)
    width, height = (size if side == short else int(size * side / short) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    small = small.crop((left, top, left + size, top + size))
    values = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)[None].float() / 255
    return Pixels(size).normalise(values)


def stand_in(folder: Path, seed: int = 0) -> None:
    """Writes the published files with random weights, and a small vocabulary in BERT's layout."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = ImageRewardModel(published_text_config(MED), published_vision_config())
    weights = {}
    for name, like in model.state_dict().items():
        noise = torch.randn(like.shape, generator=generator)
        norm = "norm" in name.lower() and name.endswith("weight")
        if norm:
            value = 1 + 0.1 * noise
        elif name.endswith("bias") or ("embeddings." in name and like.ndim < 4):
            value = 0.1 * noise
        else:
            value = noise / like[0].numel() ** 0.5
        weights[published_name(name)] = value
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / PUBLISHED_WEIGHTS)
    (folder / "med_config.json").write_text(json.dumps(MED))
    words = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += sorted({word for prompt in PROMPTS for word in prompt.split()})
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def published_name(name: str) -> str:
    """The published state dict's name of one of our weights: the inverse of `rename_published`."""
    tower, _, rest = name.partition(".")
    if tower != "visual_encoder":
        return name if tower == "mlp" else f"blip.{name}"
    for ours, theirs in (
        ("embeddings.class_embedding", "cls_token"),
        ("embeddings.position_embedding", "pos_embed"),
        ("embeddings.patch_embedding.", "patch_embed.proj."),
        ("encoder.layers.", "blocks."),
        ("post_layernorm.", "norm."),
        (".layer_norm", ".norm"),
        (".self_attn.qkv.", ".attn.qkv."),
        (".self_attn.projection.", ".attn.proj."),
    ):
        rest = rest.replace(ours, theirs)
    return f"blip.visual_encoder.{rest}"


def _draw(folder: Path, i: int, shape: tuple[int, int]) -> Path:
    """A picture of ramps, a disc and stripes, as a PNG file; the last one grey."""
    height, width = shape
    y, x = np.mgrid[0:height, 0:width]
    ramps = [x * (i + 1) // 3 % 256, y * (i + 2) // 2 % 256, (x + y) * (i + 3) // 5 % 256]
    pixels = np.stack(ramps, -1).astype(np.uint8)
    pixels[(x - width // 3) ** 2 + (y - height // 2) ** 2 < (min(shape) // 6 + 10 * i) ** 2] = (
        250 - 40 * i,
        30 * i,
        200,
    )
    image = Image.fromarray(pixels)
    path = folder / f"{i}.png"
    (image.convert("L") if i == len(SHAPES) - 1 else image).save(path)
    return path
