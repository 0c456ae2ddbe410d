"""What the answers to a survey say."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np

from robustguide.metrics.jackknife import Jackknife
from robustguide.survey.agreement import krippendorff
from robustguide.survey.answers import Answers, Gathered
from robustguide.survey.key import Key, Question
from robustguide.survey.rates import LEVEL, Tally, needed, over_raters
from robustguide.survey.strengths import Unidentified, fit


@dataclass(frozen=True)
class Settings:
    """Of a score.

    Attributes:
        max_failed: Attention checks that a rater may fail and still count.
        margin: Above one half, of a win rate that one wants to find.
        power: Chance to find it.

    Raises:
        ValueError: For numbers out of range.
    """

    max_failed: int = 0
    margin: float = 0.05
    power: float = 0.8

    def __post_init__(self) -> None:
        if self.max_failed < 0:
            raise ValueError(f"--max-failed is {self.max_failed}; expected 0 or more.")
        needed(self.margin, self.power)


def score(key: Key, gathered: Gathered, settings: Settings) -> dict[str, Any]:
    """Everything that the answers say, as plain data.

    Args:
        key: Of the survey.
        gathered: The answers.
        settings: How to judge them.

    Returns:
        `pairs` with win rates, `strengths` (null for two methods), `agreement`, `raters`, `power`,
        and which files and raters are left out. Times are in seconds.

    Raises:
        ValueError: If no rater is left; the message says why.
    """
    kept = [each for each in gathered.raters if each.failed(key) <= settings.max_failed]
    if not kept:
        raise ValueError(nobody(gathered, settings))
    asked = [each for each in key.questions if not each.is_check]
    return {
        "survey": key.survey,
        "title": key.title,
        "question": key.question,
        "ties": key.has_ties,
        "methods": [{"name": each.name, "path": each.path} for each in key.methods],
        "level": LEVEL,
        "questions": len(asked),
        "checks": len(key.checks),
        "max_failed": settings.max_failed,
        "raters": [told_of(each, key, each in kept) for each in gathered.raters],
        "repeated": list(gathered.repeated),
        "set_aside": [vars(each) for each in gathered.set_aside],
        "pairs": [pair(a, b, asked, kept) for a, b in combinations(key.names, 2)],
        "strengths": strengths(key.names, asked, kept) if len(key.names) > 2 else None,
        "agreement": agreement(asked, kept),
        "power": {
            "margin": settings.margin,
            "power": settings.power,
            "level": 1 - LEVEL,
            "answers": needed(settings.margin, settings.power),
        },
    }


def nobody(gathered: Gathered, settings: Settings) -> str:
    """Why no answers are left."""
    if not gathered.raters:
        reasons = "; ".join(f"{each.file}: {each.reason}" for each in gathered.set_aside[:3])
        return f"None of the files holds answers to this survey. {reasons}."
    return (
        f"All {len(gathered.raters)} raters failed more than {settings.max_failed} attention "
        "checks; look at the page, or give a larger --max-failed."
    )


def told_of(answers: Answers, key: Key, is_used: bool) -> dict[str, Any]:
    """A rater's part."""
    return {
        "rater": answers.rater,
        "answers": len(answers.given),
        "median_seconds": median(each.ms for each in answers.given.values()) / 1000,
        "failed": answers.failed(key),
        "used": is_used,
    }


def tally(method: str, asked: Iterable[Question], answers: Answers) -> Tally:
    """A rater's answers to questions, from a method's side."""
    total = Tally()
    for question in asked:
        given = answers.given.get(question.id)
        if given is None:
            continue
        if given.choice == "tie":
            total += Tally(tied=1)
        else:
            is_won = getattr(question, given.choice) == method
            total += Tally(won=1) if is_won else Tally(lost=1)
    return total


def pair(a: str, b: str, asked: Sequence[Question], kept: Sequence[Answers]) -> dict[str, Any]:
    """Win rate of a method over another one, over all and by class."""
    own = [each for each in asked if {each.left, each.right} == {a, b}]
    names = list(dict.fromkeys(each.class_name for each in own))
    classes = []
    for name in sorted(names, key=str) if names != [None] else []:
        of_class = [each for each in own if each.class_name == name]
        classes.append({"class": name, **rates(a, of_class, kept)})
    return {"a": a, "b": b, **rates(a, own, kept), "classes": classes}


def rates(method: str, asked: Sequence[Question], kept: Sequence[Answers]) -> dict[str, Any]:
    """Counts, win rate and intervals."""
    by_rater = [tally(method, asked, each) for each in kept]
    total = sum(by_rater, Tally())
    return {
        "answers": total.count,
        "won": total.won,
        "tied": total.tied,
        "lost": total.lost,
        "rate": total.rate,
        "wilson": total.wilson(),
        "over_raters": over_raters(by_rater),
    }


def win_table(
    names: Sequence[str], asked: Sequence[Question], kept: Sequence[Answers]
) -> np.ndarray:
    """Wins of the method of each row over that of each column."""
    place = {name: row for row, name in enumerate(names)}
    wins = np.zeros((len(names), len(names)))
    for answers in kept:
        for question in asked:
            total = tally(str(question.left), [question], answers)
            left, right = place[str(question.left)], place[str(question.right)]
            wins[left, right] += total.wins
            wins[right, left] += total.count - total.wins
    return wins


def strengths(
    names: Sequence[str], asked: Sequence[Question], kept: Sequence[Answers]
) -> dict[str, Any]:
    """Bradley and Terry's, with errors of independent answers and over raters.

    Where no finite strengths fit, the reason stands in their place; where that is so without one
    of the raters, there are no errors over raters.
    """
    tables = [win_table(names, asked, [each]) for each in kept]
    total = sum(tables, np.zeros_like(tables[0]))
    try:
        found = fit(total, names)
    except Unidentified as error:
        return {"reason": str(error), "methods": []}
    try:
        without = [fit(total - each, names).values for each in tables] if len(tables) > 1 else []
    except Unidentified:
        without = []
    rows = []
    for row, name in enumerate(names):
        value = float(found.values[row])
        replicates = tuple(float(each[row]) for each in without)
        told: Mapping[str, Any] = {
            "name": name,
            "strength": value,
            "standard_error": float(found.standard_errors[row]),
            "over_raters": Jackknife(value, replicates).standard_error() if replicates else None,
        }
        rows.append(told)
    return {"reason": None, "methods": rows}


def agreement(asked: Sequence[Question], kept: Sequence[Answers]) -> dict[str, Any]:
    """Krippendorff's alpha of left, right and tie.

    Of the sides and not of the methods: sides are random, so raters who agree only that one method
    is better do agree, which alpha of the methods' names would take for chance.
    """
    units = [
        [each.given[question.id].choice for each in kept if question.id in each.given]
        for question in asked
    ]
    shared = [unit for unit in units if len(unit) > 1]
    return {"alpha": krippendorff(shared), "questions": len(shared), "raters": len(kept)}
