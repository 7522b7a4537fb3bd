"""Near-duplicates: MinHash signatures (rensa), candidates by locality-sensitive hashing, exact verification.

Two prompts are near when the Jaccard similarity of their sets of shingles is at least the threshold,

    J(A, B) = |A & B| / |A | B|,    shingles: every 4 consecutive bytes of the lower-cased words, a space between them

A signature has 128 slots, each equal in two prompts with probability J. Signatures are cut into bands of r slots; two
prompts that agree in all of a band are candidates, so that a pair is found with probability 1 - (1 - J^r)^(128 // r).
r is the largest for which that is at least 0.985 at the threshold (Broder 1997; Leskovec, Rajaraman and Ullman, Mining
of Massive Datasets, chapter 3). Candidates whose signatures agree far too little are dropped, all others are compared
exactly, so that what is found is near without exception; only what is missed is a matter of chance.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from pahi.prompts.spill import Flat

SLOTS = 128
SHINGLE = 4  # bytes
SEED = 7
FOUND = 0.985  # probability that a pair at the threshold is found
SLACK = 0.13  # three standard deviations of a signature's estimate, at 128 slots
ROWS = 5_000  # texts or pairs a batch
WINDOW = 2  # neighbours in a bucket that each is compared with, beside the bucket's first

_BETWEEN = re.compile(r"[\W_]+")

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # first, second (indices, first < second), similarity


def normal(text: str) -> str:
    """The text as it is compared: lower case, words divided by one space, no punctuation where there are words."""
    words = _BETWEEN.sub(" ", text.casefold()).strip()
    return f" {words} " if words else f" {text.casefold()} "


def band_rows(threshold: float) -> int:
    """r: slots of a band."""
    return max((r for r in range(1, 17) if 1 - (1 - threshold**r) ** (SLOTS // r) >= FOUND), default=1)


def encoded(text: str) -> bytes:
    """The text as its shingles are cut, at least one shingle long."""
    return normal(text).encode("utf-8", "replace").ljust(SHINGLE)


def shingles(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Encoded texts -> (all shingles one after another as uint64, number of each text's); one text's can repeat."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    counts = lengths - SHINGLE + 1
    data = np.frombuffer(b"".join(texts) + bytes(SHINGLE), np.uint8)
    packed = np.zeros(len(data) - SHINGLE, np.uint64)
    for place in range(SHINGLE):
        packed |= data[place : place + len(packed)].astype(np.uint64) << np.uint64(8 * place)
    # Those that reach into the next text go: the last SHINGLE - 1 of each.
    inside = np.ones(len(packed), bool)
    ends = np.cumsum(lengths)
    for back in range(1, SHINGLE):
        inside[ends - back] = False
    return _mixed(packed[inside]), counts


class Signatures:
    """MinHash signatures of texts: (texts, 128) uint32. They, and the texts as they are compared, can be on disk."""

    def __init__(self, texts: Iterable[str], threshold: float) -> None:
        from rensa import RMinHash

        self.threshold, self.rows = threshold, band_rows(threshold)
        data, ends, values = Flat(np.uint8), Flat(np.int64), Flat(np.uint32)
        rest, end = iter(texts), 0
        while batch := [encoded(text) for text in islice(rest, ROWS)]:
            tokens, counts = shingles(batch)
            offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
            matrix = RMinHash.digest_matrix_from_flat_token_hashes(tokens, offsets, SLOTS, SEED)
            values.add(np.array(matrix.to_rows(), np.uint32))
            data.add(np.frombuffer(b"".join(batch), np.uint8))
            ends.add(end + np.cumsum(counts + SHINGLE - 1))
            end += int(counts.sum()) + len(batch) * (SHINGLE - 1)
        self.values = values.array().reshape(-1, SLOTS)
        self.data, self.ends = data.array(), ends.array()

    def __len__(self) -> int:
        return len(self.values)

    def pairs(self, alive: np.ndarray, frozen: int = 0) -> Pairs:
        """Near pairs among the texts `alive` (sorted indices), sorted by (second, first).

        Not all pairs of a large bucket: each is compared with the bucket's first and the few before it, which suffices
        to connect them. Pairs of two texts below `frozen` are not looked at.
        """
        found: list[np.ndarray] = []
        for key in self._keys(alive):
            order = np.argsort(key, kind="stable")
            for first, second in _neighbours(key[order]):
                a, b = alive[order[first]], alive[order[second]]
                new = b >= frozen
                found.append(self._alike(a[new], b[new]))
        return self._verified(found)

    def first_near(self, others: np.ndarray, alive: np.ndarray) -> dict[int, tuple[int, float]]:
        """index of `alive` -> (index, similarity) of the most similar of `others`, for those that have a near one."""
        found: list[np.ndarray] = []
        for theirs, ours in zip(self._keys(others), self._keys(alive), strict=True):
            order = np.argsort(theirs, kind="stable")
            left = np.searchsorted(theirs[order], ours, "left")
            right = np.searchsorted(theirs[order], ours, "right")
            counts = right - left
            at = np.repeat(left - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
            found.append(self._alike(others[order[at]], np.repeat(alive, counts)))
        nearest: dict[int, tuple[int, float]] = {}
        for a, b, similarity in zip(*(side.tolist() for side in self._verified(found)), strict=True):
            if similarity > nearest.get(b, (0, 0.0))[1]:
                nearest[b] = a, similarity
        return nearest

    def similarity(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Exact Jaccard similarity of pairs of texts, (pairs,) float64."""
        found = np.empty(len(first))
        for start in range(0, len(first), ROWS):
            a, b = first[start : start + ROWS], second[start : start + ROWS]
            x, y = (self._sets(side) for side in (a, b))
            both = np.sort(np.concatenate([x, y]))
            shared = _rows(both[1:][both[1:] == both[:-1]], len(a))
            found[start : start + ROWS] = shared / (_rows(x, len(a)) + _rows(y, len(a)) - shared)
        return found

    def _sets(self, indices: np.ndarray) -> np.ndarray:
        """Distinct shingles of each text, as row << 40 | 40 bits of the shingle, sorted."""
        ends = self.ends[indices]
        starts = np.where(indices > 0, self.ends[indices - 1], 0)
        texts = [self.data[a:b].tobytes() for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
        tokens, counts = shingles(texts)
        rows = np.repeat(np.arange(len(indices), dtype=np.uint64), counts)
        return _distinct(rows << np.uint64(40) | tokens >> np.uint64(24))

    def _keys(self, alive: np.ndarray) -> Iterator[np.ndarray]:
        """Of each band, a hash of its slots: (alive,) uint64."""
        for band in range(SLOTS // self.rows):
            slots = self.values[alive, band * self.rows : (band + 1) * self.rows]
            key = np.zeros(len(alive), np.uint64)
            for column in slots.T:
                key = _mixed(key * np.uint64(31) + column)
            yield key

    def _verified(self, packed: list[np.ndarray]) -> Pairs:
        every = _distinct(np.concatenate(packed)) if packed else np.empty(0, np.uint64)
        b, a = (every >> np.uint64(32)).astype(np.int64), (every & np.uint64(0xFFFFFFFF)).astype(np.int64)
        similarity = self.similarity(a, b)
        near = similarity >= self.threshold
        return a[near], b[near], similarity[near]

    def _alike(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Those pairs whose signatures agree nearly enough, packed as second << 32 | first."""
        kept = []
        for start in range(0, len(a), 50_000):
            x, y = a[start : start + 50_000], b[start : start + 50_000]
            agree = np.count_nonzero(self.values[x] == self.values[y], axis=1)
            near = agree >= (self.threshold - SLACK) * SLOTS
            kept.append(y[near].astype(np.uint64) << np.uint64(32) | x[near].astype(np.uint64))
        return np.concatenate(kept) if kept else np.empty(0, np.uint64)


def _distinct(values: np.ndarray) -> np.ndarray:
    """The distinct values, sorted. np.unique goes by hashes, which took ten times as long on these."""
    values = np.sort(values)
    new = np.ones(len(values), bool)
    new[1:] = values[1:] != values[:-1]
    return values[new]


def _rows(keys: np.ndarray, count: int) -> np.ndarray:
    return np.bincount((keys >> np.uint64(40)).astype(np.int64), minlength=count)


def _neighbours(key: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of positions with equal keys, `key` being sorted: each with its bucket's first and the WINDOW before it."""
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.empty(0, np.int64)
    first = np.repeat(starts, np.diff(np.concatenate([starts, [len(key)]])))
    place = np.arange(len(key))
    found = [(first[far], place[far]) for far in [place - first > WINDOW]]
    for back in range(1, WINDOW + 1):
        later = place[place - first >= back]
        found.append((later - back, later))
    return found


def _mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer: every bit of the input moves every bit of the output."""
    with np.errstate(over="ignore"):
        values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return values ^ values >> np.uint64(31)
