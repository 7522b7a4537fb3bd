"""The best of several noises by what their pictures would score, which a small network foresees: one call a picture.

    x_T = s_k eps,    k = argmax_j V(s_j eps; c),    V(eps; c) = E[ sum_k w_k u_k | the lowest frequencies of eps, c ]

s_j are fixed signs, one for every number of the latent (s_0 are ones), so each s_j eps is standard normal, and any two
have all but nothing in common. Best of N draws N pictures to keep one. V reads the noise instead, before anything is
drawn: a few numbers, the low frequencies, where one-step generators decide layout and colour. What is chosen is noise
as it was drawn: no mean, no scale, the length of eps. Its KL from the prior is best of N's, for independent candidates

    KL(q || N(0, I)) = log N - (N - 1) / N

and never more than log N, whatever V is. V is learned by regression on scores alone, so that neither the generator nor
a reward needs gradients (`pahi.training.objective.value_loss`).
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pahi.predictors.base import Kind, NoisePredictor, zeroed
from pahi.predictors.frequencies import cosines, lowest

CANDIDATES = 16
AT_ONCE = 2**24  # numbers of candidates that are looked at together
READ = 1024  # pictures' scores that a step of learning reads
DECAY = 0.6  # AdamW's: there are few pictures for what a prompt's words could say of them
FADING = 0.25  # of a frequency's numbers, for each step up: the lower ones decide more


class SelectedPredictor(NoisePredictor):
    """V, and the choice by it. `candidates` may be changed after training: more are better and less diverse."""

    KINDS: ClassVar[dict[str, Kind]] = {
        "selected": Kind(
            "Selected",
            "The best of several noises, foreseen",
            "The one of several standard noises whose picture is foreseen to score best, by the prompt and the noise.",
        )
    }
    OWN: ClassVar[tuple[str, ...]] = ("candidates",)

    def __init__(self, *args: Any, candidates: int = CANDIDATES, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.candidates = candidates
        channels, height, width = self.latent_shape
        rows, columns = cosines(height), cosines(width)
        up, along = torch.arange(len(rows)), torch.arange(len(columns))
        fading = FADING ** (up[:, None].square() + along.square()).sqrt()
        for name, tensor in (("rows", rows), ("columns", columns), ("fading", fading)):
            self.register_buffer(name, tensor, persistent=False)
        self.numbers = channels * fading.numel()
        self.kept: Tensor | None = None  # the signs, once they are asked for
        words = max(4, self.hidden // 4)
        self.words = nn.Sequential(nn.LayerNorm(self.pooled_width), nn.Linear(self.pooled_width, words), nn.GELU())
        self.read, self.think = nn.Linear(self.numbers, self.hidden), nn.Linear(self.hidden, self.hidden)
        self.films = nn.ModuleList(nn.Linear(words, 2 * self.hidden) for _ in range(2))
        self.last = zeroed(nn.Linear(self.hidden + words, 1))

    def coordinates(self, eps: Tensor) -> Tensor:
        """Noise (batch, *latent_shape) -> (batch, numbers): what V reads of it."""
        return (lowest(eps, self.rows, self.columns) * self.fading).flatten(1)  # type: ignore[arg-type, operator]

    def value(self, pooled: Tensor, z: Tensor) -> Tensor:
        """(batch, pooled_width) and coordinates (batch, numbers) -> the sum of weighted uplifts foreseen, (batch,)."""
        words = self.words(pooled.float())
        x = z
        for layer, film in zip((self.read, self.think), self.films, strict=True):
            scale, shift = film(words).chunk(2, 1)
            x = F.gelu(layer(x) * (1 + scale) + shift)
        return self.last(torch.cat([x, words], 1))[:, 0]

    def draw(self, pooled: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """The candidate foreseen to be best, and the KL; untrained, all are as good, and the first one is eps."""
        signs, values = self.signs(), []
        for some in signs.split(max(1, AT_ONCE // eps.numel())):
            z = self.coordinates((some[:, None] * eps).flatten(0, 1))
            values.append(self.value(pooled.repeat(len(some), 1), z).view(len(some), -1))
        every = torch.cat(values)  # (candidates, batch)
        chosen = every.argmax(0)  # the first of several
        chooses = every.amax(0) > every.amin(0)
        return eps * signs[chosen], chooses * self.divergence

    @property
    def divergence(self) -> float:
        """The KL of the best of independent candidates, a dimension."""
        n = self.candidates
        return (math.log(n) - (n - 1) / n) / int(torch.Size(self.latent_shape).numel())

    def signs(self) -> Tensor:
        """(candidates, *latent_shape) of 1 and -1, int8, ones first.

        The same in every process, and the same ones begin a longer list.
        """
        device = self.fading.device
        if self.kept is None or len(self.kept) != self.candidates or self.kept.device != device:
            draw = torch.Generator().manual_seed(0)
            ones = torch.ones(self.latent_shape, dtype=torch.int8)
            each = [torch.randint(2, self.latent_shape, generator=draw) for _ in range(1, self.candidates)]
            self.kept = torch.stack([ones, *((2 * s - 1).to(torch.int8) for s in each)]).to(device)  # type: ignore[arg-type]
        return self.kept
