"""Dual encoders: a text tower and a picture tower that meet in one space. What the CLIP-like rewards share."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from pahi.errors import UserError, first_line
from pahi.rewards.base import Prepared, Source
from pahi.rewards.preprocess import Pixels
from pahi.settings import RewardModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LONGEST = 4096  # tokens: a tokenizer that knows no limit says 1e30


class Towers(nn.Module):
    """Any model of transformers' with get_text_features and get_image_features, frozen.

    CLIP, SigLIP, or a VisionTextDualEncoderModel of two towers. Features are of unit length and float32, whatever the
    towers run in.
    """

    def __init__(self, name: str, model: Any, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> None:
        """Raises UserError when the tokenizer is another model's."""
        super().__init__()
        text = model.config.text_config
        self.tokenizer = check_vocabulary(tokenizer, text.vocab_size, name)
        self.model = model.to(device).requires_grad_(False).eval()
        self.tokens = min(getattr(text, "max_position_embeddings", LONGEST), tokenizer.model_max_length, LONGEST)
        self.size = int(model.config.vision_config.image_size)
        self.eval()

    @classmethod
    def load(cls, model: RewardModel, source: Source, device: torch.device) -> "Towers":
        """What AutoModel loads from a folder. Raises UserError when that is no whole dual encoder."""
        name, folder = model.name, source.folder
        try:
            loaded, report = AutoModel.from_pretrained(folder, dtype=DTYPES[model.dtype], output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(source.base)
        except Exception as error:  # a torn or foreign file shows itself in as many ways as there are readers
            raise UserError(f"reward {name}: cannot load {folder}: {first_line(error)}") from None
        if not hasattr(loaded, "get_text_features") or not hasattr(loaded, "get_image_features"):
            raise UserError(f"reward {name}: {folder} holds a {type(loaded).__name__}, which is no dual encoder")
        # transformers fills what a checkpoint lacks with random numbers, and only warns.
        if report["missing_keys"]:
            raise UserError(f"reward {name}: {folder} is no whole model: it lacks {min(report['missing_keys'])}")
        return cls(name, loaded, tokenizer, device)

    @property
    def logit_scale(self) -> Tensor:
        return self.model.logit_scale.float()

    @torch.no_grad()
    def text(self, prompts: list[str]) -> Prepared:
        """text_features (batch, width), of unit length, and truncated (batch,)."""
        batch, truncated = tokenize(self.tokenizer, prompts, self.tokens)
        features = self.model.get_text_features(**batch.to(self.model.device)).pooler_output
        return {"text_features": F.normalize(features.float(), dim=-1), "truncated": truncated}

    def image(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels (batch, 3, size, size) -> (batch, width), of unit length."""
        features = self.model.get_image_features(pixel_values.to(self.model.dtype)).pooler_output
        return F.normalize(features.float(), dim=-1)

    def cosine(self, pixel_values: Tensor, prepared: Prepared) -> Tensor:
        """Normalised pixels and `text`'s features -> the cosine between them, (batch,)."""
        features = self.image(pixel_values)
        return (features * prepared["text_features"].to(features.device)).sum(-1)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer; raises UserError when it has ids that the text tower has no embedding for: it is another's."""
    most = max(tokenizer.get_vocab().values())
    if most >= size:
        raise UserError(
            f"reward {name}: its tokenizer is another model's: it has id {most}, the model has {size} tokens"
        )
    return tokenizer


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: list[str], tokens: int) -> tuple[Any, Tensor]:
    """Ids and mask (batch, tokens) as the model wants them, padded and cut; and 1 for each prompt that was cut."""
    batch = tokenizer(prompts, padding="max_length", truncation=True, max_length=tokens, return_tensors="pt")
    if batch.encodings is not None:  # a fast tokenizer remembers what it cut off
        cut = [bool(encoding.overflowing) for encoding in batch.encodings]
    else:
        cut = [len(ids) > tokens for ids in tokenizer(prompts, verbose=False)["input_ids"]]
    return batch, torch.tensor(cut, dtype=torch.int32)


def published_pixels(name: str, source: Source, size: int) -> Pixels:
    """The preprocessing that lies beside the weights; CLIP's at the tower's size where none does. Raises UserError."""
    if not any((source.folder / file).is_file() for file in ("preprocessor_config.json", "processor_config.json")):
        return Pixels(size)
    try:
        processor = AutoImageProcessor.from_pretrained(source.folder)
    except Exception as error:
        raise UserError(f"reward {name}: cannot read the image processor: {first_line(error)}") from None
    mode = {2: "bilinear", 3: "bicubic"}.get(int(processor.resample or 0))
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    if not getattr(processor, "do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    short, height = processor.size.get("shortest_edge"), processor.size.get("height")
    if mode and height and height == processor.size.get("width") and not getattr(processor, "do_center_crop", False):
        return Pixels(int(height), "stretch", mean, std, mode)  # type: ignore[arg-type]
    crop = processor.crop_size.get("height") if getattr(processor, "do_center_crop", False) else None
    if mode and short and short == crop:
        return Pixels(int(short), "crop", mean, std, mode)  # type: ignore[arg-type]
    kind = type(processor).__name__
    raise UserError(f"reward {name}: cannot do what its {kind} does: resize to {dict(processor.size)}, crop {crop}")
