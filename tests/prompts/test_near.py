import random
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pahi.prompts.near import FOUND, SHINGLE, SLOTS, Signatures, band_rows, encoded, normal, shingles

WORDS = [
    *("red", "blue", "fox", "owl", "moon", "river", "castle", "knight", "oil", "painting", "neon", "city", "rain"),
    *("dragon", "forest", "glass", "robot", "sea", "ship", "tower", "bridge", "lamp"),
]


@cache
def sets(text):
    data = normal(text).encode().ljust(SHINGLE)
    return {data[i : i + SHINGLE] for i in range(len(data) - SHINGLE + 1)}


def exact(a, b):
    return len(sets(a) & sets(b)) / len(sets(a) | sets(b))


@given(st.lists(st.one_of(st.text(max_size=40), st.sampled_from(["", "?", "日本の家", "a"])), min_size=2, max_size=8))
@settings(max_examples=60)
def test_similarity_is_that_of_the_sets(texts):
    tokens, counts = shingles([encoded(text) for text in texts])
    assert len(tokens) == counts.sum()
    first, second = np.triu_indices(len(texts), 1)
    assert Signatures(texts, 0.7).similarity(first, second) == pytest.approx(
        [exact(texts[a], texts[b]) for a, b in zip(first, second, strict=True)]
    )


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.95])
def test_bands_find_what_lies_at_the_threshold(threshold):
    r = band_rows(threshold)
    assert 1 - (1 - threshold**r) ** (SLOTS // r) >= FOUND


def corpus(seed, count=150, copies=3):
    """Texts in clusters: a base, and copies of it with a word or two changed."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        base = [rng.choice(WORDS) for _ in range(rng.randint(8, 20))]
        for _ in range(1 + rng.randrange(copies)):
            edited = list(base)
            edited[rng.randrange(len(edited))] = rng.choice(WORDS)
            texts.append(" ".join(edited))
    return list(dict.fromkeys(texts))


@pytest.mark.parametrize("threshold", [0.6, 0.7, 0.85])
def test_all_pairs_that_brute_force_finds_and_no_others(threshold):
    texts = corpus(1)
    true = {(a, b) for b in range(len(texts)) for a in range(b) if exact(texts[a], texts[b]) >= threshold}
    first, second, similarity = Signatures(texts, threshold).pairs(np.arange(len(texts)))
    found = set(zip(first.tolist(), second.tolist(), strict=True))
    assert len(true) > 20 and found <= true and len(found) >= 0.98 * len(true)
    assert similarity.min() >= threshold


def test_a_large_bucket_is_connected_without_all_its_pairs():
    texts = [f"a very long prompt about a castle by the sea at night, number {i}" for i in range(800)]
    first, second, _ = Signatures(texts, 0.7).pairs(np.arange(len(texts)))
    assert len(first) < 80_000, "320,000 would be all of them"
    reached = {0}
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        if a in reached:
            reached.add(b)
    assert len(reached) == 800


def test_case_and_punctuation_do_not_count():
    texts = ["A Red Fox, in the snow!", "a red fox in the snow"]
    assert exact(*texts) == 1.0
    assert len(Signatures(texts, 1.0).pairs(np.arange(2))[0]) == 1


def test_frozen_texts_are_not_compared_with_each_other():
    texts = ["a red fox in the snow", "a red fox in the snow!", "a red fox in the snow?"]
    first, second, _ = Signatures(texts, 0.7).pairs(np.arange(3), frozen=2)
    assert set(second.tolist()) == {2} and set(first.tolist()) == {0, 1}


def test_nearest_of_others():
    texts = [
        "a red fox in the white snow",
        "an owl",
        "a red fox in the white snow!",
        "a red fox in the deep white snow",
    ]
    found = Signatures(texts, 0.6).first_near(np.array([0, 1]), np.array([2, 3]))
    assert found[2] == (0, 1.0) and found[3][0] == 0 and 0.6 <= found[3][1] < 1
    assert Signatures(texts, 0.6).first_near(np.array([1]), np.array([2, 3])) == {}
