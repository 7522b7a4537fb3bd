"""The device's side of bulk generation: a batch goes through every network and leaves for the host, whatever happens.

    text -> conditioning -> x_T (predictor) -> latents (one step) -> pictures (decoder) -> scores (rewards) -> host

Every row of a batch has its place in it. A batch whose networks raise is drawn again with part of its rows, the others'
places filled with copies, until the rows that raise are known: the rest are bit for bit what they would have been. Out
of memory, the same batch is tried once more after what is unused was given back, and then in halves, from then on.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pahi.errors import UserError, first_line
from pahi.generation.pictures import faults
from pahi.generation.plan import STANDARD, Sample
from pahi.generators import Conditioning, Generator, standard_noise
from pahi.predictors import GaussianPredictor, NoisePredictor
from pahi.rewards import Prepared, Reward

NOISE_NORM, KL, NOT_FINITE, FLAT, SCORES = 0, 1, 2, 3, 4  # columns of Drawn.numbers
Places = list[int | None]  # for each place of a batch, the row that stands there, or None for a copy of another


@dataclass
class Drawn:
    """One batch on the host, once `ready()` has returned."""

    samples: list[Sample]
    pixels: Tensor  # (n, h, w, 3), uint8
    numbers: Tensor  # (n, SCORES + rewards), float32: norm of x_T over sqrt(d), KL, not finite, flat, each raw score
    reasons: list[str | None]  # why a row could not be drawn at all
    truncated: list[bool]
    ready: Callable[[], None]

    @cached_property
    def values(self) -> list[list[float]]:
        """`numbers` as Python has them: a tensor takes microseconds for every one that is asked for."""
        return self.numbers.tolist()

    def reason(self, row: int) -> str | None:
        """Why a row failed, or None."""
        if self.reasons[row]:
            return self.reasons[row]
        if self.values[row][NOT_FINITE]:
            return "not finite"
        return "flat" if self.values[row][FLAT] else None


@dataclass
class _Batch:
    samples: list[Sample]
    texts: list[str]  # the batch's prompts, each once
    text: list[int]  # row of `texts`, a sample
    conditioning: Conditioning
    prepared: dict[str, Prepared]
    eps: Tensor


class Drawer:
    """Draws samples of prompts with one generator, one predictor and the rewards."""

    def __init__(self, generator: Generator, predictor: NoisePredictor, rewards: Sequence[Reward]) -> None:
        self.generator, self.predictor, self.rewards = generator, predictor, list(rewards)
        self.limit: int | None = None  # pictures that fit into memory, once more did not

    @torch.no_grad()
    def draw(self, prompts: list[dict[str, Any]], samples: list[Sample], pooled: dict[int, Tensor]) -> Drawn:
        """One batch of samples of `prompts` (rows with prompt_id and text).

        Adds each prompt's pooled embedding to `pooled`, by its row.
        """
        n = len(samples)
        self._host: tuple[Tensor, Tensor] | None = None
        batch, reasons = self._prepare(prompts, samples)
        truncated = [False] * n
        if batch is not None:
            truncated = [batch.conditioning.truncated[t] for t in batch.text]
            for row, sample in enumerate(samples):
                if reasons[row] is None:
                    pooled.setdefault(sample.prompt, batch.conditioning.pooled[batch.text[row]])
            step = min(self.limit or n, n)
            for start in range(0, n, step):
                rows = range(start, min(start + step, n))
                places: Places = [row if reasons[row] is None else None for row in rows]
                self._survive(batch, places + [None] * (step - len(rows)), reasons)
        height, width = self.generator.size
        pixels, numbers = self._host or (
            torch.zeros(n, height, width, 3, dtype=torch.uint8),
            torch.zeros(n, SCORES + len(self.rewards)),
        )
        return Drawn(samples, pixels, numbers, reasons, truncated, self._event())

    @torch.no_grad()
    def distribution(self, pooled: Tensor) -> tuple[Tensor, Tensor] | None:
        """mu and sigma of pooled embeddings (batch, width), each (batch, *latent_shape); None for no Gaussian."""
        if not isinstance(self.predictor, GaussianPredictor):
            return None
        mu, log_sigma = self.predictor.distribution(pooled)
        return mu.detach(), log_sigma.detach().exp()

    def decode(self, latents: Tensor) -> Tensor:
        """Clean latents (batch, *latent_shape) -> pictures (batch, 3, h, w) around [0, 1]."""
        if self.generator.device.type == "cpu":
            # A decoder's convolutions go on in the layout that they are given; a CPU's are a fifth faster in this one.
            latents = latents.contiguous(memory_format=torch.channels_last)
        return self.generator.decode(latents)

    # ------------------------------------------------------------------------------------------------------- the text

    def _prepare(self, prompts: list[dict[str, Any]], samples: list[Sample]) -> tuple[_Batch | None, list[str | None]]:
        """The batch's text sides, and for each row why its prompt cannot be encoded."""
        used = list(dict.fromkeys(sample.prompt for sample in samples))
        texts = [prompts[i]["text"] for i in used]
        bad: dict[int, str] = {}
        sides = self._text_sides(texts, bad)
        row_of = {i: row for row, i in enumerate(used)}
        reasons = [bad.get(row_of[sample.prompt]) for sample in samples]
        if sides is None:
            return None, reasons
        ids, seeds = [prompts[s.prompt]["prompt_id"] for s in samples], [s.seed for s in samples]
        eps = standard_noise(ids, seeds, self.generator.latent_shape)
        if self._cuda:
            eps = eps.pin_memory()
        eps = eps.to(self.generator.device, non_blocking=True)
        return _Batch(samples, texts, [row_of[s.prompt] for s in samples], *sides, eps), reasons

    def _text_sides(self, texts: list[str], bad: dict[int, str]) -> tuple[Conditioning, dict[str, Prepared]] | None:
        """Of every text; those that raise are put down in `bad`, another stands in their place."""
        try:
            return self._encode(texts)
        except (UserError, torch.AcceleratorError):
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
        for row, text in enumerate(texts):
            try:
                self._encode([text])
            except Exception as error:
                bad[row] = f"its text cannot be encoded: {type(error).__name__}: {first_line(error)}"
        good = [text for row, text in enumerate(texts) if row not in bad]
        if not good:
            return None
        return self._encode([good[0] if row in bad else text for row, text in enumerate(texts)])

    def _encode(self, texts: list[str]) -> tuple[Conditioning, dict[str, Prepared]]:
        return self.generator.encode(texts), {reward.name: reward.prepare(texts) for reward in self.rewards}

    # --------------------------------------------------------------------------------------------------- the networks

    def _survive(self, batch: _Batch, places: Places, reasons: list[str | None], again: bool = False) -> None:
        """Draws the rows that stand in `places`; those that raise get a reason."""
        rows = [row for row in places if row is not None]
        if not rows:
            return
        memory, reason = False, ""
        try:
            filled = [rows[0] if row is None else row for row in places]
            self._to_host(len(batch.samples), places, *self._networks(batch, filled))
            return
        except (UserError, torch.AcceleratorError):
            raise  # the same for every row, or a device that is lost to this process
        except Exception as error:
            memory = out_of_memory(error)
            reason = f"{type(error).__name__}: {first_line(error)}"
        # Outside of the clause above, whose traceback holds the tensors of the failed attempt.
        if memory:
            self._give_back()
            if not again:
                self._survive(batch, places, reasons, again=True)
                return
            if len(places) == 1:
                raise UserError(
                    f"not even one picture fits into the memory of {self.generator.device}; use a smaller "
                    "generator.size or generator.dtype=bfloat16"
                )
            self.limit = half = -(-len(places) // 2)
            self._survive(batch, places[:half], reasons)
            self._survive(batch, places[half:] + [None] * (2 * half - len(places)), reasons)
        elif len(rows) == 1:
            reasons[rows[0]] = reason
        else:
            first = set(rows[: len(rows) // 2])
            self._survive(batch, [row if row in first else None for row in places], reasons)
            self._survive(batch, [None if row in first else row for row in places], reasons)

    def _networks(self, batch: _Batch, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Pixels (n, h, w, 3) and numbers (n, SCORES + rewards) of the batch's rows, on the device."""
        texts = torch.tensor([batch.text[row] for row in rows])
        conditioning, eps = batch.conditioning.rows(texts), batch.eps[torch.tensor(rows)]
        x_T, divergence = self.predictor.draw(conditioning.pooled, eps)
        plain = torch.tensor([batch.samples[row].arm == STANDARD for row in rows], device=eps.device)
        x_T, divergence = torch.where(plain.view(-1, 1, 1, 1), eps, x_T), divergence.masked_fill(plain, 0)
        images = self.decode(self.generator.denoise(x_T, conditioning))
        columns = [x_T.flatten(1).square().mean(1).sqrt(), divergence, *faults(images)]
        for reward in self.rewards:
            prepared = {name: tensor[texts] for name, tensor in batch.prepared[reward.name].items()}
            columns.append(reward.score(images, prepared, [batch.texts[batch.text[row]] for row in rows]))
        pixels = (torch.nan_to_num(images).float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
        return pixels.contiguous(), torch.stack([c.to(eps.device, torch.float32) for c in columns], 1)

    # ------------------------------------------------------------------------------------------------------- the host

    @property
    def _cuda(self) -> bool:
        return self.generator.device.type == "cuda"

    def _to_host(self, n: int, places: Places, pixels: Tensor, numbers: Tensor) -> None:
        """Copies what was drawn to its rows on the host; a whole batch without waiting for the device."""
        if places == list(range(n)) and not self._cuda:
            self._host = pixels, numbers
            return
        if self._host is None:
            self._host = (
                torch.zeros(n, *pixels.shape[1:], dtype=torch.uint8, pin_memory=self._cuda),
                torch.zeros(n, numbers.shape[1], pin_memory=self._cuda),
            )
        if places == list(range(n)):
            self._host[0].copy_(pixels, non_blocking=True)
            self._host[1].copy_(numbers, non_blocking=True)
            return
        at = [place for place, row in enumerate(places) if row is not None]
        rows = torch.tensor([places[place] for place in at])
        self._host[0][rows] = pixels[at].cpu()
        self._host[1][rows] = numbers[at].cpu()

    def _event(self) -> Callable[[], None]:
        if not self._cuda:
            return lambda: None
        event = torch.cuda.Event()
        event.record()
        return event.synchronize

    def _give_back(self) -> None:
        if self._cuda:
            gc.collect()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, the device's or the host's, did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error).lower() for words in ("out of memory", "not enough memory", "alloc_failed")
    )
