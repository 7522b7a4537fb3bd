"""The dataset's card: what the Hub and a reader need to know of it."""

from typing import Any

import yaml


def card(title: str, splits: dict[str, int], funnel: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """README.md with its YAML header. `facts` name generator, licence, hashes and rewards."""
    header = {
        "pretty_name": title,
        "license": "other",
        "license_name": facts["license"],
        "task_categories": ["text-to-image"],
        "tags": ["pahi", "synthetic"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"{split}/*.parquet"} for split, rows in splits.items() if rows
                ],
            }
        ],
    }
    lines = ["---", yaml.safe_dump(header, sort_keys=False).strip(), "---", "", f"# {title}", ""]
    lines += [
        "Pictures drawn in one step from learned noise (PAHI), chosen by human-preference rewards.",
        "",
        "| split | pictures |",
        "|---|---|",
        *(f"| {split} | {rows:,} |" for split, rows in splits.items()),
        "",
        "## How they were chosen",
        "",
        "| step | pictures left | what it drops |",
        "|---|---|---|",
        *(f"| {step['name']} | {step['rows']:,} | {step['note']} |" for step in funnel),
        "",
        "## Where they come from",
        "",
        f"- generator: `{facts['generator']}`, weights sha256 `{facts['generator_hash']}`",
        f"- licence of the generator: **{facts['license']}**",
        f"- predictor: weights sha256 `{facts['predictor_hash']}`",
        f"- rewards: {', '.join(facts['rewards'])}",
        "",
        "Each row holds its prompt, seed and the hashes above, so that it can be drawn again (`pahi verify`).",
        "",
        "## Limits",
        "",
        "The pictures are synthetic and carry the biases of the generator and of the reward models that chose them.",
        "",
    ]
    return "\n".join(lines)
