"""The dataset's card: what the Hub and a reader need to know of it."""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from pahi.curation.reasons import REASONS
from pahi.errors import UserError
from pahi.tables import markdown

# Licences that the Hub knows by these names; any other is `other`, with its own name.
HUB_LICENSES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "unlicense"),
    *("openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m", "bigscience-bloom-rail-1.0"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
    *("odc-by", "odbl", "pddl"),
)


@dataclass
class Facts:
    """What a card is made of. `lineage` are rows of what, name, revision and sha256."""

    title: str
    license: str
    generator: str
    splits: dict[str, int]
    pairs: dict[str, int]
    funnel: list[dict[str, Any]]
    reasons: dict[str, int]
    scores: dict[str, dict[str, float]]  # of each reward: mean of the candidates, of what is kept
    columns: dict[str, str]
    lineage: list[dict[str, str]]
    settings: list[str]  # what of curate differs from its defaults, as key: value
    notes: list[str] = field(default_factory=list)  # known limits of this dataset alone


def require_license(license: str) -> None:
    """Raises UserError where nobody said what the generator's licence is."""
    if license.strip().lower() in ("", "unknown"):
        raise UserError(
            "the dataset's card must name the generator's licence: set generator.license, such as apache-2.0 or "
            "stabilityai-community"
        )


def card(facts: Facts) -> str:
    """README.md of the dataset, with its YAML header."""
    configs: list[dict[str, Any]] = [_config("default", "", facts.splits) | {"default": True}]
    if any(facts.pairs.values()):
        configs.append(_config("preferences", "preferences/", facts.pairs))
    lines = _head(facts, facts.title, configs, ["pahi", "synthetic"], sum(facts.splits.values()))
    lines += [
        "Pictures drawn in one step from learned noise (PAHI), chosen by human-preference rewards.",
        "",
        "![Some of the pictures, which nobody picked](samples.png)",
        "",
        *_table(["split", "pictures"], [[s, f"{n:,}"] for s, n in facts.splits.items()]),
        "## How they were chosen",
        "",
        *_table(
            ["step", "pictures left", "what it drops"],
            [[s["name"], f"{s['rows']:,}", s["note"]] for s in facts.funnel],
        ),
        "Every picture that is not here has its reason in `rejects`:",
        "",
        *_table(
            ["reason", "pictures", "such a picture"],
            [[r, f"{facts.reasons.get(r, 0):,}", reason.meaning] for r, reason in REASONS.items()],
        ),
        *_scores(facts),
        *_origin(facts),
    ]
    if any(facts.pairs.values()):
        lines += [
            "## Preference pairs",
            "",
            f"`preferences` holds {sum(facts.pairs.values()):,} pairs of pictures of one prompt, in the layout that "
            "Diffusion-DPO trainers read. The rewards chose the better one, no person did.",
            "",
        ]
    return "\n".join([*lines, *_columns(facts), *_limits(facts)])


def preferences_card(facts: Facts, columns: dict[str, str]) -> str:
    """README.md of the preference set alone, for a repository of its own."""
    title = f"{facts.title}: preference pairs"
    configs = [_config("default", "", facts.pairs)]
    lines = _head(facts, title, configs, ["pahi", "synthetic", "preference", "dpo"], sum(facts.pairs.values()))
    lines += [
        "Pairs of pictures of one prompt, drawn in one step by the same generator. `label_0` is 1 where `jpg_0` is the "
        "better one by the rewards below; no person looked at them. The layout is that of pickapic_v2.",
        "",
        *_table(["split", "pairs"], [[s, f"{n:,}"] for s, n in facts.pairs.items()]),
        *_origin(facts),
    ]
    facts_ = Facts(**{**facts.__dict__, "columns": columns})
    return "\n".join([*lines, *_columns(facts_), *_limits(facts_)])


def _head(facts: Facts, title: str, configs: list[Any], tags: list[str], rows: int) -> list[str]:
    known = facts.license.lower() in HUB_LICENSES
    header: dict[str, Any] = {"pretty_name": title, "license": facts.license.lower() if known else "other"}
    if not known:
        header["license_name"] = re.sub(r"[^a-z0-9.-]+", "-", facts.license.lower()).strip("-.") or "other"
        if re.fullmatch(r"[\w.-]+/[\w.-]+", facts.generator):
            header["license_link"] = f"https://huggingface.co/{facts.generator}"
    header |= {
        "task_categories": ["text-to-image"],
        "annotations_creators": ["machine-generated"],
        "size_categories": [_size(rows)],
        "tags": tags,
        "configs": [c for c in configs if c["data_files"]],
    }
    return ["---", yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(), "---", "", f"# {title}", ""]


def _config(name: str, prefix: str, splits: dict[str, int]) -> dict[str, Any]:
    files = [{"split": s, "path": f"{prefix}{s}/*.parquet"} for s, n in splits.items() if n]
    return {"config_name": name, "data_files": files}


def _size(rows: int) -> str:
    bounds = [(1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M")]
    return next((name for bound, name in bounds if rows < bound), "10M<n<100M")


def _scores(facts: Facts) -> list[str]:
    if not facts.scores:
        return []
    return [
        "## Scores",
        "",
        "![Histograms of each reward: all candidates, and what was kept](histograms.png)",
        "",
        *_table(
            ["reward", "mean of all candidates", "mean of what was kept"],
            [[r, f"{s['candidates']:.4g}", f"{s['kept']:.4g}"] for r, s in facts.scores.items()],
        ),
    ]


def _origin(facts: Facts) -> list[str]:
    return [
        "## Where they come from",
        "",
        f"Licence of the generator (`{facts.generator}`): **{facts.license}**. It is the licence of the pictures, too, "
        "as far as it says so: read it before you use them.",
        "",
        *_table(
            ["what", "name", "revision", "sha256"],
            [
                [x["what"], f"`{x['name']}`" if x["name"] else "", x["revision"], f"`{x['sha256']}`"]
                for x in facts.lineage
            ],
        ),
        "Each row holds its prompt, its seed and these hashes, so that it can be drawn again (`pahi verify`). "
        "`recipe.yaml` holds all settings; what of the selection differs from the defaults:",
        "",
        "```yaml",
        *(facts.settings or ["# nothing"]),
        "```",
        "",
    ]


def _columns(facts: Facts) -> list[str]:
    return ["## Columns", "", *_table(["column", "meaning"], [[f"`{c}`", m] for c, m in facts.columns.items()])]


def _limits(facts: Facts) -> list[str]:
    limits = [
        "The pictures are synthetic. They carry the biases of the generator and of its training data.",
        "The rewards that chose them are models: they favour what they were trained to favour, and a picture that "
        "pleases all of them can still show something else than its prompt asks.",
        "Near-duplicates are found by how pictures look as a whole: what differs in a small detail can count as one.",
        *facts.notes,
    ]
    return ["## Known limits", "", *(f"- {limit}" for limit in limits), ""]


def _table(names: list[str], rows: list[list[str]]) -> list[str]:
    return [*markdown([dict(zip(names, row, strict=True)) for row in rows]).splitlines(), ""]
