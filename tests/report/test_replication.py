"""Tables of replicated cells: numbers of the blocks, and what they say of a paper's claims."""

import json
import math

import pytest
from scipy import stats

from robustguide.report import replication
from robustguide.report.replication import READER, Claim, Planned, verdict

CLAIM = Claim("frechet", "robust", "<", "plain")
TABLE = Planned("t", "Robust or plain", "A paper", "It was better.", ("plain", "robust"), (CLAIM,))


def run(folder, value, accuracy=0.9):
    """A run folder with the numbers that tables read."""
    folder.mkdir(parents=True)
    metrics = {
        "frechet/some_features": {"value": value},
        "class_accuracy": {"value": accuracy},
        "class_accuracy/robust": {"value": accuracy - 0.1},
    }
    curves = {"trajectory": {"sigma": [10.0, 0.1], "label_agreement": [0.2, accuracy + 0.05]}}
    cost = {"denoiser_evaluations": 50.0, "classifier_backward": 20.0}
    results = {"metrics": metrics, "curves": curves, "cost": cost}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_a_claim_is_a_metric_and_two_cells():
    assert Claim.read("class_accuracy/robust: a_0.5 > b") == Claim(
        "class_accuracy/robust", "a_0.5", ">", "b"
    )
    assert str(Claim.read("frechet: a < b")) == "frechet: a < b"
    for text in ("frechet a < b", "frechet: a = b", "frechet: a < b c"):
        with pytest.raises(ValueError, match="expected metric: cell < cell"):
            Claim.read(text)


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        ([1.0, 1.1, 1.2], [2.0, 2.1, 2.3], "agrees"),
        ([2.0, 2.1, 2.3], [1.0, 1.1, 1.2], "disagrees"),
        ([1.0, 3.0, 1.2], [2.0, 2.1, 2.3], "open"),
        ([1.0], [2.0, 2.1, 2.3], "not measured"),
        ([], [], "not measured"),
        ([1.0, None, 1.2], [2.0, 2.1, 2.3], "agrees"),
    ],
)
def test_a_verdict_is_that_of_the_differences_of_the_blocks(first, second, word):
    found = verdict(CLAIM, first, second)
    assert found.word == word
    turned = verdict(Claim("frechet", "robust", ">", "plain"), first, second)
    other = {"agrees": "disagrees", "disagrees": "agrees"}
    assert turned.word == other.get(word, word)
    off = [a - b for a, b in zip(first, second, strict=False) if a is not None]
    if len(off) > 1:
        low, high = stats.t.interval(0.95, len(off) - 1, sum(off) / len(off), stats.sem(off))
        assert found.mean == pytest.approx((low + high) / 2)
        assert found.half_width == pytest.approx((high - low) / 2)


def test_differences_count_and_not_the_spread_of_the_blocks():
    """Blocks that differ much, and the cells in each alike: paired, the interval is small."""
    first, second = [1.0, 5.0, 9.0], [1.5, 5.51, 9.49]
    assert verdict(CLAIM, first, second).word == "agrees"


def test_a_table_tells_what_ran_and_what_did_not(tmp_path):
    folders = {
        "plain": [run(tmp_path / f"plain/{k}", 2.0 + k / 10) for k in range(3)],
        "robust": [run(tmp_path / "robust/0", 1.0)],
    }
    found = replication.numbers(folders)
    assert found["plain"]["metrics"]["frechet"] == [2.0, 2.1, 2.2]
    assert found["plain"]["metrics"][READER] == pytest.approx([0.95] * 3)
    assert found["plain"]["metrics"]["recall"] == [None] * 3
    rows = replication.table(TABLE, found, 3).rows
    half_width = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert rows[0][:2] == ["plain", f"2.100 ± {half_width:.3f}"] and rows[0][-2:] == ["50", "20"]
    assert rows[1][:2] == ["robust (1 of 3 blocks)", "1.000"]
    assert replication.table(TABLE, {}, 3).rows[0][:2] == ["plain (not run)", "—"]


def test_a_page_keeps_what_stands_around_the_tables(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("head\n<!-- tables -->\nold\n<!-- end of tables -->\ntail\n")
    folders = {
        name: [run(tmp_path / f"{name}/{k}", value + k / 100) for k in range(3)]
        for name, value in (("plain", 2.0), ("robust", 1.0))
    }
    judged = replication.write(page, tmp_path, {"t": TABLE}, folders, 3)
    assert [each.word for each in judged["t"]] == ["agrees"]
    text = page.read_text()
    assert text.startswith("head\n<!-- tables -->\n") and text.endswith("-->\ntail\n")
    assert "old" not in text and "A paper. It was better." in text
    assert "* `frechet: robust < plain`: **agrees** (difference -1 ± " in text
    assert "robustguide replicate t" in text and "![" not in text  # no images were kept
    replication.write(page, tmp_path, {"t": TABLE}, folders, 3)
    assert page.read_text() == text
    (tmp_path / "bare.md").write_text("nothing")
    with pytest.raises(ValueError, match="the tables go between them"):
        replication.write(tmp_path / "bare.md", tmp_path, {"t": TABLE}, folders, 3)
