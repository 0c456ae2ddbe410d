import copy
import functools
import math
import pickle

import pytest
import torch
from golden_files import load
from torch.testing import assert_close

from robustguide.metrics import (
    Answers,
    AnswersByLevel,
    CalibrationByNoise,
    Rows,
    RowsByLevel,
    class_gaps,
    classwise_ece,
)

EXACT = {"rtol": 0, "atol": 1e-12}
CURVES = (
    "accuracy",
    "mean_confidence",
    "mean_nll",
    "mean_brier",
    "ece",
    "adaptive_ece",
    "classwise_ece",
    "smooth_ece",
)


def questions(n=300, levels=3, k=5, seed=0):
    """Logits that become weaker by level, labels of which are drawn from the sharpest."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, k, generator=generator)
    y = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    noise = torch.randn(levels, n, k, generator=generator)
    return logits + torch.arange(levels)[:, None, None] * noise, y


def numbers(answers):
    """Everything that answers say, to compare with `==`."""
    curves = [getattr(answers, name).tolist() for name in CURVES]
    rows = [getattr(answers, name).tolist() for name in ("index", "draw", "confidence", "correct")]
    return [
        *curves,
        *rows,
        answers.nll.tolist(),
        answers.brier.tolist(),
        answers.integral_ece,
        answers.integral_interval(20),
        [limit.tolist() for limit in answers.intervals(20)],
        [torch.as_tensor(value).tolist() for value in answers.sampling_error(20)],
    ]


def collected(logits, y, batches, index=None):
    metric = AnswersByLevel(len(logits), logits.shape[-1])
    index = torch.arange(len(y)) if index is None else index
    for rows in batches:
        metric.update(logits[:, rows], y[rows], index[rows])
    return metric.compute()


def test_order_and_batch_size_change_no_number():
    logits, y = questions(101)
    want = numbers(Answers.of(logits, y))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    for size in (1, 7, 101):
        assert numbers(collected(logits, y, order.split(size))) == want


def test_draws_and_merged_halves_change_no_number():
    """Two draws of noise, in either order, or in two metrics that are merged."""
    (first, y), (second, _) = questions(seed=0), questions(seed=1)
    found = []
    for draws in (((0, first), (1, second)), ((1, second), (0, first))):
        one, parts = AnswersByLevel(3, 5), [AnswersByLevel(3, 5), AnswersByLevel(3, 5)]
        for draw, logits in draws:
            for rows, part in zip(torch.arange(300).split(150), parts, strict=True):
                one.update(logits[:, rows], y[rows], rows, draw)
                part.update(logits[:, rows], y[rows], rows, draw)
        parts[1].merge_state(parts[0])
        found += [numbers(one.compute()), numbers(parts[1].compute())]
    assert found[0] == found[1] == found[2] == found[3]
    answers = one.compute()
    assert answers.n == 600 and answers.index[:3].tolist() == [0, 0, 1]
    assert answers.draw[:3].tolist() == [0, 1, 0]


def test_rows_of_one_index_are_draws_of_an_image():
    logits, y = questions(6)
    index = torch.tensor([4, 1, 4, 1, 4, 2])
    answers = Answers.of(logits, y, index)
    assert answers.index.tolist() == [1, 1, 2, 4, 4, 4]
    assert answers.draw.tolist() == [0, 1, 0, 0, 1, 2]
    order = torch.tensor([1, 3, 5, 0, 2, 4])
    want = logits[:, order].double().softmax(-1).amax(-1)
    assert_close(answers.confidence, want, **EXACT)
    assert answers.integral_interval(50) != Answers.of(logits, y).integral_interval(50)


def test_no_rows_have_no_error():
    answers = Answers.of(torch.zeros(2, 0, 3), torch.zeros(0).long())
    assert answers.n == 0 and answers.is_small
    for name in CURVES:
        assert getattr(answers, name).isnan().tolist() == [True, True]
    assert answers.integral_interval() == (0, 1)


@pytest.mark.parametrize("bins", [10, 15])
def test_curve_over_timesteps_and_its_mean_agree_with_the_golden(bins):
    description, tensors = load("metrics")
    logits, labels = tensors["in.ece_curve.logits"], tensors["in.ece_curve.labels"]
    close = {"rtol": 0, "atol": 1e-6}
    each = [Answers.of(one[None], y, num_bins=bins) for one, y in zip(logits, labels, strict=True)]
    ece = torch.cat([answers.ece for answers in each])
    assert_close(ece, tensors[f"out.ece_curve.bins{bins}"], **close)
    for name, key in (("accuracy", "accuracy"), ("mean_confidence", "mean_confidence")):
        curve = torch.cat([getattr(answers, name) for answers in each])
        assert_close(curve, tensors[f"out.ece_curve.{key}"], **close)
    want = description["ece_curve"][f"bins{bins}"]
    assert_close(ece.tolist(), want["curve"], **close)
    # all timesteps at once, each label its own: a shift of classes makes the labels equal
    k = logits.shape[-1]
    turned = (torch.arange(k) + labels[..., None]) % k
    together = Answers.of(logits.gather(-1, turned), torch.zeros_like(labels[0]), num_bins=bins)
    assert_close(together.integral_ece, want["mean_over_timesteps"], **close)


@pytest.mark.parametrize("bins", [10, 15])
def test_table_agrees_with_the_golden(bins):
    description, tensors = load("metrics")
    answers = Answers.of(tensors["in.ece.logits"][None], tensors["in.ece.labels"], num_bins=bins)
    want = description["ece"][f"bins{bins}"]["float64"]
    assert_close(answers.integral_ece, want, rtol=0, atol=1e-6)
    count, accuracy, confidence = tensors[f"out.ece.bins{bins}.count_acc_conf"].T
    full, table = count > 0, answers.reliability
    assert_close(table.bin_count[0], count, **EXACT)
    assert_close(table.bin_accuracy[0][full], accuracy[full], **EXACT)
    assert_close(table.bin_confidence[0][full], confidence[full], rtol=0, atol=1e-6)


@pytest.mark.parametrize("bins", [4, 8])
def test_bins_are_right_closed_as_in_the_golden(bins):
    description, tensors = load("metrics")
    probabilities, y = tensors["in.ece_edges.probs"], tensors["in.ece_edges.labels"]
    confidence, label = probabilities.double().max(-1)
    answers = of_rows(confidence[None], (label == y)[None], num_bins=bins)
    want = description["ece"]["edges"][f"bins{bins}"]["right_closed"]
    assert_close(answers.integral_ece, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", [2, 5, 1000])
def test_sums_equal_those_of_calibration_by_noise(k):
    logits, y = questions(200, 2, k)
    answers, other = Answers.of(logits, y, num_bins=10), CalibrationByNoise(2, 10)
    for level, rows in enumerate(logits):
        other.update(rows, y, level)
    table = other.compute()
    for name in ("count", "ece", "accuracy", "confidence", "bin_accuracy", "bin_count"):
        ours, theirs = getattr(answers.reliability, name), getattr(table, name)
        assert_close(ours, theirs, equal_nan=True, **EXACT)
    assert_close(answers.accuracy, table.accuracy, **EXACT)
    for level, rows in enumerate(logits.double()):
        log_p = rows.log_softmax(-1)
        want = torch.nn.functional.nll_loss(log_p, y)
        assert_close(answers.mean_nll[level], want, **EXACT)
        gap = log_p.exp() - torch.nn.functional.one_hot(y, k)
        assert_close(answers.mean_brier[level], gap.square().sum(1).mean(), **EXACT)
        sums = class_gaps(log_p.exp(), y, 10)
        assert_close(answers.classwise_ece[level], classwise_ece(sums, 200), rtol=0, atol=1e-9)


def test_results_are_not_changed_by_later_rows_and_reset_forgets():
    logits, y = questions(20)
    metric = AnswersByLevel(3, 5)
    metric.update(logits, y, torch.arange(20))
    early = metric.compute()
    before = numbers(early)
    metric.update(logits, y, torch.arange(20, 40))
    assert numbers(early) == before and metric.compute().n == 40
    metric.reset()
    metric.update(logits, y, torch.arange(20))
    assert numbers(metric.compute()) == before


def test_metric_copies_pickles_and_stays_out_of_checkpoints():
    logits, y = questions(20)
    metric = AnswersByLevel(3, 5)
    metric.update(logits, y, torch.arange(20))
    want = numbers(metric.compute())
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert numbers(twin.compute()) == want
    assert metric.half().compute().confidence.dtype == torch.float64
    assert metric.state_dict() == {}


def test_batches_do_not_make_the_device_wait():
    """On the meta device nothing has a value, so whatever asks for one fails."""
    metric, rows = AnswersByLevel(2, 5).to("meta"), RowsByLevel(2, ["norm"]).to("meta")
    for draw in range(2):
        logits, y = torch.empty(2, 7, 5, device="meta"), torch.empty(7, device="meta").long()
        metric.update(logits, y, torch.arange(7, device="meta"), draw)
        rows.update(torch.arange(7, device="meta"), draw, norm=torch.empty(2, 7, device="meta"))
    assert {value.device.type for value in metric.values} == {"meta"}


def test_low_precision_logits_are_read_at_full_precision():
    logits, y = questions(50)
    low = logits.bfloat16()
    assert numbers(Answers.of(low, y)) == numbers(Answers.of(low.float(), y))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused_with_their_level(wrong):
    logits, y = questions(20)
    logits[1, 3], logits[1, 8] = wrong, wrong
    metric = AnswersByLevel(3, 5)
    metric.update(logits, y, torch.arange(100, 120))
    with pytest.raises(ValueError, match=r"at noise levels 1 \(2\) .* 20 rows\), first of .* 103"):
        metric.compute()
    logits[2, 0] = wrong
    with pytest.raises(ValueError, match=r"levels 1 \(2\), 2 \(1\)"):
        Answers.of(logits, y)


def test_a_class_that_is_ruled_out_costs_infinitely_much_and_no_more():
    logits = torch.tensor([[[0.0, 0.0, -math.inf]]])
    answers = Answers.of(logits, torch.tensor([2]))
    assert answers.mean_nll.tolist() == [math.inf]
    assert_close(answers.mean_brier[0].item(), 1.5, **EXACT)
    assert_close(answers.integral_ece, 0.5, **EXACT)


def test_a_row_that_came_twice_is_refused():
    logits, y = questions(10)
    metric = AnswersByLevel(3, 5)
    metric.update(logits, y, torch.arange(10))
    metric.update(logits[:, :2], y[:2], torch.tensor([17, 4]))
    with pytest.raises(ValueError, match=r"Draw 0 of image 4 came twice \(1 such rows\)"):
        metric.compute()


def test_other_shapes_are_refused():
    logits, y = questions(10)
    metric = AnswersByLevel(3, 6)
    with pytest.raises(ValueError, match=r"shape \(3, 10, 5\), expected .* \(3, 10, 6\)"):
        metric.update(logits, y, torch.arange(10))
    rows = RowsByLevel(3, ["norm", "cosine"])
    with pytest.raises(ValueError, match=r"'norm': \(3, 4\).*expected norm, cosine of .*\(3, 4\)"):
        rows.update(torch.arange(4), 0, norm=torch.zeros(3, 4))
    with pytest.raises(ValueError, match="expected norm, cosine"):
        rows.update(torch.arange(4), 0, norm=torch.zeros(3, 4), cosine=torch.zeros(2, 4))


@pytest.mark.parametrize("wrong", [(0, 5, 15), (3, 0, 15), (3, 5, 0)])
def test_no_level_class_or_bin_is_refused(wrong):
    with pytest.raises(ValueError, match="at least one"):
        AnswersByLevel(*wrong)


@pytest.mark.parametrize("wrong", [(0, ["a"]), (1, []), (1, ["a", "a"])])
def test_no_series_is_refused(wrong):
    with pytest.raises(ValueError, match="at least one noise level and one series"):
        RowsByLevel(*wrong)


def test_named_rows_come_sorted():
    metric = RowsByLevel(2, ["norm", "robust"])
    for index, draw in (([5, 2], 1), ([2, 5], 0), ([3], 0)):
        index = torch.tensor(index)
        norm = torch.stack([index + 0.5 * draw, -index.double()])
        metric.update(index, draw, robust=index.expand(2, -1) > 2, norm=norm)
    rows = metric.compute()
    assert rows.index.tolist() == [2, 2, 3, 5, 5] and rows.draw.tolist() == [0, 1, 0, 0, 1]
    assert rows["norm"].tolist() == [[2, 2.5, 3, 5, 5.5], [-2, -2, -3, -5, -5]]
    assert rows["robust"].tolist() == [[0, 0, 1, 1, 1]] * 2
    assert rows["norm"].dtype == torch.float64 and len(rows) == 5


def test_small_is_said_of_fewer_than_2000_rows():
    assert Answers.of(torch.zeros(1, 1999, 2), torch.zeros(1999).long()).is_small
    assert not Answers.of(torch.zeros(1, 2000, 2), torch.zeros(2000).long()).is_small


def of_rows(confidence, correct, index=None, draw=None, num_bins=15):
    """Answers of given confidences, without logits."""
    n = confidence.shape[1]
    nothing = torch.zeros(confidence.shape, dtype=torch.float64)
    series = {"confidence": confidence.double(), "correct": correct.double()}
    index = torch.arange(n) if index is None else index
    draw = torch.zeros(n).long() if draw is None else draw
    rows = Rows(index, draw, series | {"nll": nothing, "brier": nothing})
    gaps = torch.zeros(len(confidence), 2, num_bins, dtype=torch.long)
    return Answers(rows, gaps, num_bins)


def sampled(n, seed, sharpened, levels=4):
    """Images that are hard at all levels together; true log-odds are the claimed / sharpened."""
    generator = torch.Generator().manual_seed(seed)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    ease = torch.linspace(2, -0.5, levels)[:, None] + 0.8 * draw(n) + 0.8 * draw(levels, n)
    confidence = 0.1 + 0.9 * ease.sigmoid()
    true = (confidence.logit() / sharpened).sigmoid()
    luck = 0.8 * draw(n) + 0.6 * draw(levels, n)  # standard normal, shared by the levels in part
    return confidence, true, 0.5 * (1 + torch.erf(luck / math.sqrt(2))) < true


@functools.cache
def true_error(sharpened):
    """Binned integral ECE of ever so many rows, with their true probabilities for luck."""
    confidence, true, _ = sampled(300_000, 10**6, sharpened)
    bins = (15 * confidence).ceil()
    sums = [torch.where(bins == number, confidence - true, 0).sum(1) for number in range(1, 16)]
    return torch.stack(sums).abs().sum().item() / true.numel()


# of 100 trials at 95%, 90 or fewer are covered with a probability of 0.03
@pytest.mark.parametrize(
    ("sharpened", "n", "narrow"), [(2.0, 500, 0.1), (2.0, 2000, 0.045), (1.05, 500, 0.08)]
)
def test_the_interval_covers_the_true_error(sharpened, n, narrow):
    truth, covered, widths, naive = true_error(sharpened), 0, [], 0
    for seed in range(100):
        confidence, _, correct = sampled(n, seed, sharpened)
        answers = of_rows(confidence, correct)
        low, high = answers.integral_interval(200, seed=seed)
        assert 0 <= low <= answers.integral_ece <= high <= 1
        covered += low <= truth <= high
        widths.append(high - low)
        naive += answers.integral_ece - truth
    assert covered > 90
    assert sum(widths) / 100 < narrow
    assert naive > 0  # the measured error is too large on average


def test_the_interval_of_a_calibrated_classifier_reaches_down_to_zero():
    covered = 0
    for seed in range(60):
        confidence, _, correct = sampled(1000, seed, 1.0)
        low, _ = of_rows(confidence, correct).integral_interval(200, seed=seed)
        covered += low == 0
    assert covered > 52  # 95% of 60, less two standard deviations


def test_the_interval_of_a_mean_is_that_of_a_binomial():
    """One bin whose gap is clear: 0.9 claimed, 0.6 true, so the limits are those of a mean."""
    correct = torch.arange(1000)[None] % 5 < 3
    low, high = of_rows(torch.full((1, 1000), 0.9), correct).integral_interval(4000)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 1000)
    assert_close((low, high), (0.3 - half, 0.3 + half), rtol=0, atol=0.003)


def test_images_are_drawn_with_all_their_draws():
    """Four draws of noise that gave the same answers say no more than one does."""
    confidence, _, correct = sampled(400, 0, 2.0)
    once = of_rows(confidence, correct)
    index = torch.arange(400).repeat_interleave(4)
    draw = torch.arange(4).repeat(400)
    four = of_rows(confidence[:, index], correct[:, index], index, draw)
    assert_close(four.integral_interval(100), once.integral_interval(100), rtol=0, atol=1e-9)
    other = of_rows(confidence[:, index], correct[:, index])  # as if these were 1600 images
    width, narrower = (answers.integral_interval(100) for answers in (once, other))
    assert narrower[1] - narrower[0] < 0.7 * (width[1] - width[0])


def test_intervals_by_level_agree_with_the_one_of_a_single_level():
    confidence, _, correct = sampled(400, 0, 2.0)
    answers = of_rows(confidence, correct)
    low, high = answers.intervals(100, level=0.8)
    for level in range(4):
        alone = of_rows(confidence[level : level + 1], correct[level : level + 1])
        want = alone.integral_interval(100, level=0.8)
        assert_close((low[level].item(), high[level].item()), want, **EXACT)
    narrow, wide = answers.integral_interval(100, level=0.5), answers.integral_interval(100)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_of_one_image_nothing_can_be_said():
    answers = of_rows(torch.full((2, 3), 0.9), torch.ones(2, 3) > 0, index=torch.zeros(3).long())
    assert answers.integral_interval() == (0, 1)
    assert answers.intervals()[0].tolist() == [0, 0]


@pytest.mark.parametrize("wrong", [{"resamples": 1}, {"level": 1.0}, {"level": 0.0}])
def test_an_interval_of_nothing_is_refused(wrong):
    answers = of_rows(torch.full((2, 3), 0.9), torch.ones(2, 3) > 0)
    with pytest.raises(ValueError, match="2 resamples or more and a level between"):
        answers.integral_interval(**wrong)


def test_a_calibrated_classifier_lies_below_its_upper_limit_95_times_in_100():
    below, means, found = 0, 0.0, 0.0
    for seed in range(100):
        confidence, _, correct = sampled(500, seed, 1.0)
        answers = of_rows(confidence, correct)
        expected = answers.sampling_error(100, seed)
        below += answers.integral_ece <= expected.integral_upper95
        means, found = means + expected.integral_mean, found + answers.integral_ece
        assert_close(expected.mean.mean().item(), expected.integral_mean, **EXACT)
        assert (expected.upper95 > expected.mean).all()
    assert 90 < below  # 90 or fewer have a probability of 0.03
    assert below < 100
    assert_close(found, means, rtol=0.05, atol=0)


def test_an_overconfident_classifier_lies_above_it():
    confidence, _, correct = sampled(2000, 0, 2.0)
    answers = of_rows(confidence, correct)
    assert answers.integral_ece > 2 * answers.sampling_error(50).integral_upper95


def test_chance_falls_with_the_root_of_n():
    errors = [
        of_rows(*sampled(n, 0, 1.0)[::2]).sampling_error(100).integral_mean for n in (500, 8000)
    ]
    assert_close(errors[0] / errors[1], 4.0, rtol=0.08, atol=0)


def test_one_bin_has_the_sampling_error_of_a_mean():
    """|mean of n Bernoulli(0.8) - 0.8| is sqrt(2 / pi) standard errors on average."""
    answers = of_rows(torch.full((2, 1000), 0.8), torch.ones(2, 1000) > 0)
    expected, error = answers.sampling_error(2000), math.sqrt(0.8 * 0.2 / 1000)
    want = torch.full((2,), math.sqrt(2 / math.pi) * error, dtype=torch.float64)
    assert_close(expected.mean, want, rtol=0.06, atol=0)
    assert_close(expected.upper95, torch.full_like(want, 1.96 * error), rtol=0.06, atol=0)
