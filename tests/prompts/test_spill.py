"""What does not fit into memory goes to temporary files, and comes back the same."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from test_ingest import run
from test_near import corpus

from pahi.prompts import Row, spill
from pahi.prompts.near import Signatures
from pahi.prompts.spill import Flat, Rows

SCHEMA = pa.schema([("n", pa.int64()), ("words", pa.list_(pa.string()))])


@pytest.mark.parametrize("memory", [0, 3000, 1 << 30])
def test_rows_and_numbers_come_back_in_their_order(monkeypatch, memory):
    monkeypatch.setattr(spill, "MEMORY", memory)
    monkeypatch.setattr(spill, "BATCH", 7)
    values = [(i, ["a"] * (i % 3)) for i in range(100)]
    rows, flat = Rows(SCHEMA), Flat(np.uint32)
    for n, words in values[:50]:
        rows.add(n, words)
    rows.extend(pa.RecordBatch.from_pylist([dict(zip(SCHEMA.names, v, strict=True)) for v in values[50:]], SCHEMA))
    for start in range(0, 1000, 10):
        flat.add(np.arange(start, start + 10))
    assert [tuple(row.values()) for batch in rows.batches() for row in batch.to_pylist()] == values
    assert [tuple(row.values()) for row in rows.table().to_pylist()] == values and rows.length == 100
    assert flat.array().tolist() == list(range(1000)) and flat.array().dtype == np.uint32
    assert Rows(SCHEMA).table().equals(SCHEMA.empty_table()) and len(Flat(np.int64).array()) == 0


@pytest.mark.parametrize("mode", ["ignore", "keep", "drop"])
def test_memory_changes_nothing_of_what_comes_out(monkeypatch, tmp_path, mode):
    texts = corpus(5)
    rows = [Row(i, f" {text}", kind="k", split="test" if i % 9 == 0 else None) for i, text in enumerate([*texts, ""])]
    values = {"near_duplicates": mode, "filters": {"exclude": ["lamp"]}, "evaluation": texts[3:5]}
    expected = run(*rows, **values)
    monkeypatch.setattr(spill, "MEMORY", 0)
    monkeypatch.setattr(spill, "BATCH", 50)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run(*rows, **values) == expected
    assert len(expected[0]) > 50 and len(expected[1]) > 10 and not list(tmp_path.iterdir())


def test_signatures_on_disk_are_those_in_memory(monkeypatch):
    texts = corpus(6)
    inside = Signatures(texts, 0.7)
    monkeypatch.setattr(spill, "MEMORY", 0)
    outside = Signatures(iter(texts), 0.7)
    assert len(outside) == len(texts) and (outside.values == inside.values).all()
    every = np.arange(len(texts))
    pairs = inside.pairs(every)
    assert len(pairs[0]) > 20
    assert all((a == b).all() for a, b in zip(pairs, outside.pairs(every), strict=True))


MEASURED = """
import sys, threading, time
from pahi.prompts import Row, ingest, ingest_rows, spill
from pahi.settings import Ingest, Source

spill.MEMORY = int(sys.argv[1])
spill.BATCH = ingest.BATCH = 200
most, done = 0, False

def held():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) / 1024

def watch():
    global most
    while not done:
        most = max(most, held())
        time.sleep(0.002)

def rows():
    for i in range(12_000):
        yield "s", Row(i, f"{i:05d} fox " * 800)

settings = Ingest(sources=[Source(path="a")], near_duplicates="ignore", max_characters=10_000)
ingest_rows([("s", Row(1, "a fox"))], settings)  # what the first call alone takes
before = held()
threading.Thread(target=watch).start()
found = ingest_rows(rows(), settings)
done = True
assert len(found.prompts) == 12_000 and found.prompts.column("text")[-1].as_py().startswith("11999 fox")
print(most - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux says of a process's memory")
def test_what_a_million_prompts_need_is_not_their_texts():
    """96 MB of texts, which the result has twice: as they were, and cleaned."""
    grown = {}
    for memory in (1 << 40, 1 << 20):
        command = [sys.executable, "-c", MEASURED, str(memory)]
        grown[memory] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown[1 << 40] > 180, grown
    assert grown[1 << 20] < 90, grown
