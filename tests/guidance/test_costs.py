"""What each method costs: a row a method.

Networks keep their own books (`Rows`), which the counted numbers are compared with.
"""

from contextlib import nullcontext
from dataclasses import asdict

import latent
import pytest
import torch
from oracles import ExactClassifier, ExactDenoiser, ListedGrid, Mixture

from robustguide.classifiers import Decoded
from robustguide.denoisers import Unconditional
from robustguide.guidance import (
    AtDenoised,
    AtNormalizedState,
    Autoguidance,
    ClassifierFree,
    ClassifierGuidance,
    Corruption,
    Guidance,
    Reference,
    Scaled,
    ThroughDenoiser,
    Within,
    WithinSteps,
)
from robustguide.interfaces import Classifier
from robustguide.modules.cost import Evaluated, counted
from robustguide.samplers import DDIM, Ancestral, Heun

IMAGES = 3
GRID = ListedGrid((8.0, 4.0, 2.0, 1.0, 0.5, 0.0))
HEUN, STEPS = 9, 5  # evaluations of five steps
SAMPLERS = {"heun": (Heun(GRID), HEUN), "ddim": (DDIM(GRID), STEPS)}
SAMPLERS |= {"ancestral": (Ancestral(GRID), STEPS), "eta": (DDIM(GRID, eta=1.0), STEPS)}


class Rows(torch.autograd.Function):
    """Nothing, but for lists of the rows that go by, there and back."""

    @staticmethod
    def forward(ctx, x, there, back):
        there.append(len(x))
        ctx.back = back
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.back.append(len(gradient))
        return gradient, None, None


class Net(ExactDenoiser):
    """A denoiser that keeps its books."""

    def __init__(self, mixture):
        super().__init__(mixture)
        self.there, self.back = [], []

    def predict(self, x, sigma, y):
        return super().predict(Rows.apply(x, self.there, self.back), sigma, y)


class Judge(ExactClassifier):
    """A classifier that keeps its books."""

    def __init__(self, mixture):
        super().__init__(mixture)
        self.there, self.back = [], []

    def forward(self, x, sigma):
        return super().forward(Rows.apply(x, self.there, self.back), sigma)


class ImageJudge(Classifier):
    """A classifier of decoded images that keeps its books."""

    num_classes, shape = 3, latent.SHAPE

    def __init__(self):
        super().__init__()
        self.there, self.back = [], []

    def forward(self, x, sigma):
        x = Rows.apply(x, self.there, self.back)
        return torch.stack([x.square().mean((1, 2, 3)) * k for k in range(3)], dim=1)


class Same(Corruption):
    """Makes nothing worse."""

    def forward(self, denoiser):
        return nullcontext()


class Through(Guidance):
    """A user's energy of the clean image, differentiated through the denoiser so many times."""

    needs_graph = True

    def __init__(self, times=1):
        super().__init__()
        self.times = times

    def forward(self, step):
        energy = step.denoised.square().mean((1, 2, 3))
        return -0.1 * sum(step.gradient(energy) for _ in range(self.times))


class World:
    """The networks of a test, new for each."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        mixture = Mixture(torch.randn(3, *latent.LATENTS, generator=generator))
        self.net, self.guide, self.judge = Net(mixture), Net(mixture), Judge(mixture)
        self.image_judge, self.codec = ImageJudge(), latent.codec()


def guided(world, **arguments):
    return Scaled(ClassifierGuidance(world.judge, **arguments), scale=0.5)


def free(scale=0.5):
    return Scaled(ClassifierFree(), scale=scale)


def auto(world, weight=1.5):
    return Scaled(Autoguidance(world.guide), weight=weight)


def decoded(world, chunk=None):
    classifier = Decoded(world.image_judge, world.codec)
    return Scaled(ClassifierGuidance(classifier, view=AtDenoised(), chunk=chunk), scale=0.5)


def cost(net=1, reference=0, net_back=0, classifier=0, classifier_back=0, decoder=0):
    return {
        "denoiser_evaluations": net,
        "reference_evaluations": reference,
        "denoiser_backward": net_back,
        "classifier_forward": classifier,
        "classifier_backward": classifier_back,
        "decoder_calls": decoder,
    }


GRADIENT = {"classifier": 1, "classifier_back": 1}

# Name, terms, and the cost of each evaluation of the sampler: (b,) rows are one.
METHODS = [
    ("unguided", lambda w: [], cost()),
    ("classifier", lambda w: [guided(w)], cost(**GRADIENT)),
    ("classifier, one row at a time", lambda w: [guided(w, chunk=1)], cost(**GRADIENT)),
    ("classifier, scale 0", lambda w: [Scaled(guided(w), scale=0.0)], cost()),
    ("EluCD", lambda w: [guided(w, view=AtDenoised())], cost(**GRADIENT)),
    ("EluCD, EDM", lambda w: [guided(w, view=AtNormalizedState())], cost(**GRADIENT)),
    ("EluCD, DiT", lambda w: [decoded(w)], cost(**GRADIENT, decoder=1)),
    ("EluCD, DiT, in chunks", lambda w: [decoded(w, chunk=2)], cost(**GRADIENT, decoder=1)),
    (
        "through the denoiser",
        lambda w: [guided(w, view=ThroughDenoiser())],
        cost(**GRADIENT, net_back=1),
    ),
    ("energy", lambda w: [Through()], cost(net_back=1)),
    ("energy, differentiated twice", lambda w: [Through(2)], cost(net_back=2)),
    ("classifier-free", lambda w: [free()], cost(2)),
    ("classifier-free, scale 0", lambda w: [free(0.0)], cost()),
    ("classifier-free twice", lambda w: [free(), free(0.2)], cost(2)),
    ("autoguidance", lambda w: [auto(w)], cost(1, reference=1)),
    ("autoguidance, weight 1", lambda w: [auto(w, 1.0)], cost()),
    ("dropout guide", lambda w: [Scaled(Autoguidance(corruption=Same()), scale=0.5)], cost(2)),
    (
        "the network itself in a wrapper",
        lambda w: [Scaled(Reference(Unconditional(w.net, 3)), scale=0.5)],
        cost(2),
    ),
    ("free and classifier", lambda w: [free(), guided(w)], cost(2, **GRADIENT)),
    ("free and guide", lambda w: [free(), auto(w)], cost(2, reference=1)),
    ("free, EluCD and DiT", lambda w: [free(), decoded(w)], cost(2, **GRADIENT, decoder=1)),
    (
        "two views of one classifier",
        lambda w: [guided(w), guided(w, view=AtDenoised())],
        cost(classifier=2, classifier_back=2),
    ),
    (
        "energy and classifier",
        lambda w: [Through(), guided(w, view=AtDenoised())],
        cost(**GRADIENT, net_back=1),
    ),
]

# Name, terms, sampler, and the cost of an image where not each evaluation costs the same.
WITHIN = {"sigma_min": 0.9, "sigma_max": 4.0}  # at 4, 2 and 1; for Heun twice each
STEPPED = {"first": 1, "last": 2}
HALF = Heun(GRID, guides_corrector=False)
BACK_AND_FORTH = DDIM(GRID, repeats=(3, 1, 1, 1, 2))
PARTS = [
    ("free within", lambda w: [Within(free(), **WITHIN)], "heun", cost(9 + 6)),
    ("free within", lambda w: [Within(free(), **WITHIN)], "ddim", cost(5 + 3)),
    ("free in steps", lambda w: [WithinSteps(free(), **STEPPED)], "heun", cost(9 + 4)),
    ("free in steps", lambda w: [WithinSteps(free(), **STEPPED)], "ancestral", cost(5 + 2)),
    ("guide within", lambda w: [Within(auto(w), **WITHIN)], "heun", cost(9, reference=6)),
    (
        "classifier within",
        lambda w: [Within(guided(w), **WITHIN)],
        "ancestral",
        cost(5, classifier=3, classifier_back=3),
    ),
    (
        "energy in steps",
        lambda w: [WithinSteps(Through(), **STEPPED)],
        "heun",
        cost(9, net_back=4),
    ),
    (
        "three intervals",
        lambda w: [
            Within(free(), sigma_min=3.0),
            Within(guided(w), sigma_max=1.5),
            Within(decoded(w), sigma_min=1.5, sigma_max=3.0),
        ],
        "ddim",
        cost(5 + 2, classifier=2 + 1, classifier_back=2 + 1, decoder=1),
    ),
    ("free, unguided correctors", lambda w: [free()], HALF, cost(9 + 5)),
    (
        "classifier, unguided correctors",
        lambda w: [guided(w)],
        HALF,
        cost(9, classifier=5, classifier_back=5),
    ),
    ("free, repeated steps", lambda w: [free()], BACK_AND_FORTH, cost(2 * 8)),
]


def check(world, terms, sampler, expected):
    """Runs a sampler; what was counted is expected, and what the networks saw."""
    terms = torch.nn.ModuleDict({f"term{k}": term for k, term in enumerate(terms)})
    generator, evaluated = torch.Generator().manual_seed(1), Evaluated()

    def randn_like(x):
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    x = sampler.start(randn_like(torch.zeros(IMAGES, *latent.LATENTS)), world.net)
    with counted(world.net, terms, evaluated):
        images = sampler(world.net, dict(terms), x, torch.arange(IMAGES), randn_like)
    assert images.isfinite().all()
    found = {name: rows / IMAGES for name, rows in asdict(evaluated).items()}
    assert {name: found[name] for name in expected} == expected
    assert sum(world.net.there) == evaluated.denoiser_evaluations
    assert sum(world.guide.there) == evaluated.reference_evaluations
    assert sum(world.net.back) == evaluated.denoiser_backward
    judges = world.judge, world.image_judge
    assert sum(sum(judge.there) for judge in judges) == evaluated.classifier_forward
    assert sum(sum(judge.back) for judge in judges) == evaluated.classifier_backward


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("name", "terms", "each"), METHODS, ids=[row[0] for row in METHODS])
def test_each_evaluation(name, terms, each, sampler):
    world, (sampler, evaluations) = World(), SAMPLERS[sampler]
    expected = {name: evaluations * rows for name, rows in each.items()}
    check(world, terms(world), sampler, expected)


@pytest.mark.parametrize(
    ("name", "terms", "sampler", "expected"),
    PARTS,
    ids=[f"{row[0]}-{index}" for index, row in enumerate(PARTS)],
)
def test_parts_of_a_run(name, terms, sampler, expected):
    world = World()
    sampler = SAMPLERS[sampler][0] if isinstance(sampler, str) else sampler
    check(world, terms(world), sampler, expected)
