"""The loop: it learns a known optimum, resumes to the bit, and ends in one line where nothing can be learned."""

import pytest
import torch
from torch import Tensor

from pahi.errors import PahiError, UserError
from pahi.generators import Conditioning
from pahi.settings import Train
from pahi.training.trainer import PromptSet, Trained, train

SHAPE, WIDTH = (4, 4, 4), 6


class Identity:
    """A generator whose picture is its noise."""

    id, hash, latent_shape, pooled_width = "identity", "0", SHAPE, WIDTH
    device, dtype = torch.device("cpu"), torch.float32

    def denoise(self, z: Tensor, conditioning: Conditioning) -> Tensor:
        return z

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class Blind(Identity):
    def denoise(self, z: Tensor, conditioning: Conditioning) -> Tensor:
        return z.detach() + 0 * z.sum()


class Direction:
    """<picture, direction of the prompt>, whose unit is its standard deviation 1."""

    hash, differentiable = "0", True

    def __init__(self, name: str = "direction", scale: float = 1.0) -> None:
        self.name, self.scale = name, scale

    def score(self, images: Tensor, prepared: dict[str, Tensor], prompts: list[str]) -> Tensor:
        return self.scale * (images.flatten(1) * prepared["direction"]).sum(1)


class Broken(Direction):
    def score(self, images: Tensor, prepared: dict[str, Tensor], prompts: list[str]) -> Tensor:
        return super().score(images, prepared, prompts) * float("nan")


def prompt_set(count: int, seed: int = 0) -> PromptSet:
    g = torch.Generator().manual_seed(seed)
    pooled = torch.randn(count, WIDTH, generator=g)
    # The best direction is a linear function of the prompt's embedding.
    directions = pooled @ torch.randn(WIDTH, 64, generator=torch.Generator().manual_seed(99))
    directions = directions / directions.norm(dim=1, keepdim=True)
    ids = [f"p{seed}-{i}" for i in range(count)]
    return PromptSet(
        ids,
        ids,
        Conditioning({}, pooled, [False] * count),
        {"direction": {"direction": directions}, "broken": {"direction": directions}},
        {"direction": torch.zeros(count, 2), "broken": torch.zeros(count, 2)},
        [0, 1],
    )


SETTINGS = Train(hpi_steps=5, steps=60, batch_size=16, lr=0.01, hidden=32, beta=1.0, validate_every=10, save_every=7)


def learn(settings: Train = SETTINGS, **change) -> Trained:
    kept: list[bytes] = change.pop("kept", [])
    arguments = {
        "generator": Identity(),
        "rewards": [(Direction(), 1.0, 1.0)],
        "judges": [],
        "data": prompt_set(64),
        "validation": prompt_set(16, 1),
        "load": lambda: kept[-1] if kept else None,
        "save": kept.append,
        "progress": lambda done, total, note: None,
    } | change
    return train(settings=settings, **arguments)


def same(a: Trained, b: Trained) -> bool:
    pairs = zip(a.predictor.state_dict().values(), b.predictor.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs) and a.metrics == b.metrics


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


class Opposite(Direction):
    """A held-out reward that falls as the training reward rises."""

    hash = "1"

    def score(self, images: Tensor, prepared: dict[str, Tensor], prompts: list[str]) -> Tensor:
        return -super().score(images, prepared, prompts)


def test_it_stops_when_only_the_training_reward_rises() -> None:
    settings = SETTINGS.model_copy(update={"steps": 200, "patience": 3})
    data, validation = prompt_set(64), prompt_set(16, 1)
    for part in (data, validation):
        for kept in (part.prepared, part.baseline):
            kept["opposite"] = kept["direction"]  # type: ignore[index]
    arguments = {"judges": [(Opposite("opposite"), 1.0)], "data": data, "validation": validation}
    hacked = learn(settings, **arguments)
    last = max(row["step"] for row in hacked.metrics if row["phase"] == "pahi")
    assert hacked.stopped and last < 200 and hacked.best_step < settings.hpi_steps + last
    assert not learn(settings.model_copy(update={"patience": None}), **arguments).stopped
    assert not learn(settings).stopped


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
    with pytest.raises(UserError, match=r"no gradient.*train.estimator=score"):
        learn(rewards=[(Opaque(), 1.0, 1.0)])
    with pytest.raises(UserError, match="needs a Gaussian"):
        learn(settings.model_copy(update={"predictor": "residual"}))


def test_a_scale_can_only_grow_or_shrink() -> None:
    trained = learn(SETTINGS.model_copy(update={"predictor": "scale"}))
    mu, log_sigma = trained.predictor.distribution(prompt_set(2).conditioning.pooled)  # type: ignore[operator]
    assert not mu.any() and len(log_sigma.unique()) == 1


def test_no_steps_are_no_predictor() -> None:
    with pytest.raises(UserError, match=r"train.steps is 0, so no refined predictor"):
        learn(SETTINGS.model_copy(update={"predictor": "refined", "steps": 0}))
    assert learn(SETTINGS.model_copy(update={"steps": 0})).predictor.kind == "hpi"


@pytest.mark.parametrize("kind", ["scale", "hpi", "refined"])
def test_every_kind_resumes_to_the_bit(kind: str) -> None:
    settings = SETTINGS.model_copy(update={"predictor": kind, "hidden": 8, "steps": 12, "hpi_steps": 12})
    whole, kept = learn(settings), []  # type: ignore[var-annotated]

    def interrupt(done: int, total: int, note: str) -> None:
        if done == 9:
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


def test_steps_that_are_not_finite_are_skipped_and_then_stop_the_run() -> None:
    with pytest.raises(PahiError, match="gave NaN or infinity"):
        learn(rewards=[(Broken("broken"), 1.0, 1.0)])


def test_a_gradient_that_is_lost_on_the_way_is_an_error() -> None:
    with pytest.raises(PahiError, match="gradient"):
        learn(generator=Blind())


def test_what_cannot_be_learned_is_one_line() -> None:
    with pytest.raises(UserError, match="no training prompts"):
        learn(data=prompt_set(0))
    with pytest.raises(UserError, match="same for every picture"):
        learn(rewards=[(Direction(), 1.0, 0.0)])


def test_no_validation_prompts_keeps_the_last_step() -> None:
    trained = learn(validation=prompt_set(0))
    assert trained.best_step == SETTINGS.hpi_steps + SETTINGS.steps
    assert trained.predictor.mu.abs().max() > 0


def test_one_prompt_is_enough() -> None:
    assert learn(data=prompt_set(1)).predictor.kind == "pahi"
