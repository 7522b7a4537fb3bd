"""What a prompt must be like: small filters, each of which returns why it rejects a prompt, or None.

They get prompts in batches, so that tokenizers and classifiers do too.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from pahi.errors import UserError, first_line
from pahi.functions import find_function
from pahi.prompts.formats import read_txt
from pahi.settings import Filters, PromptClassifier, Source

Verdict = str | None  # the detail of a rejection


class TooShort:
    reason = "too_short"

    def __init__(self, least: int) -> None:
        self.least = least

    def __call__(self, texts: Sequence[str]) -> list[Verdict]:
        return [f"{len(t)} characters; at least {self.least}" if len(t) < self.least else None for t in texts]


class TooManyTokens:
    reason = "too_many_tokens"

    def __init__(self, most: int, tokenizer: str) -> None:
        from transformers import AutoTokenizer

        self.most = most
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        except (OSError, ValueError) as error:
            raise UserError(f"filters.tokenizer {tokenizer!r} cannot be loaded: {first_line(error)}") from None

    def __call__(self, texts: Sequence[str]) -> list[Verdict]:
        counts = [len(ids) for ids in self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]
        return [f"{count} tokens; at most {self.most}" if count > self.most else None for count in counts]


class Repetitive:
    """Share of three-word sequences that occurred before in the prompt (Rae et al. 2021, Gopher, table A1)."""

    reason = "repetitive"

    def __init__(self, most: float) -> None:
        self.most = most

    def __call__(self, texts: Sequence[str]) -> list[Verdict]:
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> Verdict:
        words = text.casefold().split()
        if len(set(words)) == len(words):  # quick to see, and true of most
            return None
        triples = list(zip(words, words[1:], words[2:], strict=False))
        share = 1 - len(set(triples)) / len(triples) if triples else 0.0
        return f"{share:.2f} of its word sequences repeat; at most {self.most:g}" if share > self.most else None


class Language:
    """py3langid's guess. Short prompts give it little to go by, so what it is not sure of is kept."""

    reason = "language"

    def __init__(self, languages: Sequence[str], least: float) -> None:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self.languages, self.least = frozenset(languages), least
        self.identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        known = set(self.identifier.nb_classes)
        for language in languages:
            if language not in known:
                raise UserError(f"filters.languages: {language!r} is none of {', '.join(sorted(known))}")

    def __call__(self, texts: Sequence[str]) -> list[Verdict]:
        found = [self.identifier.classify(text) for text in texts]
        return [
            f"{language}, probability {probability:.2f}"
            if language not in self.languages and probability >= self.least
            else None
            for language, probability in found
        ]


class WordList:
    """Whole words and phrases, upper and lower case being equal. What has no spaces between words is found anywhere."""

    reason = "word_list"
    _WORD = re.compile(r"[^\W_]+")
    _UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")  # Thai, Lao, Japanese, Chinese

    def __init__(self, paths: Sequence[str]) -> None:
        self.phrases: dict[str, list[tuple[str, ...]]] = {}  # by their first word
        self.anywhere: list[str] = []
        for path in paths:
            for row in read_txt(word_list(path)):
                entry = (row.text or "").strip().casefold()
                if row.error or not entry or entry.startswith("#"):
                    continue
                words = tuple(self._WORD.findall(entry))
                if not words or self._UNSPACED.search(entry):
                    self.anywhere.append(entry)
                else:
                    self.phrases.setdefault(words[0], []).append(words)

    def __call__(self, texts: Sequence[str]) -> list[Verdict]:
        return [self._one(text.casefold()) for text in texts]

    def _one(self, text: str) -> Verdict:
        words = self._WORD.findall(text)
        for first in self.phrases.keys() & set(words):
            for phrase in self.phrases[first]:
                size = len(phrase)
                for place, word in enumerate(words):
                    if word == first and tuple(words[place : place + size]) == phrase:
                        return " ".join(phrase)
        return next((entry for entry in self.anywhere if entry in text), None)


class Included:
    reason = "not_included"

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = [re.compile(pattern) for pattern in patterns]

    def __call__(self, texts: Sequence[str]) -> list[Verdict]:
        return [None if any(p.search(t) for p in self.patterns) else "no rule of filters.include" for t in texts]


class Excluded:
    reason = "excluded"

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = [re.compile(pattern) for pattern in patterns]

    def __call__(self, texts: Sequence[str]) -> list[Verdict]:
        return [next((p.pattern for p in self.patterns if p.search(t)), None) for t in texts]


class Classified:
    """A function of the user's, texts -> scores in [0, 1], or a text-classification model, by its score of labels."""

    reason = "classifier"

    def __init__(self, classifier: PromptClassifier) -> None:
        self.classifier = classifier
        self.score: Callable[[Sequence[str]], list[tuple[str, float]]]
        self.score = self._function() if is_function(classifier) else self._model()

    def __call__(self, texts: Sequence[str]) -> list[Verdict]:
        name, threshold = self.classifier.name, self.classifier.threshold
        try:
            found = self.score(texts)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"classifier {name!r} failed: {type(error).__name__}: {first_line(error)}") from None
        if len(found) != len(texts):
            raise UserError(f"classifier {name!r} gave {len(found)} scores for {len(texts)} prompts")
        return [f"{name}: {label} {score:.2f}" if score >= threshold else None for label, score in found]

    def _function(self) -> Callable[[Sequence[str]], list[tuple[str, float]]]:
        call = find_function(self.classifier.id, f"classifier {self.classifier.name!r}")
        return lambda texts: [("score", float(score)) for score in call(list(texts))]

    def _model(self) -> Callable[[Sequence[str]], list[tuple[str, float]]]:
        from transformers import pipeline

        wanted = set(self.classifier.labels)
        try:
            model: Any = pipeline(
                "text-classification", self.classifier.id, revision=self.classifier.revision, top_k=None
            )
        except (OSError, ValueError) as error:
            raise UserError(f"classifier {self.classifier.id!r} cannot be loaded: {first_line(error)}") from None
        missing = wanted - set(model.model.config.id2label.values())
        if missing:
            known = ", ".join(map(str, model.model.config.id2label.values()))
            raise UserError(f"classifier {self.classifier.id!r} has no label {min(missing)!r}; it has {known}")

        def score(texts: Sequence[str]) -> list[tuple[str, float]]:
            # Labels of one model exclude one another, so that their scores add up; others are judged by the largest.
            several = model.model.config.problem_type == "multi_label_classification"
            found = []
            for scores in model(list(texts), truncation=True, batch_size=32):
                hits = [s for s in scores if s["label"] in wanted]
                best = max(hits, key=lambda s: s["score"])
                found.append((best["label"], best["score"] if several else sum(s["score"] for s in hits)))
            return found

        return score


def is_function(classifier: PromptClassifier) -> bool:
    return ":" in classifier.id and not classifier.labels


def word_list(path: str) -> Source:
    """A word list as a source, whatever its suffix."""
    return Source(path=path, format="txt")  # type: ignore[call-arg]


def make_filters(settings: Filters) -> list[Any]:
    """Those that the settings ask for, cheap ones first."""
    filters: list[Any] = []
    if settings.min_characters > 1:
        filters.append(TooShort(settings.min_characters))
    if settings.include:
        filters.append(Included(settings.include))
    if settings.exclude:
        filters.append(Excluded(settings.exclude))
    if settings.word_lists:
        filters.append(WordList(settings.word_lists))
    if settings.max_repetition is not None:
        filters.append(Repetitive(settings.max_repetition))
    if settings.languages:
        filters.append(Language(settings.languages, settings.min_language_probability))
    if settings.max_tokens:
        filters.append(TooManyTokens(settings.max_tokens, settings.tokenizer))
    filters += [Classified(classifier) for classifier in settings.classifiers]
    return filters


def judge(texts: Sequence[str], filters: Sequence[Any]) -> list[tuple[str, str] | None]:
    """(reason, detail) of the first filter that rejects each text, or None; a filter sees what earlier ones left."""
    found: list[tuple[str, str] | None] = [None] * len(texts)
    left = list(range(len(texts)))
    for one in filters:
        if not left:
            break
        verdicts = one([texts[i] for i in left])
        for i, detail in zip(left, verdicts, strict=True):
            if detail is not None:
                found[i] = one.reason, detail
        left = [i for i in left if found[i] is None]
    return found
