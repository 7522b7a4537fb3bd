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
from pahi.generators import Generator, standard_noise
from pahi.predictors import GaussianPredictor, NoisePredictor, SelectedPredictor
from pahi.predictors.selected import DECAY, READ
from pahi.rewards import Reward
from pahi.rewards.ensemble import Ensemble
from pahi.settings import Train
from pahi.training import objective
from pahi.training.critic import ALONG, FIT, FORESEEN, Critic, regression
from pahi.training.data import PromptSet
from pahi.training.memory import Memory
from pahi.training.parallel import Group
from pahi.training.validation import validate

__all__ = ["PromptSet", "Trained", "train"]

STATE_FORMAT = 3  # of the saved state; a state of another one is not gone on from
TRAINING_SEEDS = 2**32  # above every seed that a person chooses, so that training never sees an evaluation's noise


@dataclass
class Trained:
    """The best predictor by the held-out reward on validation prompts, and what was measured on the way."""

    predictor: NoisePredictor
    hpi: NoisePredictor | None  # where it was learned on the way
    metrics: list[dict[str, Any]] = field(default_factory=list)
    best_step: int = 0
    skipped_steps: int = 0
    stopped: bool = False  # early, since held-out rewards no longer rose with the training rewards
    figures: dict[str, float] = field(default_factory=dict)  # of the best step: the metrics' names
    left_out: int = 0  # training prompts whose baseline is not finite


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
    watch: Callable[[int, dict[str, float]], None] | None = None,
) -> Trained:
    """Learns the predictor of the settings' kind; PAHI begins where HPI, which is learned before it, was best.

    `rewards` are (model, weight, unit) and train; `judges` are (model, unit), held out, and choose the best step.
    `load` and `save` keep the whole state: a run killed at any step ends with the weights of an undisturbed one.
    `watch` is told a step's number, counted over all phases, and its figures. Where torch.distributed is initialised,
    the processes share each step's prompts, and the first alone saves and reports.
    Raises UserError where nothing can be learned, PahiError where the gradient vanishes or most steps are not finite.
    """
    if not len(data):
        raise UserError("there are no training prompts; check ingest's splits or add prompts")
    usable = data.usable([reward.name for reward, _, _ in rewards])
    if not len(usable):
        raise UserError("no training prompt has a finite baseline: the generator or a reward returns NaN or infinity")
    pathwise = settings.gradients
    count = settings.prompts_a_step
    group = Group()
    if group.size > count:
        raise UserError(f"{group.size} processes cannot share {count} prompts a step; raise train.batch_size")
    ensemble = Ensemble(rewards, [judge for judge, _ in judges], settings.reward_cap, gradients=pathwise)

    torch.manual_seed(settings.seed)
    shape, width = generator.latent_shape, generator.pooled_width
    phases = settings.phases
    if not phases:
        raise UserError(f"train.steps is 0, so no {settings.predictor} predictor can be learned")
    own = {"candidates": settings.candidates} if settings.chooses else {}
    predictor = NoisePredictor.create(phases[0][0], shape, width, settings.hidden, generator.id, generator.hash, **own)
    gaussian = predictor if isinstance(predictor, GaussianPredictor) else None
    chooser = predictor if isinstance(predictor, SelectedPredictor) else None
    by_score = settings.estimator == "score" and chooser is None
    if by_score and gaussian is None:
        raise UserError(f"train.estimator=score needs a Gaussian predictor, which {settings.predictor} is not")
    predictor.to(generator.device)
    average = {name: p.detach().clone() for name, p in predictor.named_parameters()}
    weight_decay = 0.0 if chooser is None else DECAY
    optimizer = torch.optim.AdamW(predictor.parameters(), settings.lr, betas=(0.9, 0.99), weight_decay=weight_decay)
    # A picture's gradient is smaller than float16 can hold: scaled up before it goes through such networks, and back.
    scaler = torch.amp.GradScaler(generator.device.type, enabled=generator.dtype == torch.float16)
    state: dict[str, Any] = {"phase": 0, "step": 0, "best": -math.inf, "best_step": 0, "skipped": 0}
    state |= {"metrics": [], "best_trained": 0.0, "hacked": 0, "stopped": False, "figures": {}, "drawn": 0}
    best = {name: p.clone() for name, p in average.items()}
    hpi = {name: p.clone() for name, p in average.items()}
    # Where scores alone are learned from: V, which is the predictor itself or stands beside it.
    beside = settings.learns_value and chooser is None
    value = NoisePredictor.create("selected", shape, width, settings.hidden) if beside else chooser
    to_draw = -(-settings.pictures // count) if settings.learns_value else 0
    memory = critic = None
    if isinstance(value, SelectedPredictor):
        later = sum(steps for _, steps in phases) if beside else 0
        memory = Memory((to_draw + later) * count, value.numbers)
        if beside:
            critic = Critic(value.to(generator.device), memory, group)
    saved = load()
    got = {} if saved is None else torch.load(io.BytesIO(saved), weights_only=True, map_location=generator.device)
    if got.get("format") == STATE_FORMAT:
        state, best, hpi, average = got["state"], got["best"], got["hpi"], got["average"]
        predictor.load_state_dict(got["predictor"])
        optimizer.load_state_dict(got["optimizer"])
        scaler.load_state_dict(got["scaler"])
        if memory is not None:
            memory.load(got["memory"])
        if critic is not None:
            critic.load(got["critic"])

    baseline = {reward.name: data.baseline[reward.name].mean(1).to(generator.device) for reward, _, _ in rewards}
    all_pooled = data.conditioning.pooled
    total = to_draw + sum(steps for _, steps in phases)

    # Prompts and noise of a step depend on its number alone, so that a resumed run sees the same, and so do several
    # processes, each of which takes its share, and several parts, one after another.
    def noise(index: Tensor, rows: Tensor, first_seed: int) -> Tensor:
        """eps of some rows of a step, (rows, *latent_shape)."""
        seeds = [first_seed + i for i in rows.tolist()]
        return standard_noise([data.prompt_ids[i] for i in index.tolist()], seeds, shape).to(generator.device)

    def scored(index: Tensor, x_T: Tensor) -> list[Tensor]:
        """Uplifts of the pictures of these prompts and noises, by reward, (rows,) each."""
        images = generator.decode(generator.denoise(x_T, data.conditioning.rows(index).to(generator.device)))
        here = {name: mean[index] for name, mean in baseline.items()}
        return ensemble.uplifts(images, data.prepared_rows(index), [data.texts[i] for i in index.tolist()], here)

    def skip(steps_so_far: int) -> None:
        state["skipped"] += 1
        if state["skipped"] > 20 and state["skipped"] > 0.2 * steps_so_far:
            raise PahiError(f"{state['skipped']} steps gave NaN or infinity; lower train.lr or raise the precision")

    def remember(prompts: Tensor, step: int, drawn_by: NoisePredictor | None = None) -> list[float]:
        """Draws a step's pictures, from standard noise or a predictor's, and keeps what they scored.

        `step` counts all draws. Returns mean uplifts, by reward.
        """
        assert memory is not None and isinstance(value, SelectedPredictor)
        seen = torch.zeros(count, value.numbers + 1 + len(rewards), device=generator.device)
        for rows in group.share(torch.arange(count)).tensor_split(settings.accumulate):
            if not len(rows):
                continue
            with torch.no_grad():
                x_T = noise(prompts[rows], rows, _first_seed(settings.seed, step))
                if drawn_by is not None:
                    x_T, _ = drawn_by.draw(all_pooled[prompts[rows]].to(generator.device), x_T)
                uplifts = scored(prompts[rows], x_T)
                every = [objective.weighted(uplifts, ensemble.weights), *uplifts]
                seen[rows] = torch.cat([value.coordinates(x_T), torch.stack(every, 1).float()], 1)
        group.sum([seen])
        memory.add(prompts, seen[:, : value.numbers + 1])
        means = seen[:, value.numbers + 1 :].mean(0).tolist()
        if not all(map(math.isfinite, means)):
            skip(step)
        return means

    # V learns from what standard noise scores: that is drawn first, once.
    while memory is not None and state["drawn"] < to_draw:
        step = state["drawn"]
        draw = torch.Generator().manual_seed(_seed(settings.seed, "drawn", step))
        prompts = usable[torch.randint(len(usable), (count,), generator=draw)]
        remember(prompts, step)
        state["drawn"] = step + 1
        if group.writes:
            progress(state["drawn"], total, "pictures to learn from")
            if state["drawn"] % settings.save_every == 0 or state["drawn"] == to_draw:
                save(_pack(state, predictor, optimizer, scaler, average, best, hpi, memory, critic))
    if memory is not None and not len(memory.usable()):
        raise PahiError("no picture has a finite reward, so nothing can be learned; raise the precision")
    if critic is not None and not (state["phase"] or state["step"]):
        for step in range(FIT):
            draw = torch.Generator().manual_seed(_seed(settings.seed, "fit", step))
            critic.learn(all_pooled, _rate(settings.value_lr, step, FIT), draw, settings.clip)
    readable = usable if memory is None or critic is not None else memory.usable()
    rows_a_step = max(count, FORESEEN) if critic is not None else count if memory is None else READ

    for number, (phase, steps) in enumerate(phases):
        if number < state["phase"]:
            continue
        predictor.kind = phase
        done_before = sum(steps for _, steps in phases[:number])
        # Numbers that are the noise's own mean and scale bear a larger rate than weights of which hundreds add up.
        rate = {"hpi": settings.hpi_lr, "scale": settings.hpi_lr, "selected": settings.value_lr}.get(phase, settings.lr)
        final = number == len(phases) - 1
        while state["step"] < steps:
            step = state["step"]
            for entry in optimizer.param_groups:
                entry["lr"] = _rate(rate, step, steps)

            draw = torch.Generator().manual_seed(_seed(settings.seed, phase, step))
            drawn = readable[torch.randint(len(readable), (rows_a_step,), generator=draw)]
            since_start = to_draw + done_before + step
            gained = None
            if critic is not None:  # some pictures of where the predictor is by now
                gained = remember(drawn[:count], since_start, predictor)
                critic.learn(all_pooled, ALONG * settings.value_lr, draw, settings.clip)
            optimizer.zero_grad(set_to_none=True)
            figures = torch.zeros(4 + (len(rewards) if critic is None else 1), device=generator.device)
            for rows in group.share(torch.arange(rows_a_step)).tensor_split(settings.accumulate):
                if not len(rows):
                    continue
                share = len(rows) / rows_a_step  # of the step's mean
                if chooser is not None and memory is not None:
                    loss = regression(chooser, memory, drawn[rows], all_pooled)
                    scaler.scale(share * loss).backward()
                    figures[1] += share * loss.detach()
                    continue
                index = drawn[rows]
                eps = noise(index, rows, _first_seed(settings.seed, since_start))
                pooled = all_pooled[index].to(generator.device)
                if by_score:  # antithetic: every prompt with eps and with -eps
                    assert gaussian is not None
                    mu, log_sigma = (t.repeat(2, 1, 1, 1) for t in gaussian.distribution(pooled))
                    x_T = (mu + log_sigma.exp() * torch.cat([eps, -eps])).detach()
                    divergence = objective.kl_per_dimension(mu, log_sigma)
                    index = index.repeat(2)
                else:
                    x_T, divergence = predictor.draw(pooled, eps)
                    x_T.retain_grad()
                with torch.set_grad_enabled(not by_score):
                    uplifts = scored(index, x_T) if critic is None else [critic.foresee(pooled, x_T)]
                weights = ensemble.weights if critic is None else [1.0]
                loss = objective.loss(uplifts, weights, divergence, settings.beta)
                measured = [loss, divergence.mean(), x_T.square().mean(), *(u.mean() for u in uplifts)]
                if by_score:
                    loss = loss - objective.score_function(uplifts, ensemble.weights, x_T, mu, log_sigma)
                scaler.scale(share * loss).backward()
                figures[1:] += share * torch.stack([figure.detach().float() for figure in measured])
                if x_T.grad is not None:
                    figures[0] += x_T.grad.abs().sum()
            group.sum([figures, *(p.grad for p in predictor.parameters() if p.grad is not None)])
            reward_gradient, loss_now, kl, square, *ups = figures.tolist()
            scaler.unscale_(optimizer)
            norm = float(nn.utils.clip_grad_norm_(predictor.parameters(), settings.clip))
            if math.isfinite(norm) and math.isfinite(loss_now):
                if pathwise and reward_gradient == 0.0:
                    raise PahiError(
                        "the rewards' gradient with respect to the noise is zero: some part runs without gradients"
                    )
                scaler.step(optimizer)
                decay = min(settings.ema, (1 + step) / (10 + step))
                with torch.no_grad():
                    for name, p in predictor.named_parameters():
                        average[name].lerp_(p, 1 - decay)
            else:
                skip(since_start)
            scaler.update()

            state["step"] = step + 1
            row = {"loss": loss_now, "kl": kl if chooser is None else chooser.divergence, "grad_norm": norm}
            if chooser is None:
                if gained is not None:
                    row["foreseen"], ups = ups[0], gained
                row |= {f"reward/{reward.name}": up for (reward, _, _), up in zip(rewards, ups, strict=True)}
                row["noise_norm"] = math.sqrt(square)

            last = state["step"] == steps
            if len(validation) and (state["step"] % settings.validate_every == 0 or last):
                view = _with(predictor, average, phase)
                every = [(reward, unit) for reward, _, unit in rewards] + judges
                found = validate(generator, every, validation, view, group, settings.validation_seeds)
                row |= {f"validation/{name}": uplift for name, uplift in found.items()}
                trained = fmean(found[r.name] for r, _, _ in rewards)
                chosen = fmean(found[r.name] for r, _ in judges) if judges else trained
                if chosen > state["best"]:
                    state["best"], state["best_step"] = chosen, done_before + state["step"]
                    state["best_trained"], state["hacked"], state["figures"] = trained, 0, row
                    best = {name: p.clone() for name, p in average.items()}
                elif final:
                    # What training raises goes on rising and what is held out does not: the reward is being hacked.
                    state["hacked"] = state["hacked"] + 1 if trained > state["best_trained"] else 0
                    if settings.patience and state["hacked"] >= settings.patience:
                        state["stopped"] = last = True
            state["metrics"] += [{"phase": phase, "step": step + 1, "name": n, "value": v} for n, v in row.items()]
            if group.writes:
                if watch is not None:
                    watch(done_before + state["step"], row)
                note = ", ".join(f"{name} {row[name]:+.2f}" for name in row if name.startswith("reward/"))
                note = f"uplift {note.replace('reward/', '')}" if note else f"loss {loss_now:.2f}"
                progress(to_draw + done_before + state["step"], total, note)
            if last:
                if state["best"] == -math.inf:  # no validation prompts: the last step is the best there is
                    best = {name: p.clone() for name, p in average.items()}
                    state["best_step"], state["figures"] = done_before + state["step"], row
                if phase == "hpi":
                    hpi = best
                if not final:  # the next one begins where this one was best, and is chosen where it is better
                    average = {name: p.clone() for name, p in best.items()}
                    predictor.load_state_dict(best)
                state["phase"], state["step"] = number + 1, 0
            if group.writes and (last or state["step"] % settings.save_every == 0):
                save(_pack(state, predictor, optimizer, scaler, average, best, hpi, memory, critic))
            if last:
                break

    if chooser is None and state["skipped"] == total:
        raise PahiError("every step gave NaN or infinity, so nothing was learned; raise the precision")
    best_one = _with(predictor, best, phases[-1][0])
    start = _with(predictor, hpi, "hpi") if phases[0][0] == "hpi" else None
    measures = state["best_step"], state["skipped"], state["stopped"], state["figures"]
    return Trained(best_one, start, state["metrics"], *measures, left_out=len(data) - len(usable))


def _rate(peak: float, step: int, steps: int) -> float:
    """Warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / max(1, min(20, steps // 5)))
    return peak * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def _first_seed(seed: int, step: int) -> int:
    """Of the noise of a step, counted over all phases."""
    return TRAINING_SEEDS + (seed + 1) * 10**9 + step * 10_000


def _seed(seed: int, phase: str, step: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{phase}:{step}".encode()).digest()[:7], "big")


def _with(predictor: NoisePredictor, weights: dict[str, Tensor], kind: str) -> NoisePredictor:
    copy = NoisePredictor.create(**{**predictor.config, "kind": kind}).to(next(predictor.parameters()).device)
    copy.load_state_dict(weights)
    return copy.eval()


def _pack(
    state: dict[str, Any],
    predictor: NoisePredictor,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    average: dict[str, Tensor],
    best: dict[str, Tensor],
    hpi: dict[str, Tensor],
    memory: Memory | None,
    critic: Critic | None,
) -> bytes:
    sink = io.BytesIO()
    packed = {
        "format": STATE_FORMAT,
        "state": state,
        "predictor": predictor.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "average": average,
        "best": best,
        "hpi": hpi,
    }
    if memory is not None:
        packed["memory"] = memory.state()
    if critic is not None:
        packed["critic"] = critic.state()
    torch.save(packed, sink)
    return sink.getvalue()
