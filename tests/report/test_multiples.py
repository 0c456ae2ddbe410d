import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from robustguide.report.figures import save
from robustguide.report.multiples import Panel, small_multiples

LINES = {
    "forward": ([1.0, 0.1], [0.5, 0.9]),
    "reverse": ([0.0, 0.1, 10.0], [0.8, math.nan, 0.2]),
}


def test_each_panel_has_the_lines_of_its_quantity():
    panels = [
        Panel("accuracy", LINES, level=0.25, limits=(0, 1)),
        Panel("norm", {"reverse": LINES["reverse"]}, is_logarithmic=True),
        Panel("ECE", {"forward": LINES["forward"]}, dotted={"forward": [0.1, 0.2]}),
        Panel("another", LINES),
    ]
    figure = small_multiples(panels, "a note")
    accuracy, norm, error, _ = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["accuracy", "norm", "ECE", "another"]
    _, forward, reverse, chance = accuracy.lines  # the first is where the axis is broken
    assert forward.get_xdata().tolist() == [0.1, 1.0]
    assert forward.get_ydata().tolist() == [0.9, 0.5]
    at = reverse.get_xdata().tolist()
    assert at[1:] == [0.1, 10.0] and 0 < at[0] < 0.1  # sigma = 0 stands apart
    np.testing.assert_allclose(reverse.get_ydata(), [0.8, math.nan, 0.2])
    assert set(chance.get_ydata()) == {0.25} and accuracy.get_ylim() == (0, 1)
    assert forward.get_color() != reverse.get_color()
    assert forward.get_marker() != reverse.get_marker()
    _, alone = norm.lines  # of the colour that it has everywhere
    assert alone.get_color() == reverse.get_color() and norm.get_yscale() == "log"
    _, line, dotted = error.lines
    assert dotted.get_ydata().tolist() == [0.2, 0.1] and dotted.get_linestyle() == ":"
    assert dotted.get_color() == line.get_color() and line.get_linestyle() != ":"
    limits = [axes.get_xlim() for axes in figure.axes]
    assert limits[0] == pytest.approx(limits[3])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["forward", "reverse"]
    assert legend.get_title().get_text() == "a note"
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels[0] == "" and all("sigma" in label for label in labels[1:])


@pytest.mark.parametrize("names", [1, 2, 4, 8])
def test_every_line_can_be_told_and_nothing_is_cut_off(names, tmp_path):
    lines = {f"line {i}": ([0.1, 1.0, 10.0], [0.1 * i, 0.2, 0.3]) for i in range(names)}
    figure = small_multiples([Panel(f"panel {i}\nof eleven", lines) for i in range(11)], "note")
    kinds = {
        (line.get_color(), line.get_marker(), line.get_linestyle())
        for line in figure.axes[0].lines
    }
    assert len(kinds) == names and len(figure.axes) == 11
    with Image.open(save(figure, tmp_path / "figure.png")) as picture:
        assert picture.width == 700
        pixels = np.asarray(picture.convert("L"))
    edges = [pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]]
    assert all((edge == 255).all() for edge in edges)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    legend = figure.legends[0].get_window_extent(renderer)
    for index, box in enumerate(boxes):
        assert not box.overlaps(legend)
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
