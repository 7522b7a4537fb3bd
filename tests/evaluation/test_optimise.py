"""Noise optimised a prompt at a time."""

from itertools import pairwise

import torch
from torch import Tensor

from pahi.evaluation.optimise import optimise


def toward(target: Tensor):
    def value(x: Tensor) -> Tensor:
        return (x * target).flatten(1).sum(1) / target.norm()

    return value


def test_more_steps_find_more_and_never_less_than_the_start() -> None:
    g = torch.Generator().manual_seed(0)
    eps, target = torch.randn(5, 4, 8, 8, generator=g), torch.randn(4, 8, 8, generator=g)
    value = toward(target)
    found = [value(optimise(eps, value, steps)) for steps in (1, 5, 20, 80)]
    assert torch.equal(found[0], value(eps))
    for less, more in pairwise(found):
        assert (more > less).all()
    assert (found[-1] > value(eps) + 5).all()


def test_the_prior_keeps_the_length_of_gaussian_noise() -> None:
    eps = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    x = optimise(eps, lambda x: 0.05 * x.flatten(1).norm(dim=1), 100)
    assert (x.flatten(1).norm(dim=1) < 1.3 * 16).all()  # 100 steps at the full rate would reach 16 + 100 * 0.6


def test_it_calls_as_often_as_it_says_and_rows_do_not_meet() -> None:
    eps, calls = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(2)), []
    target = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(3))

    def value(x: Tensor) -> Tensor:
        calls.append(len(x))
        return toward(target)(x)

    together = optimise(eps, value, 7)
    assert calls == [4] * 7
    assert torch.allclose(together[2:3], optimise(eps[2:3], toward(target), 7), atol=1e-6)


def test_a_row_that_breaks_keeps_its_best_and_leaves_the_others_alone() -> None:
    eps = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(4))
    target = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(5))

    def value(x: Tensor) -> Tensor:
        return toward(target)(x) * torch.tensor([1.0, float("nan")])

    x = optimise(eps, value, 10)
    assert torch.equal(x[1], eps[1]) and toward(target)(x)[0] > toward(target)(eps)[0]
