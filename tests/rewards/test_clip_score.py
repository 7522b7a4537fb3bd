"""CLIPScore on any dual encoder is its published formula, on transformers' own model, processor and tokenizer."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pictures import photo, tensor
from torch import Tensor
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    ConvNextConfig,
    ConvNextModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    VisionTextDualEncoderModel,
)

from pahi.errors import UserError
from pahi.rewards import load_reward
from pahi.rewards.load import reward_hash
from pahi.settings import RewardModel

CPU = torch.device("cpu")
SIZE = 32
PROMPTS = ["a red circle", "a large blue star", "a tiny pink cross " * 30]
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        **SMALL,
        vocab_size=len(tokenizer),
        max_position_embeddings=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def clip(tokenizer: CLIPTokenizer) -> torch.nn.Module:
    vision = CLIPVisionConfig(**SMALL, image_size=SIZE, patch_size=8)
    config = CLIPConfig(text_config=text_config(tokenizer).to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    return CLIPModel(config)


def siglip(tokenizer: CLIPTokenizer) -> torch.nn.Module:
    text = SiglipTextConfig(
        **SMALL, vocab_size=len(tokenizer), max_position_embeddings=24, projection_size=16, pad_token_id=0
    )
    vision = SiglipVisionConfig(**SMALL, image_size=SIZE, patch_size=8)
    return SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))


def convnext() -> ConvNextModel:
    config = ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], image_size=SIZE, layer_scale_init_value=0.5
    )
    config.hidden_size = 16  # what VisionTextDualEncoderModel asks for, and ConvNext calls hidden_sizes[-1]
    return ConvNextModel(config)


def bert_and_convnext(tokenizer: CLIPTokenizer) -> torch.nn.Module:
    text = BertModel(BertConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=24))
    return VisionTextDualEncoderModel(vision_model=convnext(), text_model=text)


def clip_text_and_convnext(tokenizer: CLIPTokenizer) -> torch.nn.Module:
    return VisionTextDualEncoderModel(vision_model=convnext(), text_model=CLIPTextModel(text_config(tokenizer)))


@pytest.fixture(params=[clip, siglip, bert_and_convnext, clip_text_and_convnext], ids=lambda make: make.__name__)
def folder(
    request: pytest.FixtureRequest,
    tokenizer: CLIPTokenizer,
    shake: Callable[[torch.nn.Module, int], None],
    tmp_path: Path,
) -> Path:
    torch.manual_seed(0)
    model = request.param(tokenizer)
    shake(model, 5)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    if request.param is clip:
        CLIPImageProcessorPil(
            size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_mean=[0.4, 0.5, 0.6]
        ).save_pretrained(tmp_path)
    if request.param is siglip:
        SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path)
    return tmp_path


def settings(folder: Path, **more: str) -> RewardModel:
    return RewardModel.model_validate({"name": "clip", "kind": "clip_score", "id": str(folder), **more})


@torch.no_grad()
def published_score(folder: Path, tokenizer: CLIPTokenizer, images: Tensor, prompts: list[str]) -> Tensor:
    """100 * cos(E_I, E_C), as torchmetrics has it, on pixels that transformers' processor prepared."""
    model = AutoModel.from_pretrained(folder).eval()
    text = tokenizer(prompts, padding="max_length", truncation=True, max_length=24, return_tensors="pt")
    image = model.get_image_features(images).pooler_output
    words = model.get_text_features(**text).pooler_output
    return 100 * F.cosine_similarity(image, words)


def processed(folder: Path, picture: object) -> Tensor:
    """(1, 3, SIZE, SIZE), by the folder's own processor; by CLIP's where it has none."""
    from transformers import AutoImageProcessor

    if (folder / "preprocessor_config.json").is_file():
        processor = AutoImageProcessor.from_pretrained(folder)
    else:
        processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return processor(images=[picture], return_tensors="pt")["pixel_values"]


def test_the_score_is_the_published_one(folder: Path, tokenizer: CLIPTokenizer) -> None:
    reward = load_reward(settings(folder), CPU)
    pictures = [photo(SIZE, SIZE, seed) for seed in range(3)]
    expected = published_score(folder, tokenizer, torch.cat([processed(folder, p) for p in pictures]), PROMPTS)
    images = torch.stack([tensor(p) for p in pictures]).requires_grad_()
    prepared = reward.prepare(PROMPTS)
    got = reward.score(images, prepared, PROMPTS)
    assert got.shape == (3,) and got.dtype == torch.float32
    assert (got - expected).abs().max() < 1e-3 and expected.std() > 0.1
    assert prepared["truncated"].tolist() == [0, 0, 1]
    (gradient,) = torch.autograd.grad(got.sum(), images)
    assert gradient.isfinite().all() and (gradient.flatten(1).abs().sum(1) > 0).all()


def test_pictures_of_another_shape_are_fitted_as_the_folders_processor_does(
    folder: Path, tokenizer: CLIPTokenizer
) -> None:
    reward, picture = load_reward(settings(folder), CPU), photo(90, 60)
    expected = published_score(folder, tokenizer, processed(folder, picture), PROMPTS[:1])
    got = reward.score(tensor(picture)[None], reward.prepare(PROMPTS[:1]), PROMPTS[:1])
    assert float((got - expected).abs()) < 1.0


def test_a_model_without_two_towers_is_refused(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    CLIPTextModel(text_config(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no dual encoder"):
        load_reward(settings(tmp_path), CPU)


def test_a_processor_that_crops_what_it_did_not_fit_is_refused(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    clip(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="resize to"):
        load_reward(settings(tmp_path), CPU)


def test_a_tokenizer_from_elsewhere(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    """The text side may lie in another folder; one with more words than the model has is another model's."""
    clip(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "words")
    with pytest.raises(UserError, match="as its base"):
        load_reward(settings(tmp_path / "model"), CPU)
    reward = load_reward(settings(tmp_path / "model", base=str(tmp_path / "words")), CPU)
    assert reward.prepare(PROMPTS)["text_features"].shape == (3, 12)
    more = CLIPTokenizer.from_pretrained(tmp_path / "words")
    more.add_tokens(["unheard"])
    more.save_pretrained(tmp_path / "more")
    with pytest.raises(UserError, match="another model's"):
        load_reward(settings(tmp_path / "model", base=str(tmp_path / "more")), CPU)
    assert reward_hash(settings(tmp_path / "model", base=str(tmp_path / "more"))) != reward.hash
