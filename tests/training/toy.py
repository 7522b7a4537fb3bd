"""A world whose picture is its noise and whose reward is a direction, and a training of it that can be killed."""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from pahi.generators import Conditioning
from pahi.settings import Train
from pahi.training.trainer import PromptSet, Trained, train

SHAPE, WIDTH = (4, 4, 4), 6


class Identity:
    """A generator whose picture is its noise."""

    id, hash, latent_shape, pooled_width = "identity", "0", SHAPE, WIDTH
    device, dtype = torch.device("cpu"), torch.float32

    def denoise(self, z: Tensor, conditioning: Conditioning) -> Tensor:
        return z

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class Direction:
    """<picture, direction of the prompt>, whose unit is its standard deviation 1."""

    hash, differentiable = "0", True

    def __init__(self, name: str = "direction", scale: float = 1.0) -> None:
        self.name, self.scale = name, scale

    def score(self, images: Tensor, prepared: dict[str, Tensor], prompts: list[str]) -> Tensor:
        return self.scale * (images.flatten(1) * prepared["direction"]).sum(1)


class Opposite(Direction):
    """A held-out reward that falls as the training reward rises."""

    hash = "1"

    def score(self, images: Tensor, prepared: dict[str, Tensor], prompts: list[str]) -> Tensor:
        return -super().score(images, prepared, prompts)


def prompt_set(count: int, seed: int = 0) -> PromptSet:
    g = torch.Generator().manual_seed(seed)
    pooled = torch.randn(count, WIDTH, generator=g)
    # The best direction is a linear function of the prompt's embedding.
    directions = pooled @ torch.randn(WIDTH, 64, generator=torch.Generator().manual_seed(99))
    directions = directions / directions.norm(dim=1, keepdim=True)
    ids = [f"p{seed}-{i}" for i in range(count)]
    names = ("direction", "opposite", "broken")
    return PromptSet(
        ids,
        ids,
        Conditioning({}, pooled, [False] * count),
        {name: {"direction": directions} for name in names},
        {name: torch.zeros(count, 2) for name in names},
        [0, 1],
    )


SETTINGS = Train(hpi_steps=5, steps=60, batch_size=16, lr=0.01, hidden=32, beta=1.0, validate_every=10, save_every=7)


def learn(settings: Train = SETTINGS, **change) -> Trained:
    kept: list[bytes] = change.pop("kept", [])
    arguments = {
        "generator": Identity(),
        "rewards": [(Direction(), 1.0, 1.0)],
        "judges": [],
        "data": prompt_set(64),
        "validation": prompt_set(16, 1),
        "load": lambda: kept[-1] if kept else None,
        "save": kept.append,
        "progress": lambda done, total, note: None,
    } | change
    return train(settings=settings, **arguments)


def same(a: Trained, b: Trained) -> bool:
    pairs = zip(a.predictor.state_dict().values(), b.predictor.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs) and repr(a.metrics) == repr(b.metrics)  # NaN is not NaN


def alone_or_together(
    folder: Path, settings: Train, rank: int = 0, size: int = 1, kill_at: int = 0, **change: object
) -> None:
    """One process of a training that keeps its state in a folder, for `multiprocessing`; it kills itself at a step."""
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{abs(kill_at)}", rank=rank, world_size=size)
    state = folder / "state.pt"

    def save(packed: bytes) -> None:
        (folder / "state.tmp").write_bytes(packed)
        (folder / "state.tmp").replace(state)

    def progress(done: int, total: int, note: str) -> None:
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    trained = learn(
        settings,
        load=lambda: state.read_bytes() if state.exists() else None,
        save=save,
        progress=progress,
        **change,
    )
    torch.save([trained.predictor.state_dict(), trained.metrics, trained.stopped], folder / f"end-{rank}.pt")
    if size > 1:
        dist.destroy_process_group()
    sys.stdout.flush()
