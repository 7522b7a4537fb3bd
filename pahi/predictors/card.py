"""A predictor's card: what the Hub and a reader need to know of it."""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

CARD = "README.md"


@dataclass
class Facts:
    """What was known when a predictor was trained."""

    license: str = "unknown"  # the generator's
    revision: str | None = None  # the Hub's commit of the generator
    settings: dict[str, Any] = field(default_factory=dict)  # of training
    rewards: list[tuple[str, str, str]] = field(default_factory=list)  # (name, role, hash)
    figures: dict[str, float] = field(default_factory=dict)  # by reward: mean uplift on validation prompts
    kl: float | None = None
    train_prompts: int = 0
    validation_prompts: int = 0
    best_step: int = 0
    stopped: bool = False


def card(config: dict[str, Any], parameters: int, facts: Facts | None = None) -> str:
    """README.md with its YAML header, of a predictor with this configuration and number of parameters."""
    from pahi.predictors.base import kinds  # which writes cards

    kind, generator = kinds()[config["kind"]], config["generator"] or "a one-step generator"
    # A folder or a packaged model is no address on the Hub.
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", config["generator"]) is not None and not generator.startswith(".")
    header: dict[str, Any] = {"library_name": "pahi", "pipeline_tag": "text-to-image", "tags": ["pahi", "diffusers"]}
    if on_hub:
        header["base_model"] = config["generator"]
    if facts is not None:
        header |= {"license": "other", "license_name": facts.license}
    shape = "x".join(str(n) for n in config["latent_shape"])
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        "",
        f"# {kind.name} noise for {generator}",
        "",
    ]
    lines += [
        kind.what,
        "The generator's own weights are as they were: its pictures start elsewhere in noise space.",
        "",
        "## Use",
        "",
        "```python",
        "import torch",
        "from diffusers import DiffusionPipeline",
        "from pahi import NoisePredictor",
        "",
        f'pipe = DiffusionPipeline.from_pretrained("{config["generator"] if on_hub else "GENERATOR"}", '
        "dtype=torch.float32)",
        'predictor = NoisePredictor.from_pretrained("THIS")',
        'prompt = "a red circle"',
        "latents = predictor.sample(prompt, pipe=pipe, seed=7)",
        "image = pipe(prompt, latents=latents, num_inference_steps=1, guidance_scale=0.0).images[0]",
        "```",
        "",
        f"`THIS` is this folder or repository{'' if on_hub else f', `GENERATOR` the pipeline of {generator}'}.",
        "Give the pipeline whatever else it takes for one step. Another generator's latents are refused.",
        "",
    ]
    if facts is not None and facts.rewards:
        lines += _figures(facts)
    lines += [
        "## Where it comes from",
        "",
        f"- generator: `{generator}`{f' at `{facts.revision}`' if facts and facts.revision else ''}, "
        f"weights sha256 `{config['generator_hash'] or 'unknown'}`",
        *([f"- licence of the generator: **{facts.license}**"] if facts else []),
        f"- {parameters:,} parameters, for latents of {shape} and an embedding {config['pooled_width']} wide",
        *([f"- rewards: {', '.join(f'{n} (`{h}`)' for n, _, h in facts.rewards)}"] if facts and facts.rewards else []),
        "",
    ]
    if facts is not None and facts.settings:
        settings = yaml.safe_dump(facts.settings, sort_keys=True).strip().splitlines()
        lines += ["## Settings of training", "", *(f"    {line}" for line in settings), ""]
    lines += [
        "## Limits",
        "",
        "It carries the biases of the rewards it was trained on, and pictures of one prompt may differ less from each",
        "other than without it. It fits the generator named above, its text encoder included, and no other.",
        "",
    ]
    return "\n".join(lines)


def _figures(facts: Facts) -> list[str]:
    rows = []
    for name, role, _ in facts.rewards:
        value = facts.figures.get(name)
        rows.append(f"| {name} | {role.replace('_', ' ')} | {'-' if value is None else f'{value:+.3f}'} |")
    where = f"{facts.validation_prompts:,} validation prompts" if facts.validation_prompts else "no validation prompts"
    kl = "" if facts.kl is None else f" Divergence from the standard Gaussian: {facts.kl:.4f} nats a dimension."
    return [
        "## Figures",
        "",
        f"Step {facts.best_step:,}{' of a training that stopped early' if facts.stopped else ''}, on {where}: mean",
        "uplift over the standard Gaussian's picture of the same seed, in within-prompt standard deviations of each",
        "reward. The step was chosen on these prompts, so that the figures are not a test's.",
        "",
        "| reward | role | uplift |",
        "|---|---|---|",
        *rows,
        "",
        f"Trained on {facts.train_prompts:,} prompts.{kl}",
        "",
    ]
