"""TensorBoard's own reader finds what the metrics table holds, after a kill too."""

import sys
from pathlib import Path
from typing import Any

import pytest
from toy import SETTINGS, learn

from pahi.errors import UserError
from pahi.training.tensorboard import Board

SHORT = SETTINGS.model_copy(update={"steps": 12, "validate_every": 4, "save_every": 3})


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def expected(metrics: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for row in metrics:
        step = row["step"] + (SHORT.hpi_steps if row["phase"] == "pahi" else 0)
        found.setdefault(row["name"], []).append((step, pytest.approx(row["value"], rel=1e-5, abs=1e-6)))
    return found


def test_a_killed_run_and_its_end_show_as_one_curve(tmp_path: Path) -> None:
    kept: list[bytes] = []
    board = Board(str(tmp_path))

    def save(packed: bytes) -> None:
        board.flush()
        kept.append(packed)

    def interrupt(done: int, total: int, note: str) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(SHORT, save=save, load=lambda: None, progress=interrupt, watch=board)
    board.flush()
    again = Board(str(tmp_path))
    metrics = learn(SHORT, kept=kept, watch=again).metrics
    again.close()
    assert read(tmp_path) == expected(metrics)


def test_without_the_package_it_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [n for n in sys.modules if n.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"needs the package tensorboard: pip install 'pahi\[tensorboard\]'"):
        Board(str(tmp_path))
