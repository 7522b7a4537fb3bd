"""What a batch survives, and that the rows beside a bad one are the very same bits."""

import pytest
import torch
from small_world import SHAPE, WIDTH, SmallGenerator, SmallReward, plain

from pahi.errors import UserError
from pahi.generation.drawing import SCORES, Drawer, Drawn
from pahi.generation.plan import plan
from pahi.predictors import NoisePredictor
from pahi.settings import Generate

SETTINGS = Generate(images_per_prompt=1, control_fraction=0.5)


def drawer() -> Drawer:
    torch.manual_seed(1)
    predictor = NoisePredictor.create("pahi", SHAPE, WIDTH, 8)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Drawer(SmallGenerator(), predictor, [SmallReward("red", 0), SmallReward("green", 1)])


def draw(texts: list[str], one: Drawer | None = None) -> tuple[Drawer, Drawn]:
    one = one or drawer()
    prompts = [{"prompt_id": f"{i:020x}", "text": text} for i, text in enumerate(texts)]
    drawn = one.draw(prompts, plan([p["prompt_id"] for p in prompts], SETTINGS, "pahi"), {})
    drawn.ready()
    return one, drawn


def same_rows(one: Drawn, other: Drawn, but: set[int]) -> None:
    """Rows of prompts other than `but` are equal to the bit."""
    rows = [r for r, s in enumerate(one.samples) if s.prompt not in but]
    assert rows
    assert torch.equal(one.pixels[rows], other.pixels[rows])
    assert torch.equal(one.numbers[rows], other.numbers[rows])
    assert all(other.reason(r) is None for r in rows)


def test_the_control_group_is_the_standard_gaussian_of_the_same_noise() -> None:
    one, drawn = draw(plain(12))
    arms = {(s.prompt, s.arm): r for r, s in enumerate(drawn.samples)}
    pairs = [i for i in range(12) if (i, "standard") in arms]
    assert pairs
    for i in pairs:
        ours, plain_ = arms[i, "pahi"], arms[i, "standard"]
        assert drawn.numbers[plain_, 1] == 0 and drawn.numbers[ours, 1] > 0
        assert not torch.equal(drawn.pixels[ours], drawn.pixels[plain_])
    # With the standard Gaussian as predictor, the whole batch is the control group.
    one.predictor = NoisePredictor.create("standard", SHAPE, WIDTH)
    again = draw(plain(12), one)[1]
    theirs, controls = ([arms[i, arm] for i in pairs] for arm in ("pahi", "standard"))
    assert torch.equal(again.pixels[theirs], drawn.pixels[controls])


@pytest.mark.parametrize("word", ["nan", "flat", "poison", "untokenizable"])
def test_a_bad_row_is_told_apart_and_its_neighbours_are_the_same(word: str) -> None:
    texts = plain(11)
    good = draw(texts)[1]
    texts[4] += f" {word}"
    drawn = draw(texts)[1]
    expected = {"nan": "not finite", "flat": "flat", "poison": "poisoned", "untokenizable": "no such token"}[word]
    for row, sample in enumerate(drawn.samples):
        if sample.prompt == 4:
            assert expected in (drawn.reason(row) or "")
    same_rows(good, drawn, {4})


def test_a_poisoned_batch_is_bisected_at_its_own_shape() -> None:
    texts = plain(16)
    texts[3] += " poison"
    texts[9] += " poison"
    one, drawn = draw(texts)
    assert {s.prompt for r, s in enumerate(drawn.samples) if drawn.reason(r)} == {3, 9}
    assert set(one.generator.drawn) <= {len(drawn.samples)}


def test_every_row_bad_is_no_crash() -> None:
    drawn = draw([f"{t} untokenizable" for t in plain(3)])[1]
    assert all("no such token" in (drawn.reason(r) or "") for r in range(len(drawn.samples)))
    drawn = draw([f"{t} poison" for t in plain(3)])[1]
    assert all("poisoned" in (drawn.reason(r) or "") for r in range(len(drawn.samples)))
    assert drawn.pixels.shape[1:] == (16, 16, 3)


def memory(limit: int, times: int = 10**9):
    """A device on which more than `limit` pictures do not fit, so many times."""
    left = [times]

    def check(count: int) -> None:
        if count > limit and left[0] > 0:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return check


def test_memory_that_was_short_once_changes_no_bit() -> None:
    good = draw(plain(9))[1]
    one = drawer()
    one.generator.before = memory(0, times=1)
    drawn = draw(plain(9), one)[1]
    same_rows(good, drawn, set())
    assert one.limit is None, "the same batch fits the second time"


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8])
def test_memory_that_is_short_halves_the_batch_and_loses_no_row(limit: int) -> None:
    good = draw(plain(9))[1]
    one = drawer()
    one.generator.before = memory(limit)
    drawn = draw(plain(9), one)[1]
    assert one.limit is not None and one.limit <= limit
    assert all(drawn.reason(r) is None for r in range(len(drawn.samples)))
    # Another shape may move the last bit of a float.
    torch.testing.assert_close(drawn.numbers, good.numbers, rtol=1e-4, atol=1e-5)
    assert (drawn.pixels.int() - good.pixels.int()).abs().max() <= 1
    # From now on batches are drawn in parts of one shape, and nothing is tried that did not fit.
    one.generator.drawn.clear()
    draw(plain(9), one)
    assert set(one.generator.drawn) == {one.limit}


def test_not_even_one_picture_fits() -> None:
    one = drawer()
    one.generator.before = memory(0)
    with pytest.raises(UserError, match="not even one picture fits"):
        draw(plain(3), one)


def test_memory_short_and_poison_together() -> None:
    texts = plain(9)
    texts[2] += " poison"
    one = drawer()
    one.generator.before = memory(4)
    drawn = draw(texts, one)[1]
    assert {s.prompt for r, s in enumerate(drawn.samples) if drawn.reason(r)} == {2}


def test_a_score_that_is_not_finite_is_no_failure() -> None:
    one = drawer()
    score = one.rewards[0].score
    one.rewards[0].score = lambda *a: score(*a) * float("nan")  # type: ignore[method-assign]
    drawn = draw(plain(3), one)[1]
    assert all(drawn.reason(r) is None for r in range(len(drawn.samples)))
    assert drawn.numbers[:, SCORES].isnan().all() and drawn.numbers[:, SCORES + 1].isfinite().all()
