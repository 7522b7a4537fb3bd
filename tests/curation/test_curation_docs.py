"""docs/curation.md names every setting, reason and column; a new one that it lacks fails here."""

import re
from pathlib import Path

import pytest
import yaml
from curated_world import World

from pahi.artifacts import Output
from pahi.curation.preferences import pair_schema
from pahi.curation.reasons import REASONS
from pahi.settings import STRATA, Curate, Embedder, PictureClassifier, Preferences, load_settings

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "curation.md").read_text()
SETTINGS = TEXT.partition("## Settings")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", list(Curate.model_fields))
def test_every_setting_has_its_line(name: str) -> None:
    line = re.search(rf"^\| `{name}` \| (.+?) \| .+ \|$", SETTINGS, re.MULTILINE)
    assert line is not None
    default = Curate.model_fields[name].get_default(call_default_factory=True)
    if isinstance(default, int | float):
        assert line[1] == str(default).lower()


def test_no_line_is_of_a_setting_that_is_gone() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", SETTINGS, re.MULTILINE)) == set(Curate.model_fields)


@pytest.mark.parametrize("tree", [PictureClassifier, Embedder, Preferences])
def test_settings_below_them_are_named(tree: type) -> None:
    for name in tree.model_fields:
        assert f"`{name}`" in TEXT, name


def test_every_reason_is_explained_in_its_order_with_its_setting() -> None:
    found = re.findall(r"^\| `(\w+)` \| (.+?) \| (.*?) ?\|$", TEXT.partition("## Settings")[0], re.MULTILINE)
    assert [reason for reason, _, _ in found] == list(REASONS)
    for reason, _, setting in found:
        assert REASONS[reason].setting == (re.match(r"`(\w+)`", setting) or ["", ""])[1]
        assert not REASONS[reason].setting or REASONS[reason].setting in Curate.model_fields


def test_strata_and_files_are_named(curated: Output) -> None:
    for name in STRATA:
        assert f"`{name}`" in TEXT
    for name in curated.require().data["files"]:
        assert name.rpartition("/")[2] in TEXT


def test_every_column_is_named(world: World, curated: Output) -> None:
    names = curated.read("train").column_names + pair_schema(["NAME"]).names + ["embedding", "mu", "sigma"]
    for name in {re.sub(r"_(pick|held)(?=$|_)", "_NAME", n) for n in names}:
        assert f"`{name}`" in TEXT, name


def test_the_example_is_valid(tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.+?)```", TEXT, re.DOTALL)
    assert block is not None and yaml.safe_load(block[1])
    file = tmp_path / "mine.yaml"
    file.write_text(block[1])
    load_settings("sd-turbo", file=str(file))
