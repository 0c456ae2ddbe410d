import pytest
import tiny
import torch
from torch import nn

from robustguide import load_classifier, load_denoiser, sample
from robustguide.checkpoints import build
from robustguide.data import Listed, SeedData
from robustguide.guidance import ClassifierFree, ClassifierGuidance, Scaled
from robustguide.interfaces import Denoiser, Prediction
from robustguide.modules import Generation
from robustguide.modules.generate import spread, watched
from robustguide.noise import ChainGrid, RhoGrid, linear_levels
from robustguide.samplers import DDIM, Ancestral, Heun, Learned


@pytest.fixture(scope="module")
def denoiser(runs):
    return load_denoiser(str(runs / "denoiser/denoiser.safetensors"))


@pytest.fixture(scope="module")
def classifier(runs):
    return load_classifier(str(runs / "classifier/classifier.safetensors"))


@pytest.fixture
def ancestral():
    return Ancestral(grid=ChainGrid(linear_levels(), "10"), clip=1.0)


class Constant(Denoiser):
    """Shows the same picture whatever it sees."""

    num_classes, shape = 10, (1, 8, 8)

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def predict(self, x, sigma, y):
        return Prediction(self.value.expand_as(x) + 0 * x)


class Recording:
    """What a batch's first state, noise and labels were, by image number."""

    def __init__(self, module):
        self.seen = {}
        self.module = module

    def __call__(self, count, batch_size, folder):
        images = {}
        data = SeedData(count=count, num_classes=10, batch_size=batch_size)
        for index, y in data.test_dataloader():
            answer = self.module.test_step((index, y), 0)
            for row, number in enumerate(index.tolist()):
                images[number] = (
                    answer["images"][row],
                    answer["y"][row],
                    answer["denoised"][:, row],
                )
        return images


@pytest.mark.parametrize("method", ["ancestral", "heun", "classifier_free"])
def test_an_image_is_its_seeds_in_any_batch(denoiser, classifier, ancestral, method):
    sampler, terms = ancestral, {"guide": Scaled(ClassifierGuidance(classifier), scale=2.0)}
    if method == "heun":
        sampler = Heun(grid=RhoGrid(steps=5), churn=2.0)
    if method == "classifier_free":
        terms = {"free": Scaled(ClassifierFree(), weight=2.0)}
    made = Recording(Generation(denoiser, sampler, terms))
    one, four = (made(9, batch_size, None) for batch_size in (1, 4))
    assert one.keys() == four.keys() == set(range(9))
    for number in one:
        assert torch.equal(one[number][1], four[number][1])
        torch.testing.assert_close(one[number][0], four[number][0], atol=2e-4, rtol=0)
        torch.testing.assert_close(one[number][2], four[number][2], atol=2e-4, rtol=0)


def test_noise_of_an_image_is_bit_equal_in_any_batch(ancestral):
    """A denoiser that does not look lets the noise through as it is."""
    made = Recording(Generation(Constant(0.25), Heun(grid=RhoGrid(steps=4), churn=2.0)))
    one, four = (made(9, batch_size, None) for batch_size in (1, 4))
    assert all(torch.equal(one[number][0], four[number][0]) for number in one)
    assert all(torch.all(image == 0.25) for image, *_ in one.values())
    states = []
    observe = lambda step: states.append(step.x)  # noqa: E731
    module = Generation(Constant(0.25), Ancestral(grid=ChainGrid(linear_levels(), "10")))
    for rows in ([0], [1], [2], [0, 1, 2]):
        module.generate((torch.tensor(rows), torch.zeros(len(rows), dtype=torch.long)), observe)
    for step in range(10):
        alone = torch.cat([states[step + 10 * row] for row in range(3)])
        assert torch.equal(alone, states[step + 30])


def test_it_makes_what_the_function_makes(denoiser, classifier, ancestral):
    terms = {"guide": Scaled(ClassifierGuidance(classifier), scale=2.0)}
    answer = Generation(denoiser, ancestral, terms).generate((torch.arange(5, 9), torch.arange(4)))
    images = sample(denoiser, terms, labels=[0, 1, 2, 3], seeds=[5, 6, 7, 8], sampler=ancestral)
    assert torch.equal(answer["images"], images) and images.abs().max() <= 1


def test_what_is_watched(denoiser, classifier, ancestral):
    """The observer reads the predicted clean image at noise level 0, at exact levels."""
    module = Generation(denoiser, ancestral, observer=classifier, watched_steps=4)
    sigmas = ancestral.levels(denoiser)
    assert module.watched == (0, 3, 6, 9)
    assert module.levels == tuple(sigmas[index] for index in (0, 3, 6, 9))
    answer = module.test_step((torch.arange(3), torch.tensor([4, 5, 6])), 0)
    assert answer["denoised"].shape == (4, 3, 1, 8, 8) and answer["logits"].shape == (4, 3, 10)
    for denoised, logits in zip(answer["denoised"], answer["logits"], strict=True):
        torch.testing.assert_close(logits, classifier(denoised, torch.zeros(3)))
    # the last step of a chain returns its denoised image
    torch.testing.assert_close(answer["denoised"][-1].clamp(-1, 1), answer["images"])


def test_predictions_are_not_watched(denoiser, classifier, ancestral):
    module = Generation(denoiser, ancestral, observer=classifier)
    answer = module.predict_step((torch.arange(3), torch.arange(3)), 0)
    assert answer.keys() == {"images", "y", "index"}
    assert module.evaluated.observer_forward == 0
    assert module.evaluated.denoiser_evaluations == 30


def test_nothing_is_trained(denoiser, classifier, ancestral):
    terms = {"guide": Scaled(ClassifierGuidance(build(tiny.classifier())), scale=1.0)}
    module = Generation(build(tiny.denoiser(dropout=0.5)), ancestral, terms, classifier)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not any(part.training for part in module.modules())


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [
        (50, 1, (49,)),
        (1, 9, (0,)),
        (3, 9, (0, 1, 2)),
        (50, 3, (0, 24, 49)),
        (11, 6, (0, 2, 4, 6, 8, 10)),
    ],
)
def test_watched_steps_are_spread(count, wanted, expected):
    assert spread(count, wanted) == expected


def test_watched_levels_are_the_nearest_steps(denoiser, ancestral):
    """In log sigma: between 1 and 100 the border is at 10, not at 50. Each step once, in order."""
    assert watched((100.0, 1.0, 0.01), [10.5, 9.5]) == (0, 1)
    assert watched((100.0, 1.0, 0.01), [0.011, 2.0, 1.0, 100.0]) == (0, 1, 2)
    assert watched((100.0, 1.0, 0.01), [100.0005]) == (0,)  # copied from six digits
    sigmas = ancestral.levels(denoiser)[:-1]
    wanted = [sigmas[7], sigmas[2] * 1.001, sigmas[2] / 1.001]
    module = Generation(denoiser, ancestral, watched_steps=wanted)
    assert module.watched == (2, 7) and module.levels == (sigmas[2], sigmas[7])
    answer = module.test_step((torch.arange(3), torch.arange(3)), 0)
    full = Generation(denoiser, ancestral, watched_steps=10).test_step(
        (torch.arange(3), torch.arange(3)), 0
    )
    assert torch.equal(answer["denoised"], full["denoised"][[2, 7]])
    assert torch.equal(answer["images"], full["images"])


@pytest.mark.parametrize("levels", [[], [101.0], [1.0, 0.009], [0.0], [-1.0], [float("nan")]])
def test_levels_that_the_run_does_not_visit(levels):
    message = r"noise levels from 0\.01 to 100, those of this sampler's steps; got \["
    with pytest.raises(ValueError, match=message):
        watched((100.0, 1.0, 0.01), levels)


def test_no_step_is_not_a_choice(denoiser, ancestral):
    with pytest.raises(ValueError, match="watched_steps must be at least 1, got 0"):
        Generation(denoiser, ancestral, watched_steps=0)


def test_a_learned_variance_that_is_not_there(denoiser):
    sampler = Ancestral(grid=ChainGrid(linear_levels(), "10"), variance=Learned())
    with pytest.raises(ValueError, match="learned variance, but this denoiser predicts none; use"):
        Generation(denoiser, sampler)


def test_labels_of_other_classes(denoiser, ancestral, tmp_path):
    data = SeedData(count=2, num_classes=12, labels=Listed([11]))
    with pytest.raises(
        ValueError, match=r"labels of 12 classes, the denoiser knows 10; set data\."
    ):
        tiny.trainer(tmp_path).test(
            Generation(denoiser, ancestral), datamodule=data, verbose=False
        )


def test_a_classifier_of_other_classes(denoiser, ancestral):
    other = tiny.spec(
        "classifiers.Timed", net=tiny.mlp(num_logits=7), levels=tiny.LEVELS, num_classes=7
    )
    terms = {"other": Scaled(ClassifierGuidance(build(other)), scale=1.0)}
    with pytest.raises(ValueError, match=r"Term 'other' is for labels of 7 classes.* 10"):
        Generation(denoiser, ancestral, terms)


def test_a_sampler_of_a_continuous_level_is_snapped(denoiser):
    """The watched levels are those at which the denoiser is asked, not those of the grid."""
    module = Generation(denoiser, DDIM(grid=RhoGrid(steps=6, sigma_max=10.0)), watched_steps=6)
    table = linear_levels().sigmas.tolist()
    assert all(min(abs(level - entry) for entry in table) == 0 for level in module.levels)
