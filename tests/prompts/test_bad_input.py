"""Files as the world has them: each ends in rows and rejects that add up, or in one line that says where."""

import bz2
import csv
import gzip
import json
import lzma
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pahi.errors import UserError
from pahi.prompts import expand, ingest_rows, read_source, source_hash, source_name
from pahi.settings import Ingest, Source

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "prompts"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real prompt files in ../shared/prompts")


def rows(path, most=200, **values):
    return list(read_source(Source(path=str(path), **values), most))


def refusal(path, most=200, **values):
    with pytest.raises(UserError) as caught:
        list(read_source(Source(path=str(path), **values), most))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@shared
def test_the_malformed_csv_is_refused_with_line_and_column_or_read_whole_by_a_pattern():
    path = SHARED / "hpd/HPD_prompt.csv"
    assert "line 2, column 3" in refusal(path)
    # Number and prompt; a fully quoted prompt and the empty columns behind it without their quotes and commas.
    found = rows(path, format="txt", pattern=r'^\d+,"?(?P<text>.*?)"?,*$')
    assert [r.error for r in found] == ["does not match the source's pattern"] + [None] * 400
    assert found[2].text.endswith("Nixeu, Ian Sprigger, Wlop, and Krenz Cushart.")
    done = ingest_rows((("hpd", row) for row in found), Ingest(sources=[Source(path=str(path))]))
    assert len(done.prompts) + len(done.rejects) == 401


def test_a_line_of_ten_megabytes_is_one_reject(tmp_path):
    long = "word " * 2_000_000
    contents = {
        "a.txt": f"a fox\n{long}\nan owl\n",
        "a.jsonl": f'"a fox"\n{json.dumps(long)}\n"an owl"\n',
        "a.csv": f'prompt\na fox\n"{long}"\nan owl\n',
        "a.tsv": f"prompt\na fox\n{long}\nan owl\n",
        "a.json": json.dumps(["a fox", long, "an owl"]),
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        done = ingest_rows((("s", row) for row in rows(tmp_path / name)), Ingest(sources=[Source(path=name)]))
        assert done.prompts.column("text").to_pylist() == ["a fox", "an owl"], name
        [reject] = done.rejects.to_pylist()
        assert reject["reason"] == "too_long" and reject["row"] == 2 and len(reject["text"]) == 2000


@pytest.mark.parametrize("suffix", ["txt", "csv", "tsv", "jsonl", "jsonl.gz"])
def test_a_file_may_be_larger_than_memory(tmp_path, suffix):
    texts = [f"{i} " + "fox " * 1000 for i in range(4000)]
    lines = [json.dumps({"prompt": text}) for text in texts] if "jsonl" in suffix else ["prompt", *texts]
    content = "\n".join(lines).encode()
    (tmp_path / f"a.{suffix}").write_bytes(gzip.compress(content, 1) if suffix.endswith("gz") else content)
    del content, lines
    tracemalloc.start()
    found = sum(row.text.endswith("fox ") for row in read_source(Source(path=str(tmp_path / f"a.{suffix}")), 10_000))
    assert found == 4000 and tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


def test_a_line_without_end_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("pahi.prompts.formats.MAX_LINE", 200_000)
    (tmp_path / "a.txt").write_text("a fox\n" + "x" * 500_000 + "\nan owl\n" + "y" * 300_000)
    found = rows(tmp_path / "a.txt")
    assert [(r.row, len(r.text), (r.error or "")[:6]) for r in found] == [
        (1, 5, ""), (2, 2000, "a line"), (3, 6, ""), (4, 2000, "a line")
    ]  # fmt: skip
    (tmp_path / "a.csv").write_text("prompt\na fox\n" + "x" * 500_000)
    assert "line 3: a line of more than" in refusal(tmp_path / "a.csv")


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_decompression_bombs_are_bounded(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("pahi.prompts.location.FREE", 1 << 20)
    compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}[suffix]
    path = tmp_path / f"a.json.{suffix}"
    path.write_bytes(compress(b'["' + b"a" * (20 << 20) + b'"]'))
    tracemalloc.start()
    assert "decompression bomb" in refusal(path, 200)
    assert tracemalloc.get_traced_memory()[1] < 12 << 20
    tracemalloc.stop()
    assert len(rows(path, most=1_000_000)) == 1, "where someone says so, it is read"


def zstd(data):
    return pa.Codec("zstd").compress(data, asbytes=True)


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_compressed_files_are_read_and_damaged_ones_named(tmp_path, suffix):
    compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}[suffix]
    path = tmp_path / f"a.csv.{suffix}"
    data = compress(b"prompt\n" + b"".join(b"fox %d\n" % i for i in range(500)))
    path.write_bytes(data)
    assert [r.text for r in rows(path)] == [f"fox {i}" for i in range(500)]
    assert source_name(Source(path=str(path))) == "a"
    path.write_bytes(b"this is not compressed at all")
    assert f"a.csv.{suffix}" in refusal(path)


def test_a_key_twice_in_an_object_is_no_silent_loss(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "text": "b"}\n{"text": "c"}\n')
    found = rows(tmp_path / "a.jsonl")
    assert [(r.error or r.text) for r in found] == ["key 'text' twice in an object", "c"]
    (tmp_path / "a.json").write_text('[{"text": "a", "text": "b"}]')
    assert "key 'text' twice" in refusal(tmp_path / "a.json")


@pytest.mark.parametrize("bomb", ["[" * 100_000, '{"text":' * 100_000, "1" * 100_000, "[" * 9999 + "]" * 9999])
def test_nested_json_is_one_reject(tmp_path, bomb):
    (tmp_path / "a.jsonl").write_text(f'"a fox"\n{bomb}\n"an owl"\n')
    assert [bool(r.error) for r in rows(tmp_path / "a.jsonl")] == [False, True, False]


def test_encodings(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("ein Fuß\n".encode("latin-1") + b"a fox\n")
    assert [r.error for r in rows(path)] == ["not utf-8", None]
    assert [r.text for r in rows(path, encoding="latin-1")] == ["ein Fuß", "a fox"]
    path.write_bytes("ein Fuß\na fox\n".encode("utf-16"))
    assert "encoding" in refusal(path)
    assert [r.text for r in rows(path, encoding="UTF-16")] == ["ein Fuß", "a fox"]
    path.write_bytes("ein Fuß\na fox".encode("utf-16")[:-1])
    assert "not utf-16" in refusal(path, encoding="utf-16")
    with pytest.raises(ValueError, match="no encoding is called"):
        Source(path="a.txt", encoding="utf-99")


def test_duplicate_ids_and_mixed_types(tmp_path):
    values = [{"id": 1, "text": "a"}, {"id": 1, "text": "b"}, {"text": 3}, ["x"], None, {"text": {"a": 1}}, "c"]
    (tmp_path / "a.json").write_text(json.dumps(values))
    found = rows(tmp_path / "a.json")
    assert [r.text for r in found if not r.error] == ["a", "b", "c"] and len(found) == 7
    pq.write_table(pa.table({"text": [1.5, None]}), tmp_path / "a.parquet")
    assert {r.error for r in rows(tmp_path / "a.parquet")} == {"no text"}


@given(st.binary(max_size=200), st.sampled_from(["txt", "csv", "tsv", "json", "jsonl", "parquet", "csv.gz", "txt.zst"]))
@settings(max_examples=200)
def test_arbitrary_bytes_give_rows_or_one_line(tmp_path_factory, data, suffix):
    path = tmp_path_factory.mktemp("bytes") / f"a.{suffix}"
    path.write_bytes(data)
    try:
        found = rows(path)
    except UserError as error:
        assert "\n" not in str(error) and "a." in str(error)
        return
    done = ingest_rows((("s", row) for row in found), Ingest(sources=[Source(path="a")]))
    assert len(done.prompts) + len(done.rejects) == len(found)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=8))
def test_no_cell_of_a_csv_is_lost(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["prompt", "n"], *([t, i] for i, t in enumerate(texts))])
    try:
        found = rows(path)
    except UserError as error:  # a NUL makes a file binary
        assert "binary" in str(error) and "\0" in "".join(texts)
        return
    assert [r.text for r in found] == texts


def test_patterns_of_paths(tmp_path):
    for name in ("b.txt", "a.txt", "c.csv"):
        (tmp_path / name).write_text(f"prompt\n{name}\n")
    found = expand(Source(path=str(tmp_path / "*.txt")))
    assert [source_name(s) for s in found] == ["a", "b"]
    assert [s.name for s in expand(Source(path=f"{tmp_path}/?.csv", name="mine"))] == ["mine/c.csv"]
    with pytest.raises(UserError, match="no file matches"):
        expand(Source(path=str(tmp_path / "*.tsv")))
    (tmp_path / "odd[1].txt").write_text("a fox")
    assert [r.text for r in rows(expand(Source(path=str(tmp_path / "odd[1].txt")))[0].path)] == ["a fox"]


def test_hashes_tell_readings_apart(tmp_path):
    (tmp_path / "a.txt").write_text("prompt\n")
    path = str(tmp_path / "a.txt")
    readings = [
        {}, {"encoding": "latin-1"}, {"pattern": "(?P<text>.*)"}, {"format": "csv"}, {"weight": 0.5}, {"limit": 1}
    ]  # fmt: skip
    assert len({source_hash(Source(path=path, **r)) for r in readings}) == len(readings)
