"""The cache stage: checkpoints kept in the store, text sides, and the baseline that fixes every reward's unit."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import Repository, hub, read_folder
from transformers import AutoTokenizer, BlipTextConfig, BlipVisionConfig

from pahi import models
from pahi.errors import UserError
from pahi.rewards.image_reward import ImageRewardModel
from pahi.settings import Settings, load_settings
from pahi.stages import cache as cache_stage
from pahi.stages import fetch_models, run_stage
from pahi.stages.checkpoints import Checkpoints
from pahi.stages.common import Context
from pahi.stages.tensors import read_prepared

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = Path(str(resources.files("pahi.tiny"))) / "weights"
FIRST = next(model for model in load_settings().rewards.train if model.kind == "pickscore")
REWARD = models.resolve(FIRST.id)
TRAINS, HELD_OUT, JUDGES = [FIRST.name], ["second"], ["oracle"]
SMALL = [
    "cache.max_train_prompts=4",
    "cache.max_validation_prompts=2",
    "cache.seeds=3",
    "cache.shard_rows=4",
    "threads=1",
]


@cache
def second() -> Path:
    """A small ImageReward with random weights: the kind whose text side is ids."""
    folder, tokenizer = Path(tempfile.mkdtemp()), AutoTokenizer.from_pretrained(REWARD)
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = BlipTextConfig(**tower, encoder_hidden_size=16, vocab_size=len(tokenizer), is_decoder=True, use_cache=False)
    vision = BlipVisionConfig(**tower, image_size=64, patch_size=16)
    ImageRewardModel(text, vision, tokens=24).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(root: str | Path, *extra: str) -> Settings:
    rewards = [
        f"rewards.train=[{{name: {FIRST.name}, kind: pickscore, id: '{FIRST.id}'}}]",
        f"rewards.held_out=[{{name: second, kind: image_reward, id: {second()}}}]",
    ]
    return load_settings("tiny", overrides=[*SMALL, *rewards, *extra], root=str(root))


FROM_HUB = ("generator.id=some/generator", f"rewards.train=[{{name: pick, kind: {FIRST.kind}, id: some/reward}}]")


@pytest.fixture
def fetch_from_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """`pahi cache --fetch-only` into a store, while there is a Hub; its own process and cache, as another machine's."""
    repositories = {
        "some/generator": Repository({COMMIT: read_folder(WEIGHTS / "generator")}, {"main": COMMIT}),
        "some/reward": Repository({COMMIT: read_folder(REWARD)}, {"main": COMMIT}),
    }
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "worker"))
    with hub(repositories) as url:
        own = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hub"), "XDG_CACHE_HOME": str(tmp_path / "fetcher")}
        own |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}

        def fetch(root: str) -> str:
            sets = [part for override in (*SMALL, *FROM_HUB, "rewards.held_out=[]") for part in ("--set", override)]
            command = [sys.executable, "-m", "pahi.cli", "cache", "--fetch-only", "--root", root, *sets]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | own, timeout=400)
            assert done.returncode == 0, done.stderr
            return done.stdout

        yield fetch


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_workers_start_without_the_hub(fetch_from_hub: Callable[[str], str], open_store, tmp_path, kind: str) -> None:
    store = open_store(kind)
    printed = fetch_from_hub(store.root)
    record = Checkpoints(store).record("some/generator", None)
    assert record is not None and record["commit"] == COMMIT

    s = settings(store.root, *FROM_HUB)
    ctx = Context(s)
    assert set(ctx.model_hashes) == {"generator", *(f"reward/{n}" for n in ("pick", *HELD_OUT, *JUDGES))}
    assert ctx.model_hashes["generator"] == models.model_hash(WEIGHTS / "generator")
    assert ctx.model_hashes["reward/pick"][:8] in printed
    assert (ctx.generator.id, ctx.generator.revision) == ("some/generator", COMMIT)
    assert ctx.reward(s.rewards.train[0]).hash == ctx.model_hashes["reward/pick"]
    kept = store.list("_models")
    assert len(fetch_models(s)) == len(ctx.model_hashes) and store.list("_models") == kept, "nothing is left to do"
    with pytest.raises(UserError, match="some/generator"):
        _ = Context(settings(str(tmp_path / "another-store"), *FROM_HUB)).model_hashes

    if kind == "s3":
        shutil.rmtree(tmp_path / "worker")
        key = next(key for key in kept if "some--reward" in key and key.endswith("model.safetensors"))
        store.replace(key, store.read(key)[:-1] + b"?")
        with pytest.raises(UserError, match="is damaged") as error:
            _ = Context(s).model_hashes
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Context]:
    s = settings(tmp_path_factory.mktemp("store"))
    run_stage("cache", s, with_upstream=True)
    return s, Context(s)


def outputs(ctx: Context):
    output = cache_stage.locate(ctx, cache_stage.ingest.chain(ctx))
    assert output is not None
    return output, output.require()


def test_the_unit_is_the_pooled_deviation_within_prompts(cached) -> None:
    _, ctx = cached
    output, manifest = outputs(ctx)
    rows = output.read("baseline").to_pylist()
    ids = output.read("conditioning").column("prompt_id").to_pylist()
    assert len(rows) == 6 * 3 * len(ctx.reward_models)
    for name in (*TRAINS, *HELD_OUT):
        of = {i: [r["score"] for r in rows if r["reward"] == name and r["prompt_id"] == i] for i in ids[:4]}
        variance = np.mean([np.var(scores, ddof=1) for scores in of.values()])
        assert manifest.summary["units"][name] == pytest.approx(variance**0.5, rel=1e-5)


def test_cached_text_sides_score_as_fresh_ones(cached) -> None:
    s, ctx = cached
    output, _ = outputs(ctx)
    table = output.read("reward_text")
    texts = {
        r["prompt_id"]: r["text"] for r in cache_stage.ingest.chain(ctx).prompts(["prompt_id", "text"]).to_pylist()
    }
    prompts = [texts[i] for i in table.column("prompt_id").to_pylist()]
    images = torch.rand(len(prompts), 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for model in (*s.rewards.train, *s.rewards.held_out):
        reward = ctx.reward(model)
        kept = reward.score(images, read_prepared(table, model.name), prompts)
        fresh = reward.score(images, reward.prepare(prompts), prompts)
        assert (kept - fresh).abs().max() < 1e-5
        assert not any(table.column(f"{model.name}__truncated").to_pylist())


def test_every_checkpoint_is_pinned_file_by_file(cached) -> None:
    _, ctx = cached
    output, _ = outputs(ctx)
    pinned = json.loads(output.read_file("models.json"))
    assert set(pinned) == {"generator", *(f"reward/{name}" for name in (*TRAINS, *HELD_OUT, *JUDGES))}
    for name in (*TRAINS, *HELD_OUT):
        assert len(pinned[f"reward/{name}"]["files"]["model.safetensors"]["sha256"]) == 64


def test_a_changed_checkpoint_never_reuses_a_cache(cached, tmp_path: Path) -> None:
    s, ctx = cached
    before = outputs(ctx)[0].fingerprint
    shutil.copytree(REWARD, tmp_path / "moved")
    first = FIRST.model_copy(update={"id": str(tmp_path / "moved")})
    rewards = s.rewards.model_copy(update={"train": [first, *s.rewards.train[1:]]})
    same = s.model_copy(update={"rewards": rewards})
    assert outputs(Context(same))[0].fingerprint == before, "the same weights in another place are the same"
    weights = tmp_path / "moved" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    models.files.cache_clear()
    ctx = Context(same)
    assert cache_stage.locate(ctx, cache_stage.ingest.chain(ctx)) is None
    assert run_stage("cache", same)["skipped"] is False


def test_the_same_weights_cannot_be_held_out_under_another_kind(tmp_path: Path) -> None:
    shutil.copytree(REWARD, tmp_path / "copy")
    s = settings(tmp_path, f"rewards.held_out=[{{name: other, kind: clip_score, id: {tmp_path / 'copy'}}}]")
    with pytest.raises(UserError, match=f"has the weights of '{FIRST.name}', which trains"):
        _ = Context(s).model_hashes
