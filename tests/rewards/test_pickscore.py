"""PickScore on tensors is PickScore as published, on PIL pictures and transformers' own processor."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pictures import photo, tensor
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from pahi.errors import UserError
from pahi.rewards import load_reward
from pahi.rewards.load import reward_hash
from pahi.rewards.preprocess import CLIP_MEAN, CLIP_STD, Pixels
from pahi.settings import RewardModel

SIZE = 224
CPU = torch.device("cpu")
PROMPTS = ["a red circle", "", "a large blue star on a white background", "word " * 100, "a tiny pink cross"]
SHAPES = [(224, 224), (480, 640), (1000, 333), (225, 224), (64, 64), (100, 300)]  # height, width


def processor(tokenizer: CLIPTokenizer) -> CLIPProcessor:
    pil = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return CLIPProcessor(image_processor=pil, tokenizer=tokenizer)


@pytest.fixture(scope="session")
def folder(
    tokenizer: CLIPTokenizer, shake: Callable[[torch.nn.Module, int], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A CLIP model in PickScore's layout: small, and every weight matters."""
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=SIZE, patch_size=32
    )
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24))
    shake(model, 5)
    path = tmp_path_factory.mktemp("reward") / "clip"
    model.save_pretrained(path, safe_serialization=True)
    processor(tokenizer).save_pretrained(path)
    return path


def settings(target: Path | str, kind: str = "pickscore") -> RewardModel:
    return RewardModel.model_validate({"name": "pick", "kind": kind, "id": str(target)})


@torch.no_grad()
def published_score(folder: Path, tokenizer: CLIPTokenizer, prompt: str, images: list[Image.Image]) -> Tensor:
    """The model card's `calc_probs`, up to the scores, line by line."""
    model, both = CLIPModel.from_pretrained(folder).eval(), processor(tokenizer)
    image_inputs = both(images=images, return_tensors="pt")
    text_inputs = both(
        text=prompt, padding=True, truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    image_embs = model.get_image_features(**image_inputs).pooler_output
    image_embs = image_embs / torch.norm(image_embs, dim=-1, keepdim=True)
    text_embs = model.get_text_features(**text_inputs).pooler_output
    text_embs = text_embs / torch.norm(text_embs, dim=-1, keepdim=True)
    return model.logit_scale.exp() * (text_embs @ image_embs.T)[0]


# --------------------------------------------------------------------------------------------------------- the score


def test_the_score_is_the_published_one(folder: Path, tokenizer: CLIPTokenizer) -> None:
    reward = load_reward(settings(folder), CPU)
    images = [photo(SIZE, SIZE, seed) for seed in range(len(PROMPTS))]
    expected = torch.stack(
        [published_score(folder, tokenizer, p, [image])[0] for p, image in zip(PROMPTS, images, strict=True)]
    )
    got = reward.score(torch.stack([tensor(i) for i in images]), reward.prepare(PROMPTS), PROMPTS)
    assert got.shape == (5,) and got.dtype == torch.float32
    # Pictures of the model's own size go through no resampling: nothing but fp32 rounding is left.
    assert (got - expected).abs().max() < 1e-4
    scale = float(CLIPModel.from_pretrained(folder).logit_scale.detach().exp())
    assert scale > 5 and got.abs().max() <= scale
    assert expected.std() > 100 * 1e-4, "every prompt and picture scores the same"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_score_of_any_size_is_near_the_published_one(
    folder: Path, tokenizer: CLIPTokenizer, shape: tuple[int, int]
) -> None:
    reward, image = load_reward(settings(folder), CPU), photo(*shape)
    expected = published_score(folder, tokenizer, PROMPTS[0], [image])
    got = reward.score(tensor(image)[None], reward.prepare(PROMPTS[:1]), PROMPTS[:1])
    # PIL rounds to 8 bits after resampling, we do not: a thousandth of the score's range.
    assert (got - expected).abs().max() < 0.015


def test_prepared_is_only_a_cache(folder: Path) -> None:
    reward = load_reward(settings(folder), CPU)
    images = torch.stack([tensor(photo(96, 96, seed)) for seed in range(5)])
    prepared = reward.prepare(PROMPTS)
    assert not any(t.requires_grad for t in prepared.values()) and all(len(t) == 5 for t in prepared.values())
    together = reward.score(images, prepared, PROMPTS)
    stored = {name: torch.from_numpy(t.numpy().copy()) for name, t in prepared.items()}
    assert torch.equal(reward.score(images, stored, PROMPTS), together)
    for i in range(5):
        alone = reward.score(images[i : i + 1], reward.prepare([PROMPTS[i]]), [PROMPTS[i]])
        assert (alone - together[i]).abs().max() < 1e-4
    shuffled = reward.score(images, reward.prepare(PROMPTS[::-1]), PROMPTS[::-1])
    assert (shuffled - together).abs().max() > 0.01


def test_gradients_reach_the_pictures(folder: Path) -> None:
    reward = load_reward(settings(folder), CPU)
    assert reward.differentiable
    images = torch.stack([tensor(photo(64, 80, seed)) for seed in range(2)]) * 0.9 + 0.05
    images[0, :, 0, 40] = 1.5
    images.requires_grad_()
    prepared = reward.prepare(PROMPTS[:2])
    score = reward.score(images, prepared, PROMPTS[:2])
    (gradient,) = torch.autograd.grad(score.sum(), images)
    assert gradient.isfinite().all()
    # The centre crop takes 64 of 80 columns; what lies outside [0, 1] is clamped.
    assert (gradient[..., 12:-12] != 0).float().mean() > 0.99
    assert (gradient[0, :, 0, 40] == 0).all()
    # A step along the gradient gains what the gradient says.
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        gain = reward.score(images + step, prepared, PROMPTS[:2]) - reward.score(images - step, prepared, PROMPTS[:2])
    assert float(gain.sum()) == pytest.approx(2 * float((gradient * step).sum()), rel=0.05)


# ------------------------------------------------------------------------------------------------------------ pixels


def pil_pixels(tokenizer: CLIPTokenizer, image: Image.Image) -> Tensor:
    return processor(tokenizer)(images=[image], return_tensors="pt")["pixel_values"]


def unnormalised(pixels: Tensor) -> Tensor:
    return pixels * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_within_two_thousandths_of_pil(tokenizer: CLIPTokenizer, shape: tuple[int, int]) -> None:
    image = photo(*shape)
    expected = unnormalised(pil_pixels(tokenizer, image))
    got = unnormalised(Pixels(SIZE)(tensor(image)[None]))
    assert got.shape == expected.shape == (1, 3, SIZE, SIZE)
    assert float((got - expected).abs().mean()) <= 0.002
    if min(shape) > 1.4 * SIZE:
        # The same without antialias, where it matters: what this test is here to notice.
        scale = SIZE / min(shape)
        size = [int(shape[0] * scale), int(shape[1] * scale)]
        rough = F.interpolate(tensor(image)[None], size, mode="bicubic", align_corners=False)
        top, left = (size[0] - SIZE) // 2, (size[1] - SIZE) // 2
        rough = rough[..., top : top + SIZE, left : left + SIZE].clamp(0, 1)
        assert float((rough - expected).abs().mean()) > 0.01


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([16, 24, 64]))
def test_every_size_of_picture_is_cropped_where_pil_crops(height: int, width: int, size: int) -> None:
    """A ramp from one side to the other shows any shift of half a pixel."""
    across = torch.linspace(0.1, 0.9, width).expand(3, height, width)
    down = torch.linspace(0.1, 0.9, height)[:, None].expand(3, height, width)
    pil = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    for ramp in (across, down):
        image = Image.fromarray((ramp * 255).round().byte().permute(1, 2, 0).numpy())
        expected = unnormalised(pil(images=[image], return_tensors="pt")["pixel_values"])
        got = unnormalised(Pixels(size)(tensor(image)[None]))
        assert got.shape == expected.shape
        assert float((got - expected).abs().mean()) <= 0.003


# ---------------------------------------------------------------------------------------------------- hashes, errors


def test_the_hash_is_the_weights(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    shutil.copytree(folder, tmp_path / "nudged")
    weights = tmp_path / "nudged" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    hashes = [load_reward(settings(path), CPU).hash for path in (folder, tmp_path / "copy", tmp_path / "nudged")]
    assert hashes[0] == hashes[1] != hashes[2]
    assert reward_hash(settings(folder)) == hashes[0], "the fingerprint and the model must agree"


def refused(target: Path | str, kind: str = "pickscore") -> str:
    with pytest.raises(UserError) as error:
        load_reward(settings(target, kind), CPU)
    message = str(error.value)
    assert "\n" not in message and "pick" in message
    return message


def test_what_is_no_clip_model_is_refused(folder: Path, tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty")
    shutil.copytree(folder, tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    refused(tmp_path / "torn")
    # A text tower alone would be completed with random numbers, and score at random.
    half = tmp_path / "half"
    CLIPModel.from_pretrained(folder).text_model.save_pretrained(half)
    processor(tokenizer).save_pretrained(half)
    refused(half)
