"""What pictures show: broken and blank ones, and near-duplicates against an exhaustive comparison."""

import io

import made_up
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pahi.curation import duplicates
from pahi.curation.pictures import COLOUR_TOLERANCE, look, perceptual_hash, same_colours, thumbnail


def shape(x: int, colour: str, back: str = "white", size: int = 64) -> Image.Image:
    image = Image.new("RGB", (size, size), back)
    ImageDraw.Draw(image).ellipse((x, 20, x + 18, 38), fill=colour)
    return image


def again(image: Image.Image, kind: str, **options: object) -> Image.Image:
    sink = io.BytesIO()
    image.save(sink, format=kind, **options)
    return Image.open(io.BytesIO(sink.getvalue())).convert("RGB")


def near(a: Image.Image, b: Image.Image, bits: int = 4) -> bool:
    found = duplicates.by_hash([perceptual_hash(x) for x in (a, b)], [thumbnail(x) for x in (a, b)], bits)
    return bool(found)


PICTURES = [Image.fromarray(made_up.picture(i, 64)) for i in range(20)] + [shape(10, "red"), shape(30, "blue", "grey")]


@pytest.mark.parametrize("i", range(len(PICTURES)))
def test_the_same_picture_encoded_otherwise_is_a_near_duplicate(i: int) -> None:
    image = PICTURES[i]
    assert near(image, again(image, "jpeg", quality=95), bits=8)
    assert near(image, again(image, "webp", quality=85), bits=8)
    assert near(image, image.resize((128, 128), Image.Resampling.BICUBIC))
    assert near(image, Image.fromarray((np.asarray(image) * 0.97 + 3).astype(np.uint8)))


def test_other_pictures_are_not() -> None:
    for i, a in enumerate(PICTURES):
        for b in PICTURES[i + 1 :]:
            assert not near(a, b)


def test_colour_and_place_tell_pictures_apart() -> None:
    red = shape(10, "red")
    # Of one brightness: the hash alone would take them for one.
    green = shape(10, (0, 130, 0))
    assert (perceptual_hash(red) ^ perceptual_hash(green)).bit_count() <= 3
    assert not near(red, green)
    assert not near(red, shape(30, "red"))


def test_a_picture_that_cannot_be_decoded_is_broken() -> None:
    data = made_up.png(made_up.picture(1))
    assert look(data, 48, 48, 0.01).reason is None
    for torn in (b"", None, b"not a picture", data[: len(data) // 2]):
        assert look(torn, 48, 48, 0.01).reason == "broken"
    seen = look(data, 64, 48, 0.01)
    assert seen.reason == "broken" and seen.detail == "48x48, its row says 64x48"


def test_a_picture_that_shows_nothing_is_blank() -> None:
    for colour in ("black", "white", "#808080", "red"):
        data = made_up.png(np.asarray(Image.new("RGB", (48, 48), colour)))
        assert look(data, 48, 48, 0.01).reason == "blank"
        assert look(data, 48, 48, 0.0).reason is None
    noise = np.random.default_rng(0).integers(126, 130, (48, 48, 3), dtype=np.uint8)
    assert look(made_up.png(noise), 48, 48, 0.01).reason == "blank"
    small = np.asarray(Image.new("RGB", (64, 64), "white")).copy()
    small[:4, :4] = 0
    assert look(made_up.png(small), 64, 64, 0.01).reason is None


def slowly(hashes: list[int], thumbs: list[bytes], most: int) -> set[int]:
    kept: list[int] = []
    for j in range(len(hashes)):
        if not any((hashes[i] ^ hashes[j]).bit_count() <= most and same_colours(thumbs[i], thumbs[j]) for i in kept):
            kept.append(j)
    return set(range(len(hashes))) - set(kept)


@settings(max_examples=60)
@given(st.integers(0, 8), st.integers(0, 2**32), st.integers(2, 120))
def test_bands_find_what_comparing_all_finds(most: int, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    centres = [int(x) for x in rng.integers(0, 2**63, 8)]
    hashes, thumbs = [], []
    for _ in range(count):
        value = centres[rng.integers(8)]
        for bit in rng.choice(64, rng.integers(0, 10), replace=False):
            value ^= 1 << int(bit)
        hashes.append(value)
        thumbs.append(bytes([int(rng.integers(3)) * (COLOUR_TOLERANCE // 2 + 1)] * 192))
    found = duplicates.by_hash(hashes, thumbs, most)
    assert set(found) == slowly(hashes, thumbs, most)
    for j, (i, bits) in found.items():
        assert i < j and i not in found and (hashes[i] ^ hashes[j]).bit_count() == bits


@settings(max_examples=20)
@given(st.floats(0.5, 0.999), st.integers(0, 2**32))
def test_embeddings_are_compared_with_every_better_one(most: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(size=(12, 6))[rng.integers(12, size=1300)] + 0.2 * rng.normal(size=(1300, 6))).astype(
        "float32"
    )
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    kept: list[int] = []
    for j in range(len(unit)):
        if not kept or (unit[kept] @ unit[j]).max() <= most:
            kept.append(j)
    found = duplicates.by_embedding(vectors, most)
    # Sums of another order differ in the last bits: a picture on the very edge may fall to either side.
    assert len(set(found) ^ (set(range(len(unit))) - set(kept))) <= 2
    for j, (i, cosine) in found.items():
        assert i < j and i not in found and cosine == pytest.approx(float(unit[i] @ unit[j]), abs=1e-5)
