"""The whole path on the embedded default, small: what it writes, what a rerun does, and what a kill leaves behind."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import datasets
import duckdb
import polars
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt
from PIL import Image

from pahi.artifacts import Store
from pahi.cli import call
from pahi.errors import UserError
from pahi.maintenance import list_store, outputs, verify
from pahi.settings import Settings, load_settings
from pahi.stages import STAGES, run_all, run_stage

SMALL = [
    "cache.max_train_prompts=10",
    "cache.max_validation_prompts=4",
    "cache.seeds=2",
    "cache.shard_rows=5",
    "train.predictor=pahi",
    "train.hpi_steps=3",
    "train.steps=5",
    "train.batch_size=4",
    "train.save_every=1",
    "train.validate_every=2",
    "evaluate.prompts=6",
    "evaluate.seeds=2",
    "evaluate.best_of=[2]",
    "evaluate.shard_rows=2",
    "evaluate.bootstrap=100",
    "generate.shard_rows=8",
    "generate.control_fraction=0.5",
    "threads=1",
]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty of the embedded prompts, of every split."""
    lines = (resources.files("pahi.tiny") / "prompts.jsonl").read_text().splitlines()
    path = tmp_path_factory.mktemp("prompts") / "some.jsonl"
    path.write_text("\n".join(lines[:: len(lines) // 40]) + "\n")
    return path


def settings(root: Path, prompts: Path, *extra: str) -> Settings:
    source = f"ingest.sources=[{{path: {prompts}, kind: kind, group: scene, split: split}}]"
    return load_settings("tiny", overrides=[source, *SMALL, *extra], root=str(root))


def manifests(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text() for p in sorted(root.rglob("manifest.json"))}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, prompts: Path) -> tuple[Settings, list[dict]]:
    s = settings(tmp_path_factory.mktemp("store"), prompts)
    return s, run_all(s)


def test_every_stage_finishes_and_every_row_is_accounted_for(done) -> None:
    _, results = done
    assert [r["stage"] for r in results] == [*STAGES, "report"]
    by_stage = {r["stage"]: r.get("summary", {}) for r in results}
    ingest, generate, curate = by_stage["ingest"], by_stage["generate"], by_stage["curate"]
    assert ingest["rows_in"] == ingest["prompts"] + sum(ingest["rejected"].values())
    assert generate["prompts"] == ingest["prompts"]
    assert generate["images"] > generate["prompts"], "the control group is drawn beside the predictor's pictures"
    assert curate["images_in"] == generate["images"] == curate["kept"] + curate["excluded"]
    assert Path(results[-1]["url"]).stat().st_size > 10_000


def test_a_second_run_finds_everything_finished(done) -> None:
    s, _ = done
    before = {p: p.stat().st_mtime_ns for p in Path(s.root).rglob("*") if p.is_file()}
    started = time.monotonic()
    again = run_all(s)
    assert all(r["skipped"] for r in again[:-1])
    assert time.monotonic() - started < 10
    assert {p: p.stat().st_mtime_ns for p in Path(s.root).rglob("*") if p.is_file()} == before


def test_duckdb_reads_every_table(done) -> None:
    s, _ = done
    tables = {str(p.parent) for p in Path(s.root).rglob("part-*.parquet")}
    assert len(tables) >= 12
    for table in tables:
        paths = sorted(Path(table).glob("*.parquet"))
        expected = sum(pq.read_metadata(path).num_rows for path in paths)
        rows = duckdb.sql(f"select * from read_parquet('{table}/*.parquet')").fetchall()
        assert len(rows) == expected


def test_datasets_opens_the_curated_dataset_as_pictures(done, tmp_path: Path) -> None:
    _, results = done
    folder = results[5]["url"]
    for split, rows in results[5]["summary"]["splits"].items():
        if rows:
            got = datasets.load_dataset(
                "parquet", data_files=f"{folder}/{split}/*.parquet", split="train", cache_dir=str(tmp_path)
            )
            assert len(got) == rows
            assert isinstance(got[0]["image"], Image.Image) and got[0]["image"].size == (64, 64)
    # By its card, as the Hub does it.
    whole = datasets.load_dataset(folder, cache_dir=str(tmp_path))
    assert {k: v.num_rows for k, v in whole.items()} == {k: v for k, v in results[5]["summary"]["splits"].items() if v}


def test_polars_opens_the_curated_dataset_and_its_card_renders(done) -> None:
    _, results = done
    folder = Path(results[5]["url"])
    frame = polars.read_parquet(folder / "train" / "*.parquet")
    assert frame.height == results[5]["summary"]["splits"]["train"] > 0
    assert Image.open(io.BytesIO(frame["image"][0]["bytes"])).size == (64, 64)
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    html = MarkdownIt("commonmark").enable("table").render(card.text)
    shown = re.sub(r"(?s)<pre>.*?</pre>|<[^>]+>", "", html)
    assert html.count("<table>") >= 5 and not re.search(r"^\||^#|\]\(|\*\*", shown, re.MULTILINE)
    for picture in re.findall(r'<img src="([^"]+)"', html):
        assert Image.open(folder / picture).width > 100


def test_a_dry_run_of_curation_prints_the_funnel_and_writes_nothing(done, prompts: Path, capsys) -> None:
    s, results = done
    before = sorted(Path(s.root).rglob("*"))
    capsys.readouterr()
    source = f"ingest.sources=[{{path: {prompts}, kind: kind, group: scene, split: split}}]"
    sets = [word for item in [source, *SMALL, "curate.top_k=1"] for word in ("--set", item)]
    assert call(["curate", "--dry-run", "--preset", "tiny", "--root", s.root, *sets]) == 0
    out = capsys.readouterr().out
    steps = ["generated", "failed", "control", "duplicate", "unscored", "top_k", "keep_fraction", "broken", "blank"]
    places = [re.search(rf"\b{step}\b", out).start() for step in steps]
    assert places == sorted(places) and f"{results[5]['summary']['images_in']:,}" in out
    assert "nothing was written" in out and sorted(Path(s.root).rglob("*")) == before


def test_pictures_are_drawn_again_to_the_bit(done) -> None:
    s, _ = done
    checks = verify(s, rows=4)
    assert all(check["ok"] for check in checks), checks
    assert checks[-1]["detail"].startswith("4 of 4"), checks[-1]


def test_growth_draws_only_what_is_new_with_the_same_predictor(done, prompts: Path, tmp_path: Path) -> None:
    s, first = done
    more = tmp_path / "more.jsonl"
    new = [json.dumps({"text": f"a {c} cube number {i}", "kind": "new"}) for i, c in enumerate(["red", "blue"] * 25)]
    more.write_text(prompts.read_text() + "\n".join(new) + "\n")
    grown = settings(Path(s.root), more)
    second = run_all(grown)
    by_stage = {r["stage"]: r for r in second}
    assert by_stage["ingest"]["summary"]["prompts"] == 50
    for stage in ("cache", "train", "evaluate"):
        assert by_stage[stage]["skipped"], stage
    assert by_stage["train"]["fingerprint"] == first[2]["fingerprint"]
    drawn = [o for o in outputs(Store(s.root), s.name) if o.stage == "generate"]
    assert sorted(o.require().summary["prompts"] for o in drawn) == sorted([50, first[0]["summary"]["prompts"]])
    assert len({o.require().inputs["predictor"] for o in drawn}) == 1
    assert by_stage["curate"]["summary"]["images_in"] == sum(o.require().summary["images"] for o in drawn)
    # Training again is a decision, and leaves the old predictor where it is.
    again = run_stage("train", grown, with_upstream=True)
    assert not again["skipped"] and again["fingerprint"] != first[2]["fingerprint"]
    assert {r["fingerprint"] for r in list_store(Store(s.root)) if r["stage"] == "train"} == {
        first[2]["fingerprint"],
        again["fingerprint"],
    }


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_stage_alone_names_what_it_lacks(stage: str, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which is not there; run `pahi"):
        run_stage(stage, settings(tmp_path, prompts))


def test_a_flipped_bit_is_found_and_exactly_that_shard_is_written_again(prompts: Path, tmp_path: Path) -> None:
    s = settings(tmp_path, prompts)
    run_all(s)
    intact = manifests(tmp_path)
    victim = sorted(tmp_path.glob("tiny/generate/*/images/part-00001.parquet"))[0]
    body = bytearray(victim.read_bytes())
    body[len(body) // 2] ^= 1
    victim.write_bytes(bytes(body))
    neighbours = {p: p.stat().st_mtime_ns for p in victim.parent.glob("*.parquet") if p != victim}
    failed = [check for check in verify(s, rows=0) if not check["ok"]]
    assert len(failed) == 1 and "images/part-00001.parquet: sha256 differs" in failed[0]["detail"]
    verify(s, rows=0, repair=True)
    run_all(s)
    assert manifests(tmp_path) == intact
    assert all(check["ok"] for check in verify(s, rows=0))
    assert {p: p.stat().st_mtime_ns for p in neighbours} == neighbours


def test_killed_in_every_stage_the_next_run_completes_with_the_same_manifests(prompts: Path, tmp_path: Path) -> None:
    root, calm = tmp_path / "killed", tmp_path / "calm"
    run_all(settings(calm, prompts))
    source = f"ingest.sources=[{{path: {prompts}, kind: kind, group: scene, split: split}}]"
    sets = [word for item in [source, *SMALL] for word in ("--set", item)]
    command = [sys.executable, "-m", "pahi.cli", "run", "--direct", "--root", str(root), *sets]
    killed = []
    for stage in STAGES:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not any(
                p.is_file() for p in (root / "tiny" / stage).rglob("*") if "_chain" not in p.parts
            ):
                time.sleep(0.002)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                killed.append(stage)
    assert len(killed) >= 5, killed
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
    assert manifests(root) == manifests(calm)


@pytest.mark.parametrize("kind", ["scale", "hpi", "refined"])
def test_the_whole_path_with_another_predictor(tmp_path: Path, prompts: Path, kind: str) -> None:
    s = settings(tmp_path, prompts, f"train.predictor={kind}", "train.hidden=8")
    results = {result["stage"]: result for result in run_all(s)}
    arms = [arm["arm"] for arm in results["evaluate"]["summary"]["arms"]]
    assert arms == ["standard", kind, *([f"{kind}_shuffled"] if kind == "refined" else []), "best_of_2"]
    assert all(check["ok"] for check in verify(s, rows=4)), "rows drawn again are the same"
    assert Path(results["report"]["url"]).stat().st_size > 10_000
