"""Looking at the pictures that the scores have left, once each, and dropping those that are not fit."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa

from pahi.curation import duplicates
from pahi.curation.models import Pictures
from pahi.curation.pictures import look
from pahi.curation.select import Selection

BATCH = 32  # pictures that a model sees at once
COLUMNS = ["image", "width", "height"]
Read = Callable[[int, list[int], list[str]], pa.Table]
Model = Callable[[Pictures], np.ndarray]


class Inspection:
    """What was seen. `embedding(ids)` gives the vectors of pictures that were fit to be looked at."""

    def __init__(
        self, selection: Selection, read: Read, scratch: str, unsafe: Model | None, embed: Model | None
    ) -> None:
        """`read` gives rows of a part of the `images` table: part, rows, columns."""
        self.selection, self.read, self.unsafe, self.embed = selection, read, unsafe, embed
        self.file = Path(scratch) / "embeddings.npy"
        self.position: dict[int, int] = {}
        self.vectors: np.ndarray | None = None

    def run(self, progress: Callable[[int, int], None]) -> None:
        """Looks at every picture that is alive or in a pair; drops what is not fit, pairs included."""
        s = self.selection.settings
        where = "id in (select id from alive union select winner from pairs union select loser from pairs)"
        total = self.selection.count(f"select count(*) from pictures where {where}")
        problems: dict[str, list[tuple[int, str | None]]] = {"broken": [], "blank": [], "unsafe": []}
        hashes: dict[int, int] = {}
        thumbs: dict[int, bytes] = {}
        done = 0
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for batch in self._batches(where):
                ids, cells, widths, heights = zip(*batch, strict=True)
                contrast = [s.min_contrast] * len(ids)
                looks = dict(zip(ids, pool.map(look, cells, widths, heights, contrast), strict=True))
                for i, seen in looks.items():
                    if seen.reason:
                        problems[seen.reason].append((i, seen.detail))
                    else:
                        hashes[i], thumbs[i] = seen.hash, seen.thumb
                fit = [i for i, seen in looks.items() if seen.image is not None]
                pictures = [seen.image for seen in looks.values() if seen.image is not None]
                if fit and self.unsafe is not None:
                    limit = s.unsafe.threshold if s.unsafe else 1.0
                    for i, value in zip(fit, self.unsafe(pictures), strict=True):
                        if not value < limit:  # what is no number is not known to be safe
                            problems["unsafe"].append((i, f"{value:.3f}"))
                if fit and self.embed is not None:
                    self._keep(fit, self.embed(pictures), total)
                done += len(ids)
                progress(done, total)
        notes = {
            "broken": "pictures that cannot be decoded, or have another size than their row says",
            "blank": f"pictures with a contrast under {s.min_contrast:g}",
            "unsafe": f"unsafe with a probability of at least {s.unsafe.threshold:g}" if s.unsafe else "",
        }
        for reason, found in problems.items():
            if reason != "unsafe" or s.unsafe is not None:
                self._drop(reason, notes[reason], [(i, detail, None) for i, detail in found], pairs_too=True)
        if s.near_duplicates is not None:
            ranked = self._ranked()
            near = duplicates.by_hash([hashes[i] for i in ranked], [thumbs[i] for i in ranked], s.near_duplicates)
            self._drop(
                "near_duplicate",
                f"perceptual hash within {s.near_duplicates} bits of a better picture's, and the same colours",
                [(ranked[j], f"{bits} bits from ", ranked[i]) for j, (i, bits) in near.items()],
            )
        if s.embedder is not None and s.embedder.max_cosine is not None:
            ranked = self._ranked()
            alike = duplicates.by_embedding(self.embedding(ranked), s.embedder.max_cosine) if ranked else {}
            self._drop(
                "alike",
                f"embedding's cosine with a better picture's above {s.embedder.max_cosine:g}",
                [(ranked[j], f"cosine {c:.3f} with ", ranked[i]) for j, (i, c) in alike.items()],
            )

    def embedding(self, ids: list[int]) -> np.ndarray:
        """(n, d) float16 of these pictures."""
        assert self.vectors is not None
        return self.vectors[[self.position[i] for i in ids]]

    @property
    def width(self) -> int:
        """The length of an embedding."""
        return 0 if self.vectors is None else self.vectors.shape[1]

    def _batches(self, where: str) -> Iterator[list[tuple[int, bytes | None, int, int]]]:
        places = self.selection.rows(f'select part, "row", id from pictures where {where} order by part, "row"')
        for part, members in groupby(places, key=itemgetter(0)):
            inside = list(members)
            for start in range(0, len(inside), BATCH):
                some = inside[start : start + BATCH]
                table = self.read(part, [row for _, row, _ in some], COLUMNS).to_pydict()
                data = [None if cell is None else cell["bytes"] for cell in table["image"]]
                yield list(zip([i for _, _, i in some], data, table["width"], table["height"], strict=True))

    def _keep(self, ids: list[int], vectors: np.ndarray, total: int) -> None:
        if self.vectors is None:
            # On disk: a million vectors are larger than what else is kept.
            shape = (total, vectors.shape[1])
            self.vectors = np.lib.format.open_memmap(self.file, mode="w+", dtype=np.float16, shape=shape)
        for i, vector in zip(ids, vectors, strict=True):
            self.position[i] = len(self.position)
            self.vectors[self.position[i]] = vector

    def _ranked(self) -> list[int]:
        return [
            r[0] for r in self.selection.rows("select id from alive join scored using (id) order by combined desc, tie")
        ]

    def _drop(
        self, reason: str, note: str, found: list[tuple[int, str | None, int | None]], pairs_too: bool = False
    ) -> None:
        """Takes pictures out: id, detail, and the id of another picture whose name ends the detail."""
        schema = pa.schema([("id", pa.int64()), ("detail", pa.string()), ("other", pa.int64())])
        columns = [pa.array(c, t) for c, t in zip(zip(*found, strict=True), schema.types, strict=True)] if found else []
        db = self.selection.db
        db.register("found", pa.Table.from_arrays(columns, schema=schema) if found else schema.empty_table())
        self.selection.drop(
            reason,
            note,
            """select f.id, f.detail || coalesce(p.image_id, '') detail
               from found f left join pictures p on p.id = f.other
               where f.id in (select alive.id from alive)""",
        )
        if pairs_too and found:
            gone = "select id from found"
            db.execute(f"delete from pairs where winner in ({gone}) or loser in ({gone})")
        db.unregister("found")
