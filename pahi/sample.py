"""One prompt, drawn with the learned noise, and beside it the same noise as it was."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pahi import models
from pahi.errors import UserError
from pahi.generators import standard_noise
from pahi.predictors import NoisePredictor
from pahi.predictors.base import CONFIG
from pahi.prompts.cleaning import clean, prompt_id
from pahi.settings import Settings
from pahi.stages import ingest, train
from pahi.stages.common import Context, missing
from pahi.stages.tensors import to_uint8

GAP = 8  # pixels between two pictures
FORMATS = (".png", ".webp", ".jpg", ".jpeg")


def draw(
    settings: Settings, prompt: str, predictor: str | None, seed: int, out: Path | None, compare: Path | None
) -> dict[str, Any]:
    """Draws `prompt` with the settings' generator, as the generate stage draws it: the same prompt and seed give the
    same picture. `out` gets the picture, `compare` two side by side: left the standard Gaussian, right the predictor,
    from the same eps. Returns what was drawn, and the files.

    `predictor` is a folder or Hub id; where it is None, the newest one of the settings' dataset. Raises UserError.
    """
    text = clean(prompt)[0]
    if not text:
        raise UserError("the prompt is empty")
    for path in (out, compare):
        if path is not None:
            _check(path)
    ctx = Context(settings)
    learned = _predictor(ctx, predictor)
    generator = ctx.generator
    learned.check(generator.id, generator.latent_shape, generator.pooled_width)
    with torch.no_grad():
        conditioning = generator.encode([text])
        eps = standard_noise([prompt_id(text)], [seed], generator.latent_shape).to(generator.device)
        x_T, divergence = learned.draw(conditioning.pooled, eps)
        # One at a time, so that neither depends on what else is in the batch.
        before, after = (
            Image.fromarray(to_uint8(generator.decode(generator.denoise(x, conditioning)))[0])
            for x in (eps, x_T.to(eps.device))
        )
    if out is not None:
        _save(after, out)
    if compare is not None:
        _save(side_by_side(before, after), compare)
    return {
        "prompt": text,
        "prompt_id": prompt_id(text),
        "seed": seed,
        "generator": generator.id,
        "predictor": learned.kind,
        "kl": float(divergence[0]),
        "noise_norm": float(x_T.square().mean().sqrt()),
        "files": [str(path) for path in (out, compare) if path is not None],
    }


def side_by_side(before: Image.Image, after: Image.Image) -> Image.Image:
    """Two pictures of one size, with a white gap between them."""
    both = Image.new("RGB", (before.width + GAP + after.width, before.height), "white")
    both.paste(before, (0, 0))
    both.paste(after, (before.width + GAP, 0))
    return both


def _predictor(ctx: Context, given: str | None) -> NoisePredictor:
    given = given or ctx.settings.generate.predictor
    if given and "/" not in given and not Path(given).is_dir():
        raise UserError(f"no predictor at {given!r}: there is no such folder here, and a Hub id names an owner too")
    if given and Path(given).is_dir() and not (Path(given) / CONFIG).is_file():
        raise UserError(
            f"no predictor at {given!r}: it holds no {CONFIG}; name the folder `predictor` of a training stage's output"
        )
    if given:
        return NoisePredictor.from_pretrained(str(models.resolve(given))).to(ctx.device)
    found = train.newest(ctx, ingest.chain(ctx))
    if found is None:
        raise UserError(f"{missing(ctx, 'sample', 'train')}, or name a predictor with --predictor")
    return train.load_predictor(ctx, found[0])


def _check(path: Path) -> None:
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: name a picture that ends in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")


def _save(image: Image.Image, path: Path) -> None:
    try:
        image.save(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
