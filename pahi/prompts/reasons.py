"""Why a row is left out: every reason that the table `rejects` can hold."""

REASONS = {
    "empty": "there is no text, or none is left after cleaning",
    "unreadable": "the row is no text: wrong encoding, broken JSON, a number, or a split that does not exist",
    "too_long": "more characters than max_characters",
    "too_short": "fewer characters than filters.min_characters",
    "too_many_tokens": "more tokens than filters.max_tokens, by filters.tokenizer",
    "repetitive": "a larger share of repeated three-word sequences than filters.max_repetition",
    "language": "another language than filters.languages",
    "word_list": "holds a word or phrase of filters.word_lists",
    "not_included": "none of filters.include is found in it",
    "excluded": "one of filters.exclude is found in it",
    "classifier": "one of filters.classifiers rejects it",
    "not_sampled": "not in the share of its source that weight keeps",
    "duplicate": "equal, once cleaned, to an earlier row of this run",
    "known": "equal, once cleaned, to a prompt of an earlier run",
    "near_duplicate": "near an earlier prompt, with near_duplicates=drop",
    "near_other_split": "near prompts of two splits, or of another split than its own or its cluster's",
    "contaminated": "near a prompt of an evaluation set, and not in the test split",
}
