"""Gradients that remember: recorded sequences, constant ones, and what a sampler hands them."""

import math

import pytest
import torch
from golden_files import load, tolerance
from jsonargparse import ArgumentParser
from oracles import ExactClassifier, ExactDenoiser, ListedGrid, no_noise, noisy, tilted
from torch.testing import assert_close

from robustguide.guidance import (
    EMA,
    Adam,
    ClassifierFree,
    ClassifierGuidance,
    Guidance,
    Guided,
    InPlaceAdam,
    InPlaceEMA,
    Matched,
    Scaled,
    Stabilized,
    Stabilizer,
    Within,
)
from robustguide.interfaces import Place
from robustguide.noise import expand, vp_scale
from robustguide.samplers import DDIM, Heun

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def answers(stabilizer, gradients):
    """Of a sequence that is fed in order."""
    history, seen = (), []
    for gradient in gradients:
        answer, history = stabilizer(gradient, history)
        seen.append(answer)
    return torch.stack(seen)


REPLAYS = {
    "ema0.9": EMA(0.9),
    "ema0.99": EMA(0.99),
    "ema0.9_bias": InPlaceEMA(0.9),
    "ema0.9_bias.textbook_for_contrast": EMA(0.9, corrected=True),
    "adam_default": Adam(),
    "adam_bias": InPlaceAdam(),
    "adam_0.5_0.9": Adam(0.5, 0.9, 1e-8),
}


@pytest.mark.parametrize("case", REPLAYS)
def test_recorded_gradients(case):
    """Of the published code, on a sequence with a zero, a peak and an empty column."""
    description, recorded = load("gradient_stabilizers")
    got = answers(REPLAYS[case], recorded["in.gradients"])
    assert_close(got, recorded[f"out.{case}"], **tolerance(description, case))


def test_every_recorded_stabiliser_is_replayed():
    description, _ = load("gradient_stabilizers")
    assert {case["case"] for case in description["cases"]} <= set(REPLAYS)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.99])
def test_the_mean_of_a_constant_gradient(decay):
    gradient = torch.tensor([[-2.0, 0.0, 1e-6, 3.0]], dtype=torch.float64)
    steps = torch.arange(1, 41, dtype=torch.float64).reshape(-1, 1, 1)
    plain = answers(EMA(decay), [gradient] * 40)
    assert_close(plain, gradient * (1 - decay**steps), **EXACT)
    corrected = answers(EMA(decay, corrected=True), [gradient] * 40)
    assert_close(corrected, gradient.expand(40, -1, -1), **EXACT)


def test_a_mean_without_a_past_is_the_gradient():
    gradients = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(0))
    for corrected in (False, True):
        assert torch.equal(answers(EMA(0.0, corrected), gradients), gradients)


def test_gradients_that_change_their_sign_cancel():
    """+g, -g, ...: the mean tends to g (1 - b) / (1 + b) in size, Adam's ratio to as much."""
    gradient = torch.tensor([[2.0, -5.0]], dtype=torch.float64)
    gradients = [sign * gradient for sign in [1.0, -1.0] * 150]
    assert_close(answers(EMA(0.8), gradients)[-1], -gradient * 0.2 / 1.8, **EXACT)
    ratio = answers(Adam(0.8, 0.9, eps=1e-14), gradients)[-1]
    assert_close(ratio, -gradient.sign() * 0.2 / 1.8, **EXACT)


PRINTED = {1: 3.15, 2: 4.24, 3: 4.94, 4: 5.43, 5: 5.79, 12: 6.56, 50: 4.50, 100: 3.24, 1000: 1.26}


def test_adam_without_correction_amplifies_the_first_steps():
    got = answers(Adam(), [torch.ones(1, dtype=torch.float64)] * 1000).flatten()
    for step, printed in PRINTED.items():
        assert got[step - 1].item() == pytest.approx(printed, abs=5.1e-3), step
    assert got.argmax() == 11
    b_1, b_2, k = 0.9, 0.999, torch.arange(1, 1001, dtype=torch.float64)
    assert_close(got, (1 - b_1**k) / ((1 - b_2**k).sqrt() + 1e-4), **EXACT)


def test_corrected_adam_answers_a_constant_gradient_by_its_sign():
    gradient = torch.tensor([-2.0, 0.0, 1e-3, 700.0], dtype=torch.float64)
    got = answers(Adam(corrected=True), [gradient] * 30)
    assert_close(got, (gradient / (gradient.abs() + 1e-4)).expand(30, -1), **EXACT)
    fine = answers(Adam(eps=1e-14, corrected=True), [gradient] * 30)
    assert_close(fine, gradient.sign().expand(30, -1), **EXACT)


def test_adam_does_not_know_the_size_of_a_gradient():
    gradients = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)).double()
    adam = Adam(eps=1e-14)
    assert_close(answers(adam, 1e3 * gradients), answers(adam, gradients), **EXACT)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: EMA(1.0), r"decay is the share of the past .* in \[0, 1\), got 1\.0"),
        (lambda: EMA(-0.1), "decay"),
        (lambda: EMA(math.nan), "decay"),
        (lambda: InPlaceEMA(1.5), "decay"),
        (lambda: Adam(beta_1=1.0), "beta_1"),
        (lambda: Adam(beta_2=-1.0), "beta_2"),
        (lambda: Adam(eps=0.0), r"eps keeps .* positive number; got 0\.0"),
        (lambda: Adam(eps=math.nan), "eps"),
        (lambda: InPlaceAdam(eps=math.inf), "eps"),
    ],
)
def test_numbers_that_cannot_be(build, said):
    with pytest.raises(ValueError, match=said):
        build()


@pytest.mark.parametrize(
    "reference",
    [ClassifierFree(), Scaled(ClassifierFree(), 2.0), Within(ClassifierFree(), 0.1, 2.0)],
)
def test_a_reference_term_has_no_gradient(reference):
    with pytest.raises(ValueError, match=r"Stabilized changes a gradient, and .* score term"):
        Stabilized(reference, EMA())


class Recorder(Stabilizer):
    """Answers with the gradient, and keeps what it was handed; its history is all of them."""

    def __init__(self):
        self.handed = []

    def __call__(self, gradient, history=()):
        self.handed.append((gradient, len(history)))
        return gradient, (*history, len(history))


class Slope(Guidance):
    """A given score at x, always the same, on a graph of its own."""

    def __init__(self, score):
        super().__init__()
        self.score = torch.nn.Parameter(score)

    def forward(self, step):
        return expand(step.sigma**2, step.x) * self.score


def displacement(term, x, sigma, y, place=None):
    return Guided(ExactDenoiser(tilted()), {"term": term}).split(x, sigma, y, place)[1]


def test_it_acts_on_the_gradient_at_x_t():
    """x = x_t sqrt(1 + sigma^2), so that the gradient there is longer by that factor."""
    x, sigma, y = noisy(tilted(), [0.05, 1.0, 20.0, 150.0])
    recorder, score = Recorder(), torch.randn(4, 2, 2, 1, dtype=torch.float64)
    got = displacement(Stabilized(Slope(score), recorder), x, sigma, y)
    ((gradient, _),) = recorder.handed
    assert_close(gradient, score * expand(vp_scale(sigma), score), **EXACT)
    assert not gradient.requires_grad
    assert_close(got, expand(sigma**2, score) * score, **EXACT)
    by_autograd = x.div(expand(vp_scale(sigma), x)).requires_grad_()
    log_p = ExactClassifier(tilted())(by_autograd * expand(vp_scale(sigma), x), sigma)
    (want,) = torch.autograd.grad(log_p.log_softmax(-1).gather(-1, y[:, None]).sum(), by_autograd)
    term = Stabilized(ClassifierGuidance(ExactClassifier(tilted())), recorder)
    displacement(term, x, sigma, y)
    assert_close(recorder.handed[-1][0], want, **EXACT)


def test_a_mean_without_a_past_is_the_term_itself():
    x, sigma, y = noisy(tilted(), [0.05, 1.0, 20.0, 150.0])
    term = ClassifierGuidance(ExactClassifier(tilted()))
    got = displacement(Stabilized(term, EMA(0.0)), x, sigma, y)
    assert_close(got, displacement(term, x, sigma, y), **EXACT)


def test_at_noise_level_zero_nothing_moves():
    x, sigma, y = noisy(tilted(), [0.0, 0.0])
    for stabilizer in (EMA(), Adam(corrected=True)):
        term = Stabilized(ClassifierGuidance(ExactClassifier(tilted())), stabilizer)
        assert not displacement(term, x, sigma, y).any()


GRID = ListedGrid((8.0, 4.0, 2.0, 1.0, 0.5, 0.0))


def run(sampler, terms, seed=1):
    mixture = tilted()
    x, _, y = noisy(mixture, [8.0] * 3, seed=seed)
    return sampler(ExactDenoiser(mixture), terms, x, y, no_noise)


def handed(sampler, wrap=lambda term: term, **terms):
    """Lengths of the history at every evaluation of a run."""
    recorder = Recorder()
    term = Stabilized(ClassifierGuidance(ExactClassifier(tilted())), recorder)
    run(sampler, {"term": wrap(term)} | terms)
    return [length for _, length in recorder.handed]


def test_a_corrector_looks_and_leaves_nothing():
    assert handed(DDIM(GRID)) == [0, 1, 2, 3, 4]
    assert handed(Heun(GRID)) == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert handed(DDIM(GRID)) == [0, 1, 2, 3, 4]


def test_the_corrector_s_answer_blends_its_own_gradient():
    x, sigma, y = noisy(tilted(), [1.0])
    score = torch.ones(1, 2, 2, 1, dtype=torch.float64)
    slope, places = Slope(score), [Place(0, 2, 1.0), Place(0, 2, 1.0, corrector=True)]
    guided = Guided(ExactDenoiser(tilted()), {"term": Stabilized(slope, EMA(0.9))})
    got = []
    for place, value in zip([*places, Place(1, 2, 1.0)], [1.0, 5.0, 1.0], strict=True):
        slope.score.data = torch.full_like(score, value)
        got.append(guided.split(x, sigma, y, place)[1].flatten()[0].item())
    want = [0.1, 0.9 * 0.1 + 0.1 * 5, 0.9 * 0.1 + 0.1]
    assert got == pytest.approx(want, rel=1e-12)


def test_an_interval_does_not_lose_the_history():
    def outside(term):
        return Within(term, 0.7, 3.0)

    assert handed(DDIM(GRID), outside) == [0, 1]
    recorder = Recorder()
    inner = Within(ClassifierGuidance(ExactClassifier(tilted())), 0.7, 3.0)
    run(DDIM(GRID), {"term": Stabilized(inner, recorder)})
    assert [length for _, length in recorder.handed] == [0, 1]
    off_and_on = Guided(ExactDenoiser(tilted()), {"term": Stabilized(inner, recorder)})
    x, sigma, y = noisy(tilted(), [1.0])
    for level in (1.0, 9.0, 9.0, 1.0):
        off_and_on.split(x, sigma, y, Place(0, 4, level))
    assert [length for _, length in recorder.handed] == [0, 1, 0, 1]


@pytest.mark.parametrize("stabilizer", [EMA(0.9), Adam(corrected=True)])
def test_two_batches_share_nothing(stabilizer):
    """The same term again, after another batch of another size."""
    term = Scaled(Stabilized(ClassifierGuidance(ExactClassifier(tilted())), stabilizer), 0.3)
    first = run(Heun(GRID), {"term": term})
    mixture = tilted()
    x, _, y = noisy(mixture, [8.0] * 5, seed=9)
    Heun(GRID)(ExactDenoiser(mixture), {"term": term}, x, y, no_noise)
    assert torch.equal(run(Heun(GRID), {"term": term}), first)
    assert not torch.equal(run(Heun(GRID), {"term": term}, seed=2), first)


def test_two_of_one_kind_in_one_term_have_a_memory_each():
    inner = Recorder()
    outer = Recorder()
    term = ClassifierGuidance(ExactClassifier(tilted()))
    run(DDIM(GRID), {"term": Stabilized(Stabilized(term, inner), outer)})
    for recorder in (inner, outer):
        assert [length for _, length in recorder.handed] == [0, 1, 2, 3, 4]


def test_a_repeated_step_counts_every_time():
    recorder = Recorder()
    term = Stabilized(ClassifierGuidance(ExactClassifier(tilted())), recorder)
    mixture = tilted()
    x, _, y = noisy(mixture, [8.0] * 3)
    sampler = DDIM(GRID, repeats=2)
    sampler(ExactDenoiser(mixture), {"term": term}, x, y, torch.randn_like)
    assert [length for _, length in recorder.handed] == list(range(10))


def test_it_goes_where_score_terms_go():
    term = Stabilized(ClassifierGuidance(ExactClassifier(tilted())), EMA())
    assert Matched(term, ClassifierFree()).moves_denoised
    assert not term.moves_denoised and len(term.differentiated()) == 1


def test_its_configuration():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--stabilizer", type=Stabilizer)
    for written, want in [
        ({"class_path": "robustguide.guidance.EMA", "init_args": {"decay": 0.8}}, EMA(0.8)),
        ({"class_path": "robustguide.guidance.Adam", "init_args": {"eps": 1e-8}}, Adam(eps=1e-8)),
        ({"class_path": "robustguide.guidance.InPlaceAdam"}, InPlaceAdam()),
    ]:
        parsed = parser.parse_object({"stabilizer": written})
        assert parser.instantiate(parsed).stabilizer == want
