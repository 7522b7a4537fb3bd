"""Which pictures go into the dataset, and why each of the others does not."""

from typing import Any

import numpy as np

from pahi.settings import Curate


def select(
    images: list[dict[str, Any]], scores: dict[str, dict[str, float | None]], settings: Curate
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of images (without their bytes) and their scores by reward -> kept, excluded with reasons, and the funnel.

    Control pictures measure, they are no part of the dataset. The best keep_fraction are by the mean of the rewards,
    each standardised over what is left.
    """
    kept, excluded, funnel = images, [], [{"name": "generated", "rows": len(images), "note": ""}]

    def drop(reason: str, note: str, why: dict[str, str]) -> None:
        nonlocal kept
        for row in kept:
            if row["image_id"] in why:
                detail = why[row["image_id"]] or None
                excluded.append(
                    {"image_id": row["image_id"], "prompt_id": row["prompt_id"], "reason": reason, "detail": detail}
                )
        kept = [row for row in kept if row["image_id"] not in why]
        funnel.append({"name": reason, "rows": len(kept), "note": note})

    drop(
        "failed",
        "pictures that could not be drawn",
        {r["image_id"]: r["reason"] or "" for r in kept if r["status"] != "ok"},
    )
    drop("control", "the control group of the standard Gaussian", _control(kept))
    first: dict[str, str] = {}
    twice = {}
    for row in kept:
        if first.setdefault(row["pixels_sha256"], row["image_id"]) != row["image_id"]:
            twice[row["image_id"]] = f"same pixels as {first[row['pixels_sha256']]}"
    drop("duplicate", "pictures with the very same pixels", twice)
    for reward, least in sorted(settings.min_score.items()):
        low = {}
        for row in kept:
            score = scores[row["image_id"]].get(reward)
            if score is None or score < least:
                low[row["image_id"]] = f"{reward} {'missing' if score is None else f'{score:.4g}'} under {least:g}"
        drop("min_score", f"{reward} under {least:g}", low)
    if kept and settings.keep_fraction < 1:
        names = sorted({name for row in kept for name in scores[row["image_id"]]})
        values = np.array([[_number(scores[row["image_id"]].get(n)) for n in names] for row in kept], dtype=float)
        values = (values - np.nanmean(values, axis=0)) / np.maximum(np.nanstd(values, axis=0), 1e-9)
        mean = np.where(np.isfinite(values).all(axis=1), values.mean(axis=1), -np.inf)
        # Ties are broken by id, so that the choice never depends on the order of the shards.
        order = sorted(range(len(kept)), key=lambda i: (-mean[i], kept[i]["image_id"]))
        count = max(1, round(settings.keep_fraction * len(kept)))
        low = {kept[i]["image_id"]: f"rank {rank + 1} of {len(kept)}" for rank, i in enumerate(order) if rank >= count}
        drop("keep_fraction", f"not among the best {settings.keep_fraction:.0%} by the mean reward", low)
    return kept, excluded, funnel


def _control(rows: list[dict[str, Any]]) -> dict[str, str]:
    # Where the whole dataset is drawn from the standard Gaussian, there is no control group.
    if all(row["arm"] == "standard" for row in rows):
        return {}
    return {row["image_id"]: "" for row in rows if row["arm"] == "standard"}


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
