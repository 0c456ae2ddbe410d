"""Tables of a survey's score: every number that they show is there, and no name is markup."""

from io import StringIO

import pytest
import surveys
from rich.console import Console

from robustguide.report import opinions
from robustguide.survey import Settings, gather, score

METHODS = ("plain [red]", "robust", "no\x1b[31mne")


def told(tmp_path, choosers, key, **settings):
    paths = [
        surveys.written(tmp_path / f"{rater}.json", surveys.document(key, choose, rater))
        for rater, choose in enumerate(choosers)
    ]
    return score(key, gather(paths, key), Settings(**settings))


def printed(table):
    console = Console(width=120, record=True, file=StringIO())
    console.print(table.narrow())
    return console.export_text()


def test_win_rates(tmp_path):
    key = surveys.key_of(count=10)
    found = told(tmp_path, [surveys.for_method("a"), surveys.for_method("b")], key)
    lines = printed(opinions.wins(found)).splitlines()
    assert lines[0].split() == "A over B won tied lost rate 95% over raters".split()
    low, high = found["pairs"][0]["wilson"]
    assert lines[1].split() == [
        *"a over b 10 0 10 50.0%".split(),
        f"{100 * low:.1f}..{100 * high:.1f}",
        "0.0..100.0",
    ]
    by_class = printed(opinions.classes(found)).splitlines()
    assert len(by_class) == 3 and by_class[1].split()[:6] == "a over b x 10 50.0%".split()


def test_names_are_neither_markup_nor_control_characters(tmp_path):
    key = surveys.key_of(METHODS, 36, classes=("[/x]", "y\x07"))
    found = told(tmp_path, [surveys.at_random(seed) for seed in range(3)], key)
    shown = "".join(
        printed(make(found)) for make in (opinions.wins, opinions.classes, opinions.strengths)
    )
    assert "plain [red] over no?[31mne" in shown and "[/x]" in shown and "y?" in shown
    assert "\x1b" not in shown and "\x07" not in shown


@pytest.mark.parametrize(("classes", "is_listed"), [(40, True), (41, False)])
def test_many_classes_are_left_to_the_file(tmp_path, classes, is_listed):
    key = surveys.key_of(count=classes, classes=[f"class {place}" for place in range(classes)])
    found = told(tmp_path, [surveys.for_method("a")], key)
    assert (opinions.classes(found) is not None) == is_listed
    assert any("by class, 41 of them" in line for line in opinions.notes(found)) != is_listed
    assert len(found["pairs"][0]["classes"]) == classes


def test_strengths_are_in_order(tmp_path):
    found = told(
        tmp_path, [surveys.at_random(seed) for seed in range(3)], surveys.key_of("abc", 36)
    )
    rows = opinions.strengths(found).rows
    values = {row["name"]: row["strength"] for row in found["strengths"]["methods"]}
    assert [row[0] for row in rows] == sorted(values, key=values.get, reverse=True)
    assert [row[1] for row in rows] == sorted(values.values(), reverse=True)


def test_what_is_left_out_is_told(tmp_path):
    key = surveys.key_of("abc", 36, checks=2, classes=(None,))
    lazy = [surveys.for_method("a"), lambda question: "tie"]
    found = told(tmp_path, lazy, key)
    assert opinions.classes(found) is None and opinions.strengths(found) is None
    notes = opinions.notes(found)
    assert notes[0].startswith("1 of 2 raters failed more than 0 of 2 attention checks")
    assert notes[1].startswith("No strengths (Bradley and Terry): b and c never won against a")
    assert notes[2].startswith("Krippendorff's alpha: none")
    assert notes[3].startswith("A win rate of 55.0% or more is told from 50% with probability 80%")
    assert "783 independent answers" in notes[3]
    rows = opinions.raters(found).rows
    assert [row[3:] for row in rows] == [("0 of 2", "yes"), ("2 of 2", "no")]


@pytest.mark.parametrize(("rate", "shown"), [(None, "—"), (0.5, "50.0%"), (1.0, "100.0%")])
def test_shares(rate, shown):
    assert opinions.share(rate) == shown
