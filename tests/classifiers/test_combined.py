"""Several classifiers as one, each at its own noise levels."""

import math

import pytest
import torch
from checkpoint_examples import CLASSIFIERS, NAMES, assert_same, spec, trained
from oracles import ExactClassifier, ExactDenoiser, noisy, plane, tilted
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from robustguide.checkpoints import (
    UntrustedError,
    build,
    export,
    load_classifier,
    portable,
    read_metadata,
)
from robustguide.classifiers import Calibrated, Combined, Resized, Temperature, class_names
from robustguide.guidance import (
    AtDenoised,
    AtState,
    ClassifierGuidance,
    Confused,
    GradientFree,
    Guided,
    check_gradients,
)
from robustguide.interfaces import Classifier
from robustguide.modules.cost import Evaluated, counted

LEVELS = [0.25, 1.0, 4.0, 16.0]  # exact in float32, and so are their geometric means
EXACT = {"rtol": 1e-12, "atol": 1e-12}


class Told(Classifier):
    """Logits with its own number, and the levels of the rows that it was shown."""

    def __init__(self, number, shape=(1, 1, 2), num_classes=3, names=(), dtype=torch.float32):
        super().__init__()
        self.number, self.shape, self.num_classes = float(number), shape, num_classes
        self.class_names, self.dtype = names, dtype
        self.shown = []

    def forward(self, x, sigma):
        self.shown.append(sigma.tolist())
        return torch.full((len(x), self.num_classes), self.number, dtype=self.dtype)

    def as_clean(self, images, sigma):
        return self(images, sigma) + 100


class Waits(TorchDispatchMode):
    """Counts how often Python asked for values of tensors."""

    def __init__(self, patch):
        super().__init__()
        self.count, tolist = 0, torch.Tensor.tolist

        def counting(tensor):
            self.count += 1
            return tolist(tensor)

        patch.setattr(torch.Tensor, "tolist", counting)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def images(count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 1, 1, 2, generator=generator, dtype=dtype)


def factored(mixture, factors=(1.0, 3.0, 0.4)):
    """The exact classifier with logits times a number, one each, in float64."""
    made = [Calibrated(ExactClassifier(mixture), Temperature().double()) for _ in factors]
    with torch.no_grad():
        for one, factor in zip(made, factors, strict=True):
            one.scaling.logs.fill_(-math.log(factor))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_nearest_level_in_log_sigma_chooses(dtype):
    """Meeting points 0.5, 2 and 8 belong to the lower level; beyond the ends is the end."""
    combined = Combined([Told(0), Told(1), Told(2)], LEVELS, [1, 0, 2, 1])
    sigma = [0.0, 1e-9, 0.25, 0.5, 0.5001, 1.0, 2.0, 2.0001, 4.0, 8.0, 8.001, 16.0, 1e9, math.inf]
    want = [1, 1, 1, 1, 0, 0, 0, 2, 2, 2, 1, 1, 1, 1]
    sigma = torch.tensor(sigma, dtype=dtype)
    assert combined(images(14), sigma)[:, 0].tolist() == want
    clean = combined.as_clean(images(14), sigma)
    assert clean[:, 2].tolist() == [100 + number for number in want]


def test_each_is_shown_its_own_rows_alone():
    parts = Told(0), Told(1), Told(2)
    combined = Combined(parts, LEVELS, [1, 0, 2, 1])
    combined(images(5), torch.tensor([4.0, 1.0, 5.0, 1.5, 3.0]))
    assert [part.shown for part in parts] == [[[1.0, 1.5]], [], [[4.0, 5.0, 3.0]]]
    for part in parts:
        part.shown.clear()
    combined(images(3), torch.full((3,), 16.0))
    assert [part.shown for part in parts] == [[], [[16.0] * 3], []]


@pytest.mark.parametrize("blend", ["hard", "linear"])
def test_the_host_waits_once_a_call_and_not_for_a_single_choice(blend, monkeypatch):
    mixture, sigma = tilted(), torch.tensor([0.25, 3.0, 16.0])
    x = noisy(mixture, [0.25, 3.0, 16.0])[0]
    one = Combined(factored(mixture), LEVELS, [2, 2, 2, 2], blend)
    several = Combined(factored(mixture), LEVELS, [1, 0, 2, 1], blend)
    with Waits(monkeypatch) as waits:
        one(x, sigma)
        assert waits.count == 0
        several(x, sigma)
        assert waits.count == 1
        several(x, torch.full((3,), 0.1))
        assert waits.count == 2


@pytest.mark.parametrize("method", ["forward", "as_clean"])
@pytest.mark.parametrize("blend", ["hard", "linear"])
def test_rows_do_not_see_one_another(blend, method):
    """Whatever the order and company of the rows, and so do gradients."""
    mixture, sigmas = tilted(), [0.1, 0.6, 1.0, 2.0, 3.0, 9.0, 50.0]
    x, sigma, _ = noisy(mixture, sigmas)
    ask = getattr(Combined(factored(mixture), LEVELS, [1, 0, 2, 1], blend), method)

    def both(rows):
        own = x[rows].clone().requires_grad_()
        logits = ask(own, sigma[rows])
        value = logits.log_softmax(-1)[:, 0].sum()
        return logits.detach(), torch.autograd.grad(value, own)[0]

    together = both(torch.arange(7))
    order = torch.tensor([6, 2, 0, 5, 1, 4, 3])
    for got, want in zip(both(order), together, strict=True):
        assert_close(got, want[order], **EXACT)
    for row in range(7):
        for got, want in zip(both(torch.tensor([row])), together, strict=True):
            assert_close(got[0], want[row], **EXACT)


@pytest.mark.parametrize("view", [AtState(), AtDenoised()])
def test_guidance_is_that_of_the_classifier_of_the_level(view):
    """Hard, at any mixture of levels: displacement by displacement."""
    mixture, sigmas = tilted(), [0.1, 0.6, 1.0, 3.0, 9.0, 50.0]
    x, sigma, y = noisy(mixture, sigmas)
    parts, denoiser = factored(mixture), ExactDenoiser(mixture)

    def displaced(classifier):
        term = {"c": ClassifierGuidance(classifier, view=view)}
        return Guided(denoiser, term).split(x, sigma, y)[1]

    check_gradients(denoiser, {"c": ClassifierGuidance(Combined(parts, LEVELS, [1, 0, 2, 1]))})
    each = torch.stack([displaced(part) for part in parts])
    chosen = torch.tensor([1, 0, 0, 2, 1, 1])  # 0.6 lies above the meeting point 0.5, 9 above 8
    got = displaced(Combined(parts, LEVELS, [1, 0, 2, 1]))
    assert_close(got, each[chosen, torch.arange(6)], **EXACT)


def test_guidance_without_gradients_takes_a_combined_classifier():
    mixture = tilted()
    x, sigma, y = noisy(mixture, [0.1, 3.0, 50.0])
    parts, denoiser = factored(mixture), ExactDenoiser(mixture)

    def moved(classifier):
        term = GradientFree(Confused(classifier, view=AtState()))
        return Guided(denoiser, {"c": term})(x, sigma, y)

    each = torch.stack([moved(part) for part in parts])
    got = moved(Combined(parts, LEVELS, [1, 0, 2, 1]))
    assert_close(got, each[torch.tensor([1, 2, 1]), torch.arange(3)], **EXACT)


@pytest.mark.parametrize("method", ["forward", "as_clean"])
def test_between_levels_probabilities_are_mixed_linearly_in_log_sigma(method):
    mixture = tilted()
    fractions = [0.25, 0.5, 0.9]
    sigmas = [0.25 * 4**f for f in fractions] + [4 * 4**f for f in fractions]
    x, sigma, _ = noisy(mixture, sigmas)
    parts = factored(mixture)
    combined = Combined(parts, LEVELS, [1, 0, 2, 1], "linear")
    p = [getattr(part, method)(x, sigma).softmax(-1) for part in parts]
    f = torch.tensor(fractions, dtype=torch.float64)[:, None]
    want = torch.cat([(1 - f) * p[1][:3] + f * p[0][:3], (1 - f) * p[2][3:] + f * p[1][3:]])
    got = getattr(combined, method)(x, sigma)
    assert_close(got, want.log(), rtol=1e-9, atol=1e-9)
    assert_close(got.logsumexp(-1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)


def test_at_a_level_itself_the_chosen_answers_alone():
    """Exactly, normalised, and no second classifier is asked; nor between two like choices."""
    parts = [Told(number, dtype=torch.float64) for number in range(3)]
    combined = Combined(parts, [*LEVELS, 64.0], [1, 0, 2, 1, 1], "linear")
    for sigma, chosen in zip(
        [0.0, 0.25, 1.0, 4.0, 16.0, 30.0, 64.0, 99.0], "11021111", strict=True
    ):
        got = combined(images(2), torch.full((2,), sigma))
        assert_close(got.exp(), torch.full((2, 3), 1 / 3, dtype=torch.float64))
        asked = [number for number, part in enumerate(parts) if part.shown]
        assert asked == [int(chosen)], sigma
        for part in parts:
            part.shown.clear()
    combined(images(2), torch.tensor([2.0, 4.0]))
    assert [part.shown for part in parts] == [[[2.0]], [], [[2.0, 4.0]]]


def test_levels_that_float32_rounds_are_levels_all_the_same():
    parts = Told(0), Told(1)
    levels = [0.05, 0.1, 0.2, 0.7, 1.3]
    for blend in ("hard", "linear"):
        combined = Combined(parts, levels, [0, 1, 0, 1, 0], blend)
        for sigma, chosen in zip(levels, [0, 1, 0, 1, 0], strict=True):
            combined(images(1), torch.tensor([sigma]))
            assert [len(part.shown) for part in parts] == [1 - chosen, chosen]
            for part in parts:
                part.shown.clear()


@pytest.mark.parametrize("blend", ["hard", "linear"])
def test_answers_are_in_float32_at_least(blend):
    half, double = Told(1, dtype=torch.bfloat16), Told(2, dtype=torch.float64)
    combined = Combined([half, double], [1.0, 10.0], [0, 1], blend)
    assert combined(images(2), torch.tensor([0.5, 1.0])).dtype == torch.float32
    assert combined(images(2), torch.tensor([1.0, 10.0])).dtype == torch.float64
    only = Combined([half], [1.0], [0], blend)
    assert only(images(2), torch.tensor([0.5, 4.0])).dtype == torch.float32


def test_levels_and_logits_that_are_no_numbers_stay_so():
    """The other rows do not notice."""
    mixture = tilted()
    x, sigma, _ = noisy(mixture, [0.1, 1.0, 20.0])
    for blend in ("hard", "linear"):
        combined = Combined(factored(mixture), LEVELS, [1, 0, 2, 1], blend)
        want = combined(x, sigma)
        broken = torch.tensor([0.1, math.nan, 20.0], dtype=torch.float64)
        got = combined(x, broken)
        assert got[1].isnan().all()
        assert_close(got[[0, 2]], want[[0, 2]], **EXACT)


def test_a_call_is_counted_once():
    mixture = tilted()
    x, sigma, y = noisy(mixture, [0.1, 1.0, 20.0])
    term = ClassifierGuidance(Combined(factored(mixture), LEVELS, [1, 0, 2, 1], "linear"))
    denoiser, evaluated = ExactDenoiser(mixture), Evaluated()
    with counted(denoiser, term, evaluated):
        Guided(denoiser, {"c": term})(x, sigma, y)
    assert (evaluated.classifier_forward, evaluated.classifier_backward) == (3, 3)


def two(**changes):
    return [Told(0), Told(1, **changes)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((two(), [1.0, 2.0], [0]), "got 1 for 2 levels and 2 classifiers"),
        (([], [1.0], [0]), "at least one classifiers"),
        ((two(), [1.0], [2]), r"0\.\.1; got \[2\]"),
        ((two(), [1.0], [-1]), r"0\.\.1; got \[-1\]"),
        ((two(), [], []), "sigmas are noise levels, at least 1"),
        ((two(), [0.0, 1.0], [0, 1]), "positive, finite and increasing"),
        ((two(), [2.0, 1.0], [0, 1]), "increasing"),
        ((two(num_classes=4), [1.0], [0]), r"Classifiers of \[3, 4\] classes.*Relabelled"),
        ((two(shape=(1, 1, 3)), [1.0], [0]), r"different shapes, \[\(1, 1, 2\), \(1, 1, 3\)\]"),
    ],
)
def test_what_cannot_be_combined_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Combined(*arguments)


def named(*names):
    return [Told(0, names=own) for own in names]


def test_names_of_classes():
    """As far as the classifiers tell them: numbers say nothing, and other words little."""
    animals, digits = ("cat", "dog", "owl"), ("0", "1", "2")
    combined = Combined(named((), digits, animals, ("house cat", "dog", "owl")), [1.0], [1])
    assert combined.class_names == animals == class_names(Calibrated(combined))
    assert Combined(two(), [1.0], [0]).class_names == ()
    with pytest.raises(ValueError, match="class 0 of one is 'dog', and of another cat"):
        Combined(named(animals, ("dog", "cat", "owl")), [1.0], [0])
    with pytest.raises(ValueError, match="class 0 of one is 'red', and of another cat"):
        Combined(named(animals, ("red", "green", "blue")), [1.0], [0])


def test_shapes():
    """Those that all read: what resizes does, and what does not know takes any."""
    small, unknown = Told(0), Told(1, shape=None)
    large = Resized(Told(2, shape=(1, 4, 4)))
    assert Combined([unknown, unknown], [1.0], [0]).shape is None
    combined = Combined([unknown, large, small], [1.0], [0])
    assert combined.shape == (1, 1, 2)
    assert combined.reads((1, 1, 2)) and not combined.reads((1, 4, 4))
    assert combined.conditioning is None


def combination(parts, blend="hard"):
    return spec(
        "robustguide.classifiers.Combined",
        classifiers=parts,
        sigmas=LEVELS,
        choice=[1, 0, 1, 0],
        blend=blend,
    )


def loaded(path):
    return spec("robustguide.checkpoints.load_classifier", path=str(path))


@pytest.mark.parametrize("blend", ["hard", "linear"])
def test_files_are_combined_into_one(blend, tmp_path):
    """A list of files, one of them calibrated: one file, which needs neither of them."""
    parts = [CLASSIFIERS["timed"], CLASSIFIERS["sigma"]]
    parts[1] = spec(
        "robustguide.classifiers.Calibrated",
        classifier=parts[1],
        scaling=spec("robustguide.classifiers.SmoothTemperature", knots=[0.1, 1.0, 9.0]),
    )
    said = {"class_names": NAMES, "shape": [1, 8, 8], "weights": "raw"}
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, described in zip(paths, parts, strict=True):
        export(trained(described), path, described, **said)
    described = combination([loaded(path) for path in paths], blend)
    module = Combined([load_classifier(str(path)) for path in paths], LEVELS, [1, 0, 1, 0], blend)
    assert module.class_names == tuple(NAMES)
    whole = tmp_path / "whole.safetensors"
    export(module, whole, described, **said)
    for path in paths:
        path.unlink()
    found = load_classifier(str(whole))
    x = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.0, 0.1, 0.7, 1.0, 3.0, 9.0, 80.0])
    for method in ("forward", "as_clean"):
        assert_same(found, module, x, sigma, method=method)
        assert getattr(module, method)(x, sigma).std() > 0
    assert (found.blend, found.choice, class_names(found)) == (blend, (1, 0, 1, 0), tuple(NAMES))
    assert read_metadata(whole).specification["init_args"]["classifiers"] == list(
        map(portable, parts)
    )


def test_a_foreign_class_in_the_list_is_refused():
    foreign = spec("evilnets.Classifier")
    with pytest.raises(UntrustedError, match=r"evilnets.Classifier' at 'classifiers.1'"):
        build(combination([CLASSIFIERS["timed"], foreign]))


def test_a_file_that_blends_in_another_way_is_refused():
    with pytest.raises(ValueError, match=r"Combined cannot be built from the arguments.*blend"):
        build(combination([CLASSIFIERS["timed"], CLASSIFIERS["sigma"]], "soft"))


def test_the_exact_classifier_combined_with_itself_is_itself():
    mixture = plane()
    x, sigma, _ = noisy(mixture, [0.05, 0.5, 3.0, 40.0])
    exact = ExactClassifier(mixture)
    for blend in ("hard", "linear"):
        combined = Combined([exact, ExactClassifier(mixture)], LEVELS, [0, 1, 0, 1], blend)
        got, want = combined(x, sigma), exact(x, sigma)
        assert_close(got.log_softmax(-1), want.log_softmax(-1), **EXACT)
