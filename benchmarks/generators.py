"""One step of a generator against diffusers' own pipeline: speed as a ratio, in turns, and what a training step costs.

On the CPU the embedded model, from prompts to pictures. On a GPU, where there is one, networks of SD-Turbo's,
SDXL-Turbo's and PixArt's sizes with random weights, from embeddings to pictures (text encoders run once a prompt on
both sides): with the same dtype, layout and compilation, and each with its defaults. `--rehearse` runs the GPU's part
on the CPU with small networks, so that its code is known to run; its figures mean nothing.
"""

import argparse
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from pahi import models
from pahi.generators import Conditioning, load_generator, standard_noise
from pahi.generators.load import family_of
from pahi.settings import Generator as GeneratorSettings

TINY = "pkg:pahi.tiny/weights/generator"
ONE = {"num_inference_steps": 1, "guidance_scale": 0.0, "output_type": "pt"}
Work = Callable[[], Any]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Work, device: torch.device) -> float:
    """Of the clock on a GPU; on the CPU, which others may share, of the process on all of its threads."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    wait(device)
    started = clock()
    work()
    wait(device)
    return clock() - started


def in_turns(ours: Work, theirs: Work, device: torch.device, rounds: int) -> tuple[float, list[float]]:
    """Our seconds (median), and each round's ratio of their time to ours; a first round warms both up."""
    times = []
    for turn in range(rounds + 1):
        if turn % 2:  # who goes first finds other caches
            mine, other = seconds(ours, device), seconds(theirs, device)
        else:
            other, mine = seconds(theirs, device), seconds(ours, device)
        times.append((mine, other))
    del times[0]
    return statistics.median(a for a, _ in times), [b / a for a, b in times]


def peak_memory(work: Work, device: torch.device) -> int:
    """The most that `work` holds at once above what was there before, in bytes, as the allocator counts it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    held = most = 0
    for _, change in sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"):
        held += change
        most = max(most, held)
    return most


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """What this machine reaches on one large matrix product: floating-point operations a second."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = min(seconds(lambda: a @ b, device) for _ in range(8))
    return 2 * side**3 / best


def operations(work: Work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def spread(ratios: list[float]) -> str:
    """The median of the rounds' ratios, and its 95% bootstrap interval: single rounds on a shared machine vary."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return f"{statistics.median(ratios):.2f} ({medians[50]:.2f} to {medians[-51]:.2f})"


def training_step(generator: Any, c: Conditioning, batch: int) -> Work:
    """Forward and backward, as the trainer does it: from noise to pictures to the noise's gradient."""
    z = standard_noise([str(i) for i in range(batch)], [0] * batch, generator.latent_shape).to(generator.device)

    def step() -> None:
        x = z.clone().requires_grad_()
        generator.decode(generator.denoise(x, c)).square().mean().backward()

    return step


def training_rows(
    label: str, make: Callable[[bool], Any], conditioning: Callable[[Any], Conditioning], batch: int
) -> None:
    peak = None
    for checkpointing in (False, True):
        generator = make(checkpointing)
        device, c = generator.device, conditioning(generator)
        step = training_step(generator, c, batch)
        step()
        took = statistics.median(seconds(step, device) for _ in range(3))
        peak = peak or peak_flops(device, generator.dtype)
        done = operations(step)
        print(
            f"| {label} | {batch} | {'yes' if checkpointing else 'no'} | {1000 * took:.0f} | "
            f"{peak_memory(step, device) / 1e6:.0f} | {100 * done / took / peak:.0f}% |"
        )
        del generator, step


# ------------------------------------------------------------------------------------------------------------ the CPU


def small_world(rounds: int) -> None:
    """The embedded model, from prompts to pictures, in float32."""
    device = torch.device("cpu")
    generator = load_generator(TINY, device="cpu")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        models.resolve(TINY), dtype=torch.float32, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    print(
        "\n| embedded model, CPU, float32 | batch | images/CPU s | diffusers' time over ours (median, 95% interval) |"
    )
    print("|---|---|---|---|")
    for batch in (1, 4, 16):
        prompts = [f"a red circle {'on a white background' * (i % 2)}" for i in range(batch)]
        z = standard_noise([str(i) for i in range(batch)], [0] * batch, generator.latent_shape)

        @torch.no_grad()
        def ours(prompts: list[str] = prompts, z: torch.Tensor = z) -> torch.Tensor:
            return generator.decode(generator.denoise(z, generator.encode(prompts)))

        took, ratios = in_turns(ours, lambda p=prompts, z=z: pipe(p, latents=z, **ONE), device, rounds)
        print(f"| prompts to pictures | {batch} | {batch / took:.1f} | {spread(ratios)} |")
    print("\n| training step | batch | checkpointing | ms | peak MB | share of measured peak |")
    print("|---|---|---|---|---|---|")
    training_rows(
        "embedded model, CPU, float32",
        lambda checkpointing: load_generator(TINY, device="cpu", checkpointing=checkpointing),
        lambda g: g.encode(["a red circle"] * 8),
        8,
    )


# ------------------------------------------------------------------------------------------------------------ the GPU


def clip(width: int, projection: int | None = None) -> Any:
    """A text encoder that is only there to be described: embeddings are given."""
    cls = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    own = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 8}
    return cls(transformers.CLIPTextConfig(**own, projection_dim=projection or 8, vocab_size=8))


def networks(name: str, rehearse: bool) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Parts of a pipeline, its class, and the shapes of its embeddings."""
    blocks = (32, 64) if rehearse else (128, 256, 512, 512)
    vae = diffusers.AutoencoderKL(
        block_out_channels=blocks,
        down_block_types=("DownEncoderBlock2D",) * len(blocks),
        up_block_types=("UpDecoderBlock2D",) * len(blocks),
        layers_per_block=2,
        latent_channels=4,
    )
    trailing = {
        "timestep_spacing": "trailing",
        "steps_offset": 1,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    }
    size = 8 if rehearse else 64
    if name == "PixArt":
        heads = 2 if rehearse else 16
        transformer = diffusers.PixArtTransformer2DModel(
            sample_size=size,
            num_layers=2 if rehearse else 28,
            num_attention_heads=heads,
            cross_attention_dim=heads * 72,
            out_channels=8,
            caption_channels=4096,
            use_additional_conditions=False,
        )
        t5 = transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=8, d_model=4096, d_ff=8, num_layers=1, d_kv=8)
        )
        scheduler = diffusers.DDPMScheduler(clip_sample=False)
        parts = {"transformer": transformer, "vae": vae, "text_encoder": t5, "scheduler": scheduler}
        return parts, "PixArtAlphaPipeline", {"prompt_embeds": (120, 4096), "prompt_attention_mask": (120,)}
    if name == "SD-Turbo":
        scheduler = diffusers.EulerDiscreteScheduler(**trailing)
        large = {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": (5, 10, 20, 20)}
        unet = diffusers.UNet2DConditionModel(
            sample_size=size,
            cross_attention_dim=1024,
            use_linear_projection=True,
            **(small_unet() if rehearse else large),
        )
        parts = {"unet": unet, "vae": vae, "text_encoder": clip(1024), "scheduler": scheduler}
        return parts, "StableDiffusionPipeline", {"prompt_embeds": (77, 1024)}
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**trailing)
    xl = {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
    }
    unet = diffusers.UNet2DConditionModel(
        sample_size=size,
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=256 * 6 + 1280,
        **(small_unet() if rehearse else xl),
    )
    parts = {"unet": unet, "vae": vae, "text_encoder": clip(768), "text_encoder_2": clip(1280, 1280)}
    shapes = {"prompt_embeds": (77, 2048), "pooled_prompt_embeds": (1280,)}
    return parts | {"scheduler": scheduler}, "StableDiffusionXLPipeline", shapes


def small_unet() -> dict[str, Any]:
    return {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (1, 2),
    }


def pipeline(
    name: str, rehearse: bool, device: torch.device, dtype: torch.dtype, channels_last: bool
) -> tuple[Any, dict]:
    torch.manual_seed(0)
    with device:
        parts, cls, shapes = networks(name, rehearse)
    tokenizers = {"tokenizer": transformers.AutoTokenizer.from_pretrained(models.resolve(TINY) / "tokenizer")}
    if "text_encoder_2" in parts:
        tokenizers["tokenizer_2"] = tokenizers["tokenizer"]
    extra: dict[str, Any] = {"requires_safety_checker": False} if cls == "StableDiffusionPipeline" else {}
    if extra:
        extra |= {"safety_checker": None, "feature_extractor": None}
    pipe = getattr(diffusers, cls)(**parts, **tokenizers, **extra).to(device, dtype)
    pipe.set_progress_bar_config(disable=True)
    if channels_last:
        for network in (pipe.vae, getattr(pipe, "unet", None)):
            if network is not None:
                network.to(memory_format=torch.channels_last)
    return pipe, shapes


def ours_of(name: str, rehearse: bool, device: torch.device, dtype: torch.dtype, **options: Any) -> tuple[Any, dict]:
    pipe, shapes = pipeline(name, rehearse, device, dtype, False)
    if name == "PixArt":
        options["timestep"] = 400
    settings = GeneratorSettings.model_validate({"id": name} | options)
    return family_of(name, type(pipe).__name__)(pipe, settings), shapes


def embeddings(shapes: dict[str, tuple[int, ...]], batch: int, device: torch.device) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    made = {n: torch.randn(batch, *shape, generator=draw).to(device) for n, shape in shapes.items()}
    return made | {n: torch.ones_like(t) for n, t in made.items() if n.endswith("mask")}


def conditioning(embeds: dict[str, torch.Tensor], width: int) -> Conditioning:
    own = dict(embeds)
    batch = len(own["prompt_embeds"])
    pooled = own.pop("pooled_prompt_embeds", None)
    if pooled is None:
        pooled = own["prompt_embeds"].new_zeros(batch, width)
    return Conditioning(own, pooled, [False] * batch)


def published_sizes(device: torch.device, rehearse: bool, compiled: bool, rounds: int) -> None:
    best = torch.bfloat16
    rows = [("same settings, bfloat16, channels_last", best, True), ("each with its defaults", torch.float32, False)]
    batches = (1, 2) if rehearse else (1, 4, 16)
    print("\n| network | comparison | batch | images/s | diffusers' time over ours (median, 95%) |")
    print("|---|---|---|---|---|")
    for name in ("SD-Turbo", "SDXL-Turbo", "PixArt"):
        generator, shapes = ours_of(name, rehearse, device, best, channels_last=True, compile=compiled)
        for label, dtype, last in rows:
            pipe, _ = pipeline(name, rehearse, device, dtype, last)
            if compiled and dtype == best:
                (pipe.transformer if name == "PixArt" else pipe.unet).compile()
                pipe.vae.decoder.compile()
            call: dict[str, Any] = dict(ONE)
            if name == "PixArt":
                call |= {"guidance_scale": 1.0, "timesteps": [400], "negative_prompt": None}
                call |= {"use_resolution_binning": False}
            for batch in batches:
                embeds = embeddings(shapes, batch, device)
                c = conditioning(embeds, generator.pooled_width)
                z = standard_noise([str(i) for i in range(batch)], [0] * batch, generator.latent_shape).to(device)
                given = {n: t.to(dtype) for n, t in embeds.items()}

                @torch.no_grad()
                def ours(z: torch.Tensor = z, c: Conditioning = c, g: Any = generator) -> torch.Tensor:
                    return g.decode(g.denoise(z, c))

                def theirs(given: dict = given, z: torch.Tensor = z, p: Any = pipe, call: dict = call) -> Any:
                    return p(latents=z.to(p.dtype), **given, **call)

                took, ratios = in_turns(ours, theirs, device, rounds)
                label_ = f"{label}{', compiled' if compiled and dtype == best else ''}"
                print(f"| {name} | {label_} | {batch} | {batch / took:.1f} | {spread(ratios)} |")
            del pipe
        del generator
    print("\n| training step | batch | checkpointing | ms | peak MB | share of measured peak |")
    print("|---|---|---|---|---|---|")
    for name in ("SD-Turbo", "SDXL-Turbo", "PixArt"):
        batch = 2 if rehearse else 8
        training_rows(
            f"{name}, bfloat16, channels_last",
            lambda checkpointing, name=name: ours_of(
                name, rehearse, device, best, channels_last=True, checkpointing=checkpointing
            )[0],
            lambda g, name=name: conditioning(
                embeddings(networks_shapes(name), batch, device),  # noqa: B023
                g.pooled_width,
            ),
            batch,
        )


def networks_shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {
        "SD-Turbo": {"prompt_embeds": (77, 1024)},
        "SDXL-Turbo": {"prompt_embeds": (77, 2048), "pooled_prompt_embeds": (1280,)},
        "PixArt": {"prompt_embeds": (120, 4096), "prompt_attention_mask": (120,)},
    }[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="the GPU's part on the CPU, with small networks")
    parser.add_argument("--compile", action="store_true", help="torch.compile on both sides of the GPU's part")
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if arguments.rehearse:
        published_sizes(torch.device("cpu"), True, False, 1)
        return
    small_world(arguments.rounds)
    if torch.cuda.is_available():
        print(f"\n{torch.cuda.get_device_name()}")
        published_sizes(torch.device("cuda"), False, arguments.compile, arguments.rounds)
    else:
        print("\nNetworks of published sizes: not measured, torch sees no GPU here.")


if __name__ == "__main__":
    main()
