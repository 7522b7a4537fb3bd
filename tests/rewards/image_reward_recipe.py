"""Scores of the image-reward package on weights, pictures and ids that are rebuilt from nothing.

Run by an interpreter that has image-reward 1.5 (`make image-reward`): prints the scores as JSON. The tests import the
same recipe, and hold our network against what was printed.
"""

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MED = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "type_vocab_size": 2,
    "attention_probs_dropout_prob": 0.1,
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "add_cross_attention": True,
    "hidden_act": "gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "vocab_size": 30524,
    "encoder_width": 1024,
}


def fill(name: str, like: Tensor) -> Tensor:
    """The value of a weight of the published state dict, from its name alone."""
    if not like.dtype.is_floating_point:
        return like
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    leaf = name.rsplit(".", 1)[-1]
    if any(part in name for part in (".norm", "LayerNorm")) and leaf == "weight":
        return 1 + 0.1 * noise
    if leaf == "bias":
        return 0.1 * noise
    if name.startswith("mlp."):
        return noise * (2.0 / like.shape[1]) ** 0.5
    if like.ndim == 2 and "embeddings" not in name:
        return noise / like.shape[1] ** 0.5
    if like.ndim == 4:
        return noise / like[0].numel() ** 0.5
    return 0.1 * noise


def picture(i: int) -> Image.Image:
    y, x = np.mgrid[0:512, 0:512]
    ramps = [(x * (i + 1)) // 3 % 256, (y * (i + 2)) // 2 % 256, ((x + y) * (i + 3)) // 5 % 256]
    pixels = np.stack(ramps, -1).astype(np.uint8)
    pixels[(x - 100 - 40 * i) ** 2 + (y - 260) ** 2 < (60 + 20 * i) ** 2] = (250 - 40 * i, 30 * i, 200)
    pixels[:, 16 * i : 16 * i + 8] = 255
    return Image.fromarray(pixels)


def token_ids(i: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (1, 35) of prompt i."""
    rng, length = np.random.RandomState(100 + i), (5, 12, 20, 35)[i]
    ids, mask = np.zeros(35, np.int64), np.zeros(35, np.int64)
    ids[:length] = rng.randint(1000, 30000, length)
    ids[0], ids[length - 1], mask[:length] = 101, 102, 1
    return torch.tensor(ids)[None], torch.tensor(mask)[None]


def quiet(name: str, tensor: Tensor) -> Tensor:
    """The picture's embedding a thousand times smaller: what the first layer norm sees is then as small as its epsilon.

    With `fill` alone an epsilon ten times too large changes a score by 0.00002.
    """
    parts = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    return tensor / 1000 if name.removeprefix("blip.visual_encoder.") in parts else tensor


@torch.no_grad()
def main() -> None:
    from ImageReward.models.BLIP import blip_pretrain

    blip_pretrain.init_tokenizer = lambda: None  # the vocabulary is not needed: ids are given
    from ImageReward.ImageReward import ImageReward

    with tempfile.TemporaryDirectory() as folder:
        med = Path(folder) / "med_config.json"
        med.write_text(json.dumps(MED))
        model = ImageReward(str(med), "cpu").eval()
    printed = {}
    for variant in ("plain", "quiet"):
        weights = {name: fill(name, tensor) for name, tensor in model.state_dict().items()}
        if variant == "quiet":
            weights = {name: quiet(name, tensor) for name, tensor in weights.items()}
        model.load_state_dict(weights)
        scores = []
        for i in range(4):
            ids, mask = token_ids(i)
            scores.append(model.score_gard(ids, mask, model.preprocess(picture(i)).unsqueeze(0)).item())
        printed[variant] = scores
    print(json.dumps(printed))


if __name__ == "__main__":
    main()
