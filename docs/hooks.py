"""What mkdocs cannot know: the order of the pages, and that links out of docs/ lead into the repository."""

import re
from pathlib import Path
from typing import Any

GROUPS = {
    "Begin": ("start", "concepts", "library"),
    "Part by part": (
        "ingestion", "generators", "rewards", "predictors", "training", "evaluation",
        "generation", "curation", "extending",
    ),
    "Run it": ("operations", "scale"),
    "Look it up": ("settings", "commands", "data"),
    "Judge it": ("results", "tiny-world", "benchmarks", "comparison", "limits"),
}  # fmt: skip
OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./[^)]*\)")


def on_config(config: Any) -> Any:
    """Every page in docs/, so that a new one needs no entry anywhere."""
    names = {file.stem for file in Path(config.docs_dir).glob("*.md")}
    groups = GROUPS | {"More": sorted(names - {"index", *(name for group in GROUPS.values() for name in group)})}
    config.nav = [{"Home": "index.md"}]
    for title, group in groups.items():
        pages = [f"{name}.md" for name in group if name in names]
        config.nav += [{title: pages}] if pages else []
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Files of the repository are named, but not on the site."""
    return OUTSIDE.sub(r"\1", markdown)
