"""The dataset that comes out: what other libraries read of it, what its card says, and that nothing is lost."""

import io
import json
import re
from pathlib import Path

import datasets
import duckdb
import made_up
import numpy as np
import polars
import pyarrow.parquet as pq
import pytest
import yaml
from curated_world import SPECIAL, World
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt
from PIL import Image

from pahi import cli
from pahi.artifacts import Output
from pahi.artifacts.schemas import read_tensor
from pahi.curation.card import HUB_LICENSES
from pahi.curation.reasons import REASONS
from pahi.errors import UserError
from pahi.settings import load_settings
from pahi.stages import curate
from pahi.stages.common import Context

DPO_SIZE = 32


def rejects(output: Output) -> dict[str, tuple[str, str | None]]:
    return {row["image_id"]: (row["reason"], row["detail"]) for row in output.read("rejects").to_pylist()}


def published(output: Output) -> list[dict]:
    tables = {t for shard in output.require().data["shards"] for t in shard["tables"]}
    return [row for split in curate.SPLITS if split in tables for row in output.read(split).to_pylist()]


def test_every_picture_is_published_or_has_its_reason(world: World, curated: Output) -> None:
    summary = curated.require().summary
    kept, lost = {row["image_id"] for row in published(curated)}, rejects(curated)
    assert kept | set(lost) == {row["image_id"] for row in world.images} and not kept & set(lost)
    assert (summary["images_in"], summary["kept"], summary["excluded"]) == (len(world.images), len(kept), len(lost))
    assert sum(summary["splits"].values()) == len(kept)
    for reason, (prompt, seed) in SPECIAL.items():
        assert lost[f"{made_up.prompt_id(prompt)}-pahi-{seed}"][0] == reason
    assert lost[f"{made_up.prompt_id(3)}-pahi-40"][1].endswith(f"bits from {made_up.prompt_id(3)}-pahi-0")
    assert {reason for reason, _ in lost.values()} == {*SPECIAL, "control"}


def test_rows_are_those_of_the_pictures_that_were_drawn(world: World, curated: Output) -> None:
    images = {row["image_id"]: row for row in world.images}
    scores = {(s["image_id"], s["reward"]): s["score"] for s in world.scores}
    kind = {row["prompt_id"]: row for row in made_up.prompts(30).to_pylist()}
    rows = published(curated)
    for row in rows:
        drawn = images[row["image_id"]]
        assert row["image"] == drawn["image"] and row["prompt"] == drawn["prompt"] and row["seed"] == drawn["seed"]
        assert row["generator"] in ("made-up", "made/up"), "no folder of the machine that drew it"
        assert (row["kind"], row["source"]) == tuple(kind[row["prompt_id"]][n] for n in ("kind", "source"))
        for reward, unit in made_up.REWARDS.items():
            assert row[f"score_{reward}"] == pytest.approx(scores[row["image_id"], reward])
            control = scores.get((f"{row['prompt_id']}-standard-{row['seed']}", reward))
            gain = None if control is None else (row[f"score_{reward}"] - control) / unit
            assert row[f"uplift_{reward}"] == (None if gain is None else pytest.approx(gain, abs=1e-4))
    assert abs(np.mean([row["combined"] for row in rows])) < 0.1
    by_split = {split: {r["prompt_id"] for r in curated.read(split).to_pylist()} for split in curate.SPLITS}
    assert all(kind[p]["split"] == split for split, ids in by_split.items() for p in ids)


def test_datasets_duckdb_and_polars_open_it_as_pictures(curated: Output, tmp_path: Path) -> None:
    splits = curated.require().summary["splits"]
    whole = datasets.load_dataset(curated.url, cache_dir=str(tmp_path))
    assert {k: v.num_rows for k, v in whole.items()} == splits
    assert isinstance(whole["test"][0]["image"], Image.Image) and whole["test"][0]["image"].size == (48, 48)
    ids = list(whole["train"]["image_id"])
    glob = f"{curated.url}/train/*.parquet"
    rows = duckdb.sql(f"select image_id, image.bytes, combined from '{glob}'").fetchall()
    assert sorted(r[0] for r in rows) == sorted(ids)
    assert Image.open(io.BytesIO(rows[0][1])).size == (48, 48)
    frame = polars.read_parquet(glob)
    assert sorted(frame["image_id"]) == sorted(ids)
    assert Image.open(io.BytesIO(frame["image"][0]["bytes"])).size == (48, 48)
    assert frame.filter(polars.col("combined") > 0).height == sum(r[2] > 0 for r in rows)


def test_the_card_is_what_the_hub_reads_and_names_everything(world: World, curated: Output) -> None:
    text = curated.read_file("README.md").decode()
    card = DatasetCard(text)
    assert card.data.license == "apache-2.0" and card.data.pretty_name == "made-up"
    names = {c["config_name"]: c for c in card.data.configs}
    assert set(names) == {"default", "preferences"} and names["default"]["default"]
    for config in names.values():
        for entry in config["data_files"]:
            assert list(Path(curated.url).glob(entry["path"]))
    for reason, about in REASONS.items():
        count = curated.require().summary["reasons"].get(reason, 0)
        assert f"| {reason} | {count:,} | {about.meaning} |" in text
    for step in curated.require().summary["funnel"]:
        assert f"| {step['name']} | {step['rows']:,} |" in text
    ctx = world.context()
    for digest in (*ctx.model_hashes.values(), "p" * 64, world.drawn[0].require().hash):
        assert digest in text
    for name in pq.read_schema(next(Path(curated.url).glob("train/*.parquet"))).names:
        assert re.search(rf"^\| `{name}` \| \S", text, re.MULTILINE), f"column {name} has no meaning on the card"
    for picture in re.findall(r"\]\((\w+\.png)\)", text):
        assert Image.open(io.BytesIO(curated.read_file(picture))).width > 100
    assert "Known limits" in text and "No classifier of unsafe pictures" in text
    # Tables are tables: every line of one has as many cells as its head.
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def test_the_card_renders(curated: Output) -> None:
    for name in ("README.md", "preferences/README.md"):
        text = DatasetCard(curated.read_file(name).decode()).text
        html = MarkdownIt("commonmark").enable("table").render(text)
        tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
        assert html.count("<table>") == len(tables) and html.count("<tr>") == sum(t.count("\n") - 1 for t in tables)
        assert html.count("<h2>") == len(re.findall("^## ", text, re.MULTILINE)) and html.count("<h1>") == 1
        assert html.count("<img ") == len(re.findall(r"^!\[", text, re.MULTILINE))
        shown = re.sub(r"(?s)<pre>.*?</pre>|<[^>]+>", "", html)
        assert not re.search(r"^\||^#|\]\(|\*\*|`", shown, re.MULTILINE), "no mark of Markdown is left in what is read"


def test_the_recipe_loads_and_leads_to_the_same_place(world: World, curated: Output, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(curated.read_file("recipe.yaml"))
    assert str(world.root) not in file.read_text()
    again = Context(load_settings("tiny", file=str(file), root=str(world.root)))
    assert curate.place(again, world.drawn, world.partitions)[0].fingerprint == curated.fingerprint


def test_statistics_hold_the_funnel_and_the_histograms(curated: Output) -> None:
    found = json.loads(curated.read_file("statistics.json"))
    assert found["funnel"] == curated.require().summary["funnel"]
    for h in found["histograms"].values():
        assert sum(h["kept"]) == found["kept"] <= sum(h["candidates"])


def test_a_second_run_finds_it_and_a_stopped_one_ends_in_the_same_bytes(world: World, curated: Output) -> None:
    ctx = world.context("curate.keep_fraction=1")
    assert curate.build(ctx, world.drawn, world.partitions, 0.0)[1]
    before = curated.require().data
    curated.store.delete(curated.key("manifest.json"))
    for name in ("_manifest/part-00001.json", "test/part-00000.parquet", "README.md"):
        curated.store.delete(curated.key(name))
    curated.store.delete(curated.key("_manifest/part-00000.json"))
    assert not curate.build(ctx, world.drawn, world.partitions, 0.0)[1]
    assert curated.require().data == before


def test_a_dry_run_says_what_the_run_does_and_writes_nothing(world: World) -> None:
    ctx = world.context("curate.top_k=2", "curate.min_quantile={held: 0.3}")
    before = sorted(world.root.rglob("*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curate, "_drawn", lambda *_: world.drawn)
        planned = curate.plan(ctx, world.partitions)
    assert sorted(world.root.rglob("*")) == before
    assert planned == curate.build(ctx, world.drawn, world.partitions, 0.0)[0].require().summary
    assert [s["name"] for s in planned["funnel"]][-3:] == ["broken", "blank", "near_duplicate"]


def test_noise_and_embeddings_on_request(world: World, tmp_path: Path) -> None:
    output = world.curate(
        "curate.noise=true",
        "curate.embedder={id: 'looking:embed', max_cosine: 0.98}",
        "curate.unsafe={id: 'looking:reddish', threshold: 0.3}",
        "curate.near_duplicates=null",
        "curate.keep_fraction=1",
    )
    lost = rejects(output)
    reasons = {reason for reason, _ in lost.values()}
    assert {"alike", "unsafe"} <= reasons and "near_duplicate" not in reasons
    assert lost[f"{made_up.prompt_id(3)}-pahi-40"][0] == "alike"
    noise = {}
    for shard in world.drawn[0].read_shards("noise"):
        for i, name in enumerate(shard["prompt_id"].to_pylist()):
            noise.setdefault(name, []).append((read_tensor(shard, "mu")[i], read_tensor(shard, "sigma")[i]))
    table = output.read("train")
    import looking

    for i, row in enumerate(table.to_pylist()):
        picture = Image.open(io.BytesIO(row["image"]["bytes"]))
        np.testing.assert_allclose(read_tensor(table, "embedding")[i], looking.embed([picture])[0], atol=1e-2)
        mu, sigma = read_tensor(table, "mu")[i], read_tensor(table, "sigma")[i]
        assert any((mu == m).all() and (sigma == s).all() for m, s in noise[row["prompt_id"]])
        assert looking.reddish([picture])[0] < 0.3
    rows = datasets.load_dataset(output.url, split="train", cache_dir=str(tmp_path))
    assert np.shape(rows[0]["mu"]) == (16,) and np.shape(rows[0]["embedding"]) == (48,)
    text = output.read_file("README.md").decode()
    assert "looking:reddish" in text and "No classifier" not in text


def test_pairs_hold_no_unsafe_picture(world: World) -> None:
    import looking

    output = world.curate("curate.unsafe={id: 'looking:reddish', threshold: 0.3}", "curate.preferences.per_prompt=3")
    pairs = pairs_of(output)
    assert pairs
    for pair in pairs:
        for side in (0, 1):
            assert looking.reddish([Image.open(io.BytesIO(pair[f"jpg_{side}"]))])[0] < 0.3


# ------------------------------------------------------------------------------------------------------ preferences


def pairs_of(output: Output) -> list[dict]:
    tables = {t for shard in output.require().data["shards"] for t in shard["tables"]}
    return [
        r for s in curate.SPLITS if f"preferences/{s}" in tables for r in output.read(f"preferences/{s}").to_pylist()
    ]


def test_a_diffusion_dpo_trainer_reads_the_preference_set(world: World, curated: Output, tmp_path: Path) -> None:
    """The steps of diffusers' train_diffusion_dpo.py: the dataset's default configuration, then its two columns."""
    data = datasets.load_dataset(f"{curated.url}/preferences", split="train", cache_dir=str(tmp_path))

    def preprocess(examples: dict) -> dict:
        sides = []
        for name in ("jpg_0", "jpg_1"):
            pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in examples[name]]
            sides.append([np.asarray(p.resize((DPO_SIZE, DPO_SIZE))) / 127.5 - 1 for p in pictures])
        better_first = []
        for pair, label_0 in zip(zip(*sides, strict=True), examples["label_0"], strict=True):
            better_first.append(np.concatenate(pair[::-1] if label_0 == 0 else pair, axis=-1))
        return {"pixel_values": better_first, "caption": examples["caption"]}

    images = {row["image_id"]: row for row in world.images}
    rows = list(data)
    read = data.with_transform(preprocess)
    assert len(read) == curated.require().summary["preferences"]["train"] > 5
    for row, seen in zip(rows, read, strict=True):
        better = images[row["best_image_uid"]]
        expected = np.asarray(Image.open(io.BytesIO(better["image"]["bytes"])).resize((DPO_SIZE, DPO_SIZE))) / 127.5 - 1
        np.testing.assert_allclose(np.asarray(seen["pixel_values"])[..., :3], expected, atol=1e-6)
        assert seen["caption"] == better["prompt"] and row["label_0"] + row["label_1"] == 1
    assert 0 < sum(row["label_0"] for row in rows) < len(rows), "the better one is on either side"
    # The same set is a configuration of the dataset itself.
    assert len(datasets.load_dataset(curated.url, "preferences", split="train", cache_dir=str(tmp_path))) == len(rows)


@pytest.mark.parametrize("disagreeing", [False, True])
def test_pairs_are_of_one_prompt_and_the_rewards_agree(world: World, disagreeing: bool) -> None:
    output = world.curate(
        "curate.preferences={per_prompt: 2, min_margin: 0.3, disagreeing: " + str(disagreeing).lower() + "}"
    )
    scores = {(s["image_id"], s["reward"]): s["score"] for s in world.scores}
    disagree = 0
    pairs = pairs_of(output)
    for pair in pairs:
        winner, loser = (pair["image_0_uid"], pair["image_1_uid"])[:: 1 if pair["label_0"] == 1 else -1]
        assert winner == pair["best_image_uid"] != loser
        assert winner.split("-")[0] == loser.split("-")[0] == pair["prompt_id"]
        better = [scores[winner, r] > scores[loser, r] for r in made_up.REWARDS]
        disagree += not all(better)
        assert any(better) and pair["margin"] >= 0.3
        for side, name in ((0, pair["image_0_uid"]), (1, pair["image_1_uid"])):
            assert pair[f"score_pick_{side}"] == pytest.approx(scores[name, "pick"])
    assert (disagree > 0) == disagreeing
    counts = {p: sum(x["prompt_id"] == p for x in pairs) for p in {x["prompt_id"] for x in pairs}}
    assert max(counts.values()) == 2
    broken = {f"{made_up.prompt_id(p)}-pahi-{s}" for p, s in (SPECIAL["broken"], SPECIAL["blank"], SPECIAL["failed"])}
    assert not broken & {pair[n] for pair in pairs for n in ("image_0_uid", "image_1_uid")}
    DatasetCard(output.read_file("preferences/README.md").decode())


def test_no_pairs_leave_no_trace(world: World) -> None:
    output = world.curate("curate.preferences=null")
    assert not pairs_of(output) and not output.store.list(output.key("preferences"))
    card = DatasetCard(output.read_file("README.md").decode())
    assert [c["config_name"] for c in card.data.configs] == ["default"]


# ---------------------------------------------------------------------------------------------------------- licence


@pytest.mark.parametrize("license", ["unknown", "", "  "])
def test_without_the_generators_licence_there_is_no_dataset(world: World, license: str) -> None:
    with pytest.raises(UserError, match=r"generator\.license"):
        curate.run(world.context(f"generator.license={yaml.safe_dump(license)}"), world.partitions)


def test_a_whole_run_says_so_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.call(["run", "--direct", "--root", str(tmp_path), "--set", "generator.license=unknown"]) == 2
    assert "generator.license" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("license", ["MIT", "stabilityai-community", "My own: see the page | of rules"])
def test_any_licence_makes_a_valid_card(world: World, license: str) -> None:
    output = world.curate(f"generator.license={json.dumps(license)}", "curate.title='a: b | c'")
    text = output.read_file("README.md").decode()
    data = DatasetCard(text).data
    assert f"**{license}**" in text and data.pretty_name == "a: b | c"
    if license.lower() in HUB_LICENSES:
        assert data.license == license.lower()
    else:
        assert data.license == "other" and re.fullmatch(r"[a-z0-9][a-z0-9.-]*", data.to_dict()["license_name"])
