import oracles
import pytest
import tiny
import torch
from torch.nn import functional

from robustguide.attacks import PGD
from robustguide.callbacks import (
    ReportCards,
    TrajectoryCalibration,
    calibration,
    report_card,
)
from robustguide.checkpoints import build
from robustguide.classifiers import Decoded, OffTheShelf
from robustguide.data import Images, SeedData
from robustguide.denoisers import Unconditional
from robustguide.guidance import AtDenoised, AtState, ClassifierGuidance, Scaled
from robustguide.interfaces import Classifier, Codec
from robustguide.modules import Generation, ReportCard, Reverse
from robustguide.nets import MLP
from robustguide.noise import RhoGrid
from robustguide.samplers import EulerAncestral, Heun

PRIORS = [0.5, 0.3, 0.2]
SAMPLER = Heun(grid=RhoGrid(sigma_min=0.05, sigma_max=5.0, steps=12))


@pytest.fixture
def mixture():
    """Three clusters of images of two pixels."""
    means = torch.tensor([[-0.6, 0.0], [0.6, 0.0], [0.0, 0.7]]).reshape(3, 1, 1, 2)
    return oracles.Mixture(means, 0.02 * torch.eye(2).expand(3, 2, 2), torch.tensor(PRIORS))


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes longest."""
    for module in (calibration, report_card):
        monkeypatch.setattr(module, "publish", lambda *arguments: None)


def networks(mixture):
    return oracles.ExactClassifier(mixture), oracles.ExactDenoiser(mixture)


def batch(mixture, count=30, first=0):
    x_0, y = mixture.sample(count, torch.Generator().manual_seed(3))
    return x_0, y, torch.arange(first, first + count)


def card(mixture, reverse=None, **arguments):
    classifier, denoiser = networks(mixture)
    settings = {"levels": [0.1, 0.5], "denoiser": denoiser, "clip": None, "reverse": reverse}
    return ReportCard(classifier, **settings | arguments)


def test_usual_views(mixture):
    classifier, denoiser = networks(mixture)
    alone = ReportCard(classifier, [1.0])
    assert list(alone.examined) == ["forward_x_t"] and alone.judged_by is None
    both = ReportCard(classifier, [1.0], denoiser)
    assert list(both.examined) == ["forward_x_t", "forward_denoised"]
    all_four = card(mixture, Reverse(SAMPLER))
    assert list(all_four.examined) == [
        "forward_x_t", "forward_denoised", "reverse_x_t", "reverse_denoised"
    ]  # fmt: skip
    answer = all_four.test_step(batch(mixture), 0)
    assert answer["cells"].keys() == all_four.examined.keys()
    own = card(mixture, Reverse(SAMPLER), views={"denoised": AtDenoised()})
    assert list(own.examined) == ["forward_denoised", "reverse_denoised"]


def test_the_reverse_process_is_that_of_generation(mixture):
    """The same seeds and labels; what an observer of the generation reads is read here."""
    classifier, denoiser = networks(mixture)
    module = card(mixture, Reverse(SAMPLER, watched_steps=4))
    generation = Generation(denoiser, SAMPLER, observer=classifier, watched_steps=4)
    x_0, y, index = batch(mixture, first=50)
    cells = module.test_step((x_0, y, index), 0)["cells"]
    seen = generation.test_step((index, y), 0)
    found = cells["reverse_denoised"]
    assert found["logits"].shape == (1, 4, 30, 3)
    torch.testing.assert_close(found["logits"][0], seen["logits"], rtol=1e-6, atol=1e-6)
    assert module.examined["reverse_denoised"].levels == generation.levels
    assert torch.equal(found["y"], y) and torch.equal(found["index"], index)
    # the states are those of that label's trajectory: there x_t tells more and more of it
    right = (cells["reverse_x_t"]["logits"][0].argmax(-1) == y).double().mean(-1)
    assert right[0] < 0.75 and right[-1] > 0.85


def test_gradients_and_attacks_along_the_reverse_process(mixture):
    """Of the exact classifier, the gradient at x_t is the classifier-free direction there, too."""
    module = card(mixture, Reverse(SAMPLER, watched_steps=3), attacks=[PGD(0.3, steps=2)])
    found = module.test_step(batch(mixture), 0)["cells"]["reverse_x_t"]
    assert found["attacked"].shape == (1, 3, 1, 30, 3)
    assert found["gradient_norm"].shape == (1, 3, 30)
    clear = found["gradient_norm"] > 1e-3
    assert clear.double().mean() > 0.5
    torch.testing.assert_close(found["cosine"][clear], torch.ones_like(found["cosine"][clear]),
                               rtol=0, atol=1e-4)  # fmt: skip


class Fixed(Classifier):
    """Takes everything for class 1."""

    num_classes = 3

    def forward(self, x, sigma):
        return torch.tensor([0.0, 1.0, 0.0]).expand(len(x), 3) + 0 * x.sum()


def test_finished_images_are_judged(mixture):
    x_0, y, index = batch(mixture)
    others = card(mixture, Reverse(SAMPLER, judge=Fixed()))
    assert others.judged_by == "agreement"
    judged = others.test_step((x_0, y, index), 0)["judged"]
    assert torch.equal(judged["correct"], y == 1) and torch.equal(judged["index"], index)
    own = card(mixture, Reverse(SAMPLER))
    assert own.judged_by == "self_agreement"
    assert own.test_step((x_0, y, index), 0)["judged"]["correct"].double().mean() > 0.85


def test_a_classifier_guides_the_trajectories_that_it_is_read_on(mixture):
    """Unguided they ignore the label: they show it as often as classes of these weights meet."""
    classifier, denoiser = networks(mixture)
    term = Scaled(ClassifierGuidance(classifier), 1.0)
    batches = batch(mixture, 300)
    shares = []
    for guidance in (None, {"own": term}):
        module = ReportCard(
            classifier,
            [1.0],
            Unconditional(denoiser),
            reverse=Reverse(EulerAncestral(grid=SAMPLER.grid, eta=0.0), guidance),
            gradients=False,
        )
        judged = module.test_step(batches, 0)["judged"]["correct"]
        shares.append(float(judged.double().mean()))
    assert shares[0] == pytest.approx(sum(p**2 for p in PRIORS), abs=0.09)  # three standard errors
    assert shares[1] > 0.9


def test_a_share_of_the_images_by_their_numbers(mixture):
    reverse = Reverse(SAMPLER, share=0.3)
    numbers = torch.arange(5000)
    chosen = reverse.chosen(numbers)
    assert len(chosen) == pytest.approx(1500, abs=100)  # three standard errors
    flipped = reverse.chosen(numbers.flip(0))
    assert sorted(4999 - row for row in flipped) == chosen
    assert Reverse(SAMPLER).chosen(numbers) == list(range(5000))
    module = card(mixture, reverse, gradients=False)
    x_0, y, index = batch(mixture)
    answer = module.test_step((x_0, y, index), 0)
    rows = reverse.chosen(index)
    for found in (answer["cells"]["reverse_x_t"], answer["judged"]):
        assert torch.equal(found["index"], index[rows])
    assert 0 < len(rows) < 30
    none = next(i for i in range(30) if i not in rows)
    alone = module.test_step((x_0[[none]], y[[none]], index[[none]]), 0)
    assert alone.keys() == {"cells"} and list(alone["cells"]) == [
        "forward_x_t",
        "forward_denoised",
    ]


def test_the_card_of_a_generation_is_the_same(mixture, tmp_path, no_pictures):
    """ECE along the trajectory as `TrajectoryCalibration` measures it."""
    classifier, denoiser = networks(mixture)

    seeds = SeedData(count=40, num_classes=3)

    class Labelled:
        """Labels and numbers of the seeds; what the images show does not matter."""

        def __iter__(self):
            yield torch.zeros(40, 1, 1, 2), seeds.y, torch.arange(40)

    whole, along = ReportCards(), TrajectoryCalibration()
    module = card(mixture, Reverse(SAMPLER, watched_steps=3))
    tiny.trainer(tmp_path, whole).test(module, Labelled(), verbose=False)
    generation = Generation(denoiser, SAMPLER, observer=classifier, watched_steps=3)
    tiny.trainer(tmp_path, along).test(generation, datamodule=seeds, verbose=False)
    mine, theirs = whole.metrics["reverse_denoised_integral_ece"], along.metrics["integral_ece"]
    assert mine["value"] == pytest.approx(theirs["value"], abs=1e-6)
    assert mine["grid"] == theirs["grid"] == list(generation.levels)
    assert mine["interval"] == pytest.approx(theirs["interval"], abs=1e-6)


def test_an_off_the_shelf_classifier_has_a_card(tmp_path, no_pictures):
    """Blind to noise; read at x_t and at the predicted clean image just the same."""
    net = MLP(shape=[1, 8, 8], num_logits=10, width=8, depth=1)
    classifier = OffTheShelf(net, num_classes=10, mean=[0.5], std=[0.5])
    denoiser = build(tiny.denoiser()).eval()
    with torch.no_grad():
        for value in denoiser.parameters():  # a new network makes nothing of its label
            value.add_(torch.rand_like(value), alpha=0.1)
    module = ReportCard(classifier, [0.1, 1.0], denoiser)
    callback = ReportCards()
    data = Images(eval_batch_size=16, eval_limit=20)
    tiny.trainer(tmp_path, callback).test(module, datamodule=data, verbose=False)
    assert callback.metrics["accuracy"]["n"] == 20
    assert callback.metrics["forward_denoised_gradient_norm"]["value"] > 0
    assert -1 <= callback.metrics["cosine"]["value"] <= 1


class Halves(Codec):
    """Two latents of 2 x 2 pixels: their mean, and a little noise beside it."""

    image_channels, channels, factor = 1, 2, 2

    def encode(self, images, noise=None):
        mean = functional.avg_pool2d(images, 2).repeat(1, 2, 1, 1)
        return mean + (0 if noise is None else 0.1 * noise)

    def decode(self, x_0):
        return functional.interpolate(x_0[:, :1], scale_factor=2)


class Two(oracles.ExactDenoiser):
    """Of latents around 0."""

    def __init__(self):
        super().__init__(oracles.Mixture(torch.zeros(10, 2, 4, 4)))


def test_latents_have_no_bound_and_their_images_are_judged():
    codec = Halves()
    classifier = Decoded(build(tiny.classifier()), codec)
    with pytest.raises(ValueError, match=r"latents of 2 channels.*set clip: null"):
        ReportCard(classifier, [1.0], Two())
    judge = build(tiny.classifier()).eval()
    reverse = Reverse(Heun(grid=RhoGrid(steps=2)), judge=judge, watched_steps=2)
    module = ReportCard(
        classifier, [1.0], Two(), {"x_t": AtState()}, clip=None, codec=codec, reverse=reverse
    )
    images, y, index = tiny.batch(5)
    answer = module.test_step((images, y, index), 0)
    made = module.generation.generate((index, y))["images"]
    assert made.shape == images.shape
    expected = judge(made, torch.zeros(5)).argmax(-1) == y
    assert torch.equal(answer["judged"]["correct"], expected)
    assert answer["cells"]["forward_x_t"]["logits"].shape == (1, 1, 5, 10)


def test_what_has_no_card(mixture, tmp_path):
    classifier, _ = networks(mixture)
    with pytest.raises(ValueError, match=r"reverse process is that of a denoiser"):
        ReportCard(classifier, [1.0], reverse=Reverse(SAMPLER))
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"share lies above 0 and up to 1.*got"):
            Reverse(SAMPLER, share=share)
    other = oracles.ExactDenoiser(oracles.tilted(classes=5, shape=(1, 1, 2)))
    with pytest.raises(ValueError, match=r"The observer knows 3 classes, the denoiser 5"):
        ReportCard(classifier, [1.0], other)
    module = card(mixture)
    with pytest.raises(ValueError, match=r"data has 10 classes, the classifier 3"):
        tiny.trainer(tmp_path).test(module, datamodule=Images(), verbose=False)


def test_nothing_of_it_is_trained(mixture):
    module = card(mixture, Reverse(SAMPLER, judge=build(tiny.classifier())))
    assert not any(p.requires_grad for p in module.parameters()) and not module.training
    assert any("judge" in name for name, _ in module.named_parameters())
