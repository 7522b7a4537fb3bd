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
from pahi.evaluation.statistics import Interval
from pahi.prompts.cleaning import clean, prompt_id
from pahi.prompts.location import open_bytes
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
    with open_bytes(path) as file:
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


# What an evaluator found: (prompt, picture) -> task and score. The prompt is resampled, within its task.
Found = dict[tuple[Any, Any], tuple[str, float]]


def benchmarks(output: Output, seeds: int, resamples: int) -> dict[str, dict[str, Any]]:
    """What the evaluators wrote so far, by arm: name -> value and the 95% interval over prompts.

    `geneval` is the mean over its tasks, as its summary_scores.py reports it, with the tasks beside it; of
    T2I-CompBench it is each evaluator's mean score. `uplift` is the paired difference to the standard arm, where that
    was evaluated too. Raises UserError where a result cannot be read.
    """
    found: dict[tuple[str, str], Found] = {}  # by arm and benchmark
    prefix = output.key(HOME)
    for key in output.store.list(prefix):
        kind, _, rest = key.removeprefix(f"{prefix}/").partition("/")
        arm, _, name = rest.partition("/")
        annotation = ANNOTATION.match(name)
        try:
            if kind == GENEVAL and name == RESULTS:
                found[arm, GENEVAL] = _geneval(output.store.read(key).decode())
            elif kind == T2I and annotation:
                answers = _t2i(json.loads(output.store.read(key)), seeds)
                found[arm, f"{T2I} {annotation[1].replace('_', ' ')}"] = answers
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise UserError(f"{output.store.url(key)}: not what {kind}'s evaluator writes; remove it") from None
    figures: dict[str, dict[str, Any]] = defaultdict(dict)
    for (arm, name), scores in found.items():
        figure: dict[str, Any] = {**_mean_of_tasks(scores, resamples), "images": len(scores), "uplift": None}
        if name == GENEVAL:
            figure["tasks"] = _tasks(scores)
        standard = found.get(("standard", name), {})
        pairs = {k: (task, score - standard[k][1]) for k, (task, score) in scores.items() if k in standard}
        if arm != "standard" and pairs:
            figure["uplift"] = _mean_of_tasks(pairs, resamples)
        figures[arm][name] = figure
    return dict(figures)


def _geneval(text: str) -> Found:
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    return {(r["metadata"], re.split(r"[/\\]", r["filename"])[-1]): (r["tag"], float(r["correct"])) for r in rows}


def _t2i(rows: list[dict[str, Any]], seeds: int) -> Found:
    # Every evaluator numbers its answers as the pictures are numbered: `seeds` in a row are of one prompt.
    numbers = [int(row["question_id"]) for row in rows]
    return {(n // seeds, n): ("", float(row["answer"])) for n, row in zip(numbers, rows, strict=True)}


def _tasks(found: Found) -> dict[str, float]:
    scores: dict[str, list[float]] = defaultdict(list)
    for task, score in found.values():
        scores[task].append(score)
    return {task: float(np.mean(many)) for task, many in scores.items()}


def _mean_of_tasks(found: Found, resamples: int) -> Interval:
    tasks: dict[str, dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (prompt, _), (task, score) in found.items():
        tasks[task][prompt].append(score)
    rng = np.random.default_rng(0)
    drawn = np.zeros(resamples)
    for prompts in tasks.values():
        total, count = (np.array([f(many) for many in prompts.values()], dtype=float) for f in (sum, len))
        index = rng.integers(len(total), size=(resamples, len(total)))
        drawn += total[index].sum(1) / count[index].sum(1) / len(tasks)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": float(np.mean(list(_tasks(found).values()))), "low": float(low), "high": float(high)}
