"""What every predictor of starting noise has in common: a kind, a generator that it fits, and a place on disk."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pahi.errors import UserError
from pahi.predictors.card import CARD, card

WEIGHTS, CONFIG = "predictor.safetensors", "config.json"
KEYS = ("kind", "latent_shape", "pooled_width", "hidden", "generator", "generator_hash")


def zeroed(layer: nn.Module) -> nn.Module:
    """A last layer that gives zeros until it is trained."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


@dataclass(frozen=True)
class Kind:
    """What people read of a kind of predictor, in tables, reports and cards."""

    name: str
    arm: str  # its label beside an evaluation's other arms
    what: str  # a sentence
    adaptive: bool = True  # reads the prompt


class NoisePredictor(nn.Module, ModelHubMixin):
    """A learned distribution of starting noise for one generator.

    predictor = NoisePredictor.from_pretrained("folder or Hub id")
    image = pipe(prompt, latents=predictor.sample(prompt, pipe=pipe, seed=7), num_inference_steps=1).images[0]
    """

    KINDS: ClassVar[dict[str, Kind]] = {}  # of a class that can be trained, by what `train.predictor` calls them
    OWN: ClassVar[tuple[str, ...]] = ()  # settings that its config has beside KEYS

    def __init__(
        self,
        kind: str,
        latent_shape: tuple[int, int, int],
        pooled_width: int,
        hidden: int = 128,
        generator: str = "",
        generator_hash: str = "",
    ) -> None:
        super().__init__()
        self.kind, self.latent_shape, self.pooled_width, self.hidden = kind, tuple(latent_shape), pooled_width, hidden
        self.generator, self.generator_hash = generator, generator_hash
        self.card = ""  # README.md, where its training wrote one

    @staticmethod
    def create(kind: str, *args: Any, **kwargs: Any) -> "NoisePredictor":
        """A new predictor of a kind, which is the standard Gaussian until it is trained."""
        return class_of(kind)(kind, *args, **kwargs)

    @property
    def config(self) -> dict[str, Any]:
        """What from_pretrained needs to build it again."""
        keys = (*KEYS, *self.OWN)
        return {key: list(self.latent_shape) if key == "latent_shape" else getattr(self, key) for key in keys}

    def draw(self, pooled: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Starting noise and how far it was led from the prior.

        pooled (batch, pooled_width) and standard noise eps (batch, *latent_shape) -> x_T of eps's shape, float32, and
        the divergence from N(0, I) a dimension, (batch,).
        """
        raise NotImplementedError

    def forward(self, pooled: Tensor, eps: Tensor) -> Tensor:
        """x_T alone."""
        return self.draw(pooled, eps)[0]

    @torch.no_grad()
    def sample(self, prompt: str | list[str], pipe: Any, seed: int = 0) -> Tensor:
        """Starting noise for a plain diffusers pipeline, to be given as its `latents=`: (prompts, *latent_shape).

        A prompt's noise depends on its text and the seed alone. Raises UserError when the predictor was trained for
        another generator's latents or embedding.
        """
        from pahi.generators import from_pipeline, standard_noise
        from pahi.prompts.cleaning import clean, prompt_id

        generator = from_pipeline(pipe, self.latent_shape[-1])
        self.check(generator.id, generator.latent_shape, generator.pooled_width)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        eps = standard_noise([prompt_id(clean(p)[0]) for p in prompts], [seed] * len(prompts), self.latent_shape)
        device = next(self.parameters()).device
        x = self(generator.encode(prompts).pooled.to(device), eps.to(device))
        return generator.latents_for_pipeline(x).to(generator.device, generator.dtype)

    def check(self, generator: str, latent_shape: tuple[int, ...], pooled_width: int) -> None:
        """Raises UserError unless the predictor fits a generator's latents and embedding."""
        if tuple(latent_shape) != self.latent_shape or pooled_width != self.pooled_width:
            raise UserError(
                f"this predictor was trained for {self.generator or 'another generator'} (latents {self.latent_shape}, "
                f"embedding {self.pooled_width}); {generator} has latents {tuple(latent_shape)} and "
                f"embedding {pooled_width}"
            )

    # -------------------------------------------------------------------------------------------------------- on disk

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """What save_pretrained and push_to_hub write as README.md."""
        parameters = sum(p.numel() for p in self.parameters())
        return ModelCard(self.card or card(self.config, parameters))

    def _save_pretrained(self, save_directory: Path) -> None:
        (save_directory / CONFIG).write_text(json.dumps(self.config, indent=1, sort_keys=True) + "\n")
        save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, save_directory / WEIGHTS)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **_: Any,
    ) -> "NoisePredictor":
        folder = Path(model_id)
        try:
            if not folder.is_dir():
                folder = Path(
                    snapshot_download(
                        model_id,
                        revision=revision,
                        cache_dir=cache_dir,
                        force_download=force_download,
                        local_files_only=local_files_only,
                        token=token,
                        allow_patterns=[WEIGHTS, CONFIG, CARD],
                    )
                )
            config = json.loads((folder / CONFIG).read_text())
            # The mixin writes keys of its own beside ours.
            predictor = cls.create(**{key: config[key] for key in (*KEYS, *class_of(config["kind"]).OWN)})
            predictor.load_state_dict(load_file(folder / WEIGHTS))
            predictor.card = (folder / CARD).read_text("utf-8") if (folder / CARD).is_file() else ""
        except (OSError, HfHubHTTPError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
            raise UserError(f"no predictor at {model_id!r}: {str(error).splitlines()[0]}") from None
        return predictor.eval()


def kinds() -> dict[str, Kind]:
    """Every kind of predictor, the standard Gaussian among them."""
    return {name: kind for family in _families(NoisePredictor) for name, kind in family.KINDS.items()}


def class_of(kind: str) -> type[NoisePredictor]:
    """The class of a kind of predictor."""
    for cls in _families(NoisePredictor):
        if kind in cls.KINDS:
            return cls
    raise UserError(f"there is no predictor of kind {kind!r}; there are {', '.join(kinds())}")


def _families(cls: type[NoisePredictor]) -> Iterator[type[NoisePredictor]]:
    for family in cls.__subclasses__():
        yield family
        yield from _families(family)
