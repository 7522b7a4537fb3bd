"""What mkdocs cannot know: the order of the pages, and that links out of docs/ lead into the repository."""

import re
from pathlib import Path
from typing import Any

FIRST = ("index", "start", "concepts", "library", "settings", "commands", "data")
LAST = ("comparison", "limits", "benchmarks")
OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./[^)]*\)")


def on_config(config: Any) -> Any:
    """Every page in docs/, so that a new one needs no entry anywhere."""
    names = {file.stem for file in Path(config.docs_dir).glob("*.md")}
    between = sorted(names - {*FIRST, *LAST})
    config.nav = [f"{name}.md" for name in (*FIRST, *between, *LAST) if name in names]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Files of the repository are named, but not on the site."""
    return OUTSIDE.sub(r"\1", markdown)
