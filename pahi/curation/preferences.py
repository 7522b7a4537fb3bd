"""The preference set: pairs of pictures of one prompt, in the layout of pickapic_v2 that Diffusion-DPO trainers read.

They take `jpg_0` and `jpg_1` (encoded pictures, as plain bytes), `label_0` (1 where the first is the better one, else
0) and `caption` (huggingface/diffusers, research project diffusion_dpo; SalesforceAIResearch/DiffusionDPO).
"""

import pyarrow as pa

from pahi.artifacts.schemas import field
from pahi.curation.select import Selection
from pahi.settings import Preferences


def choose_pairs(selection: Selection, settings: Preferences | None) -> None:
    """Makes the table `pairs` (winner, loser, margin): of all scored pictures, control pictures included."""
    db = selection.db
    if settings is None or not selection.rewards:
        db.execute("create table pairs (winner bigint, loser bigint, margin float)")
        return
    agree = "" if settings.disagreeing else "".join(f" and a.s{i} > b.s{i}" for i in range(len(selection.rewards)))
    db.execute(
        f"""create table pairs as
        select a.id winner, b.id loser, a.combined - b.combined margin
        from scored a join scored b on a.prompt = b.prompt and a.combined - b.combined > 0
             and a.combined - b.combined >= {settings.min_margin!r} and a.pixels is distinct from b.pixels {agree}
        qualify row_number() over (partition by a.prompt order by a.combined - b.combined desc, a.tie, b.tie)
                <= {settings.per_prompt}"""
    )


def pair_schema(rewards: list[str]) -> pa.Schema:
    """pickapic_v2's columns that mean something here, then ours."""
    fields = [
        field("caption", pa.string(), "the prompt"),
        field("jpg_0", pa.binary(), "first picture, encoded"),
        field("jpg_1", pa.binary(), "second picture, encoded"),
        field("label_0", pa.float64(), "1 where the first picture is the better one, else 0"),
        field("label_1", pa.float64(), "1 where the second picture is the better one, else 0"),
        field("has_label", pa.bool_(), "always true"),
        field("are_different", pa.bool_(), "always true"),
        field("best_image_uid", pa.string(), "image_id of the better picture"),
        field("image_0_uid", pa.string(), "image_id of the first picture"),
        field("image_1_uid", pa.string(), "image_id of the second picture"),
        field("model_0", pa.string(), "what drew the first picture: generator, and the arm of its noise"),
        field("model_1", pa.string(), "what drew the second picture"),
        field("ranking_id", pa.int64(), "number of the pair"),
        field("num_example_per_prompt", pa.int64(), "pairs of this prompt"),
        field("prompt_id", pa.string(), "the prompt's id"),
        field("margin", pa.float32(), "difference of the combined score, in standard deviations"),
    ]
    for side in (0, 1):
        fields.append(field(f"seed_{side}", pa.int64(), "seed of that picture's noise, together with the prompt_id"))
        fields += [
            field(f"score_{r}_{side}", pa.float32(), f"raw score of {r} of that picture", nullable=True)
            for r in rewards
        ]
    return pa.schema(fields)


def number_pairs(selection: Selection) -> None:
    """Makes `numbered`: the pairs of each split in a fixed order, `n` from 0, and which side each picture is on.

    The better picture is first in about half of them, by a hash of the names: no trainer can learn the side.
    """
    selection.db.execute(
        """create table numbered as
        select row_number() over (partition by q.split order by w.id, l.id) - 1 n, q.split,
               row_number() over (order by w.id, l.id) - 1 as ranking_id,
               count(*) over (partition by w.prompt)::bigint as num_example_per_prompt, margin, q.prompt_id,
               md5_number_lower(w.image_id || l.image_id) % 2 = 0 as first_wins, w.image_id as best_image_uid,
               if(first_wins, w.id, l.id) as id_0, if(first_wins, l.id, w.id) as id_1
        from pairs join pictures w on w.id = winner join pictures l on l.id = loser
             join prompts q on q.prompt = w.prompt"""
    )


def pair_rows(selection: Selection, split: str, first: int, count: int) -> pa.Table:
    """Everything of some pairs of a split but their pictures; `part_0`, `row_0` and so on say where those lie."""
    scores = [f"s{side}.s{i} as score_{r}_{side}" for side in (0, 1) for i, r in enumerate(selection.rewards)]
    return selection.db.sql(
        f"""select p0.image_id as image_0_uid, p1.image_id as image_1_uid, p0.seed as seed_0, p1.seed as seed_1,
                   p0.arm as arm_0, p1.arm as arm_1, p0.part as part_0, p0."row" as row_0, p1.part as part_1,
                   p1."row" as row_1, first_wins::double as label_0, (not first_wins)::double as label_1,
                   best_image_uid, ranking_id, num_example_per_prompt, n.prompt_id, margin,
                   {", ".join(scores)}
        from numbered n join pictures p0 on p0.id = id_0 join pictures p1 on p1.id = id_1
             join scored s0 on s0.id = id_0 join scored s1 on s1.id = id_1
        where n.split = '{split}' and n.n >= {first} and n.n < {first + count} order by n.n"""
    ).to_arrow_table()
