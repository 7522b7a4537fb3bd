"""What a person sees of a run, and that it cannot hurt the run."""

import base64
import io
import re

from PIL import Image

from flows import artifacts
from pahi.reports.sheet import data_uri
from pahi.tables import markdown

RESULTS = [
    {"stage": "ingest", "summary": {"rows_in": 200, "prompts": 150, "rejected": {"empty": 50}}},
    {"stage": "cache", "summary": {"prompts": 100}},
    {"stage": "generate", "summary": {"prompts": 150, "images": 300, "failed": 0}},
    {"stage": "curate", "summary": {"images_in": 300, "kept": 240}},
    {"stage": "report", "url": "/somewhere/report.html"},
]


def test_artifact_keys_are_what_prefect_takes():
    assert artifacts.artifact_key("My.data_set", "train", "progress") == "my-data-set-train-progress"


def test_the_funnel_leads_from_rows_to_pictures():
    rows = artifacts.funnel_rows(RESULTS)
    assert [row["count"] for row in rows] == [200, 150, 300, 240]
    assert [row["of the step before"] for row in rows] == ["-", "75.0%", "200.0%", "80.0%"]
    assert "| pictures published | 240 | 80.0% |" in markdown(rows)


def test_a_funnel_of_nothing_divides_by_nothing():
    rows = artifacts.funnel_rows([{"stage": "ingest", "summary": {"rows_in": 0, "prompts": 0}}])
    assert [row["of the step before"] for row in rows] == ["-", "-"]
    assert artifacts.funnel_rows([]) == []


def test_progress_reaches_the_listener_and_throttles_the_artifact(monkeypatch):
    made, updated, heard = [], [], []
    monkeypatch.setattr(artifacts, "create_progress_artifact", lambda percent, **_: made.append(percent) or len(made))
    monkeypatch.setattr(artifacts, "update_progress_artifact", lambda _id, **values: updated.append(values["progress"]))
    with artifacts.listening(lambda *step: heard.append(step)):
        progress = artifacts.Progress("demo")
        for done in range(101):
            progress("cache", done, 100, "")
        progress.close()
    assert len(heard) == 101
    assert made == [0.0]
    assert updated == [100.0, 100.0]  # the last step, and the end


def test_the_artifact_says_what_remains(monkeypatch):
    said, now = [], [0.0]
    monkeypatch.setattr(artifacts.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(artifacts, "create_progress_artifact", lambda percent, **v: said.append(v["description"]) or 1)
    monkeypatch.setattr(artifacts, "update_progress_artifact", lambda _id, **v: said.append(v["description"]))
    progress = artifacts.Progress("demo")
    progress("train", 1, 100, "pick_alpha +0.10")
    now[0] = 20.0
    progress("train", 11, 100, "pick_alpha +0.20")
    assert said == [
        "train of demo: 1 of 100, pick_alpha +0.10",
        "train of demo: 11 of 100, pick_alpha +0.20, 30.0/min, 2:58 left",
    ]


def test_an_artifact_that_cannot_be_made_is_a_warning(monkeypatch):
    def refuse(*_args, **_values):
        raise ConnectionError("the server is away")

    for name in ("create_table_artifact", "create_link_artifact", "create_markdown_artifact"):
        monkeypatch.setattr(artifacts, name, refuse)
    warned = []
    log = type("Log", (), {"warning": staticmethod(lambda text, *values: warned.append(text % values))})
    monkeypatch.setattr(artifacts, "get_run_logger", lambda: log)
    artifacts.show_stage("demo", {**RESULTS[3], "url": "s3://bucket/demo"}, "finished")
    artifacts.show_report("demo", "/somewhere/report.html", RESULTS)
    assert len(warned) == 4
    assert all("the server is away" in line for line in warned)


def test_the_report_shows_samples_small_enough_for_the_server(monkeypatch):
    written = {}
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda **_: None)
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lambda **values: written.update(values))
    sink = io.BytesIO()
    Image.effect_noise((1026, 600), 60).save(sink, format="png")
    artifacts.show_report("demo", "/somewhere/report.html", RESULTS, data_uri(sink.getvalue()))
    (content,) = re.findall(r"!\[samples\]\(data:image/webp;base64,([^)]+)\)", written["markdown"])
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (720, 421)
    assert len(written["markdown"]) < 400_000, "even noise, which no format makes small"
    artifacts.show_report("demo", "/somewhere/report.html", RESULTS)
    assert "![" not in written["markdown"]


def test_links_are_addresses():
    assert artifacts.link("/data/demo") == "file:///data/demo"
    assert artifacts.link("s3://bucket/demo") == "s3://bucket/demo"
