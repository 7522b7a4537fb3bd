"""HPSv2.1: cos(CLIP text, CLIP image), without a scale, of a fine-tuned ViT-H-14. Wu et al. 2023, xswu/HPSv2.

The checkpoint is a state dict of open_clip's; it is renamed into transformers' CLIP here, so that open_clip is not
needed (a test holds the two against each other). Prompts are cleaned as open_clip's tokenizer cleans them, less its
repair of broken encodings. Pictures that are not square are padded with black, as the published scorer does.
"""

import html
import re
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from pahi.errors import UserError, first_line
from pahi.rewards.base import Kind, Prepared, Source
from pahi.rewards.preprocess import Pixels
from pahi.rewards.towers import DTYPES, Towers
from pahi.settings import RewardModel

WEIGHTS = "HPS_v2.1_compressed.pt"
# Of ViT-H-14, and not to be seen in the weights' shapes; every other size is.
VISION_HEAD_WIDTH, TEXT_HEAD_WIDTH = 80, 64

NAMES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",  # transformers' own spelling
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
}
BLOCK_NAMES = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


class HPSv2:
    """The published checkpoint, or any state dict of open_clip's with ViT-H-14's head widths."""

    differentiable = True

    def __init__(self, model: RewardModel, source: Source, device: torch.device) -> None:
        """Raises UserError when the folders hold no such checkpoint or no tokenizer."""
        self.name, self.hash = model.name, source.hash
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.base)
            clip = load_open_clip(source.folder / WEIGHTS, tokenizer.eos_token_id, DTYPES[model.dtype])
        except Exception as error:  # a torn or hostile file shows itself in as many ways as there are readers
            raise UserError(f"reward {model.name}: cannot load {source.folder}: {first_line(error)}") from None
        self.towers = Towers(model.name, clip, tokenizer, device)
        self.pixels = Pixels(self.towers.size, "pad")

    def prepare(self, prompts: list[str]) -> Prepared:
        return self.towers.text([" ".join(html.unescape(html.unescape(p)).split()) for p in prompts])

    def score(self, images: Tensor, prepared: Prepared, prompts: list[str]) -> Tensor:
        return self.towers.cosine(self.pixels(images), prepared)


def load_open_clip(file: Path, eos_token_id: int, dtype: torch.dtype) -> CLIPModel:
    """Raises ValueError, or what torch.load raises, when the file is no whole CLIP of open_clip's."""
    # weights_only: a pickle that would run code is refused instead of run.
    weights = torch.load(file, map_location="cpu", weights_only=True)
    weights = rename_open_clip(weights.get("state_dict", weights))
    model, report = CLIPModel.from_pretrained(
        None, config=_config(weights, eos_token_id), state_dict=weights, dtype=dtype, output_loading_info=True
    )
    wrong = sorted([*report["missing_keys"], *report["unexpected_keys"], *(k[0] for k in report["mismatched_keys"])])
    if wrong:
        raise ValueError(f"{file.name} does not fit: {wrong[0]}")
    return model


def rename_open_clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's CLIP under transformers' names. Raises ValueError on anything unknown."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        # Both projections are matrices that open_clip multiplies from the right.
        if name in ("text_projection", "visual.proj"):
            key = "text_projection.weight" if name == "text_projection" else "visual_projection.weight"
            renamed[key] = tensor.T.contiguous()
            continue
        old = max((old for old in NAMES if name.startswith(old)), key=len, default=None)
        if old is None:
            raise ValueError(f"unexpected weight {name!r}")
        key = NAMES[old] + name.removeprefix(old)
        for theirs, ours in BLOCK_NAMES.items():
            key = key.replace(theirs, ours)
        packed = re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", key)
        if packed is None:
            renamed[key] = tensor
            continue
        for part, rows in zip("qkv", tensor.chunk(3), strict=True):
            renamed[f"{packed[1]}.self_attn.{part}_proj.{packed[2]}"] = rows.contiguous()
    return renamed


def _config(weights: dict[str, Tensor], eos_token_id: int) -> CLIPConfig:
    """Sizes as the shapes have them."""

    def layers(tower: str) -> int:
        return len({name.split(".")[3] for name in weights if name.startswith(f"{tower}.encoder.layers.")})

    vocabulary, text_width = weights["text_model.embeddings.token_embedding.weight"].shape
    width, _, patch, _ = weights["vision_model.embeddings.patch_embedding.weight"].shape
    side = round((len(weights["vision_model.embeddings.position_embedding.weight"]) - 1) ** 0.5)
    text = {
        "vocab_size": vocabulary,
        "hidden_size": text_width,
        "intermediate_size": len(weights["text_model.encoder.layers.0.mlp.fc1.bias"]),
        "num_hidden_layers": layers("text_model"),
        "num_attention_heads": text_width // TEXT_HEAD_WIDTH,
        "max_position_embeddings": len(weights["text_model.embeddings.position_embedding.weight"]),
        "hidden_act": "gelu",
        "eos_token_id": eos_token_id,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": len(weights["vision_model.encoder.layers.0.mlp.fc1.bias"]),
        "num_hidden_layers": layers("vision_model"),
        "num_attention_heads": width // VISION_HEAD_WIDTH,
        "image_size": patch * side,
        "patch_size": patch,
        "hidden_act": "gelu",
    }
    projection = len(weights["text_projection.weight"])
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)


KIND = Kind(
    load=HPSv2,
    checkpoint="xswu/HPSv2",
    license="Apache-2.0",
    files=(WEIGHTS,),
    base="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
)
