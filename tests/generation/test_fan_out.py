"""The same shards drawn in this process, by two others, and by groups elsewhere: the same manifests."""

import re
import threading
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger
from small_world import manifests, plain, prompt_file

from flows import generate as flow
from flows import generate_shards
from pahi.artifacts import Store
from pahi.errors import StageFailed
from pahi.predictors import NoisePredictor
from pahi.settings import Settings, load_settings
from pahi.stages import generate, ingest, run_stage
from pahi.stages.common import Context


class Run:
    state_name = "Completed"


def ready(folder: Path, where: str, *sets: str) -> Settings:
    """Settings of the embedded models with an untrained predictor, and its prompts ingested: twelve, in four shards."""
    predictor = folder / "predictor"
    if not predictor.exists():
        generator = Context(load_settings("tiny")).generator
        NoisePredictor.create("pahi", generator.latent_shape, generator.pooled_width, 8).save_pretrained(predictor)
    overrides = [
        f"ingest.sources=[{{path: {prompt_file(folder, plain(12))}}}]",
        f"generate.predictor={predictor}",
        "generate.shard_rows=3",
        "generate.max_bad_fraction=1",
        "rewards.judges=[]",
        "threads=1",
        *sets,
    ]
    settings = load_settings("tiny", overrides=overrides, root=str(folder / where), name="small")
    run_stage("ingest", settings)
    return settings


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("fan-out")
    run_stage("generate", ready(folder, "alone"))
    return folder, manifests(Store(str(folder / "alone")))


@pytest.mark.slow
def test_two_processes(alone: tuple[Path, dict[str, bytes]]) -> None:
    folder, expected = alone
    result = run_stage("generate", ready(folder, "two", "generate.workers=2"))
    assert not result["skipped"] and manifests(Store(str(folder / "two"))) == expected


def test_flow_runs_that_fail_leave_their_shards_to_the_next_round(
    alone: tuple[Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent believes manifests: one run cannot start, one says it failed and had not, one says it had and did."""
    folder, expected = alone
    settings = ready(folder, "spread")
    asked: list[list[tuple[int, int]]] = []
    told: list[tuple[str, int, int, str]] = []
    lines: list[str] = []
    log = type("Log", (), {"info": staticmethod(lambda text, *values: lines.append(text % values))})
    monkeypatch.setattr(generate_shards, "get_run_logger", lambda: log)
    monkeypatch.setattr(generate_shards, "SECONDS_BETWEEN_LINES", 0.0)
    one_at_a_time = threading.Lock()

    def run_deployment(name: str, parameters: dict[str, Any], **_: Any) -> Run:
        assert name == "pahi/generate-shards"
        group = parameters["shards"]
        asked.append(group)
        if group == [(0, 0)] and asked.count(group) == 1:
            raise ConnectionError("no worker")
        if group == [(0, 1)] and asked.count(group) == 1:
            return Run()  # "Completed", and nothing is there
        with one_at_a_time:  # elsewhere these are processes of their own
            generate_shards.draw_task.fn(Settings.model_validate(parameters["settings"]), group)
        if group == [(0, 2)]:
            raise RuntimeError("crashed at its very end")
        return Run()

    monkeypatch.setattr(flow, "run_deployment", run_deployment)
    monkeypatch.setattr(flow, "Progress", lambda name: lambda *report: told.append(report))
    with disable_run_logger():
        flow.spread(settings, 4)
    # A group counts its own prompts, and says how fast it is.
    assert lines and all(re.match(r"generate  [0-3]/3  ", line) for line in lines), lines
    # A server's page shows how far each round is.
    assert told == [("generate", done, 4, "flow runs ended") for done in (1, 2, 3, 4)] + [
        ("generate", done, 2, "flow runs ended") for done in (1, 2)
    ]
    assert sorted(asked) == [[(0, 0)]] * 2 + [[(0, 1)]] * 2 + [[(0, 2)], [(0, 3)]]
    assert generate.groups(settings, 4) == []
    ctx = Context(settings)
    ctx.generator = None  # the parent draws nothing
    generate.run(ctx, ingest.chain(ctx))
    assert manifests(ctx.store) == expected


def test_shards_that_nobody_draws_are_reported(
    alone: tuple[Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = alone
    rounds: list[int] = []
    monkeypatch.setattr(flow, "run_deployment", lambda *_, **__: rounds.append(1) or Run())
    monkeypatch.setattr(flow, "Progress", lambda name: lambda *report: None)
    with disable_run_logger(), pytest.raises(StageFailed, match="4 shards are still missing after 3 rounds"):
        flow.spread(ready(folder, "nobody"), 2)
    assert len(rounds) == 2 * flow.ROUNDS
