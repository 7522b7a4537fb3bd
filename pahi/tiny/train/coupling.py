"""Which scene a noise leads to: of the scenes that a prompt allows, the one whose code lies nearest to it.

Flow matching with independent noise learns some map from noise to pictures over very many steps. Pairing noise and data
beforehand spares that (Pooladian et al. 2023, "Multisample Flow Matching"; Tong et al. 2023, "Minibatch Optimal
Transport"). Here a prompt allows few enough scenes for the pairing to be solved between the whole normal distribution
and all of them (semi-discrete optimal transport): the noise goes to the scene with the largest product, plus a number
that makes all scenes equally frequent.

The product is not with the scenes' latents. Where it was, what a noise asks for depended on the prompt's shapes and
colours, and a small network read it badly: it drew both diagonals at once. A code says of every scene alike where
things lie, how large, on what background and in which colours, so one reading of the noise serves every prompt. Where
two scenes are almost equally near, a single step cannot decide and shows both at once: that is what makes some noise
bad, as with the published models.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pahi.tiny import scenes
from pahi.tiny.scenes import Scene, Spec


def noise_of(count: int, seed: int) -> Tensor:
    """(count, 4, 16, 16), standard normal."""
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def levels(likeness: Tensor, temperature: float = 4.0, rounds: int = 60) -> Tensor:
    """(noises, scenes) -> (scenes,): what to add so that the largest of a row is every scene equally often.

    Sinkhorn's iterations; the products of unit noise with a scene spread by some 30, so the temperature is a cold one.
    """
    level = -likeness.mean(0)
    share = torch.tensor(likeness.shape[0] / likeness.shape[1]).log()
    for _ in range(rounds):
        row = torch.logsumexp((likeness + level) / temperature, 1, keepdim=True)
        level = temperature * (share - torch.logsumexp(likeness / temperature - row, 0))
    return level - level.mean()


def code(scene: Scene) -> Tensor:
    """(4, 16, 16): what a scene leaves to the noise, in the means of the four channels.

    A mean over the whole picture is what a small network reads first and surest. Channel 0: the colour of the thing
    named first, and as its left half against its right one, the second's. 1: on which side the first thing lies (of
    three alike, the empty quarter). 2: the diagonal; of a thing alone, its size. 3: the background.
    """
    fields, palette = torch.zeros(4, 16, 16), list(scenes.COLORS)
    things, half = scene.things, scenes.SIZE / 2
    first = things[0]
    if len(things) == 3:
        taken = {(t.cx > half, t.cy > half) for t in things}
        ((right, low),) = {(x > 0, y > 0) for x, y in scenes.QUARTERS} - taken
    else:
        right, low = first.cx > half, first.cy > half
    alone = len(things) == 1 and first.cx == half
    fields[0] = palette.index(first.color) / 3 - 1
    if len({thing.shape for thing in things}) == 2:
        second = palette.index(things[1].color) / 3 - 1
        fields[0, :, :8] += second
        fields[0, :, 8:] -= second
    fields[1] = 1.0 if right else -1.0
    fields[2] = 1.0 if (first.r == scenes.SIZES["large"] if alone else right == low) else -1.0
    fields[3] = list(scenes.BACKGROUNDS).index(scene.background) - 1.0
    return fields


@dataclass
class Transport:
    """The transport from noise to the latents of every scene that a spec allows."""

    index: dict[Scene, int]
    latents: Tensor  # (scenes, 1024), scaled
    codes: Tensor  # (scenes, 1024)

    def __post_init__(self) -> None:
        self._noise = noise_of(1024, 16).flatten(1)
        self._options: dict[Spec, tuple[Tensor, Tensor]] = {}

    def options(self, spec: Spec) -> tuple[Tensor, Tensor]:
        """Rows of `latents` that show `spec`, and their levels."""
        if spec not in self._options:
            rows = torch.tensor([self.index[scene] for scene in scenes.possible(spec)])
            self._options[spec] = rows, levels(self._noise @ self.codes[rows].T)
        return self._options[spec]

    def __call__(self, specs: list[Spec], noise: Tensor) -> Tensor:
        """n specs and noise (n, 4, 16, 16) -> the latents of the scene that each leads to, (n, 4, 16, 16)."""
        chosen = []
        for spec, eps in zip(specs, noise.flatten(1), strict=True):
            rows, level = self.options(spec)
            chosen.append(rows[(self.codes[rows] @ eps + level).argmax()])
        return self.latents[torch.stack(chosen)].view_as(noise)
