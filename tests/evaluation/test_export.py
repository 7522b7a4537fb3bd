"""The folders that GenEval's and T2I-CompBench's evaluators read, and what they write: as those programs do it."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pahi.artifacts import Output, Store
from pahi.errors import UserError
from pahi.evaluation.export import Exporter, benchmarks
from pahi.prompts.cleaning import clean, prompt_id
from pahi.settings import Evaluate, load_settings

LINES = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "counting", "include": [{"class": "cup", "count": 2}], "prompt": "a photo of two cups"},
    {"tag": "counting", "include": [{"class": "cat", "count": 3}], "prompt": "a photo of three  cats"},
    {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}], "prompt": "a photo of a red car"},
]


def row(text: str) -> dict[str, Any]:
    text = clean(text)[0]
    return {"prompt_id": prompt_id(text), "text": text}


@pytest.fixture
def metadata(tmp_path: Path) -> str:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return str(path)


def write(root: Path, exporter: Exporter, rows: list[dict[str, Any]], arms: list[str], seeds: int) -> Output:
    output = Output(Store(str(root)), "demo", "evaluate", "0123")
    for arm in arms:
        for r in rows:
            pictures = [f"{arm}:{r['text']}:{seed}".encode() for seed in range(seeds)]
            for name, body in exporter.files(r, arm, pictures).items():
                output.put_file(name, body)
    return output


def geneval_reads(folder: Path) -> list[tuple[dict[str, Any], Path]]:
    """What evaluate_images.py finds in its image folder."""
    found = []
    for name in os.listdir(folder):
        if not (folder / name).is_dir() or not name.isdigit():
            continue
        with open(folder / name / "metadata.jsonl") as file:
            line = json.load(file)
        for image in os.listdir(folder / name / "samples"):
            if re.match(r"\d+\.png", image):
                found.append((line, folder / name / "samples" / image))
    return found


def test_genevals_evaluator_finds_every_picture_with_its_line(tmp_path: Path, metadata: str) -> None:
    s = Evaluate(export=["geneval"], geneval_metadata=metadata, seeds=3)
    rows = [row(LINES[2]["prompt"]), row("not of GenEval"), row(LINES[0]["prompt"])]
    output = write(tmp_path / "store", Exporter(s, rows), rows, ["standard", "pahi"], 3)
    folder = Path(output.url) / "export/geneval/pahi"
    read = geneval_reads(folder)
    assert sorted(path.relative_to(folder).parts[0] for _, path in read) == ["00000"] * 3 + ["00002"] * 3
    for line, path in read:
        assert line in (LINES[0], LINES[2])
        assert path.read_bytes().decode() == f"pahi:{clean(line['prompt'])[0]}:{int(path.stem)}"

    # Its results, as pandas writes them there, and its summary_scores.py's arithmetic.
    results = [
        {"filename": str(path), "tag": line["tag"], "prompt": line["prompt"], "metadata": json.dumps(line),
         "correct": line["tag"] == "counting" or path.stem == "0000", "reason": "", "details": "{}"}
        for line, path in read
    ]  # fmt: skip
    pd.DataFrame(results).to_json(folder / "results.jsonl", orient="records", lines=True)
    assert [line for line, _ in geneval_reads(folder)] == [line for line, _ in read], "results do not disturb a rerun"
    frame = pd.read_json(folder / "results.jsonl", orient="records", lines=True)
    theirs = np.mean([task["correct"].mean() for _, task in frame.groupby("tag", sort=False)])
    got = benchmarks(output, 3, 500)
    assert set(got) == {"pahi"}
    figure = got["pahi"]["geneval"]
    assert figure["uplift"] is None
    assert figure["value"] == pytest.approx(theirs) == pytest.approx(2 / 3)
    assert figure["tasks"] == {"single_object": pytest.approx(1 / 3), "counting": 1.0}
    assert figure["low"] <= figure["value"] <= figure["high"] and figure["images"] == 6

    # The standard arm's, of which half the pictures were judged: pairs are by prompt and seed.
    other = Path(output.url) / "export/geneval/standard"
    half = [{**r, "filename": r["filename"].replace("/pahi/", "/standard/"), "correct": False} for r in results[::2]]
    pd.DataFrame(half).to_json(other / "results.jsonl", orient="records", lines=True)
    both = benchmarks(output, 3, 500)
    gains: dict[str, list[float]] = {}
    for r in results[::2]:
        gains.setdefault(r["tag"], []).append(float(r["correct"]))
    assert both["pahi"]["geneval"]["uplift"]["value"] == pytest.approx(np.mean([np.mean(g) for g in gains.values()]))
    assert both["standard"]["geneval"]["uplift"] is None and both["standard"]["geneval"]["value"] == 0


def t2i_reads(folder: Path) -> list[tuple[str, str]]:
    """Prompt and file, in the order in which BLIP_vqa.py and CLIP_similarity.py number their answers."""
    names = sorted(os.listdir(folder / "samples"), key=lambda x: int(x.split("_")[-1].split(".")[0]))
    return [(name.split("_")[0], name) for name in names]


def test_t2i_compbenchs_evaluators_read_prompt_and_number(tmp_path: Path) -> None:
    s = Evaluate(export=["t2i-compbench"], seeds=2)
    rows = [row("a red book and a yellow vase."), row("snake_case"), row("this/that"), row("x" * 300), row("a cat")]
    output = write(tmp_path, Exporter(s, rows), rows, ["standard"], 2)
    folder = Path(output.url) / "export/t2i-compbench/standard"
    read = t2i_reads(folder)
    assert [prompt for prompt, _ in read] == ["a red book and a yellow vase."] * 2 + ["a cat"] * 2
    for position, (_, name) in enumerate(read):
        assert int(name.split("_")[1].split(".png")[0]) == position, "numbers and positions are the same to UniDet"

    answers = {"annotation_blip": ["0.5", "0.7000", "0.9", "0.1"], "labels/annotation_obj_detection_2d": [1, 0, 0, 0]}
    for name, values in answers.items():
        (folder / name).mkdir(parents=True)
        found = [{"question_id": i, "answer": a} for i, a in enumerate(values)]
        (folder / name / "vqa_result.json").write_text(json.dumps(found))
    (folder / "annotation1_blip/VQA/result").mkdir(parents=True)  # a step of BLIP_vqa.py's, no result
    (folder / "annotation1_blip/VQA/result/vqa_result.json").write_text(json.dumps([{"answer": 1}]))
    got = benchmarks(output, 2, 500)["standard"]
    assert {name: round(f["value"], 6) for name, f in got.items()} == {
        "t2i-compbench blip": 0.55,
        "t2i-compbench obj detection 2d": 0.25,
    }
    assert got["t2i-compbench blip"]["low"] == pytest.approx(0.5), "two pictures of a prompt are no two prompts"


def test_mistakes_are_one_line(tmp_path: Path, metadata: str) -> None:
    with pytest.raises(UserError, match=r"needs evaluate\.geneval_metadata"):
        load_settings(overrides=["evaluate.export=[geneval]"])
    s = Evaluate(export=["geneval"], geneval_metadata=metadata)
    with pytest.raises(UserError, match="none of the test prompts is in"):
        Exporter(s, [row("something else")])
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(LINES[0]) + "\n{\n")
    with pytest.raises(UserError, match=r"broken.jsonl, line 2"):
        Exporter(Evaluate(export=["geneval"], geneval_metadata=str(broken)), [row("x")])
    with pytest.raises(UserError, match="can be the name of a file"):
        Exporter(Evaluate(export=["t2i-compbench"]), [row("a_b")])
    output = Output(Store(str(tmp_path)), "demo", "evaluate", "4567")
    output.put_file("export/geneval/pahi/results.jsonl", b"<html>")
    with pytest.raises(UserError, match=r"results.jsonl: not what geneval's evaluator writes"):
        benchmarks(output, 4, 100)


def test_published_metadata_is_read(shared: Path) -> None:
    path = shared / "prompts/geneval/evaluation_metadata.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row(line["prompt"]) for line in lines]
    exporter = Exporter(Evaluate(export=["geneval"], geneval_metadata=str(path), seeds=2), rows)
    folders = {n.split("/")[3] for r in rows for n in exporter.files(r, "standard", [b"", b""])}
    assert folders == {f"{i:05d}" for i in range(len(lines))}
