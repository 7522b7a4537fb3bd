"""The wheel, as someone gets it who never saw the checkout: built, installed beside the libraries, run elsewhere."""

import base64
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WALK = runpy.run_path(str(ROOT / "docs" / "walk.py"))
TINY = WALK["QUICK"]
PROMPTS = ["a red circle", "a blue square", "two green triangles", "a yellow star on a white background"]

pytestmark = pytest.mark.slow


def call(*command: Any, cwd: Path, **more: Any) -> str:
    """A command's output; its environment leads to no checkout."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=1800, **more
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it: what the sdist lacks, the wheel cannot have."""
    folder = tmp_path_factory.mktemp("dist")
    copy = tmp_path_factory.mktemp("source")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("no git here to tell what belongs to the project")
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    sdist = folder / call(sys.executable, "-c", build, "build_sdist", folder, cwd=copy).splitlines()[-1]
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    wheel = folder / call(sys.executable, "-c", build, "build_wheel", folder, cwd=unpacked).splitlines()[-1]
    return sdist, wheel


@pytest.fixture(scope="module")
def pahi(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pahi` in an environment that has the wheel, and this one's libraries but not its pahi."""
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # A path in a .pth file is searched after the environment's own packages; .pth files in it are not read, so that an
    # editable install of the checkout stays out.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    call(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--no-deps", "--no-index",
         "--quiet", built[1], cwd=folder)  # fmt: skip
    where = call(folder / "bin" / "python", "-c", "import pahi; print(pahi.__file__)", cwd=folder)
    assert where.startswith(str(site))
    return folder / "bin" / "pahi"


def test_what_they_hold(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files", "pahi", "flows"], cwd=ROOT, capture_output=True, text=True).stdout
    assert [name for name in tracked.split("\n") if name and name not in names] == []
    assert zipfile.ZipFile(wheel).read("flows/prefect.yaml") == (ROOT / "prefect.yaml").read_bytes()
    assert not [name for name in names if name.startswith(("tests", "docs", "benchmarks"))]
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "prefect.yaml",
        "Makefile",
        "constraints.txt",
        "docs/index.md",
        "mkdocs.yml",
        "tests/test_wheel.py",
    } <= inside
    metadata = next(zipfile.ZipFile(wheel).read(n).decode() for n in names if n.endswith(".dist-info/METADATA"))
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert not [line for line in needed if any(word in line for word in ("prefect", "s3fs", "datasets", "pytest"))]


def test_the_start_page_as_a_stranger_types_it(
    pahi: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo, own prompts, an own preset, own code in diffusers: what docs/start.md shows, word by word."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    WALK["walk"](pahi.parent, tmp_path, quick=True)
    said = capfd.readouterr().out
    page = (ROOT / "docs" / "start.md").read_text()
    typed = list(WALK["commands"](page))
    assert len(typed) >= 6 and all(f"$ {command}\n" in said for command in typed)
    assert said.count("left out") == sum("--preset" in command for command in typed) == 1


def test_from_prompts_to_a_predictor_in_diffusers(pahi: Path, tmp_path: Path) -> None:
    """Own prompts, own model, own reward, every stage, one picture, and the predictor in a plain pipeline."""
    (tmp_path / "mine.txt").write_text("\n".join(f"{p}, {n}" for p in PROMPTS for n in range(12)) + "\n")
    (tmp_path / "judge.py").write_text("def score(pictures, prompts):\n    return pictures.mean((1, 2, 3))\n")
    weights = next(pahi.parents[1].glob("lib/python*/site-packages/pahi/tiny/weights/generator"))
    shutil.copytree(weights, tmp_path / "my-model")
    (tmp_path / "mine.yaml").write_text(
        "generator: {id: my-model, license: my own}\n"
        "rewards: {judges: [], held_out: [{name: light, kind: callable, id: 'judge:score'}]}\n"
    )
    given = ["--prompts", "mine.txt", "--config", "mine.yaml", *(word for s in TINY for word in ("--set", s))]
    results = json.loads(call(pahi, "run", "--direct", "--json", *given, cwd=tmp_path))
    assert [r["stage"] for r in results] == ["ingest", "cache", "train", "evaluate", "generate", "curate", "report"]
    assert (tmp_path / "pahi-data" / "mine" / "report.html").is_file()
    again = json.loads(call(pahi, "run", "--direct", "--json", *given, cwd=tmp_path))
    assert all(r["skipped"] for r in again[:-1])

    drawn = json.loads(call(pahi, "sample", PROMPTS[0], "--compare", "both.png", "--json", *given, cwd=tmp_path))
    assert Image.open(tmp_path / drawn["files"][0]).size == (64 + 8 + 64, 64)
    # What the report names to draw a row again draws the pair that it shows.
    page = (tmp_path / "pahi-data" / "mine" / "report.html").read_text()
    gallery = json.loads(re.search(r'id="gallery-data">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    shown = re.search(r'id="gallery-pictures">(.*?)</script>', page, re.S)[1].split("\n")[:2]  # type: ignore[index]
    row = gallery["rows"][0]
    fill = {"{prompt}": shlex.quote(row["prompt"]), "{seed}": str(row["seed"])}
    typed = re.sub(r"{(prompt|seed)}", lambda m: fill[m[0]], gallery["redraw"])
    call(pahi, *shlex.split(typed)[1:], cwd=tmp_path)
    pair = np.asarray(Image.open(tmp_path / "pair.png")).astype(int)
    for picture, part in zip(shown, (pair[:, :64], pair[:, -64:]), strict=True):
        kept = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2])))).astype(int)
        assert abs(kept - part).max() <= 2

    call(pahi, "verify", "--rows", "2", *given, cwd=tmp_path)
    listed = json.loads(call(pahi, "ls", "--json", cwd=tmp_path))
    assert {row["stage"] for row in listed if row["finished"]} == {r["stage"] for r in results[:-1]}

    predictor = Path(next(r["url"] for r in results if r["stage"] == "train")) / "predictor"
    code = f"""
import sys
from importlib import resources
import torch
from diffusers import StableDiffusionPipeline
from pahi import NoisePredictor
weights = str(resources.files("pahi") / "tiny/weights/generator")
pipe = StableDiffusionPipeline.from_pretrained(weights, torch_dtype=torch.float32)
predictor = NoisePredictor.from_pretrained({str(predictor)!r})
latents = predictor.sample("a red circle", pipe=pipe, seed=7)
pipe("a red circle", latents=latents, num_inference_steps=1, guidance_scale=0.0).images[0].save("one.png")
assert not [name for name in ("prefect", "s3fs") if name in sys.modules]
"""
    call(pahi.parent / "python", "-c", code, cwd=tmp_path)
    assert Image.open(tmp_path / "one.png").size == (64, 64)
