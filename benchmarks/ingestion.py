"""Ingestion at scale: seconds, peak memory, and how many planted near-duplicates are found.

    python benchmarks/ingestion.py                         10^4, 10^5 and 10^6 prompts, each in a process of its own
    python benchmarks/ingestion.py --rows 10000            one size
    python benchmarks/ingestion.py --plot docs/ingestion.svg  and draws CPU seconds and memory against rows
    python benchmarks/ingestion.py --real ../shared/prompts   what is kept of real files, and why

The prompts are made from real ones (--prompts): fragments of two to five words from different prompts make a new one
that is near no other by construction. Of the rows, 15% repeat an earlier one in another spelling (white space, HTML
entities, full-width letters), 20% are an earlier one with one edit (a letter, a word gone, added or exchanged, two
words swapped, capitals and punctuation), 5% share half their fragments with an earlier one, which must not count as
near, and 2% are empty, too long or not UTF-8.

Side by side with datatrove over the same rows, in the same run (nothing else needs datatrove, so it gets an environment
of its own): the same cleaning and filters, then its exact duplicates, or its MinHash as it comes and with a shape for
texts as short as prompts. What each side does is said in `parts/datatrove_pipelines.py`.

    python -m venv /tmp/datatrove && /tmp/datatrove/bin/pip install datatrove tokenizers orjson regex "xxhash<4"
    python benchmarks/ingestion.py --rows 100000 --datatrove /tmp/datatrove/bin/python
"""

import argparse
import csv
import html
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from parts.loglog import panels
from parts.timing import peak_gb

from pahi.prompts import read_source
from pahi.settings import Source, load_settings

SIZES = (10_000, 100_000, 1_000_000)
# Bounds on two cores at a million rows: seconds and GB.
BOUNDS = {"ingestion": (40, 1.0), "with near-duplicates": (240, 3.0)}
# datatrove's pipelines, and which of ours each is compared with. MinHash: words a shingle, buckets, hashes a bucket.
DATATROVE = {
    "datatrove, exact duplicates": ("ingestion", ["exact"]),
    "datatrove, MinHash as it comes": ("with near-duplicates", ["minhash", "5", "14", "8"]),
    "datatrove, MinHash for prompts": ("with near-duplicates", ["minhash", "3", "25", "5"]),
}
FILES = ("partiprompts/PartiPrompts.tsv", "diffusiondb/refl_data.json", "geneval/evaluation_metadata.jsonl")
KINDS = NEW, REPEAT, EDIT, HALF, BROKEN = ("new", "repeat", "edit", "half", "broken")


# ------------------------------------------------------------------------------------------------------- the prompts


def fragments(folder: Path) -> list[str]:
    """Two to five words in a row of real prompts."""
    rng = random.Random(0)
    found = []
    for name in FILES:
        for row in read_source(Source(path=str(folder / name))):  # type: ignore[call-arg]
            words = (row.text or "").replace(",", " ").split()
            while len(words) >= 2:
                size = rng.randint(2, 5)
                found.append(" ".join(words[:size]))
                words = words[size:]
    return sorted(set(found))


def planted(count: int, pieces: list[str]) -> Iterator[tuple[str, str, int]]:
    """(text, what it is, number of the row whose cluster it belongs to) of `count` rows."""
    rng = random.Random(1)
    bases: list[tuple[int, list[str]]] = []
    for row in range(count):
        kind = rng.choices(KINDS, (58, 15, 20, 5, 2))[0] if bases else NEW
        if kind == BROKEN:
            yield rng.choice(["", "  ", "\udcff broken", "word " * 600]), kind, row
            continue
        if kind in (REPEAT, EDIT):
            origin, parts = rng.choice(bases)
            text = ", ".join(parts)
            yield (respelled if kind == REPEAT else edited)(text, rng), kind, origin
            continue
        parts = [rng.choice(pieces) for _ in range(rng.randint(4, 9))]
        if kind == HALF:
            other = rng.choice(bases)[1]
            parts = other[: len(other) // 2] + parts[len(parts) // 2 :]
        bases.append((row, parts))
        yield ", ".join(parts), kind, row


def respelled(text: str, rng: random.Random) -> str:
    """Equal once cleaned."""
    way = rng.randrange(4)
    if way == 0:
        return f"  {text} \t"
    if way == 1:
        return text.replace(" ", "  ", 1)
    if way == 2:
        return html.escape(text).replace(",", "&#44;", 1)
    return "".join(chr(ord(c) + 0xFEE0) if "a" <= c <= "z" else c for c in text)


def edited(text: str, rng: random.Random) -> str:
    """One edit."""
    words = text.split(" ")
    place = rng.randrange(len(words) - 1)
    way = rng.randrange(6)
    if way == 0:
        at = rng.randrange(len(text))
        return text[:at] + rng.choice("abcdefghijklmnopqrstuvwxyz") + text[at + 1 :]
    if way == 1:
        del words[place]
    elif way == 2:
        words.insert(place, rng.choice(("very", "beautiful", "dark", "old", "4k")))
    elif way == 3:
        words[place] = rng.choice(("bright", "small", "golden", "strange"))
    elif way == 4:
        words[place], words[place + 1] = words[place + 1], words[place]
    else:
        return text.upper().replace(",", " -") + "!"
    return " ".join(words)


def write(folder: Path, count: int, pieces: list[str]) -> Path:
    """The CSV, and beside it what each of its rows is."""
    path, truth = folder / f"{count}.csv", np.empty((count, 2), np.int64)
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["id", "prompt"])
        for row, (text, kind, origin) in enumerate(planted(count, pieces)):
            writer.writerow([row, text])
            truth[row] = KINDS.index(kind), origin
    np.save(path.with_suffix(".npy"), truth)
    return path


# ------------------------------------------------------------------------------------------------------- measurement


def measure(path: Path, near: bool) -> dict[str, float]:
    """One ingestion into a store of its own, in this process."""
    from pahi.stages import ingest
    from pahi.stages.common import Context

    imported = peak_gb()
    with tempfile.TemporaryDirectory() as root:
        values = [
            f"ingest.sources={json.dumps([{'path': str(path)}])}",
            f"ingest.near_duplicates={'keep' if near else 'ignore'}",
            "ingest.filters={min_characters: 3, max_repetition: 0.5, exclude: ['(?i)watermark']}",
        ]
        ctx = Context(load_settings("tiny", overrides=values, root=root))
        started, cpu = time.perf_counter(), time.process_time()
        output, _ = ingest.run(ctx)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        memory = peak_gb()
        found = {"seconds": seconds, "cpu": cpu, "memory": memory, "imports": imported}
        found["kept"] = output.require().summary["prompts"]
        return found | (quality(output, path) if near else {})


def datatrove(python: str, path: Path, pipeline: list[str]) -> dict[str, float]:
    """The same rows through datatrove, from two files, so that it can use two cores."""
    rows = [(row.row, row.text) for row in read_source(Source(path=str(path))) if not row.error]  # type: ignore[call-arg]
    with tempfile.TemporaryDirectory() as folder:
        for part in range(2):
            lines = (json.dumps({"text": text, "id": str(row)}) for row, text in rows[part::2])
            Path(folder, f"{part}.jsonl").write_text("\n".join(lines) + "\n")
        found = _child([python, str(Path(__file__).parent / "parts/datatrove_pipelines.py"), folder, *pipeline])
        if pipeline[0] == "exact":
            return found
        clusters = np.load(Path(folder, "clusters.npy"))
    first: dict[int, int] = {}
    for row, cluster in clusters[np.argsort(clusters[:, 0])].tolist():
        first.setdefault(cluster, row)
    joined = {row: first[cluster] for row, cluster in clusters.tolist()}
    return found | _quality({row: joined.get(row, row) for row, _ in rows}, path)


def quality(output, path: Path) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """How well the clusters of a partition are those that were planted."""
    table = output.read("prompts", ["prompt_id", "cluster", "row"])
    ids, clusters, numbers = (table.column(name).to_pylist() for name in ("prompt_id", "cluster", "row"))
    rows = dict(zip(ids, numbers, strict=True))
    return _quality({row: rows[cluster] for row, cluster in zip(numbers, clusters, strict=True)}, path)


def _quality(cluster: dict[int, int], path: Path) -> dict[str, float]:
    """Recall: planted edits in their origin's cluster. Precision: rows of a cluster that belong with its first.

    cluster: row, counted from 1 -> the first row of its cluster. Rows that are equal once cleaned do not count.
    """
    truth = np.load(path.with_suffix(".npy"))
    planted = [r for r in cluster if truth[r - 1, 0] == KINDS.index(EDIT) and truth[r - 1, 1] + 1 in cluster]
    hits = sum(cluster[r] == cluster[int(truth[r - 1, 1]) + 1] for r in planted)
    joined = [(r, c) for r, c in cluster.items() if r != c and truth[r - 1, 0] != KINDS.index(REPEAT)]
    right = sum(truth[r - 1, 1] == truth[c - 1, 1] for r, c in joined)
    return {"recall": hits / max(1, len(planted)), "precision": right / max(1, len(joined)), "planted": len(planted)}


def child(path: Path, what: str) -> dict[str, float]:
    """A measurement in a process of its own, whose peak memory is its own."""
    return _child([sys.executable, __file__, "--measure", str(path), "--what", what])


def _child(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def table(sizes: list[int], folder: Path, python: str | None, plot: Path | None) -> None:
    pieces = fragments(folder)
    found: dict[str, list[dict[str, float]]] = {}
    print("| rows | what | kept | seconds | CPU seconds | peak GB | of that, imports | recall | precision |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for count in sizes:
            path = write(Path(temporary), count, pieces)
            for what in (*BOUNDS, *(DATATROVE if python else ())):
                got = datatrove(python, path, DATATROVE[what][1]) if python and what in DATATROVE else child(path, what)
                found.setdefault(what, []).append(got | {"rows": count})
                share = [f"{got[name]:.4f}" if name in got else "" for name in ("recall", "precision")]
                print(
                    f"| {count:,} | {what} | {got['kept']:,} | {got['seconds']:.1f} | {got['cpu']:.1f} | "
                    f"{got['memory']:.2f} | {got['imports']:.2f} | {' | '.join(share)} |",
                    flush=True,
                )
                if count == SIZES[-1] and what in BOUNDS:
                    seconds, memory = BOUNDS[what]
                    met = got["seconds"] <= seconds and got["memory"] <= memory
                    met = met and got.get("recall", 1) >= 0.95 and got.get("precision", 1) >= 0.99
                    print(f"bound for {what}: {seconds} s, {memory} GB: {'met' if met else 'NOT met'}", file=sys.stderr)
    for theirs, (ours, _) in DATATROVE.items():
        for a, b in zip(found[ours], found.get(theirs, []), strict=False):
            ratios = [f"{b[name] / a[name]:.1f} times" for name in ("seconds", "cpu")]
            print(f"\n{a['rows']:,} rows, {ours} against {theirs}: {' less time, '.join(ratios)} less CPU time")
    if plot:
        charts = [
            (title, {what: [(got["rows"], got[name]) for got in runs] for what, runs in found.items()})
            for title, name in (("CPU seconds", "cpu"), ("peak memory, GB", "memory"))
        ]
        plot.write_text(panels(charts, "rows"))


# --------------------------------------------------------------------------------------------------------- real files

HPD_PATTERN = r'^\d+,"?(?P<text>.*?)"?,*$'


def real(folder: Path) -> None:
    """What is kept of real files, and a sample of the near-duplicates found among them."""
    from pahi.stages import ingest
    from pahi.stages.common import Context

    sources = [{"path": str(folder / name)} for name in FILES]
    sources.append({"path": str(folder / "hpd/HPD_prompt.csv"), "format": "txt", "pattern": HPD_PATTERN})
    with tempfile.TemporaryDirectory() as root:
        values = [f"ingest.sources={json.dumps(sources)}", "ingest.near_duplicates=drop"]
        words = folder / "wordlists/ldnoobw_en.txt"
        if words.exists():
            values.append(f"ingest.filters.word_lists={json.dumps([str(words)])}")
        output, _ = ingest.run(Context(load_settings("tiny", overrides=values, root=root)))
        print("| source | rows | kept | left out, and why | changed by cleaning |")
        print("|---|---|---|---|---|")
        for one in output.require().summary["sources"]:
            why, changed = (", ".join(f"{k} {n:,}" for k, n in one[name].items()) for name in ("rejected", "cleaned"))
            print(f"| {one['source']} | {one['rows']:,} | {one['prompts']:,} | {why} | {changed} |")
        texts = dict(
            zip(*(output.read("prompts").column(name).to_pylist() for name in ("prompt_id", "text")), strict=True)
        )
        near = [r for r in output.read("rejects").to_pylist() if r["reason"] == "near_duplicate"]
        print(f"\n{len(near)} near-duplicates, every {max(1, len(near) // 20)}th of them from the least similar on:\n")
        for one in sorted(near, key=lambda r: r["detail"])[:: max(1, len(near) // 20)]:
            print(
                f"- {one['detail'].split()[1]}: {' '.join(one['text'].split())[:160]}\n  / {texts[one['kept']][:160]}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=list(SIZES), help="sizes")
    parser.add_argument("--prompts", type=Path, default=Path("../shared/prompts"), help="folder of the real prompts")
    parser.add_argument("--real", type=Path, help="only the table of what is kept of the real prompts there")
    parser.add_argument("--datatrove", metavar="PYTHON", help="a Python that has datatrove: compare")
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw CPU seconds and memory there")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--what", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.what != "ingestion")))
    elif options.real:
        real(options.real)
    elif not options.prompts.is_dir():
        print(f"ingestion: no real prompts in {options.prompts}; name their folder with --prompts")
    else:
        table(options.rows, options.prompts, options.datatrove, options.plot)


if __name__ == "__main__":
    main()
