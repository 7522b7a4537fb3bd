import hashlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pahi.prompts import clean, prompt_id

# What the steps of cleaning uncover for one another, far more often than arbitrary text does.
PIECES = st.sampled_from([
    "&", "amp;", "＆", "；", "#38;", "#x26;", "lt;", "nbsp;", "zwj;", "&#56;", "&#", "3", " ", "\t", "\u00a0", "\u2028",
    "\u200b", "\u00ad", "\x00", "\x1f", "\ufeff", "\ud800", "\u0600", "e", "\u0301", "ﬁ", "½", "👩\u200d🎨",
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
    assert set(flags) <= {"nfkc", "html", "control", "whitespace"} and len(flags) == len(set(flags))
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


def test_many_levels_of_escaping_take_no_time():
    assert clean("&" + "amp;" * 100_000 + "lt;")[0] == "<"


def test_prompt_id_is_the_head_of_a_sha256():
    assert prompt_id("ein Fuß") == hashlib.sha256("ein Fuß".encode()).hexdigest()[:20]
