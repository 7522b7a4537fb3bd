"""One tree of settings: a preset, then a file, then `--set key=value`. Unknown keys are errors.

Fields marked `runtime` decide how fast a run is, not what it writes, and stay out of every fingerprint.
"""

import json
import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from pahi.errors import UserError
from pahi.explain import explain, nearest, reason

RUNTIME: dict[str, Any] = {"runtime": True}
CREDENTIALS = r"://[^/@]*:[^/]*@"  # scheme://user:password@host


def _without_credentials(value: str) -> str:
    if re.search(CREDENTIALS, value):
        raise ValueError(
            "an address that holds a password would be written to manifests, logs and Prefect's database; "
            "give the credentials in the environment or a profile"
        )
    return value


# The pattern is for Prefect's server, which refuses such a parameter before it stores it.
Place = Annotated[
    str,
    AfterValidator(_without_credentials),
    WithJsonSchema({"type": "string", "pattern": f"^(?!.*{CREDENTIALS})"}),
]


def _in_order(schema: dict[str, Any]) -> None:
    """Prefect's form shows the fields as they are written here; PostgreSQL's JSON alone forgets their order."""
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position


class Tree(BaseModel):
    """A part of the settings."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        json_schema_extra=_in_order,
        # A form's labels are the keys, as in presets, --set and the documentation.
        field_title_generator=lambda name, _: name,
    )

    def fingerprinted(self) -> dict[str, Any]:
        """What changes the output, as JSON."""
        runtime = {name for name, field in type(self).model_fields.items() if field.json_schema_extra == RUNTIME}
        found: dict[str, Any] = {}
        for name in (n for n in type(self).model_fields if n not in runtime):
            value = getattr(self, name)
            if isinstance(value, Tree):
                found[name] = value.fingerprinted()
            elif isinstance(value, list) and any(isinstance(item, Tree) for item in value):
                found[name] = [item.fingerprinted() for item in value]
            else:
                found[name] = json.loads(self.model_dump_json(include={name}))[name]
        return found


class Source(Tree):
    """One place that prompts come from."""

    path: Place = Field(
        description="File (txt, csv, tsv, json, jsonl, parquet; .gz, .bz2, .xz, .zst), a pattern such as "
        "data/*.csv, any fsspec URL, pkg:package/file, or hub:owner/dataset."
    )
    name: str = Field("", description="How the source is called in the artifacts; the file's stem where empty.")
    format: Literal["", "txt", "csv", "tsv", "json", "jsonl", "parquet"] = Field(
        "", description="Format of the file; by its suffix where empty."
    )
    encoding: str = Field("utf-8", description="Encoding of a text file.")
    pattern: str = Field(
        "", description="Regular expression for the lines of a txt, whose groups text, kind, group, split are columns."
    )
    revision: str | None = Field(None, description="Commit or branch of a Hub dataset.")
    config: str | None = Field(None, description="Configuration of a Hub dataset.")
    part: str = Field("train", description="Which of a Hub dataset's own splits is read.")
    text: str = Field("", description="Column of the prompt; found by its usual names where empty.")
    kind: str = Field("", description="Column of the prompt's category.")
    group: str = Field("", description="Column naming what must not be divided between splits.")
    split: str = Field("", description="Column naming the split itself.")
    limit: int | None = Field(None, ge=1, description="At most this many rows, of each file.")
    weight: float = Field(1.0, gt=0, le=1, description="Share of its prompts that is kept, by a hash of the prompt.")

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        import codecs

        try:
            return codecs.lookup(value).name
        except LookupError:
            raise ValueError(f"no encoding is called {value!r}; utf-8, latin-1, utf-16 and gb18030 are some") from None


def _regular(patterns: list[str]) -> list[str]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return patterns


class PromptClassifier(Tree):
    """A judge of prompts: what it calls by one of `labels` is rejected."""

    name: str = Field(pattern="^[a-z0-9_]+$", description="How it is called in the rejects.")
    id: str = Field(description="module:function, or folder or Hub id of a text-classification model.")
    revision: str | None = Field(None, description="Commit of the Hub repository.")
    labels: list[str] = Field(default_factory=list, description="Labels of the model that reject a prompt.")
    threshold: float = Field(0.5, ge=0, le=1, description="Score from which on a prompt is rejected.")

    @model_validator(mode="after")
    def _labelled(self) -> "PromptClassifier":
        if not self.labels and ":" not in self.id:
            raise ValueError(f"classifier {self.name!r} is a model, so it needs the labels that reject a prompt")
        return self


class Filters(Tree):
    """What a prompt must be like. All of it is off unless asked for."""

    min_characters: int = Field(1, ge=1, description="Shorter prompts are rejected.")
    max_tokens: int | None = Field(None, ge=1, description="Prompts of more tokens are rejected.")
    tokenizer: str = Field(
        "openai/clip-vit-large-patch14", description="Folder or Hub id of the tokenizer that counts them."
    )
    max_repetition: float | None = Field(
        None, ge=0, le=1, description="Prompts whose share of repeated three-word sequences is above this are rejected."
    )
    languages: list[str] = Field(default_factory=list, description="ISO 639-1 codes of the languages that are kept.")
    min_language_probability: float = Field(
        0.9, ge=0, le=1, description="Below this the language counts as unknown, and the prompt is kept."
    )
    word_lists: list[str] = Field(default_factory=list, description="Files of words or phrases, one a line.")
    include: list[str] = Field(default_factory=list, description="Regular expressions, one of which must be found.")
    exclude: list[str] = Field(default_factory=list, description="Regular expressions, none of which may be found.")
    classifiers: list[PromptClassifier] = Field(
        default_factory=list, description="Models or functions that judge prompts."
    )

    @field_validator("include", "exclude")
    @classmethod
    def _patterns(cls, value: list[str]) -> list[str]:
        return _regular(value)


CleaningStep = Literal["nfkc", "html", "control", "parameters", "weights", "whitespace"]
CLEANING: tuple[CleaningStep, ...] = ("nfkc", "html", "control", "parameters", "weights", "whitespace")


class Ingest(Tree):
    """Prompts in."""

    sources: list[Source] = Field(min_length=1, description="Where prompts come from, in order of precedence.")
    clean: list[CleaningStep] = Field(
        default_factory=lambda: list(CLEANING), description="Steps of cleaning, always in this order."
    )
    max_characters: int = Field(2000, ge=1, description="Longer prompts are rejected.")
    filters: Filters = Field(Filters(), description="What a prompt must be like.")  # type: ignore[call-arg]
    near_duplicates: Literal["ignore", "keep", "drop"] = Field(
        "keep", description="Near-duplicates are not looked for, kept in one split, or dropped but for the first."
    )
    near_threshold: float = Field(
        0.7, ge=0.5, le=1, description="Jaccard similarity of 4-byte shingles from which on two prompts are near."
    )
    evaluation: list[Source] = Field(
        default_factory=list, description="Evaluation sets: prompts near theirs are kept out of training."
    )
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="Share of groups for validation.")
    test_fraction: float = Field(0.1, ge=0, lt=1, description="Share of groups for test.")
    shard_rows: int = Field(10_000, ge=1, description="Prompts a shard.")
    max_expansion: int = Field(
        200,
        ge=1,
        description="A compressed source may be this much larger inside, before it counts as a bomb.",
        json_schema_extra=RUNTIME,
    )

    @field_validator("clean")
    @classmethod
    def _ordered(cls, value: list[CleaningStep]) -> list[CleaningStep]:
        return [step for step in CLEANING if step in value]


class Part(Tree):
    """A part of a generator that comes from elsewhere than the rest."""

    id: Place = Field(description="Local folder, fsspec URL or Hub id.")
    revision: str | None = Field(None, description="Commit of the Hub repository.")
    subfolder: str = Field("", description="Folder of the part inside it.")
    file: str = Field(
        "", description="One file of weights inside it, for the architecture of the generator's own part."
    )


class Generator(Tree):
    """The frozen one-step generator."""

    id: Place = Field(description="Local folder, fsspec URL, Hub id or pkg:package/folder of a diffusers pipeline.")
    revision: str | None = Field(None, description="Commit of the Hub repository.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Precision of the networks.")
    license: str = Field("unknown", description="Its licence, for the dataset's card.")
    parts: dict[str, Part] = Field(
        default_factory=dict,
        description="Parts in place of its own (unet, transformer, vae, scheduler, ...), or a lora.",
    )
    scheduler: str = Field("", description="diffusers' scheduler class in place of its own, with its configuration.")
    scheduler_config: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="Entries of the scheduler's configuration that differ."
    )
    timestep: int | None = Field(None, ge=0, description="Timestep of the one step; the scheduler's own where empty.")
    guidance: float | None = Field(None, ge=0, description="Guidance embedded in the network; its usual where empty.")
    size: int | None = Field(None, ge=8, description="Width and height of pictures; its native size where empty.")
    vae_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the decoder; auto is dtype, and float32 where the checkpoint asks for it."
    )
    training_autoencoder: Part | None = Field(
        None, description="A smaller decoder (AutoencoderTiny) for the pictures that gradients flow through."
    )
    checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory.", json_schema_extra=RUNTIME
    )
    vae_slicing: bool = Field(False, description="Decode one picture at a time.", json_schema_extra=RUNTIME)
    channels_last: bool = Field(False, description="Convolutions' layout for GPUs.", json_schema_extra=RUNTIME)
    compile: bool = Field(False, description="torch.compile denoiser and decoder.", json_schema_extra=RUNTIME)


def reward_kinds() -> list[str]:
    """The kinds of rewards: the files of pahi/rewards, less those that every kind shares."""
    shared = ("base", "ensemble", "files", "load", "preprocess", "reference", "towers")
    names = (file.name.removesuffix(".py") for file in (resources.files("pahi") / "rewards").iterdir())
    return sorted(n for n in names if n.isidentifier() and n not in shared and not n.startswith("_"))


class RewardModel(Tree):
    """One reward model or judge."""

    name: str = Field(pattern="^[a-z0-9_]+$", description="How it is called in tables.")
    kind: Literal[tuple(reward_kinds())] = Field(  # type: ignore[valid-type]
        description="Its architecture, or any Python callable."
    )
    id: Place = Field(description="Local folder, Hub id or pkg:package/folder; module:function for a callable.")
    revision: str | None = Field(None, description="Commit of the Hub repository.")
    base: str | None = Field(None, description="Where its tokenizer, or the CLIP below its head, lies, if elsewhere.")
    base_revision: str | None = Field(None, description="Commit of that Hub repository.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Precision of its towers.")
    timeout: float | None = Field(
        None, gt=0, description="Seconds that a callable may take for one call.", json_schema_extra=RUNTIME
    )
    retries: int = Field(
        0, ge=0, le=10, description="How often a callable that failed is called again.", json_schema_extra=RUNTIME
    )
    batch_size: int | None = Field(
        None, ge=1, description="Pictures that a callable gets at once, at most.", json_schema_extra=RUNTIME
    )
    weight: float = Field(1.0, ge=0, description="Weight in the training loss, in within-prompt standard deviations.")


class Rewards(Tree):
    """What trains, and what judges."""

    train: list[RewardModel] = Field(min_length=1, description="Rewards of the training loss.")
    held_out: list[RewardModel] = Field(default_factory=list, description="Rewards that never train anything.")
    judges: list[RewardModel] = Field(default_factory=list, description="Yes-or-no judges, such as an oracle.")

    @model_validator(mode="after")
    def _separate(self) -> "Rewards":
        names = [reward.name for reward in (*self.train, *self.held_out, *self.judges)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"reward {twice[0]!r} is named twice: one that trains cannot be held out")
        trained = {reward.id for reward in self.train}
        for reward in (*self.held_out, *self.judges):
            if reward.id in trained:
                raise ValueError(f"held-out reward {reward.name!r} is the model that trains ({reward.id})")
        if not any(reward.weight for reward in self.train):
            raise ValueError("every training reward has weight 0")
        return self


class Cache(Tree):
    """What is computed once for training and validation prompts."""

    seeds: int = Field(4, ge=2, description="Standard-Gaussian pictures a prompt, scored as the baseline.")
    max_train_prompts: int | None = Field(None, ge=1, description="At most this many training prompts.")
    max_validation_prompts: int | None = Field(None, ge=1, description="At most this many validation prompts.")
    shard_rows: int = Field(128, ge=1, description="Prompts a shard.")
    batch_size: int = Field(32, ge=1, description="Pictures at once.")


class Train(Tree):
    """The noise, learned."""

    predictor: Literal[
        "scale",
        "hpi",
        "pahi",
        "lowrank",
        "preserving",
        "mixture",
        "spline",
        "residual",
        "refined",
        "selected",
    ] = Field("pahi", description="What is learned.")
    estimator: Literal["pathwise", "value", "score"] = Field(
        "pathwise",
        description="Gradients through generator and rewards; or, from scores alone, through a learned value, or by "
        "the score function. `selected` always learns from scores.",
    )
    hpi_steps: int = Field(100, ge=1, description="Steps of the global Gaussian, before the prompt-adaptive part.")
    steps: int = Field(500, ge=0, description="Steps of any other predictor; 0 stops at HPI.")
    batch_size: int = Field(32, ge=1, description="Prompts a step, over all devices and parts.")
    accumulate: int = Field(
        1,
        ge=1,
        description="Parts that a step's prompts are computed in, one after another: the same step, less memory.",
        json_schema_extra=RUNTIME,
    )
    devices: int = Field(
        1,
        ge=1,
        description="Processes that share a step's prompts, each on a GPU of its own where there are GPUs.",
        json_schema_extra=RUNTIME,
    )
    lr: float = Field(4e-3, gt=0, description="AdamW's learning rate at its peak.")
    hpi_lr: float = Field(
        0.02, gt=0, description="The same for HPI and scale, whose numbers are the noise's own mean and scale."
    )
    hidden: int = Field(128, ge=1, description="Hidden units of the predictor.")
    beta: float = Field(
        0.4, ge=0, description="Weight of the KL from N(0, I), a dimension; `selected` has train.candidates instead."
    )
    candidates: int = Field(16, ge=2, description="Noises of which `selected` chooses one.")
    pictures: int = Field(
        20_000, ge=1, description="Pictures of standard noise whose scores a value is learned from, `selected`'s too."
    )
    value_lr: float = Field(0.02, gt=0, description="The learning rate of the value, and so of `selected`.")
    ema: float = Field(0.98, ge=0, lt=1, description="Decay of the weights' moving average.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    reward_cap: float | None = Field(None, gt=0, description="ReFL's guard: uplift above this earns nothing.")
    validate_every: int = Field(50, ge=1, description="Steps between validations.")
    validation_seeds: int = Field(
        2, ge=1, description="Pictures of each validation prompt, of the cached ones (cache.seeds) at most."
    )
    patience: int | None = Field(
        5,
        ge=1,
        description="Validations in a row at which training rewards rise above the best step's and held-out "
        "ones do not, before training stops early.",
    )
    save_every: int = Field(50, ge=1, description="Steps between saved states.", json_schema_extra=RUNTIME)
    tensorboard: str | None = Field(
        None,
        description="Folder for TensorBoard's event files; needs the extra `tensorboard`.",
        json_schema_extra=RUNTIME,
    )
    seed: int = Field(0, ge=0, description="Seed of initialisation and sampling.")

    @property
    def chooses(self) -> bool:
        """Whether the predictor picks noise as it is, and learns from scores whatever the estimator."""
        return self.predictor == "selected"

    @property
    def learns_value(self) -> bool:
        """Whether what a noise's picture will score is learned, from pictures of standard noise first."""
        return self.chooses or self.estimator == "value"

    @property
    def gradients(self) -> bool:
        """Whether they go through generator and rewards."""
        return self.estimator == "pathwise" and not self.chooses

    @property
    def prompts_a_step(self) -> int:
        """By the score function, a prompt is drawn twice, from eps and from -eps."""
        twice = self.estimator == "score" and not self.chooses
        return max(1, self.batch_size // 2) if twice else self.batch_size

    @model_validator(mode="after")
    def _shared(self) -> "Train":
        if self.devices > self.prompts_a_step:
            raise ValueError(
                f"devices is {self.devices}, and batch_size {self.batch_size} gives {self.prompts_a_step} to share"
            )
        return self

    @property
    def phases(self) -> list[tuple[str, int]]:
        """What is learned in turn, with its steps: PAHI begins where HPI was best, all others stand alone."""
        phases: list[tuple[str, int]] = [("hpi", self.hpi_steps)] if self.predictor in ("hpi", "pahi") else []
        if self.predictor != "hpi" and self.steps:
            phases.append((self.predictor, self.steps))
        return phases

    def fingerprinted(self) -> dict[str, Any]:
        """What changes the output, as JSON; what others than this one read is no part of it."""
        found = super().fingerprinted()
        unread = ([] if self.chooses else ["candidates"]) + ([] if self.learns_value else ["pictures", "value_lr"])
        return {name: value for name, value in found.items() if name not in unread}


class Evaluate(Tree):
    """The comparison on test prompts."""

    prompts: int | None = Field(150, ge=1, description="At most this many test prompts.")
    seeds: int = Field(4, ge=2, description="Pictures a prompt and arm.")
    best_of: list[int] = Field(
        default_factory=lambda: [4], description="Baselines: the best of N by the training reward."
    )
    optimise: list[int] = Field(
        default_factory=list, description="Baselines: this many steps of gradient on each noise itself (ReNO)."
    )
    candidates: list[Annotated[int, Field(ge=2)]] = Field(
        default_factory=list, description="More arms of `selected`: choosing among so many noises."
    )
    bootstrap: int = Field(2000, ge=100, description="Resamples of the confidence intervals.")
    shard_rows: int = Field(64, ge=1, description="Prompts a shard.")
    batch_size: int = Field(32, ge=1, description="Pictures at once.")
    gallery: int = Field(60, ge=0, description="Pairs of pictures kept for the report.")
    reference: str = Field(
        "", description="Folder of pictures, any fsspec URL, that every arm's are compared with as a whole (CMMD)."
    )
    export: list[Literal["geneval", "t2i-compbench"]] = Field(
        default_factory=list, description="Benchmarks in whose folder layouts every arm's pictures are written too."
    )
    geneval_metadata: str = Field(
        "", description="GenEval's evaluation_metadata.jsonl, any fsspec URL, for evaluate.export=[geneval]."
    )

    @field_validator("best_of")
    @classmethod
    def _a_choice(cls, value: list[int]) -> list[int]:
        if any(n < 2 for n in value):
            raise ValueError("best of fewer than 2 is no choice")
        return sorted(set(value))

    @field_validator("optimise")
    @classmethod
    def _a_step(cls, value: list[int]) -> list[int]:
        # The first step's point is the noise as it was drawn: one alone changes nothing.
        if any(n < 2 for n in value):
            raise ValueError("fewer than 2 steps leave the noise as it is")
        return sorted(set(value))

    @model_validator(mode="after")
    def _exported(self) -> "Evaluate":
        if "geneval" in self.export and not self.geneval_metadata:
            raise ValueError("export to geneval needs evaluate.geneval_metadata, GenEval's evaluation_metadata.jsonl")
        return self

    def fingerprinted(self) -> dict[str, Any]:
        """What changes the output, as JSON; without more arms of `selected`, it says nothing of them."""
        found = super().fingerprinted()
        if not self.candidates:
            del found["candidates"]
        return found


class Generate(Tree):
    """Pictures, in bulk."""

    predictor: str | None = Field(None, description="Folder or Hub id of a predictor; the dataset's own where empty.")
    images_per_prompt: int = Field(1, ge=1, description="Pictures a prompt.")
    best_of: int = Field(1, ge=1, description="Drawings of which the best by the training rewards is each picture.")
    control_fraction: float = Field(0.1, ge=0, le=1, description="Share of rows also drawn from the standard Gaussian.")
    seed: int = Field(1000, ge=0, description="Seed of a prompt's first picture; the next ones follow.")
    format: Literal["png", "webp", "jpeg"] = Field("png", description="How pictures are encoded.")
    quality: int = Field(90, ge=1, le=100, description="Quality of webp and jpeg.")
    keep_noise: bool = Field(True, description="Write each prompt's mu and sigma: 64 kB for a latent of 4x64x64.")
    max_bad_fraction: float = Field(
        0.05, ge=0, le=1, description="A larger share of failed rows stops the run.", json_schema_extra=RUNTIME
    )
    shard_rows: int = Field(256, ge=1, description="Prompts a shard.")
    batch_size: int | None = Field(
        32, ge=1, description="Pictures at once, halved where memory does not suffice; found by drawing where empty."
    )
    draft_decoder: Part | None = Field(
        None, description="A smaller decoder (AutoencoderTiny) in place of the generator's own, for drafts."
    )
    encoders: int | None = Field(
        None, ge=1, description="Threads that encode pictures; one a core where empty.", json_schema_extra=RUNTIME
    )
    workers: int = Field(
        1, ge=1, description="Processes that draw on this machine, one a GPU.", json_schema_extra=RUNTIME
    )


class PictureClassifier(Tree):
    """What says that a picture is unsafe."""

    id: str = Field(description="Image-classification model (folder, fsspec URL, Hub id), or module:function.")
    revision: str | None = Field(None, description="Commit of the Hub repository.")
    labels: list[str] = Field(["nsfw"], min_length=1, description="The model's labels whose probabilities are added.")
    threshold: float = Field(0.5, gt=0, le=1, description="Pictures at or above this probability are left out.")


class Embedder(Tree):
    """What turns a picture into a vector: published as the column `embedding`."""

    id: str = Field(description="CLIP-like or vision model (folder, fsspec URL, Hub id), or module:function.")
    revision: str | None = Field(None, description="Commit of the Hub repository.")
    max_cosine: float | None = Field(
        None, gt=0, le=1, description="Pictures more alike than this to a better one are near-duplicates."
    )


class Preferences(Tree):
    """Pairs of pictures of one prompt, for trainers of preferences."""

    per_prompt: int = Field(1, ge=1, description="At most this many pairs a prompt, widest margin first.")
    min_margin: float = Field(0.5, ge=0, description="Least difference of the combined score, in standard deviations.")
    disagreeing: bool = Field(False, description="Also pairs of which some reward prefers the other picture.")


STRATA = ("source", "kind", "group", "cluster", "split")


class Curate(Tree):
    """The published dataset. Scores decide first, then the pictures that are left are looked at."""

    weights: dict[str, float] = Field(
        default_factory=dict, description="Each reward's weight in the combined score; all count alike where empty."
    )
    min_score: dict[str, float] = Field(default_factory=dict, description="Smallest raw score, by reward.")
    min_quantile: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(
        default_factory=dict, description="Share of the scored pictures that is dropped from below, by reward."
    )
    min_uplift: dict[str, float] = Field(
        default_factory=dict,
        description="Least gain over the control picture of the same noise, in within-prompt standard deviations.",
    )
    max_disagreement: float | None = Field(
        None, gt=0, description="How far training rewards may stand above held-out ones, in standard deviations."
    )
    pareto: bool = Field(False, description="Drop what another picture of the prompt beats by every reward.")
    top_k: int | None = Field(None, ge=1, description="Pictures kept of each prompt, best first.")
    quotas: dict[str, int | dict[str, int]] = Field(
        default_factory=dict,
        description="At most this many pictures of each source, kind, group, cluster or split, best first.",
    )
    keep_fraction: float = Field(
        0.8, gt=0, le=1, description="Share of pictures kept, best first by the combined score."
    )
    min_contrast: float = Field(
        0.01, ge=0, lt=1, description="Least standard deviation of the pixels, of a range of 1; less is blank."
    )
    unsafe: PictureClassifier | None = Field(None, description="What finds unsafe pictures; nothing where empty.")
    near_duplicates: int | None = Field(
        4, ge=0, le=8, description="Bits of 64 in which the perceptual hashes of near-duplicates differ at most."
    )
    embedder: Embedder | None = Field(None, description="Model whose vectors are published and compared.")
    noise: bool = Field(False, description="Publish each picture's predicted mu and sigma.")
    preferences: Preferences | None = Field(
        Preferences(),  # type: ignore[call-arg]
        description="The preference set beside the dataset; null for none.",
    )
    title: str = Field("", description="Title on the dataset's card; the dataset's name where empty.")
    shard_rows: int = Field(2000, ge=1, description="Pictures a file.")

    @model_validator(mode="after")
    def _sensible(self) -> "Curate":
        for name in self.quotas:
            if name not in STRATA:
                raise ValueError(f"quotas: {name!r} is none of {', '.join(STRATA)}")
        for limit in self.quotas.values():
            if any(n < 0 for n in (limit.values() if isinstance(limit, dict) else [limit])):
                raise ValueError("quotas: a quota is at least 0")
        if self.weights and (min(self.weights.values()) < 0 or not any(self.weights.values())):
            raise ValueError("weights: each is at least 0, and one more than that")
        return self


class Settings(Tree):
    """Everything a run depends on."""

    name: str = Field("demo", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="The dataset's name in the store.")
    root: Place = Field(
        "pahi-data",
        description="The store: a folder that all workers share, or an fsspec URL such as s3://bucket/prefix.",
        json_schema_extra=RUNTIME,
    )
    device: str = Field(
        "auto", description="Where networks run: auto, cpu, cuda, cuda:1, ...", json_schema_extra=RUNTIME
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads of torch; its own choice where empty.", json_schema_extra=RUNTIME
    )
    ingest: Ingest = Field(description="Where prompts come from, and how they are cleaned and split.")
    generator: Generator = Field(description="The frozen one-step generator that draws.")
    rewards: Rewards = Field(description="The reward models that train, and those that only judge.")
    cache: Cache = Field(Cache(), description="What is computed once for training.")  # type: ignore[call-arg]
    train: Train = Field(Train(), description="How the noise is learned.")  # type: ignore[call-arg]
    evaluate: Evaluate = Field(Evaluate(), description="How the arms are compared.")  # type: ignore[call-arg]
    generate: Generate = Field(Generate(), description="How pictures are drawn in bulk.")  # type: ignore[call-arg]
    curate: Curate = Field(Curate(), description="What is published.")  # type: ignore[call-arg]


def presets() -> dict[str, dict[str, Any]]:
    """Every preset's settings, by name."""
    folder = resources.files("pahi") / "presets"
    return {
        file.name.removesuffix(".yaml"): yaml.safe_load(file.read_text())
        for file in sorted(folder.iterdir(), key=lambda f: f.name)
        if file.name.endswith(".yaml")
    }


def load_settings(
    preset: str = "tiny", file: str | None = None, overrides: list[str] | None = None, **values: Any
) -> Settings:
    """Preset, file and `key=value` overrides, in that order. Raises UserError, in one line, on anything unknown."""
    known = presets()
    if preset not in known:
        if Path(preset).suffix in (".yaml", ".yml"):
            raise UserError(f"no preset {preset!r}: presets are names; a file of yours is --config {preset}")
        raise UserError(f"no preset {preset!r}{nearest(preset, list(known)) or ';'} `pahi presets` lists them")
    data = {k: v for k, v in known[preset].items() if k != "about"}
    if file is not None:
        try:
            extra = yaml.safe_load(Path(file).read_text()) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"cannot read settings {file}: {reason(error)}") from None
        if not isinstance(extra, dict):
            raise UserError(f"settings {file}: expected keys and values at the top")
        _merge(data, extra)
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set {override!r}: expected key=value, such as train.steps=500")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            parsed = value
        _set(data, re.sub(r"\[(\d+)\]", r".\1", key.strip()).split("."), parsed, override)
    for key, value in values.items():
        if value is not None:
            data[key] = value
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise UserError(explain(error, Settings)) from None


def _merge(data: dict[str, Any], extra: dict[str, Any]) -> None:
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(data.get(key), dict):
            _merge(data[key], value)
        else:
            data[key] = value


def _set(data: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    place: Any = data
    for i, part in enumerate(path):
        if isinstance(place, list):  # rewards.train.0.weight
            if not part.isdecimal() or int(part) >= len(place):
                raise UserError(f"--set {override!r}: {path[i - 1]!r} has entries 0 to {len(place) - 1}, not {part!r}")
            key: Any = int(part)
        else:
            key = part
        if i == len(path) - 1:
            place[key] = value
            return
        place = place[key] if isinstance(place, list) else place.setdefault(key, {})
        if not isinstance(place, dict | list):
            raise UserError(f"--set {override!r}: {part!r} has no settings of its own")
