"""Three rewards of three architectures, each taught on pairs of its own.

    alpha  CLIP, PickScore's loss: softmax over the two pictures of a pair
    beta   ImageReward: a BLIP text tower that looks at a ViT's picture; ranking loss -log sigmoid(r_right - r_spoiled)
    gamma  a ConvNeXt and a BERT in one space, CLIP's contrastive loss with the spoiled pictures as hard negatives;
           from other scenes, other words and another mix of ways to spoil. Kept held out

Published rewards come to preferences with towers trained on captions. In place of that, each picture tower first
learns to read scenes (what is drawn, from the renderer), and each text tower to read prompts.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    ConvNextConfig,
    ConvNextModel,
    VisionTextDualEncoderModel,
)

from pahi.rewards.image_reward import ImageRewardModel
from pahi.tiny import preferences, scenes
from pahi.tiny.scenes import Scene, Spec
from pahi.tiny.train.autoencoder import train_vae
from pahi.tiny.train.coupling import noise_of
from pahi.tiny.train.data import CONTEXT, attributes, build_tokenizer, sample_specs, to_tensor
from pahi.tiny.train.generator import embed, one_step, sample_teacher, train_teacher, worded
from pahi.tiny.train.loop import Loop
from pahi.tiny.train.text import AttributeHeads, text_config, train_text

WIDTH = 96
SEEDS = {"alpha": 100_000, "beta": 200_000, "gamma": 300_000}
# Share of spoiled scenes that show something else; the rest shows the right thing badly.
WRONG_SHARE = {"alpha": 0.65, "beta": 0.65, "gamma": 0.5}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def pixels(images: Tensor) -> Tensor:
    """(n, 3, 64, 64) uint8 -> CLIP's normalised pixels."""
    return (images.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


# -------------------------------------------------------------------------------------------------- what is in a scene

COUNTS = {"background": len(scenes.BACKGROUNDS), "count": 4, "leftmost": 6, "upmost": 6} | {
    shape: 1 + len(scenes.COLORS) for shape in scenes.SHAPES
}


def sights(drawn: list[Scene]) -> Tensor:
    """(n, len(COUNTS)): what each scene shows, as classes."""
    colors, shapes, backgrounds = list(scenes.COLORS), list(scenes.SHAPES), list(scenes.BACKGROUNDS)
    rows = []
    for scene in drawn:
        seen = dict.fromkeys(scenes.SHAPES, 0)
        seen |= {thing.shape: 1 + colors.index(thing.color) for thing in scene.things}
        first = {"leftmost": 5, "upmost": 5}
        if len({thing.shape for thing in scene.things}) == 2:
            a, b = scene.things
            if abs(a.cx - b.cx) > scenes.SIZE / 4:
                first["leftmost"] = shapes.index((a if a.cx < b.cx else b).shape)
            if abs(a.cy - b.cy) > scenes.SIZE / 4:
                first["upmost"] = shapes.index((a if a.cy < b.cy else b).shape)
        seen |= first | {"background": backgrounds.index(scene.background), "count": len(scene.things) - 1}
        rows.append([seen[name] for name in COUNTS])
    return torch.tensor(rows)


class SightHeads(nn.Module):
    """Linear readings of a picture's feature, one for each entry of COUNTS."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in COUNTS.values())

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """(n, width) and (n, entries) -> the mean cross-entropy."""
        losses = [F.cross_entropy(head(features), y) for head, y in zip(self.heads, labels.T, strict=True)]
        return torch.stack(losses).mean()


# ---------------------------------------------------------------------------------------------------------- the models


@dataclass
class Learner:
    """A reward model under training: what it is, and how its parts are reached."""

    model: nn.Module
    see: Callable[[Tensor], Tensor]  # pixels -> (n, WIDTH), the picture alone
    read: Callable[[Tensor], Tensor]  # ids -> (n, WIDTH), the words alone
    score: Callable[[Tensor, Tensor], Tensor]  # pixels (n, k, ...), ids (n, tokens) -> (n, k)
    loss: Callable[[Tensor, Tensor], Tensor]  # pixels (n, k, ...), the right one first, and ids -> loss


def at_unit_scale(module: nn.Module) -> None:
    """Towers this narrow learn slowly from initial weights of deviation 0.02."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.3)


def mask_of(ids: Tensor, eos: int) -> Tensor:
    """1 up to the first end token (padding is the end token too)."""
    ended = (ids == eos).long().cumsum(-1)
    return ((ended == 0) | ((ended == 1) & (ids == eos))).long()


def cosine_learner(model: Any, image: Callable[[Tensor], Tensor], text: Callable[[Tensor], Tensor]) -> Learner:
    """Of a model with two towers that meet in one space."""

    def score(x: Tensor, ids: Tensor) -> Tensor:
        pictures = F.normalize(image(x.flatten(0, 1)), dim=-1).unflatten(0, x.shape[:2])  # (n, k, width)
        return model.logit_scale.exp() * (pictures * F.normalize(text(ids), dim=-1)[:, None]).sum(-1)

    def pairs(x: Tensor, ids: Tensor) -> Tensor:
        scores = score(x, ids)
        return F.softplus(scores[:, 1:] - scores[:, :1]).mean()  # -log of the softmax over two

    return Learner(model, image, text, score, pairs)


def build_alpha(work: Path) -> Learner:
    tokenizer = build_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=scenes.SIZE,
        patch_size=8,
        projection_dim=WIDTH,
    )
    config = CLIPConfig(
        text_config=text_config(tokenizer).to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH
    )
    model = CLIPModel(config)
    at_unit_scale(model.vision_model)
    at_unit_scale(model.visual_projection)
    at_unit_scale(model.text_projection)
    # As CLIP's towers come to PickScore trained, so does this one: it is the generator's.
    model.text_model.load_state_dict(train_text(work).state_dict())
    return cosine_learner(
        model,
        lambda x: model.get_image_features(x).pooler_output,
        lambda ids: model.get_text_features(ids).pooler_output,
    )


def build_beta(work: Path) -> Learner:
    tokenizer = build_tokenizer()
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        hidden_size=WIDTH,
        encoder_hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,
        use_cache=False,
    )
    vision = BlipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=scenes.SIZE,
        patch_size=8,
        layer_norm_eps=1e-6,
    )
    model = ImageRewardModel(text, vision, head=(128, 32, 16, 8), tokens=CONTEXT)
    at_unit_scale(model)
    eos = tokenizer.eos_token_id

    def score(x: Tensor, ids: Tensor) -> Tensor:
        repeated = ids.repeat_interleave(x.shape[1], 0)
        return model(x.flatten(0, 1), repeated, mask_of(repeated, eos)).unflatten(0, x.shape[:2])

    def rank(x: Tensor, ids: Tensor) -> Tensor:
        scores = score(x, ids)
        return -F.logsigmoid(scores[:, :1] - scores[:, 1:]).mean()

    def read(ids: Tensor) -> Tensor:
        states = model.text_encoder(ids, attention_mask=mask_of(ids, eos), is_decoder=False).last_hidden_state
        return states[:, 0]

    return Learner(model, lambda x: model.visual_encoder(pixel_values=x).last_hidden_state.mean(1), read, score, rank)


def build_gamma(work: Path) -> Learner:
    tokenizer = build_tokenizer()
    # The pair's class asks every picture tower for a hidden_size; ConvNeXt's own configuration has a list alone.
    vision = ConvNextModel(
        ConvNextConfig(patch_size=4, hidden_sizes=[32, 64, WIDTH], depths=[1, 2, 2], num_stages=3, hidden_size=WIDTH)
    )
    text = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            pad_token_id=tokenizer.pad_token_id,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    model = VisionTextDualEncoderModel(vision_model=vision, text_model=text)
    model.visual_projection = nn.Linear(WIDTH, WIDTH, bias=False)
    model.text_projection = nn.Linear(WIDTH, WIDTH, bias=False)
    model.config.projection_dim = WIDTH
    at_unit_scale(model)
    eos = tokenizer.eos_token_id
    learner = cosine_learner(
        model,
        lambda x: model.get_image_features(x).pooler_output,
        lambda ids: model.get_text_features(ids, attention_mask=mask_of(ids, eos)).pooler_output,
    )

    def contrastive(x: Tensor, ids: Tensor) -> Tensor:
        """Each prompt among all pictures of the batch, its own spoiled ones too; each right picture among prompts."""
        n, k = x.shape[:2]
        pictures = F.normalize(learner.see(x.flatten(0, 1)), dim=-1)
        words = F.normalize(learner.read(ids), dim=-1)
        logits = model.logit_scale.exp() * words @ pictures.T  # (n, n k)
        own = torch.arange(n) * k
        among_pictures = F.cross_entropy(logits, own)
        hard = F.cross_entropy(logits.unflatten(1, (n, k))[torch.arange(n), torch.arange(n)], torch.zeros(n).long())
        return hard + 0.2 * (among_pictures + F.cross_entropy(logits[:, own].T, torch.arange(n)))

    learner.loss = contrastive
    return learner


BUILDERS = {"alpha": build_alpha, "beta": build_beta, "gamma": build_gamma}


# ------------------------------------------------------------------------------------------------------------ the data


@dataclass
class Groups:
    """Prompts, each with a right picture and `k - 1` spoiled ones."""

    specs: list[Spec]
    images: Tensor  # (n, k, 3, 64, 64) uint8
    ways: list[list[str]]  # (n, k), "right" first
    scenes: list[list[Scene | None]]  # (n, k)


def rendered(count: int, seed: int, wrong_share: float, split: str = "train", k: int = 4) -> Groups:
    """Fresh groups, as rendered."""
    specs, rng = sample_specs(count, seed, split), random.Random(seed + 1)
    rows = []
    for spec in specs:
        good = preferences.right(spec, rng)
        rows.append([good, *(preferences.spoil(spec, good, rng, wrong_share) for _ in range(k - 1))])
    images = to_tensor([p.image for row in rows for p in row]).unflatten(0, (count, k))
    return Groups(specs, images, [[p.way for p in row] for row in rows], [[p.scene for p in row] for row in rows])


def decoded(work: Path, name: str, count: int = 1536) -> Groups:
    """Groups that went through the autoencoder, the last picture of each with a dirty latent; kept in `work`."""
    groups = rendered(count, SEEDS[name] + 17, WRONG_SHARE[name])
    path = work / f"decoded-{name}-{count}.pt"
    if not path.exists():
        g = torch.Generator().manual_seed(SEEDS[name])
        groups.images[:, 3] = groups.images[:, 0]
        dirt = torch.zeros(count, 4, *(4, 16, 16))
        dirt[:, 3] = torch.randn(count, 4, 16, 16, generator=g) * (0.25 + 0.6 * torch.rand(count, 1, 1, 1, generator=g))
        images = preferences.through_vae(train_vae(work), groups.images.flatten(0, 1), dirt.flatten(0, 1))
        torch.save(images.unflatten(0, (count, 4)), path)
    groups.images = torch.load(path, weights_only=True)
    groups.ways = [[*row[:3], "vae"] for row in groups.ways]
    groups.scenes = [[*row[:3], None] for row in groups.scenes]
    return groups


@torch.no_grad()
def generated(work: Path, name: str, count: int = 1024) -> Groups:
    """A right scene after the autoencoder against what the teacher draws in one and in four steps; kept in `work`.

    The student is not among them: no reward has seen a picture of the generator that it is to judge.
    """
    specs, rng = sample_specs(count, SEEDS[name] + 23), random.Random(SEEDS[name] + 29)
    good = [preferences.right(spec, rng) for spec in specs]
    bad = [preferences.spoil(spec, p, rng, WRONG_SHARE[name]) for spec, p in zip(specs, good, strict=True)]
    path = work / f"generated-{name}-{count}.pt"
    if not path.exists():
        vae, text = train_vae(work), train_text(work)
        unet: Any = train_teacher(work).to(memory_format=torch.channels_last)
        ids, noise = worded(specs, SEEDS[name] + 31), noise_of(count, SEEDS[name] + 37)
        drawn = []
        for said, eps in zip(ids.split(64), noise.split(64), strict=True):
            for latents in (one_step(unet, embed(text, said), eps), sample_teacher(unet, text, said, eps, 4)):
                out = vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1)
                drawn.append(((out + 1) * 127.5).round().byte())
        once, often = torch.cat(drawn[::2]), torch.cat(drawn[1::2])
        whole = preferences.through_vae(vae, to_tensor([p.image for p in good + bad]))
        torch.save(torch.stack([whole[:count], once, often, whole[count:]], 1), path)
    ways = [["right", "model", "model", p.way] for p in bad]
    drawn_scenes: list[list[Scene | None]] = [[g.scene, None, None, b.scene] for g, b in zip(good, bad, strict=True)]
    return Groups(specs, torch.load(path, weights_only=True), ways, drawn_scenes)


# -------------------------------------------------------------------------------------------------------- the training


def train_reward(work: Path, name: str, towers: int = 600, steps: int = 1000, n: int = 16) -> Learner:
    """Towers first, then preferences; the learner comes back averaged and frozen."""
    torch.manual_seed(SEEDS[name])
    learner = BUILDERS[name](work)
    modules = nn.ModuleDict({"model": learner.model, "sights": SightHeads(WIDTH), "words": AttributeHeads(WIDTH)})
    loop = Loop(f"towers-{name}", work, modules, towers, 1.5e-3)
    while loop.step < towers:
        seed = SEEDS[name] + 31 * loop.step
        specs, rng = sample_specs(48, seed), random.Random(seed)
        drawn = [scenes.compose(spec, rng) for spec in specs]
        x = pixels(to_tensor([scenes.draw(scene) for scene in drawn]))
        g = loop.generator()
        x = x + 0.1 * torch.rand(len(x), 1, 1, 1, generator=g) * torch.randn(x.shape, generator=g)
        loss = modules["sights"](learner.see(x), sights(drawn))
        loop.update(loss + 0.3 * modules["words"](learner.read(worded(specs, seed)), attributes(specs)))
    modules.load_state_dict(loop.averaged().state_dict())

    dull, lively = decoded(work, name), generated(work, name)
    words = {id(pool): torch.stack([worded(pool.specs, s) for s in range(4)]) for pool in (dull, lively)}
    loop = Loop(f"reward-{name}", work, modules, steps, 8e-4)
    while loop.step < steps:
        g, seed = loop.generator(), SEEDS[name] + 37 * loop.step
        fresh = rendered(n // 2, seed, WRONG_SHARE[name])
        images, ids = [fresh.images], [worded(fresh.specs, seed)]
        drawn_scenes = [scene for row in fresh.scenes for scene in row[:1] if scene is not None]
        for pool, share in ((dull, n // 4), (lively, n // 4)):
            take = torch.randint(len(pool.specs), (share,), generator=g)
            images.append(pool.images[take])
            ids.append(words[id(pool)][torch.randint(4, (share,), generator=g), take])
        x, tokens_ = pixels(torch.cat(images).flatten(0, 1)).unflatten(0, (-1, 4)), torch.cat(ids)
        beside = modules["sights"](learner.see(x[: n // 2, 0]), sights(drawn_scenes))
        loop.update(learner.loss(x, tokens_) + 0.1 * beside)
        if hasattr(learner.model, "logit_scale"):
            with torch.no_grad():
                scale: Any = learner.model.logit_scale
                scale.clamp_(max=math.log(100))
    modules.load_state_dict(loop.averaged().state_dict())
    learner.model.eval().requires_grad_(False)
    return learner
