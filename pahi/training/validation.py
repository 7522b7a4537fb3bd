"""How a predictor does on prompts that it does not train on."""

import torch

from pahi.generators import Generator, standard_noise
from pahi.predictors import NoisePredictor
from pahi.rewards import Reward
from pahi.training import objective
from pahi.training.data import PromptSet
from pahi.training.parallel import Group


@torch.no_grad()
def validate(
    generator: Generator,
    rewards: list[tuple[Reward, float]],
    data: PromptSet,
    predictor: NoisePredictor,
    group: Group,
    seeds: int = 1,
    batch: int = 64,
) -> dict[str, float]:
    """Mean paired uplift of each reward over the cached baseline: the same prompts, the same eps of the first seeds.

    `rewards` are (model, unit). Scores that are not finite are left out; NaN where a reward has no other.
    """
    # (2, rewards): the sum of what is finite, and how much that is.
    totals = torch.zeros(2, len(rewards), dtype=torch.float64)
    each = min(seeds, len(data.seeds))
    mine = group.share(torch.arange(len(data) * each))
    for pictures in mine.split(batch) if len(mine) else []:
        index, nth = pictures // each, pictures % each  # of the prompt and of its seed
        rows, chosen = index.tolist(), [data.seeds[k] for k in nth.tolist()]
        eps = standard_noise([data.prompt_ids[i] for i in rows], chosen, generator.latent_shape)
        conditioning = data.conditioning.rows(index).to(generator.device)
        x_T = predictor(conditioning.pooled, eps.to(generator.device))
        images = generator.decode(generator.denoise(x_T, conditioning))
        prepared, texts = data.prepared_rows(index), [data.texts[i] for i in rows]
        for k, (reward, unit) in enumerate(rewards):
            score = reward.score(images, prepared[reward.name], texts).cpu()
            up = objective.uplift(score, data.baseline[reward.name][index, nth], unit)
            finite = up.isfinite()
            totals[0, k] += up[finite].double().sum()
            totals[1, k] += finite.sum()
    group.sum([totals])
    means = (totals[0] / totals[1]).tolist()
    return {reward.name: mean for (reward, _), mean in zip(rewards, means, strict=True)}
