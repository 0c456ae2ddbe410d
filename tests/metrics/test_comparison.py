"""Differences of scores: paired by seed, unpaired, and refused."""

from dataclasses import replace

import pytest
import torch

from robustguide.metrics.comparison import compare
from robustguide.metrics.extractor import Identity
from robustguide.metrics.jackknife import Jackknife, groups_of
from robustguide.metrics.score import Entry, Score

N, GROUPS = 2000, 20


def score_of(values, seeds="same", lower_is_better=False):
    """A score whose number is a mean, with exact replicates."""
    groups = groups_of(torch.arange(len(values)), GROUPS)
    without = tuple(float(values[groups != group].mean()) for group in range(GROUPS))
    mean = float(values.mean())
    interval = Jackknife(mean, without).interval()
    entry = Entry(mean, "accuracy-2k@judge", len(values), lower_is_better, interval, without)
    identity = Identity("net", "d", "none")
    return Score("judge", identity, len(values), {"accuracy/judge": entry}, {"path": "x"}, seeds)


def pair(repetition, shift, shared=1.0):
    """Values of two methods that have most of their noise in common."""
    generator = torch.Generator().manual_seed(repetition)
    common, own = torch.randn(N, generator=generator), torch.randn(2, N, generator=generator)
    return shared * common + 0.1 * own[0], shared * common + 0.1 * own[1] + shift


def test_paired_seeds_show_what_unpaired_ones_hide():
    a, b = pair(0, 0.02)
    (found,), paired = compare(score_of(a), score_of(b), ("A", "B"))
    assert paired and found.verdict == "b better"
    (hidden,), unpaired = compare(score_of(a), score_of(b, "others"), ("A", "B"))
    assert not unpaired and hidden.verdict == "seed noise"
    assert found.value == hidden.value == pytest.approx(float(b.mean() - a.mean()), abs=1e-6)


def test_width_of_the_paired_interval_is_that_of_the_differences():
    a, b = pair(1, 0.0)
    (found,), _ = compare(score_of(a), score_of(b), ("A", "B"))
    low, high = found.interval
    known = float((b - a).std()) / N**0.5  # of a mean of N independent differences
    assert (high - low) / (2 * 2.093) == pytest.approx(known, rel=0.4)  # t of 19 degrees


def test_equal_methods_are_within_the_noise_as_often_as_promised():
    verdicts = [
        compare(*(score_of(values) for values in pair(seed, 0.0)), ("A", "B"))[0][0].verdict
        for seed in range(100)
    ]
    assert 88 <= verdicts.count("seed noise") <= 100


def test_the_better_one_is_the_lower_where_lower_is_better():
    a, b = pair(0, 0.05)
    scores = [score_of(values, lower_is_better=True) for values in (a, b)]
    assert compare(*scores, ("A", "B"))[0][0].verdict == "a better"


def test_without_replicates_the_noise_is_not_known():
    a = score_of(pair(0, 0.0)[0])
    bare = {key: replace(each, replicates=()) for key, each in a.entries.items()}
    (found,), _ = compare(a, replace(a, entries=bare), ("A", "B"))
    assert (found.verdict, found.interval) == ("noise not known", None)


def test_what_cannot_be_compared_is_refused():
    a = score_of(pair(0, 0.0)[0])
    with pytest.raises(ValueError, match=r"number of images 2000, B has 1000.*--n"):
        compare(a, replace(a, n=1000), ("A", "B"))
    with pytest.raises(ValueError, match="no number in common"):
        compare(a, replace(a, entries={"fid/judge": a.entries["accuracy/judge"]}), ("A", "B"))
