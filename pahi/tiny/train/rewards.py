"""Three rewards of three architectures, each taught on pairs of its own.

    alpha  CLIP, PickScore's loss: softmax over the two pictures of a pair
    beta   ImageReward: a BLIP text tower that looks at a ViT's picture; ranking loss -log sigmoid(r_right - r_spoiled)
    gamma  a ConvNeXt and a BERT in one space, CLIP's contrastive loss with the spoiled pictures as hard negatives;
           from other scenes, other words and another mix of ways to spoil. Kept held out

Published rewards come to preferences with towers trained on captions. In place of that, each picture tower first
learns to read scenes (what is drawn, from the renderer), each text tower to read prompts, and both to meet.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
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
from transformers.models.blip.modeling_blip import BlipVisionEmbeddings

from pahi.rewards.image_reward import ImageRewardModel
from pahi.tiny import preferences, scenes
from pahi.tiny.scenes import Scene, Spec
from pahi.tiny.train.autoencoder import train_vae
from pahi.tiny.train.data import CONTEXT, attributes, build_tokenizer, sample_specs
from pahi.tiny.train.generator import worded
from pahi.tiny.train.loop import Loop
from pahi.tiny.train.text import AttributeHeads, text_config, train_text

WIDTH = 96
SEEDS = {"alpha": 100_000, "beta": 200_000, "gamma": 300_000}
# Which of two things is where, or has which colour, is what a reward learns last; sizes are those of lone things alone.
KIND_WEIGHTS = {
    "single_object": 0.10,
    "two_object": 0.12,
    "counting": 0.16,
    "colors": 0.12,
    "position": 0.25,
    "color_attr": 0.25,
}
LENGTHS = {"alpha": (1500, 2500), "beta": (1500, 3500), "gamma": (1500, 2500)}  # steps of towers, and of preferences
# Share of spoiled scenes that show something else; the rest shows the right thing badly.
WRONG_SHARE = {"alpha": 0.65, "beta": 0.65, "gamma": 0.5}
RIGHT = 2  # right pictures of a prompt in each group, one as good as the other
TIE = 0.25  # what a tie of two right pictures weighs beside the mean over pairs
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def pixels(images: Tensor) -> Tensor:
    """(n, 3, 64, 64) uint8 -> CLIP's normalised pixels."""
    return (images.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


# -------------------------------------------------------------------------------------------------- what is in a scene

COUNTS = {"background": len(scenes.BACKGROUNDS), "count": 4, "leftmost": 6, "upmost": 6} | {
    shape: 1 + len(scenes.COLORS) for shape in scenes.SHAPES
}
UNTOLD = -100


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


@cache
def told(spec: Spec) -> tuple[int, ...]:
    """What every scene of `spec` shows, as `sights` has it, and UNTOLD where the prompt leaves it free."""
    return tuple(int(c[0]) if (c == c[0]).all() else UNTOLD for c in sights(list(scenes.possible(spec))).T)


class SightHeads(nn.Module):
    """Linear readings of a feature, one for each entry of COUNTS.

    The same readings serve pictures and words, so what a prompt says comes to lie where a picture shows it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in COUNTS.values())

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """(n, width) and (n, entries) -> the mean cross-entropy."""
        losses = [
            F.cross_entropy(head(features), y, ignore_index=UNTOLD)
            for head, y in zip(self.heads, labels.T, strict=True)
            if (y != UNTOLD).any()
        ]
        return torch.stack(losses).mean()


# ---------------------------------------------------------------------------------------------------------- the models


MATCHES = ("background", "size", "number", "first", "second", "nothing else", "position")


def matches(spec: Spec, scene: Scene) -> list[float]:
    """What a scene shows of what a spec asks, 1 or 0 for each of MATCHES; what is not asked is met."""
    shown = {thing.shape: thing for thing in scene.things}
    met = [item.shape in shown and item.color in (None, shown[item.shape].color) for item in spec.items]
    found = [
        spec.background in (None, scene.background),
        spec.size is None or any(thing.r == scenes.SIZES[spec.size] for thing in scene.things),
        len(scene.things) == sum(item.count for item in spec.items),
        met[0],
        met[-1],
        all(shape in {item.shape for item in spec.items} for shape in shown),
    ]
    a, b = (shown.get(item.shape) for item in (spec.items[0], spec.items[-1]))
    if spec.relation and a and b:
        found.append(a.cx < b.cx if spec.relation == "left" else a.cy < b.cy)
    else:
        found.append(spec.relation is None)
    return [float(hit) for hit in found]


def with_twins(specs: list[Spec], most: int) -> list[Spec]:
    """Specs and, after them, those with places or colours exchanged that are training specs too; `most` in all.

    Nothing but the binding of words tells a prompt from its twin, so both stand in one contrastive batch.
    """
    twins = [twin for spec in specs if (twin := scenes.exchanged(spec)) != spec and twin.split == "train"]
    return [*specs, *twins][:most]


def aligned(seen: Tensor, said: Tensor) -> Tensor:
    """(n, width) each: CLIP's and BLIP's contrastive loss, a picture among prompts and a prompt among pictures."""
    logits = 14.0 * F.normalize(seen, dim=-1) @ F.normalize(said, dim=-1).T
    own = torch.arange(len(seen))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


@dataclass
class Learner:
    """A reward model under training: what it is, and how its parts are reached."""

    model: nn.Module
    see: Callable[[Tensor], Tensor]  # pixels -> (n, WIDTH), the picture alone
    read: Callable[[Tensor], Tensor]  # ids -> (n, WIDTH), the words alone
    score: Callable[[Tensor, Tensor], Tensor]  # pixels (n, k, ...), ids (n, tokens) -> (n, k)
    loss: Callable[[Tensor, Tensor], Tensor]  # pixels (n, k, ...), RIGHT right ones first, and ids -> loss
    # pixels (n, ...), ids -> (n, WIDTH), where words see pictures
    both: Callable[[Tensor, Tensor], Tensor] | None = None
    half: bool = False  # bfloat16 in the forward pass while preferences are learned


def at_unit_scale(module: nn.Module) -> None:
    """Towers this narrow learn slowly from initial weights of deviation 0.02.

    transformers' BLIP begins its vision tower at a deviation of 1e-10, places included: what is where is learned last.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
        elif isinstance(part, nn.Conv2d):
            part.reset_parameters()
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.3)
        elif isinstance(part, BlipVisionEmbeddings):
            nn.init.normal_(part.class_embedding, std=0.3)
            nn.init.normal_(part.position_embedding, std=0.3)


def ranked(scores: Tensor) -> Tensor:
    """(n, k), RIGHT right ones first -> -log sigmoid of each right one's lead, and the same for the tie between them.

    PickScore's preferences have ties too. What a prompt leaves free is no matter of preference here: a reward that is
    taught none of them likes some colours better, and says little of two pictures of one prompt.
    """
    lead = scores[:, :RIGHT, None] - scores[:, None, RIGHT:]
    between = scores[:, 0] - scores[:, 1]
    tie = (F.softplus(between) + F.softplus(-between)) / 2
    return F.softplus(-lead).mean() + TIE * tie.mean()


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
        return ranked(score(x, ids))  # -log of the softmax over two

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
    # What is learned of words alone is not to be lost at first sight: the first look at a picture is the mean of its
    # patches, added to the words in the last layer. The two are in one space then (`aligned`).
    for layer in model.text_encoder.encoder.layer:
        nn.init.zeros_(layer.crossattention.output.dense.weight)
    nn.init.eye_(layer.crossattention.output.dense.weight)
    nn.init.eye_(layer.crossattention.self.value.weight)
    eos = tokenizer.eos_token_id

    def score(x: Tensor, ids: Tensor) -> Tensor:
        repeated = ids.repeat_interleave(x.shape[1], 0)
        return model(x.flatten(0, 1), repeated, mask_of(repeated, eos)).unflatten(0, x.shape[:2])

    def rank(x: Tensor, ids: Tensor) -> Tensor:
        return ranked(score(x, ids))

    def read(ids: Tensor) -> Tensor:
        states = model.text_encoder(ids, attention_mask=mask_of(ids, eos), is_decoder=False).last_hidden_state
        return states[:, 0]

    def both(x: Tensor, ids: Tensor) -> Tensor:
        return model.fused(x, ids, mask_of(ids, eos))

    def see(x: Tensor) -> Tensor:
        return model.visual_encoder(pixel_values=x).last_hidden_state.mean(1)

    return Learner(model, see, read, score, rank, both, half=True)  # 1.7 times as fast; nothing for the other two


def build_gamma(work: Path) -> Learner:
    tokenizer = build_tokenizer()
    # The pair's class asks every picture tower for a hidden_size; ConvNeXt's own configuration has a list alone.
    vision = ConvNextModel(
        ConvNextConfig(
            patch_size=4,
            hidden_sizes=[32, 64, WIDTH],
            depths=[1, 2, 2],
            num_stages=3,
            hidden_size=WIDTH,
            layer_scale_init_value=0.1,  # 1e-6 is meant for networks many times as deep
        )
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
        logits = (model.logit_scale.exp() * words @ pictures.T).unflatten(1, (n, k))
        each = torch.arange(n)
        own = torch.zeros_like(logits)
        own[each, each, :RIGHT] = 1 / RIGHT
        among_pictures = F.cross_entropy(logits.flatten(1), own.flatten(1))
        hard = F.cross_entropy(logits[each, each], own[each, each])
        among_words = F.cross_entropy(logits[:, :, :RIGHT].flatten(1).T, each.repeat_interleave(RIGHT))
        return hard + 0.2 * (among_pictures + among_words)

    learner.loss = contrastive
    return learner


BUILDERS = {"alpha": build_alpha, "beta": build_beta, "gamma": build_gamma}


# ------------------------------------------------------------------------------------------------------------ the data


@dataclass
class Groups:
    """Prompts, each with RIGHT right pictures and `k - RIGHT` spoiled ones."""

    specs: list[Spec]
    images: Tensor  # (n, k, 3, 64, 64) uint8, the right ones first
    scenes: list[list[Scene | None]]  # (n, k), None where a picture is no whole scene


def rendered(count: int, seed: int, wrong_share: float) -> Groups:
    """Fresh groups of five, as rendered; the last picture of each is another prompt's right one.

    Where a prompt says what belongs where, which of two has which colour, or how large one is, one picture has just
    that exchanged: it is what a reward learns last, and among all ways to be wrong it would see it too seldom.
    """
    specs, rng = sample_specs(count, seed, weights=KIND_WEIGHTS), random.Random(seed + 1)
    good = [[preferences.right(spec, rng) for _ in range(RIGHT)] for spec in specs]
    rows = []
    for i, (spec, pictures) in enumerate(zip(specs, good, strict=True)):
        spoiled = preferences.spoil(spec, pictures[0], rng, wrong_share)
        other = preferences.exchange(spec, rng) or preferences.spoil(spec, pictures[1], rng, wrong_share)
        rows.append([*pictures, spoiled, other, good[i - 1][0]])
    images = preferences.as_bytes([p.image for row in rows for p in row]).unflatten(0, (count, -1))
    return Groups(specs, images, [[p.scene for p in row] for row in rows])


def decoded(work: Path, name: str, count: int = 3072) -> Groups:
    """Groups that went through the autoencoder: two spoiled by mixed latents, one by a dirty one or as it was drawn.

    Kept in `work`. No generator draws any of them: no reward has seen a picture of the one that it is to judge.
    """
    specs, rng = sample_specs(count, SEEDS[name] + 17, weights=KIND_WEIGHTS), random.Random(SEEDS[name] + 19)
    good = [preferences.right(spec, rng) for spec in specs]
    also = [preferences.right(spec, rng) for spec in specs]
    bad = [preferences.spoil(spec, p, rng, WRONG_SHARE[name]) for spec, p in zip(specs, good, strict=True)]
    path = work / f"decoded-{name}-{count}.pt"
    if not path.exists():
        vae = train_vae(work)
        clean, dirty, mixed = preferences.in_latents(vae, good, specs, rng)
        _, _, more = preferences.in_latents(vae, good, specs, rng)
        again, spoiled = (
            preferences.decoded(vae, preferences.encoded(vae, preferences.as_bytes([p.image for p in side])))
            for side in (also, bad)
        )
        spoiled[::2] = dirty[::2]
        torch.save(torch.stack([clean, again, spoiled, mixed, more], 1), path)
    images = torch.load(path, weights_only=True)
    return Groups(specs, images, [[p.scene, q.scene, None, None, None] for p, q in zip(good, also, strict=True)])


# -------------------------------------------------------------------------------------------------------- the training


def train_reward(work: Path, name: str, n: int = 16) -> Learner:
    """Towers first, then preferences; the learner comes back averaged and frozen."""
    torch.manual_seed(SEEDS[name])
    learner = BUILDERS[name](work)
    modules = nn.ModuleDict({"model": learner.model, "sights": SightHeads(WIDTH), "words": AttributeHeads(WIDTH)})
    towers, steps = LENGTHS[name]
    loop = Loop(f"towers-{name}", work, modules, towers, 1.5e-3)
    while loop.step < towers:
        seed = SEEDS[name] + 31 * loop.step
        specs, rng = with_twins(sample_specs(36, seed, weights=KIND_WEIGHTS), 48), random.Random(seed)
        drawn = [scenes.compose(spec, rng) for spec in specs]
        x = pixels(preferences.as_bytes([scenes.draw(scene) for scene in drawn]))
        g = loop.generator()
        x = x + 0.1 * torch.rand(len(x), 1, 1, 1, generator=g) * torch.randn(x.shape, generator=g)
        seen, said = learner.see(x), learner.read(worded(specs, seed))
        loss = modules["sights"](seen, sights(drawn)) + 0.3 * modules["words"](said, attributes(specs))
        loss = loss + 0.3 * modules["sights"](said, torch.tensor([told(spec) for spec in specs]))
        loop.update(loss + 0.5 * aligned(seen, said))
    modules.load_state_dict(loop.averaged().state_dict())

    pool = decoded(work, name)
    words = torch.stack([worded(pool.specs, s) for s in range(4)])
    modules["matches"] = nn.Linear(WIDTH, len(MATCHES))
    loop = Loop(f"reward-{name}", work, modules, steps, 8e-4)
    while loop.step < steps:
        g, seed = loop.generator(), SEEDS[name] + 37 * loop.step
        fresh = rendered(n // 2, seed, WRONG_SHARE[name])
        take = torch.randint(len(pool.specs), (n // 2,), generator=g)
        said = words[torch.randint(4, (n // 2,), generator=g), take]
        x = pixels(torch.cat([fresh.images, pool.images[take]]).flatten(0, 1)).unflatten(0, (n, -1))
        fresh_ids = worded(fresh.specs, seed)
        with torch.autocast("cpu", torch.bfloat16, enabled=learner.half):
            loss = learner.loss(x, torch.cat([fresh_ids, said]))
        whole = [(i, j, s) for i, row in enumerate(fresh.scenes) for j, s in enumerate(row) if s is not None]
        if learner.both is None:
            right = [s for _, j, s in whole if j == 0]
            loss = loss + 0.1 * modules["sights"](learner.see(x[: n // 2, 0]), sights(right))
        else:
            i, j = torch.tensor([(i, j) for i, j, _ in whole]).T
            target = torch.tensor([matches(fresh.specs[i], s) for i, _, s in whole])
            with torch.autocast("cpu", torch.bfloat16, enabled=learner.half):
                guess = modules["matches"](learner.both(x[i, j], fresh_ids[i])).float()
            loss = loss + F.binary_cross_entropy_with_logits(guess, target)
        loop.update(loss)
        if hasattr(learner.model, "logit_scale"):
            with torch.no_grad():
                scale: Any = learner.model.logit_scale
                scale.clamp_(max=math.log(100))
    modules.load_state_dict(loop.averaged().state_dict())
    learner.model.eval().requires_grad_(False)
    return learner
