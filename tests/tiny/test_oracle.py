"""The oracle says yes to right scenes and no to spoiled ones, and knows which prompts are not its own."""

import csv
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pahi.tiny.oracle import judge, judge_batch, parse
from pahi.tiny.scenes import BACKGROUNDS, COLORS, SHAPES, Spec, all_specs, corrupt, draw, render, wording
from pahi.tiny.train import KIND_WEIGHTS

PER_KIND = 300


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image) / 255.0


def right(image: Image.Image, spec: Spec) -> bool:
    return all(judge(array(image), spec).values())


@pytest.mark.parametrize("kind", list(KIND_WEIGHTS))
def test_right_scenes_pass_and_spoiled_ones_do_not(kind: str) -> None:
    rng = random.Random(f"oracle {kind}")
    specs = rng.choices([spec for spec in all_specs() if spec.kind == kind], k=PER_KIND)
    accepted = sum(right(render(spec, rng), spec) for spec in specs)
    rejected = sum(not right(render(corrupt(spec, rng), rng), spec) for spec in specs)
    assert accepted >= 0.99 * PER_KIND
    assert rejected >= 0.99 * PER_KIND


@pytest.mark.parametrize("attribute", ["shape", "color", "size", "background", "place"])
def test_each_attribute_alone_is_noticed(attribute: str) -> None:
    """And named: the verdict on the attribute that was changed is the one that falls."""
    rng = random.Random(f"oracle {attribute}")
    specs = [spec for spec in all_specs() if getattr(spec, attribute) is not None]
    noticed = 0
    for spec in rng.choices(specs, k=100):
        other = corrupt(spec, rng)
        while getattr(other, attribute) == getattr(spec, attribute):
            other = corrupt(spec, rng)
        verdict = judge(array(render(other, rng)), spec)
        noticed += not verdict["position" if attribute == "place" else attribute]
    assert noticed >= 99


def test_what_is_no_scene_is_never_right() -> None:
    rng, noise = random.Random(0), np.random.default_rng(0)
    specs = rng.sample(all_specs(), 60)
    for spec in specs:
        picture, other = render(spec, rng), render(corrupt(spec, rng), rng)
        blank = np.broadcast_to(np.asarray(picture)[0, 0] / 255.0, (64, 64, 3))
        assert not all(judge(blank, spec).values())
        assert not all(judge(noise.random((64, 64, 3)), spec).values())
        # A blur leaves a soft square or circle what it is, now and then.
        low = picture.resize((4, 4), Image.Resampling.BILINEAR).resize((64, 64), Image.Resampling.BICUBIC)
        assert not right(low, spec) or spec.shape in ("circle", "square")
        two = Image.new("RGB", (64, 64))
        two.paste(picture.resize((32, 64)), (0, 0))
        two.paste(other.resize((32, 64)), (32, 0))
        assert not right(two, spec)


def test_a_second_shape_is_one_too_many() -> None:
    for name, color in COLORS.items():
        image = draw("circle", 20, 20, 15, color, BACKGROUNDS["white"])
        assert right(image, Spec("circle", name))
        image.paste(draw("square", 32, 32, 16, color, BACKGROUNDS["white"]).crop((20, 20, 38, 38)), (44, 44))
        assert not right(image, Spec("circle", name))


def test_small_damage_is_forgiven() -> None:
    """Within what a generator's decoder does to a right picture."""
    rng, noise = random.Random(1), np.random.default_rng(1)
    specs = rng.sample(all_specs(), 100)
    kept = 0
    for spec in specs:
        pixels = array(render(spec, rng)) + noise.normal(0, 0.02, (64, 64, 3))
        kept += all(judge(pixels.clip(0, 1), spec).values())
    assert kept >= 97


def test_a_batch_is_its_pictures() -> None:
    rng = random.Random(2)
    specs = rng.sample(all_specs(), 6)
    images = [array(render(spec, rng)).transpose(2, 0, 1) for spec in specs]
    prompts = [wording(spec, rng) for spec in specs]
    wrong = [wording(corrupt(spec, rng), rng) for spec in specs]
    got = judge_batch(np.stack([*images, *images, images[0]]), [*prompts, *wrong, "a cat on the moon"])
    assert got[:6].tolist() == [1.0] * 6 and got[6:12].tolist() == [0.0] * 6 and np.isnan(got[12])


# ------------------------------------------------------------------------------------------------------------ parsing


@pytest.mark.parametrize(
    "text",
    [
        "",
        "circle",
        "a",
        "a red",
        "red circle",
        "a red circle and a blue square",
        "two red circles",
        "a circle red",
        "a red red circle",
        "a small large circle",
        "a maroon circle",
        "a red circle on the left on the left",
        "a red circle on the left on the right",
        "a red circle on a white background on a black background",
        "a red circle on a purple background",
        "a red circle on the moon",
        "a photo of red circle",
        "a photo of a photo of a red circle",
        "a red circle, highly detailed",
        "a red circle\non the left",
        "a red circleon the left",
    ],
)
def test_other_texts_are_none_of_its_business(text: str) -> None:
    assert parse(text) is None


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_not(text: str) -> None:
    spec = parse(text)
    assert spec is None or spec.shape in SHAPES


@given(
    st.sampled_from(all_specs()), st.randoms(use_true_random=False), st.sampled_from(["cat", "wooden", "two", "not"])
)
def test_one_foreign_word_is_enough(spec: Spec, rng: random.Random, word: str) -> None:
    words = wording(spec, rng).split()
    words.insert(rng.randrange(len(words) + 1), word)
    assert parse(" ".join(words)) is None


def test_attributes_may_be_left_out() -> None:
    assert parse("a circle") == Spec("circle")
    assert parse("an image of a huge violet cross against a grey background near the top") == Spec(
        "cross", "purple", "large", "gray", "top"
    )
    assert {parse(f"a{'n' if c == 'orange' else ''} {c} star") for c in COLORS} == {Spec("star", c) for c in COLORS}


def test_published_prompts_are_not_of_this_world(shared: Path) -> None:
    path = shared / "prompts" / "partiprompts" / "PartiPrompts.tsv"
    if not path.exists():
        pytest.skip("no PartiPrompts in shared/prompts")
    with path.open(newline="", encoding="utf-8") as file:
        prompts = [row["Prompt"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    assert len(prompts) > 1600
    assert sum(parse(prompt) is not None for prompt in prompts) <= 3
