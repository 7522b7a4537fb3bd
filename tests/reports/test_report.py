import json
import re
from itertools import pairwise
from typing import Any

import pytest
from made_up_run import png, run
from PIL import Image

from pahi.reports import build_report, charts
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
    assert len(re.findall(r"<script", html)) == len(re.findall(r"</script>", html)) == 3
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
    data["evaluate"]["by_kind"] = {"color": {"pahi": {"pick_alpha": None}}}
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
