"""Scores pictures with the published image-reward package. Run by the interpreter of `make image-reward`, not by ours.

    python _image_reward_package.py job.json

The job names `folder` (ImageReward.pt, med_config.json), `tokenizer` (BERT's files), `pictures` and `prompts`; the last
line printed is JSON: one score a picture, and the seconds that the package's own loop took.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    import torch
    from ImageReward.models.BLIP import blip_pretrain
    from transformers import BertTokenizer

    torch.set_num_threads(job["threads"])
    # The package asks the Hub for the vocabulary by name.
    blip_pretrain.init_tokenizer = lambda: BertTokenizer.from_pretrained(job["tokenizer"])
    from ImageReward.ImageReward import ImageReward

    # The layers would draw random numbers for minutes, which the checkpoint then replaces.
    for name in ("kaiming_uniform_", "trunc_normal_", "normal_", "uniform_"):
        setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
    folder = Path(job["folder"])
    model = ImageReward(str(folder / "med_config.json"), "cpu")
    weights = torch.load(folder / "ImageReward.pt", map_location="cpu", weights_only=True)
    missing = model.load_state_dict(weights, strict=False).missing_keys
    used = [name for name in missing if "_proj." not in name and not name.endswith("position_ids")]
    if used:
        sys.exit(f"the checkpoint lacks {used[0]}")
    model.eval()
    started = time.perf_counter()
    with torch.no_grad():
        scores = [model.score(t, p) for t, p in zip(job["prompts"], job["pictures"])]  # noqa: B905
    print(json.dumps({"scores": scores, "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
