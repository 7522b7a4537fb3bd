"""Which scene a noise leads to: of the scenes that a prompt allows, the one that lies nearest.

Flow matching with independent noise learns some map from noise to pictures over very many steps, and its paths are
curved. Optimal transport from noise to data makes them straight (Pooladian et al. 2023, "Multisample Flow Matching";
Tong et al. 2023, "Minibatch Optimal Transport"). Here a prompt allows few enough scenes for the transport to be solved
between the whole normal distribution and all of them (semi-discrete, as in Kornilov et al. 2024): the noise goes to the
scene with the largest product, plus a number that makes all scenes equally frequent. Where two scenes are almost
equally near, a single step cannot decide and shows both at once: that is what makes some noise bad, as with the
published models.
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


@dataclass
class Transport:
    """The transport from noise to the latents of every scene that a spec allows."""

    index: dict[Scene, int]
    latents: Tensor  # (scenes, 1024), scaled

    def __post_init__(self) -> None:
        self._noise = noise_of(1024, 16).flatten(1)
        self._options: dict[Spec, tuple[Tensor, Tensor]] = {}

    def options(self, spec: Spec) -> tuple[Tensor, Tensor]:
        """Rows of `latents` that show `spec`, and their levels."""
        if spec not in self._options:
            rows = torch.tensor([self.index[scene] for scene in scenes.possible(spec)])
            self._options[spec] = rows, levels(self._noise @ self.latents[rows].T)
        return self._options[spec]

    def __call__(self, specs: list[Spec], noise: Tensor) -> Tensor:
        """n specs and noise (n, 4, 16, 16) -> the latents of the scene that each leads to, (n, 4, 16, 16)."""
        chosen = []
        for spec, eps in zip(specs, noise.flatten(1), strict=True):
            rows, level = self.options(spec)
            chosen.append(rows[(self.latents[rows] @ eps + level).argmax()])
        return self.latents[torch.stack(chosen)].view_as(noise)
