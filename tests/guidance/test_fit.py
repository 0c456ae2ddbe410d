"""Pairs that do not fit are refused, and the wrapper that the message names mends them."""

import pytest
import torch
from oracles import ExactClassifier, ExactDenoiser, plane, tilted
from torch import nn
from torch.nn import functional as F

from robustguide.checkpoints import Metadata
from robustguide.classifiers import Decoded, OffTheShelf, Relabelled, Resized
from robustguide.denoisers import Unconditional
from robustguide.guidance import (
    ClassifierGuidance,
    ClassifierLoss,
    Confused,
    GradientFree,
    Guided,
    Reference,
    Scaled,
    Switched,
    Universal,
    Within,
    check_gradients,
    check_observer,
)
from robustguide.interfaces import Classifier, Codec, Denoiser, Prediction
from robustguide.modules import Generation
from robustguide.noise import RhoGrid
from robustguide.samplers import Heun, sample


class Picture(Denoiser):
    """Answers with what it sees."""

    def __init__(self, shape=(3, 8, 8), num_classes=4, **described):
        super().__init__()
        self.shape, self.num_classes = shape, num_classes
        describe(self, "denoiser", **described)

    def predict(self, x, sigma, y):
        return Prediction(x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2))


class Reader(Classifier):
    """Mean of each channel, spread over its classes."""

    def __init__(self, shape=(3, 8, 8), num_classes=4, **described):
        super().__init__()
        self.shape, self.num_classes = shape, num_classes
        describe(self, "classifier", **described)

    def forward(self, x, sigma):
        assert self.shape is None or x.shape[1:] == self.shape
        return x.mean((1, 2, 3))[:, None] * torch.arange(self.num_classes)


def describe(module, kind, path=None, card=None, names=()):
    """As a loader of checkpoints does."""
    if path or names or card:
        extra = {"card": card} if card else {}
        count, shape = module.num_classes, module.shape
        vars(module)["metadata"] = Metadata(
            path or "a.safetensors", kind, {}, tuple(names), count, shape, None, "raw", {}, extra
        )


def made(denoiser, classifier, labels=None, observer=None, codec=None):
    """What a configuration makes; the term is inside two others."""
    terms = {}
    if classifier is not None:
        inner = ClassifierGuidance(classifier, labels)
        terms["robust"] = Scaled(Within(inner, 0.0, 10.0), scale=1.0)
    sampler = Heun(grid=RhoGrid(steps=2, sigma_max=2.0))
    return Generation(denoiser, sampler, terms, observer, codec=codec)


def runs(denoiser, classifier, **given):
    generation = made(denoiser, classifier, **given)
    images = generation.test_step((torch.arange(2), torch.arange(2)), 0)
    return images["images"].isfinite().all()


PAIRS = {
    "a larger classifier": (
        lambda: Picture(),
        lambda: Reader((3, 16, 16)),
        r"reads images of 3 x 16 x 16, .* 3 x 8 x 8; wrap .*classifiers\.Resized\(size=16\)",
        Resized,
    ),
    "a smaller classifier": (
        lambda: Picture(),
        lambda: Reader((3, 4, 4)),
        r"wrap the classifier in robustguide\.classifiers\.Resized\(size=4\)",
        Resized,
    ),
    "a shelf that does not resize": (
        lambda: Picture(),
        lambda: OffTheShelf(Flat(16), 4, shape=[3, 16, 16]),
        r"Resized\(size=16\)",
        Resized,
    ),
    "a classifier of images for latents": (
        lambda: Picture((2, 4, 4)),
        lambda: Reader((3, 8, 8)),
        r"reads images of 3 x 8 x 8, .* 2 x 4 x 4; wrap .*classifiers\.Decoded, with the codec",
        lambda classifier: Decoded(classifier, Wide()),
    ),
    "a classifier of larger images for latents": (
        lambda: Picture((2, 4, 4)),
        lambda: Decoded(Reader((3, 16, 16)), Wide()),
        r"wrap the classifier inside Decoded in robustguide\.classifiers\.Resized",
        lambda decoded: Decoded(Resized(decoded.classifier), Wide()),
    ),
    "a shelf of images for latents": (
        lambda: Picture((2, 4, 4)),
        lambda: OffTheShelf(Flat(16), 4, size=16),
        r"Decoded, with the codec",
        lambda classifier: Decoded(classifier, Wide()),
    ),
}


class Flat(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.linear = nn.Linear(3 * size * size, 4)

    def forward(self, images):
        return self.linear(images.flatten(1))


class Wide(Codec):
    """Latents of two channels, the first of which is shown in three, twice as large."""

    image_channels, channels, factor = 3, 2, 2

    def encode(self, images, noise=None):
        return F.avg_pool2d(images[:, :2], 2)

    def decode(self, x_0):
        return F.interpolate(x_0[:, :1], scale_factor=2.0).repeat(1, 3, 1, 1)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("role", ["guides", "observes"])
def test_other_images_are_refused_and_the_wrapper_mends_them(name, role):
    denoiser, classifier, message, mend = PAIRS[name]

    def arguments(wrap):
        wrapped = wrap(classifier())
        return (wrapped, None) if role == "guides" else (None, wrapped)

    who = "Term 'robust'" if role == "guides" else "The observer"
    guide, observer = arguments(lambda own: own)
    with pytest.raises(ValueError, match=f"{who}: the classifier .*{message}"):
        made(denoiser(), guide, observer=observer)
    guide, observer = arguments(mend)
    assert runs(denoiser(), guide, observer=observer)


def test_what_no_wrapper_mends():
    with pytest.raises(ValueError, match="take a classifier of 3 channels"):
        made(Picture(), Reader((1, 8, 8)))


def test_pairs_that_fit():
    assert runs(Picture(), Reader())
    assert runs(Picture(), Reader(None))  # one that does not say what it reads
    assert runs(Picture(), OffTheShelf(Flat(5), 4, size=5), observer=Reader())
    assert runs(Picture((1, 6, 6)), OffTheShelf(Flat(5), 4, size=5))
    assert runs(Picture((2, 4, 4)), Decoded(Reader(), Wide()), codec=Wide())


def test_the_message_names_card_and_file():
    denoiser = Picture(card="adm256")
    classifier = Reader((3, 4, 4), path="runs/robust/classifier.safetensors")
    message = (
        r"the classifier of runs/robust/classifier\.safetensors reads images of 3 x 4 x 4, "
        r"the denoiser of card 'adm256' makes 3 x 8 x 8"
    )
    with pytest.raises(ValueError, match=message):
        made(Unconditional(denoiser), classifier)
    wrapped = Relabelled(classifier, [0, 1, 2, 3])
    with pytest.raises(ValueError, match=r"the classifier of runs/robust/"):
        made(denoiser, wrapped)


def test_other_classes_are_refused_and_labels_mend_them():
    with pytest.raises(ValueError, match=r"labels of 10 classes.*denoiser are of 4; give.*labels"):
        made(Picture(), Reader(num_classes=10))
    assert runs(Picture(), Reader(num_classes=10), labels=[9, 3, 0, 1])
    blank = Picture(num_classes=0)
    with pytest.raises(ValueError, match=r"the denoiser in Unconditional\(\.\.\., num_classes=4"):
        made(blank, Reader())
    assert runs(Unconditional(blank, num_classes=4), Reader())


def test_an_observer_of_other_classes_is_refused_and_relabelled():
    with pytest.raises(ValueError, match=r"10 classes, the denoiser 4; wrap it in .*Relabelled"):
        made(Picture(), None, observer=Reader(num_classes=10))
    assert runs(Picture(), None, observer=Relabelled(Reader(num_classes=10), [9, 3, 0, 1]))
    check_observer(Reader(num_classes=10), Picture(num_classes=0))  # no labels to differ from


ANIMALS = ["cat", "dog", "newt", "owl"]


def test_the_same_classes_in_another_order_are_refused_with_the_labels():
    denoiser = Picture(names=ANIMALS, path="d.safetensors")
    classifier = Reader(names=["owl", "cat", "dog", "newt"])
    message = (
        r"Term 'robust': the classifier's class 0 is 'owl', which the denoiser of d\.safetensors "
        r"counts as 3; give `labels: \[1, 2, 3, 0\]`"
    )
    for wrapped in (classifier, Resized(classifier, 8)):
        with pytest.raises(ValueError, match=message):
            made(denoiser, wrapped)
    assert runs(denoiser, classifier, labels=[1, 2, 3, 0])
    with pytest.raises(ValueError, match=r"observer.*Relabelled.*\[1, 2, 3, 0\]"):
        made(denoiser, None, observer=classifier)
    assert runs(denoiser, None, observer=Relabelled(classifier, [1, 2, 3, 0]))


def test_some_classes_of_a_larger_set():
    """Names that only one side has say nothing; a common one at another label does."""
    classifier = Reader(num_classes=4, names=["owl", "cat", "ant", "bee"])
    with pytest.raises(ValueError, match=r"class 0 is 'owl'.*give `labels`, the"):
        made(Picture(names=ANIMALS), classifier)


@pytest.mark.parametrize(
    "names",
    [
        ANIMALS,
        ["n1", "n2", "n3", "n4"],
        list("0123"),
        ["cat", "n2", "newt", "bird"],
        (),
    ],
    ids=str,
)
def test_names_that_do_not_contradict(names):
    assert runs(Picture(names=ANIMALS), Reader(names=names))
    assert runs(Picture(names=names), Reader(names=ANIMALS))
    # numbers are what a file has that knows no names
    assert runs(Picture(names=list("3210")), Reader(names=list("0123")))


def test_a_reference_of_other_images_or_classes():
    for other, message in [
        (Picture((3, 4, 4)), "the reference makes 3 x 4 x 4, the denoiser 3 x 8 x 8"),
        (
            Picture(num_classes=7),
            r"the reference knows 7 classes, .* 4; wrap .*Unconditional\(",
        ),
    ]:
        with pytest.raises(ValueError, match=f"Term 'weak': {message}"):
            Guided(Picture(), {"weak": Reference(other)})
    Guided(Picture(), {"weak": Reference(Picture(num_classes=0))})
    Guided(Picture(), {"weak": Reference(Unconditional(Picture(num_classes=7), num_classes=4))})


def test_terms_in_terms_hand_on_what_they_read():
    classifier = Reader(names=ANIMALS)
    term = Within(Scaled(ClassifierGuidance(classifier), 2.0), 0.1, 1.0)
    assert term.classifiers() == (classifier,) and term.class_names == tuple(ANIMALS)
    assert Reference().classifiers() == () == Reference().class_names


def test_exact_oracles_are_not_refused():
    mixture = tilted()
    Guided(ExactDenoiser(mixture), {"c": ClassifierGuidance(ExactClassifier(mixture))})
    with pytest.raises(ValueError, match="for labels of 3 classes"):
        Guided(ExactDenoiser(mixture), {"c": ClassifierGuidance(ExactClassifier(plane()))})


class Closed(Reader):
    """Reads an image in a way through which no gradient goes."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, x, sigma):
        return self.way(super().forward(x, sigma), x)


def without_a_graph(logits, x):
    with torch.no_grad():
        return logits * 1


CLOSED = {
    "detached": lambda logits, x: logits.detach(),
    "no_grad": without_a_graph,
    "argmax": lambda logits, x: F.one_hot(logits.argmax(-1), 4).float(),
    "bytes": lambda logits, x: logits.to(torch.uint8).float(),
    "numpy, detached": lambda logits, x: torch.from_numpy(logits.detach().numpy()),
    "numpy": lambda logits, x: torch.from_numpy(logits.numpy()),
    "in place": lambda logits, x: x.mul_(2).mean((1, 2, 3))[:, None] * torch.arange(4),
    "its own numbers": lambda logits, x: torch.ones(len(x), 4, requires_grad=True) * 2,
}


@pytest.mark.parametrize("way", CLOSED)
def test_a_classifier_without_a_gradient_is_refused(way):
    failed = "it failed" if way in ("numpy", "in place") else "the graph of its logits ends before"
    message = (
        r"Term 'robust' needs a gradient of the classifier \(Closed\) at its image, and at a "
        rf"blank one of 3 x 8 x 8 {failed} .*GradientFree, which needs none\."
    )
    with pytest.raises(ValueError, match=message):
        made(Picture(), Closed(CLOSED[way]))
    term = {"robust": Scaled(ClassifierGuidance(Closed(CLOSED[way])), 0.0)}
    with pytest.raises(ValueError, match=message):
        sample(Picture(), term, labels=[0])


def test_the_message_without_a_gradient_names_the_file():
    classifier = Closed(CLOSED["detached"])
    describe(classifier, "classifier", card="plain")
    with pytest.raises(ValueError, match=r"of the classifier of card 'plain' \(Closed\)"):
        made(Picture(), classifier)


def test_a_classifier_without_a_gradient_may_observe_and_choose_references():
    classifier = Closed(CLOSED["argmax"])
    assert runs(Picture(), Reader(), observer=classifier)
    check_gradients(Picture(), {"free": GradientFree(Confused(classifier))})
    loss = Universal(ClassifierLoss(classifier), forward=1.0)
    with pytest.raises(ValueError, match=r"Term 'loss' needs a gradient"):
        check_gradients(Picture(), {"free": GradientFree(Confused(classifier)), "loss": loss})


def test_gradients_stay_where_inference_mode_is_around():
    with torch.inference_mode(), pytest.raises(ValueError, match=r"torch\.inference_mode around"):
        check_gradients(Picture(), {"term": ClassifierGuidance(Reader())})


class Learned(Classifier):
    """Weights, a layer that is frozen, one that drops, one that keeps its own statistics."""

    num_classes, shape = 4, (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.5), nn.Flatten(), nn.Linear(180, 4)
        )
        self.rows = []

    def forward(self, x, sigma):
        assert not self.training and not self.net[2].training
        self.rows.append(len(x))
        return self.net(x)


def test_asking_for_a_gradient_leaves_no_trace():
    """One image for each classifier, however many terms have it; nothing is learned or kept."""
    classifier, other = Learned(), Learned()
    classifier.train()
    classifier.net[1].eval()
    other.eval().requires_grad_(False)
    state = {key: value.clone() for key, value in classifier.state_dict().items()}
    numbers = torch.get_rng_state()
    terms = {
        "a": ClassifierGuidance(classifier),
        "b": Scaled(Within(ClassifierGuidance(classifier), 0.1), 2.0),
        "c": Switched(ClassifierGuidance(other), ClassifierGuidance(classifier), 1.0),
    }
    with torch.no_grad():
        check_gradients(Picture(), terms)
    assert classifier.rows == other.rows == [1]
    assert [module.training for module in classifier.net] == [True, False, True, True, True]
    assert classifier.training and not any(module.training for module in other.modules())
    assert all(p.grad is None and p.requires_grad for p in classifier.parameters())
    assert not any(p.requires_grad for p in other.parameters())
    for key, value in classifier.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert torch.equal(torch.get_rng_state(), numbers)


def test_a_gradient_is_asked_for_when_it_is_read_and_not_when_it_samples():
    classifier = Learned()
    generation = made(Picture(), classifier)
    assert classifier.rows == [1]
    generation.generate((torch.arange(2), torch.arange(2)))
    assert classifier.rows == [1, 2, 2, 2]  # Heun's three evaluations of two steps
    assert generation.evaluated.classifier_forward == 6


def test_networks_without_memory_are_not_asked():
    with torch.device("meta"):
        classifier = Learned()
    check_gradients(Picture(), {"a": ClassifierGuidance(classifier)})
    assert classifier.rows == []
    with torch.device("meta"):
        check_gradients(Picture(), {"a": ClassifierGuidance(Closed(CLOSED["detached"]))})


def test_what_a_device_cannot_do_is_left_to_the_run():
    def lacks(logits, x):
        raise NotImplementedError("not implemented for 'Half'")

    check_gradients(Picture(), {"a": ClassifierGuidance(Closed(lacks))})


def test_a_gradient_of_zero_is_one():
    """Of a network that has learned nothing yet, or at its top."""
    for way in (lambda logits, x: 0 * logits, lambda logits, x: logits**2):
        check_gradients(Picture(), {"a": ClassifierGuidance(Closed(way))})


def test_prompts_are_names_of_classes():
    """A denoiser may say them itself; where one stands twice, each of the two is right."""
    denoiser, prompts = Picture(num_classes=3), ("a cat", "a dog", "a cat")
    denoiser.class_names = prompts
    Guided(denoiser, {"text": ClassifierGuidance(Reader(num_classes=3, names=prompts))})
    moved = Reader(num_classes=3, names=("a cat", "a cat", "a dog"))
    with pytest.raises(ValueError, match="class 1 is 'a cat'"):
        Guided(denoiser, {"text": ClassifierGuidance(moved)})
