"""Gaussian predictors of the starting noise: x_T = mu + sigma * eps.

    standard   mu = 0, sigma = 1
    HPI        one global (mu, log sigma), the shape of one latent
    PAHI       (mu, log sigma)(c) = (mu, log sigma)_HPI + h(e(c)), h a two-layer MLP whose last layer starts at zero

Kim, Wang, Qiu 2024, "Model-Agnostic Human Preference Inversion in Diffusion Models". log sigma is clamped to [-2, 1].
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pahi.errors import UserError

LOG_SIGMA_RANGE = (-2.0, 1.0)
WEIGHTS, CONFIG = "predictor.safetensors", "config.json"
Kind = Literal["standard", "hpi", "pahi"]


class NoisePredictor(nn.Module, ModelHubMixin):
    """A learned distribution of starting noise for one generator.

    predictor = NoisePredictor.from_pretrained("folder or Hub id")
    image = pipe(prompt, latents=predictor.sample(prompt, pipe=pipe, seed=7), num_inference_steps=1).images[0]
    """

    def __init__(
        self,
        kind: Kind,
        latent_shape: tuple[int, int, int],
        pooled_width: int,
        hidden: int = 128,
        generator: str = "",
        generator_hash: str = "",
    ) -> None:
        super().__init__()
        self.kind, self.latent_shape, self.pooled_width, self.hidden = kind, tuple(latent_shape), pooled_width, hidden
        self.generator, self.generator_hash = generator, generator_hash
        d = int(torch.Size(self.latent_shape).numel())
        self.mu = nn.Parameter(torch.zeros(self.latent_shape))
        self.log_sigma = nn.Parameter(torch.zeros(self.latent_shape))
        last = nn.Linear(hidden, 2 * d)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.LayerNorm(pooled_width), nn.Linear(pooled_width, hidden), nn.GELU(), last)

    @property
    def config(self) -> dict[str, Any]:
        """What from_pretrained needs to build it again."""
        return {
            "kind": self.kind,
            "latent_shape": list(self.latent_shape),
            "pooled_width": self.pooled_width,
            "hidden": self.hidden,
            "generator": self.generator,
            "generator_hash": self.generator_hash,
        }

    def distribution(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, pooled_width) -> mu and log sigma, each (batch, *latent_shape), float32."""
        mu = self.mu.expand(len(pooled), *self.latent_shape)
        log_sigma = self.log_sigma.expand(len(pooled), *self.latent_shape)
        if self.kind == "pahi":
            shift = self.head(pooled.float()).view(len(pooled), 2, *self.latent_shape)
            mu, log_sigma = mu + shift[:, 0], log_sigma + shift[:, 1]
        return mu, log_sigma.clamp(*LOG_SIGMA_RANGE)

    def forward(self, pooled: Tensor, eps: Tensor) -> Tensor:
        """x_T (batch, *latent_shape) of standard noise eps of that shape."""
        mu, log_sigma = self.distribution(pooled)
        return mu + log_sigma.exp() * eps

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
                        allow_patterns=[WEIGHTS, CONFIG],
                    )
                )
            config = json.loads((folder / CONFIG).read_text())
            # The mixin writes keys of its own beside ours.
            keys = ("kind", "latent_shape", "pooled_width", "hidden", "generator", "generator_hash")
            predictor = cls(**{key: config[key] for key in keys})
            predictor.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, HfHubHTTPError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
            raise UserError(f"no predictor at {model_id!r}: {str(error).splitlines()[0]}") from None
        return predictor.eval()
