"""Ours and the published image-reward package on the same files: needs `make image-reward`, and takes minutes."""

import json
import subprocess
from pathlib import Path

import open_clip_recipe
import pytest
import test_hpsv2
import torch

from pahi.errors import UserError
from pahi.rewards import reference


def needs_package() -> Path:
    try:
        return reference.interpreter()
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_image_reward_scores_as_the_package_does(tmp_path: Path) -> None:
    needs_package()
    reference.stand_in(tmp_path)
    rows = reference.compare(tmp_path, tmp_path)
    assert len(rows) == len(reference.SHAPES) and len({round(row.package, 3) for row in rows}) == len(rows)
    for row in rows:
        assert abs(row.pil - row.package) <= 1e-4 and abs(row.tensor - row.package) <= 0.05, row


@pytest.mark.slow
def test_the_scores_of_open_clip_are_those_in_the_tests() -> None:
    done = subprocess.run([needs_package(), open_clip_recipe.__file__], capture_output=True, text=True, check=True)
    printed = torch.tensor(json.loads(done.stdout.strip().splitlines()[-1]))
    assert (printed - torch.tensor(test_hpsv2.GOLDEN)).abs().max() < 1e-5


def test_without_the_package_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAHI_IMAGE_REWARD_PYTHON", "/nowhere/python")
    with pytest.raises(UserError, match="make image-reward") as error:
        reference.interpreter()
    assert "\n" not in str(error.value)
