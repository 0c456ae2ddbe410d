"""What of the logits is increased, in closed form on a mixture."""

import math

import pytest
import torch
from oracles import ExactClassifier, noisy, plane, tilted
from torch.testing import assert_close

from robustguide.guidance import RawLogit, Tempered, score
from robustguide.interfaces import Classifier

SIGMAS = [0.05, 0.3, 1.0, 5.0, 50.0]
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
# At (1, 0.5) for class 1 of `plane`, at noise levels 0 and 1
PRINTED = {
    (1.0, 1.0): [(2.64609653, -0.00349468), (1.17381373, -0.03055980)],
    (1.0, 0.5): [(2.10723663, -0.29506730), (1.01140967, -0.20932661)],
    (1.0, 0.0): [(2.0, -0.5), (1.0, -0.25)],
}


@pytest.mark.parametrize(("temperatures", "values"), PRINTED.items(), ids=str)
def test_the_printed_gradients(temperatures, values):
    """Means (0,0), (3,0), (0,4), priors .5, .3, .2, unit covariances."""
    x = torch.tensor([1.0, 0.5], dtype=torch.float64).expand(2, 1, 1, 2)
    sigma = torch.tensor([0.0, 1.0], dtype=torch.float64)
    got = score(ExactClassifier(plane()), x, sigma, torch.tensor([1, 1]), Tempered(*temperatures))
    want = torch.tensor(values, dtype=torch.float64)
    assert_close(got.flatten(1), want, rtol=0, atol=5e-9)


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (1.0, 0.5), (2.0, 0.5), (0.7, 3.0)])
def test_the_gradient_weighs_that_of_each_class(temperatures):
    """joint grad f_y - marginal sum_i q_i grad f_i, with q = softmax(marginal f)."""
    mixture, (joint, marginal) = tilted(), temperatures
    x, sigma, y = noisy(mixture, SIGMAS)
    got = score(ExactClassifier(mixture), x, sigma, y, Tempered(joint, marginal))
    q = (marginal * mixture.log_joint(x, sigma)).softmax(-1)
    scores = mixture.scores(x, sigma)
    mean = torch.einsum("bk,bk...->b...", q, scores)
    want = joint * scores[torch.arange(len(y)), y] - marginal * mean
    assert_close(got, want, **CLOSE)


def test_without_a_marginal_it_is_the_gradient_of_the_joint_density():
    mixture = tilted()
    x, sigma, y = noisy(mixture, SIGMAS)
    joint = mixture.scores(x, sigma)[torch.arange(len(y)), y]
    for objective in (Tempered(1.0, 0.0), RawLogit()):
        got = score(ExactClassifier(mixture), x, sigma, y, objective)
        assert_close(got, joint, **CLOSE)
    got = score(ExactClassifier(mixture), x, sigma, y, Tempered(2.5, 0.0))
    assert_close(got, 2.5 * joint, **CLOSE)


class Shifted(Classifier):
    """The same probabilities from other logits: c(x) = sin of a sum more in each."""

    def __init__(self, mixture):
        super().__init__()
        self.exact, self.num_classes = ExactClassifier(mixture), len(mixture)

    def forward(self, x, sigma):
        return self.exact(x, sigma) + x.flatten(1).sum(1, keepdim=True).sin()


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (1.0, 0.5), (1.0, 0.0), (0.5, 2.0)])
def test_a_shift_of_all_logits_counts_by_the_difference_of_the_temperatures(temperatures):
    mixture, (joint, marginal) = tilted(), temperatures
    x, sigma, y = noisy(mixture, SIGMAS)
    one, other = (
        score(classifier, x, sigma, y, Tempered(joint, marginal))
        for classifier in (ExactClassifier(mixture), Shifted(mixture))
    )
    slope = x.flatten(1).sum(1).cos().reshape(-1, 1, 1, 1).expand(x.shape)
    assert_close(other - one, (joint - marginal) * slope, **CLOSE)


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (1.0, 0.5), (2.0, 0.25), (1.0, 0.0)])
def test_values_are_those_of_the_formula_written_out(temperatures):
    joint, marginal = temperatures
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double()
    y = torch.tensor([0, 1, 2, 3, 4, 0])
    written = joint * logits[torch.arange(6), y] - (marginal * logits).exp().sum(-1).log()
    assert_close(Tempered(joint, marginal)(logits, y), written, **CLOSE)


@pytest.mark.parametrize("marginal", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_and_gradients_of_huge_logits_are_finite(dtype, marginal):
    """Where an exponential would overflow; half precision is left before anything is summed."""
    rows = [[10240.0, -1e4, 0.0], [-1e4, 10240.0, 8192.0]]  # the large ones are exact in all types
    logits = torch.tensor(rows, dtype=dtype, requires_grad=True)
    value = Tempered(1.0, marginal)(logits, torch.tensor([0, 2]))
    assert value.dtype == torch.float32
    want = [10240 * (1 - marginal), 8192 - marginal * 10240]
    if marginal == 0:
        want = [value - math.log(3) for value in want]
    assert_close(value.detach(), torch.tensor(want))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    second = [0.0, -marginal, 1.0]
    assert_close(gradient.float(), torch.tensor([[1.0 - marginal, 0.0, 0.0], second]))


@pytest.mark.parametrize(
    "bad", [{"joint": 0.0}, {"joint": -1.0}, {"marginal": -0.1}, {"joint": math.inf}]
)
def test_other_temperatures_are_refused(bad):
    with pytest.raises(ValueError, match="joint must be positive, marginal at least 0"):
        Tempered(**bad)
