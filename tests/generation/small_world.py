"""A generator and a reward of a few numbers each, so that what is tested is the engine around them.

A prompt's words choose what goes wrong with it: "nan", "flat", "poison" (a network raises for any batch that holds it),
"untokenizable" (encoding raises).
"""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pahi.artifacts import Store
from pahi.generators import Conditioning
from pahi.predictors import NoisePredictor
from pahi.settings import load_settings
from pahi.stages import ingest
from pahi.stages.common import Context

WRONG = ("nan", "flat", "poison")
SHAPE, WIDTH = (4, 4, 4), 8


class SmallGenerator:
    id, hash, revision, license = "small", "feed" * 16, "c0ffee", "Apache-2.0"
    latent_shape, pooled_width, size = SHAPE, WIDTH, (16, 16)
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, pause: float = 0.0) -> None:
        g = torch.Generator().manual_seed(0)
        self.mix = torch.randn(WIDTH, 64, generator=g)
        self.colours = torch.randn(3, 4, 1, 1, generator=g)
        self.pause = pause
        self.drawn: list[int] = []  # pictures in each call of the denoiser
        self.before: Callable[[int], None] = lambda count: None

    def encode(self, prompts: list[str]) -> Conditioning:
        if any("untokenizable" in prompt for prompt in prompts):
            raise KeyError("no such token")
        rows = [[b / 128 - 1 for b in hashlib.sha256(p.encode()).digest()[:WIDTH]] for p in prompts]
        marks = [[float(word in p) for word in WRONG] for p in prompts]
        return Conditioning({"marks": torch.tensor(marks)}, torch.tensor(rows), [len(p) > 60 for p in prompts])

    def denoise(self, z: Tensor, conditioning: Conditioning) -> Tensor:
        time.sleep(self.pause)
        self.before(len(z))
        self.drawn.append(len(z))
        nan, flat, poison = conditioning.embeds["marks"].unbind(1)
        if poison.any():
            raise ValueError("poisoned")
        x = z + torch.tanh(conditioning.pooled @ self.mix).view(-1, *SHAPE)
        x = x.masked_fill(nan.bool().view(-1, 1, 1, 1), float("nan"))
        return x * (1 - flat.view(-1, 1, 1, 1))

    def decode(self, latents: Tensor) -> Tensor:
        large = torch.nn.functional.interpolate(latents, scale_factor=4.0, mode="bilinear")
        return torch.nn.functional.conv2d(large, self.colours) * 0.2 + 0.5


class SmallReward:
    """How red a picture is."""

    hash, differentiable = "beef" * 16, True

    def __init__(self, name: str, channel: int) -> None:
        self.name, self.channel = name, channel

    def prepare(self, prompts: list[str]) -> dict[str, Tensor]:
        return {"length": torch.tensor([float(len(p)) for p in prompts])}

    def score(self, images: Tensor, prepared: dict[str, Tensor], prompts: list[str]) -> Tensor:
        assert prepared["length"].tolist() == [float(len(p)) for p in prompts]
        return images[:, self.channel].mean((1, 2)) * 10


def prompt_file(folder: Path, texts: list[str]) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def plain(count: int) -> list[str]:
    return [f"a picture of thing number {i} beside {i * 7} others" for i in range(count)]


def world(root: Path | str, folder: Path, *sets: str, texts: list[str] | None = None, kind: str = "pahi") -> Context:
    """Ingested prompts, a predictor, and stand-ins for the models: ready for generate.run."""
    folder.mkdir(parents=True, exist_ok=True)
    predictor = folder / f"predictor-{kind}"
    if not predictor.exists():
        torch.manual_seed(3)
        made = NoisePredictor.create(kind, SHAPE, WIDTH, 8)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        made.save_pretrained(predictor)
    overrides = [
        f"ingest.sources=[{{path: {prompt_file(folder, texts or plain(40))}}}]",
        f"generate.predictor={predictor}",
        "generate.shard_rows=8",
        "generate.batch_size=4",
        "generate.control_fraction=0.5",
        "generate.encoders=2",
        "rewards.judges=[]",
        "threads=1",
        *sets,
    ]
    ctx = Context(load_settings("tiny", overrides=overrides, root=str(root), name="small"))
    ctx.generator = SmallGenerator()
    ctx.model_hashes = {"generator": SmallGenerator.hash}
    for channel, model in enumerate((*ctx.settings.rewards.train, *ctx.settings.rewards.held_out)):
        ctx._rewards[model.name] = SmallReward(model.name, channel)
        ctx.model_hashes[f"reward/{model.name}"] = SmallReward.hash
    ingest.run(ctx)
    return ctx


def manifests(store: Store) -> dict[str, bytes]:
    """Every manifest of the pictures, shards' and stages'."""
    keys = [key for key in store.list("small/generate") if "manifest" in key]
    return {key: store.read(key) for key in keys}
