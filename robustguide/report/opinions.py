"""Tables of what the answers to a survey say, for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from robustguide.report.page import MISSING, Table

LISTED = 40  # rows by class that a terminal still shows usefully


def wins(told: Mapping[str, Any]) -> Table:
    """One row a pair of methods.

    Args:
        told: A score as `robustguide.survey.score` makes it; so below.
    """
    rows = [
        (versus(pair), *counts(pair), share(pair["rate"]), *limits(pair)) for pair in told["pairs"]
    ]
    columns = ("A over B", "won", "tied", "lost", "rate", "95%", "over raters")
    return Table(columns, rows, "Win rates")


def classes(told: Mapping[str, Any]) -> Table | None:
    """One row a pair of methods and class; nothing without classes, or for too many of them."""
    rows = [
        (versus(pair), text(row["class"]), row["answers"], share(row["rate"]), *limits(row)[:1])
        for pair in told["pairs"]
        for row in pair["classes"]
    ]
    if not 0 < len(rows) <= LISTED:
        return None
    return Table(("A over B", "class", "answers", "rate", "95%"), rows, "Win rates by class")


def strengths(told: Mapping[str, Any]) -> Table | None:
    """One row a method, the strongest first; nothing for two methods, or where none are finite."""
    found = told["strengths"]
    if found is None or not found["methods"]:
        return None
    ordered = sorted(found["methods"], key=lambda row: -row["strength"])
    rows = [
        (text(row["name"]), row["strength"], row["standard_error"], row["over_raters"])
        for row in ordered
    ]
    columns = ("method", "strength", "error", "over raters")
    return Table(columns, rows, "Strengths", dict.fromkeys(columns[1:], ".3f"))


def raters(told: Mapping[str, Any]) -> Table:
    """One row a rater."""
    rows = [
        (
            row["rater"][:8],
            row["answers"],
            f"{row['median_seconds']:.1f} s",
            f"{row['failed']} of {told['checks']}",
            "yes" if row["used"] else "no",
        )
        for row in told["raters"]
    ]
    return Table(("rater", "answers", "median time", "checks failed", "counted"), rows, "Raters")


def notes(told: Mapping[str, Any]) -> list[str]:
    """A line each: what is left out, how raters agree, and how many answers a margin needs."""
    lines = [f"Set aside: {row['file']}: {row['reason']}." for row in told["set_aside"]]
    lines += [f"Counted once: {file} says what another file says." for file in told["repeated"]]
    failed = [row for row in told["raters"] if not row["used"]]
    if failed:
        lines.append(
            f"{len(failed)} of {len(told['raters'])} raters failed more than "
            f"{told['max_failed']} of {told['checks']} attention checks and are left out."
        )
    by_class = sum(len(pair["classes"]) for pair in told["pairs"])
    if by_class > LISTED:
        lines.append(f"Win rates by class, {by_class:,} of them, are in the file of --out alone.")
    found = told["strengths"]
    if found is not None and found["reason"]:
        lines.append(f"No strengths (Bradley and Terry): {spoken(found['reason'])}.")
    elif found is not None:
        lines.append("Strengths are log odds (Bradley and Terry), with a sum of 0.")
    return [*lines, agreement(told["agreement"]), need(told["power"])]


def agreement(told: Mapping[str, Any]) -> str:
    """Of the raters."""
    if told["alpha"] is None:
        return "Krippendorff's alpha: none, since no question has two answers that could differ."
    return (
        f"Krippendorff's alpha: {told['alpha']:.3f} over {told['questions']} questions and "
        f"{told['raters']} raters; 1 is agreement, 0 is chance."
    )


def need(told: Mapping[str, Any]) -> str:
    """How many answers would do."""
    return (
        f"A win rate of {0.5 + told['margin']:.1%} or more is told from 50% with probability "
        f"{told['power']:.0%} by {told['answers']:,} independent answers about a pair (two-sided, "
        f"level {told['level']:.2g})."
    )


def versus(pair: Mapping[str, Any]) -> str:
    """The two names."""
    return f"{text(pair['a'])} over {text(pair['b'])}"


def counts(row: Mapping[str, Any]) -> tuple[int, int, int]:
    """Of the answers."""
    return row["won"], row["tied"], row["lost"]


def limits(row: Mapping[str, Any]) -> tuple[str, str]:
    """Wilson's, and those over raters, in percent."""
    wilson, over = (
        MISSING if found is None else f"{100 * found[0]:.1f}..{100 * found[1]:.1f}"
        for found in (row["wilson"], row["over_raters"])
    )
    return wilson, over


def share(rate: float | None) -> str:
    """In percent."""
    return MISSING if rate is None else f"{rate:.1%}"


def text(name: str) -> str:
    """A name in a cell, in which brackets are no markup."""
    return escape(spoken(name))


def spoken(name: str) -> str:
    """Without control characters, which could rewrite what a terminal shows."""
    return "".join(sign if sign.isprintable() else "?" for sign in name)
