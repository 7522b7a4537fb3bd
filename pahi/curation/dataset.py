"""The rows of the dataset and of the preference set, as tables: one file's pictures in memory at a time."""

from collections.abc import Callable
from itertools import groupby
from pathlib import PurePath

import numpy as np
import pyarrow as pa

from pahi.artifacts.schemas import IMAGES, curated_schema, field, read_tensor, tensor_column, tensor_field
from pahi.curation.inspection import Inspection
from pahi.curation.preferences import pair_rows, pair_schema
from pahi.curation.select import Selection
from pahi.errors import UserError

SPLITS = ("train", "validation", "test")
Read = Callable[[int, list[int], list[str]], pa.Table]
ReadNoise = Callable[[int], pa.Table]


def schema_of(selection: Selection, inspection: Inspection, noise: pa.Schema | None) -> pa.Schema:
    """The published columns of this selection. `noise` is the schema of the noise table where it is published."""
    more = [
        field("source", pa.string(), "name of the prompt's source", nullable=True),
        field("combined", pa.float32(), "weighted mean of the rewards, each standardised over all candidates"),
        field(
            "disagreement",
            pa.float32(),
            "standard deviations by which training rewards stand above held-out ones (without held-out rewards: by "
            "which the rewards are apart): a sign of a hacked reward",
            nullable=True,
        ),
    ]
    more += [
        field(
            f"uplift_{r}",
            pa.float32(),
            f"gain of {r} over the control picture of the same noise, in within-prompt standard deviations; null "
            "where there is none",
            nullable=True,
        )
        for r in selection.rewards
    ]
    if inspection.width:
        more.append(tensor_field("embedding", (inspection.width,), "the embedder's vector", pa.float16()))
    if noise is not None:
        more += [noise.field(name) for name in ("mu", "sigma")]
    return curated_schema(selection.rewards, more)


def number_rows(selection: Selection) -> dict[str, int]:
    """Makes `final`: what is alive, `n` from 0 in each split, in the order of the pictures. Returns rows by split."""
    selection.db.execute(
        """create table final as
        select id, split, row_number() over (partition by split order by id) - 1 n
        from alive join pictures using (id) join prompts using (prompt)"""
    )
    found = dict(selection.rows("select split, count(*) from final group by split"))
    unknown = set(found) - set(SPLITS)
    if unknown:
        raise UserError(f"prompts of split {sorted(unknown)[0]!r}: expected {', '.join(SPLITS)}")
    return {split: found.get(split, 0) for split in SPLITS}


def picture_rows(
    selection: Selection,
    inspection: Inspection,
    read: Read,
    read_noise: ReadNoise,
    schema: pa.Schema,
    split: str,
    first: int,
    count: int,
) -> pa.Table:
    """Some rows of a split, whole."""
    computed = [f"s{i} as score_{r}" for i, r in enumerate(selection.rewards)]
    computed += [f"u{i} as uplift_{r}" for i, r in enumerate(selection.rewards)]
    meta = selection.db.sql(
        f"""select {", ".join(["id", "part", '"row"', "kind", "source", "combined", "disagreement", *computed])}
        from final join scored using (id) join pictures using (id) join prompts on prompts.prompt = pictures.prompt
        where final.split = '{split}' and n >= {first} and n < {first + count} order by n"""
    ).to_arrow_table()
    drawn = [name for name in schema.names if name in IMAGES.names]
    tables, tensors = [], {"mu": [], "sigma": []}  # type: ignore[var-annotated]
    for part, members in groupby(zip(meta["part"].to_pylist(), meta["row"].to_pylist(), strict=True), lambda m: m[0]):
        tables.append(read(part, [row for _, row in members], drawn))
        if "mu" in schema.names:
            noise = read_noise(part)
            where = {p: i for i, p in enumerate(noise["prompt_id"].to_pylist())}
            wanted = [where[p] for p in tables[-1]["prompt_id"].to_pylist()]
            for name, values in tensors.items():
                values.append(read_tensor(noise, name)[wanted])
    pictures = pa.concat_tables(tables)
    columns = []
    for f in schema:
        if f.name == "embedding":
            columns.append(tensor_column(inspection.embedding(meta["id"].to_pylist()), f.type))
        elif f.name == "generator":
            names = {name: portable(name) for name in pictures[f.name].unique().to_pylist()}
            columns.append(pa.array([names[name] for name in pictures[f.name].to_pylist()], f.type))
        elif f.name in tensors:
            columns.append(tensor_column(np.concatenate(tensors[f.name]), f.type))
        else:
            column = (pictures if f.name in drawn else meta)[f.name]
            columns.append(column.cast(f.type) if column.type != f.type else column)
    return pa.Table.from_arrays(columns, schema=schema)


def preference_rows(selection: Selection, read: Read, generator: str, split: str, first: int, count: int) -> pa.Table:
    """Some pairs of a split, whole."""
    meta = pair_rows(selection, split, first, count)
    schema = pair_schema(selection.rewards)
    columns = {name: meta[name] for name in meta.column_names if name in schema.names}
    for side in (0, 1):
        places = list(zip(meta[f"part_{side}"].to_pylist(), meta[f"row_{side}"].to_pylist(), strict=True))
        cells: dict[tuple[int, int], tuple[bytes, str]] = {}
        for part, members in groupby(sorted(set(places)), lambda place: place[0]):
            rows = [row for _, row in members]
            table = read(part, rows, ["image", "prompt"]).to_pydict()
            for row, image, prompt in zip(rows, table["image"], table["prompt"], strict=True):
                cells[part, row] = image["bytes"], prompt
        columns[f"jpg_{side}"] = pa.array([cells[place][0] for place in places], pa.binary())
        columns["caption"] = pa.array([cells[place][1] for place in places], pa.string())
        arms = meta[f"arm_{side}"].to_pylist()
        columns[f"model_{side}"] = pa.array([f"{generator} ({arm})" for arm in arms], pa.string())
    columns |= {name: pa.array([True] * len(meta), pa.bool_()) for name in ("has_label", "are_different")}
    return pa.Table.from_arrays([columns[f.name].cast(f.type) for f in schema], schema=schema)


def portable(name: str) -> str:
    """A model's or file's name without the folders of the machine that it lay on."""
    return PurePath(name).name if name.startswith(("/", ".", "~")) else name
