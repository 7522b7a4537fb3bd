"""`pahi doctor`: what it finds wrong, and that each line says what to do about it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pahi import machine
from pahi.artifacts import Store
from pahi.errors import UserError


def test_every_kind_of_store_is_probed(store):
    said = machine.probe(store)
    assert "create-only honoured" in said
    assert "clocks agree" in said
    assert store.list("") == [], "nothing is left behind"


def test_a_store_that_overwrites_is_told_apart(store, monkeypatch):
    monkeypatch.setattr(store, "create", lambda key, data: store.replace(key, data) or True)
    assert "create-only NOT honoured: run one writer at a time" in machine.probe(store)


@pytest.mark.parametrize(("shift", "says"), [(300, "ahead of"), (-300, "behind")])
def test_a_clock_that_is_off_is_named_with_its_direction(tmp_path, monkeypatch, shift, says):
    now = time.time
    monkeypatch.setattr(machine.time, "time", lambda: now() + shift)
    with pytest.raises(UserError, match=f"clock is (299|300|301) s {says}.*NTP"):
        machine.probe(Store(str(tmp_path)))


def test_a_store_that_does_not_delete_is_a_fault(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    monkeypatch.setattr(store, "delete", lambda _key: None)
    with pytest.raises(UserError, match="does not delete"):
        machine.probe(store)


def test_a_disk_is_measured_where_the_folder_will_be(tmp_path):
    fine = machine.disk("disk", str(tmp_path / "not" / "yet"), need_gb=0.0)
    assert fine["ok"] and str(tmp_path) in fine["detail"]
    full = machine.disk("disk", str(tmp_path), need_gb=1e9)
    assert not full["ok"] and "free some space" in full["detail"]


def test_a_gpu_that_is_asked_for_and_not_there_is_a_fault():
    import torch

    assert machine.torch_and_device("auto")["ok"]
    assert machine.torch_and_device("cpu")["ok"]
    wrong = machine.torch_and_device(f"cuda:{torch.cuda.device_count() + 7}")
    assert not wrong["ok"] and (
        "install" in wrong["detail"] or "number" in wrong["detail"] or "driver" in wrong["detail"]
    )


def doctor(root, **environment):
    """`pahi doctor` as a person runs it, with Prefect's settings from the environment alone."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    clean["PYTHONPATH"] = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "pahi.cli", "doctor", "--root", str(root)],
        env=clean | {"PREFECT_HOME": str(root / "prefect")} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_command_says_which_server_it_would_use(tmp_path):
    done = doctor(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no server is named" in done.stdout
    for name in (
        "python",
        "torch",
        "scratch disk",
        "store's disk",
        "store",
        "generator",
        "reward pick_alpha",
        "prefect",
    ):
        assert f"ok    {name}: " in done.stdout


def test_a_server_that_does_not_answer_is_one_line(tmp_path):
    done = doctor(tmp_path, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "prefect: " in line]
    assert line.startswith("FAIL  prefect: http://127.0.0.1:9/api does not answer")
    assert "PREFECT_API_URL" in line
    assert "Traceback" not in done.stdout + done.stderr
