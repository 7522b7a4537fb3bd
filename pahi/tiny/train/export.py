"""Writes the small world's models as the packages' own layouts, in float16, with a hash of every file."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from transformers import CLIPImageProcessorPil, CLIPProcessor

from pahi.tiny import scenes
from pahi.tiny.train.autoencoder import train_vae
from pahi.tiny.train.data import build_tokenizer
from pahi.tiny.train.generator import EULER, train_student
from pahi.tiny.train.rewards import BUILDERS, train_reward
from pahi.tiny.train.text import train_text

HASHES = "SHA256SUMS"


def export_generator(work: Path, out: Path) -> None:
    """generator/: a StableDiffusionPipeline."""
    parts: dict[str, Any] = {
        "vae": train_vae(work),
        "text_encoder": train_text(work),
        "tokenizer": build_tokenizer(),
        "unet": train_student(work),
        "scheduler": EulerDiscreteScheduler(**EULER),
    }
    pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    shutil.rmtree(out / "generator", ignore_errors=True)
    pipe.to(dtype=torch.float16).save_pretrained(out / "generator", safe_serialization=True)
    # Stored in half precision, meant for float32, as the UNet is read: transformers goes by what stands here.
    config = out / "generator" / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")


def export_reward(work: Path, out: Path, name: str) -> None:
    """reward-NAME/: model and tokenizer; CLIP's has its picture processor beside them."""
    model: Any = train_reward(work, name).model
    target, tokenizer = out / f"reward-{name}", build_tokenizer()
    shutil.rmtree(target, ignore_errors=True)
    model.half().save_pretrained(target)
    size = {"height": scenes.SIZE, "width": scenes.SIZE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": scenes.SIZE}, crop_size=size)
    if name == "alpha":
        CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(target)
        return
    tokenizer.save_pretrained(target)
    if name == "gamma":
        processor.save_pretrained(target)


def export_all(work: Path, out: Path) -> None:
    """Everything, and SHA256SUMS over it (as `sha256sum -c` reads it)."""
    export_generator(work, out)
    for name in BUILDERS:
        export_reward(work, out, name)
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != HASHES)
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(out).as_posix()}\n" for p in files]
    (out / HASHES).write_text("".join(lines), newline="\n")
    print(f"{len(files)} files, {sum(p.stat().st_size for p in files) / 1e6:.1f} MB in {out}")
