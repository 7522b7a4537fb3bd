"""The published pipelines, each made once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from published import Case, save
from transformers import CLIPTokenizer


@pytest.fixture(scope="session")
def published(
    tokenizer: CLIPTokenizer, shake: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Case], Path]:
    """A function from a case to its pipeline's folder."""
    made: dict[str, Path] = {}

    def folder(case: Case) -> Path:
        if case.name not in made:
            made[case.name] = save(case, tokenizer, shake, tmp_path_factory.mktemp(case.name))
        return made[case.name]

    return folder
