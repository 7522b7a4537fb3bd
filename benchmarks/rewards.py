"""Scoring against the loop a user would write (one picture at a time, through PIL) and against batched public code.

All score the same pictures under the same prompts with the same weights and threads, in turns; the ratio is what
counts. Ours starts from tensors, which is what a generator decodes; the others from PIL pictures that lie ready.

    python benchmarks/rewards.py                    small networks, and CLIP ViT-B/32
    python benchmarks/rewards.py --real             CLIP ViT-L/14 and the full ImageReward too (minutes on a CPU)
    python benchmarks/rewards.py --preset sd-turbo  the rewards' share of a generated and scored picture, by preset
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from parts.timing import in_turns, ratio
from PIL import Image
from transformers import BlipTextConfig, BlipVisionConfig, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from pahi import models
from pahi.generators import standard_noise
from pahi.generators.load import pick_device
from pahi.rewards import load_reward
from pahi.rewards.image_reward import ImageRewardModel, published_text_config, published_vision_config
from pahi.rewards.reference import MED, pil_pixels
from pahi.settings import RewardModel, load_settings
from pahi.stages.common import Context
from pahi.stages.tensors import to_uint8

ROUNDS = 3
Work = dict[str, Callable[[], Any]]


def clip(size: int, width: int, layers: int, patch: int, tokenizer: CLIPTokenizer) -> CLIPModel:
    tower = {"num_hidden_layers": layers, "num_attention_heads": max(1, width // 64)}
    text = tower | {"hidden_size": min(width, 768), "intermediate_size": 4 * min(width, 768)}
    text |= {"vocab_size": len(tokenizer), "max_position_embeddings": 24, "eos_token_id": tokenizer.eos_token_id}
    vision = tower | {"hidden_size": width, "intermediate_size": 4 * width, "image_size": size, "patch_size": patch}
    text["num_attention_heads"] = max(1, min(width, 768) // 64)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)).eval()


def pickscore(folder: Path, size: int, images: torch.Tensor, prompts: list[str], device: torch.device) -> Work:
    """Ours, the model card's code a picture at a time, and transformers' processor and model on whole batches."""
    reward = load_reward(RewardModel(name="pick", kind="pickscore", id=str(folder)), device)  # type: ignore[call-arg]
    model, tokenizer = CLIPModel.from_pretrained(folder).to(device).eval(), CLIPTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    pictures = [Image.fromarray(p) for p in to_uint8(images)]
    prepared = reward.prepare(prompts)

    def published(pictures: list[Image.Image], prompts: list[str]) -> torch.Tensor:
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"].to(device)
        text = tokenizer(prompts, padding="max_length", truncation=True, max_length=24, return_tensors="pt").to(device)
        image = torch.nn.functional.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
        words = torch.nn.functional.normalize(model.get_text_features(**text).pooler_output, dim=-1)
        return model.logit_scale.exp() * (image * words).sum(-1)

    return {
        "ours": lambda: reward.score(images, prepared, prompts),
        "one at a time, PIL": lambda: torch.cat([published([p], [t]) for p, t in zip(pictures, prompts, strict=True)]),
        "batched, PIL": lambda: published(pictures, prompts),
    }


def image_reward(model: ImageRewardModel, images: torch.Tensor, ids: torch.Tensor) -> Work:
    """Ours, and the image-reward package's loop (a picture at a time, through PIL) on the same network."""
    pictures, mask = [Image.fromarray(p) for p in to_uint8(images)], torch.ones_like(ids)

    def loop() -> torch.Tensor:
        rows = []
        for i, picture in enumerate(pictures):
            pixels = pil_pixels(picture, model.image_size).to(ids.device)
            rows.append(model(pixels, ids[i : i + 1], mask[i : i + 1]))
        return torch.cat(rows)

    return {"ours": lambda: model(model.pixels(images), ids, mask), "one at a time, PIL": loop}


def row(what: str, work: Work, count: int, device: torch.device) -> None:
    def finished(call: Callable[[], Any]) -> None:
        with torch.no_grad():
            call()
        _finish(device)

    times = in_turns(ROUNDS, **{name: partial(finished, call) for name, call in work.items()})
    cells = [ratio(times[name], times["ours"]) for name in list(work)[1:]]
    cells += ["-"] * (2 - len(cells))
    ours = 1000 * statistics.median(times["ours"]) / count
    print(f"| {what} | {device.type}, {torch.get_num_threads()} threads | {count} | {ours:.1f} | {' | '.join(cells)} |")


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def share(preset: str, device: torch.device, batch: int) -> None:
    """The rewards' share of the time of a generated and scored picture."""
    ctx = Context(load_settings(preset, overrides=["rewards.judges=[]"]))
    generator, prompts = ctx.generator, ["a red circle"] * batch
    conditioning = generator.encode(prompts)
    eps = standard_noise(["0" * 20] * batch, list(range(batch)), generator.latent_shape).to(device)
    rewards = [ctx.reward(model) for model in ctx.reward_models]
    prepared = [reward.prepare(prompts) for reward in rewards]
    spent: list[tuple[float, float]] = []
    for _ in range(ROUNDS + 1):
        marks = [time.perf_counter()]
        with torch.no_grad():
            images = generator.decode(generator.denoise(eps, conditioning))
            _finish(device)
            marks.append(time.perf_counter())
            for reward, text in zip(rewards, prepared, strict=True):
                reward.score(images, text, prompts)
            _finish(device)
            marks.append(time.perf_counter())
        spent.append((marks[1] - marks[0], marks[2] - marks[1]))
    part = statistics.median(b / (a + b) for a, b in spent[1:])
    print(f"\n{preset}, {device.type}: {len(rewards)} rewards take {100 * part:.0f}% of a generated and scored picture")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="CLIP ViT-L/14 and the full ImageReward too")
    parser.add_argument("--preset", default="tiny", help="whose generator and rewards the share is measured on")
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    device, count = pick_device("auto"), args.batch
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(models.resolve(load_settings("tiny").rewards.train[0].id))
    prompts = [f"a red circle number {i}" for i in range(count)]
    print("| reward, picture | device | pictures | ours, ms a picture | one at a time, PIL | batched, PIL |")
    print("|---|---|---|---|---|---|")
    sizes = [("small CLIP", 64, 64, 3, 8, 64), ("CLIP ViT-B/32", 224, 768, 12, 32, 512)]
    if args.real:
        sizes.append(("CLIP ViT-L/14", 224, 1024, 24, 14, 512))
    for name, size, width, layers, patch, shown in sizes:
        images = torch.rand(count, 3, shown, shown, device=device)
        with tempfile.TemporaryDirectory() as folder:
            clip(size, width, layers, patch, tokenizer).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            work = pickscore(Path(folder), size, images, prompts, device)
        row(f"PickScore, {name}, {shown} px", work, count, device)
    small = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 96, "intermediate_size": 384}
    text = BlipTextConfig(**small, vocab_size=1000, encoder_hidden_size=96, is_decoder=True, use_cache=False)
    networks = [
        ("small", ImageRewardModel(text, BlipVisionConfig(**small, image_size=64, patch_size=8), tokens=24), 64)
    ]
    if args.real:
        networks.append(("full", ImageRewardModel(published_text_config(MED), published_vision_config()), 512))
    for name, model, shown in networks:
        images = torch.rand(count, 3, shown, shown, device=device)
        ids = torch.randint(1, 900, (count, model.tokens), device=device)
        row(f"ImageReward, {name}, {shown} px", image_reward(model.to(device).eval(), images, ids), count, device)
    share(args.preset, device, count)


if __name__ == "__main__":
    main()
