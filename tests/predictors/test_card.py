"""A predictor's card: valid for the Hub, true to the predictor, and with it wherever it goes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import hub
from huggingface_hub import ModelCard, ModelCardData

from pahi import NoisePredictor, models
from pahi.predictors.base import kinds
from pahi.predictors.card import Facts, card

TINY = "pkg:pahi.tiny/weights/generator"
FACTS = Facts(
    license="Apache-2.0",
    revision="0123abc",
    settings={"beta": 0.4, "steps": 500},
    rewards=[("pick_alpha", "trains", "aa11"), ("pick_beta", "held_out", "bb22")],
    figures={"pick_alpha": 0.5, "pick_beta": -0.25},
    kl=0.012,
    train_prompts=400,
    validation_prompts=60,
    best_step=550,
)


def predictor(kind: str = "pahi", generator: str = "stabilityai/sd-turbo") -> NoisePredictor:
    p = NoisePredictor.create(kind, (4, 16, 16), 96, 16, generator, "cc33")
    p.card = card(p.config, sum(q.numel() for q in p.parameters()), FACTS)
    return p


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("facts", [None, FACTS])
def test_its_header_is_one_that_the_hub_reads(kind: str, facts: Facts | None) -> None:
    p = NoisePredictor.create(kind, (4, 16, 16), 96, 16, "stabilityai/sd-turbo", "cc33")
    got = ModelCard(card(p.config, 1234, facts))
    assert isinstance(got.data, ModelCardData)
    assert got.data.base_model == "stabilityai/sd-turbo" and got.data.library_name == "pahi"
    assert got.data.license == ("other" if facts else None)
    assert "1,234 parameters" in got.text and "4x16x16" in got.text and "`cc33`" in got.text
    assert f"# {kinds()[kind].name} noise for" in got.text and kinds()[kind].what in got.text
    assert "None" not in got.text and "  \n" not in got.text


def test_it_says_what_was_measured_and_with_which_settings() -> None:
    text = predictor().card
    assert "| pick_alpha | trains | +0.500 |" in text and "| pick_beta | held out | -0.250 |" in text
    assert "Step 550, on 60 validation prompts" in text and "400 prompts" in text and "0.0120 nats" in text
    assert "    beta: 0.4" in text and "`stabilityai/sd-turbo` at `0123abc`" in text and "`bb22`" in text


@pytest.mark.parametrize("generator", [TINY, "/home/someone/model", "./a/b", ""])
def test_what_is_no_address_on_the_hub_is_not_given_as_one(generator: str) -> None:
    assert ModelCard(predictor(generator=generator).card).data.to_dict().get("base_model") is None


def test_it_stays_with_the_predictor(tmp_path: Path) -> None:
    p = predictor()
    p.save_pretrained(tmp_path / "a")
    back = NoisePredictor.from_pretrained(str(tmp_path / "a"))
    back.save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / "README.md").read_text() == (tmp_path / "a" / "README.md").read_text() == p.card


def test_its_lines_of_code_run_as_they_are(tmp_path: Path) -> None:
    p = predictor(generator=TINY)
    p.save_pretrained(tmp_path)
    found = re.search(r"```python\n(.+?)```", (tmp_path / "README.md").read_text(), re.S)
    assert found is not None
    code = found[1].replace('"THIS"', repr(str(tmp_path))).replace('"GENERATOR"', repr(str(models.resolve(TINY))))
    names: dict[str, object] = {}
    exec(code, names)
    assert names["image"].size == (64, 64)  # type: ignore[attr-defined]


PUSH = """
import sys
from pahi import NoisePredictor
predictor = NoisePredictor.from_pretrained(sys.argv[1])
predictor.push_to_hub("someone/noise", token="hf_test")
back = NoisePredictor.from_pretrained("someone/noise")
back.save_pretrained(sys.argv[2])
"""


def test_pushed_and_fetched_it_is_the_same(tmp_path: Path) -> None:
    p = predictor()
    with torch.no_grad():
        for q in p.parameters():
            q.normal_()
    p.save_pretrained(tmp_path / "own")
    own = {f.name: f.read_bytes() for f in (tmp_path / "own").iterdir()}
    repositories: dict = {}
    with hub(repositories) as url:
        environment = {
            **os.environ,
            "HF_ENDPOINT": url,
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        command = [sys.executable, "-c", PUSH, str(tmp_path / "own"), str(tmp_path / "back")]
        subprocess.run(command, env=environment, check=True, timeout=300)
    repository = repositories["someone/noise"]
    pushed = repository.commits[repository.branches["main"]]
    assert pushed == own and set(own) == {"README.md", "config.json", "predictor.safetensors"}
    assert {f.name: f.read_bytes() for f in (tmp_path / "back").iterdir()} == own
