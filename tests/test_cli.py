"""The command line: what a mistake looks like, and what the options make of the settings."""

import errno
import os
import subprocess
import sys

import pytest
import typer

from pahi import cli, invocation
from pahi.errors import StageFailed, UserError
from pahi.tables import arm_rows, count_rows, markdown

COMMANDS = ["run", "ingest", "cache", "train", "evaluate", "generate", "curate"]
COMMANDS += ["publish", "sample", "verify", "report", "ls", "gc", "presets", "doctor"]


def fails(capsys, *arguments, code=2):
    """Runs a command that must end in one line; returns that line."""
    assert cli.call(list(arguments)) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    assert captured.err.count("\n") == 1, captured.err
    return captured.err.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--preset", "tinny"], "did you mean 'tiny'"),
        (["run", "--set", "train.setps=5"], "did you mean 'steps'"),
        (["run", "--set", "nonsense=5"], "unknown setting 'nonsense'"),
        (["run", "--set", "train.steps"], "expected key=value"),
        (["run", "--set", "train.steps=many"], "train.steps"),
        (["run", "--set", "name=Not A Name"], "name"),
        (["run", "--config", "missing.yaml"], "missing.yaml"),
        (["run", "--prompts", "missing.txt"], "missing.txt"),
        (["train", "--set", "train.lr=0"], "train.lr"),
        (["run", "--bogus"], "--bogus"),
        (["bogus"], "bogus"),
        (["run", "--set"], "--set"),
        (["verify", "tiny", "--rows", "few"], "--rows"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    line = fails(capsys, *arguments)
    assert line.startswith("error: ")
    assert message in line


def test_no_command_prints_help_and_exits_with_2():
    done = subprocess.run([sys.executable, "-m", "pahi.cli"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Usage: pahi" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["file", "procfs"])
def test_a_root_that_cannot_be_written_is_one_line(capsys, tmp_path, kind):
    if kind == "file":
        (tmp_path / "root").write_text("a file, not a folder")
        root = str(tmp_path / "root")
    elif os.path.isdir("/proc/self"):
        root = "/proc/pahi-root"  # nobody can write there, root included
    else:
        pytest.skip("no /proc here")
    line = fails(capsys, "ingest", "--root", root)
    assert root in line


def test_a_stage_alone_names_the_missing_one(capsys, tmp_path):
    line = fails(capsys, "train", "--root", str(tmp_path))
    assert "ingest" in line or "cache" in line


def test_what_other_settings_made_is_not_said_to_be_missing(capsys, tmp_path):
    """As when a run with --config is asked for its report without it."""
    (tmp_path / "mine.txt").write_text("a red circle\na blue star\n")
    given = ["--root", str(tmp_path), "--prompts", str(tmp_path / "mine.txt")]
    assert cli.call(["ingest", *given]) == 0
    capsys.readouterr()
    line = fails(capsys, "cache", *given, "--set", "ingest.test_fraction=0.4")
    assert "'mine' holds of it is of other settings or prompts: repeat that run's --preset" in line
    line = fails(capsys, "report", "mine", "--root", str(tmp_path))
    assert line == (
        "error: report needs the output of evaluate, which is not there; run `pahi evaluate --with-upstream` first"
    )


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (UserError("what is wrong"), 2, "error: what is wrong"),
        (StageFailed("2 of 5 shards failed"), 1, "error: 2 of 5 shards failed"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 2, "error: the disk is full (/data/x)"),
        (KeyboardInterrupt(), 130, "interrupted: run the same command again to continue"),
        (ExceptionGroup("tasks", [UserError("inside a group")]), 2, "error: inside a group"),
        (ZeroDivisionError("a defect"), 1, "error: ZeroDivisionError: a defect"),
    ],
)
def test_exit_codes(capsys, monkeypatch, raised, code, message):
    def fail(*_args):
        raise raised

    monkeypatch.setattr(invocation, "resolve", fail)
    assert fails(capsys, "run", "--direct", code=code).startswith(message)


def test_what_wraps_a_users_mistake_is_taken_off():
    mistake = UserError("wrong")
    try:
        try:
            raise mistake
        except UserError as error:
            raise RuntimeError("wrapped") from error
    except RuntimeError as wrapped:
        assert cli.unwrapped(wrapped) is mistake
    plain = ValueError("plain")
    assert cli.unwrapped(plain) is plain


def test_verbose_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setattr(invocation, "_verbose", False)
    assert cli.call(["run", "-v", "--preset", "nope"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.strip().splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_has_an_example(capsys, command):
    assert cli.call([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Example: pahi {command}" in shown
    assert "bool" not in shown, "a switch takes no value"
    assert ("Settings" in shown) == (command not in ("ls", "gc")), "what makes the settings stands apart"


def test_every_command_is_listed():
    assert sorted(typer.main.get_command(cli.app).commands) == sorted(COMMANDS)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("PartiPrompts.tsv", "partiprompts"),
        ("a folder/My Prompts (2).txt", "my-prompts-2"),
        ("s3://bucket/prefix/list.v2.jsonl", "list.v2"),
        ("_.txt", "prompts"),
        ("x" * 100 + ".txt", "x" * 63),
    ],
)
def test_a_prompt_file_names_its_dataset(file, name):
    assert cli.dataset_name(file) == name


def test_prompts_replace_the_presets_source_and_its_limits(tmp_path):
    file = tmp_path / "Mine.txt"
    file.write_text("a red circle\n")
    settings = cli.resolve("tiny", None, None, None, None, str(file))
    assert settings.name == "mine"
    assert [source.path for source in settings.ingest.sources] == [str(file)]
    assert settings.cache.max_train_prompts is None
    settings = cli.resolve("tiny", None, ["cache.max_train_prompts=7", "name=other"], None, None, str(file))
    assert (settings.name, settings.cache.max_train_prompts) == ("other", 7)
    assert cli.resolve("tiny", None, None, None, "named", str(file)).name == "named"


def test_presets_prints_what_a_deployment_takes(capsys):
    import json

    from pahi.settings import Settings

    assert cli.call(["presets", "tiny", "--json", "--set", "train.steps=3"]) == 0
    assert Settings.model_validate(json.loads(capsys.readouterr().out)).train.steps == 3
    assert cli.call(["presets"]) == 0
    assert "tiny" in capsys.readouterr().out


def test_an_empty_store_is_no_mistake(capsys, tmp_path):
    assert cli.call(["ls", "--root", str(tmp_path)]) == 0
    assert cli.call(["gc", "--root", str(tmp_path)]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_the_command_line_starts_without_torch_and_prefect():
    code = "import sys, pahi.cli; sys.exit(any(name in sys.modules for name in ('torch', 'prefect', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_arms_become_rows():
    figure = {"value": 0.4, "low": 0.1, "high": 0.7}
    rewards = {
        "beta": {"role": "held_out", "mean": 1.0, "uplift": figure, "win_rate": {"value": 0.6}},
        "oracle": {"role": "judge", "mean": 0.25, "uplift": None, "win_rate": None},
        "alpha": {"role": "train", "mean": 1.0, "uplift": None, "win_rate": None},
    }
    result = {"summary": {"arms": [{"arm": "pahi_shuffled", "rewards": rewards, "diversity": 0.9}]}, "timings": {}}
    (row,) = arm_rows(result)
    assert row["arm"] == "pahi shuffled"
    assert row["beta (held out)"] == "+0.40 [+0.10, +0.70]"
    assert (row["wins, beta"], row["oracle (judge)"], row["alpha (training)"]) == ("60.0%", "25.0%", "-")
    assert list(row)[1] == "alpha (training)"
    assert markdown([row]).count("\n") == 2
    assert markdown([{"a": "x | y\nz"}]).splitlines()[2] == r"| x \| y z |", "no text ends a cell"
    assert count_rows({"summary": {"prompts": 3, "splits": {"test": 1}}}) == [
        {"what": "prompts", "value": 3},
        {"what": "splits.test", "value": 1},
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_v_and_json(command):
    options = {o for p in typer.main.get_command(cli.app).commands[command].params for o in p.opts}
    assert {"--verbose", "-v", "--json"} <= options


def test_json_is_all_that_is_printed(capsys, tmp_path):
    import json

    for arguments in (["ls"], ["gc"]):
        assert cli.call([*arguments, "--json", "--root", str(tmp_path)]) == 0
        assert json.loads(capsys.readouterr().out) == []
    assert cli.call(["presets", "--json"]) == 0
    assert "tiny" in [row["preset"] for row in json.loads(capsys.readouterr().out)]


def test_json_has_no_nan(capsys):
    import json

    cli.print_json({"a": [float("nan"), 1.5], 2: float("inf")})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"a": [None, 1.5], "2": None}


def test_exit_codes_are_documented(capsys):
    assert cli.call(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"{code} " in text for code in (0, 1, 2, 130)) and "Exit codes" in text


def test_version(capsys):
    from pahi import __version__

    assert cli.call(["--version"]) == 0
    assert capsys.readouterr().out == f"pahi {__version__}\n"


@pytest.mark.parametrize(("package", "extra"), [("s3fs", "s3"), ("prefect", "pipeline")])
def test_a_missing_extra_is_named(tmp_path, package, extra):
    """In a process of its own, where the package cannot be imported."""
    arguments = {"s3fs": ["ls", "--root", "s3://bucket/x"], "prefect": ["run", "--root", str(tmp_path)]}[package]
    code = f"import sys; sys.modules[{package!r}] = None; from pahi import cli; sys.exit(cli.call({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and f"pip install 'pahi[{extra}]'" in done.stderr


def test_an_installed_package_is_never_called_missing():
    from pahi.errors import missing

    assert missing(ImportError("s3fs is broken", name="s3fs")) == ""
    assert missing(ValueError("no such datasets")) == ""


def test_pahi_is_imported_in_no_time_and_without_torch():
    """The best of three: the machine may be busy."""
    code = (
        "import sys, time; t = time.perf_counter(); import pahi; print(time.perf_counter() - t, 'torch' in sys.modules)"
    )
    outs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() for _ in "123"]
    assert min(float(seconds) for seconds, _ in outs) < 0.3
    assert {torch for _, torch in outs} == {"False"}


def test_options_are_shared_in_one_order():
    commands = typer.main.get_command(cli.app).commands
    shared = [*cli.SETTINGS, "verbose"]
    for name in ("run", "train", "cache", "verify", "report", "doctor", "sample"):
        assert [p.name for p in commands[name].params if p.name in shared] == shared, name
