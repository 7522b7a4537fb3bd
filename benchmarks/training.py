"""Training: steps a second against the best plain loop, the gain of each measure, memory, and the predictor's own cost.

On the embedded world, in turns within each round:

    plain      what one would write with public parts: diffusers' pipeline and scheduler, transformers' CLIP, batched,
               frozen, gradients from the picture to the noise, prompts encoded in every step. No cache.
    ours       the trainer as it is
    ours, without one of its measures

The plain loop uses our predictor's network and optimiser: what is compared is everything around them.
"""

import argparse
import statistics
import time
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
import transformers
from generators import in_turns, operations, ours_of, peak_memory, seconds, spread
from torch import Tensor, nn

from pahi import models
from pahi.generators import Conditioning
from pahi.generators.noise import standard_noise
from pahi.predictors import NoisePredictor
from pahi.rewards import Reward
from pahi.settings import Settings, load_settings
from pahi.stages.common import Context
from pahi.training import trainer
from pahi.training.data import PromptSet

TEXTS = [f"a {colour} {shape}" for colour in ("red", "blue", "green", "white") for shape in ("circle", "star", "cube")]
WARM = 2  # steps of each round that are not counted


# ------------------------------------------------------------------------------------------------------------- ours


class Encoding(Conditioning):
    """Conditioning that is computed anew for every batch."""

    generator: Any
    texts: list[str]

    def rows(self, index: Tensor) -> Conditioning:
        return self.generator.encode([self.texts[i] for i in index.tolist()])


class Preparing(PromptSet):
    """Text features of rewards that are computed anew for every batch."""

    rewards: list[Reward]

    def prepared_rows(self, index: Tensor) -> dict[str, Any]:
        return {reward.name: reward.prepare([self.texts[i] for i in index.tolist()]) for reward in self.rewards}


def prompt_set(generator: Any, rewards: list[Reward], cls: type[PromptSet] = PromptSet) -> PromptSet:
    zeros = {reward.name: torch.zeros(len(TEXTS), 2) for reward in rewards}
    prepared = {reward.name: reward.prepare(TEXTS) for reward in rewards}
    return cls([f"{i:020x}" for i in range(len(TEXTS))], TEXTS, generator.encode(TEXTS), prepared, zeros, [0, 1])


class Ours:
    """The trainer, timed step by step from inside."""

    def __init__(self, settings: Settings, steps: int, without: str = "") -> None:
        ctx = Context(settings)
        self.generator, self.steps, self.without = ctx.generator, steps, without
        self.rewards = [ctx.reward(model) for model in settings.rewards.train]
        self.data = prompt_set(self.generator, self.rewards)
        own: dict[str, Any] = {"predictor": "pahi", "hpi_steps": 1, "steps": steps + WARM, "save_every": 10**6}
        self.train = settings.train.model_copy(update=own)
        if without == "cached conditioning":
            encoding = Encoding(self.data.conditioning.embeds, self.data.conditioning.pooled, [False] * len(TEXTS))
            encoding.generator, encoding.texts = self.generator, TEXTS
            self.data.conditioning = encoding
        elif without == "cached text features of the rewards":
            preparing = prompt_set(self.generator, self.rewards, Preparing)
            assert isinstance(preparing, Preparing)
            preparing.rewards, self.data = self.rewards, preparing
        elif without == "frozen weights":
            for network in networks_of(self.generator, self.rewards):
                network.requires_grad_(True)

    def once(self) -> list[float]:
        """A whole training; the time after each of its steps, of the clock on a GPU and of the process on a CPU."""
        clock = time.perf_counter if self.generator.device.type == "cuda" else time.process_time
        stamps: list[float] = []
        trainer.train(
            self.generator,
            [(reward, 1.0, 1.0) for reward in self.rewards],
            [],
            self.data,
            PromptSet([], [], self.data.conditioning, {}, {}, [0]),
            self.train,
            load=lambda: None,
            save=lambda _: None,
            progress=lambda *_: stamps.append(clock()),  # the trainer has read the step's figures: the device is idle
        )
        for network in networks_of(self.generator, self.rewards):
            network.zero_grad(set_to_none=True)
        return stamps

    def seconds_a_step(self) -> float:
        stamps = self.once()
        return (stamps[-1] - stamps[WARM]) / (len(stamps) - 1 - WARM)


def networks_of(generator: Any, rewards: list[Reward]) -> list[nn.Module]:
    """Every frozen network that a step goes through."""
    found = [generator.denoiser, generator.vae]
    for reward in rewards:
        for holder in (reward, getattr(reward, "towers", None)):
            found += [part for part in vars(holder or object).values() if isinstance(part, nn.Module)]
    return found


# ------------------------------------------------------------------------------------------------------------- theirs


class Plain:
    """The loop of a user who knows diffusers, transformers and torch well."""

    def __init__(self, settings: Settings, steps: int) -> None:
        self.device = Context(settings).device
        self.settings, self.steps = settings.train, steps
        folder = models.resolve(settings.generator.id)
        self.pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
        self.pipe.to(self.device)
        place = models.resolve(settings.rewards.train[0].id)
        self.clip: Any = transformers.CLIPModel.from_pretrained(place).to(self.device).eval()
        self.words: Any = transformers.CLIPTokenizerFast.from_pretrained(place)
        processor = transformers.CLIPImageProcessor.from_pretrained(place)
        self.side = self.clip.config.vision_config.image_size
        self.mean, self.std = (
            torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (processor.image_mean, processor.image_std)
        )
        for network in (self.pipe.unet, self.pipe.vae, self.pipe.text_encoder, self.clip):
            network.requires_grad_(False).eval()
        if settings.generator.compile:
            self.pipe.unet.compile()
            self.pipe.vae.decoder.compile()
        self.pipe.scheduler.set_timesteps(1, device=self.device)
        unet = self.pipe.unet.config
        self.shape = (unet.in_channels, unet.sample_size, unet.sample_size)
        torch.manual_seed(0)
        self.predictor: Any = NoisePredictor.create("pahi", self.shape, unet.cross_attention_dim, self.settings.hidden)
        self.predictor.to(self.device)
        self.optimizer = torch.optim.AdamW(self.predictor.parameters(), lr=self.settings.lr, weight_decay=0.0)

    def step(self) -> float:
        pipe, scheduler = self.pipe, self.pipe.scheduler
        index = torch.randint(len(TEXTS), (self.settings.batch_size,))
        prompts = [TEXTS[i] for i in index.tolist()]
        with torch.no_grad():
            embeds, _ = pipe.encode_prompt(prompts, self.device, 1, False)
            tokens = self.words(prompts, padding=True, truncation=True, return_tensors="pt").to(self.device)
            text = F.normalize(self.clip.get_text_features(**tokens).pooler_output, dim=-1)
        eps = torch.randn(len(prompts), *self.shape, device=self.device)
        x_T, divergence = self.predictor.draw(embeds.mean(1), eps)
        scheduler._step_index = None
        t = scheduler.timesteps[0]
        sample = x_T * scheduler.init_noise_sigma
        out = pipe.unet(scheduler.scale_model_input(sample, t), t, encoder_hidden_states=embeds).sample
        latents = scheduler.step(out, t, sample).prev_sample
        images = (pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
        pixels = F.interpolate(images, size=(self.side, self.side), mode="bicubic", antialias=True)
        seen = F.normalize(self.clip.get_image_features((pixels - self.mean) / self.std).pooler_output, dim=-1)
        reward = self.clip.logit_scale.exp() * (seen * text).sum(-1)
        loss = -reward.mean() + self.settings.beta * divergence.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.predictor.parameters(), self.settings.clip)
        self.optimizer.step()
        return float(loss.detach())

    def seconds_a_step(self) -> float:
        for _ in range(WARM):
            self.step()
        return seconds(lambda: [self.step() for _ in range(self.steps)], self.device) / self.steps


# -------------------------------------------------------------------------------------------------------------- tables


def speed(settings: Settings, steps: int, rounds: int) -> None:
    measures = ("cached conditioning", "cached text features of the rewards", "frozen weights")
    runs: dict[str, Any] = {"ours": Ours(settings, steps), "plain": Plain(settings, steps)}
    runs |= {f"without {measure}": Ours(settings, steps, measure) for measure in measures}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        names = list(runs)[turn % len(runs) :] + list(runs)[: turn % len(runs)]  # who goes first finds other caches
        for name in names:
            times[name].append(runs[name].seconds_a_step())
    times = {name: found[1:] for name, found in times.items()}  # a first round warms all up
    where = runs["ours"].generator.device.type
    batch = settings.train.batch_size
    print(
        f"\n| training on {where}, batch {batch} | ms a step | time over ours (median, 95% interval) |\n|---|---|---|"
    )
    for name, found in times.items():
        ratios = [a / b for a, b in zip(found, times["ours"], strict=True)]
        label = "plain loop" if name == "plain" else name
        print(f"| {label} | {1000 * statistics.median(found):.1f} | {'' if name == 'ours' else spread(ratios)} |")
    own = runs["ours"]
    ids = own.data.prompt_ids
    one = [ids[i % len(ids)] for i in range(batch)]
    rows, plain = (
        lambda: standard_noise(one, list(range(batch)), own.generator.latent_shape),
        lambda: torch.randn(batch, *own.generator.latent_shape),
    )
    took, ratios = in_turns(rows, plain, torch.device("cpu"), 20 * rounds)
    share = took / statistics.median(times["ours"])
    print(
        f"\nA batch's noise, a generator a row: {1000 * took:.2f} ms, {100 * share:.1f}% of a step; torch.randn takes"
    )
    print(f"{spread(ratios)} times as long.")


def memory(settings: Settings) -> None:
    print("\n| two steps | parts of a step | checkpointing | peak MB above the networks |\n|---|---|---|---|")
    for accumulate in (1, 4):
        for checkpointing in (False, True):
            generator = settings.generator.model_copy(update={"checkpointing": checkpointing})
            own = Ours(settings.model_copy(update={"generator": generator}), 1)
            own.train = own.train.model_copy(update={"steps": 1, "accumulate": accumulate})
            peak = peak_memory(own.once, own.generator.device)
            batch = settings.train.batch_size
            print(f"| batch {batch} | {accumulate} | {'yes' if checkpointing else 'no'} | {peak / 1e6:.0f} |")


def sd_turbo_operations(batch: int) -> int:
    """Of a picture's denoiser and decoder at SD-Turbo's size; nothing is computed, so no GPU is needed."""
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=1024,
            use_linear_projection=True,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20),
        )
        blocks = (128, 256, 512, 512)
        vae = diffusers.AutoencoderKL(
            block_out_channels=blocks,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        z, words, t = torch.empty(batch, 4, 64, 64), torch.empty(batch, 77, 1024), torch.empty(batch)
        with torch.no_grad():
            return operations(lambda: vae.decode(unet(z, t, encoder_hidden_states=words).sample))


def predicting(batch: int) -> None:
    """The predictor beside a generator of SD-Turbo's size: operations everywhere, and time where there is a GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape, width, whole = (4, 64, 64), 1024, sd_turbo_operations(batch)
    z, pooled = torch.randn(batch, *shape, device=device), torch.randn(batch, width, device=device)
    took = None
    if device.type == "cuda":
        generator, shapes = ours_of("SD-Turbo", False, device, torch.bfloat16, channels_last=True)
        embeds = {n: torch.randn(batch, *size, device=device) for n, size in shapes.items()}
        conditioning = Conditioning(embeds, pooled, [False] * batch)

        @torch.no_grad()
        def draw() -> Tensor:
            return generator.decode(generator.denoise(z, conditioning))

        draw()
        took = statistics.median(seconds(draw, device) for _ in range(9))
    print(f"\n| predicting noise at SD-Turbo's size, {device.type}, batch {batch} | hidden | parameters | ", end="")
    print("operations, of the generator's | ms | of the generator's time |\n|---|---|---|---|---|---|")
    for kind, hidden in (("hpi", 150), ("pahi", 150), ("residual", 16), ("selected", 128)):
        predictor = NoisePredictor.create(kind, shape, width, hidden).to(device).eval()

        @torch.no_grad()
        def predict(p: NoisePredictor = predictor) -> Tensor:
            return p(pooled, z)

        predict()
        own = statistics.median(seconds(predict, device) for _ in range(9))
        share = "not measured" if took is None else f"{100 * own / took:.2f}%"
        used = [q for name, q in predictor.named_parameters() if kind != "hpi" or not name.startswith("head")]
        percent = 100 * operations(predict) / whole
        print(f"| {kind} | {hidden} | {sum(q.numel() for q in used):,} | {percent:.4f}% | {1000 * own:.2f} | {share} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="counted steps of each round")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--compile", action="store_true", help="for both sides")
    parser.add_argument("--rehearse", action="store_true", help="one round of one step: whether it runs, not how fast")
    given = parser.parse_args()
    torch.set_num_threads(given.threads or torch.get_num_threads())
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    compiled = f"generator.compile={str(given.compile).lower()}"
    settings = load_settings("tiny", overrides=[f"train.batch_size={given.batch}", compiled])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads")
    speed(settings, 1 if given.rehearse else given.steps, 1 if given.rehearse else given.rounds)
    memory(settings)
    predicting(1)


if __name__ == "__main__":
    main()
