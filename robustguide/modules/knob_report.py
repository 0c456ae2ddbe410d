"""What a search of EluCD's knobs leaves: a table, a figure, `knobs.json` and an overlay."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from robustguide.files import whole
from robustguide.guidance import View
from robustguide.metrics import SMALL
from robustguide.modules.knob_trials import Knobs, Trial, worded
from robustguide.report import figures

TERM = "elucd"


def print_table(trials: Sequence[Trial], chosen: Trial) -> None:
    """One row a setting, an asterisk for the one that is chosen, and what the numbers are of."""
    ends = "integral ECE, 95%", "agreement", "confidence", ""
    table = Table(*chosen.knobs.named, *ends, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for trial in trials:
        low, high = trial.interval
        table.add_row(
            *(f"{value:g}" for value in trial.knobs.named.values()),
            f"{trial.integral_ece:.3f} ({low:.3f}, {high:.3f})",
            f"{trial.agreement:.3f}",
            f"{trial.confidence:.3f}",
            "*" if trial is chosen else "",
        )
    console = Console()
    console.print(table)
    console.print(told(chosen))


def told(chosen: Trial) -> str:
    """What a trial's numbers are of."""
    high, low = max(chosen.levels), min(chosen.levels)
    text = (
        f"Means over {len(chosen.levels)} noise levels from {high:.3g} to {low:.3g}; "
        f"n = {chosen.n} images, {chosen.num_bins} bins. With the confidences of *, calibrated "
        f"answers would show {chosen.if_calibrated[0]:.3f}."
    )
    return f"{text} n is below {SMALL}: an ECE is biased upwards." if chosen.n < SMALL else text


def draw(path: Path, start: Trial, chosen: Trial) -> None:
    """ECE by noise level at the start, as chosen, and of calibrated answers with n as here."""
    series = {
        f"start: {start.knobs.words}": start.ece,
        f"chosen: {chosen.knobs.words}": chosen.ece,
    }
    if start is chosen:
        series = {f"start and chosen: {start.knobs.words}": chosen.ece}
    series["chosen, if calibrated"] = chosen.ece_if_calibrated
    figures.save(figures.curves(chosen.levels, series, ylabel="ECE"), path)


def measured(chosen: Trial) -> dict[str, Any]:
    """For `results.json`."""
    facts = {"n": chosen.n, "levels": len(chosen.levels), "knobs": chosen.knobs.named}
    ece = {"interval": list(chosen.interval), "bins": chosen.num_bins}
    return {
        "integral_ece": {"value": chosen.integral_ece, **facts, **ece},
        "label_agreement": {"value": chosen.agreement, **facts},
        "confidence": {"value": chosen.confidence, **facts},
    }


def write(path: Path, trials: Sequence[Trial], chosen: Trial, **facts: Any) -> None:
    """All trials and the one chosen, as JSON, with facts about the search."""
    found = {**facts, "chosen": chosen.plain, "trials": [trial.plain for trial in trials]}
    with whole(path) as part:
        part.write_text(json.dumps(worded(found), indent=1, allow_nan=False))


def write_overlay(path: Path, knobs: Knobs, classifier: Path, scale: float, view: Any) -> None:
    """Guidance with the knobs, as a configuration to lay over one of `Generation`.

    Args:
        path: Of the overlay.
        knobs: The setting.
        classifier: File of the exported classifier, which has its Softplus inside.
        scale: Of the guidance.
        view: Plain description of where the classifier looks.
    """
    tempered = {"joint": knobs.joint, "marginal": knobs.marginal}
    term = named(
        "guidance.ClassifierGuidance",
        classifier=named("checkpoints.load_classifier", path=str(classifier)),
        objective=named("guidance.Tempered", **tempered),
        view=view,
    )
    model: dict[str, Any] = {
        "guidance": {TERM: named("guidance.Scaled", scale=scale, term=term)},
    }
    if knobs.strength is not None:
        sine = named("samplers.Sine", gamma=knobs.strength)
        model["sampler"] = named("samplers.Ancestral", guidance_variance=sine)
    head = (
        f"# Guidance: EluCD as a search of its knobs left it: {knobs.words}.\n"
        f"# robustguide test --config SAMPLING.yaml --config {path}\n"
    )
    with whole(path) as part:
        part.write_text(head + yaml.safe_dump({"model": {"init_args": model}}, sort_keys=False))


def named(class_path: str, **arguments: Any) -> dict[str, Any]:
    """Plain description of an object of this package."""
    return {"class_path": f"robustguide.{class_path}", "init_args": arguments}


def description(view: View) -> dict[str, Any]:
    """Plain description of a view that was built in Python."""
    module = type(view).__module__.replace("robustguide.guidance.views", "robustguide.guidance")
    return {"class_path": f"{module}.{type(view).__qualname__}", "init_args": vars(view)}
