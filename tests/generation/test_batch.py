"""The batch size that is found by drawing: fast, within memory, and the same for everyone who draws."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import plain, world
from test_drawing import drawer, memory
from test_generate import run

from pahi.generation import batch
from pahi.generation.plan import plan
from pahi.maintenance import redraw
from pahi.settings import Generate
from pahi.stages import generate, ingest

COUNT = 64


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Finds the size for a device that takes so many seconds for so many pictures, by a clock that it moves."""
    now = [0.0]
    monkeypatch.setattr(batch.time, "perf_counter", lambda: now[0])

    def found(seconds: Callable[[int], float], texts: list[str] | None = None, limit: int = 10**6) -> int:
        one, fits = drawer(), memory(limit)

        def before(count: int) -> None:
            fits(count)
            now[0] += seconds(count)

        one.generator.before = before
        prompts = [{"prompt_id": f"{i:020x}", "text": text} for i, text in enumerate(texts or plain(COUNT))]
        samples = plan([p["prompt_id"] for p in prompts], Generate(control_fraction=0), "pahi")
        size = batch.find(one, prompts, samples)
        assert one.limit is None, "the probe leaves no trace"
        return size

    return found


def test_what_grows_faster_with_every_doubling_takes_all_there_is(clock) -> None:
    assert clock(lambda count: 1 + 0.001 * count) == COUNT
    assert clock(lambda count: 1.0, plain(37)) == 37, "no batch is larger than what there is to draw"


def test_a_doubling_that_brings_nothing_is_not_taken(clock) -> None:
    assert clock(lambda count: 1.0 * count) == 1
    assert clock(lambda count: max(8, count) / 8) == 8
    # One slow measurement in between is no end.
    assert clock(lambda count: 1.5 if count == 4 else max(16, count) / 16) == 16


@pytest.mark.parametrize("limit", [1, 2, 5, 31])
def test_memory_is_the_bound(clock, limit: int) -> None:
    assert clock(lambda count: 1.0, limit=limit) == 2 ** (limit.bit_length() - 1)


def test_rows_that_raise_do_not_count(clock) -> None:
    texts = plain(COUNT)
    texts[0] += " poison"
    texts[5] += " untokenizable"
    assert clock(lambda count: 1 + 0.001 * count, texts) == COUNT - 2
    assert clock(lambda count: 1.0, [f"{text} poison" for text in plain(4)]) == 1


def test_it_is_found_once_and_kept_by_everyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([4, 2])
    monkeypatch.setattr(batch, "find", lambda *_: next(sizes))
    ctx = world(tmp_path / "s", tmp_path, "generate.batch_size=null")
    output, _ = run(ctx)
    assert json.loads(output.read_file(generate.BATCH))["batch_size"] == 4
    assert max(ctx.generator.drawn) == 4
    (check,) = redraw(ctx, 10)
    assert check["ok"] and check["detail"].startswith("10 of 10 drawn again to the bit"), check
    # A shard that is lost is drawn again at the size that was found, by a process that has not found it.
    before = output.read_file("images/part-00001.parquet")
    for key in ("manifest.json", "_manifest/part-00001.json", "images/part-00001.parquet"):
        output.store.delete(output.key(key))
    run(world(tmp_path / "s", tmp_path, "generate.batch_size=null"))
    assert output.read_file("images/part-00001.parquet") == before
    assert next(sizes) == 2, "nobody looked again"


def test_another_size_moves_pixels_by_their_last_bit_at_most(tmp_path: Path) -> None:
    pixels = []
    for size in ("1", "7", "null"):
        ctx = world(tmp_path / "s", tmp_path, f"generate.batch_size={size}")
        plan_ = generate.prepare(ctx, ingest.chain(ctx))
        shard = plan_.shard((0, 0), plan_.drawer(), plan_.origin())
        pixels.append(torch.cat([drawn.pixels for drawn in shard.batches()]).int().numpy())
    assert all(np.abs(pixels[0] - other).max() <= 1 for other in pixels[1:])
