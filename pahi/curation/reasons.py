"""Why a picture is not in the dataset: every reason there is, in the order in which they are looked at."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """`setting` is the one of `curate` that decides, empty where none does; `meaning` says what it drops."""

    setting: str
    meaning: str


REASONS = {
    "failed": Reason("", "could not be drawn"),
    "control": Reason("", "belongs to the control group, drawn from the standard Gaussian to measure the uplift"),
    "duplicate": Reason("", "has the very same pixels as an earlier picture"),
    "unscored": Reason("weights", "lacks the score of a reward that selection uses"),
    "min_score": Reason("min_score", "scores less than the threshold"),
    "min_quantile": Reason("min_quantile", "is in the lowest share of all scored pictures"),
    "min_uplift": Reason("min_uplift", "gains too little over the control picture of the same noise"),
    "disagreement": Reason("max_disagreement", "pleases the training rewards far more than the held-out ones"),
    "pareto": Reason("pareto", "is no better by any reward than another picture of its prompt, and worse by one"),
    "top_k": Reason("top_k", "is not among the best of its prompt"),
    "quota": Reason("quotas", "is not among the best of its source, kind, group, cluster or split"),
    "keep_fraction": Reason("keep_fraction", "is not among the best of all"),
    "broken": Reason("", "cannot be decoded, or has another size than its row says"),
    "blank": Reason("min_contrast", "shows next to nothing"),
    "unsafe": Reason("unsafe", "is unsafe by the classifier"),
    "near_duplicate": Reason("near_duplicates", "looks like a better picture of the dataset, by its perceptual hash"),
    "alike": Reason("embedder", "looks like a better picture of the dataset, by its embedding"),
}
