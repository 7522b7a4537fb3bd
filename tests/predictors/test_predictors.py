"""Predictors: untrained they are the standard Gaussian, saved they come back, misused they say so."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import scipy.stats
import torch
from diffusers import StableDiffusionPipeline
from torch.distributions import Normal, kl_divergence

from pahi import NoisePredictor, models
from pahi.errors import UserError
from pahi.predictors.spline import BINS, EDGE, spline
from pahi.settings import Train

KINDS = ["standard", *Train.model_fields["predictor"].annotation.__args__]  # type: ignore[union-attr]
GAUSSIAN = ["scale", "hpi", "pahi", "lowrank", "preserving"]
ADAPTIVE = KINDS[3:]  # those that read the prompt
TINY, WIDTH = "pkg:pahi.tiny/weights/generator", 96  # and what its text encoder pools


def predictor(kind: str = "pahi") -> NoisePredictor:
    return NoisePredictor.create(kind, (4, 16, 16), WIDTH, 16)


def shaken(kind: str) -> NoisePredictor:
    p = predictor(kind)
    with torch.no_grad():
        for q in p.parameters():
            q.normal_(0, 0.5 if kind == "selected" else 0.1)  # of which only the order of values is seen
    return p


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_it_is_the_standard_gaussian_to_the_bit(kind: str) -> None:
    eps = torch.randn(3, 4, 16, 16)
    assert torch.equal(predictor(kind)(torch.randn(3, WIDTH), eps), eps)


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_it_has_not_left_the_prior(kind: str) -> None:
    assert torch.equal(predictor(kind).draw(torch.randn(3, WIDTH), torch.randn(3, 4, 16, 16))[1], torch.zeros(3))


@pytest.mark.parametrize("kind", GAUSSIAN)
def test_the_divergence_of_gaussians_is_torchs(kind: str) -> None:
    p = shaken(kind)
    pooled = torch.randn(3, WIDTH)
    mu, log_sigma = p.distribution(pooled)  # type: ignore[operator]
    theirs = kl_divergence(Normal(mu, log_sigma.exp()), Normal(0.0, 1.0)).flatten(1).mean(1)
    assert torch.allclose(p.draw(pooled, torch.randn(3, 4, 16, 16))[1], theirs, rtol=1e-4)


@pytest.mark.parametrize("kind", ["residual", "refined"])
def test_a_residual_reads_noise_and_prompt_and_knows_how_far_it_went(kind: str) -> None:
    p, eps, pooled = shaken(kind), torch.randn(3, 4, 16, 16), torch.randn(3, WIDTH)
    x, divergence = p.draw(pooled, eps)
    f = p.residual(pooled, eps)  # type: ignore[operator]
    assert torch.allclose(divergence, f.square().sum((1, 2, 3)) / 2 / 1024, rtol=1e-5)
    assert not torch.allclose(f, p.residual(pooled.roll(1, 0), eps))  # type: ignore[operator]
    other = eps.clone()
    other[:, 0, 0, 0] += 3  # one corner is seen in the opposite one
    assert not torch.allclose(f[:, :, -1, -1], p.residual(pooled, other)[:, :, -1, -1], atol=1e-6)  # type: ignore[operator]
    alone = p.draw(pooled[1:2], eps[1:2])[0]
    assert torch.allclose(alone, x[1:2], rtol=1e-4, atol=1e-3)
    norms = x.flatten(1).norm(dim=1) / eps.flatten(1).norm(dim=1)
    assert torch.allclose(norms, torch.ones(3), atol=1e-5) == (kind == "refined")


@pytest.mark.parametrize("shape", [(4, 64, 64), (16, 128, 128), (32, 32, 32), (4, 90, 64), (4, 5, 7)])
@pytest.mark.parametrize("kind", ["lowrank", "preserving", "mixture", "spline", "residual", "refined", "selected"])
def test_they_fit_every_latent(kind: str, shape: tuple[int, int, int]) -> None:
    p, eps = NoisePredictor.create(kind, shape, 32, 8), torch.randn(1, *shape)
    assert torch.equal(p(torch.randn(1, 32), eps), eps)


@pytest.mark.parametrize("kind", [kind for kind in ADAPTIVE if kind != "selected"])  # which learns from scores
def test_gradients_reach_every_parameter_from_the_second_step_on(kind: str) -> None:
    p, target = predictor(kind), torch.randn(4, 16, 16)
    optimizer = torch.optim.SGD(p.parameters(), lr=1.0)
    pooled, eps = torch.randn(32, WIDTH), torch.randn(32, 4, 16, 16)
    for _ in range(2):
        optimizer.zero_grad()
        x, divergence = p.draw(pooled, eps)
        loss = ((x - target).square().mean((1, 2, 3)) * pooled[:, 0].sigmoid()).mean() + 0.1 * divergence.mean()
        loss.backward()
        optimizer.step()
    for name, parameter in p.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", ADAPTIVE)
def test_a_row_depends_on_that_row_alone(kind: str) -> None:
    torch.manual_seed(0)
    # Enough rows that a choice among noises is not the same for another prompt by chance.
    p, eps, pooled = shaken(kind), torch.randn(32, 4, 16, 16), torch.randn(32, WIDTH)
    x, divergence = p.draw(pooled, eps)
    alone = p.draw(pooled[1:2], eps[1:2])
    assert torch.allclose(alone[0], x[1:2], rtol=1e-4, atol=1e-3)
    assert torch.allclose(alone[1], divergence[1:2], rtol=1e-3)
    other = p(pooled.roll(1, 0), eps)
    assert not torch.allclose(other, x), "it reads the prompt"


def test_preserving_stays_on_the_shell_however_far_it_goes() -> None:
    p, pooled = predictor("preserving"), torch.randn(64, WIDTH)
    eps = torch.randn(64, 4, 16, 16)
    for scale in (0.3, 2.0, 50.0):
        with torch.no_grad():
            p.z.copy_(scale * torch.randn(4, 16, 16))  # type: ignore[operator]
        mu, log_sigma = p.distribution(pooled)  # type: ignore[operator]
        assert torch.allclose(mu.square() + (2 * log_sigma).exp(), torch.ones(()), atol=1e-5)
        assert log_sigma.min() > -2.01
        norms = p(pooled, eps).flatten(1).square().mean(1)
        error = (2 / 1024) ** 0.5  # of Gaussian noise's own
        assert abs(norms.mean() - 1) < 4 * error / 8 and norms.std() < 1.3 * error


@pytest.mark.parametrize("shape", [(4, 64, 64), (4, 128, 128), (16, 128, 128)])
def test_the_other_heads_are_smaller(shape: tuple[int, int, int]) -> None:
    def size(kind: str) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in NoisePredictor.create(kind, shape, 1024, 128).parameters())

    base, dense = 2 * torch.Size(shape).numel(), size("pahi")
    assert size("preserving") < 0.6 * dense
    assert size("lowrank") - base < 0.35 * dense, "beside the base, which both have"


def test_a_spline_rises_and_knows_its_slope() -> None:
    g = torch.Generator().manual_seed(3)
    form = torch.randn(5, 1, 3 * BINS - 1, generator=g).expand(5, 4001, -1)
    z = torch.linspace(-4, 4, 4001, dtype=torch.float64).expand(5, -1).clone().requires_grad_()
    y, log_slope = spline(z, form.double())
    assert (y.diff(dim=1) > 0).all(), "one to one"
    (slope,) = torch.autograd.grad(y.sum(), z)
    assert torch.allclose(slope.log(), log_slope, atol=1e-6)
    beyond = z.abs() > EDGE
    assert torch.equal(y[beyond], z[beyond]) and not torch.allclose(y, z, atol=0.1)


def test_a_splines_coordinates_are_those_of_an_orthonormal_basis() -> None:
    p, eps = predictor("spline"), torch.randn(5, 4, 16, 16)
    theirs = scipy.fft.dctn(eps.numpy(), axes=(2, 3), norm="ortho")[:, :, :4, :4].reshape(5, -1)
    assert np.allclose(p.coordinates(eps).numpy(), theirs, atol=1e-5)  # type: ignore[operator]


def test_a_spline_moves_low_frequencies_alone() -> None:
    p, eps, pooled = shaken("spline"), torch.randn(5, 4, 16, 16), torch.randn(5, WIDTH)
    moved = scipy.fft.dctn((p(pooled, eps) - eps).detach().numpy(), axes=(2, 3), norm="ortho")
    assert np.abs(moved[:, :, :4, :4]).max() > 0.05
    moved[:, :, :4, :4] = 0
    assert np.abs(moved).max() < 1e-5


def test_a_splines_divergence_is_the_kl() -> None:
    p, eps = NoisePredictor.create("spline", (1, 2, 2), 8, 8), torch.randn(20000, 1, 2, 2)
    with torch.no_grad():
        p.base.normal_(0, 1.0)  # type: ignore[operator]
        found = p.draw(torch.zeros(len(eps), 8), eps)[1].mean() * 4
        # By quadrature: with x = phi(z), KL = integral of N(z) (log N(z) - log phi'(z) - log N(x)).
        z = torch.linspace(-6, 6, 20001).expand(4, -1)
        x, log_slope = spline(z, p.base[:, None].expand(4, 20001, -1))  # type: ignore[index]
        prior = Normal(0.0, 1.0).log_prob
        kl = torch.trapezoid(prior(z).exp() * (prior(z) - log_slope - prior(x)), z).sum()
    assert kl > 0.1 and torch.allclose(found, kl, rtol=0.1)


def test_a_mixture_of_one_mode_is_that_gaussian() -> None:
    p, pooled, eps = shaken("mixture"), torch.randn(3, WIDTH), torch.randn(3, 4, 16, 16)
    with torch.no_grad():
        for q in (p.mu, p.log_sigma, p.mode):
            q.copy_(q[:1].expand_as(q))
    mu, log_sigma = p.distributions(pooled)  # type: ignore[operator]
    x, divergence = p.draw(pooled, eps)
    assert torch.allclose(x, mu[:, 0] + log_sigma[:, 0].exp() * eps)
    theirs = kl_divergence(Normal(mu[:, 0], log_sigma[:, 0].exp()), Normal(0.0, 1.0)).flatten(1).mean(1)
    assert torch.allclose(divergence, theirs, rtol=1e-4)


def test_a_mixtures_divergence_lies_between_its_bounds() -> None:
    p, pooled, eps = shaken("mixture"), torch.randn(3, WIDTH), torch.randn(3, 4, 16, 16)
    mu, log_sigma = p.distributions(pooled)  # type: ignore[operator]
    each = kl_divergence(Normal(mu, log_sigma.exp()), Normal(0.0, 1.0)).mean(1).flatten(1).mean(1)
    mean = mu.mean(1)
    variance = (mu.square() + (2 * log_sigma).exp()).mean(1) - mean.square()
    whole = kl_divergence(Normal(mean, variance.sqrt()), Normal(0.0, 1.0)).flatten(1).mean(1)
    got = p.draw(pooled, eps)[1]
    assert (whole < got).all() and (got < each).all()


def test_noise_picks_every_mode_as_often_and_stays_gaussian() -> None:
    p, eps = predictor("mixture"), torch.randn(4000, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    k = p.choose(eps)  # type: ignore[operator]
    shares = torch.bincount(k, minlength=4) / len(k)
    assert (shares - 0.25).abs().max() < 0.03
    mine = eps[k == 2]
    assert abs(mine.mean()) < 0.01 and abs(mine.std() - 1) < 0.01
    assert (mine.mean(0).abs().max()) < 0.25, "no number of the latent moves by more than chance and a hint"


def test_modes_go_to_all_the_good_noise_there_is() -> None:
    """Where x and -x are as good, one Gaussian has to choose; and the divergence does not hold the modes together."""
    torch.manual_seed(0)
    p, target = NoisePredictor.create("mixture", (1, 4, 4), 8, 8), torch.randn(1, 4, 4)
    optimizer = torch.optim.Adam(p.parameters(), lr=0.03)
    for _ in range(200):
        x, divergence = p.draw(torch.randn(64, 8), torch.randn(64, 1, 4, 4))
        reward = (x * target).flatten(1).sum(1).abs() / target.norm()
        loss = (divergence - 0.3 * reward).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mu, _ = p.distributions(torch.randn(1, 8))  # type: ignore[operator]
    along = (mu[0] * target).flatten(1).sum(1) / target.norm()
    assert along.min() < -1 and along.max() > 1 and abs(along.mean()) < 0.5 * along.abs().mean()


def test_selected_noise_is_the_best_candidate_by_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    p, eps, pooled = shaken("selected"), torch.randn(50, 4, 16, 16), torch.randn(50, WIDTH)
    with torch.no_grad():
        x, divergence = p.draw(pooled, eps)
        candidates = [eps * s for s in p.signs()]  # type: ignore[operator]
        values = torch.stack([p.value(pooled, p.coordinates(c)) for c in candidates])  # type: ignore[operator]
        assert torch.allclose(p.value(pooled, p.coordinates(x)), values.amax(0), atol=1e-5)  # type: ignore[operator]
        monkeypatch.setattr("pahi.predictors.selected.AT_ONCE", 3 * eps.numel())  # three candidates, then three more
        assert torch.equal(p.draw(pooled, eps)[0], x)
    assert torch.equal(x.abs(), eps.abs()), "it is noise as it was drawn"
    assert len({int(v.argmax()) for v in values.T}) > 8, "the noise decides, and no sign is preferred"
    assert torch.allclose(divergence * 1024, torch.tensor(math.log(16) - 15 / 16))


def test_its_candidates_are_standard_noise_that_has_nothing_in_common() -> None:
    p = predictor("selected")
    signs = p.signs().flatten(1).float()  # type: ignore[operator]
    assert torch.equal(signs[0], torch.ones(1024)) and torch.equal(signs.abs(), torch.ones(16, 1024))
    apart = signs @ signs.T / 1024 - torch.eye(16)  # correlation of any two candidates' numbers
    assert apart.abs().max() < 4.5 / 32
    p.candidates = 64
    assert torch.equal(p.signs()[:16].flatten(1), signs), "more are the same and others"  # type: ignore[operator]


@pytest.mark.parametrize("candidates", [2, 16, 64])
def test_its_divergence_is_the_kl_of_the_best_of_so_many(candidates: int) -> None:
    p = NoisePredictor.create("selected", (4, 16, 16), WIDTH, 16, candidates=candidates)
    p.value = lambda pooled, z: z[:, 0]  # type: ignore[method-assign, assignment]
    eps = torch.randn(3000, 4, 16, 16, generator=torch.Generator().manual_seed(candidates))
    x, divergence = p.draw(torch.zeros(3000, WIDTH), eps)
    best = scipy.stats.norm.cdf(p.coordinates(x)[:, 0].numpy())  # type: ignore[operator]
    assert scipy.stats.kstest(best, scipy.stats.beta(candidates, 1).cdf).pvalue > 1e-3
    # log q / p of the best of N independent numbers is log N + (N - 1) log F.
    ratio = math.log(candidates) + (candidates - 1) * np.log(best)
    assert np.mean(ratio) == pytest.approx(float(divergence[0]) * 1024, abs=4 * np.std(ratio) / 3000**0.5)
    others = p.coordinates(x)[:, 1:].numpy()  # type: ignore[operator]
    scale = p.fading.repeat(4, 1, 1).flatten()[1:].numpy()  # type: ignore[union-attr, operator]
    assert abs((others / scale).std() - 1) < 0.01, "what is not read stays standard normal"


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(UserError, match="no predictor of kind 'magic'; there are standard, scale"):
        NoisePredictor.create("magic", (4, 16, 16), 64)


def test_a_zero_head_is_hpi_to_the_bit() -> None:
    hpi, pahi = predictor("hpi"), predictor("pahi")
    with torch.no_grad():
        hpi.mu.normal_()
        hpi.log_sigma.normal_()
    pahi.load_state_dict(hpi.state_dict())
    eps, pooled = torch.randn(3, 4, 16, 16), torch.randn(3, WIDTH)
    assert torch.equal(hpi(pooled, eps), pahi(pooled, eps))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_it_comes_back_equal(kind: str, tmp_path: Path) -> None:
    p = shaken(kind)
    p.save_pretrained(tmp_path)
    back = NoisePredictor.from_pretrained(str(tmp_path))
    eps, pooled = torch.randn(2, 4, 16, 16), torch.randn(2, WIDTH)
    assert torch.equal(p(pooled, eps), back(pooled, eps))


def test_one_line_with_a_plain_diffusers_pipeline() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(models.resolve(TINY), dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    p = predictor()
    latents = p.sample("a red circle", pipe=pipe, seed=7)
    assert torch.equal(latents, p.sample("a red circle", pipe=pipe, seed=7))
    assert not torch.equal(latents, p.sample("a red circle", pipe=pipe, seed=8))
    pair = p.sample(["a blue star", "a red circle"], pipe=pipe, seed=7)
    assert torch.equal(pair[1:], latents), "a prompt's noise depends on nothing beside it"
    image = pipe("a red circle", latents=latents, num_inference_steps=1, guidance_scale=0.0).images[0]
    assert image.size == (64, 64)


def test_another_models_predictor_is_refused(tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(models.resolve(TINY), dtype=torch.float32, safety_checker=None)
    for kind in KINDS:
        with pytest.raises(UserError, match="was trained for"):
            NoisePredictor.create(kind, (4, 64, 64), 1024, 8).sample("a red circle", pipe=pipe)
    with pytest.raises(UserError, match="no predictor at"):
        NoisePredictor.from_pretrained(str(tmp_path))
