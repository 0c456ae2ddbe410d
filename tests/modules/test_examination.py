import math

import oracles
import pytest
import torch

from robustguide.attacks import PGD, Attack
from robustguide.guidance import AtDenoised, AtNormalizedState, AtState, ThroughDenoiser, View
from robustguide.interfaces import Classifier, Denoiser, Prediction
from robustguide.modules import Examination
from robustguide.samplers import SeededNoise
from robustguide.samplers.seeds import mixed

LEVELS = (0.2, 1.0, 5.0)


class Told(Denoiser):
    """Shrinks x; a label moves every value by itself. Keeps what it is told."""

    num_classes, shape = 3, (1, 2, 2)

    def __init__(self, has_null=True, num_classes=3):
        super().__init__()
        self.has_null, self.num_classes = has_null, num_classes
        self.labels = []

    def predict(self, x, sigma, y):
        self.labels.append(y)
        shift = torch.where(y == self.num_classes, 0, y + 1)
        return Prediction(x / (1 + sigma**2).reshape(-1, 1, 1, 1) + shift.reshape(-1, 1, 1, 1))


class Values(Classifier):
    """Its logits are its input; keeps the levels that it is told on both roads."""

    num_classes = 4

    def __init__(self):
        super().__init__()
        self.noisy, self.clean = [], []

    def forward(self, x, sigma):
        self.noisy.append(sigma)
        return x.flatten(1)

    def as_clean(self, images, sigma):
        self.clean.append(sigma)
        return images.flatten(1)


class Shift(Attack):
    """Adds one; keeps what it is given."""

    def __init__(self):
        self.given = []

    def __call__(self, classifier, x, sigma, y, generator=None):
        self.given.append((x, sigma, classifier(x, sigma), [g.initial_seed() for g in generator]))
        return x + 1


def rows(count=5, classes=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randn(count, 1, 2, 2, generator=generator, dtype=dtype)
    return x_0, torch.arange(count) % classes, torch.arange(count) + 10


def noised(x_0, index, level, noise=None):
    noise = noise or SeededNoise(index.tolist(), 1)
    return x_0 + level * noise.draw(x_0.shape[1:])


@pytest.mark.parametrize("mixture", [oracles.plane(), oracles.tilted(classes=7)])
def test_the_gradient_of_the_exact_classifier_is_the_exact_direction(mixture):
    """And its norm in units of x_t is that of grad log p(y | x) times sqrt(1 + sigma^2)."""
    classifier, denoiser = oracles.ExactClassifier(mixture), oracles.ExactDenoiser(mixture)
    x_0, y = mixture.sample(20, torch.Generator().manual_seed(1))
    index = torch.arange(20)
    examination = Examination(
        LEVELS, {"x_t": AtState()}, gradients=True, draws=2, denoiser=denoiser
    )
    found = examination.examine(classifier, x_0, y, index)["x_t"]
    assert found["cosine"].shape == found["gradient_norm"].shape == (2, 3, 20)
    # where the class is all but certain, both are differences of equal numbers
    clear = found["gradient_norm"] > 1e-4
    assert clear.double().mean() > 0.6
    assert (found["cosine"] - 1)[clear].abs().max() < 1e-10
    for number, level in enumerate(LEVELS):
        x, sigma = noised(x_0, index, level), torch.full((20,), level, dtype=torch.float64)
        known = mixture.score(x, sigma, y) - mixture.score(x, sigma, denoiser.null(y))
        norm = math.sqrt(1 + level**2) * known.flatten(1).norm(dim=1)
        torch.testing.assert_close(found["gradient_norm"][0, number], norm, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(found["logits"][0, number], mixture.log_joint(x, sigma))


def test_another_direction_has_its_cosine():
    """A classifier of half the temperature points the same way, one of swapped classes not."""
    mixture = oracles.plane()
    exact = oracles.ExactClassifier(mixture)

    class Swapped(Classifier):
        num_classes = 3

        def forward(self, x, sigma):
            return exact(x, sigma)[:, [1, 0, 2]]

    denoiser = oracles.ExactDenoiser(mixture)
    x_0, y = mixture.sample(50, torch.Generator().manual_seed(1))
    examination = Examination([1.0], {"x_t": AtState()}, gradients=True, denoiser=denoiser)
    found = examination.examine(Swapped(), x_0, y, torch.arange(50))["x_t"]["cosine"][0, 0]
    x, sigma = noised(x_0, torch.arange(50), 1.0), torch.ones(50, dtype=torch.float64)
    null, other = denoiser.null(y), torch.tensor([1, 0, 2])[y]
    pair = [mixture.score(x, sigma, k) - mixture.score(x, sigma, null) for k in (y, other)]
    expected = torch.cosine_similarity(*(each.flatten(1) for each in pair))
    torch.testing.assert_close(found, expected)
    assert expected.min() < 0


def test_the_noise_belongs_to_the_image_and_its_draw():
    x_0, y, index = rows()
    examination = Examination(LEVELS, {"x_t": AtState()}, draws=3)
    found = examination.examine(Values(), x_0, y, index)["x_t"]
    assert found.keys() == {"logits"} and found["logits"].shape == (3, 3, 5, 4)
    for draw in range(3):
        unit = [
            torch.Generator().manual_seed(mixed(i, 1))
            if not draw
            else SeededNoise([i], 1).spawn(f"draw {draw}").generators[0]
            for i in index.tolist()
        ]
        eps = torch.stack([torch.randn(1, 2, 2, generator=generator) for generator in unit])
        for number, level in enumerate(LEVELS):
            expected = (x_0 + level * eps).flatten(1)
            torch.testing.assert_close(found["logits"][draw, number], expected, rtol=0, atol=0)
    assert not torch.equal(found["logits"][0], found["logits"][1])


def test_the_predicted_image_does_not_tell_the_label():
    """It is that of the null label, clipped, read as clean, at the true level."""
    x_0, y, index = rows()
    denoiser, classifier = Told(), Values()
    examination = Examination(LEVELS, {"denoised": AtDenoised()}, denoiser=denoiser, clip=0.5)
    found = examination.examine(classifier, x_0, y, index)["denoised"]["logits"][0]
    for number, level in enumerate(LEVELS):
        expected = noised(x_0, index, level) / (1 + level**2)
        torch.testing.assert_close(found[number], expected.clamp(-0.5, 0.5).flatten(1))
        assert torch.equal(classifier.clean[number], torch.full((5,), level))
    assert not classifier.noisy
    assert all(torch.equal(labels, torch.full((5,), 3)) for labels in denoiser.labels)
    assert not examination.cells(classifier)["forward_denoised"].labelled


def test_a_denoiser_without_a_null_label_is_told_the_label():
    x_0, y, index = rows()
    denoiser = Told(has_null=False)
    views = {"x_t": AtState(), "denoised": AtDenoised()}
    examination = Examination([1.0], views, gradients=True, denoiser=denoiser, clip=None)
    found = examination.examine(Values(), x_0, y, index)
    assert all(torch.equal(labels, y) for labels in denoiser.labels)
    assert found["denoised"]["cosine"].isnan().all() and found["x_t"]["cosine"].isnan().all()
    cells = examination.cells(Values())
    assert cells["forward_denoised"].labelled and not cells["forward_x_t"].labelled


def test_a_denoiser_without_labels_tells_none():
    x_0, y, index = rows()
    views = {"denoised": AtDenoised()}
    examination = Examination([1.0], views, gradients=True, denoiser=Told(num_classes=0))
    found = examination.examine(Values(), x_0, y, index)["denoised"]
    assert found["cosine"].isnan().all() and found["gradient_norm"].isfinite().all()
    assert not examination.cells(Values())["forward_denoised"].labelled


def test_views_share_the_answers_of_the_denoiser():
    """Two labels in one batch at each level, whoever asks."""
    mixture = oracles.plane()
    denoiser, classifier = oracles.ExactDenoiser(mixture), oracles.ExactClassifier(mixture)
    x_0, y = mixture.sample(6, torch.Generator().manual_seed(1))
    views = {"x_t": AtState(), "rms": AtNormalizedState(), "denoised": AtDenoised()}
    for gradients, rows_asked in ((False, [6, 6]), (True, [12, 12])):
        denoiser.calls.clear()
        examination = Examination([0.5, 2.0], views, gradients=gradients, denoiser=denoiser)
        examination.examine(classifier, x_0, y, torch.arange(6))
        assert denoiser.calls == rows_asked


def test_scores_are_pulled_back_as_guidance_pulls_them():
    """Through the denoiser by the chain rule; else the norm is that of the image's gradient."""
    mixture = oracles.tilted()
    denoiser, classifier = oracles.ExactDenoiser(mixture), oracles.ExactClassifier(mixture)
    x_0, y = mixture.sample(8, torch.Generator().manual_seed(1))
    views = {"through": ThroughDenoiser(), "denoised": AtDenoised()}
    examination = Examination([1.5], views, gradients=True, denoiser=denoiser, clip=0.7)
    found = examination.examine(classifier, x_0, y, torch.arange(8))
    x = noised(x_0, torch.arange(8), 1.5).requires_grad_()
    sigma = torch.full((8,), 1.5, dtype=torch.float64)
    image = denoiser(x, sigma, denoiser.null(y)).clamp(-0.7, 0.7)
    log_p = classifier(image, torch.zeros(8)).log_softmax(-1)[range(8), y].sum()
    at_x, at_image = torch.autograd.grad(log_p, [x, image])
    expected = math.sqrt(1 + 1.5**2) * at_x.flatten(1).norm(dim=1)
    torch.testing.assert_close(
        found["through"]["gradient_norm"][0, 0], expected, rtol=1e-6, atol=0
    )
    norm = at_image.flatten(1).norm(dim=1)
    torch.testing.assert_close(found["denoised"]["gradient_norm"][0, 0], norm, rtol=1e-6, atol=0)
    assert not any(tensor.requires_grad for each in found.values() for tensor in each.values())


def test_attacks_move_what_is_shown():
    """A noisy image at its level; a predicted one as a clean one, read at the true level."""
    x_0, y, index = rows()
    attack, classifier = Shift(), Values()
    views = {"x_t": AtState(), "denoised": AtDenoised()}
    examination = Examination([2.0], views, [attack, attack], denoiser=Told(), clip=None)
    found = examination.examine(classifier, x_0, y, index)
    for view, told in (("x_t", 2.0), ("denoised", 0.0)):
        answer = found[view]
        assert answer["attacked"].shape == (1, 1, 2, 5, 4)
        moved = answer["logits"] + 1
        torch.testing.assert_close(answer["attacked"][:, :, 0], moved, rtol=0, atol=0)
        x, sigma, logits, seeds = attack.given.pop(0)
        assert torch.equal(sigma, torch.full((5,), told))
        assert torch.equal(x.flatten(1), logits) and len(set(seeds)) == 5
        assert not set(seeds) & set(attack.given.pop(0)[-1])  # each attack has its own
    assert all(torch.equal(sigma, torch.full((5,), 2.0)) for sigma in classifier.clean)
    cells = examination.cells(classifier)
    assert cells["forward_denoised"].attacks_clean and not cells["forward_x_t"].attacks_clean


def test_no_number_depends_on_the_batch():
    """Nor do random starts of attacks."""
    x_0, y, index = rows(12)
    examination = Examination(
        [0.5, 2.0],
        {"x_t": AtState(), "denoised": AtDenoised()},
        [PGD(0.5, steps=3, random_start=True, restarts=1)],
        gradients=True,
        draws=2,
        denoiser=Told(),
    )
    whole = examination.examine(Values(), x_0, y, index)
    parts = [
        examination.examine(Values(), x_0[some], y[some], index[some])
        for some in ([0], [5, 4, 3, 2, 1], [6, 7, 8, 9, 10, 11])
    ]
    order = torch.tensor([0, 5, 4, 3, 2, 1, 6, 7, 8, 9, 10, 11])
    for view, tensors in whole.items():
        for key, tensor in tensors.items():
            axis = -1 if tensor.ndim == 3 else -2
            together = torch.cat([part[view][key] for part in parts], axis)
            assert torch.equal(together, tensor.index_select(axis, order)), (view, key)


def test_a_state_of_the_reverse_process_is_read_with_the_label():
    x_0, y, index = rows()
    denoiser = Told()
    examination = Examination([3.0], {"denoised": AtDenoised()}, denoiser=denoiser, clip=None)
    found = examination.read(Values(), [x_0], y, y, SeededNoise(index.tolist()))
    shift = (y + 1).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(found["denoised"]["logits"][0], (x_0 / 10 + shift).flatten(1))
    assert examination.cells(Values(), "reverse")["reverse_denoised"].labelled


@pytest.mark.parametrize("levels", [[], [-0.1], [float("nan")], [1.0, float("inf")]])
def test_levels_that_are_none(levels):
    with pytest.raises(ValueError, match=r"levels must be finite noise levels of at least 0"):
        Examination(levels, {"x_t": AtState()})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"views": {"d": AtDenoised()}}, r"View 'd' shows.*give a denoiser, such as"),
        ({"views": {}}, r"one view at least, got draws=1 and views \[\]"),
        ({"draws": 0}, r"got draws=0"),
        ({"levels": [0.0, 1.0], "denoiser": Told()}, r"not asked at noise level 0.*\[0.0, 1.0\]"),
    ],
)
def test_what_cannot_be_examined(arguments, message):
    with pytest.raises(ValueError, match=message):
        Examination(**{"levels": [1.0], "views": {"x_t": AtState()}} | arguments)


class Own(View):
    """Somebody's own view, which does not say that it looks at the predicted image."""

    def point(self, step):
        return step.denoised

    def pull(self, step, gradient):
        return gradient


def test_a_view_that_asks_nobody():
    x_0, y, index = rows()
    with pytest.raises(ValueError, match=r"A view shows.*nobody predicts it; give a denoiser"):
        Examination([1.0], {"own": Own()}).examine(Values(), x_0, y, index)
    found = Examination([1.0], {"own": Own()}, denoiser=Told()).examine(Values(), x_0, y, index)
    assert found["own"]["logits"].abs().max() <= 1
