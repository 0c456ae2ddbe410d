import math

import pytest
import torch
from golden_files import load
from torch.testing import assert_close
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

from robustguide.metrics.inception_score import InceptionScore, InceptionSums
from robustguide.metrics.protocol import Sampled
from robustguide.metrics.tables import Held


def logits(n, k=12, seed=0):
    return 3 * torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def score(values, block, groups=None):
    groups = torch.zeros(len(values), dtype=torch.long) if groups is None else groups
    sampled = Sampled({"logits": Held(values)}, groups)
    return InceptionScore(block=block).measure(sampled, None)["inception_score"]


def literal(values, block):
    """By the definition, from probabilities in float64."""
    scores = []
    for part in values.double().softmax(-1).split(block):
        divergence = (part * (part.log() - part.mean(0).log())).sum(1)
        scores.append(math.exp(divergence.mean().item()))
    return sum(scores) / len(scores)


@pytest.mark.parametrize(
    ("block", "name"),
    [(23, "splits10_in_order"), (230, "splits1_in_order"), (50, "guided_diffusion_split_size50")],
)
def test_goldens_in_the_order_of_the_file(block, name):
    description, tensors = load("metrics")
    want = description["inception_score"][name]["mean"]
    assert score(tensors["in.is.logits"], block).value == pytest.approx(want, rel=1e-9)


def test_torch_fidelity_agrees_without_its_shuffle():
    _, tensors = load("metrics")
    values = tensors["in.is.logits"]
    theirs = isc_features_to_metric(values, splits=10, shuffle=False)[KEY_METRIC_ISC_MEAN]
    assert score(values, 23).value == pytest.approx(theirs, abs=1e-6)
    shuffled = values[torch.randperm(230, generator=torch.Generator().manual_seed(0))]
    assert abs(score(shuffled, 23).value - theirs) > 1e-3


def test_undecided_answers_score_one_and_balanced_sure_ones_the_number_of_classes():
    assert score(torch.zeros(40, 7), 20).value == pytest.approx(1, abs=1e-12)
    sure = 1e4 * torch.eye(7).repeat(5, 1)  # every other probability is 0 in float64
    assert score(sure, 35).value == pytest.approx(7, rel=1e-12)
    assert score(-sure, 7).value == pytest.approx(7 / 6, rel=1e-9)


def test_the_last_block_is_shorter_and_weighs_as_much():
    values = logits(57)
    assert score(values, 50).value == pytest.approx(literal(values, 50), rel=1e-12)
    parts = [score(part, 50).value for part in values.split(50)]
    assert score(values, 50).value == pytest.approx(sum(parts) / 2, rel=1e-12)


def test_a_constant_added_to_all_logits_of_an_image_changes_nothing():
    values, shift = logits(60).double(), 100 * torch.arange(60.0)[:, None].double()
    sums = [InceptionSums(60, 12, 20) for _ in range(2)]
    for each, moved in zip(sums, (0, shift), strict=True):
        each.add(values + moved, torch.arange(60))
    assert sums[0].score() == pytest.approx(sums[1].score(), rel=1e-10)


def test_shards_in_any_order_equal_one_pass():
    values, index = logits(101), torch.arange(101)
    group = index % 3
    whole = InceptionSums(101, 12, 20, 3)
    whole.add(values, index, group)
    shards = []
    for places in index[torch.randperm(101, generator=torch.Generator().manual_seed(1))].split(17):
        shards.append(InceptionSums(101, 12, 20, 3))
        for batch in places.split(5):
            shards[-1].add(values[batch], index[batch], group[batch])
    first, *others = shards
    for other in reversed(others):
        first.merge(other)
    for name in ("count", "entropy", "probability"):
        assert_close(getattr(first, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
    assert first.score() == pytest.approx(whole.score(), rel=1e-12)


def test_replicates_leave_images_out_of_their_blocks():
    values, groups = logits(90), torch.arange(90) // 2 % 5
    number = score(values, 30, groups)
    assert number.value == pytest.approx(literal(values, 30), rel=1e-12)
    for g in range(5):
        kept = [
            part[side != g] for part, side in zip(values.split(30), groups.split(30), strict=True)
        ]
        want = sum(literal(part, len(part)) for part in kept) / 3
        assert number.replicates[g] == pytest.approx(want, rel=1e-12)
    assert dict(number.facts) == {"block": 30, "blocks": 3, "layer": "logits"}


def test_a_block_that_is_left_without_images_does_not_count():
    values, groups = logits(40), torch.arange(40) // 20
    number = score(values, 20, groups)
    assert number.replicates == pytest.approx(
        [literal(values[20:], 20), literal(values[:20], 20)], rel=1e-12
    )
    assert score(values, 20).replicates == ()


def test_bad_input_is_refused_where_it_enters():
    holed = logits(30)
    holed[7] = -torch.inf
    with pytest.raises(ValueError, match=r"1 of the rows 0 to 29 of the samples .* not finite"):
        score(holed, 10)
    with pytest.raises(ValueError, match="30 images in blocks of 0"):
        score(logits(30), 0)
    one, other = InceptionSums(30, 12, 10), InceptionSums(30, 12, 15)
    with pytest.raises(ValueError, match=r"'block': 10.*'block': 15.*do not add"):
        one.merge(other)
    with pytest.raises(ValueError, match="No image is left"):
        one.score()
