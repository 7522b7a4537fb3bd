"""The aesthetic head with its real weights, on a CLIP of the right width, is its published network."""

import shutil
from pathlib import Path

import pytest
import torch
from pictures import photo, tensor
from torch import nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from pahi.errors import UserError
from pahi.rewards import load_reward
from pahi.rewards.aesthetic import HEAD
from pahi.settings import RewardModel

CPU = torch.device("cpu")
SIZE = 32


def published_head() -> nn.Sequential:
    """The published network, line by line; its activations are commented out there as well."""
    return nn.Sequential(
        nn.Linear(768, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )


def clip(folder: Path, width: int = 768) -> None:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=8,
        projection_dim=width,
        hidden_act="quick_gelu",
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)


@pytest.fixture
def real_head(shared: Path, tmp_path: Path) -> Path:
    """The published head beside a small CLIP with ViT-L/14's embedding width."""
    shutil.copy(shared / "weights" / "aesthetic" / HEAD, tmp_path)
    clip(tmp_path)
    return tmp_path


def settings(folder: Path) -> RewardModel:
    return RewardModel.model_validate({"name": "beauty", "kind": "aesthetic", "id": str(folder)})


def test_the_score_is_the_published_one(real_head: Path) -> None:
    reward = load_reward(settings(real_head), CPU)
    head = published_head()
    weights = torch.load(real_head / HEAD, map_location="cpu", weights_only=True)
    head.load_state_dict({name.removeprefix("layers."): tensor for name, tensor in weights.items()})
    model = CLIPVisionModelWithProjection.from_pretrained(real_head).eval()
    pictures = [photo(SIZE, SIZE, seed) for seed in range(3)]
    pil = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    with torch.no_grad():
        features = model(pil(images=pictures, return_tensors="pt")["pixel_values"]).image_embeds
        expected = head.eval()(features / features.norm(dim=-1, keepdim=True)).squeeze(-1)
    images = torch.stack([tensor(p) for p in pictures]).requires_grad_()
    assert reward.prepare(["any"]) == {}
    got = reward.score(images, {}, [""] * 3)
    assert got.dtype == torch.float32 and (got - expected).abs().max() < 1e-4
    (gradient,) = torch.autograd.grad(got.sum(), images)
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


def test_a_clip_of_another_width_is_refused(shared: Path, tmp_path: Path) -> None:
    shutil.copy(shared / "weights" / "aesthetic" / HEAD, tmp_path)
    clip(tmp_path, width=512)
    with pytest.raises(UserError, match="512"):
        load_reward(settings(tmp_path), CPU)


def test_the_clip_may_lie_elsewhere(shared: Path, tmp_path: Path) -> None:
    clip(tmp_path / "clip")
    place = {"id": str(shared / "weights" / "aesthetic"), "base": str(tmp_path / "clip")}
    reward = load_reward(RewardModel.model_validate({"name": "beauty", "kind": "aesthetic", **place}), CPU)
    assert reward.score(torch.rand(2, 3, 40, 40), {}, ["", ""]).shape == (2,)
