"""A column is one quantity, and its cells are the runs' own numbers."""

import re
from itertools import pairwise

import numpy as np
import pytest
import reported
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from robustguide.report import numbers
from robustguide.report.page import Table
from robustguide.report.reading import read


@pytest.fixture
def made(tmp_path):
    def make(**written):
        return [read(reported.leave(tmp_path / name, each)) for name, each in written.items()]

    return make


def tables(blocks):
    return [block for block in blocks if isinstance(block, Table)]


def test_cells_are_the_numbers_of_the_runs(made):
    found = made(a=reported.generation(1.23456789), b=reported.generation(0.5))
    _, _, values, told = numbers.tables(found)
    assert list(values.columns) == ["run", "FD-1000@toy"]
    for row, value in zip(values.rows, (1.23456789, 0.5), strict=True):
        cells = [float(each) for each in re.findall(r"[\d.]+", row[1])]
        np.testing.assert_allclose(cells, [value, value - 0.5, value + 0.5], rtol=5e-4, atol=1e-9)
    ((name, text),) = told.entries.items()
    assert name == "FD-1000@toy" and text.startswith("n 1,000; lower is better; extractor toy@1")
    assert "digest 836a" in text and "interval" not in text and "replicates" not in text


def test_another_reference_has_a_column_of_its_own(made):
    other = {"metrics": {"frechet/toy": {"reference": {"digest": "other"}}}}
    found = made(a=reported.generation(1.0), b=reported.generation(2.0, **other))
    _, _, values, told = numbers.tables(found)
    assert list(values.columns) == ["run", "FD-1000@toy (1)", "FD-1000@toy (2)"]
    first, second = values.rows
    assert first[2] is None and second[1] is None
    assert first[1].startswith("1 ") and second[2].startswith("2 ")
    common, one, other = told.entries.values()
    assert "extractor toy@1" in common and "digest" not in common
    assert "digest 836a" in one and "digest other" in other and "toy@1" not in one + other
    assert numbers.quality_cost(found) == []  # nothing to compare


def test_runs_of_another_kind_have_another_table(made):
    found = made(
        a=reported.generation(),
        b=reported.classification(0.123),
        c=reported.classification(run={"stage": "fit"}),
    )
    first, second, third = tables(numbers.tables(found))
    assert [[row[0] for row in table.rows] for table in (first, second, third)] == [
        ["a"],
        ["b"],
        ["c"],
    ]
    assert list(second.columns) == ["run", "accuracy", "robust accuracy", "integral ECE"]
    assert second.rows[0][1:] == ["0.123", "0.5", "0.1 [0.05, 0.2]"]


def test_a_number_that_could_not_be_measured_is_a_dash_with_its_warning(made):
    metrics = {"frechet/toy": {"value": None, "interval": None, "warning": "3 are not finite."}}
    blocks = numbers.tables(made(a=reported.generation(metrics=metrics)))
    assert tables(blocks)[0].rows == [["a", None]]
    assert blocks[-1].text == "a: 3 are not finite."


def test_quality_against_cost_shows_each_run_at_its_place(made):
    guided = {"robust": reported.scaled(2.0)}
    references = {"cost": {"reference_evaluations": 40.0}}
    found = made(
        slow=reported.generation(3.0, evaluations=250.0),
        fast=reported.generation(3.2, evaluations=20.0, guidance=guided, **references),
        other=reported.generation(3.1, evaluations=20.0, metrics={"frechet/toy": {"n": 10}}),
    )
    (picture,) = numbers.quality_cost(found)
    (axes,) = picture.source.axes
    assert axes.get_xscale() == "log"
    at = [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.lines
        if len(line.get_xdata()) == 1
    ]
    assert {(250.0, 3.0), (60.0, 3.2)} <= set(at) and 3.1 not in {y for _, y in at}
    bars = {tuple(segment[:, 1]) for bar in axes.collections for segment in bar.get_segments()}
    assert bars == {(2.5, 3.5), (3.2 - 0.5, 3.2 + 0.5)}
    assert {text.get_text() for text in axes.texts} == {"slow", "fast"}
    assert "slow 3 [2.5, 3.5] at 250; fast 3.2 [2.7, 3.7] at 60" in picture.alt


def test_names_beside_points_do_not_overlap(made):
    written = {f"run{i}": reported.generation(3.0 + 1e-3 * i) for i in range(12)}
    (picture,) = numbers.quality_cost(made(**written))
    figure = picture.source
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = sorted(
        (Text.get_window_extent(text, renderer) for text in figure.axes[0].texts),
        key=lambda b: b.y0,
    )
    assert len(boxes) == 12
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))
    assert boxes[0].y0 >= 0 and boxes[-1].y1 <= figure.bbox.height
