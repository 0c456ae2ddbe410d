"""Rescaled logits: temperatures of the noise level, on both roads, in guidance and in files."""

import math

import numpy as np
import pytest
import torch
from checkpoint_examples import CLASSIFIERS, NAMES, assert_same, shape_of, spec
from latent import codec_spec
from oracles import ExactClassifier, ExactDenoiser, noisy, plane, tilted
from scipy.interpolate import CubicSpline
from torch import nn
from torch.testing import assert_close

from robustguide.checkpoints import build, export, load_classifier
from robustguide.classifiers import (
    BandTemperature,
    Calibrated,
    Decoded,
    Relabelled,
    Resized,
    SmoothTemperature,
    Temperature,
    VectorScaling,
    class_names,
)
from robustguide.codecs import PixelCodec
from robustguide.guidance import (
    AtDenoised,
    AtState,
    ClassifierGuidance,
    FullSum,
    Guided,
    RawLogit,
    check_gradients,
)
from robustguide.interfaces import Classifier
from robustguide.metrics import band_of
from robustguide.modules.cost import Evaluated, counted
from robustguide.noise import expand, vp_scale

EDGES, KNOTS = [0.1, 0.7, 3.0], [0.02, 0.1, 0.5, 1.0, 3.0, 40.0]
SIGMAS = [0.05, 0.3, 1.0, 5.0, 50.0]
SCALINGS = {
    "temperature": lambda: Temperature(2.5),
    "band": lambda: BandTemperature(EDGES, [0.5, 1.5, 3.0, 7.0]),
    "smooth": lambda: SmoothTemperature(KNOTS, [0.4, 2.0, 1.1, 3.0, 0.9, 6.0]),
}
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def vector(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def logits(rows=6, k=4, seed=0):
    return torch.randn(rows, k, generator=torch.Generator().manual_seed(seed)) * 3


def spline(knots, values):
    """log T in log-SNR, by scipy."""
    snr = -2 * np.log(np.array(knots[::-1], dtype=float))
    curve = CubicSpline(snr, np.log(values[::-1]), bc_type="natural")
    return lambda sigma: np.exp(curve(np.clip(-2 * np.log(sigma), snr[0], snr[-1])))


@pytest.mark.parametrize("k", [2, 1000])
@pytest.mark.parametrize("name", [*SCALINGS, "vector"])
def test_logits_stay_as_they_are_at_the_start(name, k):
    scaling = {
        "temperature": Temperature(),
        "band": BandTemperature(EDGES),
        "smooth": SmoothTemperature(KNOTS),
        "vector": VectorScaling(k),
    }[name]
    given = logits(5, k)
    assert torch.equal(scaling(given, torch.tensor([0.0, 0.1, 1.0, 7.0, 100.0])), given)
    assert scaling.num_classes == (k if name == "vector" else None)
    assert all(parameter.requires_grad for parameter in scaling.parameters())


def test_one_temperature_divides():
    scaling, sigma = Temperature(2.0), torch.tensor([0.0, 0.1, 1.0, 5.0, 9.0, math.inf])
    assert_close(scaling(logits(), sigma), logits() / 2, rtol=1e-6, atol=0)
    assert scaling.temperature(sigma).shape == (6,)
    assert [tuple(p.shape) for p in scaling.parameters()] == [(1,)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bands_are_those_of_the_metrics(dtype):
    """A level equal to an edge belongs below it, in either type."""
    values = [0.5, 1.5, 3.0, 7.0]
    sigma = vector([0.0, 0.01, 0.1, 0.10001, 0.7, 0.70001, 3.0, 3.0001, math.inf], dtype)
    got = BandTemperature(EDGES, values).temperature(sigma)
    assert band_of(sigma, EDGES).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert_close(got, vector(values, torch.float32)[band_of(sigma, EDGES)])


@pytest.mark.parametrize(
    ("knots", "values"),
    [
        (KNOTS, [0.4, 2.0, 1.1, 3.0, 0.9, 6.0]),
        ([0.5, 0.6], [3.0, 0.2]),
        ([1e-3, 1.0, 1e3], [1.0, 50.0, 0.5]),
    ],
)
def test_the_smooth_temperature_is_the_natural_cubic_spline(knots, values):
    """Against scipy, between the knots, at them and beyond both ends."""
    sigma = np.exp(np.linspace(math.log(knots[0]) - 1, math.log(knots[-1]) + 1, 101))
    scaling = SmoothTemperature(knots, values)
    got = scaling.temperature(torch.tensor(sigma)).detach().numpy()
    assert np.abs(got / spline(knots, values)(sigma) - 1).max() < 2e-6
    at_knots = scaling.temperature(vector(knots, torch.float32))
    assert_close(at_knots, vector(values, torch.float32), rtol=1e-6, atol=0)
    ends = scaling.temperature(torch.tensor([0.0, knots[0] / 9, 9 * knots[-1], math.inf]))
    assert_close(ends, vector([values[0]] * 2 + [values[-1]] * 2, torch.float32))
    assert scaling.temperature(torch.tensor([math.nan])).isnan().all()


def test_a_power_of_sigma_is_reproduced():
    """log T linear in log-SNR: a spline of any knots is that line."""
    scaling = SmoothTemperature(KNOTS, [2 * knot**0.3 for knot in KNOTS])
    sigma = torch.tensor([0.03, 0.2, 0.9, 2.5, 30.0])
    assert_close(scaling.temperature(sigma), 2 * sigma**0.3, rtol=2e-6, atol=0)


def test_every_knot_is_trained_by_the_levels_around_it():
    """T is positive whatever the parameters, and a common factor of all values is one of T."""
    scaling, sigma = SCALINGS["smooth"](), torch.tensor([0.05, 0.3, 2.0])
    before = scaling.temperature(sigma)
    shares = torch.autograd.functional.jacobian(
        lambda logs: torch.func.functional_call(Log(scaling), {"scaling.logs": logs}, sigma),
        scaling.logs.detach(),
    )
    assert_close(shares.sum(1), torch.ones(3), rtol=1e-5, atol=0)
    with torch.no_grad():
        scaling.logs.add_(math.log(3))
        assert_close(scaling.temperature(sigma), 3 * before)
        scaling.logs.sub_(20)
        assert (scaling.temperature(sigma) > 0).all()


class Log(nn.Module):
    """log T as a call, for autograd."""

    def __init__(self, scaling):
        super().__init__()
        self.scaling = scaling

    def forward(self, sigma):
        return self.scaling.temperature(sigma).log()


def test_vector_scaling():
    scaling = VectorScaling(3)
    with torch.no_grad():
        scaling.factors.copy_(torch.tensor([2.0, 0.5, -1.0]))
        scaling.shifts.copy_(torch.tensor([0.0, 1.0, 3.0]))
    got = scaling(torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1))
    assert got.tolist() == [[2.0, 2.0, 0.0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SmoothTemperature([1.0]), "knots are noise levels, at least 2.*got \\[1.0\\]"),
        (lambda: SmoothTemperature([0.0, 1.0]), "positive, finite and increasing"),
        (lambda: SmoothTemperature([1.0, 1.0]), "increasing"),
        (lambda: SmoothTemperature([1.0, math.nan]), "finite"),
        (lambda: SmoothTemperature([1.0, math.inf]), "finite"),
        (lambda: SmoothTemperature([1.0, 2.0], [1.0]), "each of the 2 knots, got 1"),
        (lambda: SmoothTemperature([1.0, 2.0], [1.0, 0.0]), r"positive and finite, got \[1.0, 0"),
        (lambda: BandTemperature([]), "edges are noise levels, at least 1"),
        (lambda: BandTemperature([2.0, 1.0]), "increasing"),
        (lambda: BandTemperature([1.0], [1.0]), "each of the 2 bands between its edges, got 1"),
        (lambda: BandTemperature([1.0], [1.0, math.inf]), "positive and finite"),
        (lambda: Temperature(-1.0), "positive and finite"),
        (lambda: Temperature(math.nan), "positive and finite"),
        (lambda: VectorScaling(0), "at least one class"),
        (
            lambda: Calibrated(ExactClassifier(plane()), VectorScaling(4)),
            "VectorScaling scales 4 classes, the classifier has 3",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Answering(Classifier):
    """Answers with a fixed row in a type of its own."""

    shape, num_classes = (1, 1, 2), 3

    def __init__(self, dtype):
        super().__init__()
        self.row = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=dtype))

    def forward(self, x, sigma):
        return self.row.expand(len(x), 3)


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("name", SCALINGS)
def test_logits_are_scaled_in_float32_at_least(name, given, answer):
    """Also under autocast, whose matrix products have 8 bits."""
    classifier = Answering(given)
    scaling = SCALINGS[name]()
    x, sigma = torch.zeros(5, 1, 1, 2), torch.tensor(SIGMAS)
    with torch.autocast("cpu", torch.bfloat16):
        got = Calibrated(classifier, scaling)(x, sigma)
    want = classifier(x, sigma).to(answer) / scaling.temperature(sigma)[:, None]
    assert got.dtype == answer
    assert_close(got, want.to(answer), rtol=1e-6, atol=0)


def test_nothing_is_frozen_and_null_is_one_temperature():
    calibrated = Calibrated(Answering(torch.float32))
    assert isinstance(calibrated.scaling, Temperature)
    assert [name for name, p in calibrated.named_parameters() if p.requires_grad] == [
        "classifier.row",
        "scaling.logs",
    ]


def double(name):
    return SCALINGS[name]().double()


@pytest.mark.parametrize("mixture", [plane(), tilted()])
@pytest.mark.parametrize("name", SCALINGS)
def test_the_score_of_a_calibrated_classifier_at_the_state(mixture, name):
    """In closed form: grad log softmax(f / T)_y = (s_y - sum_k q_k s_k) / T."""
    x, sigma, y = noisy(mixture, SIGMAS)
    scaling = double(name)
    classifier = Calibrated(ExactClassifier(mixture), scaling)
    guided = Guided(ExactDenoiser(mixture), {"c": ClassifierGuidance(classifier)})
    with torch.no_grad():
        temperature = scaling.temperature(sigma)
    assert len(set(temperature.tolist())) == {"temperature": 1, "band": 4, "smooth": 5}[name]
    q = (mixture.log_joint(x, sigma) / temperature[:, None]).softmax(-1)
    scores = mixture.scores(x, sigma)
    own = scores[torch.arange(len(y)), y]
    score = (own - torch.einsum("bk,bk...->b...", q, scores)) / expand(temperature, x)
    assert_close(guided.split(x, sigma, y)[1], expand(sigma**2, x) * score, **EXACT)


@pytest.mark.parametrize("name", SCALINGS)
def test_the_score_at_the_predicted_clean_image_has_the_temperature_of_its_level(name):
    """The classifier reads it as clean; the temperature is that of the level it came up at."""
    mixture = tilted()
    x, sigma, y = noisy(mixture, SIGMAS)
    scaling, denoiser = double(name), ExactDenoiser(mixture)
    classifier = Calibrated(ExactClassifier(mixture), scaling)
    term = ClassifierGuidance(classifier, view=AtDenoised())
    with torch.no_grad():
        temperature = scaling.temperature(sigma)
    clean, zeros = denoiser(x, sigma, y), torch.zeros_like(sigma)
    q = (mixture.log_joint(clean, zeros) / temperature[:, None]).softmax(-1)
    scores = mixture.scores(clean, zeros)
    own = scores[torch.arange(len(y)), y]
    score = (own - torch.einsum("bk,bk...->b...", q, scores)) / expand(temperature, x)
    want = expand(sigma**2 / vp_scale(sigma), x) * score
    assert_close(Guided(denoiser, {"c": term}).split(x, sigma, y)[1], want, **EXACT)


@pytest.mark.parametrize("view", [AtState(), AtDenoised()])
@pytest.mark.parametrize("name", SCALINGS)
def test_the_gradient_of_a_logit_is_divided_by_the_temperature(name, view):
    mixture = tilted()
    x, sigma, y = noisy(mixture, SIGMAS)
    scaling, exact = double(name), ExactClassifier(mixture)
    plain, calibrated = (
        Guided(ExactDenoiser(mixture), {"c": ClassifierGuidance(c, None, RawLogit(), view)})
        for c in (exact, Calibrated(exact, scaling))
    )
    with torch.no_grad():
        temperature = expand(scaling.temperature(sigma), x)
    want = plain.split(x, sigma, y)[1] / temperature
    assert_close(calibrated.split(x, sigma, y)[1], want, **EXACT)


@pytest.mark.parametrize("view", [AtState(), AtDenoised()])
def test_guidance_without_gradients_reads_the_same_probabilities(view):
    """Differences of denoised images, each weighted by the calibrated probability."""
    mixture = tilted()
    x, sigma, y = noisy(mixture, SIGMAS)
    scaling, denoiser, exact = double("smooth"), ExactDenoiser(mixture), ExactClassifier(mixture)
    term = FullSum(Calibrated(exact, scaling), view)
    shown, level = (x, sigma)
    if view.clean:
        shown, level = denoiser(x, sigma, y), torch.zeros_like(sigma)
    with torch.no_grad():
        raw = mixture.log_joint(shown, level) / scaling.temperature(sigma)[:, None]
    p, want = raw.softmax(-1), torch.zeros_like(x)
    for k in range(len(mixture)):
        other = denoiser(x, sigma, torch.full_like(y, k))
        want += expand(p[:, k], x) * (denoiser(x, sigma, y) - other)
    moved = Guided(denoiser, {"c": term})(x, sigma, y) - denoiser(x, sigma, y)
    assert_close(moved, want, **EXACT)


@pytest.mark.parametrize("method", ["forward", "as_clean"])
@pytest.mark.parametrize("name", [*SCALINGS, "vector"])
def test_rows_do_not_see_one_another(name, method):
    mixture = tilted()
    x, sigma, _ = noisy(mixture, SIGMAS)
    scaling = VectorScaling(4) if name == "vector" else double(name)
    ask = getattr(Calibrated(ExactClassifier(mixture), scaling), method)
    together = ask(x, sigma)
    for row in range(len(x)):
        one = slice(row, row + 1)
        assert_close(ask(x[one], sigma[one]), together[one], rtol=1e-12, atol=1e-14)


def test_a_call_is_counted_once_and_has_a_gradient():
    mixture = tilted()
    x, sigma, y = noisy(mixture, SIGMAS)
    denoiser = ExactDenoiser(mixture)
    for view in (AtState(), AtDenoised()):
        exact = ExactClassifier(mixture)
        term = ClassifierGuidance(Calibrated(exact, SCALINGS["band"]()), view=view)
        check_gradients(denoiser, {"c": term})
        evaluated, exact.calls = Evaluated(), []
        with counted(denoiser, term, evaluated):
            Guided(denoiser, {"c": term})(x, sigma, y)
        rows = evaluated.classifier_forward, evaluated.classifier_backward
        assert rows == (len(SIGMAS), len(SIGMAS)) and exact.calls == [len(SIGMAS)]


def test_the_true_level_is_told_on_either_side_of_a_codec():
    """Decoded around or inside: the same temperatures, also of a predicted clean latent."""
    mixture = tilted(shape=(1, 2, 2))
    x, sigma, _ = noisy(mixture, SIGMAS)
    exact, scaling = ExactClassifier(mixture), double("smooth")
    exact.shape = (1, 2, 2)
    codec = PixelCodec(1)
    with torch.no_grad():
        temperature = scaling.temperature(sigma)[:, None]
        for made in (
            Decoded(Calibrated(exact, scaling), codec),
            Calibrated(Decoded(exact, codec), scaling),
        ):
            assert_close(made(x, sigma), mixture.log_joint(x, sigma) / temperature, **EXACT)
            clean = mixture.log_joint(x, torch.zeros_like(sigma)) / temperature
            assert_close(made.as_clean(x, sigma), clean, **EXACT)


def test_names_of_classes_pass_through_and_others_stay_unknown():
    named = Answering(torch.float32)
    named.class_names = ("cat", "dog", "owl")
    wrapped = Resized(Calibrated(named), 2)
    assert class_names(wrapped) == ("cat", "dog", "owl")
    assert ClassifierGuidance(wrapped).class_names == ("cat", "dog", "owl")
    assert class_names(Relabelled(Calibrated(named), [2, 0])) == ()
    named.class_names = ("0", "1", "2")
    assert class_names(Calibrated(named)) == ()


def scaled(name, k=5):
    return {
        "temperature": spec("robustguide.classifiers.Temperature", value=2.5),
        "band": spec("robustguide.classifiers.BandTemperature", edges=EDGES),
        "smooth": spec("robustguide.classifiers.SmoothTemperature", knots=KNOTS),
        "vector": spec("robustguide.classifiers.VectorScaling", num_classes=k),
    }[name]


def calibrated(inner, name="smooth", **scaling):
    scaling = scaled(name, **scaling)
    return spec("robustguide.classifiers.Calibrated", classifier=inner, scaling=scaling)


def wrapped(kind, inner, **arguments):
    return spec(f"robustguide.classifiers.{kind}", classifier=inner, **arguments)


RELU = spec("robustguide.nets.MLP", shape=[1, 8, 8], num_logits=5, width=8, activation="relu")
SHELF = spec("robustguide.classifiers.OffTheShelf", net=RELU, num_classes=5, mean=[0.5], std=[0.5])
EXPORTED = {
    **{name: calibrated(CLASSIFIERS["timed"], name) for name in ("temperature", "band")},
    **{f"{name}_shelf": calibrated(SHELF, name) for name in ("smooth", "vector")},
    "of_smooth": calibrated(wrapped("Smooth", SHELF, beta=4.0), "band"),
    "in_smooth": wrapped("Smooth", calibrated(SHELF), beta=4.0),
    "of_resized": calibrated(wrapped("Resized", CLASSIFIERS["sigma"]), "smooth"),
    "in_resized": wrapped("Resized", calibrated(CLASSIFIERS["sigma"], "vector")),
    "of_relabelled": calibrated(
        wrapped("Relabelled", CLASSIFIERS["timed"], labels=[4, 2, 0, 1, 3]), "vector"
    ),
    "in_relabelled": wrapped(
        "Relabelled", calibrated(CLASSIFIERS["timed"], "vector"), labels=[4, 2, 0, 1, 3]
    ),
    "of_decoded": calibrated(wrapped("Decoded", SHELF, codec=codec_spec())),
    "in_decoded": wrapped("Decoded", calibrated(SHELF), codec=codec_spec()),
}


def fitted(specification):
    """None of its parameters has the value that it is built with."""
    module = build(specification).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(torch.rand(value.shape, generator=generator), alpha=0.1)
    return module


@pytest.mark.parametrize("name", EXPORTED)
def test_a_file_gives_the_same_logits(name, tmp_path):
    """And the values that the scaling was built with do not count."""
    described = EXPORTED[name]
    module = fitted(described)
    shape = [2, 4, 4] if "decoded" in name else shape_of(described)
    path = tmp_path / "classifier.safetensors"
    export(module, path, described, class_names=NAMES, shape=shape, weights="raw")
    found = load_classifier(str(path))
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor(SIGMAS)
    for method in ("forward", "as_clean"):
        want = getattr(module, method)(x, sigma)
        assert_same(found, module, x, sigma, method=method)
        unfitted = getattr(build(described).eval(), method)(x, sigma)
        assert not torch.allclose(unfitted, want, rtol=1e-3)
    assert class_names(found) == tuple(NAMES) and found.reads(shape)
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_a_file_of_another_scaling_is_refused(tmp_path):
    described = calibrated(CLASSIFIERS["timed"], "band")
    other = calibrated(CLASSIFIERS["timed"], "smooth")
    with pytest.raises(ValueError, match="does not describe the module"):
        export(
            fitted(other), tmp_path / "a", described, class_names=NAMES, shape=[1, 8, 8],
            weights="raw",
        )  # fmt: skip
