"""The report: measured numbers in, one HTML page out. Nothing here computes a result; it shows what it is given."""

import json
import math
import re
from collections.abc import Callable
from functools import cache, partial
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from pahi.evaluation import summary
from pahi.reports import charts, text, verdict
from pahi.reports.pictures import PAGE_BYTES, Album, album
from pahi.tables import plain

CURVE_ORDER = ("loss", "reward/", "foreseen", "validation/", "kl", "sigma", "noise_norm", "diversity")


def build_report(data: dict[str, Any]) -> str:
    """The HTML page of a finished run, complete in itself: it asks nothing of any network.

    `data` holds plain JSON values, bytes only in the gallery's pictures. Every key may be missing, any number None or
    NaN: what is not there is left out or shown as n/a.

    - `dataset`, `generated_by`, `preset_line`, `redraw` (command with `{prompt}`, quoted for a shell,
      `{prompt_id}` and `{seed}` to fill in)
    - `evaluate`: an evaluation's summary (pahi/evaluation/summary.py): `prompts`, `scenes`, `seeds`, `train_reward`,
      `units` (reward -> one within-prompt standard deviation), `flags`, `feature_model`, `arms` (uplifts in those
      units; of a judge, mean and uplift are shares between 0 and 1), `by_kind` (kind -> arm -> reward -> mean uplift,
      of a judge the share)
    - `gallery`: pairs drawn from the same noise: `prompt_id`, `prompt`, `kind`, `source`, `seed`, `uplift`,
      `scores` (reward -> [before, after]), `before`, `after`
    - `metrics`: rows of `phase`, `step`, `name`, `value`; `histograms`: reward -> arm -> raw scores
    - `funnel`, `lineage`, `settings`, `versions`
    """
    evaluate = data.get("evaluate") or {}
    arms = evaluate.get("arms") or []
    roles = _roles(evaluate, arms)
    scaled = [name for name, role in roles.items() if role != "judge"]
    judges = [name for name, role in roles.items() if role == "judge"]
    limits = charts.bounds(
        [((arm.get("rewards") or {}).get(name) or {}).get("uplift") for arm in arms for name in scaled]
    )
    rows, pictures = _gallery(data.get("gallery") or [])
    hero, result = _hero(rows, pictures), verdict.judge(evaluate)
    flags = sorted(evaluate.get("flags") or [], key=lambda flag: not _grave(flag))
    plots = [(name, roles[name], charts.compute_plot(arms, name, limits)) for name in scaled]
    return _template().render(
        data=data,
        evaluate=evaluate,
        arms=arms,
        main=verdict.main_arm(arms),
        verdict=result,
        flags=[(flag, _grave(flag)) for flag in flags],
        checked="flags" in evaluate and verdict.main_arm(arms) is not None,
        distribution=_distribution(arms),
        figures=_figures(arms, roles),
        roles=roles,
        scaled=scaled,
        judges=judges,
        limits=limits,
        plots=[plot for plot in plots if plot[2]],
        hero=hero,
        shown=next((p for p in hero if p["label"] == "Median" and result.tone != "good"), hero[0] if hero else None),
        gallery=rows,
        album=pictures,
        whole=len([row for row in rows if row["full"] is not None]),
        megabytes=PAGE_BYTES // 1_000_000,
        kinds=_counts(rows, "kind"),
        origins=_counts(rows, "source"),
        blob=_json(
            {
                "rows": rows,
                "units": evaluate.get("units") or {},
                "redraw": data.get("redraw") or "",
                "lineage": {f"from {s.get('stage')}": s.get("fingerprint") for s in data.get("lineage") or []},
            }
        ),
        # data URIs: base64 and fixed prefixes, no markup possible
        thumbnails=Markup("\n".join(pictures.thumbnails)),
        full=Markup("\n".join(uri for pair in pictures.full.values() for uri in pair)),
        by_kind=_by_kind(evaluate, arms, roles),
        curves=_curves(data.get("metrics") or []),
        phases=list(dict.fromkeys(str(m.get("phase") or "train") for m in data.get("metrics") or [])),
        histograms=_histograms(data.get("histograms") or {}),
        funnel=_funnel(data.get("funnel") or []),
        sources={str(step.get("stage")): step for step in data.get("lineage") or []},
        css=Markup(_asset("report.css")),
        js=Markup(_asset("report.js")),
    )


@cache
def _template() -> Any:
    env = Environment(
        loader=PackageLoader("pahi.reports", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("number", "signed", "percent", "points", "count", "short", "interval", "plural", "finite"):
        env.filters[name] = getattr(text, name)
    env.filters["strong"] = _strong
    env.globals.update(
        interval_bar=charts.interval_bar, arm_class=charts.arm_class, phase_class=charts.phase_class, mark=_legend_mark
    )
    env.tests["mapping"] = lambda value: isinstance(value, dict)
    return env.get_template("report.html.j2")


@cache
def _asset(name: str) -> str:
    return resources.files("pahi.reports").joinpath(name).read_text(encoding="utf-8")


def _json(value: Any) -> Markup:
    """JSON that no HTML parser can leave: `</script>` and `<!--` lose their brackets."""
    packed = json.dumps(plain(value), allow_nan=False, separators=(",", ":"))
    return Markup(packed.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _strong(sentence: str) -> Markup:
    """A sentence with its figures set off."""
    figure = rf"[+{text.MINUS}][\d,.]+\d(?=( within-prompt standard deviations)? \()"  # an interval follows
    return Markup(re.sub(figure, r"<b>\g<0></b>", str(escape(sentence))))


def _grave(flag: Any) -> bool:
    return str(flag).startswith(summary.HACKING)


def _legend_mark(name: str) -> Markup:
    shape = charts.mark(charts.arm_class(name), 8, 8, 5)
    return Markup(f'<svg class="mark" viewBox="0 0 16 16" aria-hidden="true">{shape}</svg>')


def _roles(evaluate: dict[str, Any], arms: list[dict[str, Any]]) -> dict[str, str]:
    """Every reward and its role: trained on, held out, judges; the training reward first."""
    found: dict[str, str] = {}
    for arm in arms:
        for name, reward in (arm.get("rewards") or {}).items():
            found.setdefault(name, (reward or {}).get("role") or "held_out")
    order = {"train": 0, "held_out": 1, "judge": 2}
    return dict(sorted(found.items(), key=lambda r: (r[0] != evaluate.get("train_reward"), order.get(r[1], 1))))


def _figures(arms: list[dict[str, Any]], roles: dict[str, str]) -> list[dict[str, Any]]:
    """The handful of numbers under the headline."""
    main = verdict.main_arm(arms)
    if main is None:
        return []
    rewards = main.get("rewards") or {}
    standard = next((a for a in arms if a.get("arm") == "standard"), {})
    found: list[dict[str, Any]] = []
    for name in list(roles)[:4]:
        mine = rewards.get(name) or {}
        if roles[name] == "judge":
            before = text.finite(((standard.get("rewards") or {}).get(name) or {}).get("mean"))
            detail = f"from {text.percent(before)} with the standard noise" if before is not None else "share accepted"
            found.append({"value": text.percent(mine.get("mean")), "label": f"right, says {name}", "detail": detail})
            continue
        u = text.interval(mine.get("uplift"))
        span = f"95% CI {text.signed(u['low'])} to {text.signed(u['high'])}" if u and u["low"] is not None else ""
        found.append(
            {
                "value": text.signed(u["value"] if u else None),
                "unit": "SD",
                "label": f"{name}, {'trained on' if roles[name] == 'train' else 'held out'}",
                "detail": span,
                "tone": verdict.effect(u),
            }
        )
    known = _span(main.get("diversity_interval"), text.number)
    found.append(
        {
            "value": text.number(main.get("diversity")),
            "label": "diversity",
            "detail": "standard noise is 1" + (f"; 95% CI {known}" if known else ""),
        }
    )
    before, after = text.finite(standard.get("ms_per_image")), text.finite(main.get("ms_per_image"))
    found.append(
        {
            "value": text.number(after, 1),
            "unit": "ms" if after is not None else "",
            "label": "time a picture",
            "detail": f"{text.number(before, 1)} ms with the standard noise" if before is not None else "",
        }
    )
    return found


def _gallery(gallery: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Album]:
    """Rows without pictures, best first, and the pictures in the rows' order."""
    ordered = sorted(gallery, key=lambda r: -_uplift(r, -math.inf))
    shown = [i for i, r in enumerate(ordered) if text.finite(r.get("uplift")) is not None]
    pictures = album([(r.get("before"), r.get("after")) for r in ordered], [i for _, i in _spread(shown, ordered)])
    places = {index: place for place, index in enumerate(pictures.full)}
    rows = [
        {
            "id": str(row.get("prompt_id") or ""),
            "prompt": str(row.get("prompt") or ""),
            "kind": str(row.get("kind") or ""),
            "source": str(row.get("source") or ""),
            "seed": row.get("seed"),
            "uplift": text.finite(row.get("uplift")),
            "scores": row.get("scores") or {},
            "width": pictures.widths[i],
            "full": places.get(i),  # its place among the full pictures
        }
        for i, row in enumerate(ordered)
    ]
    return rows, pictures


def _uplift(row: dict[str, Any], otherwise: float) -> float:
    found = text.finite(row.get("uplift"))
    return otherwise if found is None else found


def _spread(shown: list[int], rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Rows from the whole range of uplift, best first, each with its name; of the rows' indices in `shown`."""
    if not shown:
        return []
    last = len(shown) - 1
    places = [("Largest gain", 0.0), ("Top quarter", 0.25), ("Median", 0.5), ("Bottom quarter", 0.75)]
    places.append(("Largest loss" if _uplift(rows[shown[last]], 0) < 0 else "Smallest gain", 1.0))
    found: dict[int, str] = {}
    for label, share in places:
        found.setdefault(shown[round(share * last)], label)
    return [(label, index) for index, label in found.items()]


def _hero(rows: list[dict[str, Any]], pictures: Album) -> list[dict[str, Any]]:
    """Pairs from the whole range of uplift, so that the best one does not speak for all."""
    shown = [i for i, row in enumerate(rows) if row["uplift"] is not None and all(pictures.best(i))]
    return [
        {
            **rows[index],
            "index": index,
            "label": label,
            "before": Markup(pictures.best(index)[0]),
            "after": Markup(pictures.best(index)[1]),
            "thumbnail": Markup(pictures.thumbnails[2 * index + 1]),
        }
        for label, index in _spread(shown, rows)
    ]


def _counts(rows: list[dict[str, Any]], key: str) -> list[tuple[str, int]]:
    """The values of a key, with the number of rows of each; empty ones aside."""
    counts: dict[str, int] = {}
    for row in rows:
        if row[key]:
            counts[row[key]] = counts.get(row[key], 0) + 1
    return sorted(counts.items())


# What an arm's pictures and noise are like as a whole: title, what it is, key, digits; an interval lies beside it.
DISTRIBUTION = (
    ("Diversity", "pixels, standard = 1", "diversity", 2),
    ("Diversity", "features, standard = 1", "feature_diversity", 2),
    ("CMMD", "from the standard arm's", "cmmd", 3),
    ("CMMD", "from the given pictures", "cmmd_reference", 3),
    ("KL / d", "noise from the prior", "kl", 3),
    ("Norm / \u221ad", "of the noise", "noise_norm", 3),
    ("Correlation", "of neighbours in the noise", "noise_correlation", 3),
)


def _distribution(arms: list[dict[str, Any]]) -> dict[str, Any]:
    """A table, its columns those of DISTRIBUTION that were measured, and other evaluators' figures after them."""
    known = [c for c in DISTRIBUTION if any(_figure(arm.get(c[2])) is not None for arm in arms)]
    others = dict.fromkeys(name for arm in arms for name in arm.get("benchmarks") or {})
    rows = []
    for arm in arms:
        cells = []
        for _, _, key, digits in known:
            value, span = _figure(arm.get(key)), arm.get(f"{key}_interval") or arm.get(key)
            cells.append((text.number(value, digits), _span(span, partial(text.number, digits=digits))))
        for name in others:
            found = (arm.get("benchmarks") or {}).get(name) or {}
            up = text.interval(found.get("uplift"))
            change = f"{text.signed(up['value'])} {_span(up, text.signed)}".strip() if up else ""
            cells.append((text.number(found.get("value"), 3), change))
        rows.append((arm, cells))
    titles = [(title, what) for title, what, _, _ in known] + [(name, "its own evaluator's") for name in others]
    return {"titles": titles, "rows": rows} if titles else {}


def _figure(value: Any) -> float | None:
    return text.finite(value.get("value") if isinstance(value, dict) else value)


def _span(value: Any, say: Callable[[Any], str]) -> str:
    u = text.interval(value)
    return "" if u is None or u["low"] is None or u["high"] is None else f"{say(u['low'])} to {say(u['high'])}"


def _by_kind(evaluate: dict[str, Any], arms: list[dict[str, Any]], roles: dict[str, str]) -> list[dict[str, Any]]:
    """One table a reward: kinds down, arms across; the tint is 0 to 100, by distance from zero (a
    judge: from the lowest share)."""
    by_kind: dict[str, Any] = evaluate.get("by_kind") or {}
    labels = {arm.get("arm"): arm.get("label") or arm.get("arm") for arm in arms}
    tables = []
    for reward, role in roles.items():
        names = [
            name
            for name in dict.fromkeys([*labels, *(a for row in by_kind.values() for a in row)])
            if any(text.finite((row.get(name) or {}).get(reward)) is not None for row in by_kind.values())
            and (role == "judge" or name != "standard")
        ]
        if not names:
            continue
        values = {
            kind: [text.finite((row.get(name) or {}).get(reward)) for name in names] for kind, row in by_kind.items()
        }
        known = [v for row in values.values() for v in row if v is not None]
        base = min(known) if role == "judge" else 0.0
        top = max(abs(v - base) for v in known) or 1.0
        tables.append(
            {
                "reward": reward,
                "role": role,
                "arms": [(name, labels.get(name) or name) for name in names],
                "rows": [
                    (kind, [(v, 0 if v is None else round(100 * abs(v - base) / top)) for v in row])
                    for kind, row in values.items()
                ],
            }
        )
    return tables


def _curves(metrics: list[dict[str, Any]]) -> list[tuple[str, Markup, int]]:
    """Small multiples: a chart a quantity, with the number of values that were not finite."""
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    broken: dict[str, int] = {}
    for row in metrics:
        name, phase = str(row.get("name")), str(row.get("phase") or "train")
        step, value = text.finite(row.get("step")), text.finite(row.get("value"))
        lines = series.setdefault(name, {})
        if step is None or value is None:
            broken[name] = broken.get(name, 0) + 1
        else:
            lines.setdefault(phase, []).append((step, value))

    def place(name: str) -> tuple[int, str]:
        return next((i for i, start in enumerate(CURVE_ORDER) if name.startswith(start)), len(CURVE_ORDER)), name

    return [(name, charts.line_chart(name, series[name]), broken.get(name, 0)) for name in sorted(series, key=place)]


def _histograms(samples: dict[str, Any]) -> list[tuple[str, Markup]]:
    found = [(name, charts.histogram(name, arms or {})) for name, arms in samples.items()]
    return [(name, chart) for name, chart in found if chart]


def _funnel(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    top = max((text.finite(s.get("rows")) or 0 for s in steps), default=0) or 1
    return [{**s, "share": round(100 * (text.finite(s.get("rows")) or 0) / top, 2)} for s in steps]
