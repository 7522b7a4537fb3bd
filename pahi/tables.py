"""A stage's result as rows that a terminal, a web page or Prefect's UI shows as a table."""

import math
from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]

ROLES = {"train": "training", "held_out": "held out", "judge": "judge"}


def arm_rows(result: dict[str, Any]) -> list[Row]:
    """The arms of an evaluation's result, one row an arm.

    Uplift is in pooled within-prompt standard deviations of its reward, with its 95% confidence interval.
    """
    timings = result.get("timings") or {}
    rows = []
    # What other evaluators found, of any arm: every row has the same columns.
    benchmarks = dict.fromkeys(n for arm in result["summary"]["arms"] for n in arm.get("benchmarks") or {})
    for arm in result["summary"]["arms"]:
        row: Row = {"arm": arm["arm"].replace("_", " ")}
        # What trained first, then what judges it: manifests sort by name.
        for name, reward in sorted(arm["rewards"].items(), key=lambda item: list(ROLES).index(item[1]["role"])):
            title = f"{name} ({ROLES[reward['role']]})"
            if reward["role"] == "judge":
                row[title] = percent(reward["mean"])
                continue
            row[title] = interval(reward.get("uplift"))
            row[f"wins, {name}"] = percent((reward.get("win_rate") or {}).get("value"))
        row["diversity"] = number(arm.get("diversity"), 3)
        row["features"] = number(arm.get("feature_diversity"), 3)
        for name in benchmarks:
            figure = (arm.get("benchmarks") or {}).get(name) or {"value": None, "uplift": None}
            row[name] = number(figure["value"], 3)
            if figure["uplift"]:
                row[name] += f" ({interval(figure['uplift'])})"
        row["ms/image"] = number(timings.get(arm["arm"]), 1)
        rows.append(row)
    return rows


def count_rows(result: dict[str, Any]) -> list[Row]:
    """A stage's summary, one row a figure; what is nested is named by its path."""
    return [{"what": name, "value": value} for name, value in _flat(result["summary"])]


def source_rows(result: dict[str, Any]) -> list[Row]:
    """An ingestion's sources, one a row: rows, prompts kept, mean characters, and what was left out and why."""
    return [
        {
            "source": one["source"],
            "rows": one["rows"],
            "kept": one["prompts"],
            "characters": number(one.get("characters"), 1),
            "left out": ", ".join(f"{reason} {count}" for reason, count in one["rejected"].items()),
            "changed by cleaning": ", ".join(f"{step} {count}" for step, count in one["cleaned"].items()),
        }
        for one in result["summary"]["sources"]
    ]


def markdown(rows: list[Row]) -> str:
    """Rows as a table of Markdown."""
    if not rows:
        return ""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in rows)]
    # Neither a line break nor a bar of the text may end a cell.
    return "\n".join(
        "| " + " | ".join(" ".join(str(c).split()).replace("|", "\\|") for c in line) + " |" for line in lines
    )


def interval(figure: dict[str, float] | None) -> str:
    """`+0.49 [+0.36, +0.61]`; a dash where the arm is the reference."""
    if not figure:
        return "-"
    return f"{figure['value']:+.2f} [{figure['low']:+.2f}, {figure['high']:+.2f}]"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def plain(value: Any) -> Any:
    """The same as JSON can hold it: keys as text, tuples as lists, None for what is not a finite number."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(value: Row, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{path}{name}.")
        else:
            yield f"{path}{name}", inner if isinstance(inner, int | float | str | None) else str(inner)
