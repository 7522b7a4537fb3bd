import base64
import io
import json
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from made_up_run import photograph, png, run
from PIL import Image

from pahi.reports import build_report, charts
from pahi.reports.pictures import album
from pahi.reports.text import number, percent, plural, signed
from pahi.reports.verdict import effect, judge

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)></script><!-- \u2028 & \"quoted\" 'too'"


def blob(html: str) -> Any:
    found = re.search(r'<script type="application/json" id="gallery-data">(.*?)</script>', html, re.S)
    assert found
    return json.loads(found[1])


def with_uplifts(alpha: tuple[float, float, float], beta: tuple[float, float, float] | None) -> dict[str, Any]:
    data = run(2)
    data["evaluate"]["flags"] = []
    for arm in data["evaluate"]["arms"]:
        if arm["arm"] == "pahi":
            arm["rewards"]["pick_alpha"]["uplift"] = dict(zip(("value", "low", "high"), alpha, strict=True))
            arm["rewards"]["pick_beta"]["uplift"] = beta and dict(zip(("value", "low", "high"), beta, strict=True))
    return data


def test_markup_in_any_text_stays_text() -> None:
    data = run(2)
    data["gallery"][0].update(prompt=EVIL, kind=EVIL, prompt_id=EVIL)
    data.update(dataset=EVIL, preset_line=EVIL, generated_by=EVIL, redraw=EVIL, settings={EVIL: [EVIL, {EVIL: EVIL}]})
    data["evaluate"]["flags"] = [EVIL]
    data["evaluate"]["by_kind"] = {EVIL: {"pahi": {EVIL: 0.1, "pick_alpha": 0.1}}}
    data["evaluate"]["arms"][2]["label"] = EVIL
    data["evaluate"]["arms"][2]["rewards"][EVIL] = {"role": "held_out", "mean": 1.0, "uplift": None, "win_rate": None}
    data["metrics"].append({"phase": EVIL, "step": 1, "name": EVIL, "value": 1.0})
    data["histograms"][EVIL] = {EVIL: [1.0, 2.0], "pahi": [1.0]}
    data["funnel"] = [{"name": EVIL, "rows": 3, "note": EVIL}]
    data["lineage"] = [{"stage": EVIL, "fingerprint": EVIL, "hash": EVIL, "url": "javascript:alert(1)"}]
    data["versions"] = {EVIL: EVIL}
    html = build_report(data)
    assert "<script>alert" not in html and "<img src=x" not in html and "<!-- " not in html
    assert len(re.findall(r"<script", html)) == len(re.findall(r"</script>", html)) == 4
    assert not re.search(r'href="(?!#|data:,)', html)
    assert EVIL in {row["prompt"] for row in blob(html)["rows"]}


def test_page_names_no_address() -> None:
    html = build_report(run(3))
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"data:image/[^\"\n<]*", "", html).replace("/* ", ""))
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    "missing", ["evaluate", "gallery", "metrics", "histograms", "funnel", "lineage", "settings", "versions", "redraw"]
)
@pytest.mark.parametrize("how", ["absent", "none"])
def test_parts_may_be_missing(missing: str, how: str) -> None:
    data = run(2)
    if how == "absent":
        del data[missing]
    else:
        data[missing] = None
    assert build_report(data).endswith("</html>")


def test_nothing_at_all() -> None:
    html = build_report({})
    assert "Nothing was evaluated." in html
    assert "This run kept no pairs of pictures." in html


def test_none_and_nan_are_not_numbers() -> None:
    data = run(2)
    for arm in data["evaluate"]["arms"]:
        arm.update(diversity=None, ms_per_image=float("nan"), kl=None, noise_norm=float("inf"))
        for reward in arm["rewards"].values():
            reward.update(mean=None, uplift=None, win_rate=None)
    data["evaluate"]["by_kind"] = {"colors": {"pahi": {"pick_alpha": None}}}
    data["metrics"] = [{"phase": "pahi", "step": 0, "name": "loss", "value": float("nan")}]
    data["histograms"] = {"pick_alpha": {"standard": [], "pahi": [float("nan")]}}
    data["gallery"][0].update(
        uplift=None, seed=None, before=None, after=b"no picture", scores={"pick_alpha": [None, 1]}
    )
    html = build_report(data)
    assert "No uplift was measured." in html
    assert "1 value not finite" in html
    visible = re.sub(r"<(script|style).*?</\1>", "", html, flags=re.S)
    assert "n/a" in visible and not re.search(r"\b(nan|inf|None)\b", visible)
    assert blob(html)["rows"][-1]["uplift"] is None


def test_no_judge_and_no_held_out_reward() -> None:
    data = run(2)
    for arm in data["evaluate"]["arms"]:
        arm["rewards"] = {"pick_alpha": arm["rewards"]["pick_alpha"]}
    html = build_report(data)
    assert "nothing independent confirms it" in html
    assert "oracle" not in re.sub(
        r"<(script|style).*?</\1>|<section[^>]*id=\"kinds\".*?</section>", "", html, flags=re.S
    )


@pytest.mark.parametrize(
    ("alpha", "beta", "tone", "words"),
    [
        ((0.5, 0.4, 0.6), (0.2, 0.1, 0.3), "good", "better pictures"),
        ((0.5, 0.4, 0.6), (0.2, -0.1, 0.5), "mixed", "does not confirm"),
        ((0.5, 0.4, 0.6), (-0.2, -0.3, -0.1), "bad", "held-out reward fell"),
        ((0.5, 0.4, 0.6), None, "mixed", "nothing independent"),
        ((0.1, -0.1, 0.3), (0.2, 0.1, 0.3), "mixed", "No clear gain"),
        ((-0.3, -0.5, -0.1), (0.0, -0.1, 0.1), "bad", "worse"),
        ((0.0, -0.1, 0.1), (-0.3, -0.5, -0.1), "bad", "worse"),
    ],
)
def test_headline_says_what_the_intervals_say(alpha: Any, beta: Any, tone: str, words: str) -> None:
    data = with_uplifts(alpha, beta)
    verdict = judge(data["evaluate"])
    assert verdict.tone == tone and words in verdict.headline
    assert ("better pictures" in build_report(data)) == (tone == "good")


def test_negative_result_is_said_plainly() -> None:
    html = build_report(with_uplifts((-0.31, -0.5, -0.12), (-0.2, -0.3, -0.1)))
    assert "<b>\N{MINUS SIGN}0.31</b> within" in html and "<b>\N{MINUS SIGN}0.20</b> (95% CI" in html
    html = re.sub(r"</?b>", "", html)
    assert "PAHI made the pictures worse." in html
    assert "\N{MINUS SIGN}0.31 within-prompt standard deviations (95% CI \N{MINUS SIGN}0.50" in html
    assert "below zero" in html


def test_a_predictor_that_ignores_the_prompt_is_named() -> None:
    data = with_uplifts((0.5, 0.4, 0.6), (0.2, 0.1, 0.3))
    shuffled = next(a for a in data["evaluate"]["arms"] if a["arm"] == "pahi_shuffled")
    shuffled["rewards"]["pick_alpha"]["uplift"] = {"value": 0.48, "low": 0.4, "high": 0.6}
    assert any("hardly uses the prompt" in note for note in judge(data["evaluate"]).notes)


def test_judge_that_disagrees_spoils_the_headline() -> None:
    data = with_uplifts((0.5, 0.4, 0.6), (0.2, 0.1, 0.3))
    pahi = next(a for a in data["evaluate"]["arms"] if a["arm"] == "pahi")
    pahi["rewards"]["oracle"].update(mean=0.5, uplift={"value": -0.08, "low": -0.12, "high": -0.04})
    verdict = judge(data["evaluate"])
    assert verdict.tone == "mixed" and "judge disagrees" in verdict.headline
    assert "falls from 58% to 50%" in verdict.notes[0]


def test_effect_needs_an_interval() -> None:
    assert effect({"value": 3.0}) == "unclear"
    assert effect({"value": 3.0, "low": 0.0, "high": 6.0}) == "unclear"
    assert effect(None) == effect({"value": None, "low": 1, "high": 2}) == "missing"


def test_gallery_is_best_first_and_pictures_keep_their_rows() -> None:
    data = run(9)
    html = build_report(data)
    rows = blob(html)["rows"]
    assert [r["uplift"] for r in rows] == sorted((r["uplift"] for r in rows), reverse=True)
    found = re.search(r'id="gallery-pictures">(.*?)</script>', html, re.S)
    assert found and len(found[1].split("\n")) == 2 * len(rows)


def seen(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_small_pictures_stay_as_they_are() -> None:
    pairs = [(r["before"], r["after"]) for r in run(3)["gallery"]]
    made = album(pairs)
    assert made.full == {} and made.edge is None
    assert [seen(uri).tobytes() for uri in made.thumbnails] == [
        Image.open(io.BytesIO(p)).tobytes() for pair in pairs for p in pair
    ]


def test_large_pictures_are_thumbnails_first_and_open_in_full() -> None:
    pairs = [(photograph(512, i), photograph(512, i + 100)) for i in range(3)]
    made = album(pairs)
    assert made.edge == 256 and [seen(uri).size for uri in made.thumbnails] == [(256, 256)] * 6
    assert sorted(made.full) == [0, 1, 2] and made.widths == [512] * 3
    for i, pair in enumerate(pairs):
        for uri, original in zip(made.best(i), pair, strict=True):
            full, given = (
                np.asarray(p.convert("RGB"), dtype=float) for p in (seen(uri), Image.open(io.BytesIO(original)))
            )
            assert full.shape == (512, 512, 3) and abs(full - given).mean() < 8
            assert len(uri) < 4 * len(original) / 3 + 100


@pytest.mark.parametrize("room", [40_000, 120_000, 900_000])
def test_pictures_keep_within_the_bytes_of_a_page(room: int) -> None:
    pairs = [(photograph(256, i), photograph(256, i + 50)) for i in range(6)]
    made = album(pairs, first=[2], page_bytes=room)
    spent = sum(map(len, made.thumbnails)) + sum(len(uri) for pair in made.full.values() for uri in pair)
    assert spent <= room and all(made.thumbnails)
    assert list(made.full) == [2, 0, 5, 1, 4, 3][: len(made.full)]  # those asked for, then both ends
    assert (len(made.full) < 6) == (room < 900_000)


def test_what_has_no_room_is_left_out_from_the_middle() -> None:
    made = album([(photograph(256, i), None) for i in range(9)], page_bytes=6_000)
    here = [i for i in range(9) if made.thumbnails[2 * i]]
    assert 0 < len(here) < 9 and here[0] == 0 and 4 not in here and made.full == {}


def test_a_torn_picture_is_none() -> None:
    whole = photograph(256, 0)
    made = album([(whole[: len(whole) // 2], b"no picture"), (whole, whole)])
    assert made.thumbnails[:2] == ["", ""] and made.thumbnails[2]


def test_the_page_says_what_is_shown_small() -> None:
    data = run(2)
    for row in data["gallery"]:
        row.update(before=photograph(300, 1), after=photograph(300, 2))
    html = build_report(data)
    assert "thumbnails of 256 pixels; all of 2 pairs open at full size" in html and "at most 32 MB" in html
    assert [row["full"] for row in blob(html)["rows"]] == [0, 1]
    assert "thumbnails" not in re.sub(r"<(script|style).*?</\1>", "", build_report(run(2)), flags=re.S)


def test_reward_hacking_is_said_first_and_silence_is_said_too() -> None:
    data = run(2)
    data["evaluate"]["flags"] = [
        "PAHI's noise is long",
        "reward hacking: the training reward rose and a held-out one fell",
    ]
    html = build_report(data)
    assert html.index("Reward hacking: the training") < html.index("noise is long") < html.index('id="arms"')
    data["evaluate"]["flags"] = []
    assert "No warning: the evaluation looked for reward hacking" in build_report(data)
    assert "No warning" not in build_report({"evaluate": {"flags": []}})


def test_what_became_of_pictures_and_noise_is_shown() -> None:
    data = run(2)
    pahi = next(a for a in data["evaluate"]["arms"] if a["arm"] == "pahi")
    pahi.update(noise_correlation=0.1234, cmmd_reference={"value": 0.777, "low": 0.7, "high": 0.85})
    pahi["benchmarks"] = {"geneval": {"value": 0.512, "uplift": {"value": 0.03, "low": 0.01, "high": 0.05}}}
    html = build_report(data)
    table = re.search(r'<table class="distribution">.*?</table>', html, re.S)
    assert table
    for figure in (
        "0.355",
        "0.305 to 0.405",
        "0.85 to 0.91",
        "0.123",
        "0.777",
        "geneval",
        "0.512",
        "+0.03 +0.01 to +0.05",
    ):
        assert figure in table[0]
    assert "bootstrap over 70 scenes" in html and "pick_beta" in html


def test_only_small_pictures_are_pixelated() -> None:
    data = run(1)
    data["gallery"][0].update(before=png(Image.new("RGB", (512, 512))), after=png(Image.new("RGB", (512, 512))))
    assert 'class="pixelated"' not in build_report(data)
    assert 'class="pixelated"' in build_report(run(1))


def test_hero_shows_the_whole_range() -> None:
    html = build_report(run(40))
    labels = re.findall(r'<span class="what">(.*?)</span>', html)
    assert labels[0] == "Largest gain" and labels[-1] == "Largest loss" and "Median" in labels


def test_hero_opens_on_the_best_pair_only_where_the_result_is_good() -> None:
    def opened(data: dict[str, Any]) -> Any:
        found = re.search(r'aria-pressed="true">\s*<img[^>]*><span class="what">(.*?)<', build_report(data))
        return found and found[1]

    bad = with_uplifts((-0.3, -0.5, -0.1), (0.0, -0.1, 0.1))
    bad["gallery"] = run(40)["gallery"]
    assert (opened(run(40)), opened(bad)) == ("Largest gain", "Median")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.3, 0.7), (1e-9, 3e-9), (5, 5), (-4e6, 1e7), (0, 0)])
def test_ticks_cover_the_range(low: float, high: float) -> None:
    ticks = charts.nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 12


def test_labels_of_a_plot_do_not_overlap() -> None:
    placed = charts._spread([100, 101, 102, 250], 17, 0, 260)
    assert all(b - a >= 17 - 1e-9 for a, b in pairwise(placed)) and placed[-1] <= 260


def test_long_curves_are_thinned_but_end_where_they_end() -> None:
    points = [(float(i), float(i)) for i in range(10_000)]
    thin = charts._thin(points)
    assert len(thin) <= charts.MAX_POINTS + 1 and thin[-1] == points[-1]


def test_numbers() -> None:
    assert signed(-0.001) == "+0.00"
    assert signed(-1.25, 1) in ("\N{MINUS SIGN}1.2", "\N{MINUS SIGN}1.3")
    assert number(True) == percent(float("nan")) == "n/a"
    assert plural(1, "seed") == "1 seed" and plural(None, "seed") == "n/a seeds"
