import json

import pytest
import torch
from scipy.stats import binomtest
from torch.testing import assert_close

from robustguide.metrics.agreement import (
    ClassAccuracy,
    MeanCosine,
    per_class_accuracy,
    rank_of_label,
)
from robustguide.metrics.protocol import Sampled
from robustguide.metrics.tables import Held


def sampled(features, y=None, groups=None, layer="logits"):
    groups = torch.arange(len(features)) % 2 if groups is None else groups
    return Sampled({layer: Held(features)}, groups, y)


def logits(n, k, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def test_top_one_and_top_five_by_hand():
    """Label i + r mod 10 comes r-th in row i, for r = 0 to 9, three times each."""
    ranks = torch.arange(10).repeat(3)
    order = (torch.arange(30)[:, None] + torch.arange(10)) % 10
    values = torch.empty(30, 10).scatter_(1, order, -torch.arange(10.0).expand(30, 10))
    y = order.gather(1, ranks[:, None])[:, 0]
    assert torch.equal(rank_of_label(values, y), ranks)
    found = ClassAccuracy().measure(sampled(values, y), None)
    assert (found["class_accuracy"].value, found["top5_accuracy"].value) == (0.1, 0.5)


def test_equal_logits_are_answered_as_argmax_answers():
    values = torch.randint(3, (200, 8), generator=torch.Generator().manual_seed(0)).float()
    y = torch.randint(8, (200,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(rank_of_label(values, y) == 0, values.argmax(1) == y)
    ignorant = ClassAccuracy().measure(sampled(torch.zeros(80, 8), torch.arange(80) % 8), None)
    assert ignorant["class_accuracy"].value == 1 / 8
    assert ignorant["top5_accuracy"].value == 5 / 8


def test_replicates_and_limits():
    values, y = logits(300, 6), torch.arange(300) % 6
    values[torch.arange(300), y] += 1.5
    groups = torch.arange(300) % 7
    number = ClassAccuracy().measure(sampled(values, y, groups), None)["class_accuracy"]
    correct = (values.argmax(1) == y).double()
    assert number.value == pytest.approx(correct.mean().item(), abs=1e-15)
    want = [correct[groups != g].mean().item() for g in range(7)]
    assert number.replicates == pytest.approx(want, abs=1e-15)
    limits = binomtest(int(correct.sum()), 300).proportion_ci(method="wilson")
    assert number.facts["wilson95"] == pytest.approx([limits.low, limits.high], abs=1e-12)


def test_classes_without_images_are_told_and_only_the_accuracy_by_class_needs_them():
    values = 5 * torch.eye(7)[[0, 0, 2, 3, 4]]
    y = torch.tensor([0, 0, 2, 3, 6])
    number = ClassAccuracy().measure(sampled(values, y), None)["class_accuracy"]
    assert number.value == 0.8
    assert number.facts["classes_without_images"] == [1, 4, 5]
    assert number.facts["by_class"] == [1, None, 1, 1, None, None, 0]
    json.dumps(dict(number.facts))
    with pytest.raises(ValueError, match=r"Of 7 classes these have no image: \[1, 4, 5\]"):
        per_class_accuracy(values.argmax(1) == y, y, 7)
    right = torch.tensor([True, False, True, True])
    found = per_class_accuracy(right, torch.tensor([0, 0, 1, 1]), 2)
    assert_close(found, torch.tensor([0.5, 1.0]).double())


def test_five_classes_have_no_top_five():
    found = ClassAccuracy().measure(sampled(logits(20, 5), torch.arange(20) % 5), None)
    assert list(found) == ["class_accuracy"]


def test_labels_that_are_missing_or_unknown_are_refused():
    values = logits(20, 10)
    with pytest.raises(ValueError, match=r"images have none; give a folder with samples.jsonl"):
        ClassAccuracy().measure(sampled(values), None)
    for wrong in (10, -1):
        y = torch.arange(20) % 10
        y[3] = wrong
        with pytest.raises(ValueError, match=rf"labels \[{wrong}\], the judge knows .* 0 to 9"):
            ClassAccuracy().measure(sampled(values, y), None)
    values[2, 2] = torch.nan
    with pytest.raises(ValueError, match=r"1 of the rows 0 to 19 of the samples .* not finite"):
        ClassAccuracy().measure(sampled(values, torch.arange(20) % 10), None)


def test_mean_cosine_is_the_raw_mean():
    image, text = logits(50, 16), logits(50, 16, seed=1)
    cosine = torch.cosine_similarity(image, text)
    groups = torch.arange(50) % 3
    side = sampled(cosine[:, None], groups=groups, layer="cosine")
    number = MeanCosine().measure(side, None)["clip_score"]
    assert number.value == pytest.approx(cosine.double().mean().item(), abs=1e-15)
    want = [cosine[groups != g].double().mean().item() for g in range(3)]
    assert number.replicates == pytest.approx(want, abs=1e-15)
    assert min(cosine) < 0 and number.facts["scaled"] is False


def test_scaled_or_wide_cosines_are_refused():
    for features, told in (
        (torch.full((4, 1), 31.0), "cosines from 31 to 31, expected -1 to 1"),
        (torch.zeros(4, 2), "'cosine' has 2 numbers for each image"),
        (torch.full((4, 1), torch.nan), "not finite"),
    ):
        with pytest.raises(ValueError, match=told):
            MeanCosine().measure(sampled(features, layer="cosine"), None)
