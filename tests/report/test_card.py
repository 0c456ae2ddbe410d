import json
import math
from io import StringIO

import pytest
import torch
from rich.console import Console

from robustguide.metrics import Reliability
from robustguide.report.card import Entry, caption, document, multiples, short, table

SIGMAS = [0.05, 1.0]
CURVES = {
    "accuracy": [0.9, 0.5],
    "robust_accuracy": [0.5, 0.25],
    "robust_accuracy_2": [0.1, 0.0],
    "nll": [0.2, 1.5],
    "brier": [0.1, 0.6],
    "ece": [0.02, 0.1],
    "adaptive_ece": [0.03, 0.11],
    "classwise_ece": [0.01, 0.02],
    "smooth_ece": [0.02, 0.09],
    "gradient_norm": [0.5, 12.5],
    "cosine": [0.1, 0.9],
}
UNITS = "in x_t units on the [-1,1] scale"
THREATS = (f"L2, radius 0.5 {UNITS}, PGD-7, step 0.1", f"L2, radius 1 {UNITS}, PGD-7, step 0.2")


def entry(name="forward_x_t", facts=None, **changes):
    curves = CURVES | changes
    means = {
        f"integral_{key}" if key.endswith("ece") else key: {"value": sum(curve) / 2}
        for key, curve in curves.items()
        if None not in curve
    }
    means["integral_ece"] |= {"biased": True, "bins": 15, "interval": [0.01, 0.08]}
    means["integral_ece"]["sampling_error"] = {"mean": 0.03, "upper95": 0.04}
    known = {"n": 40, "images": 20, "labelled": False, "attacks_move": "x at its level"}
    reliability = Reliability(torch.zeros(3, 2, 15))
    return Entry(name, SIGMAS, curves, means, known | (facts or {}), reliability, 10, THREATS)


def printed(made, width=80):
    console = Console(file=StringIO(), width=width)
    console.print(table(made))
    return console.file.getvalue()


def test_a_table_of_all_that_is_measured_fits_a_terminal():
    lines = printed(entry()).splitlines()
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert rows[0] == ["0.05", *(f"{curve[0]:.3f}" for curve in CURVES.values())]
    assert rows[1][:-2] == ["1", *(f"{c[1]:.3f}" for c in list(CURVES.values())[:-2])]
    assert rows[1][-2:] == ["12.5", "0.900"]
    (means,) = [line.split() for line in lines if line.strip().startswith("mean ")]
    assert means[1] == "0.700" and means[6] == "0.060" and len(means) == 12
    assert "forward x_t: 40 rows of 20 images" in lines[0]
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)


def test_the_caption_says_how_far_the_error_is_to_be_believed():
    text = caption(entry())
    assert "Integral ECE 0.060, the mean over these levels, 40 rows each, 15 bins" in text
    assert "95% interval 0.010 to 0.080" in text and "show 0.030, and less than 0.040" in text
    assert "Fewer than 2000 rows: the ECE is too large." in text
    assert f"Under attack: {THREATS[1]}." in text and "told the label" not in text
    facts = {"labelled": True, "attacks_move": "what is shown, as at level 0"}
    text = caption(entry(facts=facts))
    assert "The denoiser was told the label." in text and "as at noise level 0" in text


def test_what_was_not_measured_is_not_shown():
    made = entry(cosine=[None, None])
    assert "cosine" not in made.quantities and "cosine" not in printed(made)
    titles = [axes.get_title() for axes in multiples([made]).axes]
    assert len(titles) == 10 and not any("cosine" in title for title in titles)


def test_numbers_in_a_table():
    assert [short(v) for v in (0.12345, 12.345, 1234.5, None, math.nan)] == [
        "0.123", "12.3", "1.23e+03", "—", "—"
    ]  # fmt: skip


def test_the_figure_has_a_panel_a_quantity():
    other = entry("reverse_denoised", ece_if_calibrated_upper95=[0.03, 0.05])
    figure = multiples([entry(), other])
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels)[:4] == [
        "accuracy", "accuracy under attack\nL2, radius 0.5",
        "accuracy under attack\nL2, radius 1", "negative log-likelihood",
    ]  # fmt: skip
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["forward x_t", "reverse denoised"]
    guesses = [0.1, math.log(10), 0.9]
    for title, guess in zip(("accuracy", "negative log-likelihood", "Brier score"), guesses,
                            strict=True):  # fmt: skip
        assert panels[title].lines[-1].get_ydata()[0] == pytest.approx(guess)
    *_, dotted = panels["ECE"].lines
    assert dotted.get_ydata().tolist() == [0.03, 0.05]
    assert "calibrated" in figure.legends[0].get_title().get_text()
    assert "calibrated" not in multiples([entry()]).legends[0].get_title().get_text()


def test_the_document_defines_what_it_holds():
    found = document([entry(), entry("reverse_x_t")], {"agreement": {"value": 0.5, "n": 4}})
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["agreement"]["value"] == 0.5 and list(found["cells"]) == [
        "forward_x_t", "reverse_x_t"
    ]  # fmt: skip
    cell = found["cells"]["forward_x_t"]
    assert cell["sigma"] == SIGMAS and cell["curves"] == CURVES and cell["n"] == 40
    assert cell["threats"] == dict(zip(("robust_accuracy", "robust_accuracy_2"), THREATS,
                                       strict=True))  # fmt: skip
    assert {key.removesuffix("_2") for key in CURVES} == found["definitions"].keys()
