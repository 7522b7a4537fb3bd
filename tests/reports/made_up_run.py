"""A made-up run: pictures of coloured shapes and numbers of the size that a real one gives."""

import io
import math
import random
from typing import Any

import numpy as np
from PIL import Image

from pahi.tiny.scenes import KINDS, all_specs, alter, render, wording


def _interval(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def _arm(
    name: str, label: str, calls: int, alpha: float | None, beta: float | None, oracle: float, **more: float
) -> Any:
    def reward(role: str, uplift: float | None, half: float) -> dict[str, Any]:
        return {
            "role": role,
            "mean": 18 + (uplift or 0),
            "uplift": None if uplift is None else _interval(uplift, half),
            "win_rate": None if uplift is None else _interval(0.5 + uplift / 4, 0.04),
        }

    rewards = {
        "pick_alpha": reward("train", alpha, 0.11),
        "pick_beta": reward("held_out", beta, 0.10),
        "oracle": {
            "role": "judge",
            "mean": oracle,
            "uplift": None if alpha is None else _interval(oracle - 0.58, 0.04),
            "win_rate": None,
        },
    }
    return {
        "arm": name, "label": label, "calls": calls, "rewards": rewards,
        "diversity": 1.0, "feature_diversity": 1.0, "noise_norm": 1.0, "noise_correlation": 0.001, "kl": 0.0,
        "diversity_interval": None if alpha is None else _interval(more.get("diversity", 1.0), 0.03),
        "cmmd": None if alpha is None else _interval(alpha / 2, 0.05), "ms_per_image": 6.1, **more,
    }  # fmt: skip


def png(image: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def photograph(edge: int, seed: int, kind: str = "PNG") -> bytes:
    """Colours that flow into each other, with grain: about as many bytes as a photograph has."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(patches.resize((edge, edge), Image.Resampling.BICUBIC))
    picture = Image.fromarray(np.clip(smooth + rng.normal(0, 6, (edge, edge, 1)), 0, 255).astype(np.uint8))
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()


def gallery(n: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    by_kind = [[spec for spec in all_specs() if spec.kind == kind] for kind in KINDS]
    rows = []
    for i in range(n):
        spec = rng.choice(rng.choice(by_kind))
        right, wrong = png(render(spec, rng)), png(render(alter(spec, rng)[1], rng))
        uplift = rng.gauss(0.5, 1.0)
        rows.append(
            {
                "prompt_id": f"{i:016x}",
                "prompt": wording(spec, rng),
                "kind": spec.kind,
                "source": "parti" if i % 3 else "own",
                "seed": i % 4,
                "uplift": uplift,
                "scores": {
                    "pick_alpha": [18.0, 18.0 + 0.8 * uplift],
                    "pick_beta": [17.5, 17.5 + 0.3 * uplift],
                    "oracle": [0.0, 1.0] if uplift > 0 else [1.0, 0.0],
                },
                "before": wrong if uplift > 0 else right,
                "after": right if uplift > 0 else wrong,
            }
        )
    return rows


def run(n: int = 60) -> dict[str, Any]:
    rng = random.Random(1)
    arms = [
        _arm("standard", "Standard noise", 1, None, None, 0.58),
        _arm("hpi", "HPI", 1, 0.17, 0.11, 0.60, diversity=0.97, noise_norm=1.01, kl=0.021),
        _arm("pahi", "PAHI", 1, 0.71, 0.38, 0.69, diversity=0.88, noise_norm=1.04, kl=0.094, ms_per_image=6.3),
        _arm(
            "pahi_shuffled", "PAHI, shuffled prompts", 1, -0.04, -0.02, 0.57, diversity=0.9, noise_norm=1.04, kl=0.094
        ),
        _arm("best_of_4", "Best of 4", 4, 0.99, 0.31, 0.66, diversity=0.93, ms_per_image=25.0),
    ]
    by_kind = {
        kind: {
            arm["arm"]: {
                name: None
                if value["uplift"] is None and value["role"] != "judge"
                else (value["mean"] if value["role"] == "judge" else value["uplift"]["value"]) + rng.gauss(0, 0.06)
                for name, value in arm["rewards"].items()
            }
            for arm in arms
        }
        for kind in KINDS
    }
    metrics = []
    for phase, steps in (("hpi", 120), ("pahi", 600)):
        top = 0.2 if phase == "hpi" else 0.75
        for step in range(0, steps, 4):
            rise = top * (1 - math.exp(-step / (steps / 3)))
            for name, value in (
                ("loss", -rise + 0.06 + rng.gauss(0, 0.03)),
                ("reward/pick_alpha", rise + rng.gauss(0, 0.05)),
                ("kl", 0.13 * rise),
                ("sigma", 1 - 0.2 * rise),
                ("noise_norm", 1 + 0.06 * rise),
            ):
                metrics.append({"phase": phase, "step": step, "name": name, "value": value})
            if step % 40 == 0:
                for name, share in (("validation/pick_alpha", 0.9), ("validation/pick_beta", 0.5)):
                    row = {"phase": phase, "step": step, "name": name, "value": share * rise + rng.gauss(0, 0.02)}
                    metrics.append(row)
    return {
        "dataset": "tiny",
        "generated_by": "pahi 0.1.0",
        "preset_line": "pahi.tiny one-step generator, 64x64",
        "evaluate": {
            "prompts": 140,
            "scenes": 70,
            "feature_model": "pick_beta",
            "seeds": 4,
            "train_reward": "pick_alpha",
            "units": {"pick_alpha": 0.8, "pick_beta": 0.7},
            "arms": arms,
            "by_kind": by_kind,
            "flags": ["Diversity of PAHI is 12% below the standard noise's."],
        },
        "gallery": gallery(n),
        "metrics": metrics,
        "histograms": {
            name: {
                "standard": [rng.gauss(18, 1.0) for _ in range(560)],
                "pahi": [rng.gauss(18 + up, 0.9) for _ in range(560)],
            }
            for name, up in (("pick_alpha", 0.6), ("pick_beta", 0.3))
        },
        "funnel": [
            {"name": "read", "rows": 1632, "note": "two sources"},
            {"name": "prompts kept", "rows": 1410, "note": "180 near-duplicates, 42 too long"},
            {"name": "images drawn", "rows": 5640, "note": "4 seeds a prompt"},
            {"name": "images published", "rows": 4011, "note": "1,629 below the reward's threshold"},
        ],
        "lineage": [
            {"stage": s, "fingerprint": f"{i:x}f3a90c1be27", "hash": "sha256:" + f"{i:x}" * 64, "url": f"data/tiny/{s}"}
            for i, s in enumerate(("ingest", "cache", "train", "evaluate", "generate", "curate"), 1)
        ],
        "settings": {
            "name": "tiny",
            "ingest": {"sources": [{"path": "prompts.tsv", "name": "parti"}], "max_characters": 2000},
            "train": {"steps": 600, "beta": 0.4, "rewards": ["pick_alpha"], "resume": None, "amp": False},
        },
        "versions": {"pahi": "0.1.0", "torch": "2.13.0", "diffusers": "0.36.0"},
        "redraw": "pahi sample {prompt} --seed {seed} --compare pair.png",
    }  # fmt: skip
