"""The loop: it learns a known optimum, resumes to the bit, and ends in one line where nothing can be learned."""

import io
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toy import SETTINGS, SHAPE, WIDTH, Direction, Identity, Opposite, learn, prompt_set, same

from pahi.errors import PahiError, UserError
from pahi.evaluation.statistics import bootstrap
from pahi.generators import Conditioning
from pahi.predictors import NoisePredictor
from pahi.settings import Train, load_settings
from pahi.training.parallel import Group
from pahi.training.validation import validate


class Blind(Identity):
    def denoise(self, z: Tensor, conditioning: Conditioning) -> Tensor:
        return z.detach() + 0 * z.sum()


class Broken(Direction):
    def score(self, images: Tensor, prepared: dict[str, Tensor], prompts: list[str]) -> Tensor:
        return super().score(images, prepared, prompts) * float("nan")


def test_it_learns_the_prompts_own_direction() -> None:
    trained = learn()
    data = prompt_set(32, 2)
    mu, _ = trained.predictor.distribution(data.conditioning.pooled)
    directions = data.prepared["direction"]["direction"]
    own = (mu.flatten(1) * directions).sum(1).mean()
    other = (mu.flatten(1) * directions.roll(16, 0)).sum(1).mean()
    assert own > 0.5 and own > 3 * other.abs()


@pytest.mark.parametrize("kind", ["residual", "refined"])
def test_a_residual_learns_it_too(kind: str) -> None:
    trained = learn(SETTINGS.model_copy(update={"predictor": kind, "hidden": 8}))
    assert trained.predictor.kind == kind and trained.hpi is None and trained.best_step > 0
    rewards = [row["value"] for row in trained.metrics if row["name"] == "validation/direction"]
    assert rewards[-1] > 0.5
    # Its step costs: beta times the divergence is the other half of the loss.
    assert (
        learn(SETTINGS.model_copy(update={"predictor": kind, "hidden": 8, "beta": 1000.0})).metrics != trained.metrics
    )


def test_it_stops_when_only_the_training_reward_rises() -> None:
    settings = SETTINGS.model_copy(update={"steps": 200, "patience": 3})
    arguments = {"judges": [(Opposite("opposite"), 1.0)]}
    hacked = learn(settings, **arguments)
    last = max(row["step"] for row in hacked.metrics if row["phase"] == "pahi")
    assert hacked.stopped and last < 200 and hacked.best_step < settings.hpi_steps + last
    assert not learn(settings.model_copy(update={"patience": None}), **arguments).stopped
    assert not learn(settings).stopped


def test_pahi_begins_where_hpi_was_best() -> None:
    settings = SETTINGS.model_copy(
        update={"hpi_steps": 40, "hpi_lr": 0.1, "steps": 1, "lr": 1e-12, "validate_every": 5, "ema": 0.0}
    )
    few = prompt_set(4)  # what is common to them can be learned, and the held-out reward falls with it
    trained = learn(settings, judges=[(Opposite("opposite"), 1.0)], data=few, validation=few)
    held = {
        phase: [r["value"] for r in trained.metrics if r["phase"] == phase and r["name"] == "validation/opposite"]
        for phase in ("hpi", "pahi")
    }
    assert held["hpi"][-1] < max(held["hpi"]) and held["pahi"] == pytest.approx([max(held["hpi"])])
    assert trained.best_step <= settings.hpi_steps and trained.figures["validation/opposite"] == max(held["hpi"])


class Opaque(Direction):
    """Without a gradient, as a judge behind HTTP has none."""

    differentiable = False

    def score(self, images: Tensor, prepared: dict[str, Tensor], prompts: list[str]) -> Tensor:
        return super().score(images, prepared, prompts).detach()


def test_scores_alone_teach_where_there_is_no_gradient() -> None:
    settings = SETTINGS.model_copy(update={"estimator": "score", "steps": 150, "batch_size": 64})
    trained = learn(settings, rewards=[(Opaque(), 1.0, 1.0)], generator=Blind())
    data = prompt_set(32, 2)
    mu, _ = trained.predictor.distribution(data.conditioning.pooled)  # type: ignore[operator]
    directions = data.prepared["direction"]["direction"]
    own = (mu.flatten(1) * directions).sum(1).mean()
    assert own > 0.5 and own > 3 * (mu.flatten(1) * directions.roll(16, 0)).sum(1).mean().abs()
    with pytest.raises(UserError, match=r"no gradient.*train.estimator=value"):
        learn(rewards=[(Opaque(), 1.0, 1.0)])
    with pytest.raises(UserError, match="needs a Gaussian"):
        learn(settings.model_copy(update={"predictor": "residual"}))


@pytest.mark.parametrize("kind", ["pahi", "mixture", "residual", "spline"])
def test_a_learned_value_teaches_any_predictor_where_there_is_no_gradient(kind: str) -> None:
    settings = SETTINGS.model_copy(
        update={"predictor": kind, "estimator": "value", "steps": 100, "pictures": 4000, "batch_size": 64, "hidden": 16}
    )
    trained = learn(settings, rewards=[(Opaque(), 1.0, 1.0)], generator=Blind())
    data = prompt_set(200, 2)
    directions, eps = data.prepared["direction"]["direction"], torch.randn(200, *SHAPE)
    with torch.no_grad():
        own, other = (trained.predictor(data.conditioning.pooled.roll(shift, 0), eps) for shift in (0, 7))
    gained, elsewhere = ((x.flatten(1) * directions).sum(1).mean() for x in (own, other))
    assert gained > 2 and gained > 3 * elsewhere.abs()
    curve = {n: [r["value"] for r in trained.metrics if r["name"] == n] for n in ("foreseen", "reward/direction")}
    assert len(curve["foreseen"]) == len(curve["reward/direction"]) == (105 if kind == "pahi" else 100)
    assert curve["foreseen"][-1] == pytest.approx(curve["reward/direction"][-1], rel=0.3), "where the predictor is"


def test_a_value_is_wrong_where_it_was_never_shown_a_picture() -> None:
    """The reward falls where standard noise hardly ever is, and the predictor learns that on its way there."""

    class Hill(Opaque):
        def score(self, images: Tensor, prepared: dict[str, Tensor], prompts: list[str]) -> Tensor:
            along = super().score(images, prepared, prompts)
            return along - 0.5 * (along - 2).relu().square()  # the top is at 3

    settings = SETTINGS.model_copy(
        update={"estimator": "value", "steps": 200, "pictures": 4000, "batch_size": 64, "beta": 0.1}
    )
    trained = learn(settings, rewards=[(Hill(), 1.0, 1.0)], generator=Blind())
    scores = [row["value"] for row in trained.metrics if row["name"] == "validation/direction"]
    assert scores[-1] > 0.8 and min(scores) < 0, "it went too far, and came back"


SELECTED = SETTINGS.model_copy(update={"predictor": "selected", "steps": 100, "pictures": 8000, "batch_size": 64})


def test_a_choice_is_learned_from_scores_alone_for_prompts_that_were_never_seen() -> None:
    trained = learn(SELECTED, rewards=[(Opaque(), 1.0, 1.0)], generator=Blind())
    predictor, data = trained.predictor, prompt_set(400, 2)
    directions, eps = data.prepared["direction"]["direction"], torch.randn(400, *SHAPE)

    def uplift(x: Tensor) -> Tensor:
        return (x.flatten(1) * directions).sum(1).mean()

    with torch.no_grad():
        x = predictor(data.conditioning.pooled, eps)
        other = predictor(data.conditioning.pooled.roll(16, 0), eps)
        predictor.candidates = 64  # type: ignore[assignment]
        more = predictor(data.conditioning.pooled, eps)
    # The best of 16 by the reward itself is 1.77 on average.
    assert uplift(x) > 0.7 and uplift(x) > 3 * uplift(other).abs()
    assert uplift(more) > uplift(x) + 0.1
    assert trained.figures["kl"] == pytest.approx((math.log(16) - 15 / 16) / 64)
    assert (
        learn(SELECTED.model_copy(update={"candidates": 8, "steps": 2, "pictures": 3})).predictor.config["candidates"]
        == 8
    )


def test_pictures_without_a_finite_score_are_not_learned_from() -> None:
    trained = learn(SELECTED, generator=Torn())
    assert 0 < trained.skipped_steps < 30 and trained.figures["validation/direction"] > 0.7
    with pytest.raises(PahiError, match="gave NaN or infinity"):
        learn(SELECTED, rewards=[(Broken("broken"), 1.0, 1.0)])
    with pytest.raises(PahiError, match="no picture has a finite reward"):
        learn(SELECTED.model_copy(update={"pictures": 99}), rewards=[(Broken("broken"), 1.0, 1.0)])


def test_a_scale_can_only_grow_or_shrink() -> None:
    trained = learn(SETTINGS.model_copy(update={"predictor": "scale"}))
    mu, log_sigma = trained.predictor.distribution(prompt_set(2).conditioning.pooled)  # type: ignore[operator]
    assert not mu.any() and len(log_sigma.unique()) == 1


def test_no_steps_are_no_predictor() -> None:
    with pytest.raises(UserError, match=r"train.steps is 0, so no refined predictor"):
        learn(SETTINGS.model_copy(update={"predictor": "refined", "steps": 0}))
    assert learn(SETTINGS.model_copy(update={"steps": 0})).predictor.kind == "hpi"


@pytest.mark.parametrize(
    ("kind", "estimator", "stop"),
    [
        ("scale", "pathwise", 9),
        ("hpi", "pathwise", 9),
        ("refined", "pathwise", 9),
        ("selected", "pathwise", 9),
        ("selected", "pathwise", 20),
        ("pahi", "value", 9),  # while pictures of standard noise are drawn
        ("pahi", "value", 12),  # when they are, and nothing is learned yet
        ("pahi", "value", 17),
        ("pahi", "value", 30),
        ("residual", "value", 20),
    ],
)
def test_every_kind_resumes_to_the_bit(kind: str, estimator: str, stop: int) -> None:
    settings = SETTINGS.model_copy(
        update={
            "predictor": kind,
            "estimator": estimator,
            "hidden": 8,
            "steps": 12,
            "hpi_steps": 12,
            "pictures": 190,
            "save_every": 5,
        }
    )
    whole, kept = learn(settings), []  # type: ignore[var-annotated]

    def interrupt(done: int, total: int, note: str) -> None:
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(settings, kept=kept, progress=interrupt)
    assert same(learn(settings, kept=kept), whole)


@pytest.mark.parametrize("stop", [1, 3, 5, 6, 20, 64])
def test_killed_at_any_step_it_resumes_to_the_bit(stop: int) -> None:
    whole = learn()
    kept: list[bytes] = []

    def interrupt(done: int, total: int, note: str) -> None:
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(kept=kept, progress=interrupt)
    assert same(learn(kept=kept), whole)


def test_a_state_of_another_version_is_not_gone_on_from() -> None:
    kept: list[bytes] = []
    whole = learn(kept=kept)
    old = io.BytesIO()
    torch.save(torch.load(io.BytesIO(kept[3]), weights_only=True) | {"format": 1, "predictor": {}}, old)
    assert same(learn(kept=[old.getvalue()]), whole)


def test_steps_that_are_not_finite_are_skipped_and_then_stop_the_run() -> None:
    with pytest.raises(PahiError, match="gave NaN or infinity"):
        learn(rewards=[(Broken("broken"), 1.0, 1.0)])
    with pytest.raises(PahiError, match="every step gave NaN or infinity"):  # in too few to have stopped it before
        learn(SETTINGS.model_copy(update={"steps": 3}), rewards=[(Broken("broken"), 1.0, 1.0)])


class Torn(Identity):
    """A generator that returns NaN for one picture of every ninth batch."""

    def __init__(self) -> None:
        self.calls = 0

    def denoise(self, z: Tensor, conditioning: Conditioning) -> Tensor:
        self.calls += 1
        torn = (torch.arange(len(z)) == 0) & (self.calls % 9 == 0)
        return torch.where(torn.view(-1, 1, 1, 1), torch.nan, z)


def test_a_generator_that_returns_nan_now_and_then_only_costs_those_steps() -> None:
    settings = SETTINGS.model_copy(update={"validate_every": 1})
    trained = learn(settings, generator=Torn())
    assert 0 < trained.skipped_steps < 20
    measured = [row["value"] for row in trained.metrics if row["name"] == "validation/direction"]
    assert len(measured) == 65 and all(map(math.isfinite, measured)), "what is NaN is left out"
    assert all(p.isfinite().all() for p in trained.predictor.parameters())
    assert measured[-1] > 0.3


def test_prompts_without_a_finite_baseline_are_left_out() -> None:
    data = prompt_set(8)
    data.baseline["direction"][3, 1] = torch.nan
    trained = learn(data=data)
    assert trained.skipped_steps == 0 and trained.left_out == 1
    data.baseline["direction"][:, 0] = torch.inf
    with pytest.raises(UserError, match="no training prompt has a finite baseline"):
        learn(data=data)


def test_a_validation_that_is_never_finite_keeps_the_last_step() -> None:
    validation = prompt_set(4, 1)
    validation.baseline["direction"][:] = torch.nan
    assert learn(validation=validation).best_step == SETTINGS.hpi_steps + SETTINGS.steps


class Constant(Direction):
    """The same score for every picture, though its unit was measured otherwise."""

    def score(self, images: Tensor, prepared: dict[str, Tensor], prompts: list[str]) -> Tensor:
        return 3.0 + 0 * images.flatten(1).sum(1)


def test_a_gradient_that_is_lost_on_the_way_is_an_error() -> None:
    with pytest.raises(PahiError, match="gradient"):
        learn(generator=Blind())
    with pytest.raises(PahiError, match="gradient"):
        learn(rewards=[(Constant(), 1.0, 1.0)])


def test_what_cannot_be_learned_is_one_line() -> None:
    with pytest.raises(UserError, match="no training prompts"):
        learn(data=prompt_set(0))
    with pytest.raises(UserError, match="same for every picture"):
        learn(rewards=[(Direction(), 1.0, 0.0)])


def test_more_devices_than_prompts_a_step_is_one_line() -> None:
    for sets in (["train.batch_size=2"], ["train.batch_size=5", "train.estimator=score", "train.predictor=pahi"]):
        with pytest.raises(UserError, match=r"train: devices is 3, and batch_size .* gives 2 to share"):
            load_settings(overrides=["train.devices=3", *sets])


def test_no_validation_prompts_keeps_the_last_step() -> None:
    trained = learn(validation=prompt_set(0))
    assert trained.best_step == SETTINGS.hpi_steps + SETTINGS.steps
    assert trained.predictor.mu.abs().max() > 0
    assert set(trained.figures) == {"loss", "kl", "grad_norm", "reward/direction", "noise_norm"}


def test_one_prompt_is_enough() -> None:
    trained = learn(data=prompt_set(1), validation=prompt_set(1, 1))
    assert trained.predictor.kind == "pahi" and trained.skipped_steps == 0


class Half(Identity):
    """Networks in float16, through which a gradient as small as a picture's passes as zero."""

    dtype = torch.float16

    def denoise(self, z: Tensor, conditioning: Conditioning) -> Tensor:
        return z.half().float()


def test_small_gradients_survive_float16() -> None:
    # Without a KL the loss has no scale of its own, and Adam none either: the same is learned from a tiny reward.
    settings = SETTINGS.model_copy(update={"beta": 0.0, "clip": 1e9})
    trained = learn(settings, generator=Half(), rewards=[(Direction(scale=1e-6), 1.0, 1.0)])
    assert trained.skipped_steps < 5
    data = prompt_set(32, 2)
    mu, _ = trained.predictor.distribution(data.conditioning.pooled)  # type: ignore[operator]
    assert (mu.flatten(1) * data.prepared["direction"]["direction"]).sum(1).mean() > 0.5


@pytest.mark.parametrize("stop", [2, 20])
def test_while_the_scale_is_found_and_after_it_resumes_to_the_bit(stop: int) -> None:
    settings = SETTINGS.model_copy(update={"save_every": 1})
    large = {"generator": Half(), "rewards": [(Direction(scale=1e3), 1.0, 1.0)]}
    whole, kept = learn(settings, **large), []  # type: ignore[var-annotated]
    assert 2 < whole.skipped_steps < 10

    def interrupt(done: int, total: int, note: str) -> None:
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(settings, kept=kept, progress=interrupt, **large)
    assert same(learn(settings, kept=kept, **large), whole)


# --------------------------------------------------------------------------------------- problems whose answer is known


@pytest.mark.parametrize("estimator", ["pathwise", "score", "value"])
def test_it_finds_the_optimum_of_a_linear_reward(estimator: str) -> None:
    # r(x) = <a, x>, d numbers: the maximum of E[r] - beta KL/d is at mu = a d / beta and sigma = 1.
    data = prompt_set(1)
    data.prepared["direction"]["direction"] *= 0.5
    beta, steps = 8.0, 300 if estimator == "pathwise" else 400
    settings = Train(
        predictor="hpi",
        estimator=estimator,  # type: ignore[arg-type]
        hpi_steps=steps,
        batch_size=64 if estimator == "pathwise" else 256,
        lr=0.02,
        beta=beta,
        clip=100.0,
    )
    trained = learn(settings, data=data, validation=prompt_set(0))
    mu, log_sigma = trained.predictor.distribution(data.conditioning.pooled)  # type: ignore[operator]
    expected = data.prepared["direction"]["direction"] * 64 / beta
    close = 0.05 if estimator == "pathwise" else 0.2
    assert expected.abs().max() > 5 * close
    torch.testing.assert_close(mu.detach().flatten(1), expected, atol=close, rtol=0)
    torch.testing.assert_close(log_sigma.detach(), torch.zeros_like(log_sigma), atol=close, rtol=0)


def test_blind_to_the_prompt_it_equals_its_shuffled_self() -> None:
    data, test = prompt_set(64), prompt_set(200, 2)
    direction = data.prepared["direction"]["direction"][:1]
    for part in (data, test):
        part.prepared["direction"]["direction"] = direction.expand(len(part), -1)
    settings = SETTINGS.model_copy(update={"beta": 16.0, "steps": 150})  # enough to arrive
    predictor = learn(settings, data=data, validation=prompt_set(0)).predictor
    eps = torch.randn(len(test), *SHAPE, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        own, other = (predictor(test.conditioning.pooled.roll(shift, 0), eps) for shift in (0, 1))
        mu, _ = predictor.distribution(test.conditioning.pooled)  # type: ignore[operator]
    gains = Direction().score(own - other, test.prepared["direction"], [])
    interval = bootstrap(gains.numpy(), 1000)
    assert interval["low"] <= 0 <= interval["high"]
    shift = (mu.flatten(1) * direction).sum(1)
    assert shift.mean() > 0.5 and shift.std() < 0.25 * shift.mean(), "it moves all prompts alike"


@pytest.mark.parametrize("kind", ["scale", "hpi", "pahi", "residual", "refined"])
def test_gradients_reach_every_parameter_from_the_second_step(kind: str) -> None:
    # The last layer starts at zero, so that those below it get their first gradient on the second step.
    kept: list[bytes] = []
    settings = Train(
        predictor=kind, hpi_steps=1 if kind == "pahi" else 3, steps=3, batch_size=8, hidden=8, save_every=1
    )  # type: ignore[arg-type]
    learn(settings, kept=kept)
    got = torch.load(io.BytesIO(kept[-1]), weights_only=True)
    names = [name for name, _ in NoisePredictor.create(kind, SHAPE, WIDTH, 8).named_parameters()]
    unused = {"scale": ["mu"], "hpi": [name for name in names if name.startswith("head")]}.get(kind, [])
    for i, name in enumerate(names):
        moved = i in got["optimizer"]["state"] and bool(got["optimizer"]["state"][i]["exp_avg"].any())
        assert moved == (name not in unused), name


def test_validation_is_the_mean_over_the_cached_seeds_it_is_told() -> None:
    data, rewards = prompt_set(9, 1), [(Direction(), 1.0)]
    data.baseline["direction"] = torch.randn(9, 2, generator=torch.Generator().manual_seed(3))
    predictor = NoisePredictor.create("standard", SHAPE, WIDTH)

    def measured(seeds: list[int], columns: list[int], count: int) -> float:
        part = replace(data, seeds=seeds, baseline={"direction": data.baseline["direction"][:, columns]})
        return validate(Identity(), rewards, part, predictor, Group(), count, batch=4)["direction"]

    first, second = measured([0], [0], 1), measured([1], [1], 1)
    assert first != pytest.approx(second)
    assert measured([0, 1], [0, 1], 1) == pytest.approx(first)
    assert measured([0, 1], [0, 1], 2) == pytest.approx((first + second) / 2) == measured([0, 1], [0, 1], 7)
