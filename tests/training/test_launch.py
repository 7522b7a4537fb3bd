"""Torchrun as the stage starts it: messages arrive, an error is the process's own, and nobody outlives a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pahi.errors import PahiError, UserError
from pahi.training.launch import together

# A module for torchrun: what it does depends on the variable WHAT.
WORK = """
import os, signal, sys, time
from pahi.errors import UserError
from pahi.training.launch import tell, told

def work():
    rank = int(os.environ["RANK"])
    print("noise of a library, whose line has no end yet", end="")
    tell(rank=rank, pid=os.getpid(), size=int(os.environ["WORLD_SIZE"]))
    if os.environ["WHAT"] == "mistake" and rank == 1:
        raise UserError("train.lr is\\nwrong")
    if os.environ["WHAT"] == "killed" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    while os.environ["WHAT"] != "end":
        time.sleep(0.1)
        if rank == 0:
            tell(beat=1)

if __name__ == "__main__":
    told(work)
"""
PARENT = """
import sys
from pahi.training.launch import together
together("torchrun_work", 2, {"WHAT": "beat"}, lambda message: print(message.get("pid", ""), flush=True))
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "torchrun_work.py").write_text(WORK)
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{root}")
    return tmp_path


def test_every_process_is_heard_and_a_mistake_comes_back_as_it_was(path: Path) -> None:
    heard: list[dict] = []
    with pytest.raises(UserError, match=r"^train\.lr is wrong$"):
        together("torchrun_work", 2, {"WHAT": "mistake"}, heard.append)
    assert sorted((m["rank"], m["size"]) for m in heard if "rank" in m) == [(0, 2), (1, 2)]


def test_a_process_that_is_killed_ends_all_in_one_line(path: Path) -> None:
    with pytest.raises(PahiError, match=r"in 2 processes stopped: Signal 9 \(SIGKILL\)"):
        together("torchrun_work", 2, {"WHAT": "killed"}, lambda _: None)


def test_nobody_goes_on_behind_a_command_that_was_killed(path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids: list[int] = []
    while len(pids) < 2:
        line = parent.stdout.readline()
        assert line, "it ended before both were heard"
        pids += [int(line)] if line.strip() else []
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 120
    while any(alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.2)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        # A zombie is dead: nobody is left here who would wait for it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
