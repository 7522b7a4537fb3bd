"""The evaluation stage on the tiny world: what every arm is measured by, and other evaluators' folders and results."""

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pahi.artifacts import Store
from pahi.artifacts.schemas import read_tensor
from pahi.errors import UserError
from pahi.evaluation.features import features
from pahi.generators.load import pick_device
from pahi.maintenance import outputs
from pahi.rewards import load_reward
from pahi.settings import Settings, load_settings
from pahi.stages import run_stage
from pahi.stages.common import Context
from pahi.tables import arm_rows

SMALL = [
    "cache.max_train_prompts=6",
    "cache.max_validation_prompts=2",
    "cache.seeds=2",
    "train.predictor=pahi",
    "train.hpi_steps=2",
    "train.steps=2",
    "train.lr=0.5",
    "train.batch_size=4",
    "evaluate.prompts=6",
    "evaluate.seeds=2",
    "evaluate.best_of=[2]",
    "evaluate.shard_rows=4",
    "evaluate.bootstrap=100",
    "threads=1",
]


def settings(root: Path, *extra: str) -> Settings:
    lines = (resources.files("pahi.tiny") / "prompts.jsonl").read_text().splitlines()
    prompts = root / "some.jsonl"
    root.mkdir(exist_ok=True)
    prompts.write_text("\n".join(lines[:: len(lines) // 60]) + "\n")
    source = f"ingest.sources=[{{path: {prompts}, kind: kind, group: scene, split: split}}]"
    return load_settings("tiny", overrides=[source, *SMALL, *extra], root=str(root / "store"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, dict[str, Any]]:
    root = tmp_path_factory.mktemp("evaluated")
    given = root / "given"
    given.mkdir()
    for i in range(4):
        Image.fromarray(np.full((50 + i, 64, 3), 60 * i, dtype=np.uint8)).save(given / f"{i}.png")
    s = settings(root, "evaluate.export=[t2i-compbench]", f"evaluate.reference={given}")
    return s, run_stage("evaluate", s, with_upstream=True)


def arm(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(a for a in result["summary"]["arms"] if a["arm"] == name)


def test_every_arm_has_its_diversity_and_its_distance(done) -> None:
    s, result = done
    summary = result["summary"]
    assert summary["feature_model"] == "clip_gamma", "the held-out tower, not the one that trained"
    standard = arm(result, "standard")
    assert standard["diversity"] == standard["feature_diversity"] == 1 and standard["cmmd"] is None
    for a in summary["arms"]:
        assert 0 < a["feature_diversity"] < 2 and a["noise_norm"] > 0 and a["calls"] >= 1
        assert a["cmmd_reference"]["value"] > 1, "pictures of one colour are far from all of them"
        assert a["arm"] == "standard" or a["cmmd"] is not None
    assert result["timings"].keys() == {a["arm"] for a in summary["arms"]}
    output = next(o for o in outputs(Store(s.root), s.name) if o.stage == "evaluate")
    table = output.read("features").to_pandas()
    values = read_tensor(output.read("features"), "features")
    assert np.allclose(np.linalg.norm(values, axis=1), 1, atol=1e-5)
    # Again from the table: the distance between a prompt's two pictures.
    by_arm = {}
    for name in ("standard", "pahi"):
        rows = [np.flatnonzero((table.arm == name) & (table.prompt_id == p)) for p in table.prompt_id.unique()]
        by_arm[name] = np.mean([np.linalg.norm(values[i] - values[j]) for i, j in rows])
    assert arm(result, "pahi")["feature_diversity"] == pytest.approx(by_arm["pahi"] / by_arm["standard"], rel=1e-4)


def test_a_choice_among_other_numbers_of_noises_is_an_arm_of_one_evaluation(tmp_path: Path) -> None:
    own = ["train.predictor=selected", "train.pictures=40", "train.steps=20", "evaluate.candidates=[2,64]"]
    s = settings(tmp_path, *own, "evaluate.best_of=[]")
    result = run_stage("evaluate", s, with_upstream=True)
    names = [a["arm"] for a in result["summary"]["arms"]]
    assert names == ["standard", "selected", "selected_shuffled", "selected_of_2", "selected_of_64"]
    size = int(np.prod(Context(s).generator.latent_shape))
    for name, n in (("selected", 16), ("selected_shuffled", 16), ("selected_of_2", 2), ("selected_of_64", 64)):
        assert arm(result, name)["kl"] * size == pytest.approx(math.log(n) - (n - 1) / n, rel=1e-4)
        assert arm(result, name)["calls"] == 1
    again = s.model_copy(update={"evaluate": s.evaluate.model_copy(update={"candidates": [4]})})
    more = run_stage("evaluate", again, with_upstream=True)
    assert not more["skipped"] and arm(more, "selected") == arm(result, "selected"), "nothing is trained again"
    assert len([o for o in outputs(Store(s.root), s.name) if o.stage == "train"]) == 1


def test_features_are_those_of_the_pictures_that_were_exported(done) -> None:
    s, _ = done
    ctx = Context(s)
    encoder: Any = load_reward(s.rewards.held_out[0], pick_device("cpu"))
    output = next(o for o in outputs(ctx.store, s.name) if o.stage == "evaluate")
    table = output.read("features")
    rows = table.drop_columns("features").to_pylist()
    values = read_tensor(table, "features")
    texts = {r["prompt_id"]: r["prompt"] for r in output.read("gallery").to_pylist()}
    checked = 0
    for file in sorted((Path(output.url) / "export/t2i-compbench/pahi/samples").iterdir()):
        text, _, number = file.stem.rpartition("_")
        pixels = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1)[None].float() / 255
        mine = next(
            i for i, r in enumerate(rows)
            if r["arm"] == "pahi" and texts[r["prompt_id"]] == text and r["seed"] == int(number) % 2
        )  # fmt: skip
        assert np.allclose(features(encoder, pixels)[0], values[mine], atol=0.03), "less the rounding to 8 bits"
        prepared = encoder.prepare([text])
        cosine = float(encoder.score(pixels, prepared, [text]) / 100)
        assert cosine == pytest.approx(
            float(features(encoder, pixels)[0] @ prepared["text_features"][0].numpy()), abs=1e-5
        )
        checked += 1
    assert checked == 12


def test_other_evaluators_results_are_read_back(done) -> None:
    s, _ = done
    again = run_stage("evaluate", s)
    assert again["skipped"] and arm(again, "pahi")["benchmarks"] == {}
    folder = Path(again["url"]) / "export/t2i-compbench/pahi/annotation_blip"
    folder.mkdir()
    answers = [{"question_id": i, "answer": f"{0.5 + 0.01 * i:.4f}"} for i in range(12)]
    (folder / "vqa_result.json").write_text(json.dumps(answers))
    last = run_stage("evaluate", s)
    assert arm(last, "pahi")["benchmarks"]["t2i-compbench blip"]["value"] == pytest.approx(0.555)
    assert arm(last, "standard")["benchmarks"] == {}
    rows = {row["arm"]: row for row in arm_rows(last)}
    assert rows["pahi"]["t2i-compbench blip"] == "0.555" and rows["standard"]["t2i-compbench blip"] == "-"
    assert len({tuple(row) for row in rows.values()}) == 1, "a table has the same columns in every row"
    beside = Path(again["url"]) / "export/t2i-compbench/standard/annotation_blip"
    beside.mkdir()
    (beside / "vqa_result.json").write_text(json.dumps([{**a, "answer": "0.5"} for a in answers]))
    rows = {row["arm"]: row for row in arm_rows(run_stage("evaluate", s))}
    assert rows["pahi"]["t2i-compbench blip"].startswith("0.555 (+0.06 [") and rows["standard"]["ms/image"] != "-"


def test_another_reference_is_another_evaluation_and_its_path_is_not(done, tmp_path: Path) -> None:
    s, result = done
    moved = tmp_path / "moved"
    Path(s.evaluate.reference).rename(moved)
    try:
        same = s.model_copy(update={"evaluate": s.evaluate.model_copy(update={"reference": str(moved)})})
        assert run_stage("evaluate", same)["fingerprint"] == result["fingerprint"]
    finally:
        moved.rename(s.evaluate.reference)
    empty = tmp_path / "empty"
    empty.mkdir()
    other = s.model_copy(update={"evaluate": s.evaluate.model_copy(update={"reference": str(empty)})})
    with pytest.raises(UserError, match="holds 0 pictures"):
        run_stage("evaluate", other)
    (empty / "a.png").write_bytes(b"no picture")
    (empty / "b.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.png is no picture"):
        run_stage("evaluate", other)
