"""Guidance away from the class that a classifier takes the image for."""

import math

import latent
import pytest
import torch
from oracles import (
    ExactClassifier,
    ExactDenoiser,
    ListedGrid,
    Mixture,
    no_noise,
    noisy,
    plane,
    tilted,
)
from torch.testing import assert_close

from robustguide.checkpoints import clip_classifier
from robustguide.classifiers import Decoded, Timed
from robustguide.codecs import KLCodec
from robustguide.denoisers import EDMDenoiser, EpsDenoiser, Unconditional
from robustguide.denoisers.text import Prompted
from robustguide.guidance import (
    AtDenoised,
    AtState,
    Autoguidance,
    ClassifierFree,
    ClassifierGuidance,
    Confused,
    Dropout,
    FullSum,
    GradientFree,
    Guidance,
    Guided,
    Null,
    Own,
    RandomReference,
    Reference,
    Scaled,
    ThroughDenoiser,
    Within,
)
from robustguide.interfaces import Classifier, Place
from robustguide.nets import MLP
from robustguide.noise import RhoGrid, linear_levels
from robustguide.samplers import Heun, SeededNoise

SIGMAS = [0.1, 0.7, 3.0, 20.0]
EXACT = {"rtol": 1e-10, "atol": 1e-10}
CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
    },
}


def confused(mixture, **arguments):
    """The rule with the exact posterior at the state, never sure."""
    arguments = {"view": AtState(), "threshold": 1.0} | arguments
    return Confused(ExactClassifier(mixture), **arguments)


def full_sum(mixture, **arguments):
    """The sum with the exact posterior at the state."""
    return FullSum(ExactClassifier(mixture), AtState(), **arguments)


def displacement(denoiser, term, x, sigma, y):
    guided = Guided(denoiser, {"term": term})
    return guided(x, sigma, y) - denoiser(x, sigma, y)


class Told(Classifier):
    """Answers with given probabilities, one list after the other, whatever it is shown."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = [torch.tensor(answer, dtype=torch.float64) for answer in answers]
        self.num_classes = self.answers[0].shape[-1]
        self.asked, self.had_gradients = 0, []

    def forward(self, x, sigma):
        p = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        self.had_gradients.append(torch.is_grad_enabled())
        return p.log().expand(len(x), -1)


class Asked(ExactDenoiser):
    """Lists the labels of every evaluation."""

    def __init__(self, mixture, **arguments):
        super().__init__(mixture, **arguments)
        self.labels = []

    def predict(self, x, sigma, y):
        self.labels.append(y.tolist())
        return super().predict(x, sigma, y)


@pytest.mark.parametrize("weight", ["one_minus_py", "p_ref"])
def test_two_classes_are_classifier_guidance(weight):
    mixture = tilted(classes=2)
    x, sigma, y = noisy(mixture, SIGMAS)
    score = mixture.score(x, sigma, y) - mixture.score(x, sigma, torch.full_like(y, 2))
    term = Scaled(GradientFree(confused(mixture, weight=weight)), 2.5)
    got = displacement(ExactDenoiser(mixture), term, x, sigma, y)
    assert_close(got, 2.5 * sigma.reshape(-1, 1, 1, 1) ** 2 * score, **EXACT)
    assert got.abs().amax() > 0.1


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_the_full_sum_is_classifier_guidance(classes):
    mixture = tilted(classes)
    x, sigma, y = noisy(mixture, SIGMAS)
    denoiser = ExactDenoiser(mixture)
    got = displacement(denoiser, full_sum(mixture), x, sigma, y)
    assert denoiser.calls[0] == classes * 4  # all in one batch
    assert len(denoiser.calls) == 2  # the other is the unguided one of this test
    gradient = ClassifierGuidance(ExactClassifier(mixture))
    want = displacement(ExactDenoiser(mixture), gradient, x, sigma, y)
    assert_close(got, want, **EXACT)


def test_the_full_sum_goes_along_in_a_sampler_and_with_other_branches():
    """Its labels are made once and known again at every step, of every run."""
    mixture = tilted()
    denoiser = ExactDenoiser(mixture)
    terms = {"sum": full_sum(mixture), "free": ClassifierFree()}
    sampler = Heun(ListedGrid((2.0, 1.0, 0.0)))
    for rows in (3, 2):
        x, _, y = noisy(mixture, [2.0] * rows)
        sampler(denoiser, terms, x, y, no_noise)
    assert denoiser.calls == [5 * 3] * 3 + [5 * 2] * 3


@pytest.mark.parametrize("weight", ["one_minus_py", "p_ref"])
def test_one_term_is_off_by_the_mass_that_it_drops(weight):
    """At most that mass times the largest contrast to what takes the place of what is dropped."""
    mixture = tilted(6)
    x, sigma, y = noisy(mixture, [0.5, 1.0, 2.0, 5.0, 0.8, 1.4])
    term = GradientFree(confused(mixture, weight=weight))
    one = displacement(ExactDenoiser(mixture), term, x, sigma, y)
    full = displacement(ExactDenoiser(mixture), full_sum(mixture), x, sigma, y)
    p = mixture.log_joint(x, sigma).softmax(-1)
    r = p.scatter(1, y[:, None], -1).argmax(1)
    denoised = x[:, None] + sigma.reshape(-1, 1, 1, 1, 1) ** 2 * mixture.scores(x, sigma)
    for row in range(6):
        others = [c for c in range(6) if c not in (y[row], r[row])]
        instead = denoised[row, r[row] if weight == "one_minus_py" else y[row]]
        contrast = (denoised[row, others] - instead).flatten(1).norm(dim=1).max()
        error = (full - one)[row].norm()
        assert 1e-6 < error <= p[row, others].sum() * contrast


@pytest.mark.parametrize(("sigma", "want"), [(1.0, 1.17381373), (1e-4, 2.64609653)])
def test_golden_row(sigma, want):
    """Three clusters, x = (1, 0.5), y = 1: the gradient that one term gives; r is class 0."""
    x, y = torch.tensor([[1.0, 0.5]], dtype=torch.float64).reshape(1, 1, 1, 2), torch.tensor([1])
    level = torch.tensor([sigma], dtype=torch.float64)
    term = GradientFree(confused(plane()))
    got = displacement(ExactDenoiser(plane()), term, x, level, y) / sigma**2
    want = torch.tensor([want, 0.0], dtype=torch.float64)
    assert_close(got.flatten(), want, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("weight", "want"),
    [
        ("one_minus_py", 0.7),
        ("p_ref", 0.5),
        ("entropy", -sum(p * math.log(p) for p in (0.3, 0.5, 0.2)) / math.log(3)),
        ("const", 1.0),
    ],
)
def test_weights(weight, want):
    mixture = plane()
    x, sigma, y = noisy(mixture, [1.0])
    y, denoiser = torch.zeros_like(y), ExactDenoiser(plane())
    contrast = denoiser(x, sigma, y) - denoiser(x, sigma, y + 1)
    for arguments, factor in (({}, want), ({"strength": 3.0, "max_weight": 1.7}, 3 * want)):
        rule = Confused(Told([0.3, 0.5, 0.2]), weight, **arguments)
        got = displacement(denoiser, GradientFree(rule), x, sigma, y)
        assert_close(got, min(factor, arguments.get("max_weight", 9)) * contrast, **EXACT)


def test_sure_rows_are_left_as_they_are_and_not_evaluated_again():
    """Sure is p_y = 0.96 of the most probable class; p_y = 0.94 is not, nor another class."""
    mixture = plane()
    x, sigma, y = noisy(mixture, [1.0, 1.0, 1.0, 1.0])
    p = [[0.96, 0.03, 0.01], [0.04, 0.94, 0.02], [0.01, 0.97, 0.02], [0.005, 0.015, 0.98]]
    y = torch.tensor([0, 1, 2, 2])
    denoiser = Asked(mixture)
    got = Guided(denoiser, {"term": GradientFree(Confused(Told(p)))})(x, sigma, y)
    assert denoiser.labels == [[0, 1, 2, 2], [0, 1]]  # rows 1 and 2, away from 0 and 1
    alone = ExactDenoiser(mixture)(x, sigma, y)
    assert torch.equal(got[[0, 3]], alone[[0, 3]])
    want = 0.06 * (alone[1] - ExactDenoiser(mixture)(x, sigma, y * 0)[1])
    assert_close(got[1] - alone[1], want, **EXACT)


@pytest.mark.parametrize("threshold", [0.95, 1.0])
def test_nothing_is_evaluated_where_no_row_needs_it(threshold):
    """A weight of 0 needs no reference, however high the threshold."""
    mixture = plane()
    x, sigma, _ = noisy(mixture, [1.0, 2.0])
    y, denoiser = torch.zeros(2, dtype=torch.long), ExactDenoiser(mixture)
    rule = Confused(Told([1.0, 0.0, 0.0]), threshold=threshold)
    got = Guided(denoiser, {"term": GradientFree(rule)})(x, sigma, y)
    assert denoiser.calls == [2]
    assert torch.equal(got, ExactDenoiser(mixture)(x, sigma, y))


def test_a_threshold_below_a_half_still_wants_the_label_to_be_the_first():
    mixture = plane()
    x, sigma, _ = noisy(mixture, [1.0, 1.0])
    denoiser, y = Asked(mixture), torch.tensor([0, 1])
    rule = Confused(Told([0.4, 0.45, 0.15]), threshold=0.3)
    Guided(denoiser, {"term": GradientFree(rule)})(x, sigma, y)
    assert denoiser.labels[1] == [1]


def chosen(rule, mixture, x, sigma, y):
    """The labels that a rule asks the denoiser for."""
    denoiser = Asked(mixture)
    Guided(denoiser, {"term": Reference(labels=rule)})(x, sigma, y)
    return torch.tensor(denoiser.labels[1])


def test_the_reference_is_the_most_probable_other_class():
    mixture = tilted(6)
    x, sigma, y = noisy(mixture, [0.3, 1.0, 3.0, 20.0, 80.0] * 20)
    r = chosen(confused(mixture), mixture, x, sigma, y)
    p = mixture.log_joint(x, sigma)
    assert (r != y).all()
    p[torch.arange(100), y] = -math.inf
    assert torch.equal(p.gather(1, r[:, None])[:, 0], p.amax(1))
    assert len(set(r.tolist())) == 6


def test_of_equals_the_first_is_the_reference():
    x, sigma, y = noisy(plane(), [1.0] * 3)
    rule = Confused(Told([0.2, 0.4, 0.4]), threshold=1.0)
    assert chosen(rule, plane(), x, sigma, y).tolist() == [1, 2, 1]


def test_the_reference_is_told_apart_where_probabilities_are_no_longer():
    """Both others are less than the smallest number, but one is less than the other."""

    class Certain(Told):
        def forward(self, x, sigma):
            return torch.tensor([0.0, -9000.0, -8000.0]).expand(len(x), -1)

    rule = Confused(Certain([1, 0, 0]), "const", threshold=1.0)
    x, sigma, y = noisy(plane(), [1.0])
    assert chosen(rule, plane(), x, sigma, y * 0).tolist() == [2]


def test_a_permutation_of_the_classes_permutes_the_reference():
    mixture, order = tilted(5), torch.tensor([3, 0, 4, 1, 2])
    turned = Mixture(mixture.means[order], mixture.covariances[order], mixture.priors[order])
    x, sigma, y = noisy(mixture, SIGMAS * 5)
    place = order.argsort()  # where each class went
    r = chosen(confused(mixture), mixture, x, sigma, y)
    assert torch.equal(chosen(confused(turned), turned, x, sigma, place[y]), place[r])
    one, other = (
        displacement(ExactDenoiser(m), GradientFree(confused(m)), x, sigma, labels)
        for m, labels in ((mixture, y), (turned, place[y]))
    )
    assert_close(one, other, **EXACT)


def kept(margin, places, *answers):
    """References of one image of class 0, step by step."""
    denoiser = Asked(plane())
    rule = Confused(Told(*answers), "const", threshold=1.0, margin=margin)
    guided = Guided(denoiser, {"term": GradientFree(rule)})
    x, sigma, y = noisy(plane(), [1.0])
    for place in places:
        guided.predict(x, sigma, y, place)
    return [labels[0] for labels in denoiser.labels[1::2]]


ANSWERS = [[0.4, 0.35, 0.25], [0.4, 0.25, 0.35], [0.4, 0.15, 0.45], [0.4, 0.35, 0.25]]


def test_a_reference_stays_until_another_class_beats_it():
    places = [Place(index, 4) for index in range(4)]
    assert kept(0.0, places, *ANSWERS) == [1, 2, 2, 1]
    assert kept(0.2, places, *ANSWERS) == [1, 1, 2, 2]
    assert kept(0.5, places, *ANSWERS) == [1, 1, 1, 1]


def test_a_corrector_keeps_the_reference_of_its_step():
    places = [Place(0, 4), Place(0, 4, corrector=True), Place(1, 4), Place(1, 4, corrector=True)]
    answers = [ANSWERS[0], ANSWERS[2], ANSWERS[1], ANSWERS[2]]
    assert kept(0.05, places, *answers) == [1, 1, 2, 2]
    assert kept(0.2, places, *answers) == [1, 1, 1, 1]


def test_what_is_kept_ends_with_the_run():
    denoiser, rule = Asked(plane()), Confused(Told(*ANSWERS[:2]), threshold=1.0, margin=0.5)
    x, _, y = noisy(plane(), [1.0])
    for _ in range(2):
        Heun(ListedGrid((1.0, 0.0)))(denoiser, {"term": GradientFree(rule)}, x, y, no_noise)
    assert denoiser.labels == [[0], [1], [0], [2]]


def worse(mixture):
    blur = torch.eye(mixture.covariances.shape[-1])
    return Mixture(mixture.means, mixture.covariances + blur, mixture.priors)


P = [[0.98, 0.01, 0.01], [0.3, 0.5, 0.2], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]  # rows 0 and 1 sure
TRUE = torch.tensor([0, 1, 2, 0])
CONFUSED = {1: 0.5, 2: 0.7, 3: 0.9}  # a of the rows


def test_classifier_free_guidance_takes_the_reference_where_the_image_is_confused():
    mixture = plane()
    x, sigma, _ = noisy(mixture, [0.5, 1.0, 2.0, 1.0])
    denoiser = Asked(mixture)
    term = Scaled(ClassifierFree(Confused(Told(P), otherwise=Null())), 2.0)
    got = Guided(denoiser, {"free": term})(x, sigma, TRUE)
    asked = torch.tensor([3, 0, 1, 2])
    assert denoiser.labels == [TRUE.tolist(), asked.tolist()]  # two evaluations
    own, other = denoiser(x, sigma, TRUE), denoiser(x, sigma, asked)
    weight = torch.tensor([1.0, *(1 + a for a in CONFUSED.values())], dtype=torch.float64)
    assert_close(got - own, 2 * weight.reshape(-1, 1, 1, 1) * (own - other), **EXACT)


def test_autoguidance_asks_the_worse_network_for_the_reference():
    mixture = plane()
    x, sigma, _ = noisy(mixture, [0.5, 1.0, 2.0, 1.0])
    main, bad = Asked(mixture, has_null=False), Asked(worse(mixture), has_null=False)
    rule = Confused(Told(P), otherwise=Own())
    got = Guided(main, {"auto": Scaled(Autoguidance(bad, rule), weight=2.5)})(x, sigma, TRUE)
    asked = torch.tensor([0, 0, 1, 2])
    assert (main.labels, bad.labels) == ([TRUE.tolist()], [asked.tolist()])  # no more than its own
    own, other = main(x, sigma, TRUE), bad(x, sigma, asked)
    weight = torch.tensor([1.0, *(1 + a for a in CONFUSED.values())], dtype=torch.float64)
    assert_close(got - own, 1.5 * weight.reshape(-1, 1, 1, 1) * (own - other), **EXACT)


def test_autoguidance_of_the_confused_rows_alone():
    mixture = plane()
    x, sigma, _ = noisy(mixture, [0.5, 1.0, 2.0, 1.0])
    main, bad = Asked(mixture), Asked(worse(mixture))
    got = Guided(main, {"auto": Autoguidance(bad, Confused(Told(P)))})(x, sigma, TRUE)
    assert bad.labels == [[0, 1, 2]]
    assert torch.equal(got[0], ExactDenoiser(mixture)(x, sigma, TRUE)[0])
    want = 0.9 * (main(x, sigma, TRUE)[3] - bad(x, sigma, TRUE * 0 + 2)[3])
    assert_close(got[3] - main(x, sigma, TRUE)[3], want, **EXACT)


def test_a_strength_of_0_changes_the_label_alone():
    mixture = plane()
    x, sigma, _ = noisy(mixture, [0.5, 1.0, 2.0, 1.0])
    main, bad = ExactDenoiser(mixture), ExactDenoiser(worse(mixture))
    rule = Confused(Told(P), strength=0.0, otherwise=Own())
    got = displacement(main, Autoguidance(bad, rule), x, sigma, TRUE)
    assert_close(got, main(x, sigma, TRUE) - bad(x, sigma, torch.tensor([0, 0, 1, 2])), **EXACT)


@pytest.mark.parametrize(("otherwise", "is_asked"), [(Null(), True), (Own(), False)])
def test_the_other_rule_says_whether_the_null_label_is_needed(otherwise, is_asked):
    rule = Confused(Told(P), otherwise=otherwise)
    denoiser = ExactDenoiser(plane(), has_null=False)
    if is_asked:
        with pytest.raises(ValueError, match="null label"):
            Guided(denoiser, {"free": ClassifierFree(rule)})
    else:
        Guided(denoiser, {"free": ClassifierFree(rule)})


@pytest.mark.parametrize("otherwise", [None, Null()])
def test_an_image_does_not_depend_on_its_batch_mates(otherwise):
    mixture = tilted()
    x, sigma, y = noisy(mixture, [0.1, 0.4, 1.5, 5.0, 0.2, 0.6])
    term = ClassifierFree(confused(mixture, threshold=0.7, otherwise=otherwise))
    guided = Guided(ExactDenoiser(mixture), {"term": term})
    together = guided(x, sigma, y)
    moved = (together - ExactDenoiser(mixture)(x, sigma, y)).flatten(1).norm(dim=1)
    assert (moved == 0).any() != (otherwise is not None) and (moved > 0.01).any()
    for row in range(6):
        part = slice(row, row + 1)
        assert_close(guided(x[part], sigma[part], y[part]), together[part], **EXACT)


def test_at_the_denoised_image_unless_told_otherwise():
    """The predicted clean image, told to be clean, of the label itself."""
    mixture = tilted()
    x, sigma, y = noisy(mixture, SIGMAS)
    clean = ExactDenoiser(mixture)(x, sigma, y)
    want = ExactClassifier(mixture)(clean, torch.zeros_like(sigma)).softmax(-1)
    for rule in (confused(mixture, view=None), confused(mixture, view=AtDenoised())):
        guided = Guided(ExactDenoiser(mixture), {"term": GradientFree(rule)})
        seen = []
        rule.posterior.classifier.register_forward_hook(lambda *call, to=seen: to.append(call[2]))
        guided(x, sigma, y)
        assert_close(seen[0].softmax(-1), want)


def test_a_classifier_of_other_classes():
    """Five classes, of which the denoiser has three in another order; the others do not count."""
    mixture, labels = tilted(5), [4, 0, 2]
    part = Mixture(mixture.means[labels], mixture.covariances[labels], mixture.priors[labels])
    x, sigma, y = noisy(part, SIGMAS)
    pairs = [
        (GradientFree(confused(mixture, labels=labels)), GradientFree(confused(part))),
        (full_sum(mixture, labels=labels), full_sum(part)),
    ]
    for term, same in pairs:
        got = displacement(ExactDenoiser(part), term, x, sigma, y)
        assert_close(got, displacement(ExactDenoiser(part), same, x, sigma, y), **EXACT)
    with pytest.raises(ValueError, match="labels of 5 classes"):
        Guided(ExactDenoiser(part), {"term": GradientFree(confused(mixture))})


def test_a_temperature_takes_back_an_overconfident_classifier():
    class Over(ExactClassifier):
        def forward(self, x, sigma):
            return 3 * super().forward(x, sigma)

    mixture = tilted()
    x, sigma, y = noisy(mixture, SIGMAS)
    exact = displacement(ExactDenoiser(mixture), full_sum(mixture), x, sigma, y)
    for temperature, agrees in ((3.0, True), (1.0, False)):
        term = FullSum(Over(mixture), AtState(), temperature=temperature)
        got = displacement(ExactDenoiser(mixture), term, x, sigma, y)
        assert torch.allclose(got, exact, **EXACT) == agrees
        rule = Confused(Over(mixture), view=AtState(), threshold=1.0, temperature=temperature)
        same = displacement(ExactDenoiser(mixture), GradientFree(rule), x, sigma, y)
        want = GradientFree(confused(mixture))
        want = displacement(ExactDenoiser(mixture), want, x, sigma, y)
        assert torch.allclose(same, want, **EXACT) == agrees


class Through(Guidance):
    """Needs a graph, so that gradients are on for all terms of a step."""

    needs_graph = True

    def forward(self, step):
        return step.gradient(step.denoised.square().sum())


def test_no_gradient_is_taken():
    """Even beside a term that takes one; so a classifier may do what it likes."""
    classifier = Told(P)
    rule = Confused(classifier)
    term = Scaled(Within(GradientFree(rule), 0.1, 10.0), 1.0)
    assert term.classifiers() == (classifier,) and term.differentiated() == ()
    assert FullSum(classifier).classifiers() == (classifier,)
    assert FullSum(classifier).differentiated() == ()
    x, sigma, _ = noisy(plane(), [1.0] * 4)
    terms = {"free": term, "sum": FullSum(classifier), "through": Through()}
    Guided(ExactDenoiser(plane()), terms)(x, sigma, TRUE)
    assert classifier.had_gradients == [False, False]


def test_outside_its_interval_the_classifier_is_not_asked():
    classifier, denoiser = Told(P), ExactDenoiser(plane())
    term = Scaled(Within(GradientFree(Confused(classifier)), 0.5, 2.0), 1.0)
    x, _, _ = noisy(plane(), [1.0] * 4)
    Heun(ListedGrid((4.0, 1.0, 0.2, 0.0)))(denoiser, {"term": term}, x, TRUE, no_noise)
    assert classifier.asked == 2  # a corrector and a predictor at 1
    assert denoiser.calls == [4, 4, 3, 4, 3, 4, 4]


def test_a_random_reference_is_any_other_class_alike():
    mixture = plane()
    x, sigma, y = noisy(mixture, [1.0] * 6000)
    torch.manual_seed(0)
    r = chosen(RandomReference(), mixture, x, sigma, y)
    counts = torch.stack(
        [(r[y == label] == other).sum() for label in range(3) for other in range(3)]
    )
    counts = counts.reshape(3, 3)
    assert (counts.diag() == 0).all() and (counts.sum(1) == 2000).all()
    off = counts[~torch.eye(3, dtype=torch.bool)]
    assert (off - 1000).abs().max() < 5 * math.sqrt(500)


def test_a_random_reference_is_never_no_class_at_all():
    """Noise so far out that its rank is rounded to 0 or 1."""
    denoiser = Asked(plane())
    x, sigma, y = noisy(plane(), [1.0] * 6, dtype=torch.float32)
    ends = torch.tensor([-40.0] * 3 + [40.0] * 3)
    guided = Guided(denoiser, {"term": GradientFree(RandomReference())}, randn_like=ends.to)
    guided(x, sigma, y)
    assert denoiser.labels[1] == [1, 0, 0, 2, 2, 1]


def test_a_random_reference_belongs_to_the_image_and_the_step():
    mixture = tilted(9)
    sampler, term = Heun(ListedGrid((4.0, 2.0, 1.0, 0.0))), GradientFree(RandomReference())

    def run(seeds):
        denoiser, noise = Asked(mixture), SeededNoise(seeds)
        x, y = 4 * noise.draw(mixture.shape), torch.tensor(seeds) % 9
        return sampler(denoiser, {"term": term}, x, y, noise), denoiser.labels[1::2]

    together, labels = run([0, 1, 2, 3, 4, 5])
    alone, its_labels = run([4])
    assert_close(together[4:5], alone, rtol=1e-5, atol=1e-5)
    assert [each[4] for each in labels] == [each[0] for each in its_labels]
    assert labels[0] == labels[1] and labels[2] == labels[3]  # predictor and corrector
    assert labels[0] != labels[2] != labels[4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(strength=-1.0), "strength must be .* at least 0, got -1.0"),
        (dict(strength=0.0), "strength of 0 moves nothing"),
        (dict(max_weight=0.0), "max_weight must be positive, got 0.0"),
        (dict(threshold=1.5), r"threshold must be .*\[0, 1\], got 1.5"),
        (dict(margin=-0.1), r"margin must be .*\[0, 1\), got -0.1"),
        (dict(temperature=0.0), "temperature divides logits: positive, got 0.0"),
        (dict(labels=[0, 0]), "none twice"),
        (dict(labels=[0, 3]), "0..2"),
        (dict(labels=[1]), "at least two classes"),
        (dict(view=ThroughDenoiser()), "take AtDenoised"),
    ],
)
def test_numbers_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        Confused(Told([0.5, 0.3, 0.2]), **arguments)


@pytest.mark.parametrize(
    "term",
    [
        GradientFree(Confused(Told([0.5, 0.3, 0.2]))),
        Scaled(ClassifierFree(RandomReference()), 1.0),
        FullSum(Told([0.5, 0.3, 0.2])),
    ],
)
def test_an_unconditional_denoiser_has_no_classes_to_compare(term):
    denoiser = Unconditional(ExactDenoiser(plane()))
    with pytest.raises(ValueError, match="to an unconditional denoiser all are alike"):
        Guided(denoiser, {"term": term})
    with pytest.raises(ValueError, match="all are alike"):
        Guided(ExactDenoiser(plane()), {"t": Reference(denoiser, RandomReference())})


PROMPTS = ["a photo of a cat", "a dog", "two red boats", "rain"]


def test_of_texts_the_reference_is_the_prompt_that_clip_ranks_highest_among_the_others():
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("open_clip")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=4,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    table = torch.randn(len(PROMPTS) + 1, 3, 8)
    denoiser = EpsDenoiser(Prompted(unet, table), linear_levels(), len(PROMPTS), latent.LATENTS)
    denoiser = denoiser.eval().requires_grad_(False)
    codec = KLCodec(latent.autoencoder(in_channels=3), scale=1.0).eval().requires_grad_(False)
    clip = clip_classifier(CLIP, PROMPTS, ["{}"])
    x, sigma, y = torch.randn(6, *latent.LATENTS), torch.full((6,), 0.5), torch.arange(6) % 4
    denoised = denoiser(x, sigma, y)
    logits = clip(codec.decode(denoised), torch.zeros(6))
    ranked = logits.argsort(1, descending=True).tolist()
    r = torch.tensor(
        [next(c for c in ranks if c != label) for ranks, label in zip(ranked, y, strict=True)]
    )
    rule = Confused(Decoded(clip, codec), threshold=1.0)
    got = Guided(denoiser, {"text": GradientFree(rule)})(x, sigma, y)
    a = 1 - logits.softmax(1).gather(1, y[:, None]).reshape(-1, 1, 1, 1)
    want = denoised + a * (denoised - denoiser(x, sigma, r))
    assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert (got - denoised).abs().amax() > 1e-3

    denoiser.class_names = tuple(PROMPTS[i] for i in (1, 0, 2, 3))
    with pytest.raises(ValueError, match=r"'a photo of a cat'.*`labels: \[1, 0, 2, 3\]`"):
        Guided(denoiser, {"text": GradientFree(rule)})


def test_with_a_label_for_the_sure_rows_nothing_waits_for_the_device():
    """Meta tensors have no values that the host could ask for."""
    shape, levels = (1, 4, 4), linear_levels()
    with torch.device("meta"):
        net = MLP(shape=shape, width=4, depth=1, num_classes=3, num_null_labels=1)
        classifier = Timed(MLP(shape=shape, width=4, depth=1, num_logits=3), levels, 3)
        noise, y = torch.empty(2, *shape), torch.zeros(2, dtype=torch.long)
    terms = {
        "free": ClassifierFree(Confused(classifier, "entropy", margin=0.1, otherwise=Null())),
        "random": GradientFree(RandomReference()),
        "sum": FullSum(classifier),
        "thin": Autoguidance(corruption=Dropout(0.1)),
    }
    sampler, denoiser = Heun(RhoGrid(3)), EDMDenoiser(net, 3, shape)
    x = sampler.start(noise, denoiser)
    assert sampler(denoiser, terms, x, y, torch.empty_like).is_meta
    with pytest.raises((NotImplementedError, RuntimeError)):  # without it, the host must ask
        terms = {"free": ClassifierFree(Confused(classifier))}
        sampler(denoiser, terms, x, y, torch.empty_like)
