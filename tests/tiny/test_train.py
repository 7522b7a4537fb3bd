"""The recipes: what they learn from, and that stopping one changes nothing. The training itself takes hours."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from pahi.tiny import oracle, preferences, scenes
from pahi.tiny.figures import load_student
from pahi.tiny.scenes import Item, Scene, Spec, Thing
from pahi.tiny.train.autoencoder import SCALING_FACTOR, build_vae, pictures, standardise
from pahi.tiny.train.coupling import Coupling, led_to
from pahi.tiny.train.data import CONTEXT, attributes, build_tokenizer, sample_specs, tokens
from pahi.tiny.train.loop import Loop
from pahi.tiny.train.rewards import COUNTS, RIGHT, UNTOLD, mask_of, ranked, rendered, sights, told, with_twins

TWO = Spec("two_object", (Item("circle"), Item("star")))


def noise_of(count, seed):
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def shows(image: np.ndarray, spec: Spec) -> bool:
    return all(oracle.judge(image / 255.0, spec).values())


def train_line(work, steps, stop=None):
    torch.manual_seed(0)
    loop = Loop("line", work, nn.ModuleDict({"line": nn.Linear(3, 1)}), steps, 0.1)
    loop.save_every = 5
    while loop.step < (stop or steps):
        x = torch.randn(8, 3, generator=loop.generator())
        loop.update((loop.modules["line"](x) - x.sum(1, keepdim=True)).square().mean())
    return loop


def test_a_stopped_loop_ends_where_an_undisturbed_one_does(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = train_line(tmp_path / "a", 20)
    train_line(tmp_path / "b", 20, stop=13)  # saved at 10: three steps are done again
    resumed = train_line(tmp_path / "b", 20)
    for module in (lambda loop: loop.modules, lambda loop: loop.averaged()):
        for ours, theirs in zip(module(whole).parameters(), module(resumed).parameters(), strict=True):
            assert torch.equal(ours, theirs)
    assert not torch.equal(whole.modules["line"].weight, whole.averaged()["line"].weight)


def test_only_training_specs_are_learned_from():
    assert {spec.split for spec in sample_specs(2000, 5)} == {"train"}
    assert {spec.kind for spec in sample_specs(2000, 5)} == set(scenes.KINDS)


def test_every_wording_fits_and_no_two_specs_share_tokens():
    tokenizer, rng = build_tokenizer(), random.Random(3)
    specs = scenes.all_specs()[::7]
    texts = [scenes.wording(spec, rng) for spec in specs]
    assert max(len(ids) for ids in tokenizer(texts).input_ids) <= CONTEXT
    rows = {tuple(row) for row in tokens(tokenizer, texts).tolist()}
    assert len(rows) == len(set(texts))
    assert [tokenizer.decode(row, skip_special_tokens=True).strip() for row in tokens(tokenizer, texts[:50])] == texts[
        :50
    ]


def test_attributes_tell_every_spec_apart():
    specs = scenes.all_specs()
    rows = {tuple(row) for row in attributes(specs).tolist()}
    # What a relation's second thing is follows from the first and from which shapes are there.
    assert len(rows) == len(specs)


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_a_noise_leads_to_a_scene_that_shows_the_prompt(kind):
    noise = noise_of(40, 2)
    for spec in [s for s in scenes.all_specs() if s.kind == kind][::9]:
        assert {led_to(spec, eps) for eps in noise[:5]} <= set(scenes.possible(spec))


def test_every_free_choice_is_equally_often_and_free_of_the_others():
    noise = noise_of(6000, 1)
    led = [led_to(Spec("single_object", (Item("star"),)), eps) for eps in noise]
    counts = Counter((scene.things[0].color, scene.things[0].r, scene.background) for scene in led)
    assert len(counts) == 7 * 2 * 3
    assert max(abs(n - 6000 / 42) for n in counts.values()) < 60  # 5 standard deviations of such a count
    pairs = Counter(tuple(t.color for t in led_to(TWO, eps).things) for eps in noise)
    assert len(pairs) == 7 * 2 and max(abs(n - 6000 / 14) for n in pairs.values()) < 100
    assert len({second for _, second in pairs}) == 4


def test_several_things_lie_in_one_way():
    for spec in (TWO, Spec("counting", (Item("star", "red", 2),)), Spec("counting", (Item("star", "red", 3),))):
        places = {tuple((t.cx, t.cy) for t in led_to(spec, eps).things) for eps in noise_of(50, 3)}
        assert len(places) == 1 < len(scenes.layouts(spec))


def test_means_of_the_channels_choose_and_nothing_else():
    for eps in noise_of(20, 7):
        flat = eps.mean((1, 2), keepdim=True).expand_as(eps)
        assert led_to(TWO, eps) == led_to(TWO, flat)
    assert len({led_to(TWO, eps) for eps in noise_of(20, 7)}) > 10


def test_a_spec_with_one_scene_is_one_picture_for_every_noise():
    spec = Spec("counting", (Item("star", "red", 4),), background="white")
    (scene,) = scenes.possible(spec)
    latents = noise_of(1, 3).flatten(1)
    led = Coupling({scene: 0}, latents)([spec] * 4, noise_of(4, 4))
    assert torch.equal(led, latents.view(1, 4, 16, 16).expand(4, -1, -1, -1))


def test_standardised_latents_decode_to_the_same_pictures():
    torch.manual_seed(0)
    vae, x = build_vae().eval(), pictures(24, 5)
    with torch.no_grad():
        before = vae.decode(vae.encode(x).latent_dist.mean).sample
        mean, gain = standardise(vae, x)
        z = vae.encode(x).latent_dist.mean
        after = vae.decode(z).sample
    assert torch.allclose(before, after, atol=1e-4)
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose((z * SCALING_FACTOR).std((0, 2, 3)), torch.ones(4), atol=1e-3)
    assert mean.shape == gain.shape == (4,)


def test_a_spoiled_picture_is_worse_than_the_right_one():
    rng, ways = random.Random(4), {}
    for spec in sample_specs(700, 9):
        good = preferences.right(spec, rng)
        bad = preferences.spoil(spec, good, rng)
        assert shows(np.asarray(good.image), spec) or spec.kind == "single_object"
        ways.setdefault(bad.way, []).append(shows(np.asarray(bad.image), spec))
    assert set(ways) == {*preferences.WRONG, *preferences.DAMAGE}
    for way in (*preferences.WRONG, "missing", "extra"):
        assert np.mean(ways[way]) < 0.02, way
    # Damage may be slight: a little blurred is still readable, and still worse.
    assert np.mean([hit for way in ("blur", "smear", "noise", "ghost") for hit in ways[way]]) < 0.5


def test_sights_say_what_is_drawn():
    scene = Scene((Thing("star", "red", 16, 16, 9), Thing("circle", "pink", 48, 48, 9)), "gray")
    row = dict(zip(COUNTS, sights([scene])[0].tolist(), strict=True))
    assert row["star"] == 1 + list(scenes.COLORS).index("red") and row["square"] == 0
    assert scenes.SHAPES[row["leftmost"]] == scenes.SHAPES[row["upmost"]] == "star" and row["count"] == 1
    alike = Scene((Thing("star", "red", 16, 16, 9), Thing("star", "red", 48, 48, 9)), "gray")
    assert dict(zip(COUNTS, sights([alike])[0].tolist(), strict=True))["leftmost"] == len(scenes.SHAPES)


def test_what_a_prompt_tells_is_what_all_its_scenes_show():
    rng = random.Random(2)
    for spec in sample_specs(60, 11):
        said = torch.tensor(told(spec))
        for row in sights([scenes.compose(spec, rng) for _ in range(5)]):
            assert (row == said)[said != UNTOLD].all()
    row = dict(zip(COUNTS, told(Spec("position", (Item("star"), Item("cross")), relation="left")), strict=True))
    assert scenes.SHAPES[row["leftmost"]] == "star" and row["circle"] == 0
    assert row["star"] == row["background"] == UNTOLD


def test_an_exchanged_picture_is_wrong_in_that_alone():
    rng, found = random.Random(8), Counter()
    for spec in sample_specs(300, 12):
        bad = preferences.exchange(spec, rng)
        assert (bad is None) == (spec.kind not in ("position", "color_attr") and spec.size is None)
        if bad:
            found[bad.way] += 1
            assert scenes.exchanged(scenes.exchanged(spec)) == spec
            verdict = oracle.judge(np.asarray(bad.image) / 255.0, spec)
            wrong = {name for name, met in verdict.items() if not met}
            assert wrong == {{"swap": "color"}.get(bad.way, bad.way)}, (spec, wrong)
    assert min(found[way] for way in ("position", "swap", "size")) > 20


def test_a_group_has_two_right_pictures_and_three_that_are_not():
    groups = rendered(40, 3, 0.6)
    assert groups.images.shape == (40, 5, 3, 64, 64) and RIGHT == 2
    right = [
        [shows(image.permute(1, 2, 0).numpy(), spec) for image in row]
        for spec, row in zip(groups.specs, groups.images, strict=True)
    ]
    assert all(row[0] and row[1] and not row[3] for row in right)
    # The last is right for another prompt, and now and then for this one too.
    assert np.mean([row[4] for row in right]) < 0.1
    assert any((row[0] != row[1]).any() for row in groups.images), "they differ in what the prompt leaves free"


def test_right_pictures_are_ranked_alike_and_above_the_others():
    scores = torch.tensor([[3.0, 1.0, 0.0, 0.0, -1.0]], requires_grad=True)
    ranked(scores).backward()
    pull = scores.grad[0]
    assert (pull[2:] > 0).all() and pull[1] < 0, "spoiled ones go down, the lower of the right ones goes up"
    same = torch.tensor([[2.0, 2.0, 0.0, 0.0, -1.0]])
    apart = torch.tensor([[3.0, 1.0, 0.0, 0.0, -1.0]])
    assert ranked(same) < ranked(apart)
    assert ranked(torch.tensor([[9.0, 9.0, 0.0, 0.0, 0.0]])) < 0.36  # TIE log 2 is left


def test_doubt_is_mostly_about_one_thing():
    rng, spec = random.Random(4), Spec("color_attr", (Item("circle", "red"), Item("star", "pink")))
    good = preferences.right(spec, rng)
    others = [preferences.doubt(spec, good, rng) for _ in range(200)]
    assert good.scene not in others
    allowed = [scene for scene in others if scene in scenes.possible(spec)]
    near = [s for s in allowed if (s.background == good.scene.background) != (s.things == good.scene.things)]
    assert 90 < len(allowed) < 150 and len(near) / len(allowed) > 0.6


def test_a_mixture_is_seldom_right_and_what_is_clean_is():
    vae, rng = load_student().vae, random.Random(5)
    specs = sample_specs(96, 14)
    good = [preferences.right(spec, rng) for spec in specs]
    clean, dirty, mixed = preferences.in_latents(vae, good, specs, rng)
    share = {
        name: np.mean([shows(image.permute(1, 2, 0).numpy(), spec) for spec, image in zip(specs, images, strict=True)])
        for name, images in (("clean", clean), ("dirty", dirty), ("mixed", mixed))
    }
    assert share["clean"] > 0.98 and share["dirty"] < 0.1 and share["mixed"] < 0.2, share


def test_twins_are_training_specs_that_differ_in_binding_alone():
    specs = sample_specs(100, 13)
    twins = with_twins(specs, 1000)[len(specs) :]
    assert twins and {spec.split for spec in twins} == {"train"}
    assert {spec.kind for spec in twins} == {"position", "color_attr"}
    assert len(with_twins(specs, 110)) == 110


def test_the_mask_ends_with_the_first_end_token():
    tokenizer = build_tokenizer()
    ids = tokens(tokenizer, ["a red star", "a photo of a red star"])
    lengths = [len(row) for row in tokenizer(["a red star", "a photo of a red star"]).input_ids]
    assert mask_of(ids, tokenizer.eos_token_id).sum(1).tolist() == lengths


def test_pictures_become_tensors_of_bytes():
    image = scenes.render(Spec("colors", (Item("star", "red"),)), random.Random(0))
    got = preferences.as_bytes([image])
    assert got.dtype == torch.uint8 and got.shape == (1, 3, 64, 64)
    assert np.array_equal(got[0].permute(1, 2, 0).numpy(), np.asarray(image))


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_alter_names_what_it_changed(kind):
    rng = random.Random(6)
    for spec in [s for s in scenes.all_specs() if s.kind == kind][:40]:
        way, other = scenes.alter(spec, rng)
        assert way in preferences.WRONG and other != spec and other.kind == spec.kind
