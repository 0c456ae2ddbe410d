"""The nudge of the state in EDM's sampler, in closed form on a mixture."""

import math

import pytest
import torch
from oracles import (
    ExactClassifier,
    ExactDenoiser,
    ListedGrid,
    RecordedNoise,
    no_noise,
    noisy,
    tilted,
)
from torch.testing import assert_close

from robustguide.guidance import (
    AtDenoised,
    AtNormalizedState,
    ClassifierFree,
    ClassifierGuidance,
    Guidance,
    Scaled,
)
from robustguide.interfaces import Classifier, Place, Prediction
from robustguide.noise import RhoGrid
from robustguide.samplers import DDIM, Heun, Nudge, RungeKutta

GRID = ListedGrid((3.0, 2.2, 1.6, 0.0))  # where no class is certain
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


class World:
    """A mixture, its networks, and states at the first level."""

    def __init__(self):
        self.mixture = tilted()
        self.denoiser, self.classifier = ExactDenoiser(self.mixture), ExactClassifier(self.mixture)
        self.x, self.sigma, y = noisy(self.mixture, [3.0] * 4)
        self.y = (y + 1) % 4  # other classes: gradients towards one's own cancel in round-off

    def run(self, terms, sampler=None, noise=no_noise, rows=slice(None), **arguments):
        """Result and observed states of nudged Heun, or of another sampler."""
        arguments = {"state_dtype": "float64", "nudge": Nudge(0.1, 0.5)} | arguments
        sampler, seen = sampler or Heun(GRID, **arguments), []
        x = sampler(self.denoiser, terms, self.x[rows], self.y[rows], noise, seen.append)
        return x, torch.stack([observation.x for observation in seen])

    def term(self, **arguments):
        return ClassifierGuidance(self.classifier, **arguments)

    def direction(self, x, sigma):
        """Gradient of log p(y | x), divided by its root mean square."""
        null, sigmas = torch.full_like(self.y, 4), x.new_full((len(x),), sigma)
        score = self.mixture.score(x, sigmas, self.y) - self.mixture.score(x, sigmas, null)
        return score / rms(score)


def rms(x):
    return x.square().mean((1, 2, 3), keepdim=True).sqrt()


@pytest.mark.parametrize(
    ("strength", "steps", "add", "index", "size"),
    [
        (0.004, 10, 0.3, 0, 0.00400),
        (0.004, 10, 0.3, 5, 0.00338),
        (0.004, 10, 0.3, 9, 0.00110),
        (0.004, 18, 0.3, 17, 0.00063),
        (0.0018, 36, 0.3, 35, 0.00014),
        (0.004, 10, 0.0, 9, 0.004 * 2 / 11),
        (1e-5, 10, 0.0, 9, 1e-5),  # the least
        (0.0, 10, 0.3, 5, 0.0),
    ],
)
def test_sizes_of_the_published_schedule(strength, steps, add, index, size):
    assert Nudge(strength, add).size(Place(index, steps)) == pytest.approx(size, abs=5e-6)


def test_nudges_are_a_share_of_the_state_along_the_gradient():
    """Every state is the one before, moved by Heun's step of the conditional denoiser."""
    world = World()
    _, states = world.run({"c": world.term()})
    x, levels = world.x, GRID.levels
    for index, size in enumerate([0.1, 0.1 * 0.75 + 0.05 * math.sin(math.pi / 3)]):
        sigma, sigma_next = levels[index : index + 2]
        nudged = x + size * rms(x) * world.direction(x, sigma)
        assert_close(states[index], nudged, **CLOSE)
        slope = (nudged - world.denoiser(nudged, x.new_full((4,), sigma), world.y)) / sigma
        euler = nudged + (sigma_next - sigma) * slope
        ahead = world.denoiser(euler, x.new_full((4,), sigma_next), world.y)
        x = nudged + (sigma_next - sigma) * (slope + (euler - ahead) / sigma_next) / 2
    size = 0.1 * 0.5 + 0.05 * math.sin(2 * math.pi / 3)
    assert_close(states[2], x + size * rms(x) * world.direction(x, levels[2]), **CLOSE)


def test_the_normalised_view_gives_the_gradient_at_the_divided_state():
    world = World()
    world.x[0] /= 10  # this one is shown as it is
    _, states = world.run({"c": world.term(view=AtNormalizedState())})
    assert (rms(world.x) > 1).flatten().tolist() == [False, True, True, True]
    shown = world.x / rms(world.x).clamp_min(1)
    want = world.x + 0.1 * rms(world.x) * world.direction(shown, 0.0)
    assert_close(states[0], want, **CLOSE)


def test_churn_comes_beside_the_nudge():
    """The direction and the size are those of the state before churn."""
    world, noise = World(), torch.randn(3, 4, 2, 2, 1, generator=torch.Generator().manual_seed(3))
    draws = RecordedNoise(noise.double())
    _, states = world.run({"c": world.term()}, noise=draws, churn=0.6, churn_noise=1.1)
    added = 1.1 * 3.0 * math.sqrt(1.2**2 - 1) * noise[0].double()
    want = world.x + added + 0.1 * rms(world.x) * world.direction(world.x, 3.0)
    assert_close(states[0], want, **CLOSE)


def test_reference_terms_still_move_the_denoised_image():
    """In both evaluations: the same as a sampler of a denoiser that they have moved."""
    world = World()
    terms = {"c": world.term(), "free": Scaled(ClassifierFree(), 1.5)}
    together, _ = world.run(terms)
    shares = {"free": Scaled(ClassifierFree(), 1.5)}
    alone, _ = world.run(shares)
    plain, _ = world.run(shares, nudge=None)
    assert torch.equal(alone, plain)  # without score terms there is no nudge
    assert (together - plain).abs().max() > 0.01
    last, states = world.run(terms, Heun(ListedGrid((3.0, 0.0)), nudge=Nudge(0.1, 0.5)))
    null = world.denoiser(states[0], world.sigma, torch.full_like(world.y, 4))
    conditional = world.denoiser(states[0], world.sigma, world.y)
    assert_close(last, conditional + 1.5 * (conditional - null), **CLOSE)


def test_what_a_nudge_costs():
    world = World()
    world.run({"c": world.term()})
    assert world.denoiser.calls == [4] * 5 and world.classifier.calls == [4] * 3
    world = World()
    world.run({"c": world.term(view=AtDenoised())})  # the denoised image before the nudge as well
    assert world.denoiser.calls == [4] * 8 and world.classifier.calls == [4] * 3
    world = World()
    world.run({"c": world.term(), "free": ClassifierFree()}, guides_corrector=False)
    assert world.denoiser.calls == [8, 4, 8, 4, 8] and world.classifier.calls == [4] * 3


@pytest.mark.parametrize("off", [{"nudge": Nudge(0.0)}, {"scale": 0.0}])
def test_nothing_is_asked_for_where_there_is_no_nudge(off):
    world = World()
    term = Scaled(world.term(), off.pop("scale", 1.0))
    got, _ = world.run({"c": term}, **off)
    assert world.classifier.calls == [] and world.denoiser.calls == [4] * 5
    plain, _ = world.run(None, nudge=None)
    assert torch.equal(got, plain)


class Constant(Guidance):
    """The same displacement in every pixel, of each row its own."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def forward(self, step):
        rows = torch.tensor(self.rows, dtype=step.x.dtype).reshape(-1, 1, 1, 1)
        return rows * torch.ones_like(step.x)


@pytest.mark.parametrize("state_dtype", ["float32", "float64"])
def test_rows_without_a_gradient_are_not_moved_and_small_ones_like_others(state_dtype):
    """Squares of these displacements vanish, in float32."""
    world = World()
    world.x = world.x.to(getattr(torch, state_dtype))
    _, states = world.run({"c": Constant([0.0, 1e-30, -1e30, 2.0])}, state_dtype=state_dtype)
    signs = torch.tensor([0.0, 1.0, -1.0, 1.0]).reshape(-1, 1, 1, 1)
    want = world.x + 0.1 * rms(world.x) * signs.to(world.x)
    assert_close(states[0], want, rtol=1e-6, atol=1e-6)


def test_rows_do_not_see_one_another():
    world = World()
    together, _ = world.run({"c": world.term()})
    for row in range(4):
        alone, _ = world.run({"c": world.term()}, rows=slice(row, row + 1))
        assert_close(alone[0], together[row], rtol=1e-11, atol=1e-11)


def test_the_scale_of_a_lone_term_does_not_count():
    world = World()
    one, _ = world.run({"c": world.term()})
    ten, _ = world.run({"c": Scaled(world.term(), 10.0)})
    assert_close(ten, one, rtol=1e-11, atol=1e-11)


def test_other_times_of_the_same_method_are_nudged_alike():
    world = World()
    heun, _ = world.run({"c": world.term()})
    sampler = RungeKutta(GRID, state_dtype="float64", nudge=Nudge(0.1, 0.5))
    rule, _ = world.run({"c": world.term()}, sampler)
    assert_close(rule, heun, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [{"strength": -0.1}, {"strength": math.nan}, {"add": -1e-9}])
def test_a_negative_nudge_is_refused(bad):
    with pytest.raises(ValueError, match="strength 0 moves nothing"):
        Nudge(**bad)


def test_no_sampler_has_a_nudge_unless_asked():
    assert Heun().nudge is None and not hasattr(DDIM(GRID), "nudge")


class Sums(Classifier):
    """A classifier that exists without values."""

    num_classes, shape = 4, (2, 2, 1)

    def forward(self, x, sigma):
        return torch.stack([(x * k).sum((1, 2, 3)) for k in range(4)], dim=1)


def test_no_value_is_asked_for_on_the_device():
    class Halved(ExactDenoiser):
        def predict(self, x, sigma, y):
            return Prediction(x / 2)

    sampler = Heun(RhoGrid(3), state_dtype="float64", nudge=Nudge())
    with torch.device("meta"):
        x, y = torch.ones(2, 2, 2, 1), torch.zeros(2, dtype=torch.long)
    term = ClassifierGuidance(Sums(), view=AtNormalizedState())
    assert sampler(Halved(tilted()), {"c": term}, x, y, no_noise).is_meta
