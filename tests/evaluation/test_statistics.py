"""Intervals and distances: against what is known of distributions whose answers can be written down."""

import numpy as np
import pytest

from pahi.evaluation.distance import mmd
from pahi.evaluation.statistics import bootstrap, feature_diversity, neighbour_correlation, pixel_diversity


def expected_kernel(shift: float, width: int, s: float) -> float:
    """E exp(-||x - y||^2 / (2 s^2)) of x ~ N(0, I), y ~ N(m, I), ||m|| = shift."""
    return (1 + 2 / s**2) ** (-width / 2) * np.exp(-(shift**2) / (2 * (s**2 + 2)))


@pytest.mark.parametrize("shift", [0.0, 0.7, 2.0])
def test_mmd_is_unbiased_on_gaussians(shift: float) -> None:
    width, s, rng = 3, 1.5, np.random.default_rng(0)
    truth = 2 * (expected_kernel(0, width, s) - expected_kernel(shift, width, s))
    move = np.array([shift, 0, 0])
    found = np.array(
        [
            mmd(rng.normal(size=(20, width)), rng.normal(size=(15, width)) + move, range(20), range(100, 115), s)[
                "value"
            ]
            for _ in range(400)
        ]
    )
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean() - truth) < 3.5 * error
    # With each point's likeness to itself it would be off by this much, which the test can tell.
    assert (1 - expected_kernel(0, width, s)) * (1 / 20 + 1 / 15) > 10 * error


def test_mmd_counts_no_pair_of_one_prompt() -> None:
    """Several pictures a prompt, all but equal, in two arms of one noise: each tie alone would show as a difference."""
    width, s, rng = 2, 1.0, np.random.default_rng(1)
    found = []
    for _ in range(300):
        centre = np.repeat(rng.normal(size=(12, width)), 4, axis=0)
        x, y = (centre + 0.1 * rng.normal(size=centre.shape) for _ in range(2))
        groups = np.repeat(np.arange(12), 4)
        found.append(mmd(x, y, groups, groups, s)["value"])
    # x and y have one distribution, so the truth is 0; pairs of one prompt within x would add 0.03 and more.
    assert abs(np.mean(found)) < 3.5 * np.std(found) / np.sqrt(len(found))
    assert np.std(found) / np.sqrt(len(found)) < 0.001


def test_the_jackknife_covers_as_often_as_it_says() -> None:
    width, s, rng, hits = 2, 1.5, np.random.default_rng(2), 0
    truth = 2 * (expected_kernel(0, width, s) - expected_kernel(1.5, width, s))
    for _ in range(200):
        x, y = rng.normal(size=(60, width)), rng.normal(size=(60, width)) + np.array([1.5, 0])
        got = mmd(x, y, range(60), range(60, 120), s)
        hits += got["low"] <= truth <= got["high"]
    assert 0.88 < hits / 200 <= 0.99


def test_mmd_of_too_little_is_not_a_number() -> None:
    x = np.ones((3, 2))
    assert np.isnan(mmd(x, x, [0, 0, 0], [0, 1, 2])["value"])


def test_scenes_are_resampled_not_their_wordings() -> None:
    rng = np.random.default_rng(3)
    scenes = np.repeat(np.arange(40), 5)
    values = rng.normal(size=40)[scenes]  # the five wordings of a scene say the same
    width = {}
    for name, groups in (("wordings", None), ("scenes", scenes)):
        got = bootstrap(values, 2000, groups)
        width[name] = got["high"] - got["low"]
        assert got["value"] == pytest.approx(values.mean())
    assert width["scenes"] == pytest.approx(np.sqrt(5) * width["wordings"], rel=0.15)
    alone = bootstrap(rng.normal(size=40), 4000)
    assert alone["high"] - alone["low"] == pytest.approx(2 * 1.96 / np.sqrt(40), rel=0.3)


def test_a_quotient_of_means_and_gaps() -> None:
    top, bottom = np.array([1.0, 2.0, np.nan, 3.0]), np.array([2.0, 4.0, 5.0, np.nan])
    got = bootstrap(top, 200, over=bottom)
    assert got == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert np.isnan(bootstrap(np.array([np.nan]), 200)["value"])
    assert bootstrap(np.arange(9.0), 50, list("aaabbbccc"))["value"] == 4.0


def test_diversity_is_a_mean_distance() -> None:
    images = np.zeros((3, 2, 2, 3), dtype=np.uint8)
    images[1] = 10
    assert pixel_diversity(images) == pytest.approx(20 / 3)  # 10, 0 and 10 apart
    assert feature_diversity(np.eye(4, dtype=np.float32)) == pytest.approx(np.sqrt(2))
    assert feature_diversity(np.ones((1, 4))) == 0


def test_structure_inside_noise_is_seen_and_white_noise_has_none() -> None:
    rng = np.random.default_rng(4)
    white = rng.normal(size=(400, 4, 16, 16)).astype(np.float32)
    assert abs(neighbour_correlation(white).mean()) < 4 * neighbour_correlation(white).std() / 20 < 0.01
    # A moving average of two: its neighbours share one of two numbers along the rows, none between them.
    smooth = (white[..., 1:] + white[..., :-1]) / np.sqrt(2)
    pairs_across, pairs_down = 16 * 14, 15 * 15
    expected = 0.5 * pairs_across / (pairs_across + pairs_down)
    assert neighbour_correlation(smooth).mean() == pytest.approx(expected, abs=0.01)
    board = np.indices((16, 16)).sum(0) % 2 * 2.0 - 1
    assert neighbour_correlation(board[None, None]) == pytest.approx([-1])
    # A mean of 0.5 beside noise of the length that makes 1 together.
    assert neighbour_correlation(0.5 + np.sqrt(0.75) * white).mean() == pytest.approx(0.25, abs=0.01)
    assert neighbour_correlation(white[:1, :, :1, :1]) == pytest.approx([0])
