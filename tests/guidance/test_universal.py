"""Universal guidance: closed forms of linear and Gaussian problems, its parts and its cost."""

import math
from dataclasses import asdict

import pytest
import torch
from jsonargparse import ArgumentParser
from oracles import ExactClassifier, ExactDenoiser, ListedGrid, Mixture, no_noise, noisy, tilted
from torch.testing import assert_close

from robustguide.classifiers import BandTemperature, Calibrated, Temperature
from robustguide.guidance import (
    ClassifierFree,
    ClassifierGuidance,
    ClassifierLoss,
    Descent,
    Guidance,
    Guided,
    Loss,
    Scaled,
    SquaredDistance,
    ThroughDenoiser,
    Universal,
    Within,
)
from robustguide.interfaces import Place
from robustguide.modules.cost import Evaluated, counted
from robustguide.samplers import DDIM

EXACT = {"rtol": 1e-10, "atol": 1e-10}
SIGMAS = [0.1, 0.7, 3.0, 20.0]
SGD = torch.optim.SGD


class MeanColour(Loss):
    """A user's own: half the squared distance between the mean of all pixels and a value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, images, y):
        return (images.flatten(1).mean(1) - self.value).square() / 2


def unit_gaussian():
    """Data N(0, I): the denoised image is x / (1 + sigma**2)."""
    denoiser = ExactDenoiser(Mixture(torch.zeros(1, 1, 2, 3)))
    return denoiser, *noisy(denoiser.mixture, SIGMAS)


def moved(denoiser, term, x, sigma, y, clip=None):
    return Guided(denoiser, {"universal": term}, clip)(x, sigma, y)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_forward_is_the_gradient_through_a_linear_denoiser(weight):
    denoiser, x, sigma, y = unit_gaussian()
    got = moved(denoiser, Universal(SquaredDistance([0.4]), weight), x, sigma, y)
    power = 1 + sigma.reshape(-1, 1, 1, 1) ** 2
    target = torch.tensor(0.4).double()  # in float32, as the loss holds it
    assert_close(got, x / power - weight * (power - 1) / power * (x / power - target), **EXACT)


def test_forward_is_the_published_shift_of_eps():
    """`eps + w sqrt(1 - alpha_bar) grad_{x_t} loss`, by a derivative of its own in x_t."""
    mixture = tilted()
    denoiser = ExactDenoiser(mixture)
    x, sigma, y = noisy(mixture, SIGMAS)
    loss, weight = ClassifierLoss(ExactClassifier(mixture)), 1.7
    alpha_bar = (1 / (1 + sigma**2)).reshape(-1, 1, 1, 1)
    x_t = (alpha_bar.sqrt() * x).requires_grad_()
    x_0 = denoiser(x_t / alpha_bar.sqrt(), sigma, y)
    (gradient,) = torch.autograd.grad(loss(x_0, y).sum(), x_t)
    eps = (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
    eps = eps + weight * (1 - alpha_bar).sqrt() * gradient
    published = (x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
    assert_close(
        moved(denoiser, Universal(loss, weight), x, sigma, y), published.detach(), **EXACT
    )


def test_forward_of_a_classifier_is_classifier_guidance_through_the_denoiser():
    mixture = tilted()
    denoiser, classifier = ExactDenoiser(mixture), ExactClassifier(mixture)
    x, sigma, y = noisy(mixture, SIGMAS)
    other = Scaled(ClassifierGuidance(classifier, view=ThroughDenoiser()), 2.5)
    got = moved(denoiser, Universal(ClassifierLoss(classifier), 2.5), x, sigma, y)
    assert (got - denoiser(x, sigma, y)).abs().max() > 1e-2
    assert_close(got, moved(denoiser, other, x, sigma, y), **EXACT)


def test_the_denoised_image_is_clipped_after_guidance_and_not_before():
    denoiser, x, sigma, y = unit_gaussian()
    for term in (
        Universal(SquaredDistance([1.0]), 1.0),
        Universal(SquaredDistance([1.0]), 1.0, Descent(3, lr=0.5, optimizer=SGD, bound=None)),
    ):
        free = moved(denoiser, term, x, sigma, y)
        bound = free.abs().median().item()
        got = moved(denoiser, term, x, sigma, y, clip=bound)
        assert torch.equal(got, free.clamp(-bound, bound))


def test_an_exact_minimiser_sets_what_is_measured_to_the_target():
    """h is the mean of d pixels, whose loss has curvature 1 / d: one step of length d."""
    denoiser, x, sigma, y = unit_gaussian()
    descent = Descent(1, lr=6.0, optimizer=SGD, cutoff=0.0, bound=None)
    got = moved(denoiser, Universal(MeanColour(0.25), backward=descent), x, sigma, y)
    assert_close(got.mean((1, 2, 3)), torch.full((4,), 0.25, dtype=torch.float64), **EXACT)
    shift = got - denoiser(x, sigma, y)  # the nearest image that has it: all pixels alike
    assert_close(shift, shift[..., :1, :1].expand_as(shift), **EXACT)


def test_many_steps_of_adam_come_there_too():
    denoiser, x, sigma, y = unit_gaussian()
    descent = Descent(200, lr=0.05, cutoff=0.0, bound=None)
    got = moved(denoiser, Universal(MeanColour(0.25), backward=descent), x, sigma, y)
    assert_close(got.mean((1, 2, 3)), torch.full_like(sigma, 0.25), rtol=0, atol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_backward_starts_where_forward_leads(weight):
    """Gradient descent on half a square: the distance shrinks by 1 - lr at each step."""
    denoiser, x, sigma, y = unit_gaussian()
    descent = Descent(5, lr=0.3, optimizer=SGD, cutoff=0.0, bound=None)
    got = moved(denoiser, Universal(SquaredDistance([0.5]), weight, descent), x, sigma, y)
    power = 1 + sigma.reshape(-1, 1, 1, 1) ** 2
    start = x / power - weight * (power - 1) / power * (x / power - 0.5)
    assert_close(got, 0.5 + 0.7**5 * (start - 0.5), **EXACT)


def test_adam_is_made_anew_and_moves_by_its_rate_first():
    """Bias-corrected, its first step is lr times the sign of the gradient."""
    denoiser, x, sigma, y = unit_gaussian()
    term = Universal(SquaredDistance([1.0]), backward=Descent(1, lr=0.02, bound=None))
    guided, plain = Guided(denoiser, {"universal": term}), denoiser(x, sigma, y)
    for _ in range(2):
        expected = plain + 0.02 * (1 - plain).sign()
        assert_close(guided(x, sigma, y), expected, rtol=0, atol=1e-8)  # Adam's eps is 1e-8


def test_the_image_stays_within_the_bound():
    denoiser, x, sigma, y = unit_gaussian()
    x = 4 * x
    for steps in (1, 3):
        term = Universal(SquaredDistance([0.5]), backward=Descent(steps, 0.25, SGD, 0.0, 1.0))
        clamped = denoiser(x, sigma, y).clamp(-1, 1)
        assert (clamped.abs() == 1).any()
        assert_close(
            moved(denoiser, term, x, sigma, y), 0.5 + 0.75**steps * (clamped - 0.5), **EXACT
        )
    far = Universal(MeanColour(9.0), backward=Descent(2, 50.0, SGD))
    assert_close(moved(denoiser, far, x, sigma, y), torch.ones_like(x), **EXACT)


def test_an_image_below_the_cutoff_stays_and_the_others_go_on():
    """At one pixel the loss before step k is l 0.64**k, so one knows when each stops."""
    denoiser = ExactDenoiser(Mixture(torch.zeros(1, 1, 1, 1)))
    x_0 = torch.tensor([0.1, 0.5, 2.0, 16.0], dtype=torch.float64).reshape(4, 1, 1, 1)
    sigma, y = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    descent = Descent(6, lr=0.2, optimizer=SGD, cutoff=0.1, bound=None)
    got = moved(denoiser, Universal(SquaredDistance([0.0]), backward=descent), 2 * x_0, sigma, y)
    steps = [next((k for k in range(6) if v**2 / 2 * 0.64**k < 0.1), 6) for v in x_0.flatten()]
    assert steps == [0, 1, 6, 6]
    shrink = torch.tensor([0.8**k for k in steps], dtype=torch.float64).reshape(4, 1, 1, 1)
    assert_close(got, x_0 * shrink, **EXACT)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_rows_do_not_mix(weight):
    mixture = tilted()
    denoiser, classifier = ExactDenoiser(mixture), ExactClassifier(mixture)
    x, sigma, y = noisy(mixture, SIGMAS)
    term = Universal(ClassifierLoss(classifier), weight, Descent(4, lr=0.05, cutoff=0.3))
    together = moved(denoiser, term, x, sigma, y)
    alone = [moved(denoiser, term, x[i : i + 1], sigma[i : i + 1], y[i : i + 1]) for i in range(4)]
    assert_close(together, torch.cat(alone), **EXACT)


def test_it_adds_to_other_terms_in_any_order_and_scales():
    mixture = tilted()
    denoiser, classifier = ExactDenoiser(mixture), ExactClassifier(mixture)
    x, sigma, y = noisy(mixture, SIGMAS)
    universal = Universal(ClassifierLoss(classifier), 1.0, Descent(3, lr=0.05))
    terms = {
        "free": ClassifierFree(),
        "universal": Scaled(universal, 0.5),
        "score": ClassifierGuidance(classifier),
    }
    plain = denoiser(x, sigma, y)
    alone = [Guided(denoiser, {name: term})(x, sigma, y) - plain for name, term in terms.items()]
    for names in (list(terms), list(terms)[::-1]):
        together = Guided(denoiser, {name: terms[name] for name in names})(x, sigma, y)
        assert_close(together, plain + sum(alone), **EXACT)
    assert_close(alone[1], 0.5 * (moved(denoiser, universal, x, sigma, y) - plain), **EXACT)


class Back(torch.autograd.Function):
    """Nothing, but for a list of the rows through which a gradient came back."""

    @staticmethod
    def forward(ctx, x, rows):
        ctx.rows = rows
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.rows.append(len(gradient))
        return gradient, None


class Net(ExactDenoiser):
    def __init__(self, mixture):
        super().__init__(mixture)
        self.back = []

    def predict(self, x, sigma, y):
        return super().predict(Back.apply(x, self.back), sigma, y)


class Judge(ExactClassifier):
    def __init__(self, mixture):
        super().__init__(mixture)
        self.back = []

    def forward(self, x, sigma):
        return super().forward(Back.apply(x, self.back), sigma)


GRID = ListedGrid((8.0, 4.0, 2.0, 1.0, 0.0))
# Forward weight, iterations of backward; how often an evaluation asks and differentiates both.
COSTS = [(1.0, 0, 1, 1, 1), (0.0, 3, 1, 0, 3), (2.0, 2, 1, 1, 3)]


@pytest.mark.parametrize(("weight", "steps", "net", "net_back", "classifier"), COSTS)
@pytest.mark.parametrize(("limit", "evaluations"), [("none", 4), ("within", 2), ("scale 0", 0)])
@pytest.mark.parametrize("repeats", [1, 3])
def test_its_cost(weight, steps, net, net_back, classifier, limit, evaluations, repeats):
    """`evaluations` are the levels at which it is active, 4 and 2 of 8, 4, 2 and 1."""
    mixture = tilted()
    denoiser, judge = Net(mixture), Judge(mixture)
    descent = Descent(steps, cutoff=-math.inf) if steps else None
    term: Guidance = Universal(ClassifierLoss(judge), weight, descent)
    if limit == "within":
        term = Within(term, sigma_min=1.0, sigma_max=4.0)
    elif limit == "scale 0":
        term = Scaled(term, 0.0)
    terms, evaluated = torch.nn.ModuleDict({"universal": term}), Evaluated()
    x, _, y = noisy(mixture, [8.0] * 3)
    noise = no_noise if repeats == 1 else torch.zeros_like
    with counted(denoiser, terms, evaluated):
        DDIM(GRID, repeats=repeats)(denoiser, dict(terms), x, y, noise)
    found, rows = asdict(evaluated), 3 * repeats
    assert found["denoiser_evaluations"] == sum(denoiser.calls) == 4 * net * rows
    assert found["denoiser_backward"] == sum(denoiser.back) == evaluations * net_back * rows
    assert found["classifier_forward"] == sum(judge.calls) == evaluations * classifier * rows
    assert found["classifier_backward"] == sum(judge.back) == evaluations * classifier * rows


def test_it_acts_in_its_interval_alone():
    denoiser, x, _, y = unit_gaussian()
    term = Universal(SquaredDistance([0.5]), 1.0, Descent(2))
    within = Guided(denoiser, {"universal": Within(term, sigma_min=1.0, sigma_max=4.0)})
    for level, acts in ((0.5, False), (1.0, False), (2.0, True), (4.0, True), (5.0, False)):
        sigma = x.new_full((4,), level)
        got = within.predict(x, sigma, y, Place(sigma=level)).denoised
        want = moved(denoiser, term, x, sigma, y) if acts else denoiser(x, sigma, y)
        assert torch.equal(got, want)


def test_no_gradient_stays_behind():
    """Neither a graph nor anything in `.grad` of the networks."""
    mixture = tilted()
    denoiser, net = ExactDenoiser(mixture), torch.nn.Linear(4, 1).double()

    class Score(Loss):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, images, y):
            return self.net(images.flatten(1))[:, 0].square()

    x, sigma, y = noisy(mixture, SIGMAS)
    with torch.no_grad():
        got = moved(denoiser, Universal(Score(), 1.0, Descent(2)), x, sigma, y)
    assert not got.requires_grad and net.weight.grad is None and not x.requires_grad


def parsed(described):
    """As the command line builds terms."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--guidance", type=dict[str, Guidance])
    return parser.instantiate(parser.parse_object({"guidance": described})).guidance


def specification(name, **arguments):
    return {"class_path": f"robustguide.guidance.{name}", "init_args": arguments}


def test_a_loss_of_ones_own_is_named_by_its_class():
    loss = {"class_path": f"{__name__}.MeanColour", "init_args": {"value": 0.25}}
    backward = {"steps": 1, "lr": 6.0, "optimizer": "torch.optim.SGD", "bound": None}
    described = specification("Universal", loss=loss, forward=0.0, backward=backward)
    term = parsed({"colour": specification("Scaled", scale=1.0, term=described)})["colour"]
    denoiser, x, sigma, y = unit_gaussian()
    got = moved(denoiser, term, x, sigma, y)
    assert_close(got.mean((1, 2, 3)), torch.full((4,), 0.25, dtype=torch.float64), **EXACT)


def test_the_defaults_are_the_published_ones():
    loss = specification("SquaredDistance", target=[0.5])
    term = parsed({"u": specification("Universal", loss=loss, backward={"steps": 6})})["u"]
    assert term.descent == Descent(6, 1e-2, torch.optim.Adam, 1e-5, 1.0)
    assert not term.needs_graph and term.moves_denoised


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forward": -1.0}, "forward must be a finite number of at least 0, got -1.0"),
        ({"forward": math.inf}, "got inf"),
        ({"forward": math.nan}, "got nan"),
        ({"forward": 0.0}, "Universal does nothing"),
        ({"backward": {"steps": 0}}, "steps counts iterations, at least 1; got 0"),
        ({"backward": {"steps": 1, "lr": -0.1}}, "lr must be positive and finite, got -0.1"),
        ({"backward": {"steps": 1, "bound": 0.0}}, "bound must be positive and finite, got 0.0"),
        ({"backward": {"steps": 1, "cutoff": math.nan}}, "cutoff must be a number"),
        ({"backward": {"steps": 1, "optimizer": "torch.optim.LBFGS"}}, "LBFGS searches one step"),
    ],
)
def test_wrong_settings_are_refused_when_read(arguments, message):
    loss = specification("SquaredDistance", target=[0.5])
    with pytest.raises(ValueError, match=message):
        parsed({"universal": specification("Universal", loss=loss, **arguments)})


def test_an_unknown_loss_is_refused_when_read():
    loss = specification("NoSuchLoss")
    with pytest.raises(Exception, match="NoSuchLoss"):
        parsed({"universal": specification("Universal", loss=loss, forward=1.0)})


def test_a_loss_of_other_classes_or_images_is_refused():
    denoiser = ExactDenoiser(tilted())
    others = ClassifierLoss(ExactClassifier(tilted(classes=3)))
    with pytest.raises(ValueError, match="labels of 3 classes, those of the denoiser are of 4"):
        Guided(denoiser, {"universal": Universal(others, 1.0)})
    classifier = ExactClassifier(tilted())
    classifier.shape = (3, 8, 8)
    term = Universal(ClassifierLoss(classifier), 1.0)
    with pytest.raises(ValueError, match="reads images of 3 x 8 x 8"):
        Guided(denoiser, {"universal": term})
    assert term.differentiated() == (classifier,)


def test_a_calibrated_classifier_learns_of_the_level_at_which_the_image_came_up():
    """Forward guidance by log p is that of logits over T, and T is that of each row's level."""
    mixture = tilted()
    denoiser, classifier = ExactDenoiser(mixture), ExactClassifier(mixture)
    x, sigma, y = noisy(mixture, SIGMAS)
    calibrated = Calibrated(classifier, BandTemperature([1.0], values=[2.0, 5.0]))
    got = moved(denoiser, Universal(ClassifierLoss(calibrated), 1.0), x, sigma, y)
    for rows, temperature in ((slice(0, 2), 2.0), (slice(2, 4), 5.0)):
        one = Calibrated(classifier, Temperature(temperature))
        wanted = moved(
            denoiser, Universal(ClassifierLoss(one), 1.0), x[rows], sigma[rows], y[rows]
        )
        assert_close(got[rows], wanted, **EXACT)
        plain = moved(
            denoiser, Universal(ClassifierLoss(classifier), 1.0), x[rows], sigma[rows], y[rows]
        )
        assert not torch.allclose(got[rows], plain)
