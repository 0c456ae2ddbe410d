"""Curves of several runs, and reliability diagrams."""

import numpy as np
import pytest
import reported
from matplotlib.figure import Figure

from robustguide.report import by_noise, figures
from robustguide.report.reading import read


@pytest.fixture
def made(tmp_path):
    def make(**written):
        return [read(reported.leave(tmp_path / name, each)) for name, each in written.items()]

    return make


def panels(picture):
    return {axes.get_title(): axes for axes in picture.source.axes}


def drawn(axes):
    """Values of each line."""
    return [list(line.get_ydata()) for line in axes.lines]


def test_each_run_is_a_line_of_each_quantity(made):
    runs = made(a=reported.generation(1.5), b=reported.generation(2.5))
    (picture,) = by_noise.pictures(runs)
    found = panels(picture)
    assert list(found) == [
        "ECE",
        "agreement with the label",
        "FD-1000@toy,\npredicted clean image",
    ]
    # levels ascend
    np.testing.assert_allclose(drawn(found["ECE"]), [[0.1, 0.2, 0.3]] * 2)
    np.testing.assert_allclose(
        drawn(found["FD-1000@toy,\npredicted clean image"]), [[1.5, 4, 9], [2.5, 4, 9]]
    )
    (legend,) = picture.source.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_other_attacks_references_and_splits_are_other_panels(made):
    runs = made(
        a=reported.classification(),
        b=reported.classification(attack="Linf, radius 0.1, steps 3"),
        c=reported.classification(run={"stage": "fit"}),
    )
    tested, validated = by_noise.pictures(runs)
    assert list(panels(tested)) == [
        "accuracy",
        "accuracy under attack\nL2, radius 1",
        "accuracy under attack\nLinf, radius 0.1",
        "ECE",
    ]
    lines = [len(drawn(axes)) for axes in panels(tested).values()]
    assert lines == [2, 1, 1, 2]
    assert tested.caption.startswith("ReportCard, test") and len(panels(validated)) == 3
    other = {"metrics": {"frechet/toy": {"reference": {"digest": "other"}}}}
    (picture,) = by_noise.pictures(made(d=reported.generation(), e=reported.generation(**other)))
    assert [title for title in panels(picture) if title.startswith("FD")] == [
        "FD-1000@toy,\npredicted clean image (1)",
        "FD-1000@toy,\npredicted clean image (2)",
    ]


def test_many_runs_share_figures_of_eight(made):
    runs = made(**{f"run{i}": reported.generation() for i in range(9)})
    first, second = by_noise.pictures(runs)
    assert [len(drawn(panels(each)["ECE"])) for each in (first, second)] == [8, 1]


def test_diagrams_are_those_of_the_table(made):
    (picture,) = by_noise.diagrams(made(a=reported.generation()), [])
    uppers = [axes for axes in picture.source.axes if axes.get_title()]
    assert [bar.get_height() for bar in uppers[0].patches] == [0.25, 1.0]
    # |1 - 1| / 8 + |3 - 4| / 8
    assert uppers[0].get_title() == "$\\sigma$ = 10\nECE 0.125, n = 8"


def test_many_levels_are_thinned_and_told(made):
    rows = {"sigma": [float(i + 1) for i in range(30)]}
    rows |= {key: [[1.0]] * 30 for key in ("count", "confidence", "correct")}
    written = reported.generation(reliability={"trajectory": rows})
    (picture,) = by_noise.diagrams(made(a=written), [])
    assert len([axes for axes in picture.source.axes if axes.get_title()]) == 12
    assert picture.caption == "a, trajectory. 12 of 30 levels."


def test_runs_of_an_older_form_show_their_own_pictures(made, tmp_path):
    written = reported.classification()
    (run,) = made(a=written)
    figure = Figure(figsize=(1, 1))
    figures.save(figure, run.folder / "reliability_forward_x_t.png")
    whole = (run.folder / "reliability_forward_x_t.png").read_bytes()
    (run.folder / "reliability_other.png").write_bytes(whole[:-100])
    notes = []
    (picture,) = by_noise.diagrams([run], notes)
    assert picture.source == run.folder / "reliability_forward_x_t.png"
    assert notes == ["a: reliability_other.png is no whole PNG file."]
