"""One loop that learns the noise, read from top to bottom."""

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from pahi.errors import PahiError, UserError
from pahi.generators import Conditioning, Generator, standard_noise
from pahi.predictors import GaussianPredictor, NoisePredictor
from pahi.rewards import Prepared, Reward
from pahi.rewards.ensemble import Ensemble
from pahi.settings import Train
from pahi.training import objective

TRAINING_SEEDS = 2**32  # above every seed that a person chooses, so that training never sees an evaluation's noise


@dataclass
class PromptSet:
    """Prompts with everything the cache stage computed for them; row i of each belongs to prompt i."""

    prompt_ids: list[str]
    texts: list[str]
    conditioning: Conditioning
    prepared: dict[str, Prepared]  # by reward
    baseline: dict[str, Tensor]  # by reward: (prompts, seeds) raw scores of the standard Gaussian
    seeds: list[int]

    def __len__(self) -> int:
        return len(self.prompt_ids)


@dataclass
class Trained:
    """The best predictor by the held-out reward on validation prompts, and what was measured on the way."""

    predictor: NoisePredictor
    hpi: NoisePredictor | None  # where it was learned on the way
    metrics: list[dict[str, Any]] = field(default_factory=list)
    best_step: int = 0
    skipped_steps: int = 0
    stopped: bool = False  # early, since held-out rewards no longer rose with the training rewards


def train(
    generator: Generator,
    rewards: list[tuple[Reward, float, float]],
    judges: list[tuple[Reward, float]],
    data: PromptSet,
    validation: PromptSet,
    settings: Train,
    *,
    load: Callable[[], bytes | None],
    save: Callable[[bytes], None],
    progress: Callable[[int, int, str], None],
) -> Trained:
    """Learns the predictor of the settings' kind; PAHI begins where HPI, which is learned before it, ends.

    `rewards` are (model, weight, unit) and train; `judges` are (model, unit), held out, and choose the best step.
    `load` and `save` keep the whole state: a run killed at any step ends with the weights of an undisturbed one.
    Raises UserError where nothing can be learned, PahiError where the gradient vanishes or most steps are not finite.
    """
    if not len(data):
        raise UserError("there are no training prompts; check ingest's splits or add prompts")
    pathwise = settings.estimator == "pathwise"
    ensemble = Ensemble(rewards, [judge for judge, _ in judges], settings.reward_cap, gradients=pathwise)

    torch.manual_seed(settings.seed)
    shape, width = generator.latent_shape, generator.pooled_width
    phases = settings.phases
    if not phases:
        raise UserError(f"train.steps is 0, so no {settings.predictor} predictor can be learned")
    predictor = NoisePredictor.create(phases[0][0], shape, width, settings.hidden, generator.id, generator.hash)
    if not (pathwise or isinstance(predictor, GaussianPredictor)):
        raise UserError(f"train.estimator=score needs a Gaussian predictor, which {settings.predictor} is not")
    predictor.to(generator.device)
    average = {name: p.detach().clone() for name, p in predictor.named_parameters()}
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.0)
    state: dict[str, Any] = {"phase": 0, "step": 0, "best": -math.inf, "best_step": 0, "skipped": 0}
    state |= {"metrics": [], "best_trained": 0.0, "hacked": 0, "stopped": False}
    best = {name: p.clone() for name, p in average.items()}
    hpi = {name: p.clone() for name, p in average.items()}
    saved = load()
    if saved is not None:
        got = torch.load(io.BytesIO(saved), weights_only=True)
        state, best, hpi, average = got["state"], got["best"], got["hpi"], got["average"]
        predictor.load_state_dict(got["predictor"])
        optimizer.load_state_dict(got["optimizer"])

    baseline = {reward.name: data.baseline[reward.name].mean(1).to(generator.device) for reward, _, _ in rewards}
    total = sum(steps for _, steps in phases)
    for number, (phase, steps) in enumerate(phases):
        if number < state["phase"]:
            continue
        predictor.kind = phase
        done_before = sum(steps for _, steps in phases[:number])
        while state["step"] < steps:
            step = state["step"]
            warm = min(1.0, (step + 1) / max(1, min(20, steps // 5)))
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))

            # Prompts and noise of a step depend on its number alone, so that a resumed run sees the same.
            draw = torch.Generator().manual_seed(_seed(settings.seed, phase, step))
            count = settings.batch_size if pathwise else max(1, settings.batch_size // 2)
            index = torch.randint(len(data), (count,), generator=draw)
            ids = [data.prompt_ids[i] for i in index.tolist()]
            seeds = [
                TRAINING_SEEDS + (settings.seed + 1) * 10**9 + (done_before + step) * 10_000 + i
                for i in range(len(ids))
            ]
            eps = standard_noise(ids, seeds, shape).to(generator.device)  # (batch, *latent_shape)
            if not pathwise:  # antithetic: every prompt with eps and with -eps
                index, eps = index.repeat(2), torch.cat([eps, -eps])
            conditioning = data.conditioning.rows(index).to(generator.device)

            x_T, divergence = predictor.draw(conditioning.pooled, eps)
            x_T.retain_grad()
            with torch.set_grad_enabled(pathwise):
                images = generator.decode(generator.denoise(x_T, conditioning))  # (batch, 3, h, w)
                prepared = {n: {k: t[index] for k, t in p.items()} for n, p in data.prepared.items()}
                here = {name: mean[index] for name, mean in baseline.items()}
                uplifts = ensemble.uplifts(images, prepared, [data.texts[i] for i in index.tolist()], here)
            loss = objective.loss(uplifts, ensemble.weights, divergence, settings.beta)

            value = float(loss.detach())
            optimizer.zero_grad(set_to_none=True)
            if isinstance(predictor, GaussianPredictor) and not pathwise:
                mu, log_sigma = predictor.distribution(conditioning.pooled)
                loss = loss - objective.score_function(uplifts, ensemble.weights, x_T, mu, log_sigma)
            loss.backward()
            reward_gradient = float(x_T.grad.abs().sum()) if x_T.grad is not None else 0.0
            norm = float(nn.utils.clip_grad_norm_(predictor.parameters(), settings.clip))
            if math.isfinite(norm) and math.isfinite(value):
                if pathwise and reward_gradient == 0.0:
                    raise PahiError(
                        "the rewards' gradient with respect to the noise is zero: some part runs without gradients"
                    )
                optimizer.step()
                decay = min(settings.ema, (1 + step) / (10 + step))
                with torch.no_grad():
                    for name, p in predictor.named_parameters():
                        average[name].lerp_(p, 1 - decay)
            else:
                state["skipped"] += 1
                if state["skipped"] > 20 and state["skipped"] > 0.2 * (done_before + step):
                    raise PahiError(
                        f"{state['skipped']} steps gave NaN or infinity; lower train.lr or raise the precision"
                    )

            state["step"] = step + 1
            row = {"loss": value, "kl": float(divergence.detach().mean()), "grad_norm": norm}
            row |= {f"reward/{r.name}": float(u.detach().mean()) for (r, _, _), u in zip(rewards, uplifts, strict=True)}
            row["noise_norm"] = float(x_T.detach().square().mean().sqrt())
            _record(state, phase, step + 1, row)

            last = state["step"] == steps
            if len(validation) and (state["step"] % settings.validate_every == 0 or last):
                view = _with(predictor, average, phase)
                measured = validate(generator, [(r, u) for r, _, u in rewards] + judges, validation, view)
                _record(state, phase, step + 1, {f"validation/{name}": value for name, value in measured.items()})
                trained = fmean(measured[r.name] for r, _, _ in rewards)
                chosen = fmean(measured[r.name] for r, _ in judges) if judges else trained
                if chosen > state["best"] and number == len(phases) - 1:
                    state["best"], state["best_step"] = chosen, done_before + state["step"]
                    state["best_trained"], state["hacked"] = trained, 0
                    best = {name: p.clone() for name, p in average.items()}
                elif number == len(phases) - 1:
                    # What training raises goes on rising and what is held out does not: the reward is being hacked.
                    state["hacked"] = state["hacked"] + 1 if trained > state["best_trained"] else 0
                    if settings.patience and state["hacked"] >= settings.patience:
                        state["stopped"] = last = True
            note = ", ".join(f"{name} {row[name]:+.2f}" for name in row if name.startswith("reward/"))
            progress(done_before + state["step"], total, note.replace("reward/", ""))
            if last:
                if phase == "hpi":
                    hpi = {name: p.clone() for name, p in average.items()}
                if state["best"] == -math.inf:  # no validation prompts: the last step is the best there is
                    best = {name: p.clone() for name, p in average.items()}
                    state["best_step"] = done_before + state["step"]
                state["phase"], state["step"] = number + 1, 0
            if last or state["step"] % settings.save_every == 0:
                save(_pack(state, predictor, optimizer, average, best, hpi))
                if last:
                    break

    final = _with(predictor, best, phases[-1][0])
    start = _with(predictor, hpi, "hpi") if phases[0][0] == "hpi" else None
    return Trained(final, start, state["metrics"], state["best_step"], state["skipped"], state["stopped"])


@torch.no_grad()
def validate(
    generator: Generator,
    rewards: list[tuple[Reward, float]],
    data: PromptSet,
    predictor: NoisePredictor,
    batch: int = 64,
) -> dict[str, float]:
    """Mean paired uplift of each reward over the cached baseline: the same prompts, the same first seed's eps."""
    totals = {reward.name: 0.0 for reward, _ in rewards}
    for start in range(0, len(data), batch):
        index = torch.arange(start, min(start + batch, len(data)))
        rows = index.tolist()
        eps = standard_noise([data.prompt_ids[i] for i in rows], [data.seeds[0]] * len(rows), generator.latent_shape)
        conditioning = data.conditioning.rows(index).to(generator.device)
        x_T = predictor(conditioning.pooled, eps.to(generator.device))
        images = generator.decode(generator.denoise(x_T, conditioning))
        for reward, unit in rewards:
            prepared = {name: tensor[index] for name, tensor in data.prepared[reward.name].items()}
            score = reward.score(images, prepared, [data.texts[i] for i in rows]).cpu()
            totals[reward.name] += float(objective.uplift(score, data.baseline[reward.name][index, 0], unit).sum())
    return {name: value / len(data) for name, value in totals.items()}


def _seed(seed: int, phase: str, step: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{phase}:{step}".encode()).digest()[:7], "big")


def _record(state: dict[str, Any], phase: str, step: int, values: dict[str, float]) -> None:
    state["metrics"] += [{"phase": phase, "step": step, "name": name, "value": value} for name, value in values.items()]


def _with(predictor: NoisePredictor, weights: dict[str, Tensor], kind: str) -> NoisePredictor:
    copy = NoisePredictor.create(**{**predictor.config, "kind": kind}).to(next(predictor.parameters()).device)
    copy.load_state_dict(weights)
    return copy.eval()


def _pack(
    state: dict[str, Any],
    predictor: NoisePredictor,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    best: dict[str, Tensor],
    hpi: dict[str, Tensor],
) -> bytes:
    sink = io.BytesIO()
    packed = {
        "state": state,
        "predictor": predictor.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average,
        "best": best,
        "hpi": hpi,
    }
    torch.save(packed, sink)
    return sink.getvalue()
