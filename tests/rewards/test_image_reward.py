"""ImageReward on today's transformers is ImageReward as published: the package's own scores, on rebuilt weights."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_reward_recipe import MED, fill, picture, quiet, token_ids
from PIL import Image
from torch import Tensor
from transformers import BlipTextConfig, BlipVisionConfig, CLIPTokenizer

from pahi.rewards.image_reward import (
    PUBLISHED_HEAD,
    PUBLISHED_MEAN,
    PUBLISHED_STD,
    ImageRewardModel,
    published_text_config,
    published_vision_config,
    rename_published,
)
from pahi.rewards.preprocess import Pixels

# Computed by the image-reward package 1.5 (transformers 4.49, fp32, CPU) on the weights, pictures and ids below.
GOLDEN = (  # picture i under prompt j
    (-7.058670997619629, -6.9343037605285645, -6.935282230377197, -6.941527366638184),
    (-6.533807277679443, -6.476357460021973, -6.510280609130859, -6.523684024810791),
    (-3.7858457565307617, -3.7014756202697754, -3.7290689945220947, -3.7254772186279297),
    (-5.946873188018799, -5.89169979095459, -5.920225143432617, -5.93405294418335),
)
# The same, of picture i under prompt i, where the first layer norm sees what is as small as its epsilon.
GOLDEN_QUIET = (-2.2452714443206787, -0.19755977392196655, -1.399775505065918, 1.292281985282898)
GOLDEN_CLS = (-0.25381022691726685, 0.39205247163772583, -0.5154933929443359, -1.3141781091690063)  # of picture 0
GOLDEN_GRADIENT = {"norm": 1.8419044017791748, "abs_mean": 0.003512637922540307}  # picture 0, prompt 1


def pil_pixels(image: Image.Image, size: int = 224) -> Tensor:
    """The package's preprocessing of a square picture: PIL's bicubic, then CLIP's mean and deviation."""
    small = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    return Pixels(size).normalise(torch.from_numpy(small.copy()).permute(2, 0, 1)[None].float() / 255)


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255


def published_name(name: str) -> str:
    """The published state dict's name of one of our weights: the inverse of `rename_published`, written apart."""
    if name.startswith("mlp."):
        return name
    if name.startswith("text_encoder."):
        return "blip." + name
    name = name.removeprefix("visual_encoder.")
    fixed = {
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding": "pos_embed",
        "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
        "embeddings.patch_embedding.bias": "patch_embed.proj.bias",
        "post_layernorm.weight": "norm.weight",
        "post_layernorm.bias": "norm.bias",
    }
    if name in fixed:
        return "blip.visual_encoder." + fixed[name]
    _, _, number, rest = name.split(".", 3)
    for ours, theirs in (("layer_norm", "norm"), ("self_attn.projection", "attn.proj"), ("self_attn.qkv", "attn.qkv")):
        rest = rest.replace(ours, theirs)
    return f"blip.visual_encoder.blocks.{number}.{rest}"


def golden_model(text: BlipTextConfig | None = None, vision: BlipVisionConfig | None = None) -> ImageRewardModel:
    model = ImageRewardModel(
        text or published_text_config(MED),
        vision or published_vision_config(),
        head=PUBLISHED_HEAD,
        mean=PUBLISHED_MEAN,
        std=PUBLISHED_STD,
    )
    weights = {published_name(n): fill(published_name(n), t) for n, t in model.state_dict().items()}
    model.load_state_dict(rename_published(weights))
    return model.eval()


@pytest.fixture(scope="module")
def golden() -> ImageRewardModel:
    return golden_model()


@pytest.mark.slow
@torch.no_grad()
def test_the_scores_are_the_packages_by_the_pil_path(golden: ImageRewardModel) -> None:
    pixels = torch.cat([pil_pixels(picture(i)) for i in range(4)])
    cls = golden.visual_encoder(pixel_values=pixels[:1]).last_hidden_state[0, 0, :4]
    assert (cls - torch.tensor(GOLDEN_CLS)).abs().max() < 1e-4
    for j in range(4):
        ids, mask = token_ids(j)
        got = golden(pixels, ids.expand(4, -1), mask.expand(4, -1))
        assert got.shape == (4,) and got.dtype == torch.float32
        assert (got - torch.tensor([row[j] for row in GOLDEN])).abs().max() < 1e-4


@pytest.mark.slow
@torch.no_grad()
def test_the_scores_are_near_the_packages_by_the_tensor_path(golden: ImageRewardModel) -> None:
    for i in range(4):
        got = golden(golden.pixels(tensor(picture(i))), *token_ids(i))
        assert abs(float(got) - GOLDEN[i][i]) < 0.05


@pytest.mark.slow
def test_the_gradient_is_the_packages(golden: ImageRewardModel) -> None:
    golden.requires_grad_(False)
    pixels = pil_pixels(picture(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(golden(pixels, *token_ids(1)).sum(), pixels)
    assert float(gradient.norm()) == pytest.approx(GOLDEN_GRADIENT["norm"], abs=1e-4)
    assert float(gradient.abs().mean()) == pytest.approx(
        GOLDEN_GRADIENT["abs_mean"], abs=1e-4 * GOLDEN_GRADIENT["norm"]
    )


@pytest.mark.slow
@torch.no_grad()
def test_a_wrong_head_count_or_epsilon_is_caught(golden: ImageRewardModel) -> None:
    """Both load without an error, and are transformers' defaults. Last: it makes the weights quiet, in place."""
    pixels, text = pil_pixels(picture(0)), token_ids(0)
    heads = [m for m in golden.modules() if hasattr(m, "num_attention_heads") and hasattr(m, "attention_head_size")]
    norms = [m for m in golden.modules() if isinstance(m, torch.nn.LayerNorm) and m.eps == 1e-6]
    assert len(heads) == 24 and len(norms) == 2 * 24 + 1
    for module in heads:
        module.num_attention_heads, module.attention_head_size = 8, 96
    assert abs(float(golden(pixels, *text)) - GOLDEN[0][0]) > 1e-3
    for module in heads:
        module.num_attention_heads, module.attention_head_size = 12, 64
    for name, weight in golden.state_dict().items():
        weight.copy_(quiet(published_name(name), weight))
    assert abs(float(golden(pixels, *text)) - GOLDEN_QUIET[0]) < 1e-4
    for module in norms:
        module.eps = 1e-5
    assert abs(float(golden(pixels, *text)) - GOLDEN_QUIET[0]) > 1e-3


# ------------------------------------------------------------------------------------------------------ a small one


def small_model(tokenizer: CLIPTokenizer, seed: int = 0) -> ImageRewardModel:
    torch.manual_seed(seed)
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        encoder_hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,
        use_cache=False,
    )
    vision = BlipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    return ImageRewardModel(text, vision, tokens=24)


def test_a_small_one_can_be_trained_saved_and_loaded(
    tokenizer: CLIPTokenizer, shake: Callable[[torch.nn.Module, int], None], tmp_path: Path
) -> None:
    model = small_model(tokenizer).train()
    shake(model, 3)
    batch = tokenizer(["a red circle", "a star"], padding="max_length", max_length=24, return_tensors="pt")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    scores = model(model.pixels(images), batch.input_ids, batch.attention_mask)
    scores.sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # A key's bias shifts all of a row's attention alike, so its gradient is zero but for rounding.
    assert not [n for n in without if not n.endswith("key.bias")] and images.grad is not None
    model.save_pretrained(tmp_path)
    again = ImageRewardModel.from_pretrained(tmp_path)
    assert not again.training and json.loads((tmp_path / "config.json").read_text())["head"] == [64, 8, 4, 1]
    with torch.no_grad():
        expected = model.eval()(model.pixels(images), batch.input_ids, batch.attention_mask)
        assert torch.equal(again(again.pixels(images), batch.input_ids, batch.attention_mask), expected)
        # The picture and the prompt both matter.
        assert not torch.allclose(expected, again(again.pixels(images.flip(0)), batch.input_ids, batch.attention_mask))
        swapped = again(again.pixels(images), batch.input_ids.flip(0), batch.attention_mask.flip(0))
        assert not torch.allclose(expected, swapped)
