"""The train stage on the embedded world: on one device or two, its card, and inputs that teach nothing."""

import io
import shutil
import uuid
from importlib import resources
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import ModelCard

from pahi import NoisePredictor
from pahi.errors import UserError
from pahi.settings import Settings, load_settings
from pahi.stages import cache, ingest, run_stage
from pahi.stages.common import Context
from pahi.training import trainer

SMALL = [
    "cache.max_train_prompts=6",
    "cache.max_validation_prompts=3",
    "cache.seeds=2",
    "train.predictor=pahi",
    "train.hpi_steps=2",
    "train.steps=2",
    "train.batch_size=4",
    "train.validate_every=1",
    "train.hidden=8",
    "threads=1",
    "rewards.judges=[]",
]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = (resources.files("pahi.tiny") / "prompts.jsonl").read_text().splitlines()
    path = tmp_path_factory.mktemp("prompts") / "some.jsonl"
    path.write_text("\n".join(lines[:: len(lines) // 24]) + "\n")
    return path


def settings(root: Path, prompts: Path, *extra: str) -> Settings:
    source = f"ingest.sources=[{{path: {prompts}, kind: kind, group: scene, split: split}}]"
    return load_settings("tiny", overrides=[source, *SMALL, f"root={root}", *extra])


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory, prompts: Path) -> Path:
    """A store with everything that training reads."""
    root = tmp_path_factory.mktemp("cached")
    run_stage("cache", settings(root, prompts), with_upstream=True)
    return root


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, cached: Path, prompts: Path) -> dict:
    root = tmp_path_factory.mktemp("alone") / "store"
    shutil.copytree(cached, root)
    return run_stage("train", settings(root, prompts))


def curve(result: dict, name: str) -> list[float]:
    table = pq.read_table(Path(result["url"]) / "metrics" / "part-00000.parquet").to_pylist()
    return [row["value"] for row in table if row["name"] == name]


def test_two_devices_train_as_one(alone: dict, cached: Path, prompts: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(cached, root)
    heard: list[tuple] = []
    two = run_stage("train", settings(root, prompts, "train.devices=2"), progress=lambda *step: heard.append(step))
    assert not two["skipped"] and two["fingerprint"] == alone["fingerprint"] and two["summary"] == alone["summary"]
    for name in ("loss", "kl", "validation/pick_alpha", "validation/clip_gamma"):
        assert curve(two, name) == pytest.approx(curve(alone, name), rel=1e-3, abs=1e-3), name
    assert [(done, total) for _, done, total, _ in heard] == [(n, 4) for n in (1, 2, 3, 4)]
    assert not any(p.is_file() for p in (Path(two["url"]) / "_state").rglob("*"))
    assert run_stage("train", settings(root, prompts, "train.devices=2"))["skipped"]


def test_gradients_reach_all_of_the_predictor_and_nothing_that_is_frozen(cached: Path, prompts: Path) -> None:
    ctx = Context(settings(cached, prompts))
    found = cache.locate(ctx, ingest.chain(ctx))
    assert found is not None
    data, validation = cache.prompt_sets(ctx, found, found.require())
    reward = ctx.reward(ctx.settings.rewards.train[0])
    pipe = ctx.generator.pipe  # type: ignore[attr-defined]
    frozen = [*pipe.unet.parameters(), *pipe.vae.parameters(), *pipe.text_encoder.parameters()]
    frozen += reward.towers.parameters()  # type: ignore[attr-defined]
    before = [p.clone() for p in frozen]
    kept: list[bytes] = []
    trainer.train(
        ctx.generator,
        [(reward, 1.0, 1.0)],
        [],
        data,
        validation,
        ctx.settings.train.model_copy(update={"save_every": 1}),
        load=lambda: None,
        save=kept.append,
        progress=lambda *_: None,
    )
    assert len(frozen) > 100 and all(p.grad is None and not p.requires_grad for p in frozen)
    assert all(torch.equal(p, q) for p, q in zip(frozen, before, strict=True))
    moments = torch.load(io.BytesIO(kept[-1]), weights_only=True)["optimizer"]["state"]
    assert len(moments) == 8 and all(m["exp_avg"].any() and m["exp_avg"].isfinite().all() for m in moments.values())


def test_the_predictor_has_its_card(alone: dict) -> None:
    folder = Path(alone["url"]) / "predictor"
    got = ModelCard.load(folder / "README.md")
    assert got.data.license_name == "Apache-2.0" and got.data.tags == ["pahi", "diffusers"]
    for name in ("pick_alpha", "image_beta", "clip_gamma"):
        value = curve(alone, f"validation/{name}")[alone["summary"]["best_step"] - 1]
        assert f"| {name} |" in got.text and f"| {value:+.3f} |" in got.text
    assert "batch_size: 4" in got.text
    assert NoisePredictor.from_pretrained(str(folder)).card == (folder / "README.md").read_text()


def test_devices_need_a_store_that_all_of_them_read(cached: Path, prompts: Path) -> None:
    root = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(f"{cached}/", root.removeprefix("memory:/"), recursive=True)
    with pytest.raises(UserError, match=r"^train\.devices is 2, and no other process can read the store 'memory:"):
        run_stage("train", settings(Path("unused"), prompts, "train.devices=2", f"root={root}"))


BROKEN = """
import math

def constant(images, prompts):
    return [1.0] * len(prompts)

def broken(images, prompts):
    return [math.nan] * len(prompts)
"""


@pytest.mark.parametrize(("which", "message"), [("constant", "same for every picture"), ("broken", "no finite score")])
def test_a_reward_that_teaches_nothing_is_one_line(
    which: str, message: str, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_rewards.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    reward = f"rewards={{train: [{{name: mine, kind: callable, id: 'broken_rewards:{which}'}}]}}"
    s = settings(tmp_path / "store", prompts, reward, "train.estimator=score")
    with pytest.raises(UserError, match=f"reward 'mine' .*{message}"):
        run_stage("train", s, with_upstream=True)


def test_a_judge_without_gradients_teaches_pahi(prompts: Path, tmp_path: Path) -> None:
    judge = "rewards={train: [{name: oracle, kind: callable, id: 'pahi.tiny.oracle:judge_batch'}]}"
    s = settings(tmp_path / "store", prompts, judge, "train.estimator=value", "train.pictures=8", "cache.seeds=8")
    result = run_stage("train", s, with_upstream=True)
    metrics = pq.read_table(f"{result['url']}/metrics").to_pylist()
    assert {r["name"] for r in metrics} >= {"foreseen", "reward/oracle", "validation/oracle"}
    assert {r["phase"] for r in metrics} == {"hpi", "pahi"}
    moved = NoisePredictor.from_pretrained(Path(result["url"]) / "predictor").mu
    assert 0 < moved.abs().max() < 1


def test_without_validation_prompts_or_with_one_prompt_it_ends_well(prompts: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.txt"
    one.write_text("a red circle\n")
    source = f"ingest.sources=[{{path: {one}}}]"
    none_else = ["ingest.validation_fraction=0", "ingest.test_fraction=0"]
    s = settings(tmp_path / "store", prompts, source, *none_else)
    result = run_stage("train", s, with_upstream=True)
    assert result["summary"]["train_prompts"] == 1 and result["summary"]["best_step"] == 4
    card = (Path(result["url"]) / "predictor" / "README.md").read_text()
    assert "no validation prompts" in card and "| pick_alpha | trains | - |" in card
