"""How the tiny world's models were made: `python -m pahi.tiny.train all --work DIR --out pahi/tiny/weights`.

    text      the CLIP text encoder, taught to tell attributes apart
    vae       AutoencoderKL, 64x64x3 <-> 4x16x16, L1 + KL
    pairs     (noise, prompt) -> the scene that the noise stands for, by a fixed reading of its low frequencies
    student   one step by regression on those pairs, in the layout of SD-Turbo (trailing Euler, prediction "sample"),
              with the text encoder going on to learn
    reward    two CLIP models with PickScore's loss, from different seeds and scenes; the second is kept held out

Every part is seeded, saves its state as it goes and continues where it was stopped. Only training specs are used.
"""

import argparse
import json
import math
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from pahi.tiny import scenes

CONTEXT = 24  # tokens
EULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "trailing",
    "prediction_type": "sample",
}
KIND_WEIGHTS = {
    "single_object": 0.08,
    "color": 0.14,
    "size": 0.14,
    "background": 0.16,
    "position": 0.18,
    "composition": 0.3,
}


# ---------------------------------------------------------------------------------------------------------- the data


def sample_specs(count: int, seed: int) -> list[scenes.Spec]:
    """Training specs, kinds by KIND_WEIGHTS."""
    rng = random.Random(seed)
    by_kind: dict[str, list[scenes.Spec]] = {}
    for spec in scenes.all_specs():
        if spec.split == "train":
            by_kind.setdefault(spec.kind, []).append(spec)
    kinds = rng.choices(list(KIND_WEIGHTS), weights=list(KIND_WEIGHTS.values()), k=count)
    return [rng.choice(by_kind[kind]) for kind in kinds]


def to_tensor(pictures: list) -> Tensor:
    """PIL pictures -> (n, 3, 64, 64) uint8."""
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).contiguous()


def scene_set(work: Path, count: int, seed: int) -> tuple[list[scenes.Spec], Tensor]:
    """`count` training scenes, rendered once and kept in `work`."""
    specs = sample_specs(count, seed)
    path = work / f"scenes-{count}-{seed}.pt"
    if not path.exists():
        rng = random.Random(seed + 1)
        torch.save(to_tensor([scenes.render(spec, rng) for spec in specs]), path)
    return specs, torch.load(path, weights_only=True)


def build_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE with the merges of this world's prompts; any other text falls back to bytes."""
    rng = random.Random(0)
    corpus = [scenes.wording(spec, rng) for spec in sample_specs(4000, 0)]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    vocab = alphabet + [letter + "</w>" for letter in alphabet]
    vocab += [a + b for a, b in merges if a + b not in vocab] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(dict.fromkeys(vocab))}, merges=merges, model_max_length=CONTEXT
    )


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(n, CONTEXT) ids."""
    return tokenizer(texts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt").input_ids


# -------------------------------------------------------------------------------------------------------- the models


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=scenes.SIZE,
    )


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=8,
        norm_num_groups=16,
        # The whole prompt, pooled, beside the time step in every block: cross-attention alone learns too slowly here.
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def text_config(tokenizer: CLIPTokenizer, **kwargs: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **kwargs,
    )


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=scenes.SIZE,
        patch_size=8,
    )
    config = CLIPConfig(
        text_config=text_config(tokenizer).to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=64,
    )
    return CLIPModel(config)


# -------------------------------------------------------------------------------------------------------- the loops


class Loop:
    """Steps with cosine learning rate, exponential moving average and a state on disk every 250 steps."""

    def __init__(self, name: str, work: Path, modules: nn.ModuleDict, steps: int, lr: float) -> None:
        self.path, self.name, self.modules, self.steps = work / f"{name}.pt", name, modules, steps
        self.optimizer = torch.optim.AdamW(modules.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.99))
        warmup = 200
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda s: min(1, (s + 1) / warmup) * (0.5 * (1 + math.cos(math.pi * min(1, s / steps))) + 0.01),
        )
        self.average = torch.optim.swa_utils.AveragedModel(
            modules, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
        )
        self.step, self.started, self.losses = 0, time.time(), []  # type: ignore[var-annotated]
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            modules.load_state_dict(state["modules"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.step = state["step"]

    def generator(self) -> torch.Generator:
        """The randomness of the present step, whatever came before it."""
        return torch.Generator().manual_seed(1_000_003 * self.step + len(self.name))

    def update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.modules)
        self.losses.append(float(loss.detach()))
        self.step += 1
        if self.step % 250 == 0 or self.step == self.steps:
            self.save()
            rate = len(self.losses) / (time.time() - self.started)
            print(
                f"{self.name} {self.step}/{self.steps} loss {np.mean(self.losses[-250:]):.5f} {rate:.2f}/s", flush=True
            )

    def save(self) -> None:
        state = {
            "modules": self.modules.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)

    def averaged(self) -> nn.ModuleDict:
        return self.average.module.eval()  # type: ignore[return-value]


def train_vae(work: Path, steps: int = 2600) -> AutoencoderKL:
    _, pictures = scene_set(work, 24_000, 1)
    loop = Loop("vae", work, nn.ModuleDict({"vae": build_vae()}), steps, 2e-3)
    vae: Any = loop.modules["vae"]
    while loop.step < steps:
        index = torch.randint(len(pictures), (16,), generator=loop.generator())
        x = pictures[index].float() / 127.5 - 1  # (16, 3, 64, 64)
        posterior = vae.encode(x).latent_dist
        out = vae.decode(posterior.sample()).sample
        loop.update(F.l1_loss(out, x) + F.mse_loss(out, x) + 1e-5 * posterior.kl().mean() / 1024)
    vae = loop.averaged()["vae"].requires_grad_(False)
    path = work / "latents.pt"
    if not path.exists():
        with torch.no_grad():
            latents = torch.cat(
                [vae.encode(batch.float() / 127.5 - 1).latent_dist.mode() for batch in pictures.split(256)]
            )
        torch.save(latents, path)
    vae.register_to_config(scaling_factor=1 / float(torch.load(path, weights_only=True).std()))
    with torch.no_grad():
        x = pictures[:512].float() / 127.5 - 1
        error = (vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1) - x).square().mean((1, 2, 3)) / 4
    print(f"vae: {float(-10 * error.log10().mean()):.1f} dB, scaling factor {vae.config.scaling_factor:.4f}")
    return vae


def scene_of(spec: scenes.Spec, z: np.ndarray) -> Image.Image:
    """The scene that noise z (4, 16, 16) stands for: what the spec leaves free is read off low frequencies of z.

    The shape lies where channel 0 is highest, within what the prompt allows; size and colour follow channels 1 and 2
    there, the background channel 3 as a whole. So z ~ N(0, I) gives every scene its due share, as a diffusion model's
    noise does, and noise with two almost equal peaks asks for two pictures at once: a network will blur them.
    """

    def uniform(value: float) -> float:
        return 0.5 * (1 + math.erf(value / math.sqrt(2)))

    field = gaussian_filter(z[0], 1.5)
    cells = (np.arange(16) + 0.5) * 4
    largest = scenes.SIZES[spec.size or "large"][1]
    allowed = np.ones((16, 16), bool)
    inside = (cells > largest + 2) & (cells < scenes.SIZE - largest - 2)
    allowed &= inside[:, None] & inside[None, :]
    if spec.place in ("left", "right"):
        allowed &= (cells < 28 if spec.place == "left" else cells > 36)[None, :]
    if spec.place in ("top", "bottom"):
        allowed &= (cells < 28 if spec.place == "top" else cells > 36)[:, None]
    y, x = np.unravel_index(np.where(allowed, field, -np.inf).argmax(), field.shape)
    u = uniform(gaussian_filter(z[1], 2.0)[y, x] / 0.141)
    size, u = (spec.size, u) if spec.size else ("small", 2 * u) if u < 0.5 else ("large", 2 * u - 1)
    low, high = scenes.SIZES[size]
    color = spec.color or list(scenes.COLORS)[min(7, int(8 * uniform(gaussian_filter(z[2], 2.0)[y, x] / 0.141)))]
    background = spec.background or list(scenes.BACKGROUNDS)[min(2, int(3 * uniform(z[3].mean() * 16)))]
    return scenes.draw(
        spec.shape, cells[x], cells[y], low + u * (high - low), scenes.COLORS[color], scenes.BACKGROUNDS[background]
    )


def pair_noise(count: int) -> Tensor:
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(79))


def make_pairs(work: Path, count: int = 24_000) -> Tensor:
    """The unscaled latents (count, 4, 16, 16) of the scenes that `pair_noise` stands for."""
    path = work / f"pairs-{count}.pt"
    if not path.exists():
        vae, noise = train_vae(work), pair_noise(count).numpy()
        chunks = []
        specs = sample_specs(count, 78)
        for start in range(0, count, 256):
            part = range(start, min(start + 256, count))
            pictures = to_tensor([scene_of(specs[i], noise[i]) for i in part])
            with torch.no_grad():
                chunks.append(vae.encode(pictures.float() / 127.5 - 1).latent_dist.mode())
        torch.save(torch.cat(chunks), path)
    return torch.load(path, weights_only=True)


ATTRIBUTES = {
    "shape": scenes.SHAPES,
    "color": tuple(scenes.COLORS),
    "size": tuple(scenes.SIZES),
    "background": tuple(scenes.BACKGROUNDS),
    "place": scenes.PLACES,
}


def attribute_labels(specs: list[scenes.Spec]) -> Tensor:
    """(n, 5): the number of each named attribute, -100 where it is left free."""
    rows = [[v.index(getattr(s, k)) if getattr(s, k) else -100 for k, v in ATTRIBUTES.items()] for s in specs]
    return torch.tensor(rows)


class AttributeHeads(nn.Module):
    """Linear readings of a feature: what teaches a tower words or pictures before (or beside) its real task."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, len(values)) for values in ATTRIBUTES.values())

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """(n, width) and (n, 5) -> the mean cross-entropy over what is named."""
        losses = [F.cross_entropy(h(features), y, reduction="sum") for h, y in zip(self.heads, labels.T, strict=True)]
        return torch.stack(losses).sum() / (labels >= 0).sum()


def train_text(work: Path, steps: int = 800) -> CLIPTextModel:
    """The text encoder first learns to tell attributes apart, as CLIP's has before a generator is trained on it."""
    specs, tokenizer, rng = sample_specs(6000, 5), build_tokenizer(), random.Random(6)
    ids, labels = tokens(tokenizer, [scenes.wording(s, rng) for s in specs]), attribute_labels(specs)
    torch.manual_seed(4)
    text = CLIPTextModel(text_config(tokenizer))
    modules = nn.ModuleDict({"text": text, "pooled": AttributeHeads(64), "mean": AttributeHeads(64)})
    loop = Loop("text", work, modules, steps, 2e-3)
    while loop.step < steps:
        index = torch.randint(len(ids), (128,), generator=loop.generator())
        out = text(ids[index])
        loss = modules["pooled"](out.pooler_output, labels[index])
        loop.update(loss + modules["mean"](out.last_hidden_state.mean(1), labels[index]))
    return loop.averaged()["text"]  # type: ignore[return-value]


def train_student(work: Path, steps: int = 1800, more: int = 2000, count: int = 24_000) -> nn.ModuleDict:
    """One step from noise to the scene it stands for; the text encoder goes on learning with it."""
    x0 = make_pairs(work, count) * train_vae(work).config.scaling_factor
    noise, specs = pair_noise(count), sample_specs(count, 78)
    tokenizer, rng = build_tokenizer(), random.Random(2)
    ids = torch.stack([tokens(tokenizer, [scenes.wording(s, rng) for s in specs]) for _ in range(4)])  # (4, n, T)
    torch.manual_seed(3)
    unet = build_unet().to(memory_format=torch.channels_last)
    modules = nn.ModuleDict({"unet": unet, "text": train_text(work).train()})
    sigma = float(EulerDiscreteScheduler(**EULER).init_noise_sigma)
    # The second round starts from the first one's average at half the rate: annealing is where most is learned.
    for name, lr, length in (("student", 2e-3, steps), ("student-2", 1.2e-3, more)):
        loop = Loop(name, work, modules, length, lr)
        while loop.step < length:
            g = loop.generator()
            index = torch.randint(count, (40,), generator=g)
            embeds = modules["text"](ids[torch.randint(4, (40,), generator=g), index]).last_hidden_state
            out = modules["unet"](noise[index] * sigma / (sigma**2 + 1) ** 0.5, 999, embeds).sample
            loop.update((out - x0[index]).square().mean())
        modules.load_state_dict(loop.averaged().state_dict())
    return modules.eval()


def export_generator(work: Path, out: Path) -> None:
    vae, student = train_vae(work), train_student(work)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=student["text"],
        tokenizer=build_tokenizer(),
        unet=student["unet"],
        scheduler=EulerDiscreteScheduler(**EULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    shutil.rmtree(out / "generator", ignore_errors=True)
    pipe.to(dtype=torch.float16).save_pretrained(out / "generator", safe_serialization=True)


# ------------------------------------------------------------------------------------------------------- the rewards


def spoil(spec: scenes.Spec, right: Image.Image, other: Image.Image, rng: random.Random) -> Image.Image:
    """A picture worse than `right` for `spec`: a wrong attribute, or the right scene damaged."""
    way = rng.choice(["wrong", "wrong", "wrong", "wrong", "ghost", "blur", "noise", "smear"])
    if way == "wrong":
        return scenes.render(scenes.corrupt(spec, rng), rng)
    if way == "ghost":
        return Image.blend(right, other, rng.uniform(0.25, 0.75))
    if way == "blur":
        return right.filter(ImageFilter.GaussianBlur(rng.uniform(1.5, 5)))
    if way == "smear":
        low = rng.choice([6, 8, 10])
        return right.resize((low, low), Image.Resampling.BILINEAR).resize(right.size, Image.Resampling.BICUBIC)
    pixels = np.asarray(right) + np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(15, 60), (64, 64, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def preference_set(work: Path, seed: int, count: int = 6_000) -> tuple[Tensor, list[scenes.Spec]]:
    """(count, 4, 3, 64, 64) uint8: for each spec one right scene and three spoiled; a third went through the VAE."""
    specs = sample_specs(count, seed)
    path = work / f"preferences-{seed}.pt"
    if not path.exists():
        rng = random.Random(seed + 1)
        rows = []
        for spec in specs:
            right, other = scenes.render(spec, rng), scenes.render(scenes.corrupt(spec, rng), rng)
            rows.append(to_tensor([right, *(spoil(spec, right, other, rng) for _ in range(3))]))
        pictures, vae = torch.stack(rows), train_vae(work)
        with torch.no_grad():
            for start in range(0, count // 3, 64):
                x = pictures[start : start + 64].flatten(0, 1).float() / 127.5 - 1
                out = vae.decode(vae.encode(x).latent_dist.mode()).sample
                pictures[start : start + 64] = ((out.clamp(-1, 1) + 1) * 127.5).round().byte().unflatten(0, (-1, 4))
        torch.save(pictures, path)
    return torch.load(path, weights_only=True), specs


def train_reward(work: Path, out: Path, name: str, seed: int, steps: int = 900) -> None:
    pictures, specs = preference_set(work, seed)
    tokenizer, rng = build_tokenizer(), random.Random(seed + 2)
    ids = torch.stack([tokens(tokenizer, [scenes.wording(s, rng) for s in specs]) for _ in range(4)])
    torch.manual_seed(seed)
    labels = attribute_labels(specs)
    modules = nn.ModuleDict({"clip": build_clip(tokenizer), "words": AttributeHeads(64), "sights": AttributeHeads(64)})
    loop = Loop(f"reward-{name}", work, modules, steps, 1.5e-3)
    clip: Any = loop.modules["clip"]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    held, n = 1000, 32
    while loop.step < steps:
        g = loop.generator()
        index = torch.randint(held, len(specs), (n,), generator=g)
        x = ((pictures[index].float() / 255 - mean) / std).flatten(0, 1)  # (4 n, 3, 64, 64)
        text = F.normalize(
            clip.get_text_features(ids[torch.randint(4, (n,), generator=g), index]).pooler_output, dim=-1
        )
        image = F.normalize(clip.get_image_features(x).pooler_output, dim=-1).unflatten(0, (n, 4))
        scores = clip.logit_scale.exp() * (image * text[:, None]).sum(-1)  # (n, 4)
        # Both towers learn what words and pictures say beside the preference, in place of CLIP's pre-training.
        beside = modules["words"](8 * text, labels[index]) + modules["sights"](8 * image[:, 0], labels[index])
        loop.update(F.cross_entropy(scores, torch.zeros(n, dtype=torch.long)) + 0.5 * beside)
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(100))
    clip = loop.averaged()["clip"]
    with torch.no_grad():
        x = ((pictures[:held].float() / 255 - mean) / std).flatten(0, 1)
        image = F.normalize(clip.get_image_features(x).pooler_output, dim=-1).unflatten(0, (held, 4))
        text = F.normalize(clip.get_text_features(ids[0, :held]).pooler_output, dim=-1)
        scores = (image * text[:, None]).sum(-1)
    accuracy = float((scores[:, :1] > scores[:, 1:]).float().mean())
    print(
        f"reward {name}: pairwise accuracy {accuracy:.3f} on held-out pairs, scale {float(clip.logit_scale.exp()):.1f}"
    )
    processor = CLIPProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": scenes.SIZE}, crop_size={"height": scenes.SIZE, "width": scenes.SIZE}
        ),
        tokenizer=tokenizer,
    )
    target = out / f"reward-{name}"
    shutil.rmtree(target, ignore_errors=True)
    clip.half().save_pretrained(target, safe_serialization=True)
    processor.save_pretrained(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["vae", "pairs", "student", "reward", "all"])
    parser.add_argument("--work", type=Path, default=Path("build/tiny"))
    parser.add_argument("--out", type=Path, default=Path("pahi/tiny/weights"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if args.part == "vae":
        train_vae(args.work)
    elif args.part == "pairs":
        make_pairs(args.work)
    if args.part in ("student", "all"):
        export_generator(args.work, args.out)
    if args.part in ("reward", "all"):
        train_reward(args.work, args.out, "alpha", 1000)
        train_reward(args.work, args.out, "beta", 2000)


if __name__ == "__main__":
    main()
