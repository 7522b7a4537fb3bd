"""Pictures in the folders that GenEval's and T2I-CompBench's own evaluators read, and what those wrote back.

    export/geneval/<arm>/00012/metadata.jsonl             the prompt's line of evaluation_metadata.jsonl, by its number
                              /samples/0003.png           one a seed
                        /results.jsonl                    evaluate_images.py, where --outfile names this
    export/t2i-compbench/<arm>/samples/<prompt>_000031.png   numbered through, in the order of the prompt file
                              /annotation_blip/vqa_result.json, ...   what its evaluators write beside `samples`

Ghosh et al. 2023 and Huang et al. 2023. The evaluators run unchanged on a folder of one arm, each in an environment of
its own. No manifest names these files: they are copies, and every one can be drawn again.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pahi.artifacts import Output
from pahi.errors import UserError
from pahi.evaluation.statistics import Interval, bootstrap
from pahi.prompts.cleaning import clean, prompt_id
from pahi.prompts.location import open_content
from pahi.settings import Evaluate

HOME = "export"
GENEVAL, T2I = "geneval", "t2i-compbench"
RESULTS = "results.jsonl"
LONGEST = 255  # bytes of a file's name
# Of T2I-CompBench's folders, those with a whole evaluator's scores: annotation_blip, labels/annotation_num, ...
ANNOTATION = re.compile(r"^(?:labels/)?annotation_([^/]+)/vqa_result\.json$")


class Exporter:
    """Where each test prompt's pictures go. Prompts that a benchmark does not know, or cannot name, are left out."""

    def __init__(self, settings: Evaluate, prompts: Sequence[dict[str, Any]]) -> None:
        """`prompts` in the order of their file. Raises UserError where none of them belongs to a benchmark."""
        self.seeds = settings.seeds
        self.lines: dict[str, list[tuple[int, str]]] = {}
        self.numbers: dict[str, int] = {}
        if GENEVAL in settings.export:
            wanted = {row["prompt_id"] for row in prompts}
            for number, line in enumerate(read_metadata(settings.geneval_metadata)):
                key = prompt_id(clean(line["prompt"])[0])
                if key in wanted:
                    self.lines.setdefault(key, []).append((number, json.dumps(line)))
            if not self.lines:
                raise UserError(
                    f"none of the test prompts is in {settings.geneval_metadata}; ingest that file, with a split of "
                    "test, or leave evaluate.export empty"
                )
        if T2I in settings.export:
            # Its evaluators take the name up to the first underscore for the prompt.
            named = [row for row in prompts if not set("_/\0") & set(row["text"])]
            named = [row for row in named if len(f"{row['text']}_000000.png".encode()) <= LONGEST]
            if not named:
                raise UserError("no test prompt can be the name of a file, as T2I-CompBench wants it")
            self.numbers = {row["prompt_id"]: i for i, row in enumerate(named)}

    def files(self, row: dict[str, Any], arm: str, pictures: Iterable[bytes]) -> dict[str, bytes]:
        """A prompt's pictures of an arm, PNG and in the order of their seeds, by key."""
        found: dict[str, bytes] = {}
        for seed, picture in enumerate(pictures):
            for number, line in self.lines.get(row["prompt_id"], []):
                folder = f"{HOME}/{GENEVAL}/{arm}/{number:05d}"
                found[f"{folder}/metadata.jsonl"] = line.encode()
                found[f"{folder}/samples/{seed:04d}.png"] = picture
            if row["prompt_id"] in self.numbers:
                number = self.numbers[row["prompt_id"]] * self.seeds + seed
                found[f"{HOME}/{T2I}/{arm}/samples/{row['text']}_{number:06d}.png"] = picture
        return found


def read_metadata(path: str) -> list[dict[str, Any]]:
    """GenEval's lines. Raises UserError on what is no such file."""
    lines = []
    with open_content(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                usable = isinstance(row["prompt"], str) and isinstance(row["tag"], str) and isinstance(row, dict)
            except (ValueError, KeyError, TypeError):
                usable = False
            if not usable:
                raise UserError(f"{path}, line {number}: no line of GenEval's, which has tag, include and prompt")
            lines.append(row)
    return lines


def benchmarks(output: Output, seeds: int, resamples: int) -> dict[str, dict[str, Any]]:
    """What the evaluators wrote so far, by arm: name -> value and the 95% interval over prompts.

    `geneval` is the mean over its tasks, as its summary_scores.py reports it, with the tasks beside it; of
    T2I-CompBench it is each evaluator's mean score. Raises UserError where a result cannot be read.
    """
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    prefix = output.key(HOME)
    for key in output.store.list(prefix):
        kind, _, rest = key.removeprefix(f"{prefix}/").partition("/")
        arm, _, name = rest.partition("/")
        annotation = ANNOTATION.match(name)
        try:
            if kind == GENEVAL and name == RESULTS:
                found[arm][GENEVAL] = _geneval(output.store.read(key).decode(), resamples)
            elif kind == T2I and annotation:
                figure = _t2i(json.loads(output.store.read(key)), seeds, resamples)
                found[arm][f"{T2I} {annotation[1].replace('_', ' ')}"] = figure
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise UserError(f"{output.store.url(key)}: not what {kind}'s evaluator writes; remove it") from None
    return dict(found)


def _geneval(text: str, resamples: int) -> dict[str, Any]:
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    tasks: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        tasks.setdefault(row["tag"], {}).setdefault(row["metadata"], []).append(float(row["correct"]))
    pictures = {tag: [right for many in prompts.values() for right in many] for tag, prompts in tasks.items()}
    means = {tag: float(np.mean(many)) for tag, many in pictures.items()}
    # Prompts are resampled within their tasks, since the score is a mean of the tasks' means.
    rng = np.random.default_rng(0)
    drawn = np.zeros(resamples)
    for prompts in tasks.values():
        right, count = (np.array([f(many) for many in prompts.values()], dtype=float) for f in (sum, len))
        index = rng.integers(len(right), size=(resamples, len(right)))
        drawn += right[index].sum(1) / count[index].sum(1) / len(tasks)
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = float(np.mean(list(means.values())))
    return {"value": value, "low": float(low), "high": float(high), "images": len(rows), "tasks": means}


def _t2i(rows: list[dict[str, Any]], seeds: int, resamples: int) -> Interval:
    # Every evaluator numbers its answers as the pictures are numbered: `seeds` in a row are of one prompt.
    answers = np.array([float(row["answer"]) for row in rows])
    figure = bootstrap(answers, resamples, groups=[int(row["question_id"]) // seeds for row in rows])
    return figure | {"images": len(answers)}
