import sys

import pytest
from test_ingest import SHARED, run
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from pahi.errors import UserError
from pahi.prompts import Row
from pahi.prompts.filters import Repetitive, WordList, judge, make_filters
from pahi.settings import Filters


def rejected(*texts, **filters):
    prompts, rejects = run(*[Row(i, t) for i, t in enumerate(texts)], filters=filters)
    assert len(prompts) + len(rejects) == len(texts)
    return {r["row"]: (r["reason"], r["detail"]) for r in rejects}


def test_none_by_default():
    assert make_filters(Filters()) == []


def test_length_and_rules():
    found = rejected(
        "fox", "a red fox", "an owl", "a blue fox", min_characters=4, include=["fox"], exclude=["(?i)BLUE"]
    )
    assert {k: v[0] for k, v in found.items()} == {0: "too_short", 2: "not_included", 3: "excluded"}
    assert found[3][1] == "(?i)BLUE"


def test_repetition():
    found = rejected("a fox and an owl", "very very very very very good", "a b", max_repetition=0.4)
    assert set(found) == {1} and found[1][0] == "repetitive"
    assert Repetitive(0.0)(["a b c d", "a b c a b c"]) == [None, "0.25 of its word sequences repeat; at most 0"]


def test_word_lists_find_whole_words_and_phrases(tmp_path):
    (tmp_path / "words.txt").write_text("# a comment\nBad\nvery rude thing\n下品\n🖕\n")
    found = WordList([str(tmp_path / "words.txt")])([
        "a BAD fox", "badly drawn", "a very, rude thing!", "a very rude fox", "とても下品な絵", "a 🖕 sign", "rude",
    ])  # fmt: skip
    assert found == ["bad", None, "very rude thing", None, "下品", "🖕", None]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/prompts")
def test_a_real_word_list_has_every_entry_found():
    path = SHARED / "wordlists/ldnoobw_en.txt"
    entries = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    assert all(WordList([str(path)])([f"see {entry}, please" for entry in entries]))


def test_languages_keep_what_is_not_sure():
    german = "ein roter Fuchs schläft im tiefen Schnee eines winterlichen Waldes"
    found = rejected(german, "a red fox sleeps in the deep snow of a winter forest", "fox", languages=["en"])
    assert set(found) == {0} and found[0][0] == "language" and found[0][1].startswith("de, probability")
    with pytest.raises(UserError, match="'xx' is none of"):
        rejected("a", languages=["xx"])


def scores(texts):
    return [1.0 if "fox" in t else 0.0 for t in texts]


def test_a_function_of_ones_own(monkeypatch):
    one = {"name": "mine", "id": f"{__name__}:scores"}
    assert rejected("a fox", "an owl", classifiers=[one]) == {0: ("classifier", "mine: score 1.00")}
    with pytest.raises(UserError, match="no attribute 'none'"):
        rejected("a", classifiers=[{"name": "mine", "id": f"{__name__}:none"}])
    monkeypatch.setattr(f"{__name__}.scores", lambda texts: [0.0])
    with pytest.raises(UserError, match="1 scores for 2 prompts"):
        rejected("a", "b", classifiers=[one])


@pytest.mark.parametrize("content", ["raise ValueError('two\\nlines')", "f = (", "import no_such_module_here", "f = 3"])
def test_a_function_that_cannot_be_had_is_one_line(tmp_path, monkeypatch, content):
    (tmp_path / "broken_filter.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_filter", raising=False)
    with pytest.raises(UserError, match="classifier 'mine'") as error:
        rejected("a", classifiers=[{"name": "mine", "id": "broken_filter:f"}])
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A text-classification model as the Hub has them, which sees the word `fox` as unsafe."""
    import torch

    folder = tmp_path_factory.mktemp("model")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fox", "owl"]))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label={0: "safe", 1: "unsafe"}, label2id={"safe": 0, "unsafe": 1},
    )  # fmt: skip
    network = BertForSequenceClassification(config)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    ids, labels = torch.tensor([[2, 5, 6, 3], [2, 5, 7, 3]]), torch.tensor([1, 0])
    for _ in range(60):
        optimiser.zero_grad()
        network(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
    network.save_pretrained(folder)
    return str(folder)


def test_a_model_of_the_hubs_kind(model):
    one = {"name": "safety", "id": model, "labels": ["unsafe"]}
    found = rejected("a fox", "a owl", classifiers=[one])
    assert set(found) == {0} and found[0][1].startswith("safety: unsafe ")
    with pytest.raises(UserError, match="no label 'nsfw'; it has safe, unsafe"):
        rejected("a", classifiers=[{**one, "labels": ["nsfw"]}])
    with pytest.raises(UserError, match="cannot be loaded"):
        rejected("a", classifiers=[{**one, "id": "/no/such/folder"}])
    with pytest.raises(ValueError, match="needs the labels"):
        Filters(classifiers=[{"name": "safety", "id": model}])


def test_tokens(model):
    found = rejected("a fox a owl a fox", "a fox", max_tokens=4, tokenizer=model)
    assert found == {0: ("too_many_tokens", "8 tokens; at most 4")}
    with pytest.raises(UserError, match="cannot be loaded"):
        rejected("a", max_tokens=4, tokenizer="/no/such/folder")


def test_a_filter_sees_only_what_earlier_ones_left():
    seen = []

    class First:
        reason = "first"

        def __call__(self, texts):
            return ["no" if t == "a" else None for t in texts]

    class Second:
        reason = "second"

        def __call__(self, texts):
            seen.extend(texts)
            return ["no"] * len(texts)

    assert judge(["a", "b"], [First(), Second()]) == [("first", "no"), ("second", "no")]
    assert seen == ["b"]


def test_equal_prompts_share_a_filters_verdict():
    prompts, rejects = run(Row(1, "a fox"), Row(2, " a  fox"), Row(3, "an owl"), filters={"exclude": ["fox"]})
    assert [r["reason"] for r in rejects] == ["excluded", "excluded"] and len(prompts) == 1


def test_weights_keep_their_share_by_the_prompt_itself():
    rows = [("half", Row(i, f"prompt {i}")) for i in range(1000)] + [("all", Row(i, f"p {i}")) for i in range(50)]
    prompts, rejects = run(*rows, weights={"half": 0.5, "all": 1.0})
    kept = {p["text"] for p in prompts if p["source"] == "half"}
    assert 430 < len(kept) < 570 and {r["reason"] for r in rejects} == {"not_sampled"}
    assert sum(p["source"] == "all" for p in prompts) == 50
    more, _ = run(*rows, weights={"half": 0.6})
    assert kept <= {p["text"] for p in more}
