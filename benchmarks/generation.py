"""Bulk generation against the loop a user would write: one prompt at a time through diffusers, scored, saved as PNG.

Both draw and score the same prompts with the same weights on the same threads, in turns; the ratio is what counts.
"""

import io
import statistics
import time

import torch
from diffusers import StableDiffusionPipeline

from pahi import models
from pahi.predictors import NoisePredictor
from pahi.rewards import load_reward
from pahi.settings import load_settings
from pahi.stages.common import Context
from pahi.stages.generate import Drawer

PROMPTS, ROUNDS = 64, 3


def main() -> None:
    settings = load_settings("tiny", overrides=["generate.control_fraction=0", "rewards.judges=[]"])
    ctx = Context(settings)
    prompts = [
        {"prompt_id": f"{i:020x}", "text": f"a red circle {'on a white background' * (i % 2)}"} for i in range(PROMPTS)
    ]
    generator = ctx.generator
    drawer = Drawer(ctx, NoisePredictor("pahi", generator.latent_shape, generator.pooled_width), "", {})
    rewards = [load_reward(m, ctx.device) for m in drawer.rewards]
    folder = models.resolve(settings.generator.id)
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None).to(ctx.device)
    pipe.set_progress_bar_config(disable=True)

    def ours() -> None:
        drawer.shard(prompts)

    def loop() -> None:
        with torch.no_grad():
            for prompt in prompts:
                picture = pipe(prompt["text"], num_inference_steps=1, guidance_scale=0.0, output_type="pt").images
                for reward in rewards:
                    reward.score(picture, reward.prepare([prompt["text"]]), [prompt["text"]])
                image = pipe.image_processor.pt_to_numpy(picture)
                pipe.image_processor.numpy_to_pil(image)[0].save(io.BytesIO(), format="png")

    times: dict[str, list[float]] = {"ours": [], "loop": []}
    for _ in range(ROUNDS + 1):  # the first round warms both up
        for name, work in (("ours", ours), ("loop", loop)):
            started = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - started)
    ratios = [b / a for a, b in zip(times["ours"][1:], times["loop"][1:], strict=True)]
    print("| generation, scored and encoded | images | ratio to the loop (median of 3, min to max) |")
    print("|---|---|---|")
    print(f"| tiny, {ctx.device.type}, {torch.get_num_threads()} threads | {PROMPTS} | ", end="")
    print(f"{statistics.median(ratios):.1f} times as fast ({min(ratios):.1f} to {max(ratios):.1f}) |")


if __name__ == "__main__":
    main()
