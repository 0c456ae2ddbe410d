"""Metrics of several runs: tables in which a column is one quantity, and quality against cost."""

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustguide.report import figures
from robustguide.report.ablation import TITLES, title
from robustguide.report.page import Block, Definitions, Heading, Paragraph, Picture, Table
from robustguide.report.runs import Number, Run, labels

DISTANCES = ("frechet", "fid", "fd", "sfid")
FIRST = (*DISTANCES, "class_accuracy", "accuracy", "robust_accuracy", "integral_ece")
WORDS = {" ece": " ECE", "nll": "NLL", "brier": "Brier score"}
CAPTION = (
    "Value, and the limits of its 95% interval where the run has them. Numbers of different "
    "protocols, references, data, attacks, grids or n have columns of their own."
)
COST = (
    "{what}, lower is better, against the rows given to denoisers for one image, those that "
    "guidance asks for included; evaluations of classifiers are not. Bars are 95% intervals."
)
DIGEST = re.compile(r"\b[0-9a-f]{40,}\b")
K = TypeVar("K", bound=Hashable)


def tables(runs: Sequence[Run]) -> list[Block]:
    """One table for the runs of each module and split, and one of what its columns are."""
    kinds: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.metrics:
            kinds.setdefault((run.module, run.split), []).append(run)
    blocks: list[Block] = [Paragraph(CAPTION)] if kinds else []
    for (module, split), group in kinds.items():
        found = columns(group)
        blocks.append(Heading(f"{module or 'Runs'}, {split or 'unknown split'}", level=3))
        blocks += [values(group, found), definitions(found)]
        blocks += [
            Paragraph(f"{run.name}: {number.warning}")
            for run in group
            for number in run.metrics.values()
            if number.warning
        ]
    return blocks


def columns(runs: Sequence[Run]) -> dict[Number, str]:
    """A number that stands for each column, and the column's title; the usual ones first."""
    found: dict[Hashable, Number] = {}
    for run in runs:
        for each in run.metrics.values():
            found.setdefault(each.identity, each)
    places = {name: place for place, name in enumerate(FIRST)}
    usual = len(FIRST)
    ordered = sorted(found.values(), key=lambda n: places.get(n.name.partition("/")[0], usual))
    return distinct({each: title_of(each) for each in ordered})


def distinct(titles: Mapping[K, str]) -> dict[K, str]:
    """The titles, with a number behind those that are not the only one."""
    all_of_them, seen, found = list(titles.values()), list[str](), {}
    for key, text in titles.items():
        seen.append(text)
        several = all_of_them.count(text) > 1
        found[key] = f"{text} ({seen.count(text)})" if several else text
    return found


def title_of(number: Number) -> str:
    """Name with protocol and n where a number has one, otherwise its key in words."""
    if number.shown:
        return number.shown
    text = TITLES.get(number.name) or title(number.name)
    for short, long in WORDS.items():
        text = text.replace(short, long)
    return text


def values(runs: Sequence[Run], found: Mapping[Number, str]) -> Table:
    """A row a run."""
    rows = []
    for run in runs:
        own = {each.identity: cell(each) for each in run.metrics.values()}
        rows.append([run.name, *(own.get(column.identity) for column in found)])
    return Table(["run", *found.values()], rows)


def definitions(found: Mapping[Number, str]) -> Definitions:
    """What the columns of a table are: first what all have in common, then each."""
    common = set.intersection(*(set(column.definition) for column in found))
    entries = {}
    if len(found) > 1 and common:
        entries[f"all {len(found)}"] = worded(sorted(common))
    for column, name in found.items():
        better = {True: "lower is better", False: "higher is better", None: ""}
        first = [f"n {column.n:,}"] if column.n is not None else []
        own = [each for each in column.definition if len(found) == 1 or each not in common]
        parts = [*first, better[column.lower_is_better], worded(own)]
        entries[name] = "; ".join(part for part in parts if part)
    return Definitions("What these numbers are", entries)


def worded(facts: Sequence[tuple[str, str]]) -> str:
    """Facts in a line; of a long digest the beginning."""
    text = "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts if value)
    return DIGEST.sub(lambda found: found[0][:12], text)


def cell(number: Number) -> str | None:
    """`0.934 [0.92, 0.951]`, in four digits."""
    if number.value is None:
        return None
    limits = "" if number.interval is None else " [{:.4g}, {:.4g}]".format(*number.interval)
    return f"{number.value:.4g}{limits}"


def quality_cost(runs: Sequence[Run]) -> list[Picture]:
    """A figure for each distance that two runs or more measured alike."""
    groups: dict[Hashable, list[tuple[Run, Number]]] = {}
    for run in runs:
        for each in run.metrics.values():
            is_distance = each.name.partition("/")[0] in DISTANCES and each.value is not None
            if is_distance and evaluations(run):
                groups.setdefault(each.identity, []).append((run, each))
    alike = {group[0][1]: group for group in groups.values() if len(group) > 1}
    names = distinct({number: title_of(number) for number in alike})
    pictures = []
    for number, group in alike.items():
        what = names[number]
        listed = "; ".join(f"{r.name} {cell(n)} at {evaluations(r):g}" for r, n in group)
        alt = f"{what} against denoiser evaluations per image: {listed}"
        pictures.append(Picture(points(group, what), alt, COST.format(what=what)))
    return pictures


def evaluations(run: Run) -> float:
    """Rows given to the guided denoiser and to references, for an image."""
    return run.cost.get("denoiser_evaluations", 0) + run.cost.get("reference_evaluations", 0)


def points(group: Sequence[tuple[Run, Number]], what: str) -> Figure:
    """A point a run with its interval and its name."""
    height = 2.6 + 0.15 * len(group)
    figure = Figure(figsize=(figures.WIDTH, height), dpi=figures.DPI, layout="constrained")
    axes = figure.subplots()
    names = labels([run for run, _ in group], 26)
    named = []
    for index, (run, number) in enumerate(group):
        x, y = evaluations(run), number.value
        assert y is not None
        low, high = number.interval or (y, y)
        bar = [[max(y - low, 0)], [max(high - y, 0)]]
        axes.errorbar(
            [x],
            [y],
            yerr=bar,
            color=figures.COLOURS[index % len(figures.COLOURS)],
            marker=figures.MARKERS[index % len(figures.MARKERS)],
            markersize=4.5,
            capsize=2.5,
            linewidth=1,
        )
        named.append((names[run.name], x, y))
    log_ticks(axes, [x for _, x, _ in named])
    axes.set_ylim(bottom=min(0.0, *(y for _, _, y in named)))
    figures.margin_names(axes, named)
    axes.set_xlabel("denoiser evaluations per image", fontsize=figures.TEXT)
    axes.set_ylabel(figures.plain_text(what), fontsize=figures.TEXT)
    axes.tick_params(labelsize=figures.SMALL)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def log_ticks(axes: Axes, places: Sequence[float]) -> None:
    """A logarithmic axis whose ticks are at the points, as many as there is room for."""
    axes.set_xscale("log")
    at = np.unique(places)
    low, high = at[0] / 1.25, at[-1] * 1.25
    axes.set_xlim(low, high)
    shown: list[float] = []
    for place in at.tolist():
        if not shown or np.log(place / shown[-1]) > 0.07 * np.log(high / low):
            shown.append(place)
    axes.set_xticks(shown, [f"{place:.4g}" for place in shown])
    axes.set_xticks([], minor=True)
