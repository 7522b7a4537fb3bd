"""From rows of scores to the table of arms."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from pahi.evaluation.statistics import Interval, bootstrap, paired_uplift, win_rate
from pahi.predictors.base import kinds
from pahi.settings import Settings

SHUFFLED = "_shuffled"  # ends the name of the arm where a prompt-adaptive predictor reads another prompt
BEST_OF, OPTIMISED = "best_of_", "optimised_"  # and the number of calls
CHOSEN = "selected_of_"  # and the number of noises that `selected` chooses among
HACKING = "reward hacking"  # begins the warning that weighs most


def main_arm(names: Iterable[str]) -> str | None:
    """The learned arm that an evaluation is about: the most capable of those it has."""
    found = set(names)
    every = kinds()
    known = [kind for kind in every if kind in found and kind != "standard"]
    return max(known, key=lambda kind: (every[kind].adaptive, list(every).index(kind)), default=None)


def arm_labels(settings: Settings) -> dict[str, str]:
    """The arms of an evaluation, by name, as a person calls them."""
    learned = kinds()
    labels = {"standard": learned["standard"].arm}
    for name, _ in settings.train.phases:
        labels[name] = learned[name].arm
        if learned[name].adaptive:
            labels[name + SHUFFLED] = f"{learned[name].name}, prompts shuffled"
    if settings.train.chooses:
        numbers = {"selected": settings.train.candidates} | {f"{CHOSEN}{n}": n for n in settings.evaluate.candidates}
        labels |= {name: f"The best of {n} noises, foreseen" for name, n in numbers.items()}
    labels |= {f"{BEST_OF}{n}": f"Best of {n} by the training reward" for n in settings.evaluate.best_of}
    return labels | {f"{OPTIMISED}{k}": f"Each noise optimised, {k} steps" for k in settings.evaluate.optimise}


def calls(arm: str) -> int:
    """How often an arm calls the generator for a picture."""
    return next((int(arm.removeprefix(p)) for p in (BEST_OF, OPTIMISED) if arm.startswith(p)), 1)


def among(arm: str) -> int | None:
    """How many noises an arm of `evaluate.candidates` chooses among; None for every other arm."""
    return int(arm.removeprefix(CHOSEN)) if arm.startswith(CHOSEN) else None


def best_of(names: Iterable[str]) -> list[int]:
    """The numbers of drawings that arms choose from."""
    return sorted(calls(name) for name in names if name.startswith(BEST_OF))


def summarise(
    settings: Settings,
    units: dict[str, float | None],
    scores: pa.Table,
    evaluated: pa.Table,
    distances: dict[str, dict[str, Interval]] | None = None,
) -> dict[str, Any]:
    """Means, uplifts and win rates with intervals by arm, uplift by kind, and warnings; JSON without NaN.

    Intervals are by bootstrap over scenes. `distances` are the arms' CMMD, by what they are measured from.
    """
    resamples, seeds = settings.evaluate.bootstrap, settings.evaluate.seeds
    rows = evaluated.to_pylist()
    prompts = list(dict.fromkeys(row["prompt_id"] for row in rows))
    kinds = {row["prompt_id"]: row["kind"] or "other" for row in rows}
    scenes_by_prompt = {row["prompt_id"]: row["group"] for row in rows}
    scenes = np.array([scenes_by_prompt[prompt] for prompt in prompts])
    position = {prompt: i for i, prompt in enumerate(prompts)}
    r = settings.rewards
    roles = {
        m.name: role for role, ms in (("train", r.train), ("held_out", r.held_out), ("judge", r.judges)) for m in ms
    }

    grid: dict[tuple[str, str], np.ndarray] = {}
    for row in scores.to_pylist():
        cells = grid.setdefault((row["arm"], row["reward"]), np.full((len(prompts), seeds), np.nan))
        cells[position[row["prompt_id"]], row["seed"]] = np.nan if row["score"] is None else row["score"]

    def interval(values: np.ndarray, groups: np.ndarray, over: np.ndarray | None = None) -> Interval | None:
        return _known(bootstrap(values, resamples, list(groups), over))

    def column(arm: str, name: str) -> np.ndarray:
        found = {row["prompt_id"]: row[name] for row in rows if row["arm"] == arm}
        return np.array([math.nan if found.get(p) is None else found[p] for p in prompts], dtype=float)

    arms: list[dict[str, Any]] = []
    by_kind: dict[str, dict[str, dict[str, float | None]]] = {}
    plain = {name: column("standard", name) for name in ("diversity", "feature_diversity")}
    for arm, label in arm_labels(settings).items():
        mine = [row for row in rows if row["arm"] == arm]
        entry: dict[str, Any] = {
            "arm": arm,
            "label": label,
            "calls": calls(arm),
            "rewards": {},
            "noise_norm": _mean([row["noise_norm"] for row in mine]),
            "noise_correlation": _mean([row["noise_correlation"] for row in mine]),
            "kl": _mean([row["kl"] for row in mine]),
        }
        for name, standard in plain.items():
            # A prompt whose pictures are all alike has no diversity to lose, and counts as such.
            found = interval(column(arm, name), scenes, standard) if np.nansum(standard) > 0 else None
            entry[name] = found["value"] if found else None
            entry[f"{name}_interval"] = found
        for name, by_arm in (distances or {}).items():
            entry[name] = _known(by_arm[arm]) if arm in by_arm else None
        for name, role in roles.items():
            got, before = grid[arm, name], grid["standard", name]
            # A judge's units are its own: an uplift of 0.1 in accuracy is ten more right in a hundred.
            unit = 1.0 if role == "judge" else units.get(name)
            usable = np.isfinite(got).all(axis=1) & np.isfinite(before).all(axis=1)
            reward: dict[str, Any] = {"role": role, "mean": None, "accuracy": None, "uplift": None, "win_rate": None}
            if usable.any():
                reward["mean"] = float(got[usable].mean())
                if role == "judge":
                    reward["accuracy"] = interval(got[usable].mean(axis=1), scenes[usable])
                if arm != "standard" and unit:
                    reward["uplift"] = interval(paired_uplift(got[usable], before[usable], unit), scenes[usable])
                    reward["win_rate"] = interval(win_rate(got[usable], before[usable]), scenes[usable])
            entry["rewards"][name] = reward
            for kind in sorted(set(kinds.values())):
                here = usable & np.array([kinds[prompt] == kind for prompt in prompts])
                value = None
                if here.any() and unit:
                    value = float(got[here].mean() if role == "judge" else ((got - before)[here] / unit).mean())
                by_kind.setdefault(kind, {}).setdefault(arm, {})[name] = value
        arms.append(entry)
    return {
        "prompts": len(prompts),
        "scenes": len(set(scenes_by_prompt.values())),
        "seeds": seeds,
        "train_reward": settings.rewards.train[0].name,
        "units": units,
        "arms": arms,
        "by_kind": by_kind,
        "flags": flags(arms),
    }


def flags(arms: list[dict[str, Any]]) -> list[str]:
    """What a reader must be warned of."""
    by_name = {arm["arm"]: arm for arm in arms}
    name = main_arm(by_name)
    if name is None:
        return []
    best, label = by_name[name], kinds()[name].name
    found = []
    for name, reward in best["rewards"].items():
        up = reward["uplift"]
        if up is None:
            continue
        if up["high"] < 0:
            found.append(f"{label} is worse than the standard Gaussian by {name} ({reward['role']})")
        elif up["low"] <= 0:
            found.append(f"{label}'s uplift in {name} ({reward['role']}) is within chance")
    trained = [r["uplift"] for r in best["rewards"].values() if r["role"] == "train" and r["uplift"]]
    held = [r["uplift"] for r in best["rewards"].values() if r["role"] != "train" and r["uplift"]]
    if trained and held and all(u["low"] > 0 for u in trained) and any(u["high"] < 0 for u in held):
        found.append(f"{HACKING}: the training reward rose and a held-out one fell")
    for name, by in (("diversity", "in pixels"), ("feature_diversity", "in features")):
        if best[name] is not None and best[name] < 0.7:
            found.append(f"{label}'s pictures of one prompt differ only {best[name]:.2f} times as much as before, {by}")
    if not 0.9 < best["noise_norm"] < 1.1:
        found.append(f"{label}'s noise has {best['noise_norm']:.2f} times the norm of Gaussian noise")
    if best["noise_correlation"] is not None and abs(best["noise_correlation"]) > 0.1:
        found.append(f"{label}'s noise is not white: its neighbours correlate by {best['noise_correlation']:+.2f}")
    hpi = by_name.get("hpi", best)
    if hpi is not best and all(r["mean"] == hpi["rewards"][n]["mean"] for n, r in best["rewards"].items()):
        found.append(f"{label} is HPI here: nothing that was learned after it did better on validation prompts")
    shuffled = by_name.get(best["arm"] + SHUFFLED)
    if shuffled:
        for name, reward in best["rewards"].items():
            other = shuffled["rewards"][name]["uplift"]
            if reward["role"] == "train" and reward["uplift"] and other and other["value"] >= reward["uplift"]["value"]:
                found.append(f"{label} ignores the prompt: shuffled prompts do as well in {name}")
    return found


def _known(figure: Interval) -> Interval | None:
    """An interval as JSON can hold it; None where nothing was measured."""
    return figure if all(math.isfinite(v) for v in figure.values()) else None


def _mean(values: list[float | None]) -> float | None:
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return float(np.mean(finite)) if finite else None
