"""A classifier that guides is read along as its term reads it."""

import pytest
import torch
from torch import nn

from robustguide.guidance import (
    AtDenoised,
    AtNormalizedState,
    AtState,
    ClassifierFree,
    ClassifierGuidance,
    ClassifierLoss,
    Confused,
    FullSum,
    GradientFree,
    Matched,
    Scaled,
    Switched,
    ThroughDenoiser,
    Universal,
    Within,
    reading_of,
    readings,
)
from robustguide.interfaces import Classifier, Denoiser, Prediction
from robustguide.modules import Generation
from robustguide.noise import ChainGrid, RhoGrid, linear_levels
from robustguide.samplers import DDIM, Ancestral, EulerAncestral, Heun

SAMPLERS = {
    "ancestral": Ancestral(ChainGrid(linear_levels(), "6"), clip=1.0),
    "ddim": DDIM(ChainGrid(linear_levels(), "6"), clip=1.0),
    "heun": Heun(RhoGrid(steps=6, sigma_max=20.0), churn=2.0),
    "repeated": EulerAncestral(RhoGrid(steps=6, sigma_max=20.0), repeats=2),
}


class Shrinking(Denoiser):
    """Told the label, so that another branch is another image."""

    num_classes, shape = 3, (1, 4, 4)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def predict(self, x, sigma, y):
        shrunk = x / (1 + sigma[:, None, None, None] ** 2)
        return Prediction(self.weight * (1.5 * shrunk.tanh() + 0.2 * y[:, None, None, None]))


class Recording(Classifier):
    """Keeps what it was asked, how, and what it said."""

    num_classes, shape = 4, (1, 4, 4)

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(16, 4, generator=generator))
        self.asked = []

    def forward(self, x, sigma):
        logits = x.flatten(1).to(self.weight.dtype) @ self.weight + sigma[:, None]
        self.asked.append((x.detach().clone(), sigma.clone(), logits.detach().clone()))
        return logits


LABELS = [3, 1, 0]  # of the classifier, for the three of the denoiser


def term_of(kind, classifier):
    return {
        "state": lambda: ClassifierGuidance(classifier, LABELS),
        "normalized": lambda: ClassifierGuidance(classifier, LABELS, view=AtNormalizedState()),
        "denoised": lambda: ClassifierGuidance(classifier, LABELS, view=AtDenoised()),
        "through": lambda: ClassifierGuidance(classifier, LABELS, view=ThroughDenoiser()),
        "confused": lambda: GradientFree(Confused(classifier, labels=LABELS)),
        "full_sum": lambda: FullSum(classifier, labels=LABELS),
        "universal": lambda: Universal(ClassifierLoss(classifier, LABELS), forward=1.0),
    }[kind]()


def asked_by_term(module, classifier):
    """What the term asked at the first evaluation of each step, in its last repetition."""
    classifier.asked.clear()
    asked, starts = [], []
    batch = torch.arange(2), torch.tensor([0, 2])

    def watch(step):
        asked.append(classifier.asked[starts[-1]])

    sampler, step = module.sampler, type(module.sampler).step

    def begun(self, run, x, place):
        starts.append(len(classifier.asked))
        return step(self, run, x, place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(sampler), "step", begun)
        module.generate(batch, watch)
    return asked


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    "kind",
    ["state", "normalized", "denoised", "through", "confused", "full_sum", "universal"],
)
def test_it_is_shown_what_it_was_shown_when_it_guided(kind, sampler):
    """Beside another term, which moves what the sampler goes towards."""
    classifier = Recording()
    terms = {
        "plain": Scaled(Within(term_of(kind, classifier), 0.0, 1e3), scale=0.5),
        "free": Scaled(ClassifierFree(), scale=1.0),
    }
    module = Generation(Shrinking(), SAMPLERS[sampler], terms, "plain", watched_steps=4)
    asked = asked_by_term(module, classifier)
    expected = [asked[step] for step in module.watched]
    classifier.asked.clear()
    answer = module.test_step((torch.arange(2), torch.tensor([0, 2])), 0)
    read = classifier.asked[-4:]
    for level, (theirs, ours) in enumerate(zip(expected, read, strict=True)):
        for one, two in zip(theirs, ours, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
        assert torch.equal(answer["logits"][level], ours[2][:, LABELS])
    assert module.evaluated.observer_forward == 8
    assert module.reading.num_classes == 3 and module.read_by == "term 'plain'"


def test_reading_along_changes_no_image():
    classifier = Recording()
    terms = {"plain": Scaled(ClassifierGuidance(classifier, LABELS, view=AtDenoised()), scale=2.0)}
    made = [
        Generation(Shrinking(), SAMPLERS["ancestral"], terms, observer, steps).test_step(
            (torch.arange(3), torch.arange(3)), 0
        )["images"]
        for observer, steps in (("plain", 6), ("plain", [5.0]), (None, 1))
    ]
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


def test_a_switched_term_reads_by_the_one_of_each_level():
    """What the two say together is what each says on its side; the level itself is below."""
    first, second = Recording(), Recording()
    denoised = ClassifierGuidance(first, LABELS, view=AtDenoised())
    switched = Switched(denoised, ClassifierGuidance(second, LABELS), sigma=1.0)
    module = Generation(
        Shrinking(), SAMPLERS["heun"], {"both": Scaled(switched, scale=0.5)}, "both"
    )
    assert module.reading.num_classes == 3
    assert module.reading.looks == "AtDenoised above 1, AtState below"
    answer = module.test_step((torch.arange(2), torch.tensor([0, 2])), 0)
    above = sum(level > 1.0 for level in module.levels)
    assert 0 < above < len(module.levels) == len(answer["logits"]) == 6
    read = [each.asked[-count:] for each, count in ((first, above), (second, 6 - above))]
    asked = [logits[:, LABELS] for each in read for _, _, logits in each]
    assert torch.equal(answer["logits"], torch.stack(asked))
    assert {level for _, sigma, _ in read[0] for level in sigma.tolist()} == {0.0}
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for level, (one,) in ((1.0, readings(switched.second)), (1.01, readings(denoised))):
        assert torch.equal(module.reading(x, level, 0.5 * x), one(x, level, 0.5 * x))


def test_a_temperature_of_the_term_is_its_reading():
    classifier = Recording()
    (one,), (half,) = (
        readings(GradientFree(Confused(classifier, labels=LABELS, temperature=t))) for t in (1, 2)
    )
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one(x, 1.0, 0.5 * x), 2 * half(x, 1.0, 0.5 * x))


def test_a_term_without_a_classifier_of_its_own():
    """The message lists those that have one."""
    first, second = Recording(), Recording()
    terms = {
        "free": ClassifierFree(),
        "robust": Scaled(ClassifierGuidance(first), scale=1.0),
        "both": Matched(
            ClassifierGuidance(first, LABELS), GradientFree(Confused(second, labels=LABELS))
        ),
        "seen": ClassifierGuidance(second, view=AtState()),
    }
    assert reading_of("robust", terms).classifier is first
    listed = r"terms with one classifier: robust, seen; or give a classifier of its own"
    for name, happened in (
        ("free", r"term 'free' reads by no classifiers"),
        ("both", r"term 'both' reads by 2 classifiers"),
        ("plain", r"observer names no term of the guidance: 'plain'"),
    ):
        with pytest.raises(ValueError, match=rf"{happened}.*{listed}"):
            reading_of(name, terms)
    with pytest.raises(ValueError, match=r"'plain'; terms with one classifier: none"):
        Generation(Shrinking(), SAMPLERS["ddim"], None, "plain")
