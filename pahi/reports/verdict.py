"""The result in words, from the numbers alone: what is not shown is not claimed, and what is bad is said first."""

from dataclasses import dataclass, field
from typing import Any

from pahi.evaluation import summary
from pahi.predictors.base import kinds
from pahi.reports.text import finite, interval, number, percent, plural, points, signed


@dataclass(frozen=True)
class Verdict:
    tone: str  # "good", "mixed", "bad" or "none"
    headline: str
    summary: str
    notes: list[str] = field(default_factory=list)


def main_arm(arms: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The arm that the headline speaks of."""
    by_name = {str(arm.get("arm")): arm for arm in arms}
    return by_name.get(str(summary.main_arm(by_name)))


def effect(uplift: Any) -> str:
    """Which side of zero the whole interval lies on: "up", "down", "unclear" where it lies on neither or there is no
    interval, "missing" where nothing was measured.
    """
    u = interval(uplift)
    if u is None:
        return "missing"
    if u["low"] is not None and u["low"] > 0:
        return "up"
    if u["high"] is not None and u["high"] < 0:
        return "down"
    return "unclear"


def measured(uplift: Any, unit: str = "") -> str:
    """As in: +0.49 (95% CI +0.37 to +0.61)."""
    u = interval(uplift)
    if u is None:
        return "n/a"
    if u["low"] is None or u["high"] is None:
        return f"{signed(u['value'])}{unit} (no interval)"
    side = {"up": "", "down": ", below zero", "unclear": ", which includes zero"}[effect(u)]
    return f"{signed(u['value'])}{unit} (95% CI {signed(u['low'])} to {signed(u['high'])}{side})"


def judge(evaluate: dict[str, Any]) -> Verdict:
    """Headline, summary and notes of an evaluation."""
    arms = evaluate.get("arms") or []
    arm = main_arm(arms)
    if arm is None:
        return Verdict("none", "Nothing was evaluated.", "This dataset has no evaluation of a learned noise yet.")
    name = arm.get("label") or arm["arm"]
    rewards = arm.get("rewards") or {}
    train = {k: v for k, v in rewards.items() if v.get("role") == "train"}
    held_out = {k: v for k, v in rewards.items() if v.get("role") == "held_out"}
    train_effects = {effect(v.get("uplift")) for v in train.values()} - {"missing"}
    held_effects = {effect(v.get("uplift")) for v in held_out.values()} - {"missing"}
    judges = _judges(arms, arm)
    judge_effects = {j["effect"] for j in judges}

    if not train_effects and not held_effects:
        tone, headline = "none", "No uplift was measured."
    elif "down" in train_effects or ("up" not in train_effects and "down" in held_effects):
        tone, headline = "bad", f"{name} made the pictures worse."
    elif "up" not in train_effects or "unclear" in train_effects:
        tone, headline = "mixed", "No clear gain."
    elif "down" in held_effects:
        tone, headline = "bad", "The training reward rose, the held-out reward fell."
    elif "unclear" in held_effects:
        tone, headline = "mixed", "The training reward rose; the held-out one does not confirm it."
    elif not held_effects:
        tone, headline = "mixed", "The training reward rose; nothing independent confirms it."
    elif "down" in judge_effects:
        tone, headline = "mixed", "The rewards rose, the judge disagrees."
    else:
        tone, headline = "good", "Same model, better pictures."

    parts = [
        f"{measured(v['uplift'], ' within-prompt standard deviations' if i == 0 else '')} on {k}{_which(v)}"
        for i, (k, v) in enumerate(
            (k, v) for k, v in (train | held_out).items() if effect(v.get("uplift")) != "missing"
        )
    ]
    short = kinds()[arm["arm"]].name if arm["arm"] in kinds() else name
    where = f"On {plural(evaluate.get('prompts'), 'prompt')} that training never saw, against the same noise unchanged"
    found = f"scores {_list(parts)}" if parts else "has no uplift that was recorded"
    summary = f"{where}, {short} {found}."
    notes = [j["sentence"] for j in judges] + _notes(arms, arm, short, train)
    if len(held_out) and held_effects:
        chose = "it" if len(held_out) == 1 else "they"
        notes.append(f"{_list(list(held_out))} gave no gradient; {chose} only chose the checkpoint, on other prompts.")
    return Verdict(tone, headline, summary, notes)


def _judges(arms: list[dict[str, Any]], arm: dict[str, Any]) -> list[dict[str, str]]:
    standard = _rewards(arms, "standard")
    found = []
    for k, v in (arm.get("rewards") or {}).items():
        after, before = finite(v.get("mean")), finite((standard.get(k) or {}).get("mean"))
        if v.get("role") != "judge" or after is None:
            continue
        if before is None:
            sentence = f"The judge {k} accepts {percent(after)} of the pictures."
        else:
            how = "rises" if after > before else "falls" if after < before else "stays"
            sentence = f"By the judge {k}, the share of right pictures {how} from {percent(before)} to {percent(after)}"
            u = interval(v.get("uplift"))
            if u is not None and u["low"] is not None and u["high"] is not None:
                sentence += f" (95% CI of the change {points(u['low'])} to {points(u['high'])} points"
                sentence += ", which includes zero)" if effect(u) == "unclear" else ")"
            sentence += "."
        found.append({"effect": effect(v.get("uplift")), "sentence": sentence})
    return found


def _notes(arms: list[dict[str, Any]], arm: dict[str, Any], name: str, train: dict[str, dict[str, Any]]) -> list[str]:
    notes = []
    reward = next(iter(train), "")
    mine = interval((train.get(reward) or {}).get("uplift"))
    if mine is not None:
        for n in summary.best_of(str(a.get("arm")) for a in arms):
            best = interval((_rewards(arms, f"{summary.BEST_OF}{n}").get(reward) or {}).get("uplift"))
            if best is not None:
                notes.append(f"Best of {n} by {reward} itself: {signed(best['value'])}, for {n} times the calls.")
        beside = f"{arm.get('arm')}{summary.SHUFFLED}"
        shuffled = interval((_rewards(arms, beside).get(reward) or {}).get("uplift"))
        if shuffled is not None:
            text = f"With shuffled prompts given to the predictor: {signed(shuffled['value'])}"
            value, low = shuffled["value"], mine["low"]
            if effect(mine) == "up" and low is not None and value is not None and value >= low:
                text += ", about as much, so the predictor hardly uses the prompt"
            notes.append(text + ".")
    diversity = finite(arm.get("diversity"))
    if diversity is not None and arm.get("arm") != "standard":
        notes.append(f"Diversity of {name}: {number(diversity)} of the standard noise's.")
    return notes


def _rewards(arms: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next((arm.get("rewards") or {} for arm in arms if arm.get("arm") == name), {})


def _which(reward: dict[str, Any]) -> str:
    # The trainer keeps the checkpoint that held-out rewards like best: a use, though no gradient; a note says so.
    return {"train": ", which trained it", "held_out": ", held out"}.get(str(reward.get("role")), "")


def _list(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + ", and " + parts[-1]
