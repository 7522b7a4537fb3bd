"""Every family's pipeline in its published layout, small and of random weights, with the arguments its card names.

A new family needs one more builder and one more line in CASES.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import diffusers
import sentencepiece
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    LCMScheduler,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SCMScheduler,
    TCDScheduler,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from pahi.generators import standard_noise

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
PROMPTS = ["a red circle", "", "A large blue star on a white background", "word " * 400]
Shake = Callable[[torch.nn.Module, int], None]


@dataclass(frozen=True)
class Case:
    """A family in one configuration."""

    name: str
    build: Callable[..., dict[str, Any]]  # (tokenizer, folder) -> parts of the pipeline
    pipeline: str
    scheduler: Any
    options: dict[str, Any] = field(default_factory=dict)  # ours: settings of `generator`
    call: dict[str, Any] = field(default_factory=dict)  # theirs: what the model's card tells to pass
    breaks: tuple[str, ...] = ()  # names of wrongs in test_families.py beside the common ones
    coarse: bool = False  # whether parts of its networks are float32 even in float64


def clip_text(tokenizer: Any, cls: Any = CLIPTextModel, **config: Any) -> Any:
    return cls(
        CLIPTextConfig(
            **{
                "vocab_size": len(tokenizer),
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": tokenizer.model_max_length,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            }
            | config
        )
    )


def unet(**config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (16, 32),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "attention_head_dim": 8,
            "norm_num_groups": 8,
        }
        | config
    )


def vae(**config: Any) -> AutoencoderKL:
    return AutoencoderKL(
        **{
            "block_out_channels": (16, 16),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 8,
            "sample_size": 16,
            "scaling_factor": 0.37,
        }
        | config
    )


def stable_diffusion(tokenizer: Any, folder: Path, **config: Any) -> dict[str, Any]:
    return {
        "unet": unet(**config),
        "vae": vae(),
        "text_encoder": clip_text(tokenizer),
        "tokenizer": tokenizer,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def latent_consistency(tokenizer: Any, folder: Path) -> dict[str, Any]:
    return stable_diffusion(tokenizer, folder, time_cond_proj_dim=16)


def stable_diffusion_xl(tokenizer: Any, folder: Path, **config: Any) -> dict[str, Any]:
    xl = {
        "cross_attention_dim": 32 + 48,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 * 6 + 24,
        "transformer_layers_per_block": 1,
        "use_linear_projection": True,
    }
    return {
        "unet": unet(**xl | config),
        "vae": vae(),
        "text_encoder": clip_text(tokenizer),
        "text_encoder_2": clip_text(tokenizer, CLIPTextModelWithProjection, hidden_size=48, projection_dim=24),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
    }


def t5(folder: Path) -> tuple[Any, Any]:
    """A T5 encoder, and its tokenizer as a sentencepiece model, which is how PixArt's is published."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(["a red circle", "a large blue star on a white background", "word and words"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = T5Tokenizer.from_pretrained(folder, extra_ids=0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3, dropout_rate=0.0
    )
    return T5EncoderModel(config), tokenizer


def pixart(tokenizer: Any, folder: Path) -> dict[str, Any]:
    encoder, words = t5(folder / "t5")
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=24,
        caption_channels=24,
        use_additional_conditions=False,
    )
    return {"transformer": transformer, "vae": vae(), "text_encoder": encoder, "tokenizer": words}


def gemma(tokenizer: Any) -> tuple[Any, Any]:
    """A Gemma 2 of a few letters; the tiny world's own vocabulary of characters serves as its vocabulary."""
    vocab = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "▁": 4}
    for letter in sorted(set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:->'()\n\"")):
        vocab[letter] = len(vocab)
    words = GemmaTokenizer(vocab=vocab, merges=[])
    config = Gemma2Config(
        vocab_size=len(vocab),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
        max_position_embeddings=4096,
        sliding_window=4096,
    )
    return Gemma2Model(config), words


def sana(tokenizer: Any, folder: Path) -> dict[str, Any]:
    encoder, words = gemma(tokenizer)
    transformer = SanaTransformer2DModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        num_layers=2,
        num_attention_heads=3,
        attention_head_dim=8,
        num_cross_attention_heads=3,
        cross_attention_head_dim=8,
        cross_attention_dim=24,
        caption_channels=24,
        patch_size=1,
        guidance_embeds=True,
        guidance_embeds_scale=0.1,
        qk_norm="rms_norm_across_heads",
        timestep_scale=1000.0,
    )
    blocks = {
        "block_out_channels": (8, 16),
        "layers_per_block": (1, 1),
    }
    decoder = AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=blocks["block_out_channels"],
        decoder_block_out_channels=blocks["block_out_channels"],
        encoder_layers_per_block=blocks["layers_per_block"],
        decoder_layers_per_block=blocks["layers_per_block"],
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    return {"transformer": transformer, "vae": decoder, "text_encoder": encoder, "tokenizer": words}


def flux(tokenizer: Any, folder: Path) -> dict[str, Any]:
    encoder, words = t5(folder / "t5")
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=False,
    )
    return {
        "transformer": transformer,
        "vae": vae(shift_factor=0.12),
        "text_encoder": clip_text(tokenizer),
        "text_encoder_2": encoder,
        "tokenizer": tokenizer,
        "tokenizer_2": words,
    }


ONE = {"num_inference_steps": 1, "guidance_scale": 0.0}
TRAILING = {"timestep_spacing": "trailing", **BETAS}
SD, XL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
CASES = [
    Case("sd-turbo", stable_diffusion, SD, EulerDiscreteScheduler(**TRAILING), call=ONE),
    Case(
        "tiny-v",
        stable_diffusion,
        SD,
        EulerDiscreteScheduler(**TRAILING, prediction_type="v_prediction"),
        call=ONE,
    ),
    Case("tiny-sample", stable_diffusion, SD, EulerDiscreteScheduler(**TRAILING, prediction_type="sample"), call=ONE),
    Case(
        "sdxl-turbo",
        stable_diffusion_xl,
        XL,
        EulerAncestralDiscreteScheduler(**TRAILING),
        call=ONE,
        breaks=("pooled", "time ids"),
    ),
    Case(
        "lcm",
        latent_consistency,
        "LatentConsistencyModelPipeline",
        LCMScheduler(**BETAS),
        options={"guidance": 8.0},
        call={"num_inference_steps": 1, "guidance_scale": 8.0},
        breaks=("guidance",),
    ),
    Case("hyper-sd", stable_diffusion, SD, TCDScheduler(**BETAS), call=ONE | {"eta": 1.0}),
    Case(
        "hyper-sdxl",
        stable_diffusion_xl,
        XL,
        LCMScheduler(**BETAS),
        options={"timestep": 800},
        call=ONE | {"timesteps": [800]},
        breaks=("pooled", "time ids"),
    ),
    Case(
        "pixart-dmd",
        pixart,
        "PixArtAlphaPipeline",
        DDPMScheduler(**{k: v for k, v in BETAS.items() if k != "steps_offset"}, clip_sample=False),
        call={
            "num_inference_steps": 1,
            "guidance_scale": 1.0,
            "timesteps": [400],
            "clean_caption": False,
            "use_resolution_binning": False,
        },
        breaks=("mask",),
    ),
    Case(
        "sana-sprint",
        sana,
        "SanaSprintPipeline",
        SCMScheduler(),
        call={
            "num_inference_steps": 1,
            "intermediate_timesteps": None,
            "guidance_scale": 4.5,
            "height": 32,
            "width": 32,
            "use_resolution_binning": False,
        },
        breaks=("mask", "guidance"),
        coarse=True,  # AutoencoderDC's norms
    ),
    Case(
        "flux-schnell",
        flux,
        "FluxPipeline",
        FlowMatchEulerDiscreteScheduler(shift=1.0),
        options={"size": 16},
        call=ONE | {"height": 16, "width": 16, "max_sequence_length": 256},
        breaks=("pooled", "places"),
        coarse=True,  # its query and key norms
    ),
]
BY_NAME = {case.name: case for case in CASES}


def save(case: Case, tokenizer: Any, shake: Shake, folder: Path) -> Path:
    """The case's pipeline, saved as its publishers did."""
    torch.manual_seed(0)
    parts = case.build(tokenizer, folder / "work")
    for i, part in enumerate(p for p in parts.values() if isinstance(p, torch.nn.Module)):
        shake(part, i)
        part.eval()
    extra = {"add_watermarker": False} if case.pipeline == XL else {}
    pipe = getattr(diffusers, case.pipeline)(**parts, scheduler=case.scheduler, **extra)
    pipe.save_pretrained(folder / "model", safe_serialization=True)
    if case.build is pixart:  # published as a sentencepiece model alone
        (folder / "model" / "tokenizer" / "tokenizer.json").unlink()
        shutil.copy(folder / "work" / "t5" / "spiece.model", folder / "model" / "tokenizer" / "spiece.model")
    return folder / "model"


def noise(generator: Any, count: int) -> Tensor:
    return standard_noise([f"p{i}" for i in range(count)], [7] * count, generator.latent_shape)


def draw(generator: Any, prompts: list[str], z: Tensor) -> Tensor:
    return generator.decode(generator.denoise(z, generator.encode(prompts)))


def theirs(case: Case, folder: Path, prompts: list[str], latents: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """diffusers' own pictures, in [0, 1]."""
    extra = {"safety_checker": None} if case.pipeline in (SD, "LatentConsistencyModelPipeline") else {}
    pipe = getattr(diffusers, case.pipeline).from_pretrained(folder, **extra).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe(prompts, latents=latents.to(dtype), output_type="pt", **case.call).images


def variant(case: Case, name: str, **changes: Any) -> Case:
    """The same pipeline in another configuration."""
    return replaced(case, name=f"{case.name}-{name}", **changes)
