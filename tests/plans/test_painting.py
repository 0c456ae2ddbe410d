"""Ascent whose end is known, starts whose moments are, and what must not matter."""

import math

import pytest
import torch
from torch import nn

from robustguide.interfaces import Classifier
from robustguide.plans import painting
from robustguide.plans.painting import Recipe


class Linear(Classifier):
    """Two classes; keeps the levels and images that it was asked at."""

    num_classes = 2

    def __init__(self, shape):
        super().__init__()
        weight = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        self.weight, self.levels = nn.Parameter(weight, requires_grad=False), []
        self.images = []

    def forward(self, x, sigma):
        self.levels.append(float(sigma[0]))
        self.images.append(x.detach())
        return torch.einsum("kchw,bchw->bk", self.weight, x)


def problem(shape=(1, 4, 4), count=3):
    generator = torch.Generator().manual_seed(1)
    start = 0.1 * torch.randn(count, *shape, generator=generator)
    return Linear(shape), start, torch.arange(count) % 2, list(range(count))


def test_a_linear_classifier_paints_the_difference_of_its_weights():
    """The gradient has one direction everywhere, so the end is where that leaves the ball."""
    classifier, start, y, numbers = problem()
    radius = 0.5
    made = painting.painted(classifier, start, y, numbers, 0, Recipe((0.7,), 10, radius))
    toward = classifier.weight[y] - classifier.weight[1 - y]
    toward = toward / toward.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(made.x_0, start + radius * toward, rtol=0, atol=1e-4)
    noise = painting.held_out(numbers, 0, (1, 4, 4))
    x = made.x_0 + 0.7 * noise
    want = torch.einsum("kchw,bchw->bk", classifier.weight, x).log_softmax(-1)
    torch.testing.assert_close(made.after, want[torch.arange(3), y])
    x = start + 0.7 * noise
    want = torch.einsum("kchw,bchw->bk", classifier.weight, x).log_softmax(-1)
    torch.testing.assert_close(made.before, want[torch.arange(3), y])
    assert (made.after > made.before).all()


def test_steps_before_the_ball_s_end_are_of_their_length():
    classifier, start, y, numbers = problem()
    made = painting.painted(classifier, start, y, numbers, 0, Recipe((0.7,), 4, 10.0, 0.05))
    moved = (made.x_0 - start).flatten(1).norm(dim=1)
    torch.testing.assert_close(moved, torch.full((3,), 0.2))


def test_pixels_stay_in_bounds_and_latents_have_none():
    for channels, most in ((1, 1.0), (4, math.inf)):
        classifier, start, y, numbers = problem((channels, 4, 4))
        classifier.weight.mul_(0.01)  # else log p is 0 before the bounds are met
        made = painting.painted(classifier, start, y, numbers, 0, Recipe((0.1,), 50, 20.0))
        largest = float(made.x_0.abs().max())
        assert largest <= most and (channels == 1 or largest > 1)
        assert ((made.x_0 - start).flatten(1).norm(dim=1) <= 20.0 * (1 + 1e-5)).all()


def test_levels_fall_and_share_the_steps():
    classifier, start, y, numbers = problem()
    made = painting.painted(classifier, start, y, numbers, 0, Recipe((2.0, 1.0, 0.5), 7, 1.0))
    assert classifier.levels == pytest.approx([2.0] * 3 + [1.0] * 2 + [0.5] * 2 + [0.5] * 2)
    alone = painting.painted(
        classifier, start[1:2], y[1:2], [1], 0, Recipe((2.0, 1.0, 0.5), 7, 1.0)
    )
    torch.testing.assert_close(alone.x_0, made.x_0[1:2])  # rows do not mix


def test_every_step_has_new_noise_that_belongs_to_the_start():
    """At once the same for rows of one start; unit and white over many steps."""
    classifier, _, y, _ = problem(count=4)
    start = torch.zeros(4, 1, 4, 4)
    painting.painted(classifier, start, y, [0, 1, 0, 1], 3, Recipe((1.0,), 200, 1e-6))
    steps = torch.stack(classifier.images[:200])
    torch.testing.assert_close(steps[:, 0], steps[:, 2], atol=1e-5, rtol=0)
    assert (steps[:, 0] - steps[:, 1]).abs().max() > 1
    n = 200 * 2 * 16
    values = steps[:, :2].flatten()
    assert abs(float(values.mean())) < 4 / n**0.5
    assert abs(float(values.square().mean()) - 1) < 4 * (2 / n) ** 0.5
    lagged = (steps[1:, :2] * steps[:-1, :2]).mean()
    assert abs(float(lagged)) < 4 / n**0.5
    held = painting.held_out([0, 1], 3, (1, 4, 4))
    assert (steps[:, :2] - held).abs().amax((2, 3, 4)).min() > 0.5


def test_sizes_by_default():
    radius, step = Recipe(steps=100).sizes((3, 4, 4))
    assert (radius, step) == (pytest.approx(0.5 * math.sqrt(48)), pytest.approx(radius / 40))
    assert Recipe(radius=2.0, step_size=0.5).sizes((1, 2, 2)) == (2.0, 0.5)


def batches(shape=(2, 1, 2), count=60):
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(count) % 3
    x_0 = torch.randn(count, *shape, generator=generator) + y[:, None, None, None]
    rows = [slice(first, first + 7) for first in range(0, count, 7)]
    return x_0, y, [(x_0[each], y[each], torch.arange(count)[each]) for each in rows]


def test_starts_have_the_mean_and_covariance_of_their_class():
    x_0, y, some = batches()
    starts, counts = painting.gaussian_starts(some, [2, 0], 0, 20_000)
    assert counts == [20, 20] and starts.shape == (2, 20_000, 2, 1, 2)
    for place, k in enumerate((2, 0)):
        own = x_0[y == k].flatten(1)
        draws = starts[place].flatten(1)
        scale = own.var(0).sqrt()
        assert ((draws.mean(0) - own.mean(0)).abs() < 4.5 * scale / math.sqrt(20_000)).all()
        size = scale[:, None] * scale
        off = (draws.T.cov() - own.T.cov()).abs() / size
        assert (off < 4.5 * math.sqrt(2 / 20_000)).all()


def test_starts_belong_to_their_number_and_not_to_batches():
    x_0, y, some = batches()
    one = [(x_0, y, torch.arange(len(y)))]
    many, _ = painting.gaussian_starts(some, [1], 4, 5)
    few, _ = painting.gaussian_starts(one, [1], 4, 2)
    torch.testing.assert_close(few, many[:, :2])
    other, _ = painting.gaussian_starts(one, [1], 5, 2)
    assert (other - few).abs().max() > 0.1
    again, first = (
        painting.plain_starts("noise", 0, 3, (4, 2, 2)),
        painting.held_out([0, 1, 2], 0, (4, 2, 2)),
    )
    assert (again - first).abs().max() > 0.1  # the start is not the noise that is added to it
    assert painting.plain_starts("noise", 0, 3, (1, 2, 2)).abs().max() <= 1
    assert not painting.plain_starts("grey", 0, 3, (1, 2, 2)).any()


def test_a_class_of_one_image_has_no_gaussian():
    _, _, some = batches(count=4)
    with pytest.raises(ValueError, match="class 1, 2 has fewer; raise --start-images"):
        painting.gaussian_starts(some, [0, 1, 2], 0, 1)
    with pytest.raises(ValueError, match="no start 'white'"):
        painting.plain_starts("white", 0, 1, (1, 2, 2))


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"levels": ()}, "--level must be finite"),
        ({"levels": (0.5, 1.0)}, "--level must fall"),
        ({"levels": (1.0, 0.5), "steps": 1}, "--steps 1 cannot be shared by 2 levels"),
        ({"radius": 0.0}, "--radius must be a positive length"),
        ({"step_size": math.inf}, "--step-size must be a positive length"),
    ],
)
def test_recipes_that_cannot_be_are_refused(said, match):
    with pytest.raises(ValueError, match=match):
        Recipe(**said)
