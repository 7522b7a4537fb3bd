"""How good the small world is, from its shipped weights and test specs alone.

    python -m pahi.tiny.evaluate                        every figure, as tables
    python -m pahi.tiny.evaluate --json figures.json    the same as JSON
    python -m pahi.tiny.evaluate --sheets docs          contact sheets beside them

Figures are means with a 95% bootstrap interval over specs, resampled within their kind.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from pahi.tables import Row, markdown, number, percent
from pahi.tiny.figures import SUMS, WEIGHTS, Figure, measure
from pahi.tiny.scenes import KINDS
from pahi.tiny.sheets import write_sheets


def share(value: Figure) -> str:
    """`81.3% [78.0, 84.4]`"""
    if not value["n"]:
        return "-"
    return f"{100 * value['value']:.1f}% [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def level(value: Figure, digits: int = 1) -> str:
    """`32.8 [32.5, 33.1]`"""
    if not value["n"]:
        return "-"
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def tables(figures: dict[str, Any]) -> dict[str, list[Row]]:
    """Every figure, as rows under a title."""
    rows = ("overall", *KINDS)
    oracle, student = figures["oracle"], figures["student"]
    found: dict[str, list[Row]] = {}
    found["The oracle on scenes whose truth is known, and the autoencoder"] = [
        {
            "kind": kind,
            "accepts right scenes": share(oracle["accepts"][kind]),
            "after the VAE": share(oracle["accepts_after_vae"][kind]),
            "refuses altered scenes": share(oracle["refuses"][kind]),
            "these after the VAE": share(oracle["refuses_after_vae"][kind]),
            "VAE's PSNR, dB": level(figures["vae"]["psnr"][kind]),
        }
        for kind in rows
    ]
    found["Altered scenes that the oracle refuses, by what was altered"] = [
        {"altered": way, "refused": share(value), "scenes": value["n"]}
        for way, value in oracle["refuses_by_way"].items()
    ]
    found["Pictures that the oracle calls right"] = [
        {"kind": kind, "student": share(student["accuracy"][kind])} for kind in rows
    ]
    found["Requirements met, where the prompt has them"] = [
        {"requirement": name, "student": share(value)} for name, value in student["requirements"].items()
    ]
    rewards = figures["rewards"]
    ways = list(dict.fromkeys(way for reward in rewards.values() for way in reward["pairs"]))
    found["Held-out pairs that a reward orders as they were made, by way of spoiling"] = [
        {"way": way}
        | {name: share(reward["pairs"][way]) for name, reward in rewards.items()}
        | {"pairs": next(iter(rewards.values()))["pairs"][way]["n"]}
        for way in ways
    ]
    found["Rewards and the oracle on the student's pictures"] = [
        {
            "reward": f"{name} ({reward['role'].replace('_', ' ')})",
            "AUC": number(reward["auc"], 3),
            "AUC within a prompt": level(reward["auc_within_prompt"], 3),
            "rank correlation within a prompt": level(reward["rank_within_prompt"], 3),
        }
        for name, reward in rewards.items()
    ]
    found["Weights"] = [
        {"folder": name, "files": entry["files"], "MB": f"{entry['bytes'] / 1e6:.2f}", "sha256": entry["sha256"]}
        for name, entry in figures["weights"].items()
    ]
    return found


def main() -> None:
    """Prints every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--sheets", type=Path, help="also write contact sheets into this folder")
    parser.add_argument("--samples", type=int, default=600, help="test prompts, the six kinds in equal numbers")
    args = parser.parse_args()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    world = measure(max(args.samples, len(KINDS)), lambda text: print(f"... {text}", flush=True))
    for title, rows in tables(world.figures).items():
        print(f"\n## {title}\n\n{markdown(rows)}")
    for name, reward in world.figures["rewards"].items():
        way, least = min(reward["pairs"].items(), key=lambda entry: entry[1]["value"])
        print(f"\n{name}'s worst way of spoiling: {way}, {percent(least['value'])}")
    if not world.figures.get("sums_agree", True):
        raise SystemExit(f"error: the files in {WEIGHTS} are not those of its {SUMS}")
    if args.json:
        args.json.write_text(json.dumps(world.figures, indent=1, allow_nan=False) + "\n")
    if args.sheets:
        write_sheets(world, args.sheets)


if __name__ == "__main__":
    main()
