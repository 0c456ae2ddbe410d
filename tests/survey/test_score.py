"""What answers say, where it can be said beforehand."""

import json

import numpy as np
import pytest
import surveys

from robustguide.survey import Settings, gather, score
from robustguide.survey.agreement import krippendorff
from robustguide.survey.rates import Tally, over_raters
from robustguide.survey.strengths import fit


def scored(folder, key, choosers, **settings):
    paths = [
        surveys.written(folder / f"{rater}.json", surveys.document(key, choose, rater))
        for rater, choose in enumerate(choosers)
    ]
    found = score(key, gather(paths, key), Settings(**settings))
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(found))
    return found


def ties_in(class_name, otherwise):
    def choose(question):
        is_tie = question.class_name == class_name and not question.is_check
        return "tie" if is_tie else surveys.for_method(otherwise)(question)

    return choose


def test_win_rates_by_pair_and_class(tmp_path):
    """12 questions, 6 of each class: one rater likes a, the other b but for ties in class y."""
    key = surveys.key_of()
    found = scored(tmp_path, key, [surveys.for_method("a"), ties_in("y", "b")])
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"], pair["answers"]) == ("a", "b", 24)
    assert (pair["won"], pair["tied"], pair["lost"]) == (12, 6, 6)
    assert pair["rate"] == 15 / 24 and pair["wilson"] == Tally(12, 6, 6).wilson()
    assert pair["over_raters"] == over_raters([Tally(12), Tally(0, 6, 6)])
    rates = {row["class"]: (row["rate"], row["answers"]) for row in pair["classes"]}
    assert rates == {"x": (0.5, 12), "y": (0.75, 12)}
    assert found["strengths"] is None
    assert found["raters"][0] == {
        "rater": f"{0:032x}",
        "answers": 12,
        "median_seconds": 1.5,
        "failed": 0,
        "used": True,
    }


def test_agreement_is_that_of_sides(tmp_path):
    """Two raters who always prefer one method agree fully; the sides are what differs."""
    key = surveys.key_of(checks=3)
    same = scored(tmp_path, key, [surveys.for_method("a")] * 2)["agreement"]
    assert same == {"alpha": 1.0, "questions": 12, "raters": 2}
    choosers = [surveys.for_method("a"), surveys.at_random(1), surveys.at_random(2)]
    found = scored(tmp_path, key, choosers)["agreement"]
    again = [surveys.for_method("a"), surveys.at_random(1), surveys.at_random(2)]
    answers = [[choose(question) for question in key.questions] for choose in again]
    units = list(zip(*answers, strict=True))[:12]  # checks are the last, and no questions
    assert found["alpha"] == pytest.approx(krippendorff(units)) != 1


def test_strengths_are_those_of_the_wins(tmp_path):
    methods = ("a", "b", "c")
    key = surveys.key_of(methods, 36)
    found = scored(tmp_path, key, [surveys.at_random(seed) for seed in range(4)])
    wins = np.zeros((3, 3))
    for pair in found["pairs"]:
        i, j = methods.index(pair["a"]), methods.index(pair["b"])
        wins[i, j] = pair["won"] + pair["tied"] / 2
        wins[j, i] = pair["lost"] + pair["tied"] / 2
    assert wins.sum() == 4 * 36
    want = fit(wins, methods)
    rows = found["strengths"]["methods"]
    assert [row["name"] for row in rows] == list(methods)
    assert [row["strength"] for row in rows] == pytest.approx(want.values)
    assert [row["standard_error"] for row in rows] == pytest.approx(want.standard_errors)
    assert all(0 < row["over_raters"] < 2 for row in rows)


def test_a_method_that_never_wins_is_reported(tmp_path):
    key = surveys.key_of(("a", "b", "c"), 36)

    def choose(question):
        for best in ("a", "b"):
            if best in (question.left, question.right) and "c" in (question.left, question.right):
                return surveys.for_method(best)(question)
        return "left"

    found = scored(tmp_path, key, [choose, choose])["strengths"]
    assert found["methods"] == [] and "c never won against a and b" in found["reason"]


def test_raters_who_fail_checks_are_left_out(tmp_path):
    key = surveys.key_of(checks=4)

    def careless(question):
        return "left"  # fails the checks with noise at the left: two of four

    choosers = [surveys.for_method("a"), careless, surveys.for_method("a")]
    found = scored(tmp_path, key, choosers)
    assert [(row["failed"], row["used"]) for row in found["raters"]] == [
        (0, True),
        (2, False),
        (0, True),
    ]
    assert found["pairs"][0]["answers"] == 24 and found["pairs"][0]["rate"] == 1
    assert found["agreement"]["raters"] == 2
    more = scored(tmp_path, key, choosers, max_failed=2)
    assert more["pairs"][0]["answers"] == 36 and more["pairs"][0]["rate"] == 30 / 36
    with pytest.raises(ValueError, match="All 1 raters failed more than 0 attention checks"):
        scored(tmp_path, key, [careless])


def test_no_answers_at_all(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    key = surveys.key_of()
    with pytest.raises(ValueError, match=r"None of the files .*x\.json: it does not hold"):
        score(key, gather([tmp_path / "x.json"], key), Settings())


def test_power_is_told(tmp_path):
    found = scored(tmp_path, surveys.key_of(), [surveys.for_method("a")], margin=0.1, power=0.9)
    assert found["power"]["answers"] == 259  # ((0.97998 + 1.28155 * 0.4899) / 0.1)^2 = 258.6
    with pytest.raises(ValueError, match="--max-failed is -1"):
        Settings(max_failed=-1)
    with pytest.raises(ValueError, match="--margin is 0"):
        Settings(margin=0.0)
