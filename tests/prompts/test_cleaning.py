import hashlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pahi.prompts import clean, prompt_id
from pahi.prompts.cleaning import clean_fully
from pahi.settings import CLEANING

# What the steps of cleaning uncover for one another, far more often than arbitrary text does.
PIECES = st.sampled_from([
    "&", "amp;", "＆", "；", "#38;", "#x26;", "lt;", "nbsp;", "zwj;", "&#56;", "&#", "3", " ", "\t", "\u00a0", "\u2028",
    "\u200b", "\u00ad", "\x00", "\x1f", "\ufeff", "\ud800", "\u0600", "e", "\u0301", "ﬁ", "½", "👩\u200d🎨",
    "--", "—", "ar 16:9", "no ", "hd", "(", ")", ":1.3", "：", "word", "<lora:", "x:0.8>", "\\",
])  # fmt: skip
TEXTS = st.one_of(
    st.text(st.characters(codec=None), max_size=60), st.lists(PIECES, max_size=14).map("".join), st.text(max_size=60)
)


@given(TEXTS)
def test_cleaning_twice_is_cleaning_once(text):
    cleaned, flags = clean(text)
    assert clean(cleaned) == (cleaned, [])
    assert bool(flags) == (cleaned != text)


@given(TEXTS)
def test_what_comes_out_is_normal_visible_and_encodable(text):
    cleaned, flags = clean(text)
    assert unicodedata.is_normalized("NFKC", cleaned)
    assert cleaned == " ".join(cleaned.split())
    assert not any(unicodedata.category(c) in ("Cc", "Cs") or c in "\u200b\u200c\u200d\u2060\ufeff" for c in cleaned)
    assert set(flags) <= set(CLEANING) and len(flags) == len(set(flags))
    assert len(prompt_id(cleaned)) == 20


@pytest.mark.parametrize(
    ("text", "cleaned", "flags"),
    [
        ("a red fox", "a red fox", []),
        ("  a red\n\tfox ", "a red fox", ["whitespace"]),
        ("salt &amp; pepper", "salt & pepper", ["html"]),
        ("salt &amp;amp;#38; pepper", "salt & pepper", ["html"]),
        ("a&am\u200bp;b", "a&b", ["html", "control"]),
        ("＆ｌｔ；", "<", ["nfkc", "html"]),
        ("ﬁsh", "fish", ["nfkc"]),
        ("a\x00 b\ufeff", "a b", ["control"]),
        ("R&D, AT&T and &notice; or &copy=1", "R&D, AT&T and &notice; or &copy=1", []),
        ("\u200b \u00ad", "", ["control", "whitespace"]),
        ("日本の家 ❤ 🎨", "日本の家 ❤ 🎨", []),
    ],
)
def test_examples(text, cleaned, flags):
    assert clean(text) == (cleaned, flags)


@given(TEXTS, st.lists(st.sampled_from(CLEANING), unique=True))
def test_steps_that_are_switched_off_do_nothing(text, steps):
    cleaned, flags = clean(text, [step for step in CLEANING if step in steps])
    assert set(flags) <= set(steps)
    assert clean(cleaned, [step for step in CLEANING if step in steps]) == (cleaned, [])
    assert clean(text, []) == (text, [])


@pytest.mark.parametrize(
    ("text", "cleaned", "parameters", "weights"),
    [
        ("a fox --ar 16:9 --v 5.2", "a fox", [("ar", "16:9"), ("v", "5.2")], []),
        ("a fox —ar 3:2 –hd", "a fox", [("ar", "3:2"), ("hd", "")], []),
        ("a fox --no red, blue things --tile", "a fox", [("no", "red, blue things"), ("tile", "")], []),
        ("a fox --style raw --s 250, oil", "a fox , oil", [("style", "raw"), ("s", "250")], []),
        ("a fox --w in the hall --q", "a fox --w in the hall", [("q", "")], []),
        ("a fox <lora:fur_v2:0.8>, oil", "a fox , oil", [("lora", "fur_v2:0.8")], []),
        ("a (red:1.3) fox", "a red fox", [], [("red", 1.3)]),
        ("a ((big:1.1) red:.5) fox", "a big red fox", [], [("big", 1.1), ("big red", 0.5)]),
        ("a fox (John 3:16), at (16:9), :1.2)", "a fox (John 3:16), at (16:9), :1.2)", [], []),
        ("a fox \\(series:1.2\\), (plain)", "a fox \\(series:1.2\\), (plain)", [], []),
        ("a knight -- and a --dragon, e--ar 16:9", "a knight -- and a --dragon, e--ar 16:9", [], []),
    ],
)
def test_what_is_meant_for_a_generator_is_kept_apart(text, cleaned, parameters, weights):
    found = clean_fully(text)
    assert (found.text, found.parameters, found.weights) == (cleaned, parameters, weights)
    assert set(found.flags) - {"whitespace"} == {n for n, v in (("parameters", parameters), ("weights", weights)) if v}


def test_brackets_within_brackets_take_no_time():
    text = "(" * 3000 + "x" + ":1.1)" * 3000
    assert clean_fully(text).text == "x" and len(clean_fully(text).weights) == 3000


def test_many_levels_of_escaping_take_no_time():
    assert clean("&" + "amp;" * 100_000 + "lt;")[0] == "<"


def test_prompt_id_is_the_head_of_a_sha256():
    assert prompt_id("ein Fuß") == hashlib.sha256("ein Fuß".encode()).hexdigest()[:20]
