import gzip
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pahi.errors import UserError
from pahi.prompts import read_source, source_hash, source_name
from pahi.prompts.formats import read_delimited
from pahi.settings import Source

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "prompts"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real prompt files in ../shared/prompts")


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def rows(path, **columns):
    return list(read_source(Source(path=str(path), **columns)))


def refusal(path, **columns):
    with pytest.raises(UserError) as caught:
        rows(path, **columns)
    message = str(caught.value)
    assert "\n" not in message
    assert Path(path).name.split("?")[0] in message
    return message


FOX = [(1, "a red fox", None), (2, "ein Fuß", None)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "a red fox\nein Fuß\n"),
        ("a.txt", "\ufeffa red fox\r\nein Fuß"),
        ("a.txt", "a red fox\rein Fuß\r"),
        ("A.CSV", "\ufeffid,Prompt\r\n1,a red fox\r\n2,ein Fuß\r\n"),
        ("a.tsv", "id\tCAPTION\n1\ta red fox\n2\tein Fuß\n"),
        ("a.json", '\ufeff["a red fox", "ein Fuß"]'),
        ("a.json", '[{"text": "a red fox"}, {"text": "ein Fu\\u00df", "more": 1}]'),
        ("a.jsonl", '{"text": "a red fox"}\n"ein Fuß"\n'),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_every_text_format_gives_the_same_rows(write, name, content, zipped):
    path = write(name + ".gz", gzip.compress(content.encode())) if zipped else write(name, content)
    assert [(r.row, r.text, r.error) for r in rows(path)] == FOX


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(tmp_path, kind):
    values = pa.array(["a red fox", "ein Fuß", None], pa.string()).cast(kind)
    table = pa.table({"id": [1, 2, 3], "Text": values, "tag": pa.array(["x", None, "y"])})
    pq.write_table(table, tmp_path / "a.parquet")
    found = rows(tmp_path / "a.parquet")
    assert [(r.row, r.text, r.error) for r in found] == [*FOX, (3, None, "no text")]
    assert [r.kind for r in found] == ["x", None, "y"]


def test_parquet_does_not_promise_utf8(tmp_path):
    bad = pa.array([b"a \xff fox", b"fine"]).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "a.parquet")
    assert [(r.text, r.error) for r in rows(tmp_path / "a.parquet")] == [("a \ufffd fox", "not utf-8"), ("fine", None)]


def test_urls_and_packages(tmp_path, monkeypatch):
    with fsspec.open("memory://sources/a.txt.gz", "wb") as file:
        file.write(gzip.compress(b"a red fox\n"))
    assert [r.text for r in rows("memory://sources/a.txt.gz")] == ["a red fox"]
    assert "no such file" in refusal("memory://sources/none.txt")
    (tmp_path / "somewhere").mkdir()
    (tmp_path / "somewhere" / "__init__.py").touch()
    (tmp_path / "somewhere" / "a.txt").write_text("a red fox")
    monkeypatch.syspath_prepend(tmp_path)
    assert [r.text for r in rows("pkg:somewhere/a.txt")] == ["a red fox"]
    assert "no package 'nowhere_at_all'" in refusal("pkg:nowhere_at_all/a.txt")


def test_messages_carry_no_credentials():
    message = refusal("nosuchprotocol://host/a.csv?signature=hidden")
    assert "hidden" not in message


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "", "is empty"),
        *[(f"a.{suffix}", "\ufeff \n\n", "is empty") for suffix in ("txt", "csv", "tsv", "json", "jsonl")],
        *[(f"a.{suffix}", "", "is empty") for suffix in ("csv", "tsv", "json", "jsonl")],
        ("a.txt.gz", gzip.compress(b""), "is empty"),
        ("a.csv", 'id,prompt\n1,a fox\n2,"a ' + "red " * 40_000 + "\n", "line 3: a quote is never closed"),
        ("a.csv", "prompt,kind\n", "no rows"),
        ("a.json", "[]", "empty array"),
        ("a.parquet", b"", "not a Parquet file"),
        ("a.parquet", b"PAR1 is how it starts, and then it does not go on", "not a Parquet file"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "is binary"),
        ("a.txt", "a red fox".encode("utf-16"), "is binary"),
        ("a.json", "[1,\n2,\n", "line 3, column 1: not JSON"),
        ("a.json", '{"text": "a"}\n{"text": "b"}\n', ".jsonl"),
        ("a.json", b'["a",\n"\xff"]', "line 2: not utf-8"),
        ("a.json", '{"text": "a"}', "expected an array"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.jsonl", "[\n{\n", "no line of it is JSON"),
        ("a.xlsx", "?", "unknown kind of file"),
        ("prompts", "a red fox", "unknown kind of file"),
        ("a.parquet.gz", "?", "unknown kind of file"),
        ("a.csv.gz", "prompt\na", "damaged compressed file"),
        ("a.txt.gz", gzip.compress(b"a red fox, " * 99)[:-9], "damaged compressed file"),
        ("a.csv", "id,words\n1,a red fox\n", "'id', 'words'"),
        ("a.jsonl", '{"words": "a red fox"}\n', "text: COLUMN"),
        ("a.csv", "prompt,Prompt\na,b\n", "2 columns called 'prompt'"),
    ],
)
def test_mistakes_are_one_line_that_names_the_file(write, name, content, says):
    assert says in refusal(write(name, content))


def test_missing_file_and_directory(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.csv")
    assert "no such file" in refusal(tmp_path / "none")
    for name in ("prompts", "prompts.csv"):
        (tmp_path / name).mkdir()
        assert "is a directory" in refusal(tmp_path / name)
    assert "pkg" in refusal("pkg:pahi.tiny/none.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.csv", "id,prompt\n1,a fox\n2,a red, red fox\n", 3),
        ("a.csv", "id,prompt\n1,a fox\n2\n", 3),
        ("a.csv", 'id,prompt\n1,"a\nfox"\n2,"a red fox\n3,another\n', 4),
        ("a.csv", 'id,prompt\n1,a fox\n2,"a "red" fox"\n', 3),
        ("a.tsv", "id\tprompt\n1\ta fox\n2\ta\tfox\n", 3),
        ("a.tsv", "id\tprompt\n1\ta fox\n2\n", 3),
    ],
)
def test_a_record_that_does_not_fit_its_header_ends_in_its_line(write, name, content, line):
    message = refusal(write(name, content))
    assert f"line {line}," in message or f"line {line}:" in message
    assert ("quote every field" if name.endswith("csv") else "tab") in message


def test_quotes_in_a_tsv_are_characters(write):
    path = write("a.tsv", 'prompt\tid\n"Fly" on a wall\t1\nan "open quote\t2\n"\t3\n')
    assert [r.text for r in rows(path)] == ['"Fly" on a wall', 'an "open quote', '"']


def test_a_row_that_cannot_be_used_says_why(write):
    assert [(r.row, r.text, r.error) for r in rows(write("a.txt", b"a\n\n  \n\xff fox\nb"))] == [
        (1, "a", None), (2, "", "empty"), (3, "  ", "empty"), (4, "\ufffd fox", "not utf-8"), (5, "b", None)
    ]  # fmt: skip
    lines = [b'{"text": "a"}', b'{"text": "b', b"", b'{"text": null}', b'{"text": 3}', b'{"other": "c"}', b"7"]
    lines += [b'{"text": "\xff"}', b'{"text": "\\ud83d"}', b'{"text": ""}']
    found = rows(write("a.jsonl", b"\n".join(lines)))
    assert [r.row for r in found] == list(range(1, 11))
    assert [r.error for r in found] == [
        None, "not JSON", "empty", "no text", "no text", "no text", "no text", "not utf-8", "not utf-8", "empty"
    ]  # fmt: skip
    found = rows(write("a.csv", b"prompt,id\na,1\n\n,2\n\xff,3\nb,\xff\nc,5\n"))
    assert [r.row for r in found] == [1, 2, 3, 4, 5, 6]
    assert [r.error for r in found] == [None, "empty", "empty", "not utf-8", "not utf-8", None]
    assert [r.error for r in rows(write("a.json", '["a", null, 3, {}, {"text": ["b"]}]'))] == [None, *["no text"] * 4]
    for row in found:
        (row.text or "").encode()


def test_columns_are_mapped(write):
    path = write("a.csv", "words,prompt,Category,scene,part\na,b,c,d,test\n")
    row = rows(path)[0]
    assert (row.text, row.kind, row.group, row.split) == ("b", "c", None, None)
    row = rows(path, text="words", kind="SCENE", group="scene", split="part")[0]
    assert (row.text, row.kind, row.group, row.split) == ("a", "d", "d", "test")
    for role in ("text", "kind", "group", "split"):
        assert f"no column 'none', which the source names as its {role}" in refusal(path, **{role: "none"})
        assert "no column" in refusal(write("a.txt", "a"), **{role: "none"})
        assert "no column" in refusal(write("a.json", '["a"]'), **{role: "none"})


def test_a_key_that_only_later_objects_have_is_a_column(write):
    lines = [{"prompt": "a"}, {"prompt": "b", "tag": 3, "set": None}, {"text": "other", "prompt": "c", "tag": ["d"]}]
    found = rows(write("a.jsonl", "\n".join(map(json.dumps, lines))), split="set")
    assert [(r.text, r.kind, r.split) for r in found] == [("a", None, None), ("b", "3", None), ("c", '["d"]', None)]


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.json", "a.jsonl", "a.parquet"])
def test_limit(tmp_path, name):
    texts = ["prompt", *"abcdef"]
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.table({"prompt": texts[1:]}), path)
    elif name == "a.json":
        path.write_text(json.dumps(texts[1:]))
    elif name == "a.jsonl":
        path.write_text("\n".join(map(json.dumps, texts[1:])))
    else:
        path.write_text("\n".join(texts if name != "a.txt" else texts[1:]))
    assert [r.text for r in rows(path)] == list("abcdef")
    assert [r.text for r in rows(path, limit=2)] == ["a", "b"]


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
def test_what_a_csv_writer_writes_is_read_back(tmp_path_factory, records):
    import csv

    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("prompt", "kind"), *records])
    assert [(r.text, r.kind) for r in read_delimited(Source(path=str(path)), "csv")] == [
        (text, kind.strip()) for text, kind in records
    ]


def test_hash_is_of_content_not_place(write, tmp_path):
    path = write("a.csv", "prompt,b\nx,y\n")
    first = source_hash(Source(path=path))
    (tmp_path / "other").mkdir()
    assert first == source_hash(Source(path=write("other/b.csv", "prompt,b\nx,y\n"), name="else"))
    others = [Source(path=path, **{role: "b"}) for role in ("text", "kind", "group", "split")]
    others += [Source(path=path, limit=1), Source(path=write("c.csv", "prompt,b\nx,z\n"))]
    others += [Source(path=write("a.txt", "prompt,b\nx,y\n"))]
    assert len({first, *map(source_hash, others)}) == len(others) + 1
    with pytest.raises(UserError, match="no such file"):
        source_hash(Source(path=str(tmp_path / "none.csv")))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("folder/prompts.v2.csv.gz", "prompts.v2"),
        ("https://user@host/a/b.jsonl?token=x.y", "b"),
        ("pkg:pahi.tiny/prompts.jsonl", "prompts"),
    ],
)
def test_name_is_the_stem(path, name):
    assert source_name(Source(path=path)) == name
    assert source_name(Source(path=path, name="mine")) == "mine"


@shared
def test_real_files():
    parti = rows(SHARED / "partiprompts/PartiPrompts.tsv")
    assert len(parti) == 1632 and all(r.error is None and r.kind for r in parti)
    assert sum('"' in (r.text or "") for r in parti) > 0
    assert len(rows(SHARED / "diffusiondb/refl_data.json")) == 10_000
    geneval = rows(SHARED / "geneval/evaluation_metadata.jsonl")
    assert len(geneval) == 553 and {r.kind for r in geneval} >= {"single_object", "counting"}


@shared
def test_a_real_malformed_csv_names_its_line():
    assert "line 2, column 3: 2 fields where the header has 4, so that 'caption_zh' is missing" in refusal(
        SHARED / "hpd/HPD_prompt.csv"
    )
