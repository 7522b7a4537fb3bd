"""The stage around the engine: every row once, with its columns, and a run that stops when too much is bad."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_world import manifests, plain, world

from pahi.artifacts import schemas
from pahi.errors import PahiError, StageFailed
from pahi.generation.pictures import pixels_sha256
from pahi.generation.plan import in_control_group
from pahi.generation.shard import EVERY_PROMPT
from pahi.maintenance import redraw, verify
from pahi.stages import generate, ingest
from pahi.stages.common import Context


def run(ctx: Context):
    outputs, skipped = generate.run(ctx, ingest.chain(ctx))
    (output,) = outputs
    return output, skipped


def test_every_row_once_with_all_of_its_columns(tmp_path: Path) -> None:
    ctx = world(tmp_path / "s", tmp_path, "generate.images_per_prompt=2")
    output, skipped = run(ctx)
    assert not skipped
    rows = output.read("images").to_pylist()
    assert output.read("images").schema.names == schemas.IMAGES.names
    ids = [row["prompt_id"] for row in ingest.chain(ctx).prompts(["prompt_id"]).to_pylist()]
    control = {i for i in ids if in_control_group(i, 0.5)}
    assert 0 < len(control) < 40
    expected = {(i, arm, seed) for i in ids for arm in ("pahi", "standard") for seed in (1000, 1001)}
    expected = {(i, arm, seed) for i, arm, seed in expected if arm == "pahi" or i in control}
    assert len(rows) == len(expected) and {(r["prompt_id"], r["arm"], r["seed"]) for r in rows} == expected
    for row in rows:
        pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        assert pixels.shape == (row["height"], row["width"], 3)
        assert row["pixels_sha256"] == pixels_sha256(pixels), "PNG keeps every bit"
        assert (row["generator"], row["generator_revision"]) == (ctx.settings.generator.id, "c0ffee")
        assert row["candidates"] == 1 and row["status"] == "ok" and row["reason"] is None
        assert (row["kl"] == 0) == (row["arm"] == "standard")
    scores = output.read("scores").to_pylist()
    assert {(s["image_id"], s["reward"]) for s in scores} == {
        (r["image_id"], m) for r in rows for m in ("pick_alpha", "image_beta", "clip_gamma")
    }
    noise = output.read("noise")
    assert sorted(noise.column("prompt_id").to_pylist()) == sorted(ids)
    assert schemas.read_tensor(noise, "mu").dtype == np.float16
    again, skipped = run(ctx)
    assert skipped and again.url == output.url


def test_verify_draws_again_to_the_bit(tmp_path: Path) -> None:
    ctx = world(tmp_path / "s", tmp_path)
    output, _ = run(ctx)
    (check,) = redraw(ctx, 10)
    assert check["ok"] and check["detail"].startswith("10 of 10 drawn again to the bit"), check
    # Another generator's pictures are not these: the check can fail.
    ctx.generator.colours = ctx.generator.colours * 1.01
    (check,) = redraw(ctx, 10)
    assert not check["ok"], check
    # The machine's being another one, a difference within the tolerance is no failure.
    output.write_run(output.read_run() | {"host": "elsewhere"})
    (check,) = redraw(ctx, 10)
    assert check["ok"], check
    ctx.generator.colours = -ctx.generator.colours
    assert not redraw(ctx, 10)[0]["ok"]


@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8"), ("webp", b"RIFF")])
def test_formats_and_quality(tmp_path: Path, kind: str, magic: bytes) -> None:
    sizes = []
    for quality in (95, 20):
        ctx = world(tmp_path / "s", tmp_path, f"generate.format={kind}", f"generate.quality={quality}")
        rows = run(ctx)[0].read("images", ["image", "format"]).to_pylist()
        assert all(row["image"]["bytes"].startswith(magic) and row["format"] == kind for row in rows)
        sizes.append(sum(len(row["image"]["bytes"]) for row in rows))
        assert redraw(ctx, 4)[0]["ok"]
    assert (sizes[0] > sizes[1]) == (kind != "png")


def test_the_best_of_k_is_kept_and_all_k_are_recorded(tmp_path: Path) -> None:
    one = "rewards.train.1.weight=0"  # so that one reward chooses
    ctx = world(tmp_path / "s", tmp_path, one, "generate.best_of=3", "generate.images_per_prompt=2")
    output, _ = run(ctx)
    images = {row["image_id"]: row for row in output.read("images").to_pylist()}
    candidates = output.read("candidates").to_pylist()
    assert len(candidates) == 3 * 3 * len(images)  # three candidates, three rewards
    groups: dict[tuple, list[dict]] = {}
    for row in candidates:
        if row["reward"] == "pick_alpha":  # the one that trains
            groups.setdefault((row["prompt_id"], row["arm"], row["picture"]), []).append(row)
    assert len(groups) == len(images)
    for rows in groups.values():
        (kept,) = [row for row in rows if row["kept"]]
        assert kept["score"] == max(row["score"] for row in rows)
        assert images[kept["image_id"]]["seed"] == kept["seed"]
        assert {row["seed"] - 1000 - 3 * row["picture"] for row in rows} == {0, 1, 2}
    kept_scores = {(r["image_id"], r["reward"]): r["score"] for r in candidates if r["kept"]}
    assert {(r["image_id"], r["reward"]): r["score"] for r in output.read("scores").to_pylist()} == kept_scores
    # Without a choice there is no such table, and a candidate drawn alone is the same picture.
    alone = run(world(tmp_path / "s", tmp_path, one, "generate.images_per_prompt=6"))[0]
    assert "candidates" not in alone.require().data["shards"][0]["tables"]
    single = {row["image_id"]: row["width"] for row in alone.read("images").to_pylist()}
    assert set(images) <= set(single)


def test_a_global_gaussian_is_stored_once(tmp_path: Path) -> None:
    output, _ = run(world(tmp_path / "s", tmp_path, kind="hpi"))
    noise = output.read("noise")
    assert noise.column("prompt_id").to_pylist() == [EVERY_PROMPT]
    residual, _ = run(world(tmp_path / "s", tmp_path, kind="residual"))
    assert len(residual.read("noise")) == 0, "no Gaussian: it is drawn again from the checkpoint"
    without, _ = run(world(tmp_path / "s", tmp_path, "generate.keep_noise=false"))
    assert len(without.read("noise")) == 0


def test_prompts_are_read_by_the_shard_however_they_lie(tmp_path: Path) -> None:
    """Shards of pictures that begin and end within the prompts' own shards, and a partition of its own for growth."""
    sets = ["ingest.shard_rows=7", "generate.shard_rows=10"]
    ctx = world(tmp_path / "s", tmp_path, *sets)
    output, _ = run(ctx)
    assert len(output.require().data["shards"]) == 4
    ids = ingest.chain(ctx).prompts(["prompt_id"])["prompt_id"].to_pylist()
    drawn = [r["prompt_id"] for r in output.read("images", ["prompt_id", "arm"]).to_pylist() if r["arm"] == "pahi"]
    assert drawn == ids
    grown = world(tmp_path / "s", tmp_path, *sets, texts=plain(55))
    outputs, skipped = generate.run(grown, ingest.chain(grown))
    assert not skipped and outputs[0].url == output.url
    after = len(ingest.chain(grown).prompts(["prompt_id"]))
    assert after > 48  # a newcomer near prompts of two splits is left out
    assert [o.require().summary["prompts"] for o in outputs] == [40, after - 40]
    assert redraw(grown, 12)[0]["detail"].startswith("12 of 12")


def test_bad_rows_have_their_reason_and_stop_nothing(tmp_path: Path) -> None:
    texts = plain(60)
    for i, word in {3: "nan", 17: "flat", 30: "poison", 44: "untokenizable"}.items():
        texts[i] += f" {word}"
    ctx = world(tmp_path / "s", tmp_path, "generate.max_bad_fraction=0.3", texts=texts)
    output, _ = run(ctx)
    by_word: dict[str, set[str]] = {}
    for row in output.read("images").to_pylist():
        word = next((w for w in ("nan", "flat", "poison", "untokenizable") if w in row["prompt"]), "")
        assert (row["status"] == "failed") == bool(word)
        assert (row["image"] is None or row["image"]["bytes"] is None) == bool(word)
        by_word.setdefault(word, set()).add(row["reason"])
    assert by_word == {
        "": {None},
        "nan": {"not finite"},
        "flat": {"flat"},
        "poison": {"ValueError: poisoned"},
        "untokenizable": {"its text cannot be encoded: KeyError: 'no such token'"},
    }
    summary = output.require().summary
    assert summary["failed"] == sum(summary["reasons"].values()) >= 4
    bad = {r["image_id"] for r in output.read("images").to_pylist() if r["status"] == "failed"}
    assert {r["image_id"] for r in output.read("scores").to_pylist() if r["score"] is None} == bad
    assert verify(ctx.settings, rows=0)[-1]["ok"]


def test_too_many_bad_rows_stop_the_run_with_an_explanation(tmp_path: Path) -> None:
    texts = [f"{text} nan" if i % 4 == 0 else text for i, text in enumerate(plain(400))]
    ctx = world(tmp_path / "s", tmp_path, "generate.control_fraction=0", texts=texts)
    with pytest.raises(PahiError, match=r"times 'not finite'.*max_bad_fraction = 0.05") as error:
        run(ctx)
    assert "\n" not in str(error.value)
    assert len(ctx.generator.drawn) * 4 < 400, "it stopped early"
    # The share is no part of the fingerprint: raised, the run goes on where it was.
    more = world(tmp_path / "s", tmp_path, "generate.control_fraction=0", "generate.max_bad_fraction=0.5", texts=texts)
    output, _ = run(more)
    assert output.require().summary == {"prompts": 400, "images": 400, "failed": 100, "reasons": {"not finite": 100}}


def test_memory_short_in_the_middle(calm, tmp_path: Path) -> None:
    import torch

    folder, expected = calm
    ctx = world(tmp_path / "s", folder)
    calls = [0]

    def before(count: int) -> None:
        calls[0] += 1
        if calls[0] in (5, 9, 14):
            raise torch.OutOfMemoryError("CUDA out of memory")

    ctx.generator.before = before
    run(ctx)
    assert calls[0] > 14 and manifests(ctx.store) == expected


def test_one_bad_shard_is_reported_and_the_rest_is_kept(calm, tmp_path: Path, monkeypatch) -> None:
    folder, expected = calm
    ctx = world(tmp_path / "s", folder)
    commit = generate.Output.commit_shard

    def broken(self, shard, *args, **kwargs):
        if shard == "part-00002":
            raise ConnectionError("the store hung up")
        return commit(self, shard, *args, **kwargs)

    monkeypatch.setattr(generate.Output, "commit_shard", broken)
    with pytest.raises(StageFailed, match=r"1 of 5 shards failed.*partition 0, shard 2.*the store hung up"):
        run(ctx)
    found = manifests(ctx.store)
    assert len(found) == 4 and found.items() <= expected.items()
    monkeypatch.undo()
    run(ctx)
    assert manifests(ctx.store) == expected


def test_a_rerun_over_many_finished_shards_reads_no_rows(tmp_path: Path, monkeypatch) -> None:
    ctx = world(tmp_path / "s", tmp_path, "generate.shard_rows=1")
    output, _ = run(ctx)
    read: list[str] = []
    plain_read = ctx.store.read
    monkeypatch.setattr(type(ctx.store), "read", lambda self, key: read.append(key) or plain_read(key))
    assert run(ctx)[1]
    assert not [key for key in read if key.startswith(output.prefix) and not key.endswith("/manifest.json")]
    # Unfinished: the shards' manifests are read, once each to reconcile them and once to gather them; no table is.
    ctx.store.delete(output.key("manifest.json"))
    read.clear()
    run(ctx)
    mine = [key for key in read if key.startswith(output.prefix)]
    assert not [key for key in mine if key.endswith(".parquet")] and len(mine) < 2 * 40 + 10


def test_the_schema_says_its_version_and_every_meaning(tmp_path: Path) -> None:
    output, _ = run(world(tmp_path / "s", tmp_path, "generate.best_of=2"))
    for table in ("images", "scores", "noise", "candidates"):
        schema = pq.read_schema(io.BytesIO(output.read_file(f"{table}/part-00000.parquet")))
        assert schema.metadata[schemas.VERSION_KEY] == str(schemas.SCHEMA_VERSION).encode()
        assert all(field.metadata[b"meaning"] for field in schema)
    assert json.loads(output.read_file("manifest.json"))["schema_version"] == schemas.SCHEMA_VERSION
