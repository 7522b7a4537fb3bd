"""`pahi sample`: the pictures are those of a plain diffusers pipeline with the same noise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pahi import cli
from pahi.predictors import GaussianPredictor, NoisePredictor
from pahi.sample import GAP
from pahi.settings import load_settings

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def pipe() -> Any:
    import torch
    from diffusers import StableDiffusionPipeline

    from pahi.models import resolve

    folder = resolve(load_settings("tiny").generator.id)
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def predictor(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A predictor that visibly moves the noise."""
    from pahi.generators import from_pipeline

    generator = from_pipeline(pipe)
    made = NoisePredictor.create("hpi", generator.latent_shape, generator.pooled_width)
    made.mu.data[0, :4] = 1.5
    folder = tmp_path_factory.mktemp("predictor")
    made._save_pretrained(folder)
    return folder


def theirs(pipe: Any, predictor: NoisePredictor, seed: int) -> np.ndarray:
    latents = predictor.sample(PROMPT, pipe=pipe, seed=seed)
    return np.asarray(pipe(PROMPT, latents=latents, num_inference_steps=1, guidance_scale=0.0).images[0]).astype(int)


def test_two_pictures_of_the_same_noise(pipe: Any, predictor: Path, tmp_path: Path, capsys: Any) -> None:
    both, one = tmp_path / "both.png", tmp_path / "one.webp"
    typed = ["sample", f"  {PROMPT} ", "--predictor", str(predictor), "--seed", "3", "--compare", str(both), "--json"]
    assert cli.call(typed) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["prompt"], said["seed"], said["predictor"], said["files"]) == (PROMPT, 3, "hpi", [str(both)])
    learned = NoisePredictor.from_pretrained(str(predictor))
    standard = GaussianPredictor("standard", learned.latent_shape, learned.pooled_width)
    pixels = np.asarray(Image.open(both)).astype(int)
    width = (pixels.shape[1] - GAP) // 2
    before, after = pixels[:, :width], pixels[:, width + GAP :]
    # One level of rounding between two implementations; the two pictures differ by far more.
    assert abs(before - theirs(pipe, standard, 3)).max() <= 1
    assert abs(after - theirs(pipe, learned, 3)).max() <= 1
    assert abs(before - after).mean() > 1
    assert cli.call([*typed[:-3], "--out", str(one)]) == 0
    assert Image.open(one).size == (width, width)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--predictor", "missing"], "'missing'"),
        (["--out", "x.gif"], "x.gif"),
        (["--compare", "no/folder/x.png"], "no folder"),
        ([], "--predictor"),
    ],
)
def test_mistakes_are_one_line(more: list[str], said: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.call(["sample", PROMPT, *more]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert list(tmp_path.iterdir()) == []


def test_an_empty_prompt_is_no_prompt(capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.call(["sample", "  "]) == 2
    assert "the prompt is empty" in capsys.readouterr().err
