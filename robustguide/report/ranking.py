"""Candidates in the order of their calibration, and how well that order foretold their samples.

Spearman's rho is Pearson's correlation of ranks, ties having the mean of their ranks. Of m pairs

    tanh(atanh(rho) -+ z sqrt((1 + rho**2 / 2) / (m - 3)))

is its interval (Bonett and Wright, 2000), z being the normal quantile. The p-value is the share of
all orders of the one list whose |rho| with the other is as large: of all m! orders, or of many
random ones.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import NormalDist, fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from robustguide.report import figures
from robustguide.report.page import Table, shown

LEVEL = 0.95
LEAST = 4  # pairs; the variance of the interval is infinite for 3
MOST_ORDERS = 8  # 8! = 40320 orders are all gone through
RANDOM_ORDERS = 20_000
KEYS = {"ece": "integral_ece", "smooth_ece": "smooth_ece", "nll": "nll", "cost": "flops"}
SHORT = {"smooth_ece": "smooth", "nll": "NLL"}
TITLES = {"smooth_ece": "smooth ECE", "nll": "negative log-likelihood"}
VIEWS = {
    "AtState": "x",
    "AtNormalizedState": "x / rms",
    "AtDenoised": "denoised",
    "ThroughDenoiser": "through",
}
CAPTION = (
    "ECE: mean over {levels} noise levels, sigma {low:g} to {high:g}, of {bins} bins and n = {n} "
    "pairs of an image and its noise; 95 % by bootstrap over images. right: top-1, mean over the "
    "levels. *: on the front, nothing is both better calibrated and cheaper. FLOPs: of one "
    "gradient at one image. Looks at: x, the noisy image; denoised, what the denoiser makes of it "
    "(through: differentiated through the denoiser)."
)
BIASED = (
    " n is below 2000: ECE is biased upwards; that of calibrated classifiers as sure as these "
    "would be {low:.3f} to {high:.3f}."
)


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho of pairs.

    Attributes:
        m: Number of pairs.
        rho: Null where there are too few pairs, or all values of a list are equal.
        low: Lower 95% limit; null for rho = 1 or -1, which leaves no spread to tell from.
        high: Upper one.
        p: Two-sided, by permutation.
    """

    m: int
    rho: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return means


def spearman(first: Sequence[float], second: Sequence[float]) -> Correlation:
    """Rank correlation of two lists of finite numbers.

    Raises:
        ValueError: They have different lengths.
    """
    if len(first) != len(second):
        raise ValueError(f"Pairs are of two lists, got {len(first)} and {len(second)} values.")
    m = len(first)
    if m < LEAST:
        return Correlation(m)
    a, b = (standard(ranks(values)) for values in (first, second))
    if not a.any() or not b.any():
        return Correlation(m)
    rho = float(np.clip(a @ b, -1, 1))
    p = chance(a, b, abs(rho))
    if math.isclose(abs(rho), 1):
        return Correlation(m, rho, p=p)
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * math.sqrt((1 + rho**2 / 2) / (m - 3))
    low, high = (math.tanh(math.atanh(rho) + sign * half) for sign in (-1, 1))
    return Correlation(m, rho, low, high, p)


def standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of mean 0 and length 1; zeros where all are equal."""
    centred: NDArray[np.float64] = values - values.mean()
    length = math.sqrt(centred @ centred)
    return centred / max(length, 1e-300)


def chance(a: NDArray[np.float64], b: NDArray[np.float64], least: float) -> float:
    """Share of orders of b whose correlation with a is at least so large."""
    m = len(a)
    if m <= MOST_ORDERS:
        orders = np.array(list(permutations(range(m))))
        return float((np.abs(b[orders] @ a) >= least - 1e-9).mean())
    generator = np.random.default_rng(0)
    orders = generator.permuted(np.tile(np.arange(m), (RANDOM_ORDERS, 1)), axis=1)
    found = int((np.abs(b[orders] @ a) >= least - 1e-9).sum())
    return (found + 1) / (RANDOM_ORDERS + 1)  # the order at hand is one of them


def outcome_of(entries: Sequence[Mapping[str, Any]], asked: str | None) -> str | None:
    """The Fréchet distance to compare by: the one that most runs have, or the one asked for.

    Raises:
        ValueError: No run has the one asked for.
    """
    names = Counter(
        name
        for entry in entries
        for name in set().union(*entry["metrics"])
        if name.startswith("frechet/")
    )
    if asked is not None and asked not in names:
        there = ", ".join(sorted(names)) or "none"
        raise ValueError(f"No run has the metric {asked!r}; --outcome can be: {there}.")
    return asked or (names.most_common(1)[0][0] if names else None)


def with_outcome(entry: Mapping[str, Any], outcome: str | None) -> dict[str, Any]:
    """An entry with its distance, the mean over its blocks; null where one of them has none."""
    found = [block.get(outcome, {}) for block in entry["metrics"]]
    values = [one.get("value") for one in found]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    is_whole = bool(numbers) and len(numbers) == len(values)
    facts = [one.get(key) for one in found[:1] for key in ("n", "extractor", "reference_n")]
    return {
        **entry,
        "frechet": fmean(numbers) if is_whole else None,
        "frechet_of_blocks": values,
        "frechet_of": facts,
    }


def ordered(entries: Sequence[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """Entries from best to worst, each told its `rank` and whether it is on the `front`.

    Args:
        entries: With `integral_ece`, `smooth_ece`, `nll` and `flops`, from `robustguide rank`.
        by: One of `KEYS`. The front is of this one and cost; of ECE and cost where it is cost.
    """
    quality = KEYS["ece" if by == "cost" else by]
    placed = sorted(entries, key=lambda entry: (entry[KEYS[by]], entry["flops"], entry["name"]))
    points = [(entry[quality], entry["flops"]) for entry in placed]
    return [
        entry | {"rank": place, "front": not any(beats(other, point) for other in points)}
        for place, (entry, point) in enumerate(zip(placed, points, strict=True), start=1)
    ]


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether it is as good in both and better in one."""
    return one != other and one[0] <= other[0] and one[1] <= other[1]


def judged(entries: Sequence[Mapping[str, Any]], by: str) -> dict[str, Any]:
    """How the order agrees with Fréchet distances, where entries have one.

    Returns:
        `runs`: over all of them. `settings`: over those whose answers differ, each with its best
        run, since the strength of guidance changes a distance and no calibration.
        `first`: the best in the order, several where they are alike, and `places`: theirs by
        distance, from 1. `is_mixed`: whether distances are of different numbers of images or
        features, and so not alike.
    """
    known = [entry for entry in entries if entry["frechet"] is not None]
    kinds = {json.dumps(entry["frechet_of"]) for entry in known}
    best: dict[tuple[float, float], Mapping[str, Any]] = {}
    for entry in sorted(known, key=lambda entry: float(entry["frechet"])):
        # the same answers, whatever else of the gradient differs
        best.setdefault((entry["integral_ece"], entry["nll"]), entry)
    found: dict[str, Any] = {"settings_count": len(best), "is_mixed": len(kinds) > 1}
    for name, group in (("runs", known), ("settings", list(best.values()))):
        pairs = [(entry[KEYS[by]], entry["frechet"]) for entry in group]
        found[name] = spearman([one for one, _ in pairs], [two for _, two in pairs])
    if known:
        least = min(entry[KEYS[by]] for entry in known)
        first = [entry for entry in known if entry[KEYS[by]] == least]
        places = [1 + sum(o["frechet"] < e["frechet"] for o in known) for e in first]
        found |= {"first": [entry["name"] for entry in first], "places": places}
    return found


def verdict(found: Mapping[str, Any], by: str) -> str:
    """What `judged` found, in words."""
    runs, m = found["runs"], found["runs"].m
    what = {"ece": "integral ECE", "cost": "cost"}.get(by, TITLES.get(by, by))
    if m < LEAST:
        return (
            f"How well {what} foretells the Fréchet distance cannot be said: {m} candidates have "
            f"both, and {LEAST} are the least."
        )
    count = found["settings_count"]
    lines = [
        f"Spearman's rho between {what} and Fréchet distance, over m = {m} runs: {said(runs)}."
    ]
    if count < m:
        best = found["settings"]
        lines.append(
            f"{count} of them answer differently; each of these once, with its best run: "
            + (said(best) if best.m >= LEAST else f"too few, {LEAST} are the least")
            + "."
        )
    names, places = found["first"], found["places"]
    lines += [
        f"First by {what}: {', '.join(names)}; by distance {listed(places)} of {m}.",
        "Less is better in both, so rho = 1 is an order that foretold everything. Runs differ in "
        "the strength of guidance and in other terms, too, and share classifiers: rho tells that "
        "they go together, not why, and its interval takes runs as independent.",
    ]
    if found["is_mixed"]:
        lines.append(
            "The distances are of different numbers of images, or of different features, which "
            "changes them by itself: compare runs that are alike."
        )
    return "\n".join(lines)


def listed(places: Sequence[int]) -> str:
    """Numbers in words."""
    return f"number{'s' if len(places) > 1 else ''} {', '.join(map(str, sorted(places)))}"


def said(found: Correlation) -> str:
    """A correlation in words."""
    if found.rho is None:
        return "none, since all values are equal"
    p = f"p = {found.p:.2g} by permutation"
    if found.low is None:
        return f"{found.rho:.2f}, without an interval since the orders agree throughout; {p}"
    text = f"{found.rho:.2f}, 95 % {found.low:.2f} to {found.high:.2f}; {p}"
    crosses = found.low <= 0 <= (found.high or 0)
    return text + (", so not even its sign is known" if crosses else "")


def table(entries: Sequence[Mapping[str, Any]], by: str = "ece") -> Table:
    """A row a candidate."""
    others = [by] if by in SHORT else []
    has_frechet = any(entry["frechet"] is not None for entry in entries)
    columns = ["", "candidate", "looks at", "ECE", "95 %", *[SHORT[by] for by in others]]
    columns += ["right", "FLOPs", "weights", *(["Fréchet"] if has_frechet else [])]
    rows = []
    for entry in entries:
        low, high = entry["limits"]
        row = [f"{entry['rank']}{'*' if entry['front'] else ''}", entry["name"], entry["view"]]
        row += [f"{entry['integral_ece']:.3f}", f"{low:.3f}-{high:.3f}"]
        row += [f"{entry[KEYS[by]]:.3f}" for by in others]
        row += [f"{100 * entry['accuracy']:.1f} %"]
        row += [short(entry["flops"]), short(entry["parameters"])]
        rows.append(row + ([shown(entry["frechet"], ".3f")] if has_frechet else []))
    return Table(columns, rows, caption(entries))


def caption(entries: Sequence[Mapping[str, Any]]) -> str:
    """What the numbers are of; all are of the same grid and images."""
    first = entries[0]
    levels = first["levels"]
    text = CAPTION.format(
        levels=len(levels), low=min(levels), high=max(levels), bins=first["bins"], n=first["n"]
    )
    floors = [entry["if_calibrated"]["mean"] for entry in entries]
    return text + (BIASED.format(low=min(floors), high=max(floors)) if first["is_small"] else "")


def short(value: float) -> str:
    """1234567 as 1.23M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def scatter(entries: Sequence[Mapping[str, Any]], by: str, outcome: str) -> Figure:
    """Fréchet distance against what was ranked by, with its interval for ECE.

    Raises:
        ValueError: No candidate has a Fréchet distance.
    """
    known = [entry for entry in entries if entry["frechet"] is not None]
    if not known:
        raise ValueError(
            "A figure shows Fréchet distances, and no candidate has one; give --runs of finished "
            "runs, or leave --figure out."
        )
    height = 2.4 + 0.16 * len(known)
    figure = Figure(figsize=(figures.WIDTH, height), dpi=figures.DPI, layout="constrained")
    axes = figure.subplots()
    for index, view in enumerate(dict.fromkeys(entry["view"] for entry in known)):
        group = [entry for entry in known if entry["view"] == view]
        points(axes, group, by, index, view)
    named = [(entry["name"], entry[KEYS[by]], entry["frechet"]) for entry in known]
    figures.margin_names(axes, named)
    what = {"ece": "integral ECE", "cost": "FLOPs of one gradient"}.get(by, TITLES.get(by, by))
    axes.set_xlabel(what, fontsize=figures.TEXT)
    axes.set_ylabel(f"Fréchet distance ({outcome.partition('/')[2]})", fontsize=figures.TEXT)
    axes.tick_params(labelsize=figures.SMALL)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        title="looks at",
        title_fontsize=figures.SMALL,
        fontsize=figures.SMALL,
        frameon=False,
        loc="outside upper center",
        ncols=5,
    )
    return figure


def points(axes: Axes, group: Sequence[Mapping[str, Any]], by: str, index: int, view: str) -> None:
    """Candidates of one view."""
    at = np.array([entry[KEYS[by]] for entry in group])
    spread = None
    if by == "ece":
        limits = np.array([entry["limits"] for entry in group])
        spread = np.abs(limits.T - at).clip(min=0)
    axes.errorbar(
        at,
        [entry["frechet"] for entry in group],
        xerr=spread,
        color=figures.COLOURS[index % len(figures.COLOURS)],
        marker=figures.MARKERS[index % len(figures.MARKERS)],
        markersize=4.5,
        linestyle="none",
        linewidth=0.8,
        label=view,
    )
