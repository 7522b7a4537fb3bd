"""Noise is a function of (prompt_id, seed), and standard normal."""

import inspect
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from pahi.generators import standard_noise

SHAPE = (4, 4, 4)
ROWS = st.lists(st.tuples(st.text(max_size=6), st.integers(-(2**63), 2**63)), min_size=1, max_size=8)


@hypothesis_settings(max_examples=50)
@given(ROWS, st.randoms(use_true_random=False))
def test_a_rows_noise_does_not_know_its_batch(rows: list[tuple[str, int]], rng: random.Random) -> None:
    alone = {row: standard_noise([row[0]], [row[1]], SHAPE)[0] for row in rows}
    shuffled = [rng.choice(rows) for _ in range(6)]
    torch.manual_seed(rng.getrandbits(30))
    together = standard_noise([p for p, _ in shuffled], [s for _, s in shuffled], SHAPE)
    assert together.shape == (6, *SHAPE) and together.dtype == torch.float32 and together.device.type == "cpu"
    for row, eps in zip(shuffled, together, strict=True):
        assert torch.equal(eps, alone[row])
    assert len({eps.numpy().tobytes() for eps in alone.values()}) == len(set(rows))


def test_global_randomness_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = standard_noise(["a"], [0], SHAPE)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(standard_noise(["a"], [0], SHAPE), one)


def test_another_process_draws_the_same() -> None:
    # The file alone, since its package imports diffusers, which takes seconds.
    code = (
        "import runpy, sys; n = runpy.run_path(sys.argv[1])['standard_noise'];"
        "print(n(['a', 'b'], [3, 4], (4, 4, 4)).numpy().tobytes().hex())"
    )
    file = inspect.getsourcefile(standard_noise)
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == standard_noise(["a", "b"], [3, 4], SHAPE).numpy().tobytes().hex()


def test_neighbours_do_not_collide() -> None:
    """ids and seeds that run together when written side by side, and seeds in a row."""
    ids = ["a", "a:1", "a1", "a"] + ["p"] * 200
    seeds = [11, 1, 1, 1, *range(200)]
    noise = standard_noise(ids, seeds, SHAPE).flatten(1)
    assert len({row.numpy().tobytes() for row in noise}) == 204
    correlation = torch.corrcoef(noise[4:]) - torch.eye(200)
    # 19,900 pairs of 64 numbers: the largest of them is some 4.5 / sqrt(64).
    assert float(correlation.abs().max()) < 0.75


def test_moments() -> None:
    noise = standard_noise([f"p{i}" for i in range(400)], list(range(400)), (4, 16, 16))
    values, n = noise.double().flatten(), noise.numel()
    # Five standard errors of each moment of N(0, 1).
    assert abs(float(values.mean())) < 5 / n**0.5
    assert abs(float(values.var()) - 1) < 5 * (2 / n) ** 0.5
    assert abs(float(values.pow(3).mean())) < 5 * (15 / n) ** 0.5
    assert abs(float(values.pow(4).mean()) - 3) < 5 * (96 / n) ** 0.5
    # Rows among themselves (what one seed a row could spoil), and positions over rows.
    for dim in (0, 1):
        means = noise.flatten(1).double().mean(1 - dim).numpy()
        assert stats.kstest(means * noise.flatten(1).shape[1 - dim] ** 0.5, "norm").pvalue > 1e-4
    assert stats.kstest(np.asarray(values[:50_000]), "norm").pvalue > 1e-4


def test_as_many_seeds_as_prompts() -> None:
    with pytest.raises(ValueError):
        standard_noise(["a", "b"], [1], SHAPE)
