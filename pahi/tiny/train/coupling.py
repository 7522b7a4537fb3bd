"""Which scene a noise leads to: the means of its channels choose what the prompt leaves free.

Flow matching with independent noise learns some map from noise to pictures over very many steps. Pairing noise and data
beforehand spares that (Pooladian et al. 2023, "Multisample Flow Matching"; Tong et al. 2023, "Minibatch Optimal
Transport"). Here each free choice of a prompt is one number, and the monotone map from a normal number to it (optimal
transport in one dimension) makes every choice equally frequent:

    channel 0  the colour of the thing named first     2  the second's colour; a lone thing's size     3  the background

The second's colour is one of two that follow from the first's: to be right in both of seven colours, a noise would have
to lie far from the borders in two numbers at once, and little does. Means over the whole picture are what a small
network reads first and surest, and the same reading serves every prompt. How several things lie is not left to the
noise: of the layouts that a prompt allows, the generator knows the first. To read which of two things goes to which
side it would have to tie a number of the noise to a word of the prompt, and that took more steps than all the rest.
Where a number lies near the border between two choices, a single step cannot decide and shows both at once: that is
what makes some noise bad, as with the published models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from pahi.tiny import scenes
from pahi.tiny.scenes import Scene, Spec

T = TypeVar("T")


def choose(options: Sequence[T], share: float) -> T:
    """The option at `share` of the way from the first to the last, in [0, 1]."""
    return options[min(len(options) - 1, int(share * len(options)))]


def led_to(spec: Spec, noise: Tensor) -> Scene:
    """The scene of `spec` that noise (4, 16, 16) leads to."""
    means = noise.mean((1, 2)) * 16  # standard normal
    first, _, second, behind = torch.special.ndtr(means.double()).tolist()
    layouts, palette = scenes.layouts(spec), list(scenes.COLORS)
    size_is_free = len(layouts) > 1 and len(layouts[0]) == 1
    colors: list[str] = []
    for item, share in zip(spec.items, (first, second), strict=False):
        others = [c for c in palette if c not in colors]
        colors.append(item.color or choose(others[1::3] if colors else others, share))
    background = spec.background or choose(list(scenes.BACKGROUNDS), behind)
    return scenes.show(spec, choose(layouts, second) if size_is_free else layouts[0], tuple(colors), background)


@dataclass
class Coupling:
    """From noise to the latents of the scene that it leads to."""

    index: dict[Scene, int]
    latents: Tensor  # (scenes, 1024), scaled

    def __call__(self, specs: list[Spec], noise: Tensor) -> Tensor:
        """n specs and noise (n, 4, 16, 16) -> the latents of the scene that each leads to, (n, 4, 16, 16)."""
        rows = [self.index[led_to(spec, eps)] for spec, eps in zip(specs, noise, strict=True)]
        return self.latents[torch.tensor(rows)].view_as(noise)
