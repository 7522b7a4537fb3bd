"""The documentation is as the code is: references, links, commands, snippets, the site."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pahi import cli
from pahi.settings import Settings, Tree, load_settings, presets

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])
NOT_RUN = "<!-- not run:"


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


def fences(page: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """Line and text of each fenced block of a language, those marked as not run aside."""
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        opened = re.match(r"```(\w+)", lines[at])
        if opened:
            end = next(i for i in range(at + 1, len(lines)) if lines[i].startswith("```"))
            if opened[1] in languages and not (at and lines[at - 1].startswith(NOT_RUN)):
                yield at + 1, "\n".join(lines[at + 1 : end]) + "\n"
            at = end
        at += 1


def commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """Line and words of every `pahi` command in a code block, fenced or indented; others on its line are left out."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))  # a command that goes on in the next line
    fenced = False
    for at, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        if not (fenced or line.startswith("    ")) or not re.match(r"\s*(\$ )?pahi\s", line):
            continue
        typed = re.sub(r"\s#.*$", "", line.strip().removeprefix("$ "))
        lexer = shlex.shlex(re.sub(r"<[\w -]+>", "PLACE", typed), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word.strip("();<>|&"):
                words.append(word)
                continue
            if words[:1] == ["pahi"]:
                yield at, [w for w in words if w not in ("...", "[OPTIONS]") and not re.fullmatch(r"\[[A-Z]+\]", w)]
            words = []


# ---------------------------------------------------------------------------------------------------------- references


def test_references_are_as_the_code_is() -> None:
    done = subprocess.run(
        [sys.executable, str(DOCS / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr


def keys(tree: type[Tree], prefix: str = "") -> Iterator[str]:
    for name, field in tree.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Tree):
            yield from keys(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_setting_and_command_and_deployment_is_documented() -> None:
    settings, commands_page = (DOCS / "settings.md").read_text(), (DOCS / "commands.md").read_text()
    assert [key for key in keys(Settings) if f"| `{key}` |" not in settings] == []
    group: Any = typer.main.get_command(cli.app)
    assert [name for name in group.commands if f"\n## {name}\n" not in commands_page] == []
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert [d["name"] for d in deployments if f"| `pahi/{d['name']}` |" not in commands_page] == []


def test_every_setting_says_what_it_means() -> None:
    assert not re.findall(r"^\| `[\w.\[\]]+` \|.*\|\s*\|$", (DOCS / "settings.md").read_text(), re.M)


def test_every_preset_is_documented() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert [name for name in presets() if f"`{name}`" not in text and f"--preset {name}" not in text] == []


# --------------------------------------------------------------------------------------------------------------- links


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#{1,6} (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {"".join(c for c in h.lower().replace(" ", "-") if c.isalnum() or c in "-_") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


# ------------------------------------------------------------------------------------------------------------ snippets


@pytest.mark.parametrize("page", [p for p in PAGES if list(commands(p))], ids=ids)
def test_commands_parse(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Command, options and settings of each line are what the command line takes; nothing is run."""
    group: Any = typer.main.get_command(cli.app)
    monkeypatch.chdir(tmp_path)
    for line, words in commands(page):
        where = f"{page.name}:{line}: {' '.join(words)}"
        assert words[1] in [*group.commands, "COMMAND", "help"], where
        if words[1] in ("COMMAND", "help") or "--help" in words:
            continue
        try:
            context = group.commands[words[1]].make_context(words[1], words[2:])
        except Exception as error:
            pytest.fail(f"{where}: {error}")
        preset = context.params.get("preset") or "tiny"
        load_settings(preset, None, list(context.params.get("sets") or []))


def test_pools_and_deployments_are_those_of_prefect_yaml() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    pools, names = {d["work_pool"]["name"] for d in deployments}, {f"pahi/{d['name']}" for d in deployments}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"--pool ([\w-]+)|work-pool create ([\w-]+)", text)) <= {
            *((pool, "") for pool in pools),
            *(("", pool) for pool in pools),
        }, page.name
        assert set(re.findall(r"deployment run (pahi/[\w-]+)", text)) <= names, page.name


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_scripts_and_targets_are_there(page: Path) -> None:
    """`python benchmarks/x.py --option`, `python -m pahi.x`, `sh infra/x.sh` and `make x`, in a block or a sentence."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    shown = [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^(?:    |\$ )(.*)$", text, re.M)]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    parts = "".join(file.read_text() for file in (ROOT / "benchmarks" / "parts").glob("*.py"))
    for line in shown:
        line = re.sub(r"\s#.*$", "", line)
        for make in re.findall(r"(?:^|[;&] )make ([a-z-]+)", line):
            assert make in targets, line
        for file in re.findall(r"(?:^|\s)(?:sh|python3?) ((?:docs|benchmarks|infra)/[\w/.-]+)", line):
            assert (ROOT / file).is_file(), line
            source = (ROOT / file).read_text() + parts
            if '"$@"' in source:  # it hands its options on
                continue
            for option in re.findall(r"\s(--[a-z][\w-]*)", line.partition(file)[2]):
                assert f'"{option}"' in source, line
        for module in re.findall(r"python3? -m (pahi[\w.]*)", line):
            place = ROOT / module.replace(".", "/")
            assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), line


@pytest.mark.parametrize("page", [p for p in PAGES if list(fences(p, "yaml"))], ids=ids)
def test_settings_in_fences_are_settings(page: Path, tmp_path: Path) -> None:
    for line, text in fences(page, "yaml"):
        data = yaml.safe_load(text.replace("<commit>", "0123abc"))
        if not set(data) <= set(Settings.model_fields):
            continue
        file = tmp_path / f"{line}.yaml"
        # A snippet shows a part: what it does not show stays as the preset has it.
        if "rewards" in data and "train" not in data["rewards"]:
            data["rewards"]["judges"] = []
        file.write_text(yaml.safe_dump(data))
        load_settings("tiny", str(file))


@pytest.fixture(scope="module")
def stand_ins(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, shake: Callable[..., None], request: Any
) -> Path:
    """A folder in which published names lead to small random models of the same classes, each with a predictor."""
    sys.path.insert(0, str(ROOT / "tests" / "generators"))
    request.addfinalizer(lambda: sys.path.remove(str(ROOT / "tests" / "generators")))
    from published import BY_NAME, save

    from pahi.generators import load_generator
    from pahi.predictors import NoisePredictor

    folder = tmp_path_factory.mktemp("snippets")
    for case, name in {
        "sd-turbo": "stabilityai/sd-turbo",
        "sdxl-turbo": "stabilityai/sdxl-turbo",
        "lcm": "SimianLuo/LCM_Dreamshaper_v7",
    }.items():
        model = save(BY_NAME[case], tokenizer, shake, tmp_path_factory.mktemp(case))
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(model)
        generator = load_generator(str(model), device="cpu")
        predictor = NoisePredictor.create("hpi", generator.latent_shape, generator.pooled_width, generator=name)
        predictor.mu.data.fill_(0.5)
        (folder / "predictors").mkdir(exist_ok=True)
        (folder / "predictors" / case).mkdir()
        predictor._save_pretrained(folder / "predictors" / case)
    return folder


SNIPPETS = [(page, line, text) for page in PAGES for line, text in fences(page, "python")]


def test_no_code_stands_where_it_is_not_run() -> None:
    """Python and YAML in an indented block would be shown and never tried; shell commands are looked at there."""
    found = []
    for page in PAGES:
        fenced = False
        for at, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            fenced ^= line.startswith("```")
            if not fenced and re.match(
                r"    (from \S+ import |import |\w+ = [a-z]\w+[.(]|(generator|rewards|train|curate):)", line
            ):
                found.append(f"{page.name}:{at}")
    assert found == []


@pytest.mark.parametrize(("page", "line", "text"), SNIPPETS, ids=[f"{page.stem}:{line}" for page, line, _ in SNIPPETS])
def test_python_runs(page: Path, line: int, text: str, stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands in the page, at its place, where the published names are."""
    monkeypatch.chdir(stand_ins)
    text = re.sub(r"pahi-data/\w+/train/<fingerprint>/predictor", "predictors/sd-turbo", text)
    space: dict[str, Any] = {"__name__": "snippet"}
    exec(compile("\n" * line + text, str(page), "exec"), space)
    if "latents" in space and "image" in space:
        plain = space["pipe"](
            space["prompt"], latents=space["latents"] - 0.5, num_inference_steps=1,
            guidance_scale=8.0 if "Latent" in type(space["pipe"]).__name__ else 0.0,
        ).images[0]  # fmt: skip
        assert plain.tobytes() != space["image"].tobytes(), "the predictor's noise changed nothing"


def test_the_guide_has_a_snippet_a_family() -> None:
    text = "".join(text for page, _, text in SNIPPETS if page.name == "library.md")
    for name in ("sd-turbo", "sdxl-turbo", "LCM_Dreamshaper_v7"):
        assert name in text


# ---------------------------------------------------------------------------------------------------------------- site


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    for page in DOCS.glob("*.md"):
        place = "index.html" if page.stem == "index" else f"{page.stem}/index.html"
        assert (tmp_path / "site" / place).is_file()
    html = (tmp_path / "site" / "index.html").read_text()
    loaded = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:)?//', html)
    assert loaded == []


def test_every_file_that_people_look_for_is_there() -> None:
    for name in (
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CITATION.cff",
        "LICENSE",
        ".pre-commit-config.yaml",
    ):
        assert (ROOT / name).is_file()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    from pahi import __version__

    assert citation["version"] == __version__
    assert {"cff-version", "title", "message", "authors"} <= set(citation)
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {hook["id"] for hook in hooks} >= {"ruff", "ruff-format", "docs"}
