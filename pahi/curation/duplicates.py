"""Near-duplicates among pictures in order of rank: each is compared with the better ones that are kept."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from pahi.curation.pictures import same_colours

BLOCK = 512


def by_hash(hashes: Sequence[int], thumbs: Sequence[bytes], most: int) -> dict[int, tuple[int, int]]:
    """Position of each near-duplicate -> position of the kept picture that it resembles, and the bits that differ.

    Hashes that differ in at most `most` of 64 bits are equal in one of `most + 1` bands: only those are compared.
    """
    edges = [round(64 * i / (most + 1)) for i in range(most + 2)]
    bands = [(a, (1 << (b - a)) - 1) for a, b in pairwise(edges)]
    kept: list[dict[int, list[int]]] = [defaultdict(list) for _ in bands]
    found: dict[int, tuple[int, int]] = {}
    for j, value in enumerate(hashes):
        near: tuple[int, int] | None = None
        for (shift, mask), table in zip(bands, kept, strict=True):
            for i in table.get((value >> shift) & mask, ()):
                bits = (value ^ hashes[i]).bit_count()
                if (
                    bits <= most
                    and (near is None or (bits, i) < (near[1], near[0]))
                    and same_colours(thumbs[i], thumbs[j])
                ):
                    near = i, bits
        if near is not None:
            found[j] = near
            continue
        for (shift, mask), table in zip(bands, kept, strict=True):
            table[(value >> shift) & mask].append(j)
    return found


def by_embedding(vectors: np.ndarray, most: float) -> dict[int, tuple[int, float]]:
    """As `by_hash`, for rows (n, d) whose cosine is above `most`. Every row is compared with every kept one."""
    found: dict[int, tuple[int, float]] = {}
    kept: list[int] = []
    blocks: list[np.ndarray] = []
    for start in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[start : start + BLOCK], dtype=np.float32)
        block = block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12)
        best, where = np.full(len(block), -np.inf, dtype=np.float32), np.zeros(len(block), dtype=np.int64)
        first = 0
        for other in blocks:
            cosines = block @ other.T
            k = cosines.argmax(1)
            higher = cosines[np.arange(len(block)), k] > best
            best[higher], where[higher] = cosines[np.arange(len(block)), k][higher], first + k[higher]
            first += len(other)
        inside = block @ block.T
        mine: list[int] = []
        for j in range(len(block)):
            if mine:
                k = int(inside[j, mine].argmax())
                if inside[j, mine[k]] > best[j]:
                    best[j], where[j] = inside[j, mine[k]], len(kept) + k
            if best[j] > most:
                found[start + j] = (kept + [start + m for m in mine])[where[j]], float(best[j])
            else:
                mine.append(j)
        kept += [start + m for m in mine]
        if mine:
            blocks.append(block[mine])
    return found
