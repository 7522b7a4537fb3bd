"""The stage on a store: growth by partitions, sources elsewhere, a file that changes, the recipe that repeats it."""

import http.server
import importlib
import json
import linecache
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pahi.cli import call
from pahi.errors import UserError
from pahi.prompts import read_source, source_hash
from pahi.settings import Source, load_settings
from pahi.stages import ingest
from pahi.stages.common import Context

LINES = [f"{a} {b} in the {c}, {d}" for a in ("a red", "a blue") for b in ("fox", "owl") for c in ("snow", "rain")
         for d in ("oil painting", "watercolour on old paper", "photograph")]  # fmt: skip


def context(root, *sources, **values):
    data = {"sources": [s if isinstance(s, dict) else {"path": str(s)} for s in sources], **values}
    return Context(load_settings("tiny", overrides=[f"ingest={yaml.safe_dump(data)}"], root=str(root), name="mine"))


def write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_growth_keeps_assignments_and_adds_only_what_is_new(tmp_path):
    first, skipped = ingest.run(context(tmp_path, write(tmp_path / "a.txt", LINES[:12]), test_fraction=0.4))
    assert not skipped
    again = context(tmp_path, write(tmp_path / "a.txt", LINES), test_fraction=0.4)
    second, skipped = ingest.run(again)
    assert not skipped and ingest.run(again)[1]
    before, added = first.read("prompts").to_pylist(), second.read("prompts").to_pylist()
    assert [r["reason"] for r in second.read("rejects").to_pylist()].count("known") == 12
    whole = {p["cluster"]: p["split"] for p in before}
    assert all(whole.get(p["cluster"], p["split"]) == p["split"] for p in added)
    summary = second.require().summary
    assert summary["rows_in"] == 24 == sum(row["rows"] for row in summary["sources"])


def test_each_source_has_its_statistics(tmp_path):
    a = write(tmp_path / "a.txt", ["a  fox", "a fox", "", "an owl &amp; a cat"])
    b = write(tmp_path / "b.txt", ["a fox", "a very long story"])
    output, _ = ingest.run(context(tmp_path, a, b, max_characters=16))
    assert output.require().summary["sources"] == [
        {"source": "a", "rows": 4, "prompts": 2, "rejected": {"duplicate": 1, "empty": 1},
         "cleaned": {"html": 1, "whitespace": 1}, "characters": 9.5},
        {"source": "b", "rows": 2, "prompts": 0, "rejected": {"duplicate": 1, "too_long": 1}, "cleaned": {}},
    ]  # fmt: skip


def test_several_sources_each_with_its_own_columns_limit_and_weight(tmp_path):
    (tmp_path / "a.csv").write_text("words,prompt,topic\n" + "".join(f"a fox {i},no,animals\n" for i in range(9)))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"c": f"an owl {i}", "set": "test"}) + "\n" for i in range(9)))
    pq.write_table(pa.table({"caption": [f"a castle by night {i}" for i in range(200)]}), tmp_path / "c.parquet")
    sources = [
        {"path": str(tmp_path / "a.csv"), "text": "words", "kind": "topic", "limit": 4, "name": "foxes"},
        {"path": str(tmp_path / "b.jsonl"), "text": "c", "split": "set"},
        {"path": str(tmp_path / "c.parquet"), "weight": 0.5},
    ]
    output, _ = ingest.run(context(tmp_path, *sources, near_duplicates="ignore"))
    prompts = output.read("prompts").to_pylist()
    foxes, owls, castles = ([p for p in prompts if p["source"] == name] for name in ("foxes", "b", "c"))
    assert [(p["text"], p["kind"]) for p in foxes] == [(f"a fox {i}", "animals") for i in range(4)]
    assert len(owls) == 9 and {(p["split"], p["kind"]) for p in owls} == {("test", None)}
    assert 70 < len(castles) < 130 and len(prompts) == len(foxes) + len(owls) + len(castles)
    assert output.require().summary["rejected"] == {"not_sampled": 200 - len(castles)}


def test_the_command_prints_the_table(tmp_path, capsys):
    a = write(tmp_path / "a.txt", ["a  fox", "a fox", "", "an owl"])
    assert call(["ingest", "--prompts", str(a), "--root", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "a 4 2 5.5 duplicate 1, empty 1 whitespace 1" in out


def test_the_recipe_makes_the_same_partition(tmp_path):
    a = write(tmp_path / "a.txt", LINES)
    values = {"near_duplicates": "drop", "filters": {"exclude": ["rain"]}, "test_fraction": 0.3}
    output, _ = ingest.run(context(tmp_path / "one", {"path": str(a), "weight": 0.9}, **values))
    (tmp_path / "recipe.yaml").write_bytes(output.read_file("recipe.yaml"))
    other, _ = ingest.run(Context(load_settings("tiny", str(tmp_path / "recipe.yaml"), root=str(tmp_path / "two"))))
    assert other.manifest() == output.manifest()
    assert "sig=secret" not in ingest.recipe(context(tmp_path, a), [Source(path=str(a))]).decode()


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", LINES)

    def growing(source, most):
        for i, row in enumerate(read_source(source, most)):
            if i == 5:
                with path.open("a") as file:
                    file.write("one more\n")
            yield row

    monkeypatch.setattr(ingest, "read_source", growing)
    with pytest.raises(UserError, match="changed while it was read"):
        ingest.run(context(tmp_path, path))
    monkeypatch.undo()
    output, _ = ingest.run(context(tmp_path, path))
    assert output.require().summary["rows_in"] == len(LINES) + 1, "what was refused left nothing behind"


def test_files_that_settings_name_count_by_their_content(tmp_path):
    a, words = write(tmp_path / "a.txt", LINES), write(tmp_path / "words.txt", ["fox"])
    held = write(tmp_path / "held.txt", LINES[:1])
    values = {"filters": {"word_lists": [str(words)]}, "evaluation": [{"path": str(held)}]}
    first, _ = ingest.run(context(tmp_path, a, **values))
    assert first.require().summary["rejected"]["word_list"] == 12
    write(words, ["owl"])
    second, skipped = ingest.run(context(tmp_path, a, **values))
    assert not skipped and second.fingerprint != first.fingerprint
    write(held, LINES[1:2])
    third, skipped = ingest.run(context(tmp_path, a, **values))
    assert not skipped and third.fingerprint != second.fingerprint


def test_an_edited_function_judges_anew(tmp_path, monkeypatch):
    a = write(tmp_path / "a.txt", LINES)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for number, word in enumerate(("fox", "owl")):
        # The next process's import, which finds the edited file.
        importlib.invalidate_caches()
        sys.modules.pop("rule_of_mine", None)
        linecache.clearcache()
        (tmp_path / "rule_of_mine.py").write_text(f"def f(texts):\n    return [float({word!r} in t) for t in texts]\n")
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        values = {"filters": {"classifiers": [{"name": "mine", "id": "rule_of_mine:f"}]}}
        output, skipped = ingest.run(context(tmp_path, a, **values))
        assert not skipped, number
        found.append([text for text in output.read("prompts").column("text").to_pylist() if word in text])
    assert found == [[], []]
    assert ingest.run(context(tmp_path, a, **values))[1], "unchanged, it is there"


def test_two_sources_of_one_name_need_one_weight(tmp_path):
    a = write(tmp_path / "a.txt", LINES)
    with pytest.raises(UserError, match="different weights"):
        ingest.run(context(tmp_path, {"path": str(a)}, {"path": str(a), "weight": 0.5}))


def test_s3_and_patterns_on_it(tmp_path, s3_server):
    fs = fsspec.filesystem("s3")
    fs.mkdir("prompts-bucket")
    for name in ("a.txt", "b.txt", "c.csv"):
        fs.pipe_file(f"prompts-bucket/in/{name}", f"a prompt of {name}\n".encode())
    output, _ = ingest.run(context(tmp_path, "s3://prompts-bucket/in/*.txt"))
    assert output.read("prompts").column("text").to_pylist() == ["a prompt of a.txt", "a prompt of b.txt"]


def test_http(tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    write(tmp_path / "a.txt", LINES)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/a.txt?sig=secret"
        assert [r.text for r in read_source(Source(path=url))] == LINES
        assert source_hash(Source(path=url)) == source_hash(Source(path=str(tmp_path / "a.txt")))
        with pytest.raises(UserError, match="no such file"):
            list(read_source(Source(path=url.replace("a.txt", "none.txt"))))
        output, _ = ingest.run(context(tmp_path / "store", url))
        assert b"secret" not in output.read_file("recipe.yaml")
    finally:
        server.shutdown()


@pytest.fixture
def dataset(tmp_path) -> Path:
    """A folder in the layout of a Hub dataset, with pictures that must not be read."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    pq.write_table(pa.table({"prompt": LINES, "tag": ["x"] * len(LINES), "image": [b"no picture"] * len(LINES)}),
                   folder / "train-00000.parquet")  # fmt: skip
    pq.write_table(pa.table({"prompt": ["held out"]}), folder / "test-00000.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: train-*}\n"
        "- config_name: held\n  data_files:\n  - {split: test, path: test-*}\n---\n"
    )
    return folder


def test_hub_datasets_are_streamed(tmp_path, dataset):
    source = Source(path=f"hub:{dataset}")
    found = list(read_source(source))
    assert [r.text for r in found] == LINES and {r.kind for r in found} == {"x"}
    assert len(list(read_source(source.model_copy(update={"limit": 3})))) == 3
    held = Source(path=f"hub:{dataset}", config="held", part="test")
    assert [r.text for r in read_source(held)] == ["held out"]
    assert source_hash(held) != source_hash(source)
    output, _ = ingest.run(context(tmp_path, f"hub:{dataset}"))
    assert output.require().summary["sources"][0]["source"] == "dataset"
    for wrong, says in (({"part": "none"}, "datasets"), ({"config": "none"}, "datasets"), ({"text": "no"}, "column")):
        with pytest.raises(UserError, match=says):
            list(read_source(Source(path=f"hub:{dataset}", **wrong)))
    with pytest.raises(UserError, match=r"switched off|neither|cannot"):
        source_hash(Source(path="hub:owner/dataset"))


def test_prompts_alone_need_no_models_libraries(tmp_path):
    source = write(tmp_path / "a.txt", LINES)
    command = ["-m", "pahi.cli", "ingest", "--prompts", str(source), "--root", str(tmp_path / "store"), "--json"]
    done = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert json.loads(done.stdout)["summary"]["prompts"] == len(LINES)
    assert {"pahi.stages.ingest", "pahi.prompts.near", "rensa"} <= imported
    assert not imported & {"torch", "transformers", "diffusers", "datasets", "duckdb", "prefect"}
