"""The sheet and the table of what classifiers painted."""

import pytest
import torch

from robustguide.report import painting

JUDGED = {"value": 0.75, "limits": [0.5, 0.9]}


def document(judged):
    row = {"log_p_before": -3.0, "log_p_after": -0.01, "moved": 1.5, "judge_accuracy": judged}
    return {
        "painted": [{"name": "plain", **row}],
        "classes": [{"class": 0, "name": "T-shirt/top"}, {"class": 1, "name": "Trouser"}],
        "n": 40,
        "levels": [1.0, 0.5],
        "radius": 4.0,
        "judge": judged and "judge.safetensors",
        "start_judge_accuracy": judged,
    }


@pytest.mark.parametrize(("judged", "cell"), [(JUDGED, "0.750 [0.500, 0.900]"), (None, None)])
def test_the_table_tells_both_ends_and_what_the_judge_sees(judged, cell):
    shown = painting.table(document(judged))
    start, plain = shown.rows
    assert start == ["start", None, None, 0.0, cell]
    assert plain == ["plain", -3.0, -0.01, 1.5, cell]
    assert "40 images" in shown.caption and "at sigma 0.5" in shown.caption
    assert ("needs --judge" in shown.caption) == (judged is None)


def test_the_sheet_has_the_starts_and_a_row_a_classifier():
    start, made = torch.full((2, 1, 4, 4), -1.0), torch.ones(2, 1, 4, 4)
    axes = painting.sheet(start, {"plain": made}, document(None)).axes[0]
    assert [float(image.get_array()[0, 0]) for image in axes.images] == [0, 0, 1, 1]
    assert [text.get_text() for text in axes.texts] == ["T-shirt/top", "Trouser", "start", "plain"]
