"""Walks the path that docs/start.md shows, as a stranger does: a wheel in its own environment, then every command.

    python docs/walk.py                  # builds, installs, and types every command; as long as the page's demo takes
    python docs/walk.py --quick          # the same commands with settings that take a minute
    python docs/walk.py --bin DIR        # with the `pahi` that is in DIR already

The commands and settings are read from the page, and the snippet from library.md, so that neither can say what does
not work. Where a page names a published model, a small one that the wheel carries stands in its place under that name.
What needs the Hub's real checkpoints or a Prefect server is named, and left out.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAND_INS = {
    "stabilityai/sd-turbo": "generator",
    "yuvalkirstain/PickScore_v1": "reward-alpha",
    "openai/clip-vit-large-patch14": "reward-gamma",
}
QUICK = [
    "ingest.test_fraction=0.3",
    "ingest.validation_fraction=0.2",
    "cache.max_train_prompts=24",
    "cache.max_validation_prompts=8",
    "cache.seeds=2",
    "train.predictor=pahi",
    "train.hpi_steps=2",
    "train.steps=2",
    "train.batch_size=8",
    "train.validate_every=2",
    "evaluate.prompts=6",
    "evaluate.seeds=2",
    "evaluate.best_of=[2]",
    "evaluate.bootstrap=100",
    "evaluate.gallery=4",
    "generate.control_fraction=0",
]


def commands(page: str) -> Iterator[str]:
    """Every `pahi` line of a page's indented code, comments aside."""
    for line in page.splitlines():
        if re.match(r"    pahi\s", line):
            yield re.sub(r"\s+#.*$", "", line.strip())


def left_out(typed: str) -> str:
    """Why a command cannot be typed here; empty where it can."""
    return "needs published checkpoints from the Hub" if "--preset" in typed else ""


def prepare(folder: Path, weights: Path) -> None:
    """What the page takes for granted: prompts, the file my.yaml that it shows, and models under their names."""
    shapes = ("circle", "square", "triangle", "star", "diamond", "cross")
    colours = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
    lines = [f"a {colour} {shape} on a white background" for colour in colours for shape in shapes]
    (folder / "my_prompts.txt").write_text("\n".join(lines) + "\n")
    page = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    (folder / "my.yaml").write_text(re.search(r"```yaml\n(# my\.yaml\n.*?)```", page, re.S)[1])  # type: ignore[index]
    for name, model in STAND_INS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(weights / model, folder / name)


def walk(bin: Path, folder: Path, quick: bool) -> None:
    """Types every command with the `pahi` in `bin`, in an empty folder. Raises CalledProcessError where one fails."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PATH"] = f"{bin}{os.pathsep}{environment['PATH']}"

    def call(*words: str) -> str:
        started = time.time()
        done = subprocess.run(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(done.stdout)
            raise subprocess.CalledProcessError(done.returncode, words)
        print(f"  ok, {time.time() - started:.0f} s", flush=True)
        return done.stdout

    where = "import pahi, pathlib; print(pathlib.Path(pahi.__file__).parent / 'tiny' / 'weights')"
    prepare(folder, Path(call(str(bin / "python"), "-c", where).strip()))
    page = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    for typed in commands(page):
        print(f"$ {typed}", flush=True)
        if left_out(typed):
            print(f"  left out: {left_out(typed)}")
            continue
        words = shlex.split(typed)
        if quick and words[1] in ("run", "sample"):  # a sample is of the dataset that those settings made
            words += [word for setting in QUICK for word in ("--set", setting)]
        print(call(*words).rstrip())

    print("$ python (the first snippet of library.md, with the predictor of --config my.yaml)", flush=True)
    trained = sorted((folder / "pahi-data" / "my_prompts" / "train").glob("*/predictor"), key=os.path.getmtime)[-1]
    (folder / "predictors").mkdir()
    shutil.copytree(trained, folder / "predictors" / "sd-turbo")
    library = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(.*?)```", library, re.S)[1]  # type: ignore[index]
    call(str(bin / "python"), "-c", snippet)
    assert (folder / "sd-turbo.png").stat().st_size > 0
    for report in ("tiny", "my_prompts"):
        assert (folder / "pahi-data" / report / "report.html").is_file()


def install(folder: Path) -> Path:
    """An environment with nothing but the wheel and what it asks for; returns where its commands are."""
    # From a copy: setuptools would leave build/ in the checkout, and put what was once in it into every later wheel.
    source = folder / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "dist", "site", "*.egg-info", "pahi-data")
    )
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source], check=True
    )
    subprocess.run([sys.executable, "-m", "venv", folder / "environment"], check=True)
    bin = folder / "environment" / "bin"
    wheel = next(folder.glob("pahi-*.whl"))
    pinned = ["--constraint", ROOT / "constraints.txt"]
    subprocess.run([bin / "python", "-m", "pip", "install", "--quiet", *pinned, wheel], check=True)
    return bin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few prompts and steps")
    parser.add_argument(
        "--bin", type=Path, help="where pahi and python are; without it, the wheel is built and installed"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bin = given.bin.absolute() if given.bin else install(folder)
        (folder / "work").mkdir()
        walk(bin, folder / "work", given.quick)
    print("the whole path was walked")


if __name__ == "__main__":
    main()
