"""`python -m pahi.tiny.train all` makes the small world's models from nothing.

    text     the CLIP text encoder, taught to tell what a prompt says
    vae      AutoencoderKL, 64x64x3 <-> 4x16x16
    student  the one-step generator
    alpha    a reward of PickScore's kind
    beta     a reward of ImageReward's kind
    gamma    a third, kept held out
    export   the weights as package data

Each part makes what it needs first. All are seeded, save their state as they go and continue where they were stopped.
Only training specs are used; the oracle has no part in it.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from pahi.tiny.train.autoencoder import train_vae
from pahi.tiny.train.export import export_all
from pahi.tiny.train.generator import train_student
from pahi.tiny.train.rewards import BUILDERS, train_reward
from pahi.tiny.train.text import train_text

PARTS: dict[str, Callable[[Path], object]] = {
    "text": train_text,
    "vae": train_vae,
    "student": train_student,
    **{name: partial(train_reward, name=name) for name in BUILDERS},
}


def main() -> None:
    """One part, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "export", "all"])
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="where states and pictures are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "weights", help="where weights go")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.part in PARTS:
        PARTS[args.part](args.work)
    else:
        export_all(args.work, args.out)


if __name__ == "__main__":
    main()
