"""Many evaluations on one table: uplift against diversity, over predictors, betas and training seeds.

Every arm of every evaluation is drawn from the same eps for the same prompts, so any two are compared in pairs. Pooled
figures average a prompt's values over training seeds, then resample scenes: they speak of these seeds, each of which is
shown beside them, and of all scenes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pahi.errors import PahiError
from pahi.evaluation.statistics import Interval, bootstrap
from pahi.evaluation.summary import BEST_OF, OPTIMISED, SHUFFLED, among, calls
from pahi.settings import Rewards
from pahi.tables import Row, number

RESAMPLES = 2000


@dataclass(frozen=True)
class Arm:
    """One arm of one evaluation: a value a prompt, in the order of `Frontier.prompts`."""

    label: str  # what was learned, or best of N
    beta: float | None  # of `selected`, the noises it chooses among
    seed: int | None  # of training
    calls: int
    scores: dict[str, np.ndarray]  # by reward: (prompts,), means over seeds of the noise, raw
    diversity: np.ndarray
    feature_diversity: np.ndarray
    kl: float | None
    noise_norm: float
    noise_correlation: float


@dataclass(frozen=True)
class Frontier:
    """All arms, and what they share."""

    prompts: list[str]
    scenes: list[str]
    units: dict[str, float]  # by reward; a judge's is 1
    roles: dict[str, str]
    standard: Arm
    arms: list[Arm]

    def uplift(self, group: Sequence[Arm], reward: str, against: Sequence[Arm] = ()) -> Interval:
        """Mean paired difference to other arms in units, pooled over the group's training seeds.

        `against` has an arm of each training seed, or one that was not trained, for all; the standard one where empty.
        """
        others = {arm.seed: arm for arm in against or [self.standard]}
        pairs = [(arm, others[arm.seed if arm.seed in others else None]) for arm in group]
        gain = np.mean([(a.scores[reward] - b.scores[reward]) / self.units[reward] for a, b in pairs], axis=0)
        return bootstrap(gain, RESAMPLES, self.scenes)

    def share(self, group: Sequence[Arm], name: str) -> Interval:
        """Diversity over the standard arm's."""
        mine = np.mean([getattr(arm, name) for arm in group], axis=0)
        return bootstrap(mine, RESAMPLES, self.scenes, over=getattr(self.standard, name))

    def groups(self, kind: Any = None) -> dict[tuple[str, float | None], list[Arm]]:
        """Arms of all training seeds, by label and beta; `kind` chooses among the arms."""
        found: dict[tuple[str, float | None], list[Arm]] = {}
        for arm in self.arms:
            if kind is None or kind(arm):
                found.setdefault((arm.label, arm.beta), []).append(arm)
        return found


@dataclass(frozen=True)
class Evaluation:
    """One predictor's evaluation: how it was trained, and the tables."""

    predictor: str
    estimator: str
    beta: float
    seed: int
    units: dict[str, float | None]
    scores: pa.Table
    evaluated: pa.Table


def gather(rewards: Rewards, evaluations: Sequence[Evaluation]) -> Frontier:
    """Every evaluation's arms, the baselines' of the first that has them; rewards have the roles that are given here.

    Raises PahiError where the evaluations are of different prompts or noise.
    """
    groups = (("train", rewards.train), ("held_out", rewards.held_out), ("judge", rewards.judges))
    roles = {model.name: role for role, models in groups for model in models}
    first = evaluations[0]
    units = {name: 1.0 if role == "judge" else first.units[name] or math.nan for name, role in roles.items()}
    scenes = {row["prompt_id"]: row["group"] for row in first.evaluated.select(["prompt_id", "group"]).to_pylist()}
    prompts = list(scenes)
    with_own = {(label_of(e.predictor, e.estimator), e.beta, e.seed) for e in evaluations}
    arms: list[Arm] = []
    standard = None
    for evaluation in evaluations:
        own = label_of(evaluation.predictor, evaluation.estimator)
        for arm in _arms(evaluation, prompts, list(roles)):
            # PAHI brings its HPI along, which had fewer steps than an HPI of its own.
            second = arm.label != own and (arm.label, arm.beta, arm.seed) in with_own
            if arm.label == "standard":
                standard = standard or arm
                if not all(np.allclose(arm.scores[n], standard.scores[n], 1e-3, 1e-3, equal_nan=True) for n in roles):
                    raise PahiError("the standard arm's scores differ between evaluations: they are no pairs")
            elif not second and (arm.seed is not None or all(arm.label != other.label for other in arms)):
                arms.append(arm)
    assert standard is not None
    return Frontier(prompts, [scenes[p] for p in prompts], units, roles, standard, arms)


def _arms(e: Evaluation, prompts: list[str], rewards: list[str]) -> list[Arm]:
    position = {prompt: i for i, prompt in enumerate(prompts)}
    rows = e.evaluated.to_pylist()
    if {row["prompt_id"] for row in rows} != set(prompts):
        raise PahiError("these evaluations are of different test prompts and cannot be compared")
    total: dict[tuple[str, str], np.ndarray] = {}
    count: dict[tuple[str, str], np.ndarray] = {}
    for row in e.scores.to_pylist():
        key, i = (row["arm"], row["reward"]), position[row["prompt_id"]]
        total.setdefault(key, np.zeros(len(prompts)))[i] += math.nan if row["score"] is None else row["score"]
        count.setdefault(key, np.zeros(len(prompts)))[i] += 1

    def column(arm: str, name: str) -> np.ndarray:
        values = np.full(len(prompts), np.nan)
        for row in rows:
            if row["arm"] == arm and row[name] is not None:
                values[position[row["prompt_id"]]] = row[name]
        return values

    arms = []
    for label in dict.fromkeys(row["arm"] for row in rows):
        learned = label != "standard" and not label.startswith((BEST_OF, OPTIMISED))
        noises = among(label)
        kl = column(label, "kl")
        arms.append(
            Arm(
                label="selected" if noises else label_of(label, e.estimator) if learned else label,
                beta=float(noises) if noises else e.beta if learned else None,
                seed=e.seed if learned else None,
                calls=calls(label),
                scores={name: total[label, name] / count[label, name] for name in rewards},
                diversity=column(label, "diversity"),
                feature_diversity=column(label, "feature_diversity"),
                kl=float(np.nanmean(kl)) if np.isfinite(kl).any() else None,
                noise_norm=float(np.nanmean(column(label, "noise_norm"))),
                noise_correlation=float(np.nanmean(column(label, "noise_correlation"))),
            )
        )
    return arms


# -------------------------------------------------------------------------------------------------------------- tables


def pooled_rows(f: Frontier) -> list[Row]:
    """One row a predictor and beta, and one a baseline; training seeds pooled."""
    return [_row(f, name, beta, group) for (name, beta), group in f.groups(shown).items()]


def seed_rows(f: Frontier) -> list[Row]:
    """One row a predictor, beta and training seed."""
    rows = []
    for (name, beta), group in f.groups(shown).items():
        for arm in sorted(group, key=lambda a: a.seed or 0):
            if arm.seed is not None:
                row = _row(f, name, beta, [arm])
                rows.append({"predictor": row.pop("predictor"), "beta": row.pop("beta"), "seed": arm.seed, **row})
    return rows


def shuffled_rows(f: Frontier) -> list[Row]:
    """What comes from the prompt: each arm, the same with shuffled prompts, and the paired difference."""
    rows = []
    every = f.groups()
    for (name, beta), group in every.items():
        beside = every.get((name + SHUFFLED, beta))
        if beside is None:
            continue
        row: Row = {"predictor": name_of(name), "beta": dial_of(name, beta)}
        for reward, role in f.roles.items():
            row[f"{reward}, shuffled"] = figure(f.uplift(beside, reward), role)
            row[f"{reward}, difference"] = figure(f.uplift(group, reward, beside), role)
        rows.append(row)
    return rows


def versus_rows(f: Frontier) -> list[Row]:
    """The paired difference of each predictor to the HPI of its beta and seeds, and to each best of N."""
    rows = []
    baselines = [[arm] for arm in f.arms if arm.label.startswith((BEST_OF, OPTIMISED))]
    every = f.groups()
    for (name, beta), group in f.groups(lambda a: shown(a) and a.seed is not None).items():
        hpi = every.get((label_of("hpi", name.partition("/")[2]), beta), [])
        paired = not name.startswith("hpi") and {arm.seed for arm in group} <= {arm.seed for arm in hpi}
        for others in ([hpi] if paired else []) + baselines:
            row: Row = {"predictor": name_of(name), "beta": dial_of(name, beta), "minus": name_of(others[0].label)}
            row |= {reward: figure(f.uplift(group, reward, others), role) for reward, role in f.roles.items()}
            rows.append(row)
    return rows


def best_at(f: Frontier, reward: str, diversity: float) -> tuple[str, float | None] | None:
    """The learned predictor with most uplift among those whose pixel and feature diversity both keep this share."""
    found = {
        key: f.uplift(group, reward)["value"]
        for key, group in f.groups(lambda a: shown(a) and a.seed is not None).items()
        if min(v for v in (f.share(group, n)["value"] for n in ("diversity", "feature_diversity")) if not math.isnan(v))
        >= diversity
    }
    return max(found, key=lambda key: found[key]) if found else None


def _row(f: Frontier, name: str, beta: float | None, group: list[Arm]) -> Row:
    row: Row = {"predictor": name_of(name), "beta": dial_of(name, beta), "calls": group[0].calls}
    for reward, role in f.roles.items():
        row[reward] = figure(f.uplift(group, reward), role)
        if role == "judge":
            row[f"{reward}, right"] = f"{100 * np.nanmean([np.nanmean(a.scores[reward]) for a in group]):.1f}%"
    for key, title in (("diversity", "diversity, pixels"), ("feature_diversity", "diversity, features")):
        share = f.share(group, key)
        row[title] = (
            "-" if math.isnan(share["value"]) else f"{share['value']:.2f} [{share['low']:.2f}, {share['high']:.2f}]"
        )
    known = [arm.kl for arm in group if arm.kl is not None]
    row["KL"] = number(float(np.mean(known)) if known else None, 3)
    row["norm"] = number(float(np.mean([arm.noise_norm for arm in group])), 3)
    row["correlation"] = number(float(np.mean([arm.noise_correlation for arm in group])), 3)
    return row


def figure(value: Interval, role: str) -> str:
    """An uplift with its interval; a judge's in points of a hundred."""
    if math.isnan(value["value"]):
        return "-"
    if role == "judge":
        v, low, high = (100 * value[k] for k in ("value", "low", "high"))
        return f"{v:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"{value['value']:+.2f} [{value['low']:+.2f}, {value['high']:+.2f}]"


def shown(arm: Arm) -> bool:
    return not arm.label.endswith(SHUFFLED)


def label_of(arm: str, estimator: str) -> str:
    """What was learned, and how where it was not by gradients through generator and rewards: `pahi/value`."""
    kind = arm.removesuffix(SHUFFLED)
    how = "" if kind == "selected" or estimator in ("", "pathwise") else f"/{estimator}"
    return kind + how + arm.removeprefix(kind)


def name_of(label: str) -> str:
    return label.replace("_", " ")


def dial_of(name: str, beta: float | None) -> str:
    """What weighs diversity against uplift: beta, or how many noises `selected` chooses among."""
    if beta is None:
        return "-"
    return f"of {beta:g}" if name.removesuffix(SHUFFLED) == "selected" else f"{beta:g}"
