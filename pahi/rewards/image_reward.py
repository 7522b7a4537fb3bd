"""ImageReward: a BLIP text tower that looks at the picture, and an MLP on its first token. Xu et al. 2023.

    r(picture, text) = (MLP(BLIP(text | ViT(picture))[CLS]) - mean) / std

The published package needs transformers 4; the same network is expressed here with transformers' own BLIP blocks, and
its checkpoint (zai-org/ImageReward: ImageReward.pt, med_config.json) is read as it is.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, BlipTextConfig, BlipVisionConfig, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from pahi.errors import UserError, first_line
from pahi.rewards.base import Kind, Prepared, Source
from pahi.rewards.preprocess import Pixels
from pahi.rewards.towers import DTYPES, check_vocabulary, tokenize
from pahi.settings import RewardModel

PUBLISHED_MEAN, PUBLISHED_STD = 0.16717362830052426, 1.0333394966054072
PUBLISHED_TOKENS = 35
PUBLISHED_WIDTH, PUBLISHED_HEAD = 768, (1024, 128, 64, 16)
PUBLISHED_WEIGHTS = "ImageReward.pt"

# The published vision tower is timm's, ours transformers'. In this order: a later pair sees the earlier one's result.
VISION_KEYS = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("blocks.", "encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)
USED_KEYS = ("blip.visual_encoder.", "blip.text_encoder.", "mlp.")  # no score depends on BLIP's other heads


class Head(nn.Module):
    """The published MLP: linear layers without activations between them, dropout after the first three."""

    def __init__(self, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = [width, *hidden, 1]
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            layers.append(nn.Linear(inputs, outputs))
            if i < len(widths) - 3:
                layers.append(nn.Dropout(0.2 if i < 2 else 0.1))
        self.layers = nn.Sequential(*layers)

    def forward(self, states: Tensor) -> Tensor:
        return self.layers(states)


class ImageRewardModel(nn.Module):
    """The network alone, for scoring and for training one of one's own.

    `text.encoder_hidden_size` must be the vision tower's width; `tokens` is the length that prompts are padded and cut
    to; `head` are the MLP's hidden widths (1.33, 1/6, 1/12 and 1/48 of the text width where empty, as published);
    `mean` and `std` standardise the score (0 and 1 for a model that is yet to be trained).
    """

    def __init__(
        self,
        text: BlipTextConfig,
        vision: BlipVisionConfig,
        *,
        head: Sequence[int] = (),
        tokens: int = PUBLISHED_TOKENS,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        """Raises ValueError when the two towers do not fit."""
        super().__init__()
        if text.encoder_hidden_size != vision.hidden_size:
            raise ValueError(f"text looks at width {text.encoder_hidden_size}, vision has {vision.hidden_size}")
        if not text.is_decoder:
            raise ValueError("without is_decoder=True the text tower has no cross-attention and never sees the picture")
        if tokens > text.max_position_embeddings:
            raise ValueError(f"{tokens} tokens, but only {text.max_position_embeddings} positions")
        width = text.hidden_size
        self.text_config, self.vision_config = text, vision
        self.head_widths = list(head) or [max(1, width * part // PUBLISHED_WIDTH) for part in PUBLISHED_HEAD]
        self.tokens, self.mean, self.std = tokens, mean, std
        self.text_encoder = BlipTextModel(text, add_pooling_layer=False)
        self.visual_encoder = BlipVisionModel(vision)
        self.mlp = Head(width, self.head_widths)

    @property
    def image_size(self) -> int:
        return int(self.vision_config.image_size)

    def pixels(self, images: Tensor) -> Tensor:
        """Pictures (batch, 3, h, w) around [0, 1], of any size -> what `forward` reads, (batch, 3, size, size)."""
        return Pixels(self.image_size, "crop_rounded")(images)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Normalised pixels (batch, 3, size, size), ids and mask (batch, tokens) -> scores (batch,), float32."""
        state = self.fused(pixel_values, input_ids, attention_mask)
        with torch.autocast(state.device.type, enabled=False):
            return (self.mlp(state.float()).squeeze(-1) - self.mean) / self.std

    def fused(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What the score is read from: the text's first token, having seen the picture, (batch, width)."""
        picture = self.visual_encoder(pixel_values=pixel_values).last_hidden_state  # (batch, patches + 1, width)
        states = self.text_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=picture,
            encoder_attention_mask=torch.ones(picture.shape[:2], dtype=torch.long, device=picture.device),
            is_decoder=False,  # every token sees every token; of a decoder it has the cross-attention alone
        ).last_hidden_state  # (batch, tokens, width)
        return states[:, 0]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors; the tokenizer's own save_pretrained adds its files beside them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "architecture": "ImageReward",
            "text_config": _plain(self.text_config),
            "vision_config": _plain(self.vision_config),
            "head": self.head_widths,
            "tokens": self.tokens,
            "mean": self.mean,
            "std": self.std,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "ImageRewardModel":
        """Reads what `save_pretrained` wrote, or the published checkpoint. Raises ValueError or OSError otherwise."""
        folder = Path(folder)
        if (folder / PUBLISHED_WEIGHTS).is_file():
            return cls._from_published(folder)
        config = json.loads((folder / "config.json").read_text())
        if config.get("architecture") != "ImageReward":
            raise ValueError("config.json describes no ImageReward")
        model = cls(
            BlipTextConfig(**config["text_config"]),
            BlipVisionConfig(**config["vision_config"]),
            head=config["head"],
            tokens=config["tokens"],
            mean=config["mean"],
            std=config["std"],
        )
        model._load(load_file(folder / "model.safetensors"))
        return model.eval()

    @classmethod
    def _from_published(cls, folder: Path) -> "ImageRewardModel":
        # weights_only: a pickle that would run code is refused instead of run.
        weights = torch.load(folder / PUBLISHED_WEIGHTS, map_location="cpu", weights_only=True)
        text = published_text_config(json.loads((folder / "med_config.json").read_text()))
        model = cls(text, published_vision_config(), head=PUBLISHED_HEAD, mean=PUBLISHED_MEAN, std=PUBLISHED_STD)
        model._load(rename_published(weights))
        return model.eval()

    def _load(self, weights: dict[str, Tensor]) -> None:
        # strict: what a checkpoint lacks would stay random, and score at random without an error.
        try:
            self.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise ValueError(" ".join(str(error).split())[:300]) from None


def published_text_config(med: dict[str, Any]) -> BlipTextConfig:
    """med_config.json's BERT as a BlipTextConfig; the head count must be given, transformers' default is another."""
    return BlipTextConfig(
        vocab_size=med["vocab_size"],
        hidden_size=med["hidden_size"],
        encoder_hidden_size=med["encoder_width"],
        intermediate_size=med["intermediate_size"],
        num_hidden_layers=med["num_hidden_layers"],
        num_attention_heads=med["num_attention_heads"],
        max_position_embeddings=med["max_position_embeddings"],
        hidden_act=med["hidden_act"],
        layer_norm_eps=med["layer_norm_eps"],
        pad_token_id=med["pad_token_id"],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,
        use_cache=False,
    )


def published_vision_config() -> BlipVisionConfig:
    """ViT-L/16 at 224; timm's epsilon, transformers' default is another."""
    return BlipVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=16,
        layer_norm_eps=1e-6,
    )


def rename_published(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict under the names of `ImageRewardModel`."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not name.startswith(USED_KEYS) or name.endswith("embeddings.position_ids"):
            continue
        key = name.removeprefix("blip.")
        if key.startswith("visual_encoder."):
            key = key.removeprefix("visual_encoder.")
            for old, new in VISION_KEYS:
                key = key.replace(old, new)
            # The last norm alone: a block's own are layer_norm1 and layer_norm2 by now.
            key = "visual_encoder." + (
                "post_layernorm." + key.removeprefix("norm.") if key.startswith("norm.") else key
            )
        renamed[key] = tensor
    return renamed


def _plain(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key != "transformers_version"}


class ImageReward:
    """The published model, or a folder of `ImageRewardModel.save_pretrained` with its tokenizer's files."""

    differentiable = True

    def __init__(self, model: RewardModel, source: Source, device: torch.device) -> None:
        """Raises UserError when the folders hold no ImageReward or no tokenizer."""
        try:
            self.model = ImageRewardModel.from_pretrained(source.folder).to(device)
            self.tokenizer = AutoTokenizer.from_pretrained(source.base)
        except Exception as error:  # a torn or hostile file shows itself in as many ways as there are readers
            raise UserError(f"reward {model.name}: cannot load {source.folder}: {first_line(error)}") from None
        check_vocabulary(self.tokenizer, self.model.text_config.vocab_size, model.name)
        # The head stays in float32: five layers in a row without an activation lose what a narrower type cuts off.
        self.model.visual_encoder.to(DTYPES[model.dtype])
        self.model.text_encoder.to(DTYPES[model.dtype])
        self.model.requires_grad_(False).eval()
        self.name, self.hash, self.device = model.name, source.hash, device

    @torch.no_grad()
    def prepare(self, prompts: list[str]) -> Prepared:
        """input_ids, attention_mask (batch, tokens): the text tower looks at the picture, so no more is constant."""
        batch, truncated = tokenize(self.tokenizer, prompts, self.model.tokens)
        ids, mask = batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)
        return {"input_ids": ids, "attention_mask": mask, "truncated": truncated}

    def score(self, images: Tensor, prepared: Prepared, prompts: list[str]) -> Tensor:
        ids, mask = (prepared[name].to(self.device).long() for name in ("input_ids", "attention_mask"))
        return self.model(self.model.pixels(images), ids, mask)


KIND = Kind(
    load=ImageReward,
    checkpoint="zai-org/ImageReward",
    license="Apache-2.0",
    files=(PUBLISHED_WEIGHTS, "med_config.json", "config.json", "model.safetensors"),
    base="google-bert/bert-base-uncased",
)
