"""The published models' presets: pinned, described, and accepted by the family that they are for."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import EulerDiscreteScheduler, PNDMScheduler
from published import BETAS, BY_NAME, PROMPTS, Case, draw, noise, theirs, variant

from pahi import cli
from pahi.generators import load_generator
from pahi.generators.load import FAMILIES, family_of
from pahi.settings import load_settings, presets

# Each preset's family as a small random pipeline, with the scheduler that its base is published with.
SAME = ("sd-turbo", "sdxl-turbo", "lcm", "sana-sprint", "flux-schnell", "pixart-dmd")
CASES: dict[str, Case] = {name: BY_NAME[name] for name in SAME} | {
    "hyper-sd": variant(BY_NAME["hyper-sd"], "base", scheduler=PNDMScheduler(**BETAS, skip_prk_steps=True)),
    "hyper-sdxl": variant(
        BY_NAME["hyper-sdxl"], "base", scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading")
    ),
}
PUBLISHED = sorted(name for name in presets() if name != "tiny")
every = pytest.mark.parametrize("name", PUBLISHED)


def test_every_family_has_a_preset() -> None:
    assert set(PUBLISHED) == set(CASES)
    assert {family_of("", case.pipeline) for case in CASES.values()} == set(FAMILIES)


@every
def test_everything_is_pinned_and_described(name: str) -> None:
    data, settings = presets()[name], load_settings(name)
    assert settings.name == name and all(
        data["about"][key] for key in ("title", "size", "memory", "license", "measured")
    )
    generator = settings.generator
    assert generator.license != "unknown" and generator.checkpointing and generator.dtype == "bfloat16"
    for part in (generator, *generator.parts.values()):
        assert re.fullmatch("[0-9a-f]{40}", part.revision or ""), f"{part.id} is not pinned"
        assert part.id.count("/") == 1


@every
def test_its_settings_draw_what_the_card_tells_to_draw(published: Callable[[Case], Path], name: str) -> None:
    """Its family in small, with the preset's own settings; only where the weights lie, and size and dtype, differ."""
    case = CASES[name]
    own = load_settings(name).generator.model_dump(exclude={"id", "revision", "parts", "dtype", "size", "vae_dtype"})
    options: dict[str, Any] = own | {key: value for key, value in case.options.items() if key == "size"}
    generator = load_generator(str(published(case)), device="cpu", **options)
    z = noise(generator, len(PROMPTS))
    # diffusers draws with the scheduler that the card puts in place of the base's.
    there = BY_NAME[name]
    expected = theirs(there, published(there), PROMPTS, generator.latents_for_pipeline(z))
    assert float((draw(generator, PROMPTS, z).clamp(0, 1) - expected).abs().max()) < 2e-5


def test_the_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["presets"]) == 0
    shown = capsys.readouterr().out
    for name in PUBLISHED:
        line = next(line for line in shown.splitlines() if line.startswith(f"{name} "))
        about = presets()[name]["about"]
        assert about["size"] in line and about["license"] in line and "not measured" in line
