"""What holds for every method: sums, scales, intervals, batches, memory and samplers.

A method is a row of `METHODS`: a function of a `World`, which answers with a new term. All of it
is in float64 on a mixture where nothing is hidden, and every term counts its calls.
"""

from functools import cache

import pytest
import torch
from oracles import ExactClassifier, ExactDenoiser, ListedGrid, Mixture, noisy, tilted
from torch.testing import assert_close

from robustguide.guidance import (
    EMA,
    Adam,
    AtDenoised,
    AtNormalizedState,
    AtState,
    Autoguidance,
    Averaged,
    Channels,
    ClassifierFree,
    ClassifierGuidance,
    ClassifierLoss,
    Confused,
    Descent,
    EveryKth,
    FullSum,
    GradientFree,
    Guided,
    Matched,
    Null,
    RandomReference,
    RawLogit,
    Reference,
    Scaled,
    SineSchedule,
    Stabilized,
    Switched,
    Tempered,
    ThroughDenoiser,
    UnitNorm,
    Universal,
    Within,
    WithinSteps,
)
from robustguide.interfaces import Place
from robustguide.samplers import DDIM, Ancestral, DPMSolver2M, Heun, SeededNoise

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
GRID = ListedGrid((6.0, 1.5, 0.4, 0.0))
SAMPLERS = {
    "ddim": DDIM(GRID, state_dtype="float64"),
    "heun": Heun(GRID, state_dtype="float64"),
    "ancestral": Ancestral(GRID, clip=2.0, state_dtype="float64"),
    "dpm": DPMSolver2M(GRID, state_dtype="float64"),
}
SEEDS = [11, 5, 8, 2]


class World:
    """Networks of one test, new for each, whose calls are counted."""

    def __init__(self):
        self.mixture = tilted()
        blur = 0.5 * torch.eye(self.mixture.covariances.shape[-1])
        worse = Mixture(self.mixture.means, self.mixture.covariances + blur, self.mixture.priors)
        self.denoiser, self.weak = ExactDenoiser(self.mixture), ExactDenoiser(worse)
        self.classifier = ExactClassifier(self.mixture)

    def by_classifier(self, **arguments):
        return ClassifierGuidance(self.classifier, **arguments)

    def loss(self):
        return ClassifierLoss(self.classifier)

    @property
    def calls(self):
        """Rows that were given to anything but the guided network's own branch."""
        return self.classifier.calls + self.weak.calls


METHODS = {
    "classifier": lambda world: world.by_classifier(),
    "in chunks": lambda world: world.by_classifier(chunk=3),
    "relabelled": lambda world: world.by_classifier(labels=[2, 0, 3, 1]),
    "tempered": lambda world: world.by_classifier(objective=Tempered(1.0, 0.3)),
    "raw logit": lambda world: world.by_classifier(objective=RawLogit()),
    "at normalized state": lambda world: world.by_classifier(view=AtNormalizedState()),
    "at denoised": lambda world: world.by_classifier(view=AtDenoised()),
    "through denoiser": lambda world: world.by_classifier(view=ThroughDenoiser()),
    "classifier-free": lambda world: ClassifierFree(),
    "unconditional guide": lambda world: Reference(world.weak),
    "autoguidance": lambda world: Autoguidance(world.weak),
    "channels": lambda world: Channels(ClassifierFree(), 1),
    "within": lambda world: Within(world.by_classifier(), 0.5, 5.0),
    "within steps": lambda world: WithinSteps(ClassifierFree(), 1, 2),
    "every second": lambda world: EveryKth(world.by_classifier(), 2),
    "sine schedule": lambda world: SineSchedule(world.by_classifier(), 0.3),
    "unit norm": lambda world: UnitNorm(world.by_classifier()),
    "ema": lambda world: Stabilized(world.by_classifier(), EMA(0.9)),
    "adam": lambda world: Stabilized(world.by_classifier(), Adam(corrected=True)),
    "averaged": lambda world: Averaged(world.by_classifier(), 0.2, 4),
    "averaged at denoised": lambda world: Averaged(world.by_classifier(view=AtDenoised()), 0.2, 2),
    "averaged through": lambda world: Averaged(
        world.by_classifier(view=ThroughDenoiser()), 0.2, 2
    ),
    "ema of averaged": lambda world: Stabilized(
        Averaged(world.by_classifier(), 0.2, 2), EMA(0.5, corrected=True)
    ),
    "matched": lambda world: Matched(world.by_classifier(view=AtDenoised()), ClassifierFree()),
    "switched": lambda world: Switched(
        world.by_classifier(view=ThroughDenoiser()), world.by_classifier(), 1.5
    ),
    "universal, forward": lambda world: Universal(world.loss(), forward=0.7),
    "universal, backward": lambda world: Universal(world.loss(), backward=Descent(2, 0.1)),
    "universal": lambda world: Universal(world.loss(), 0.7, Descent(2, 0.1, bound=None)),
    "gradient-free": lambda world: GradientFree(Confused(world.classifier, threshold=1.0)),
    "gradient-free, else null": lambda world: GradientFree(
        Confused(world.classifier, threshold=0.6, margin=0.1, otherwise=Null())
    ),
    "gradient-free guide": lambda world: Autoguidance(
        world.weak, Confused(world.classifier, "entropy", AtState(), threshold=1.0)
    ),
    "random reference": lambda world: GradientFree(RandomReference()),
    "full sum": lambda world: FullSum(world.classifier),
}

every_method = pytest.mark.parametrize("method", METHODS)
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


def looked(world, terms, rows=slice(None), place=None, seeds=SEEDS):
    """What a sum of terms makes of one state, each row at a level of its own."""
    x, sigma, y = noisy(world.mixture, [0.2, 0.9, 3.0, 12.0])
    noise = SeededNoise(torch.tensor(seeds)[rows].tolist())
    guided = Guided(world.denoiser, terms, randn_like=noise)
    return guided.predict(x[rows], sigma[rows], y[rows], place).denoised


def sampled(world, terms, sampler, rows=slice(None)):
    """Images of a run."""
    rows = torch.arange(len(SEEDS))[rows]
    noise = SeededNoise(torch.tensor(SEEDS)[rows].tolist())
    x = SAMPLERS[sampler].start(noise.draw(world.mixture.shape), world.denoiser)
    return SAMPLERS[sampler](world.denoiser, terms, x, torch.tensor([0, 1, 2, 3])[rows], noise)


@cache
def unguided(sampler):
    return sampled(World(), {}, sampler)


@every_sampler
@every_method
def test_it_samples_and_an_image_does_not_know_its_batch(method, sampler):
    """Each is moved, and comes out the same in another batch, in another order."""
    world = World()
    terms = {"term": Scaled(METHODS[method](world), 0.3)}
    guided = sampled(world, terms, sampler)
    assert guided.dtype == torch.float64 and guided.isfinite().all()
    assert not guided.requires_grad
    moved = (guided - unguided(sampler)).abs().flatten(1).amax(1)
    assert (moved > 1e-6).all(), moved
    assert_close(sampled(world, terms, sampler, [3, 0]), guided[[3, 0]], **CLOSE)


OTHERS = "through denoiser", "classifier-free", "averaged", "adam"


@cache
def of_others():
    """What others make of the state: of either kind, with noise, a memory and a graph."""
    world = World()
    return looked(world, {name: METHODS[name](world) for name in OTHERS})


@every_method
def test_a_sum_does_not_depend_on_the_order(method):
    world = World()
    term = METHODS[method](world)
    terms = {name: METHODS[name](world) for name in OTHERS} | {"term": term}
    forth = looked(world, terms)
    assert_close(looked(world, dict(reversed(terms.items()))), forth, **CLOSE)
    own = looked(world, {"term": term}) - looked(world, {})
    assert_close(forth - of_others(), own, **CLOSE)


@pytest.mark.parametrize("sampler", ["heun", "ancestral"])
@pytest.mark.parametrize("moves_denoised", [False, True])
def test_neither_does_a_run(sampler, moves_denoised):
    """Of all terms of a kind at once."""
    world = World()
    built = {name: build(world) for name, build in METHODS.items()}
    terms = {n: Scaled(t, 0.02) for n, t in built.items() if t.moves_denoised == moves_denoised}
    assert len(terms) >= 6
    forth = sampled(world, terms, sampler)
    assert_close(sampled(world, dict(reversed(terms.items())), sampler), forth, **CLOSE)


def off(term):
    """Ways to switch a term off, and places where they do."""
    inside = Place(0, 1, 1.0)
    return [
        (Scaled(term, 0.0), inside),
        (Scaled(term, [0.0] * len(SEEDS)), None),
        (Scaled(term, weight=1.0), inside),
        (Within(term, 2.0), inside),
        (Within(term, 0.0, 0.5), inside),
        (WithinSteps(term, 3, 9), Place(2, 9, 1.0)),
        (Scaled(Within(term, 2.0), 3.0), inside),
        (Within(Scaled(term, 0.0)), inside),
    ]


@every_method
def test_off_is_identity_bit_for_bit_and_calls_nothing(method):
    world = World()
    plain = looked(world, {})
    for term, place in off(METHODS[method](world)):
        world.denoiser.calls.clear()
        assert torch.equal(looked(world, {"term": term}, place=place), plain)
        assert world.denoiser.calls == [len(SEEDS)] and world.calls == []


@every_sampler
def test_a_run_of_terms_that_are_off(sampler):
    world = World()
    terms = {}
    for number, (name, build) in enumerate(METHODS.items()):
        wrap = [lambda t: Scaled(t, 0.0), lambda t: Within(t, 9.0), lambda t: WithinSteps(t, 8, 9)]
        terms[name] = wrap[number % 3](build(world))
    guided = sampled(world, terms, sampler)
    asked = list(world.denoiser.calls)
    assert world.calls == []
    world.denoiser.calls.clear()
    assert torch.equal(guided, sampled(world, {}, sampler))
    assert asked == world.denoiser.calls


@every_method
def test_rows_of_one_state_do_not_mix(method):
    world = World()
    terms = {"term": METHODS[method](world)}
    together = looked(world, terms)
    assert_close(looked(world, terms, [2]), together[[2]], **CLOSE)
    assert_close(looked(world, terms, [3, 1, 0]), together[[3, 1, 0]], **CLOSE)


@every_method
def test_every_run_begins_anew(method):
    """Though the same term has seen another batch in between."""
    world = World()
    terms = {"term": Scaled(METHODS[method](world), 0.3)}
    first = sampled(world, terms, "ddim")
    sampled(world, terms, "dpm", [1])
    assert torch.equal(sampled(world, terms, "ddim"), first)


@every_method
def test_a_scale_multiplies(method):
    world = World()
    alone = looked(world, {})
    once = looked(world, {"term": METHODS[method](world)}) - alone
    scales = torch.tensor([0.0, 0.5, 1.0, 4.0], dtype=torch.float64)
    for scale, factor in [(2.5, 2.5), (scales.tolist(), scales.reshape(-1, 1, 1, 1))]:
        moved = looked(world, {"term": Scaled(METHODS[method](world), scale)}) - alone
        assert_close(moved, factor * once, **CLOSE)
    twice = {"term": METHODS[method](world), "other": Scaled(METHODS[method](world), 0.0)}
    assert_close(looked(world, twice) - alone, once, **CLOSE)


@every_method
def test_an_interval_over_everything_is_the_term_itself(method):
    world = World()
    whole = Within(METHODS[method](world))
    assert_close(looked(world, {"term": whole}), looked(world, {"term": METHODS[method](world)}))
    term = METHODS[method](world)
    assert (whole.moves_denoised, whole.needs_graph) == (term.moves_denoised, term.needs_graph)
    assert (whole.num_classes, len(whole.differentiated())) == (
        term.num_classes,
        len(term.differentiated()),
    )


@every_method
def test_the_networks_are_left_alone(method):
    """No gradient is gathered, no mode is changed, under no_grad and without."""
    world = World()
    term = METHODS[method](world)
    world.classifier.train()
    bias = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    world.classifier.register_parameter("bias", bias)
    first = looked(world, {"term": term})
    with torch.no_grad():
        assert torch.equal(looked(world, {"term": METHODS[method](world)}), first)
    assert world.classifier.training and bias.grad is None and not first.requires_grad
