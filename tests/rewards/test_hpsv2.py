"""HPSv2.1 under transformers' names is open_clip's own network, and its checkpoint is read as it is."""

from pathlib import Path

import open_clip_recipe as recipe
import pytest
import torch
from pictures import photo, tensor
from transformers import CLIPTokenizer

from pahi.errors import UserError
from pahi.rewards import load_reward
from pahi.rewards.hpsv2 import WEIGHTS, load_open_clip, rename_open_clip
from pahi.rewards.preprocess import Pixels
from pahi.settings import RewardModel

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "a large  blue star &amp; a square", "word " * 100]

# What open_clip_recipe.py printed with open_clip 2.24: picture i under prompt j.
GOLDEN = (
    (-0.26087433099746704, -0.28172245621681213, -0.14585889875888824, -0.22474952042102814),
    (-0.12988242506980896, -0.2043198049068451, -0.038327932357788086, -0.15404610335826874),
    (-0.22057679295539856, -0.28979864716529846, -0.09076686203479767, -0.17784544825553894),
    (-0.19408036768436432, -0.23456348478794098, -0.03503219038248062, -0.18178756535053253),
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of the published file: half precision, under state_dict."""
    path = tmp_path_factory.mktemp("hps")
    torch.save({"epoch": 3, "state_dict": recipe.weights()}, path / WEIGHTS)
    return path


@torch.no_grad()
def cosines(file: Path, pixels: torch.Tensor) -> torch.Tensor:
    model = load_open_clip(file, recipe.VOCABULARY - 1, torch.float32).eval()
    image = model.get_image_features(pixels).pooler_output
    text = model.get_text_features(recipe.token_ids()).pooler_output
    return torch.nn.functional.normalize(image, dim=-1) @ torch.nn.functional.normalize(text, dim=-1).T


def test_the_scores_are_open_clips(published: Path) -> None:
    pixels = torch.cat([recipe.pil_pixels(recipe.picture(i)) for i in range(4)])
    got = cosines(published / WEIGHTS, pixels)
    assert (got - torch.tensor(GOLDEN)).abs().max() < 1e-5


def test_pictures_that_are_not_square_are_padded_as_the_published_scorer_does(published: Path) -> None:
    fit = Pixels(recipe.SIZE, "pad")
    pixels = torch.cat([fit(tensor(recipe.picture(i))[None]) for i in range(4)])
    for i in range(4):
        assert (pixels[i] - recipe.pil_pixels(recipe.picture(i))[0]).abs().mean() < 0.02  # a pixel of 255 is 0.015 here
    assert (cosines(published / WEIGHTS, pixels) - torch.tensor(GOLDEN)).abs().max() < 0.01


@pytest.mark.parametrize("wrong", ["VISION_HEAD_WIDTH", "TEXT_HEAD_WIDTH"])
def test_a_wrong_head_count_would_show(published: Path, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any head count loads: only the scores tell."""
    monkeypatch.setattr(f"pahi.rewards.hpsv2.{wrong}", 32)
    pixels = torch.cat([recipe.pil_pixels(recipe.picture(i)) for i in range(4)])
    assert (cosines(published / WEIGHTS, pixels) - torch.tensor(GOLDEN)).abs().max() > 1e-3


def test_every_weight_is_used_once() -> None:
    renamed = rename_open_clip(recipe.weights())
    assert sum(t.numel() for t in renamed.values()) == sum(t.numel() for t in recipe.weights().values())


@pytest.fixture
def folder(tokenizer: CLIPTokenizer, tmp_path: Path) -> Path:
    (tmp_path / "checkpoint").mkdir()
    words = {name: tensor.half() for name, tensor in recipe.weights(len(tokenizer)).items()}
    torch.save({"state_dict": words}, tmp_path / "checkpoint" / WEIGHTS)
    tokenizer.save_pretrained(tmp_path / "words")
    return tmp_path


def settings(folder: Path) -> RewardModel:
    place = {"id": str(folder / "checkpoint"), "base": str(folder / "words")}
    return RewardModel.model_validate({"name": "hps", "kind": "hpsv2", **place})


def test_a_checkpoint_and_a_tokenizer_make_a_reward(folder: Path, tokenizer: CLIPTokenizer) -> None:
    reward = load_reward(settings(folder), CPU)
    images = torch.stack([tensor(photo(48, 32, seed)) for seed in range(3)]).requires_grad_()
    prepared = reward.prepare(PROMPTS)
    got = reward.score(images, prepared, PROMPTS)
    assert got.shape == (3,) and got.dtype == torch.float32 and got.abs().max() <= 1
    assert prepared["truncated"].tolist() == [0, 0, 1]
    plain = reward.prepare(["a large blue star & a square"])["text_features"]
    assert torch.allclose(plain[0], prepared["text_features"][1], atol=1e-6)
    (gradient,) = torch.autograd.grad(got.sum(), images)
    assert gradient.isfinite().all() and (gradient.flatten(1).abs().sum(1) > 0).all()


def test_a_checkpoint_that_lacks_a_weight_is_refused(folder: Path, tokenizer: CLIPTokenizer) -> None:
    words = recipe.weights(len(tokenizer))
    del words["visual.ln_post.bias"]
    torch.save({"state_dict": words}, folder / "checkpoint" / WEIGHTS)
    with pytest.raises(UserError, match=r"reward hps.*post_layernorm\.bias") as error:
        load_reward(settings(folder), CPU)
    assert "\n" not in str(error.value)
