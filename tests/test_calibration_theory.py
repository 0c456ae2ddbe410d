"""docs/theory_calibration.py: every number of its table is one that mathematics fixes.

The posteriors are those of the mixtures in oracles.py, and gradients those that guidance takes.
"""

import importlib.util
import math
from pathlib import Path

import oracles
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from robustguide.guidance import RawLogit, score

ROOT = Path(__file__).parents[1]
F64 = torch.float64


def script():
    described = importlib.util.spec_from_file_location(
        "theory_calibration", ROOT / "docs" / "theory_calibration.py"
    )
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


THEORY = script()


@pytest.fixture(scope="module")
def line():
    return THEORY.line(0.002)


@pytest.fixture(scope="module")
def plane():
    return THEORY.plane(0.1)


def posterior(problem, y=1):
    """p(y | x) at the points."""
    return problem.exact(problem.points).softmax(-1)[:, y]


def mean(problem, values):
    return float(problem.weights @ values)


def difference(problem, logits):
    """p_n - p of class 1, and its first two derivatives, on the line."""
    step = float(problem.points[1, 0] - problem.points[0, 0])
    off = logits(problem.points).softmax(-1)[:, 1] - posterior(problem)
    (first,) = torch.gradient(off, spacing=step)
    (second,) = torch.gradient(first, spacing=step)
    return off, first, second


def norm(values, step=0.002):
    """L2 norm on the line, of Lebesgue's measure."""
    return float(values.square().sum().mul(step).sqrt())


@pytest.mark.parametrize(
    "name, mixture",
    [
        ("plane", oracles.plane()),
        ("line", oracles.Mixture(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1))),
    ],
)
def test_the_posterior_and_its_gradient_are_exact(name, mixture):
    problem = getattr(THEORY, name)(0.5)
    x = problem.points.reshape(-1, *mixture.shape)
    sigma = torch.zeros(len(x), dtype=F64)
    exact = mixture.log_joint(x, sigma)
    torch.testing.assert_close(problem.exact(problem.points).softmax(-1), exact.softmax(-1))
    torch.testing.assert_close(problem.weights, exact.logsumexp(-1).softmax(0))
    one, null = torch.ones(len(x), dtype=torch.long), torch.full((len(x),), len(mixture))
    expected = mixture.score(x, sigma, one) - mixture.score(x, sigma, null)
    found = THEORY.gradient(problem.exact, problem.points, 1)
    torch.testing.assert_close(found, expected.flatten(1))
    classifier = oracles.ExactClassifier(mixture)
    asked = THEORY.errors(problem, lambda x: classifier(x.reshape(-1, *mixture.shape), sigma))
    assert max(asked) < 1e-12


def test_smooth_errors_fall_together(line):
    """At a fixed frequency all three are of first order in the amplitude."""
    small, large = (
        THEORY.errors(line, THEORY.ripple(line.exact, amplitude, 4)) for amplitude in (1e-4, 2e-4)
    )
    assert [b / a for a, b in zip(small, large, strict=True)] == pytest.approx([2] * 3, rel=2e-3)
    x, p = line.points[:, 0], posterior(line)
    wave, slope = (4 * x).sin(), 4 * (4 * x).cos()
    first = p * (1 - p) * wave
    assert small.probability == pytest.approx(1e-4 * mean(line, first**2) ** 0.5, rel=1e-3)
    # of (1 - p) (L + eps w)' with L = 2x
    first = (1 - p) * slope - 2 * p * (1 - p) * wave
    assert small.gradient == pytest.approx(1e-4 * mean(line, first**2) ** 0.5, rel=1e-3)


def test_ece_is_at_most_the_error_of_p(line, plane):
    """A bin's |E[p_n - p]| is at most E|p_n - p|, so the ECE at most the L2 error; two classes."""
    logits = [THEORY.ripple(line.exact, a, w) for a in (0.1, 1.0) for w in (1, 5, 25)]
    logits += [THEORY.sharpened(line.exact, k) for k in (0.1, 3.0)]
    logits += [THEORY.mixed(line.exact, 0.3), THEORY.kinked(line.exact, 8)]
    found = [THEORY.errors(line, one) for one in logits]
    assert all(0 < one.ece <= one.probability for one in found)


@pytest.mark.parametrize("amplitude", [0.3, 1.0])
def test_an_error_that_grows_rougher_stays_in_the_gradient(line, amplitude):
    """a sin(wx)/w: the error of p falls as 1/w, the gradient's tends to a E[(1-p)^2/2]^(1/2).

    Its second derivative grows as w: no bound in H^2, which is where the proposition fails.
    """
    p = posterior(line)
    limit = amplitude * (mean(line, (1 - p) ** 2) / 2) ** 0.5
    faint = amplitude * (mean(line, (p * (1 - p)) ** 2) / 2) ** 0.5
    seen = {w: THEORY.ripple(line.exact, amplitude / w, w) for w in (50, 100)}
    found = {w: THEORY.errors(line, logits) for w, logits in seen.items()}
    assert found[100].gradient == pytest.approx(limit, rel=1e-3)
    assert 100 * found[100].probability == pytest.approx(faint, rel=1e-3)
    assert found[100].ece < 1e-3 * amplitude
    rough = [norm(difference(line, logits)[2]) for logits in seen.values()]
    assert rough[1] / rough[0] == pytest.approx(2, rel=0.02)


def test_the_limit_in_the_plane(plane):
    """Three classes: a logit's ripple reaches class 1 as 1 - p and the others as -p."""
    p = posterior(plane)
    for y, share in ((1, 1 - p), (0, p)):
        limit = (mean(plane, share**2) / 2) ** 0.5
        found = THEORY.errors(plane, THEORY.ripple(plane.exact, 1 / 25, 25), y)
        assert found.gradient == pytest.approx(limit, rel=5e-3)
        assert found.ece < 2e-3


def test_at_the_bound_the_error_of_the_gradient_is_the_root(line):
    """sin(wx)/w^2 has a bounded second derivative, and reaches the interpolation's rate of 1/2."""
    small, large = (THEORY.errors(line, THEORY.ripple(line.exact, 1 / w**2, w)) for w in (80, 40))
    slope = math.log(large.gradient / small.gradient)
    slope /= math.log(large.probability / small.probability)
    assert slope == pytest.approx(0.5, abs=0.005)


def test_interpolation(line):
    """On the line |f'|^2 = -<f, f''> <= |f| |f''|; a fast ripple leaves no room between them."""
    faults = [THEORY.sharpened(line.exact, k) for k in (0.3, 2.0)]
    faults += [THEORY.ripple(line.exact, 0.2, w) for w in (2, 10, 50)]
    shares = []
    for logits in faults:
        off, first, second = difference(line, logits)
        shares.append(norm(first) ** 2 / (norm(off) * norm(second)))
    assert all(0.1 < share <= 1 for share in shares)
    assert shares[-1] > 0.99


@pytest.mark.parametrize("frequency", [3, 30])
def test_the_bound_on_an_interval(frequency):
    """grad log p_n - grad log p = f'/p_n - p' f/(p p_n), of norm <= |f'|/c + max|p'| |f|/c^2."""
    problem = THEORY.interval(3.0)
    logits = THEORY.ripple(problem.exact, 0.5, frequency)
    p, estimate = posterior(problem), logits(problem.points).softmax(-1)[:, 1]
    off, first, _ = difference(problem, logits)
    least = float(torch.minimum(p, estimate).min())
    bound = mean(problem, first**2) ** 0.5 / least
    bound += float((p * (1 - p)).max()) * mean(problem, off**2) ** 0.5 / least**2
    error = THEORY.errors(problem, logits).gradient
    assert 0.02 * bound < error < bound


@pytest.mark.parametrize("beta", [math.inf, 64.0, 16.0, 8.0])
def test_softplus_takes_the_ripple_out(line, beta):
    """Softplus' slope is a logistic distribution function: it smooths the square wave of slopes.

    Of the harmonic n of frequency w there remains z/sinh(z), z = n pi w/beta, so that the mean
    square of the slope is 8/pi^2 sum over odd n of (that / n)^2.
    """
    w = 16
    z = math.pi * w / beta
    square = sum(
        ((n * z / math.sinh(n * z) if 0 < n * z < 500 else float(z == 0)) / n) ** 2
        for n in range(1, 20_001, 2)
    )
    found = THEORY.errors(line, THEORY.kinked(line.exact, w, beta))
    expected = (8 / math.pi**2 * square * mean(line, (1 - posterior(line)) ** 2)) ** 0.5
    assert found.gradient == pytest.approx(expected, rel=0.02)


def test_the_prior_is_calibrated_and_guides_nowhere(line, plane):
    for problem, shares in ((line, (0.5, 0.5)), (plane, oracles.plane().priors)):
        logits = THEORY.prior(tuple(map(float, shares)))
        found = THEORY.errors(problem, logits)
        assert found.ece < 1e-12
        assert not THEORY.gradient(logits, problem.points, 1).any()
        slope = THEORY.gradient(problem.exact, problem.points, 1)
        assert found.gradient == pytest.approx(THEORY.rms(slope, problem.weights))


def test_half_of_the_coordinates_are_calibrated_too(plane):
    """The posterior given a part of x is calibrated, and blind to the rest."""
    logits = THEORY.half_blind()
    found, slope = THEORY.errors(plane, logits), THEORY.gradient(logits, plane.points, 1)
    assert found.ece < 1e-12 and found.probability > 0.05
    assert not slope[:, 1].any() and slope[:, 0].abs().max() > 1
    missed = THEORY.gradient(plane.exact, plane.points, 1)[:, 1:]
    assert found.gradient >= THEORY.rms(missed, plane.weights) > 1


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 3.0])
def test_a_factor_on_the_logits(line, factor):
    """Over-confident everywhere or nowhere, so the ECE is a difference of means in any bins."""
    gap = 2 * line.points[:, 0].abs()
    logits = THEORY.sharpened(line.exact, factor)
    expected = abs(mean(line, (factor * gap).sigmoid() - gap.sigmoid()))
    p, truth = logits(line.points).softmax(-1), line.exact(line.points).softmax(-1)
    for bins in (1, 15, 100):
        assert THEORY.ece(p, truth, line.weights, bins) == pytest.approx(expected)
    # where both classes are equally likely, and of the joint term everywhere, it is the factor
    middle = torch.zeros(1, 1, dtype=F64)
    ratio = THEORY.gradient(logits, middle, 1) / THEORY.gradient(line.exact, middle, 1)
    assert ratio.item() == pytest.approx(factor)
    images, one = line.points[:, :, None, None], torch.ones(len(line.points), dtype=torch.long)

    def joint_of(known):
        return score(lambda x, _: known(x.flatten(1)), images, one * 0.0, one, RawLogit())

    joint, true = joint_of(logits), joint_of(line.exact)
    torch.testing.assert_close(joint - true, (factor - 1) * true)


def test_errors_of_a_factor_grow_with_its_distance_from_1(line):
    """Both start in proportion to it: E[g p (1-p)] with the gap g, and a norm of d/dk."""
    x, p = line.points[:, 0], posterior(line)
    found = THEORY.errors(line, THEORY.sharpened(line.exact, 1.001))
    rate = mean(line, 2 * x.abs() * p * (1 - p))
    assert found.ece == pytest.approx(1e-3 * rate, rel=2e-3)
    rate = mean(line, (2 * (1 - p) - 4 * x * p * (1 - p)) ** 2) ** 0.5
    assert found.gradient == pytest.approx(1e-3 * rate, rel=2e-3)
    for factors in ((1, 1.1, 1.5, 2, 4), (1, 0.9, 0.6, 0.3, 0.1)):
        errors = [THEORY.errors(line, THEORY.sharpened(line.exact, k)) for k in factors]
        for curve in zip(*errors, strict=True):
            assert list(curve) == sorted(curve)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_a_fitted_temperature_repairs_both(plane, factor):
    """The population's likelihood has its maximum at T = k."""
    logits, truth = factor * plane.exact(plane.points), plane.exact(plane.points).softmax(-1)
    log_t = torch.zeros((), dtype=F64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_t], max_iter=50, tolerance_grad=1e-13, tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss():
        optimizer.zero_grad()
        nll = -(plane.weights @ (truth * (logits / log_t.exp()).log_softmax(-1)).sum(-1))
        nll.backward()
        return nll

    optimizer.step(loss)
    t = float(log_t.detach().exp())
    assert t == pytest.approx(factor, rel=1e-6)
    repaired = THEORY.errors(plane, THEORY.sharpened(plane.exact, factor / t))
    assert (
        max(repaired)
        < 1e-5
        < 0.01
        < min(THEORY.errors(plane, THEORY.sharpened(plane.exact, factor)))
    )


@pytest.mark.parametrize("s", [4, 8, 16])
def test_without_a_lower_bound_half_of_the_gradient_is_lost(s):
    """exp(-s) of the mass is spread, the logit runs over [-2s, 2s]: p_n has all the smoothness.

    With a = log(exp(-s)/2), the error is sigmoid(a - u) at logit u, the integral of whose square
    from -2s on is s - log 2 - 1 but for a rounding of exp(-s). The root of its mean tends to 1/2.
    """
    problem = THEORY.interval(2.0 * s)
    found = THEORY.errors(problem, THEORY.mixed(problem.exact, math.exp(-s)))
    expected = ((s - math.log(2) - 1) / (4 * s)) ** 0.5
    assert found.gradient == pytest.approx(expected, abs=2 * math.exp(-s) + 1e-4)
    assert found.ece <= found.probability <= math.exp(-s) / 2


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_label_smoothing_aims_at_the_mixture_with_the_uniform(share):
    """The expected loss of smoothed labels has its minimum there and not at the posterior."""
    problem = THEORY.plane(1.0)
    truth = problem.exact(problem.points).softmax(-1)

    def slope(logits):
        logits = logits.detach().requires_grad_()
        labels = torch.arange(3).expand(len(logits), 3)
        losses = [
            F.cross_entropy(logits, labels[:, y], reduction="none", label_smoothing=share)
            for y in range(3)
        ]
        (gradient,) = torch.autograd.grad((torch.stack(losses, 1) * truth).sum(), logits)
        return gradient.abs().max().item()

    assert slope(THEORY.mixed(problem.exact, share)(problem.points)) < 1e-12
    assert slope(problem.exact(problem.points)) > share / 4


def test_the_page_shows_what_the_script_prints(capsys, tmp_path):
    """And its table that the best calibrated classifiers have some of the worst gradients."""
    path = tmp_path / "errors.png"
    THEORY.main(["--picture", str(path)])
    table = capsys.readouterr().out.strip()
    assert table.count("\n") == 24
    assert table in (ROOT / "docs/theory.md").read_text()
    sizes = []
    for picture in (path, ROOT / "docs/images/calibration_theory.png"):
        with Image.open(picture) as image:
            sizes.append(image.size)
    assert sizes[0] == sizes[1]
    cells = [line.split(" | ") for line in table.splitlines()[2:]]
    rows = {classifier: (float(ece), float(gradient.rstrip(" |")))
            for _, classifier, ece, _, gradient in cells}  # fmt: skip
    for better, worse in (
        ("the prior everywhere", "logits times 1.1"),
        ("sin(64x)/64", "0.025 sin(4x)"),
    ):
        assert rows[better][0] < rows[worse][0] and rows[better][1] > 5 * rows[worse][1]
