"""Scores as files, and what two of them must share before they are compared."""

import json
import re
from dataclasses import replace

import pytest
import torch

from robustguide.metrics.extractor import Identity
from robustguide.metrics.protocol import count
from robustguide.metrics.score import (
    Entry,
    Score,
    difference_of_protocols,
    digest_of_seeds,
    finite,
)

ENTRY = Entry(
    2.5,
    "FID-2k@adm",
    2000,
    True,
    (2.25, 2.75),
    (2.5, 2.25, 2.75),
    (2.5,),
    {"value": 2.0},
    {"k": 3},
)
REFERENCE = {"data": "photographs", "split": "train", "count": 9, "digest": "ab"}
SCORE = Score(
    "adm",
    Identity("inception-2015-12-05", "6726", "tf1-bilinear-299"),
    2000,
    {"fid/adm": ENTRY},
    {"path": "runs/a", "method": "unguided"},
    "5eed",
    REFERENCE,
    ("small",),
)


def test_a_score_is_read_as_it_was_written(tmp_path):
    SCORE.save(tmp_path / "score.json")
    read = Score.load(tmp_path)  # the folder
    assert read.entries == SCORE.entries
    assert read.identity == SCORE.identity
    assert (read.n, read.seeds, read.reference) == (2000, "5eed", REFERENCE)
    assert json.loads((tmp_path / "score.json").read_text())["entries"]["fid/adm"]["value"] == 2.5


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "no such JSON"), ("[1]", "no such JSON"), ('{"format": "x"}', "has format 'x'")],
)
def test_another_file_is_no_score(tmp_path, text, message):
    (tmp_path / "score.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Score.load(tmp_path / "score.json")
    with pytest.raises(FileNotFoundError, match="expected a score"):
        Score.load(tmp_path / "other.json")


OTHER_WEIGHTS = Identity("inception-2015-12-05", "0000", "tf1-bilinear-299")
OTHER_RESIZE = Identity("inception-2015-12-05", "6726", "pil-bicubic-float-299")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": "edm"}, "A has protocol adm, B has edm"),
        ({"n": 50_000}, "A has number of images 2000, B has 50000"),
        ({"identity": OTHER_WEIGHTS}, "A has extractor .*6726.*, B has .*0000"),
        ({"identity": OTHER_RESIZE}, "A has extractor .*tf1.*, B has .*pil"),
        ({"reference": REFERENCE | {"digest": "cd"}}, r"\(ab\), B has photographs \(cd\)"),
        ({"reference": None}, r"B has none"),
    ],
)
def test_what_differs_is_named_on_both_sides(change, words):
    found = difference_of_protocols(SCORE, replace(SCORE, **change), ("A", "B"))
    assert found is not None
    assert re.search(words, found)


def test_equal_protocols_are_comparable_whatever_the_samples():
    other = replace(SCORE, samples={"path": "b"}, seeds="other")
    assert difference_of_protocols(SCORE, other, ("A", "B")) is None


def test_seeds_are_known_again_in_any_order():
    seeds = torch.tensor([4, 2, 9])
    assert digest_of_seeds(seeds) == digest_of_seeds(seeds.flip(0))
    assert digest_of_seeds(seeds) != digest_of_seeds(seeds + 1)


@pytest.mark.parametrize(
    ("n", "shown"), [(50_000, "50k"), (2000, "2k"), (1500, "1.5k"), (999, "999"), (1797, "1.797k")]
)
def test_n_is_shown_exactly(n, shown):
    assert count(n) == shown


def test_no_number_is_not_shown_as_one():
    with pytest.raises(FloatingPointError, match="FID-2k@adm is nan"):
        finite(float("nan"), "FID-2k@adm")
