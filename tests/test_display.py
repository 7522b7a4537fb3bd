"""Progress: bars on a terminal, plain lines elsewhere, and what both say of pace."""

import os
import pty
import re
import subprocess
import sys

import pytest

from pahi import display
from pahi.display import Display, line
from pahi.pace import Pace, duration, rate


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def test_pace_counts_from_the_first_report_on():
    pace = Pace(100, 40, 1000.0)  # 40 were finished by an earlier run, and loading took long
    assert pace.speed is None and pace.remaining is None
    pace.update(60, 100, 1010.0)
    assert pace.speed == pytest.approx(2) and pace.remaining == pytest.approx(20)
    assert pace.left == "0:20 left"
    pace.update(100, 100, 1030.0)
    assert pace.left == ""


def test_a_count_that_begins_again_is_another_count():
    pace = Pace(10, 0, 0.0)
    pace.update(10, 10, 1.0)
    pace.update(0, 50, 100.0)
    assert pace.speed is None
    pace.update(5, 50, 101.0)
    assert pace.speed == pytest.approx(5) and pace.remaining == pytest.approx(9)


def test_plain_lines_where_there_is_no_terminal(capsys, clock):
    with Display() as shown:
        for step in range(0, 401, 4):
            clock[0] = step / 4
            shown("train", step, 400, f"uplift +0.{step:03d}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train     0/400  uplift +0.000"
    assert lines[1] == "train     40/400  4.0/s, 1:30 left  uplift +0.040"
    assert lines[-1] == "train     400/400  uplift +0.400"
    assert len(lines) == 11  # one in ten seconds, and the last
    assert not re.search(r"\x1b|\r", "".join(lines))


def test_an_unknown_total(capsys, clock):
    with Display() as shown:
        shown("ingest", 5, 0, "")
    assert capsys.readouterr().out == "ingest    5/?\n"


def test_quiet_says_nothing(capsys):
    with Display(quiet=True) as shown:
        shown("train", 1, 2, "x")
    assert capsys.readouterr() == ("", "")


def test_a_note_is_no_markup(capsys, clock):
    assert line("train", Pace(2, 1, 0.0), "[red]x[/red]").endswith("[red]x[/red]")


@pytest.mark.parametrize(("speed", "said"), [(123.4, "123/s"), (2.5, "2.5/s"), (0.5, "30.0/min")])
def test_rate(speed, said):
    assert rate(speed) == said


@pytest.mark.parametrize(("seconds", "said"), [(7, "0:07"), (123.4, "2:03"), (59.7, "1:00"), (4200, "1:10:00")])
def test_duration(seconds, said):
    assert duration(seconds) == said


def on_a_terminal(code, columns):
    """What a process writes whose output is a terminal of so many columns."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": columns}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())


@pytest.mark.parametrize("columns", ["80", "160"])
def test_bars_on_a_terminal(columns):
    """In a process whose output is a terminal: on a narrow one, too, a long note pushes no figure out."""
    note = "[uplift] +0.41, image_beta +0.36, clip_gamma +0.31"
    code = (
        "import time\nfrom pahi.display import Display\n"
        "with Display() as d:\n"
        f"    for i in range(0, 51, 10): d('train', i, 50, {note!r}); time.sleep(0.15)\n"
    )
    text = on_a_terminal(code, columns)
    assert "train " in text and "50/50" in text and note in text
    assert re.search(r"\d/(s|min)", text) and "left" in text


@pytest.mark.parametrize("columns", ["80", "220"])
def test_a_wide_table_on_a_narrow_terminal(columns):
    """No name or figure is torn: intervals go below their figures, then the columns that can be spared go."""
    figure, names = "+0.25 [+0.08, +0.45]", ("pick_alpha (training)", "image_beta (training)", "clip_gamma (held out)")
    row = {"arm": "pahi shuffled"} | {
        n: v for name in names for n, v in ((name, figure), (f"wins, {name[:10]}", "61.2%"))
    }
    row |= {"oracle (judge)": "48.2%", "diversity": "0.250", "features": "0.310", "ms/image": "6.7"}
    code = f"from pahi.display import print_table; print_table([{row!r}], 'Uplift', ('wins, ', 'features', 'ms/image'))"
    text = on_a_terminal(code, columns)
    lines = [line.rstrip() for line in text.splitlines()]
    for word in ("pahi shuffled", "pick_alpha", "image_beta", "clip_gamma", "[+0.08, +0.45]", "48.2%", "0.250"):
        assert any(word in line for line in lines), (word, text)
    assert max(map(len, lines)) <= int(columns)
    assert (figure in text, "61.2%" in text, "without" in text) == (
        (False, False, True) if columns == "80" else (True, True, False)
    )
