"""How many parameters each predictor has at the latents of published generators. It allocates nothing.

Hidden units are the default of `train.hidden` for what gives mu and sigma, and 16 for the residual networks, whose
width they are.
"""

import torch

from pahi.predictors import NoisePredictor
from pahi.settings import Train
from pahi.tables import markdown

LATENTS = {  # pooled width and latent shape
    "SD-Turbo, 512": (1024, (4, 64, 64)),
    "Hyper-SDXL, 1024": (1280, (4, 128, 128)),
    "FLUX.1-schnell, 1024": (768, (16, 128, 128)),
}
NETWORKS = ("residual", "refined")


def main() -> None:
    hidden = Train().hidden  # type: ignore[call-arg]
    rows = []
    for kind in Train.model_fields["predictor"].annotation.__args__:  # type: ignore[union-attr]
        row = {"predictor": kind}
        for name, (width, shape) in LATENTS.items():
            with torch.device("meta"):
                predictor = NoisePredictor.create(kind, shape, width, 16 if kind in NETWORKS else hidden)
            used = [p for n, p in predictor.named_parameters() if not (kind == "hpi" and n.startswith("head."))]
            row[f"{name}: {'x'.join(map(str, shape))}"] = f"{sum(p.numel() for p in used) / 1e6:.2f} M"
        rows.append(row)
    print(markdown(rows))


if __name__ == "__main__":
    main()
