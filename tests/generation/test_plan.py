"""The sampling plan: what is drawn depends on each prompt alone."""

from hypothesis import given
from hypothesis import strategies as st

from pahi.generation.plan import STANDARD, in_control_group, kept_rows, plan
from pahi.settings import Generate

IDS = st.lists(st.text("0123456789abcdef", min_size=20, max_size=20), max_size=12, unique=True)
SETTINGS = st.builds(
    Generate,
    images_per_prompt=st.integers(1, 3),
    best_of=st.integers(1, 4),
    control_fraction=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 50),
)


@given(IDS, SETTINGS, st.sampled_from(["pahi", "standard"]))
def test_a_plan_has_every_group_whole_and_in_one_piece(ids: list[str], s: Generate, arm: str) -> None:
    samples = plan(ids, s, arm)
    groups = [sample.group for sample in samples]
    assert groups == sorted(groups) and len(samples) == s.best_of * len(set(groups))
    assert kept_rows(ids, s, arm) == len(set(groups))
    assert len({(x.prompt, x.seed, x.arm) for x in samples}) == len(samples)
    for group in set(groups):
        mine = [x for x in samples if x.group == group]
        assert len({(x.prompt, x.arm) for x in mine}) == 1
        first = mine[0].seed
        assert [x.seed for x in mine] == list(range(first, first + s.best_of))


@given(IDS, SETTINGS)
def test_the_control_group_draws_the_same_seeds(ids: list[str], s: Generate) -> None:
    samples = plan(ids, s, "pahi")
    for i, prompt_id in enumerate(ids):
        seeds = {arm: [x.seed for x in samples if x.prompt == i and x.arm == arm] for arm in ("pahi", STANDARD)}
        assert seeds["pahi"] == [s.seed + k for k in range(s.images_per_prompt * s.best_of)]
        control = in_control_group(prompt_id, s.control_fraction)
        assert seeds[STANDARD] == (seeds["pahi"] if control else [])


@given(IDS, SETTINGS)
def test_a_prompts_plan_does_not_hang_on_its_neighbours(ids: list[str], s: Generate) -> None:
    together = [(ids[x.prompt], x.seed, x.arm) for x in plan(ids, s, "pahi")]
    apart = [(one, x.seed, x.arm) for one in ids for x in plan([one], s, "pahi")]
    assert together == apart


def test_the_control_fraction_is_a_fraction_and_grows_by_inclusion() -> None:
    ids = [f"{i:020x}" for i in range(4000)]
    small, large = ({i for i in ids if in_control_group(i, f)} for f in (0.1, 0.25))
    assert small < large
    assert abs(len(small) / 4000 - 0.1) < 0.02 and abs(len(large) / 4000 - 0.25) < 0.03
