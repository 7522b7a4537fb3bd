"""The small world's figures, measured on test specs alone.

Each is a mean with a 95% bootstrap interval over specs, resampled within their kind: wordings, scenes and noises of one
spec are not independent. Every kind has the same weight.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from scipy import stats
from torch import Tensor

from pahi import models
from pahi.errors import UserError
from pahi.rewards import load_reward
from pahi.settings import RewardModel, load_settings
from pahi.tables import Row
from pahi.tiny import preferences, scenes
from pahi.tiny.oracle import judge
from pahi.tiny.scenes import KINDS, Spec

WEIGHTS = Path(__file__).with_name("weights")
SUMS = "SHA256SUMS"
SEEDS = 4  # student pictures a prompt
RESAMPLES = 2000
BATCH = 64
WAYS = (*preferences.WRONG, *preferences.DAMAGE, *preferences.LATENT)
ALTERED = 3  # altered scenes a prompt, so that every way is there often enough

Figure = dict[str, Any]  # value, low, high and the number n of single values; None where there are none
Verdict = dict[str, bool]


@dataclass(frozen=True)
class Asked:
    """One prompt of the test split."""

    spec: Spec
    text: str


def test_prompts(count: int, seed: int) -> list[Asked]:
    """As many of every kind: each test spec once, in random order, then again in other words."""
    rng, chosen = random.Random(seed), []
    for kind in KINDS:
        specs = [spec for spec in scenes.all_specs() if spec.kind == kind and spec.split == "test"]
        rng.shuffle(specs)
        chosen += [specs[i % len(specs)] for i in range(-(-count // len(KINDS)))]
    return [Asked(spec, scenes.wording(spec, rng)) for spec in chosen]


# --------------------------------------------------------------------------------------------------------- statistics


def figure(values: Sequence[float] | np.ndarray, specs: Sequence[Spec], seed: int = 0) -> Figure:
    """Mean and 95% interval: specs are resampled within their kind, which keeps its weight. NaNs are left out."""
    grouped: dict[str, dict[str, list[float]]] = {}
    for value, spec in zip(values, specs, strict=True):
        if np.isfinite(value):
            grouped.setdefault(spec.kind, {}).setdefault(spec.key, []).append(float(value))
    if not grouped:
        return {"value": None, "low": None, "high": None, "n": 0}
    rng, means, n = np.random.default_rng(seed), np.zeros(RESAMPLES + 1), 0
    for by_spec in grouped.values():
        sums = np.array([[sum(group), len(group)] for group in by_spec.values()])  # (specs, 2)
        times = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
        times = np.concatenate([np.ones((1, len(sums))), times])  # first as it is
        size = int(sums[:, 1].sum())
        means += size * (times @ sums[:, 0]) / (times @ sums[:, 1])
        n += size
    means /= n
    low, high = np.quantile(means[1:], [0.025, 0.975])
    return {"value": float(means[0]), "low": float(low), "high": float(high), "n": n}


def by_kind(values: Sequence[float] | np.ndarray, specs: Sequence[Spec]) -> dict[str, Figure]:
    """The figure of all, and of each kind."""
    values = np.asarray(values, dtype=float)
    found = {"overall": figure(values, specs)}
    for kind in KINDS:
        chosen = [i for i, spec in enumerate(specs) if spec.kind == kind]
        found[kind] = figure(values[chosen], [specs[i] for i in chosen])
    return found


def by_way(values: Sequence[float], ways: Sequence[str], specs: Sequence[Spec]) -> dict[str, Figure]:
    """The figure of all, and of each way of spoiling."""
    found = {"overall": figure(values, specs)}
    for way in sorted(set(ways), key=WAYS.index):
        chosen = [i for i, other in enumerate(ways) if other == way]
        found[way] = figure([values[i] for i in chosen], [specs[i] for i in chosen])
    return found


def auc(scores: np.ndarray, right: np.ndarray) -> float:
    """The share of (right, wrong) pairs in which the right one has the higher score; NaN where there is no pair."""
    positive = int(right.sum())
    negative = len(right) - positive
    if not positive or not negative:
        return float("nan")
    ranks = stats.rankdata(scores)
    return float((ranks[right].sum() - positive * (positive + 1) / 2) / (positive * negative))


# ----------------------------------------------------------------------------------------------------------- pictures


def pictures(drawn: list[scenes.Image.Image]) -> np.ndarray:
    """(n, 64, 64, 3) in [0, 1]."""
    return np.stack([np.asarray(picture) for picture in drawn]) / 255.0


@torch.no_grad()
def through_vae(vae: Any, images: np.ndarray) -> np.ndarray:
    """The pictures after the autoencoder."""
    parts = []
    for start in range(0, len(images), BATCH):
        x = torch.from_numpy(images[start : start + BATCH]).float().permute(0, 3, 1, 2) * 2 - 1
        out = vae.decode(vae.encode(x).latent_dist.mode()).sample
        parts.append(((out.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).double().numpy())
    return np.concatenate(parts)


def load_student() -> StableDiffusionPipeline:
    """The generator, in float32."""
    folder = WEIGHTS / "generator"
    if not folder.is_dir():
        raise UserError(f"no generator in {WEIGHTS}; `python -m pahi.tiny.train export` writes it")
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


ONE_STEP = {"num_inference_steps": 1, "guidance_scale": 0.0}


def noise(count: int, seed: int) -> Tensor:
    """(count, 4, 16, 16) of the standard Gaussian."""
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(1000 + seed))


@torch.no_grad()
def sample(pipe: StableDiffusionPipeline, asked: list[Asked], eps: Tensor, how: dict[str, Any]) -> np.ndarray:
    """(n, 64, 64, 3) in [0, 1], by diffusers' own pipeline."""
    parts = []
    for start in range(0, len(asked), BATCH):
        texts = [a.text for a in asked[start : start + BATCH]]
        parts.append(pipe(texts, latents=eps[start : start + BATCH], output_type="np", **how).images)
    return np.concatenate(parts).astype(np.float64)


# ------------------------------------------------------------------------------------------------------------ figures


def judged(images: np.ndarray, specs: Sequence[Spec]) -> list[Verdict]:
    """The oracle's verdicts."""
    return [judge(image, spec) for image, spec in zip(images, specs, strict=True)]


def right(verdicts: list[Verdict]) -> np.ndarray:
    """(n,): whether every requirement is met."""
    return np.array([all(verdict.values()) for verdict in verdicts])


def oracle_figures(asked: list[Asked], vae: Any) -> dict[str, Any]:
    """The oracle on scenes whose truth is known: it should accept what was asked and nothing else."""
    rng, specs = random.Random(1), [a.spec for a in asked]
    good = pictures([scenes.render(spec, rng) for spec in specs])
    ways, altered = zip(*(scenes.alter(spec, rng) for spec in specs * ALTERED), strict=True)
    bad = pictures([scenes.render(spec, rng) for spec in altered])
    refused = ~right(judged(bad, specs * ALTERED))
    dull = through_vae(vae, bad[: len(specs)])
    return {
        "accepts": by_kind(right(judged(good, specs)), specs),
        "accepts_after_vae": by_kind(right(judged(through_vae(vae, good), specs)), specs),
        "refuses": by_kind(refused, specs * ALTERED),
        "refuses_after_vae": by_kind(~right(judged(dull, specs)), specs),
        "refuses_by_way": by_way(refused.tolist(), ways, specs * ALTERED),
    }


def vae_figures(asked: list[Asked], vae: Any) -> dict[str, Figure]:
    """Peak signal-to-noise ratio in dB of pictures after the autoencoder; the mean over pictures."""
    rng, specs = random.Random(2), [a.spec for a in asked]
    images = pictures([scenes.render(spec, rng) for spec in specs])
    error = ((through_vae(vae, images) - images) ** 2).mean((1, 2, 3))
    return by_kind(-10 * np.log10(error), specs)


def generator_figures(verdicts: list[Verdict], specs: Sequence[Spec]) -> dict[str, Any]:
    """How often the oracle calls a generator's pictures right, and how often each requirement is met."""
    names = list(dict.fromkeys(name for verdict in verdicts for name in verdict))
    met = {name: [float(v[name]) if name in v else float("nan") for v in verdicts] for name in names}
    return {
        "accuracy": by_kind(right(verdicts), specs),
        "requirements": {name: figure(values, specs) for name, values in met.items()},
    }


@dataclass(frozen=True)
class Pair:
    """Two pictures (64, 64, 3) for one prompt, the first the better one, and how the other was spoiled."""

    asked: Asked
    better: np.ndarray
    worse: np.ndarray
    way: str


def held_out_pairs(asked: list[Asked], vae: Any) -> list[Pair]:
    """Preference pairs of test specs, made as the training pairs are: half of them went through the autoencoder."""
    rng, found = random.Random(3), []
    for round_ in range(4):
        good = [preferences.right(a.spec, rng) for a in asked]
        bad = [preferences.spoil(a.spec, g, rng) for a, g in zip(asked, good, strict=True)]
        sides = [pictures([p.image for p in side]) for side in (good, bad)]
        if round_ % 2:
            sides = [through_vae(vae, side) for side in sides]
        found += [Pair(*row) for row in zip(asked, *sides, [p.way for p in bad], strict=True)]
    good = [preferences.right(a.spec, rng) for a in asked]
    clean, *spoiled = preferences.in_latents(vae, good, [a.spec for a in asked], rng)
    better = clean.permute(0, 2, 3, 1).numpy() / 255.0
    for way, pixels in zip(preferences.LATENT, spoiled, strict=True):
        worse = pixels.permute(0, 2, 3, 1).numpy() / 255.0
        found += [Pair(a, x, y, way) for a, x, y in zip(asked, better, worse, strict=True)]
    return found


def held_out_rewards() -> list[tuple[RewardModel, str]]:
    """The embedded default's rewards, and their roles."""
    rewards = load_settings("tiny").rewards
    return [(r, "train") for r in rewards.train] + [(r, "held_out") for r in rewards.held_out]


@torch.no_grad()
def scored(reward: Any, asked: Sequence[Asked], images: np.ndarray) -> np.ndarray:
    """(n,): a reward's raw scores."""
    parts = []
    for start in range(0, len(asked), BATCH):
        texts = [a.text for a in asked[start : start + BATCH]]
        x = torch.from_numpy(images[start : start + BATCH]).float().permute(0, 3, 1, 2)
        parts.append(reward.score(x, reward.prepare(texts), texts).double().numpy())
    return np.concatenate(parts)


def reward_figures(reward: Any, pairs: list[Pair], asked: list[Asked], drawn: np.ndarray, met: np.ndarray) -> Row:
    """Pairwise accuracy, and agreement with the oracle on the student's pictures.

    drawn: (prompts, seeds, 64, 64, 3); met: (prompts, seeds), the share of requirements that the oracle finds met.
    """
    prompts = [p.asked for p in pairs]
    better = scored(reward, prompts, np.stack([p.better for p in pairs]))
    worse = scored(reward, prompts, np.stack([p.worse for p in pairs]))
    wins = (better > worse) + 0.5 * (better == worse)
    repeated = [a for a in asked for _ in range(drawn.shape[1])]
    scores = scored(reward, repeated, drawn.reshape(-1, *drawn.shape[2:])).reshape(met.shape)
    specs, whole = [a.spec for a in asked], auc(scores.ravel(), met.ravel() == 1)
    ranks = [
        float(stats.spearmanr(s, m).statistic) if np.ptp(m) > 0 and np.ptp(s) > 0 else float("nan")
        for s, m in zip(scores, met, strict=True)
    ]
    return {
        "pairs": by_way(wins.tolist(), [p.way for p in pairs], [a.spec for a in prompts]),
        "auc": whole if np.isfinite(whole) else None,
        "auc_within_prompt": figure([auc(s, m == 1) for s, m in zip(scores, met, strict=True)], specs),
        "rank_within_prompt": figure(ranks, specs),
    }


def weight_figures() -> dict[str, Any]:
    """Size and hash of each model's files."""
    folders = {path.name: path for path in sorted(WEIGHTS.iterdir()) if path.is_dir()} | {"all": WEIGHTS}
    return {
        name: {
            "files": len(models.files(folder)),
            "bytes": sum(int(entry["bytes"]) for entry in models.files(folder).values()),
            "sha256": models.model_hash(folder),
        }
        for name, folder in folders.items()
    }


def sums_agree() -> bool:
    """Whether SHA256SUMS, as it was written with the weights, is what lies here: every file, and no other."""
    lines = (line.split("  ", 1) for line in (WEIGHTS / SUMS).read_text().splitlines())
    found = {name: entry["sha256"] for name, entry in models.files(WEIGHTS).items() if name != SUMS}
    return {name: digest for digest, name in lines} == found


# --------------------------------------------------------------------------------------------------------- everything


@dataclass
class World:
    """The figures, and the pictures that the contact sheets show."""

    figures: dict[str, Any]
    asked: list[Asked]
    vae: Any
    student: np.ndarray  # (prompts, 64, 64, 3), of the first noise


def measure(samples: int, say: Callable[[str], None]) -> World:
    """All figures, of about so many test prompts."""
    pipe = load_student()
    asked = test_prompts(samples, seed=0)
    specs, vae = [a.spec for a in asked], pipe.vae
    figures: dict[str, Any] = {"samples": len(asked), "seeds": SEEDS, "weights": weight_figures()}
    if (WEIGHTS / SUMS).exists():
        figures["sums_agree"] = sums_agree()
    say("oracle and autoencoder")
    figures["oracle"] = oracle_figures(asked, vae)
    figures["vae"] = {"psnr": vae_figures(asked, vae)}
    pairs = held_out_pairs(asked, vae)
    say("student")
    drawn = np.stack([sample(pipe, asked, noise(len(asked), seed), ONE_STEP) for seed in range(SEEDS)], 1)
    verdicts = [judged(drawn[:, seed], specs) for seed in range(SEEDS)]
    flat = [verdict for column in verdicts for verdict in column]
    figures["student"] = generator_figures(flat, specs * SEEDS)
    met = np.array([[np.mean(list(verdict.values())) for verdict in column] for column in verdicts]).T
    figures["rewards"] = {}
    for settings, role in held_out_rewards():
        say(f"reward {settings.name}")
        reward = load_reward(settings, torch.device("cpu"))
        figures["rewards"][settings.name] = {"role": role} | reward_figures(reward, pairs, asked, drawn, met)
    return World(figures, asked, vae, drawn[:, 0])
