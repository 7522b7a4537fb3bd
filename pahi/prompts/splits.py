"""Splits by hash, and what near-duplicates mean for them: no two near prompts in different splits.

What has a split already keeps it: prompts of earlier partitions, and rows whose source names their split. Everything
else follows its neighbours, and only what has none goes by hash.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pahi.prompts.near import Pairs, Signatures

SPLITS = ("train", "validation", "test")
Reject = tuple[str, str, str | None]  # reason, detail, prompt_id of what is kept


@dataclass
class Placed:
    """What is decided for each new prompt, by its index."""

    cluster: list[str]  # prompt_id of the first of its near-duplicates
    group: list[str]
    split: list[str | None]  # None where it is rejected
    rejected: dict[int, Reject] = field(default_factory=dict)


def split_of(group: str, validation_fraction: float, test_fraction: float) -> str:
    """train, validation or test, by the sha256 of the group alone, so that neither order nor company matters.

    Test takes the low end and validation the high one: to change one fraction moves no group between those two.
    """
    digest = hashlib.sha256(f"split:{group}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64  # in [0, 1]
    if place < test_fraction:
        return "test"
    return "validation" if place >= 1 - validation_fraction and validation_fraction else "train"


def drop_near(signatures: Signatures, alive: np.ndarray, frozen: int) -> dict[int, tuple[int, float]]:
    """index -> (index, similarity) of the kept text that it is near, for those of `alive` from `frozen` on.

    In order, so that the first of near ones is kept; what is near a dropped one alone stays, since it is near nothing
    that is kept. A bucket's members are not all compared at once, so what is left is compared again until no more go.
    """
    dropped: dict[int, tuple[int, float]] = {}
    while True:
        before = len(dropped)
        for a, b, similarity in zip(*(side.tolist() for side in signatures.pairs(alive, frozen)), strict=True):
            if b not in dropped and a not in dropped:
                dropped[b] = a, similarity
        if len(dropped) == before:
            return dropped
        alive = alive[~np.isin(alive, np.fromiter(dropped, np.int64, len(dropped)))]


def place(
    ids: Sequence[str],
    groups: Sequence[str | None],
    splits: Sequence[str | None],
    pairs: Pairs,
    fixed: int,
    clusters: Sequence[str],
    fractions: tuple[float, float],
) -> Placed:
    """Cluster, group and split of prompts, of which the first `fixed` are of earlier partitions and keep theirs.

    ids, groups, splits: of all; None where a new row's source names none. pairs: near ones, as indices. clusters: those
    of the first `fixed`. fractions: of validation and test. Indices in what is returned count from the first new one.
    """
    edges = list(zip(pairs[0].tolist(), pairs[1].tolist(), strict=True))
    free = [i for i in range(fixed, len(ids)) if splits[i] is None]
    wanted: dict[int, Counter[str]] = {}  # of free prompts: how many assigned ones of each split they belong with
    beside: dict[tuple[int, str], int] = {}  # the first of those

    def tie(one: int, other: int) -> None:
        split = splits[other]
        assert split is not None
        wanted.setdefault(one, Counter())[split] += 1
        beside.setdefault((one, split), other)

    # A newcomer's own split does not stand against what an earlier partition gave its neighbour, and then ties nothing.
    refused: dict[int, int] = {}
    for a, b in edges:
        if a < fixed <= b and splits[b] is not None and splits[a] != splits[b]:
            refused.setdefault(b, a)

    named = {groups[i] for i in free if groups[i] is not None}
    anchors: dict[tuple[str | None, str], int] = {}  # a named group's first assigned member, by split
    for i, group in enumerate(groups):
        if group in named and i not in refused and (split := splits[i]) is not None:
            anchors.setdefault((group, split), i)
    for i in free:
        for split in SPLITS:
            if (groups[i], split) in anchors:
                tie(i, anchors[groups[i], split])
    for a, b in edges:
        if (splits[a] is None) != (splits[b] is None) and not {a, b} & refused.keys():
            tie(*((a, b) if splits[a] is None else (b, a)))

    # What belongs with two splits goes, and connects nothing.
    torn = {i for i, splits_of in wanted.items() if len(splits_of) > 1}
    union = _Union(len(ids))
    company: set[int] = set()  # what may have others in its set; most prompts have none
    for a, b in edges:
        if splits[a] is None and splits[b] is None and not {a, b} & torn:
            union.join(a, b)
            company |= {a, b}
    if named:
        seen: dict[str, int] = {}
        for i in free:
            if (name := groups[i]) is not None and i not in torn:
                union.join(seen.setdefault(name, i), i)
                company.add(i)
    together: dict[int, list[int]] = {}
    for i in sorted(company):
        together.setdefault(union.root(i), []).append(i)

    cluster = _clusters(ids, clusters, edges)
    found = Placed(cluster[fixed:], [group or ids[i] for i, group in enumerate(groups)][fixed:], list(splits[fixed:]))
    for i, other in refused.items():
        detail = f"is named {splits[i]}, and is near {ids[other]} of an earlier run's {splits[other]} split"
        found.rejected[i - fixed] = "near_other_split", detail, None
    for i in torn:
        names = " and ".join(split for split in SPLITS if split in wanted[i])
        found.rejected[i - fixed] = "near_other_split", f"belongs with prompts of {names}", None

    def settle(members: Sequence[int]) -> None:
        key = min(groups[i] or ids[i] for i in members)
        chosen = split_of(key, *fractions)
        demands = sum((wanted[i] for i in members if i in wanted), Counter[str]())
        if demands:
            chosen = max(SPLITS, key=lambda split: (demands[split], SPLITS.index(split)))
            neighbour = next(beside[i, chosen] for i in members if (i, chosen) in beside)
            key = groups[neighbour] or ids[neighbour]
        for i in members:
            found.group[i - fixed], found.split[i - fixed] = groups[i] or key, chosen
            others = [split for split in wanted.get(i, ()) if split != chosen]
            if others:
                detail = f"belongs with prompts of {others[0]}, and through others with prompts of {chosen}"
                found.rejected[i - fixed] = "near_other_split", detail, None

    for members in together.values():
        settle(members)
    for i in free:
        if i not in company and i not in torn:
            if i in wanted:
                settle((i,))
            else:  # nothing to go by, and its group is its own
                found.split[i - fixed] = split_of(ids[i], *fractions)
    return found


def _clusters(ids: Sequence[str], known: Sequence[str], edges: Sequence[tuple[int, int]]) -> list[str]:
    """prompt_id of each prompt's cluster: the first of those that near pairs connect."""
    if not edges:
        return [*known, *ids[len(known) :]]
    union = _Union(len(ids))
    for a, b in edges:
        union.join(a, b)
    roots = (union.root(i) for i in range(len(ids)))
    return [known[root] if root < len(known) else ids[root] for root in roots]


class _Union:
    """Disjoint sets; the smallest member is a set's root."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def root(self, i: int) -> int:
        parent = self.parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        if a != b:
            self.parent[max(a, b)] = min(a, b)
