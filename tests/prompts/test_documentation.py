"""Every setting of ingestion, cleaning step, filter and reason is in docs/ingestion.md."""

import re
from pathlib import Path

from pahi.prompts.filters import make_filters
from pahi.prompts.reasons import REASONS
from pahi.settings import CLEANING, Filters, Ingest, PromptClassifier, Source

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/ingestion.md").read_text()


def test_every_reason_is_documented_in_its_own_words():
    table = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE.split("## Reasons")[1].split("\n## ")[0], re.MULTILINE))
    assert table == REASONS


def test_every_reason_of_the_code_is_listed_and_every_listed_one_occurs():
    code = "".join(p.read_text() for p in (ROOT / "pahi/prompts").glob("*.py") if p.name != "reasons.py")
    assert all(f'"{reason}"' in code for reason in REASONS)
    assert set(re.findall(r'^    reason = "(\w+)"', code, re.MULTILINE)) <= set(REASONS)
    assert set(re.findall(r'return "(\w+)", ', code)) <= set(REASONS)


def test_every_step_filter_and_setting_is_documented():
    names = [*CLEANING, *Filters.model_fields, *(n for n in Source.model_fields if n not in ("name", "path"))]
    names += [n for n in Ingest.model_fields if n not in ("sources", "filters", "evaluation", "clean", "shard_rows")]
    names += list(PromptClassifier.model_fields)
    assert not [n for n in names if f"`{n}`" not in PAGE and f"{n}:" not in PAGE]


def test_every_filter_that_can_be_asked_for_has_a_documented_reason():
    asked = Filters(min_characters=2, max_repetition=0.5, languages=["en"], include=["a"], exclude=["b"])
    assert len(make_filters(asked)) == 5 and {f.reason for f in make_filters(asked)} <= set(REASONS)
