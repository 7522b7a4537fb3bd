"""Uplift against diversity for every predictor: trains, evaluates, prints the tables and draws the plots.

    python benchmarks/frontier.py --root DIR [--seeds 0,1,2] [--predictors scale,hpi,pahi,residual,refined]
                                  [--betas 0.3,1,3] [--set train.steps=500 ...] [--set mixture:train.hidden=64 ...]
                                  [--out DIR]
    python benchmarks/frontier.py --root DIR --hacking [--steps 3000]

Everything goes through the stages and stays in the store at --root, so what was finished is found, and a command that
was stopped goes on where it stood. Test prompts are opened by this alone: settle the settings first. All predictors get
as many steps as PAHI and its HPI together. Best of N (and --optimise) are drawn once, in the first evaluation: the same
eps give the same pictures in all of them.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from pahi.artifacts import Output, Store
from pahi.errors import PahiError
from pahi.evaluation.frontier import (
    Evaluation,
    best_at,
    dial_of,
    gather,
    label_of,
    pooled_rows,
    seed_rows,
    shuffled_rows,
    versus_rows,
)
from pahi.evaluation.plots import compute_svg, frontier_svg
from pahi.settings import Settings, load_settings
from pahi.stages import run_stage
from pahi.tables import Row, markdown

# The residuals are networks over the whole latent, of this width.
OWN = {kind: ["train.hidden=16", "train.lr=0.002"] for kind in ("residual", "refined")}
KEPT = 0.9  # of the standard arm's diversity, where the best predictor is named


def main(arguments: list[str] | None = None) -> int:
    """Raises nothing that a user can cause: mistakes are one line, and exit code 2."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given:
        print("frontier: hours, so only by name: python benchmarks/frontier.py --root DIR (--help says more)")
        return 0
    args = parse(given)
    try:
        if args.hacking:
            hacking(args)
        else:
            frontier(args)
    except PahiError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="the store: a folder or an fsspec URL")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="[PREDICTOR:]KEY=VALUE")
    parser.add_argument("--seeds", type=_list(int), default=[0, 1, 2], help="of training")
    parser.add_argument(
        "--predictors",
        type=_list(_predictor),
        default=[(name, []) for name in ("scale", "hpi", "pahi", "residual", "refined")],
        help="spline:200 is with that beta alone, the others are with each of --betas; selected:16 chooses one of 16; "
        "pahi/value is learned with train.estimator=value",
    )
    parser.add_argument("--betas", type=_list(float), default=[0.3, 1.0, 3.0])
    parser.add_argument("--candidates", type=_list(int), default=[], help="more of selected's: one training for all")
    parser.add_argument("--best-of", type=_list(int), default=[4, 16])
    parser.add_argument("--optimise", type=_list(int), default=[], help="steps of ReNO, once each")
    parser.add_argument("--hacking", action="store_true", help="the same training with the guards off and on")
    parser.add_argument("--steps", type=int, default=3000, help="of --hacking, guards on and off")
    parser.add_argument("--out", default=".", help="folder of the plots and of frontier.md or hacking.md")
    return parser.parse_args(arguments)


def _predictor(text: str) -> tuple[str, list[float]]:
    """`pahi`, `spline:200` or `pahi/value:30`: its name and how it is learned, and a beta of its own.

    What stands for beta of `selected` is how many noises it chooses among.
    """
    name, _, beta = text.partition(":")
    return name, [float(beta)] if beta else []


def _list(kind: Any) -> Any:
    return lambda text: [kind(part) for part in text.split(",")]


# ------------------------------------------------------------------------------------------------------- the frontier


def frontier(args: argparse.Namespace) -> None:
    points = [
        (name, beta, seed) for name, betas in args.predictors for beta in betas or args.betas for seed in args.seeds
    ]
    # All settings are validated before anything is trained.
    plans = [(point, _settings(args, *point, baselines=i == 0)) for i, point in enumerate(points)]
    done = []
    for i, ((predictor, beta, seed), settings) in enumerate(plans):
        note = f"{i + 1}/{len(plans)} {predictor} {dial_of(predictor, beta)}, seed {seed}"
        done.append(_evaluated(settings, note)[0])
    found = gather(plans[0][1].rewards, done)
    r = plans[0][1].rewards
    judge = next(m.name for ms in (r.judges, r.held_out, r.train) for m in ms)
    text = [f"{len(found.prompts)} test prompts of {len(set(found.scenes))} scenes, {len(args.seeds)} training seeds."]
    text += _section("Training seeds pooled", pooled_rows(found))
    text += _section("What comes from the prompt", shuffled_rows(found))
    text += _section("Against HPI and against many calls", versus_rows(found))
    text += _section("Each training seed", seed_rows(found))
    for reward in found.roles:
        best = best_at(found, reward, KEPT)
        what = f"{best[0]} {dial_of(*best)}" if best else "none"
        text.append(f"Most {reward} at {KEPT:g} of the diversity or more: {what}.")
    folder = _write(args, "frontier.md", "\n".join(text))
    for reward in found.roles:
        (folder / f"frontier-{reward}.svg").write_text(frontier_svg(found, reward))
    (folder / "compute.svg").write_text(compute_svg(found, judge, KEPT))


def _settings(args: argparse.Namespace, predictor: str, beta: float, seed: int, baselines: bool) -> Settings:
    kind, _, estimator = predictor.partition("/")
    sets = [
        *OWN.get(kind, []),
        *_meant_for(args.sets, predictor),
        f"train.predictor={kind}",
        *([f"train.estimator={estimator}"] if estimator else []),
        f"train.candidates={beta:.0f}" if predictor == "selected" else f"train.beta={beta}",
        f"train.seed={seed}",
    ]
    sets += [f"evaluate.best_of={args.best_of if baselines else []}"]
    sets += [f"evaluate.optimise={args.optimise if baselines else []}"]
    if predictor == "selected":
        sets += [f"evaluate.candidates={args.candidates}"]
    settings = load_settings(args.preset, overrides=sets, root=args.root)
    if kind != "pahi":
        steps = "train.hpi_steps" if kind == "hpi" else "train.steps"
        sets.append(f"{steps}={settings.train.hpi_steps + settings.train.steps}")
        settings = load_settings(args.preset, overrides=sets, root=args.root)
    return settings


def _meant_for(sets: list[str], predictor: str) -> list[str]:
    """`mixture:train.hidden=64` is for mixture by gradients, `pahi/value:...` for PAHI by V, without a name for all."""
    named = [(s.partition("=")[0].rpartition(":")[0], s) for s in sets]
    return [s.removeprefix(f"{name}:") for name, s in named if name in ("", predictor)]


def _evaluated(settings: Settings, note: str) -> tuple[Evaluation, list[str]]:
    """An evaluation's tables, drawn or found, and its warnings."""
    started = time.time()
    result = run_stage("evaluate", settings, with_upstream=True)
    print(f"{note}: {'found' if result['skipped'] else f'{time.time() - started:.0f} s'}", file=sys.stderr, flush=True)
    output = Output(Store(settings.root), settings.name, "evaluate", result["fingerprint"])
    t, summary = settings.train, result["summary"]
    dial = float(t.candidates) if t.chooses else t.beta
    found = Evaluation(
        t.predictor, t.estimator, dial, t.seed, summary["units"], output.read("scores"), output.read("evaluated")
    )
    return found, summary["flags"]


# ------------------------------------------------------------------------------------------------- the demonstration


def hacking(args: argparse.Namespace) -> None:
    """The training reward driven as far as it goes, with nothing in its way, and the same with every guard."""
    sets = [s for s in args.sets if s.startswith("train.predictor=")]
    predictor = load_settings(args.preset, overrides=sets).train.predictor
    args.sets = [*OWN.get(predictor, []), *_meant_for(args.sets, predictor)]
    base = load_settings(args.preset, overrides=args.sets, root=args.root)
    r = base.rewards.model_dump(mode="json")
    # The checkpoint that held-out rewards like best is a guard too: as judges, they choose nothing.
    blind = {"train": r["train"], "held_out": [], "judges": r["held_out"] + r["judges"]}
    long = [*args.sets, f"train.steps={args.steps}", "evaluate.best_of=[]"]
    off = [*long, "train.beta=0", "train.patience=null", "train.reward_cap=null", f"rewards={json.dumps(blind)}"]
    text: list[str] = []
    tables: list[Row] = []
    for name, sets in (("off", off), ("on", long)):
        done, flags = [], []
        for seed in args.seeds:
            settings = load_settings(args.preset, overrides=[*sets, f"train.seed={seed}"], root=args.root)
            evaluation, warnings = _evaluated(settings, f"guards {name}, seed {seed}")
            done.append(evaluation)
            flags += [f"Guards {name}, seed {seed}: {warning}." for warning in warnings]
        found = gather(base.rewards, done)
        main = label_of(base.train.predictor, base.train.estimator)
        rows = [row | {"seed": "pooled"} for row in pooled_rows(found)] + seed_rows(found)
        tables += [{"guards": name, "seed": row.pop("seed"), **row} for row in rows if row["predictor"] == main]
        text += ["", *(flags or [f"Guards {name}: nothing flagged."])]
    order = ["guards", "seed", *(k for k in tables[0] if k not in ("guards", "seed"))]
    table = markdown([{k: row[k] for k in order} for row in tables])
    _write(args, "hacking.md", "\n".join([f"{args.steps} steps.", "", table, *text]))


def _section(title: str, rows: list[Row]) -> list[str]:
    return ["", f"## {title}", "", markdown(rows)] if rows else []


def _write(args: argparse.Namespace, name: str, text: str) -> Path:
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text + "\n")
    print(text)
    return folder


if __name__ == "__main__":
    sys.exit(main())
