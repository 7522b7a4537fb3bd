"""One step is the same step however its prompts are divided: into parts, over processes, and across a kill."""

import multiprocessing
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import SETTINGS, Opposite, alone_or_together, learn

from pahi.errors import UserError
from pahi.training.parallel import Group
from pahi.training.trainer import Trained

FORK = multiprocessing.get_context("fork")  # torch is imported already
SHORT = SETTINGS.model_copy(update={"batch_size": 15, "hpi_steps": 4, "steps": 12, "validate_every": 3})


def curve(metrics: list[dict[str, Any]], name: str = "loss") -> torch.Tensor:
    return torch.tensor([row["value"] for row in metrics if row["name"] == name])


def processes(folder: Path, settings: Any, size: int, kill_at: int = 0) -> list[int | None]:
    """Exit codes of a training in so many processes; only the first one is ever killed."""
    running = [
        FORK.Process(target=alone_or_together, args=(folder, settings, rank, size, kill_at if rank == 0 else -kill_at))
        for rank in range(size)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(300)
        assert process.exitcode is not None, "a process waits for one that is gone"
    return [process.exitcode for process in running]


def ends(folder: Path, size: int) -> list[Any]:
    return [torch.load(folder / f"end-{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"estimator": "score"},
        {"estimator": "value", "pictures": 50},
        {"predictor": "refined", "hidden": 4},
        {"predictor": "selected", "pictures": 50},
    ],
    ids=["pathwise", "score", "value", "refined", "selected"],
)
@pytest.mark.parametrize("parts", [4, 40])  # neither divides 15
def test_parts_of_a_step_are_the_step(change: dict[str, Any], parts: int) -> None:
    settings = SHORT.model_copy(update=change)
    whole, divided = learn(settings), learn(settings.model_copy(update={"accumulate": parts}))
    assert [(r["phase"], r["step"], r["name"]) for r in whole.metrics] == [
        (r["phase"], r["step"], r["name"]) for r in divided.metrics
    ]
    for name in ("loss", "kl", "grad_norm", "noise_norm", "reward/direction", "validation/direction"):
        torch.testing.assert_close(curve(divided.metrics, name), curve(whole.metrics, name), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kind", "estimator"), [("pahi", "pathwise"), ("pahi", "value"), ("selected", "pathwise")])
def test_two_processes_are_one(kind: str, estimator: str, tmp_path: Path) -> None:
    settings = SHORT.model_copy(update={"predictor": kind, "estimator": estimator, "pictures": 50})
    whole = learn(settings)
    assert processes(tmp_path, settings, 2) == [0, 0]
    (weights, metrics, _), (other, others, _) = ends(tmp_path, 2)
    assert all(torch.equal(weights[name], other[name]) for name in weights), "both hold the same weights"
    assert metrics == others
    for name in ("loss", "kl", "grad_norm", "noise_norm", "reward/direction", "validation/direction"):
        torch.testing.assert_close(curve(metrics, name), curve(whole.metrics, name), rtol=1e-3, atol=1e-4)


def test_shares_are_everything_once() -> None:
    rows, group = torch.arange(17), Group()
    for size in (1, 2, 5, 17):
        group.size = size
        shares = []
        for group.rank in range(size):
            shares.append(group.share(rows))
        assert torch.equal(torch.cat(shares), rows)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_processes_than_prompts_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group()
    group.size = 3
    monkeypatch.setattr("pahi.training.trainer.Group", lambda: group)
    with pytest.raises(UserError, match=r"3 processes cannot share 2 prompts.*train.batch_size"):
        learn(SETTINGS.model_copy(update={"batch_size": 2}))
    with pytest.raises(UserError, match=r"3 processes cannot share 2 prompts a step"):
        learn(SETTINGS.model_copy(update={"batch_size": 5, "estimator": "score"}))


# -------------------------------------------------------------------------------------------------------------- kills

# The held-out reward falls from the first step on: training stops at the fifth validation without a rise.
HACKED = SHORT.model_copy(update={"steps": 40, "patience": 5, "save_every": 5})


def judged() -> dict[str, Any]:
    return {"judges": [(Opposite("opposite"), 1.0)]}


def undisturbed(settings: Any) -> Trained:
    return learn(settings, **judged())


@pytest.mark.parametrize("kill_at", [2, 4, 5, 9, 12, 15])
def test_sigkill_at_any_step_changes_no_bit(kill_at: int, tmp_path: Path) -> None:
    whole = undisturbed(HACKED)
    last = max(row["step"] for row in whole.metrics if row["phase"] == "pahi")
    assert whole.stopped and HACKED.hpi_steps + last >= kill_at, "each kill is one in the middle"
    first = FORK.Process(target=alone_or_together, args=(tmp_path, HACKED, 0, 1, kill_at), kwargs=judged())
    first.start()
    first.join(300)
    assert first.exitcode == -signal.SIGKILL
    second = FORK.Process(target=alone_or_together, args=(tmp_path, HACKED), kwargs=judged())
    second.start()
    second.join(300)
    assert second.exitcode == 0
    weights, metrics, stopped = ends(tmp_path, 1)[0]
    assert stopped and metrics == whole.metrics
    assert all(torch.equal(weights[name], value) for name, value in whole.predictor.state_dict().items())


def test_sigkill_of_one_of_two_processes_changes_no_bit(tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    calm.mkdir()
    killed.mkdir()
    assert processes(calm, SHORT, 2) == [0, 0]
    codes = processes(killed, SHORT, 2, kill_at=11)
    assert codes[0] == -signal.SIGKILL and codes[1] != 0, "the other one ends too"
    assert (killed / "state.pt").is_file() and not (killed / "end-1.pt").exists()
    assert processes(killed, SHORT, 2) == [0, 0]
    for (weights, metrics, _), (theirs, others, _) in zip(ends(killed, 2), ends(calm, 2), strict=True):
        assert metrics == others and all(torch.equal(weights[name], theirs[name]) for name in weights)


def test_a_run_may_go_on_with_other_processes_than_it_began_with(tmp_path: Path) -> None:
    whole = learn(SHORT)
    codes = processes(tmp_path, SHORT, 2, kill_at=9)
    assert codes[0] == -signal.SIGKILL
    assert processes(tmp_path, SHORT, 1) == [0]
    _, metrics, _ = ends(tmp_path, 1)[0]
    torch.testing.assert_close(curve(metrics), curve(whole.metrics), rtol=1e-3, atol=1e-4)
