"""One explicit schema a table. Columns are only ever added; `pahi_schema_version` says which set a file has."""

import json
from typing import Any

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 3
VERSION_KEY = b"pahi_schema_version"


def field(name: str, kind: pa.DataType, meaning: str, nullable: bool = False) -> pa.Field:
    """A column and, in its metadata, what it means."""
    return pa.field(name, kind, nullable=nullable, metadata={b"meaning": meaning.encode()})


def tensor_field(name: str, shape: tuple[int, ...], meaning: str, dtype: pa.DataType | None = None) -> pa.Field:
    """A tensor of one shape a row. Arrow's own fixed_shape_tensor makes `datasets.load_dataset` fail."""
    size = int(np.prod(shape))
    metadata = {b"meaning": meaning.encode(), b"shape": json.dumps(list(shape)).encode()}
    return pa.field(name, pa.list_(pa.field("item", dtype or pa.float32()), size), metadata=metadata)


def tensor_column(values: np.ndarray, kind: pa.FixedSizeListType) -> pa.Array:
    """(rows, ...) -> a column for `tensor_field`."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), type=kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)


def read_tensor(table: pa.Table, name: str) -> np.ndarray:
    """A tensor column back as (rows, *shape)."""
    column = table.column(name).combine_chunks()
    shape = json.loads(table.schema.field(name).metadata[b"shape"])
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), *shape)


IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


def with_features(fields: list[pa.Field]) -> pa.Schema:
    """A schema with the metadata that makes `datasets` and the Hub viewer show its pictures."""
    features = {f.name: _feature(f.type) for f in fields}
    return pa.schema(fields, metadata={b"huggingface": json.dumps({"info": {"features": features}}).encode()})


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_fixed_size_list(kind):
        return {"_type": "List", "feature": _feature(kind.value_type), "length": kind.list_size}
    return {"dtype": "float16" if kind == pa.float16() else str(kind), "_type": "Value"}


PROMPTS = pa.schema(
    [
        field("prompt_id", pa.string(), "first 20 hexadecimal digits of the sha256 of the cleaned text"),
        field("text", pa.string(), "the cleaned prompt"),
        field("original", pa.string(), "the prompt as the source had it"),
        field("source", pa.string(), "name of the source"),
        field("row", pa.int64(), "row of the source, counted from 1, its header not counted"),
        field("kind", pa.string(), "the source's own category of the prompt", nullable=True),
        field(
            "group", pa.string(), "what must not be divided between splits; the prompt_id where the source names none"
        ),
        field("split", pa.string(), "train, validation or test"),
        field("flags", pa.list_(pa.string()), "what cleaning changed"),
        field(
            "cluster", pa.string(), "prompt_id of the first prompt of its near-duplicates; its own where it has none"
        ),
        field(
            "parameters",
            pa.list_(pa.struct([pa.field("name", pa.string()), pa.field("value", pa.string())])),
            "what the prompt told its generator, such as ar 16:9, taken out of the text",
        ),
        field(
            "weights",
            pa.list_(pa.struct([pa.field("text", pa.string()), pa.field("weight", pa.float32())])),
            "words that the prompt stressed, such as (word:1.3), whose marks were taken out of the text",
        ),
    ]
)

REJECTS = pa.schema(
    [
        field("source", pa.string(), "name of the source"),
        field("row", pa.int64(), "row of the source, counted from 1"),
        field("text", pa.string(), "what was there, at most 2,000 characters", nullable=True),
        field("reason", pa.string(), "why it was left out"),
        field("detail", pa.string(), "more of it, such as where the first of its duplicates is", nullable=True),
        field("kept", pa.string(), "prompt_id of the prompt that was kept in its place", nullable=True),
    ]
)  # fmt: skip

BASELINE = pa.schema(
    [
        field("prompt_id", pa.string(), "the prompt"),
        field("seed", pa.int64(), "the seed of its noise, together with the prompt_id"),
        field("reward", pa.string(), "name of the reward model"),
        field("score", pa.float32(), "its raw score of the standard Gaussian's picture"),
    ]
)

METRICS = pa.schema(
    [
        field("phase", pa.string(), "hpi or pahi"),
        field("step", pa.int64(), "optimiser step within the phase"),
        field("name", pa.string(), "what was measured: loss, kl, grad_norm, reward/NAME, validation/NAME, ..."),
        field("value", pa.float64(), "its value; rewards are uplifts in within-prompt standard deviations"),
    ]
)

SCORES = pa.schema(
    [
        field("prompt_id", pa.string(), "the prompt"),
        field("seed", pa.int64(), "the seed of its noise, together with the prompt_id"),
        field("arm", pa.string(), "how the noise was made: standard, hpi, pahi, pahi_shuffled, best_of_N"),
        field("reward", pa.string(), "name of the reward model or judge"),
        field("score", pa.float32(), "its raw score; null where the judge does not apply", nullable=True),
    ]
)

IMAGE_SCORES = pa.schema(
    [
        field("image_id", pa.string(), "the image"),
        field("prompt_id", pa.string(), "its prompt"),
        field("arm", pa.string(), "pahi, hpi, or standard for the control group"),
        field("reward", pa.string(), "name of the reward model"),
        field("score", pa.float32(), "its raw score; null where the picture failed", nullable=True),
        field(
            "uplift_scale", pa.float32(), "the reward's unit: pooled within-prompt standard deviation; NaN if unknown"
        ),
        field("seed", pa.int64(), "the seed of its noise, together with the prompt_id"),
    ]
)

CANDIDATES = pa.schema(
    [
        field("image_id", pa.string(), "prompt_id, arm and seed of the candidate; an image of `images` where kept"),
        field("prompt_id", pa.string(), "its prompt"),
        field("arm", pa.string(), "pahi, hpi, or standard for the control group"),
        field("seed", pa.int64(), "the seed of its noise, together with the prompt_id"),
        field("picture", pa.int32(), "which of the prompt's pictures it was drawn for, counted from 0"),
        field("reward", pa.string(), "name of the reward model"),
        field("score", pa.float32(), "its raw score; null where the picture failed", nullable=True),
        field("kept", pa.bool_(), "whether it is the best of its candidates by the training rewards"),
    ]
)

IMAGES = with_features(
    [
        field("image_id", pa.string(), "prompt_id, arm and seed"),
        field("prompt_id", pa.string(), "the prompt"),
        field("prompt", pa.string(), "its text"),
        field("seed", pa.int64(), "the seed of its noise, together with the prompt_id"),
        field("arm", pa.string(), "pahi, hpi, or standard for the control group"),
        pa.field("image", IMAGE, metadata={b"meaning": b"the encoded picture; null when status is not ok"}),
        field("width", pa.int32(), "pixels"),
        field("height", pa.int32(), "pixels"),
        field("format", pa.string(), "png, webp or jpeg"),
        field("pixels_sha256", pa.string(), "sha256 of the uncompressed uint8 pixels, row by row", nullable=True),
        field("status", pa.string(), "ok, or failed"),
        field("reason", pa.string(), "why it failed", nullable=True),
        field("truncated", pa.bool_(), "whether the generator's tokenizer cut the prompt"),
        field("generator", pa.string(), "id of the generator"),
        field("generator_hash", pa.string(), "sha256 over its weight files"),
        field("predictor_hash", pa.string(), "sha256 of the predictor's weights"),
        field("dtype", pa.string(), "the networks' precision"),
        field("noise_norm", pa.float32(), "norm of x_T over sqrt(d)"),
        field("kl", pa.float32(), "KL from the prior, nats a dimension"),
        field("generator_revision", pa.string(), "the Hub's commit of the generator", nullable=True),
        field("candidates", pa.int32(), "how many drawings it is the best of, by the training rewards"),
        field(
            "draft_decoder",
            pa.string(),
            "sha256 over the weight files of a draft's smaller decoder; null where the generator's own decoded",
            nullable=True,
        ),
    ]
)


def noise_schema(shape: tuple[int, ...]) -> pa.Schema:
    """Predicted mu and sigma of each prompt."""
    return pa.schema(
        [
            field("prompt_id", pa.string(), "the prompt, or * where mu and sigma are the same for all"),
            tensor_field("mu", shape, "mean of x_T", pa.float16()),
            tensor_field("sigma", shape, "standard deviation of x_T", pa.float16()),
        ]
    )


def embeds_schema(shapes: dict[str, tuple[int, ...]], truncated: bool) -> pa.Schema:
    """Cached tensors of each prompt: `conditioning`."""
    fields = [field("prompt_id", pa.string(), "the prompt")]
    if truncated:
        fields.append(field("truncated", pa.bool_(), "whether the tokenizer cut the prompt"))
    return pa.schema(fields + [tensor_field(name, shape, f"{name}, float32") for name, shape in shapes.items()])


def reward_text_schema(features: dict[str, np.ndarray], truncated: list[str]) -> pa.Schema:
    """The rewards' text sides: `REWARD__NAME` tensors, and whether each reward's tokenizer cut the prompt."""
    fields = [field("prompt_id", pa.string(), "the prompt")]
    for reward in truncated:
        fields.append(field(f"{reward}__truncated", pa.bool_(), f"whether {reward}'s tokenizer cut the prompt"))
    for name, values in features.items():
        dtype = pa.float32() if values.dtype.kind == "f" else pa.int32()
        fields.append(tensor_field(name, values.shape[1:], f"{name}, {dtype}", dtype))
    return pa.schema(fields)


def curated_schema(rewards: list[str], more: list[pa.Field] | None = None) -> pa.Schema:
    """The published dataset, with the metadata that makes `datasets` and the Hub viewer show pictures."""
    names = ["image_id", "prompt_id", "prompt", "image", "seed", "arm", "width", "height", "pixels_sha256"]
    fields = [IMAGES.field(name) for name in names]
    fields.insert(3, field("kind", pa.string(), "the source's own category of the prompt", nullable=True))
    fields += [field(f"score_{name}", pa.float32(), f"raw score of {name}", nullable=True) for name in rewards]
    fields += [IMAGES.field(name) for name in ("generator", "generator_hash", "predictor_hash")]
    return with_features(fields + (more or []))


EVALUATED = pa.schema(
    [
        field("prompt_id", pa.string(), "the prompt"),
        field("kind", pa.string(), "the source's own category of the prompt", nullable=True),
        field("arm", pa.string(), "how the noise was made"),
        field("group", pa.string(), "what the prompt shares with others, such as its scene"),
        field("diversity", pa.float32(), "mean root-mean-square pixel distance between pictures of different seeds"),
        field("feature_diversity", pa.float32(), "mean distance between their features; null without a tower", True),
        field("noise_norm", pa.float32(), "norm of x_T over sqrt(d), mean over seeds"),
        field("kl", pa.float32(), "KL from the prior, nats a dimension; null for no Gaussian", nullable=True),
        field("noise_correlation", pa.float32(), "correlation of x_T's neighbouring numbers, mean over seeds"),
    ]
)  # fmt: skip


def features_schema(width: int) -> pa.Schema:
    """Features of every picture of an evaluation."""
    return pa.schema(
        [
            field("prompt_id", pa.string(), "the prompt"),
            field("seed", pa.int64(), "the seed of its noise, together with the prompt_id"),
            field("arm", pa.string(), "how the noise was made"),
            tensor_field("features", (width,), "a reward's picture tower, unit length"),
        ]
    )


GALLERY = pa.schema(
    [
        field("prompt_id", pa.string(), "the prompt"),
        field("prompt", pa.string(), "its text"),
        field("kind", pa.string(), "the source's own category of the prompt", nullable=True),
        field("seed", pa.int64(), "the seed of both pictures' noise"),
        pa.field("before", IMAGE, metadata={b"meaning": b"the standard Gaussian's picture, PNG"}),
        pa.field("after", IMAGE, metadata={b"meaning": b"the predictor's picture of the same eps, PNG"}),
    ]
)

EXCLUDED = pa.schema(
    [
        field("image_id", pa.string(), "the image"),
        field("prompt_id", pa.string(), "its prompt"),
        field("reason", pa.string(), "why it is not in the dataset"),
        field("detail", pa.string(), "more about the reason", nullable=True),
    ]
)
