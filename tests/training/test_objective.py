"""The equations, against torch's own distributions and a problem whose answer is known."""

import torch
from torch.distributions import Normal, kl_divergence

from pahi.training import objective


def test_kl_is_torchs_kl_over_the_dimension() -> None:
    g = torch.Generator().manual_seed(0)
    mu, log_sigma = torch.randn(5, 4, 8, 8, generator=g), 0.5 * torch.randn(5, 4, 8, 8, generator=g)
    expected = kl_divergence(Normal(mu, log_sigma.exp()), Normal(torch.zeros(()), torch.ones(()))).flatten(1).mean(1)
    torch.testing.assert_close(objective.kl_per_dimension(mu, log_sigma), expected)
    assert objective.kl_per_dimension(torch.zeros(2, 4), torch.zeros(2, 4)).abs().max() == 0


def test_a_linear_reward_has_the_closed_form_optimum() -> None:
    # r(x) = <a, x>, d dimensions: the maximum of E[r] - beta KL/d is at mu = a d / beta, sigma = 1.
    a, beta = torch.tensor([[0.3, -0.2, 0.1, 0.05]]), 2.0
    mu, log_sigma = torch.zeros(1, 4, requires_grad=True), torch.zeros(1, 4, requires_grad=True)
    optimizer = torch.optim.SGD([mu, log_sigma], lr=0.5)
    for step in range(300):
        eps = torch.randn(256, 4, generator=torch.Generator().manual_seed(step))
        eps = torch.cat([eps, -eps])  # antithetic: the sampling error of a linear reward is zero
        score = ((mu + log_sigma.exp() * eps) * a).sum(1)
        up = objective.uplift(score, torch.zeros(()), 1.0)
        loss = objective.loss([up], [1.0], objective.kl_per_dimension(mu, log_sigma), beta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(mu.detach(), a * 4 / beta, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(log_sigma.detach(), torch.zeros(1, 4), atol=1e-3, rtol=0)


def test_a_capped_uplift_earns_nothing_above_the_cap() -> None:
    score = torch.tensor([1.0, 5.0], requires_grad=True)
    objective.uplift(score, torch.zeros(2), 1.0, cap=2.0).sum().backward()
    assert score.grad is not None and score.grad.tolist() == [1.0, 0.0]


def test_both_estimators_agree_in_expectation_on_a_quadratic_reward() -> None:
    # r(x) = <a, x> - |x|^2 / 4: the gradient of E[r] is a - mu / 2, and -sigma^2 / 2 for log sigma.
    g = torch.Generator().manual_seed(3)
    a, mu = torch.tensor([0.5, -1.0, 0.2]), torch.tensor([0.3, 0.1, -0.4]).requires_grad_()
    log_sigma = torch.tensor([-0.2, 0.1, 0.0]).requires_grad_()
    eps = torch.randn(100_000, 3, generator=g)
    eps = torch.cat([eps, -eps])
    x = mu + log_sigma.exp() * eps
    reward = (x * a).sum(1) - x.square().sum(1) / 4
    pathwise = torch.autograd.grad(reward.mean(), (mu, log_sigma), retain_graph=True)
    wide = [t.expand(len(eps), 3) for t in (mu, log_sigma)]
    score = torch.autograd.grad(objective.score_function([reward], [1.0], x, *wide), (mu, log_sigma))
    expected = a - mu.detach() / 2, -(2 * log_sigma.detach()).exp() / 2
    for path, blind, known in zip(pathwise, score, expected, strict=True):
        torch.testing.assert_close(path, known, atol=0.01, rtol=0)
        torch.testing.assert_close(blind, known, atol=0.02, rtol=0)
