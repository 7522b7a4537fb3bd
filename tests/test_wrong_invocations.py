"""What a new user mistypes: every case ends in one line that says what was wrong and what to do, and in exit code 2."""

import shlex

import pytest

from pahi import cli

FILES = {
    "list.yaml": "- a\n",
    "brace.yaml": "train: {steps: 5\n",
    "tab.yaml": "train:\n\tsteps: 5\n",
    "typo.yaml": "trian:\n  steps: 5\n",
    "kind.yaml": "rewards:\n  train:\n    - {name: a, kind: pickscor, id: x/y}\n",
    "flat.yaml": "train: 5\n",
    "inside.yaml": "rewards:\n  train:\n    - {name: a, kind: pickscore, id: x/y, wieght: 2}\n",
    "no-id.yaml": "rewards:\n  train:\n    - {name: a, kind: pickscore}\n",
    "empty.txt": "",
    "semicolons.csv": "name;x\n1;2\n",
    "prompts.docx": "x",
    "twice.yaml": "rewards:\n  train: [{name: a, kind: pickscore, id: x/y}, {name: a, kind: hpsv2, id: x/z}]\n",
}
CASES = {
    # commands
    "runn": "Did you mean 'run'",
    "trian": "Did you mean 'train'",
    "prests": "Did you mean 'presets'",
    "version": "pahi --help",
    "--preset tiny": "pahi run --preset",
    "-v run": "pahi run -v",
    # options
    "run tiny": "--preset tiny",
    "run --presets tiny": "--preset,",
    "run --preset": "requires an argument",
    "run --set": "requires an argument",
    "run --root": "requires an argument",
    "run --prompts": "requires an argument",
    "run -d": "pahi run --help",
    "run --Direct": "--direct",
    "run --verbos": "--verbose",
    "train --upstream": "--with-upstream",
    "cache --fetch": "--fetch-only",
    "report --dataset tiny": "pahi report --help",
    "ls tiny": "holds no dataset 'tiny'",
    "publish here there": "pahi publish --help",
    "gc --force": "pahi gc --help",
    "verify tiny extra": "extra",
    "verify --rows -1": "0",
    "verify --rows few": "'--rows': it should be a valid integer",
    "doctor --root": "requires an argument",
    "sample": "'prompt'",
    "sample a red circle": 'pahi sample "a red circle"',
    "sample a --seed -1": "--seed",
    "sample a --seed one": "--seed",
    # presets
    "run --preset Tiny": "did you mean 'tiny'",
    "run --preset sd_turbo": "did you mean 'sd-turbo'",
    "run --preset mine.yaml": "--config mine.yaml",
    "presets nope": "`pahi presets` lists them",
    # --set
    "run --set train.steps": "expected key=value",
    "run --set =5": "expected key=value",
    "run --set train.steps=": "train.steps: expected a whole number, not empty",
    "run --set train.steps=many": "train.steps: expected a whole number, not 'many'",
    "run --set train.steps=-1": "train.steps: expected at least 0, not -1",
    "run --set train.steps=1.5": "train.steps: expected a whole number, not 1.5",
    "run --set train.lr=nan": "train.lr: expected a finite number",
    "run --set train.lr=0": "train.lr: expected more than 0",
    "run --set train.ema=1": "train.ema: expected less than 1",
    "run --set generator.compile=perhaps": "expected true or false",
    "run --set trian.steps=5": "did you mean 'train'",
    "run --set train.setps=5": "did you mean 'steps'",
    "run --set steps=5": "did you mean 'train.steps'",
    "run --set batch_size=5": "'train.batch_size'",
    "run --set train=5": "setting train: expected settings of its own",
    "run --set train.predictor=paih": "did you mean 'pahi'",
    "run --set train.steps=5 train.beta=1": "--set train.beta=1",
    "run --set train.steps.more=5": "'steps' has no settings of its own",
    "run --set rewards.train.9.weight=2": "has entries 0 to",
    "run --set rewards.train.first.weight=2": "not 'first'",
    "run --set rewards.train=[]": "expected at least 1",
    "run --set generator.dtype=fp16": "'float16'",
    "run --set evaluate.best_of=4": "expected a list, such as [4, 16], not 4",
    "run --set evaluate.best_of=[1]": "no choice",
    "presets tiny --set nope=1": "unknown setting 'nope'",
    # names and files
    "run --name 'My Set'": "lower-case letters",
    "run --config missing.yaml": "missing.yaml: there is no such file",
    "run --config folder": "is a folder",
    "run --config list.yaml": "keys and values",
    "run --config brace.yaml": "line 2, column 1",
    "run --config tab.yaml": "line 2, column 1: a tab; indent with spaces",
    "run --config typo.yaml": "did you mean 'train'",
    "run --config kind.yaml": "did you mean 'pickscore'",
    "run --config flat.yaml": "expected settings of its own",
    "run --config inside.yaml": "did you mean 'weight'",
    "run --config no-id.yaml": "rewards.train.0.id is missing",
    "run --config twice.yaml": "named twice",
    "run --config binary.yaml": "is not text in UTF-8",
    "run --prompts missing.txt": "missing.txt: there is no such file",
    "run --prompts folder": "is a folder",
    "run --prompts ''": "--prompts is empty",
    "run --root ''": "--root is empty",
    "ls --root ''": "--root is empty",
    "run --root s3:/bucket/prefix": "as in s3://bucket/prefix",
    "gc --root s3:bucket": "two slashes",
    "gc nothing": "holds no dataset 'nothing'",
    "run --set train.beta 0.8": "as one word, such as --set train.beta=0.8",
    # a second round
    "run --steps 5": "No such option: --steps; settings are given by --set train.steps=...",
    "run --batch-size 8": "--set cache.batch_size=... or --set train.batch_size=...",
    "train --resume": "pahi train --help",
    "run --epochs 5": "pahi run --help",
    "presets --preset sd-turbo": "such as `pahi presets sd-turbo`",
    "presets sd-turbo tiny": "unexpected extra argument(s) (tiny)",
    "run sd-turbo": "--preset sd-turbo",
    "train tiny": "--preset tiny",
    "ls s3://bucket/prefix": "--root s3://bucket/prefix",
    "gc --name tiny": "pahi gc --help",
    "--steps 5": "pahi run --set train.steps=...",
    "gc some/folder": "--root some/folder",
    "report nothing": "holds no dataset 'nothing'",
    "verify nothing": "holds no dataset 'nothing'",
    "doctor --root s3://": "as in s3://bucket/prefix",
    "sample a --predictor folder": "it holds no config.json",
    "sample a --predictor nothing": "there is no such folder here",
    "sample a --out picture": "ends in .png",
    "sample a --compare nowhere/a.png": "there is no folder nowhere",
    "sample ''": "the prompt is empty",
    "ingest --prompts empty.txt": "empty.txt: is empty",
    "ingest --prompts semicolons.csv": "none of its columns ('name;x')",
    "ingest --prompts prompts.docx": "unknown kind of file",
    "ingest --with-upstream": "pahi ingest --help",
    "publish folder": "run `pahi curate --with-upstream` first",
    "curate --dry-run --with-upstream": "leave out --with-upstream",
    "curate --set curate.top_k=0": "at least 1, not 0",
    "generate --set generate.format=jpg": "did you mean 'jpeg'",
    "generate --set generate.quality=200": "at most 100",
    "run --set rewards.train.0.kind=pick": "did you mean 'pickscore'",
    "help nope": "No such command 'nope'",
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder").mkdir()


@pytest.mark.parametrize(("typed", "said"), CASES.items(), ids=CASES)
def test_one_line_and_exit_code_2(capsys, typed, said):
    code = cli.call(shlex.split(typed))
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert said in err, err


def test_an_entry_of_a_list_is_a_setting(tmp_path):
    settings = cli.resolve(
        "tiny", None, ["rewards.train.0.weight=2", "rewards.train[0].dtype=bfloat16"], None, None, None
    )
    assert (settings.rewards.train[0].weight, settings.rewards.train[0].dtype) == (2, "bfloat16")


def test_help_is_a_command_too(capsys):
    assert cli.call(["help", "train"]) == 0
    assert "Example: pahi train" in capsys.readouterr().out
