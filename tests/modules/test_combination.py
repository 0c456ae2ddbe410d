"""Classifiers chosen by level on held-out images, and exported as one."""

import json

import pytest
import tiny
import torch
from lightning import LightningDataModule
from oracles import ExactClassifier, ExactDenoiser, plane, tilted
from torch.nn import functional as F
from torch.testing import assert_close

from robustguide.callbacks import EMA, Export
from robustguide.checkpoints import build, load_classifier, read_metadata
from robustguide.classifiers import Combined
from robustguide.data import Digits, HeldOut, Images, ImageSource, Samples
from robustguide.guidance import AtDenoised
from robustguide.interfaces import Classifier, Codec
from robustguide.metrics import Answers
from robustguide.modules import Combination
from robustguide.modules.combination import chosen
from robustguide.noise import perturb
from robustguide.samplers import SeededNoise
from robustguide.samplers.seeds import EVALUATION

# `HeldOut` has no second split; the command line does not warn of that.
pytestmark = pytest.mark.filterwarnings("ignore:You passed in a .val_dataloader")
LEVELS = [0.25, 0.5, 2.0, 4.0]
ONCE = {"max_steps": -1, "max_epochs": 1, "log_every_n_steps": 1}


class Drawn(Samples):
    """Samples of a mixture."""

    def __init__(self, mixture, count, seed):
        super().__init__(mixture.shape, len(mixture))
        generator = torch.Generator().manual_seed(seed)
        x_0, y = mixture.sample(count, generator)
        self.x_0, self.y = x_0.float(), y.tolist()

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.x_0[index], self.y[index], index

    def drawn(self, index, augment, rng):
        raise AssertionError("a held-out image was changed")


class Source(ImageSource):
    """Has a validation split, and tells whoever reads another."""

    augments = False

    def __init__(self, mixture, count):
        self.mixture, self.count = mixture, count
        self.class_names = [str(k) for k in range(len(mixture))]
        self.shape = tuple(mixture.shape)

    def open(self, name):
        assert name == "validation", f"the {name} split was read"
        return Drawn(self.mixture, self.count, seed=3)


class Planted(ExactClassifier):
    """The posterior, of which the logits are multiplied by a number above level 1."""

    def __init__(self, mixture, below, above):
        super().__init__(mixture)
        self.below, self.above = below, above
        self.shape = tuple(mixture.shape)
        self.told = []

    def forward(self, x, sigma):
        factor = torch.where(sigma > 1, self.above, self.below)
        return super().forward(x, sigma) * factor[:, None]

    def as_clean(self, images, sigma):
        self.told.append(sigma)
        return super().as_clean(images, sigma) + sigma[:, None] * torch.arange(self.num_classes)


def planted(mixture):
    return {"low": Planted(mixture, 1.0, 0.3), "high": Planted(mixture, 0.3, 1.0)}


def fitted(folder, classifiers, mixture, count=1500, batch_size=400, **arguments):
    module = Combination(classifiers, LEVELS, **arguments)
    data = HeldOut(Source(mixture, count), batch_size=batch_size)
    tiny.trainer(folder, **ONCE | {"max_epochs": 3}).fit(module, datamodule=data)
    return module, data.split("validation")


def answers(classifier, split, levels=LEVELS, num_bins=15, shown=None):
    """Computed here: an image's noise is its number's, the same at every level."""
    index = torch.arange(len(split))
    noise = SeededNoise(index.tolist(), EVALUATION).draw(split.shape)
    logits = []
    for level in levels:
        sigma = torch.full((len(split),), level)
        x = perturb(split.x_0, sigma, noise)
        with torch.no_grad():
            logits.append(classifier(x, sigma) if shown is None else shown(classifier, x, sigma))
    return Answers.of(torch.stack(logits), torch.tensor(split.y), index, num_bins)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """One classifier is calibrated below level 1 and the other above."""
    mixture = plane()
    return fitted(tmp_path_factory.mktemp("half"), planted(mixture), mixture)


def test_the_calibrated_one_is_chosen_at_every_level(half):
    module, split = half
    assert module.choice == (0, 0, 1, 1)
    low, high = (answers(one, split) for one in planted(plane()).values())
    assert module.curves["combination"] == {
        "sigma": LEVELS,
        "ece_low": low.ece.tolist(),
        "ece_high": high.ece.tolist(),
        "choice": [0, 0, 1, 1],
    }
    assert min(high.ece[:2]) > 3 * max(low.ece[:2]) and min(low.ece[2:]) > 3 * max(high.ece[2:])


def test_the_combination_is_as_calibrated_as_the_better_one(half):
    module, split = half
    low, high = (answers(one, split).ece for one in planted(plane()).values())
    found = answers(module.classifier, split)
    assert torch.equal(found.ece, torch.minimum(low, high))
    said = module.metrics["integral_ece_chosen"]
    assert said["value"] == pytest.approx(found.integral_ece, rel=1e-12)
    facts = {"n": 1500, "bins": 15, "small": True, "in_sample": True, "levels": LEVELS}
    assert {key: said[key] for key in facts} == facts
    low, high = module.metrics["integral_ece_low"]["interval"]
    assert low < module.metrics["integral_ece_low"]["value"] < high


def test_networks_are_asked_once_and_left_as_they_were(half, tmp_path):
    """In evaluation mode and without gradients, however long the trainer would go on."""

    class Watched(Planted):
        def forward(self, x, sigma):
            assert not self.training and not torch.is_grad_enabled()
            return super().forward(x, sigma)

    mixture = plane()
    parts = {"low": Watched(mixture, 1.0, 3.0), "high": Watched(mixture, 3.0, 1.0)}
    module, _ = fitted(tmp_path, parts, mixture, count=60, batch_size=25)
    # one blank image before, then batches of 25, 25 and 10 at four levels
    assert parts["low"].calls == parts["high"].calls == [1] + [25] * 8 + [10] * 4
    assert module.trainer.current_epoch == 1
    assert [name for name, p in module.named_parameters() if p.requires_grad] == ["nothing"]


def test_batches_do_not_matter(tmp_path):
    mixture = plane()
    runs = [fitted(tmp_path, planted(mixture), mixture, 60, size)[0] for size in (7, 60)]
    assert runs[0].curves == runs[1].curves and runs[0].metrics == runs[1].metrics


def test_only_classifiers_that_were_chosen_are_combined(tmp_path):
    mixture = plane()
    bad, good = Planted(mixture, 3.0, 3.0), Planted(mixture, 1.0, 1.0)
    parts = {"bad": bad, "good": good, "worse": Planted(mixture, 9.0, 9.0)}
    module, _ = fitted(tmp_path, parts, mixture, blend="linear")
    assert module.choice == (1, 1, 1, 1)
    assert [*module.classifier.classifiers] == [good]
    assert (module.classifier.choice, module.classifier.blend) == ((0, 0, 0, 0), "linear")


@pytest.mark.parametrize(("by", "curve"), [("nll", "mean_nll"), ("smooth_ece", "smooth_ece")])
def test_another_error_decides(by, curve, tmp_path):
    mixture = plane()
    module, split = fitted(tmp_path, planted(mixture), mixture, count=400, by=by)
    found = [getattr(answers(one, split), curve) for one in planted(mixture).values()]
    assert module.choice == tuple(torch.stack(found).argmin(0).tolist()) == (0, 0, 1, 1)
    assert module.curves["combination"][f"{by}_high"] == found[1].tolist()


def test_the_predicted_clean_image_is_asked_about_at_its_level(tmp_path):
    mixture = tilted()
    parts, denoiser = planted(mixture), ExactDenoiser(mixture)
    arguments = {"view": AtDenoised(), "denoiser": denoiser, "clip": 0.8, "num_bins": 10}
    module, split = fitted(tmp_path, parts, mixture, count=90, batch_size=50, **arguments)

    def shown(classifier, x, sigma):
        null = torch.full((len(x),), len(mixture))
        return classifier.as_clean(denoiser(x, sigma, null).clamp(-0.8, 0.8), sigma)

    want = answers(parts["low"], split, num_bins=10, shown=shown)
    assert_close(
        torch.tensor(module.curves["combination"]["ece_low"], dtype=torch.float64),
        want.ece,
        rtol=1e-9,
        atol=1e-9,
    )
    assert {float(level) for each in parts["high"].told for level in each} == set(LEVELS)


def test_noise_can_be_drawn_several_times(tmp_path):
    mixture = plane()
    module, _ = fitted(tmp_path, planted(mixture), mixture, count=100, draws=3)
    assert module.metrics["integral_ece_low"]["n"] == 300


def rows(*p, y):
    """Answers of the same row of probabilities at one level."""
    return Answers.of(torch.tensor([p], dtype=torch.float64).log()[None], torch.tensor([y]))


def test_of_equals_the_likelier_is_chosen_and_then_the_first():
    """Top label and confidence are the same, and so is every ECE."""
    less, more = rows(0.6, 0.1, 0.3, y=1), rows(0.6, 0.3, 0.1, y=1)
    assert torch.equal(less.ece, more.ece)
    assert chosen({"a": less, "b": more}, "ece") == (1,)
    assert chosen({"a": more, "b": less, "c": more}, "ece") == (0,)
    assert chosen({"a": rows(0.9, 0.1, y=0), "b": more}, "nll") == (0,)


class Diverged(Planted):
    """No numbers above level 1."""

    def forward(self, x, sigma):
        return torch.where(sigma[:, None] > 1, torch.nan, super().forward(x, sigma))


def test_a_classifier_that_answers_with_nan_is_named(tmp_path):
    mixture = plane()
    parts = planted(mixture) | {"broken": Diverged(mixture, 1.0, 1.0)}
    with pytest.raises(ValueError, match=r"Classifier 'broken' cannot be compared.*levels 2"):
        fitted(tmp_path, parts, mixture, count=20)


class Other(Classifier):
    shape, num_classes = (1, 2, 2), 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda mixture: Combination({"a": Planted(mixture, 1, 1)}), "two classifiers or more"),
        (
            lambda mixture: Combination(planted(mixture) | {"other": Other()}),
            "different shapes",
        ),
        (lambda mixture: Combination(planted(mixture), [2.0, 1.0]), "increasing"),
        (lambda mixture: Combination(planted(mixture), [0.0, 1.0]), "positive"),
        (lambda mixture: Combination(planted(mixture), view=AtDenoised()), "give a denoiser"),
        (
            lambda mixture: Combination(planted(mixture), denoiser=ExactDenoiser(tilted())),
            "reads images of 1 x 1 x 2.*makes 2 x 2 x 1",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(plane())


class Bare(LightningDataModule):
    def train_dataloader(self):
        raise AssertionError("read")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda source: Images(source), "data is Images; set data.class_path"),
        (lambda source: Bare(), "data is Bare"),
        (lambda source: HeldOut(Digits()), "data has 10 classes, the classifier 3"),
    ],
)
def test_data_that_are_not_held_out_or_of_other_classes_are_refused(data, message, tmp_path):
    mixture = plane()
    module = Combination(planted(mixture), LEVELS)
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path, **ONCE).fit(module, datamodule=data(Source(mixture, 20)))


def test_classes_in_another_order_and_averages_are_refused(tmp_path):
    mixture = plane()
    source = Source(mixture, 20)
    source.class_names = ["cat", "dog", "owl"]
    parts = planted(mixture)
    parts["low"].class_names = ("dog", "cat", "owl")
    module = Combination(parts, LEVELS)
    with pytest.raises(ValueError, match=r"another order, \['dog', 'cat', 'owl'\]"):
        tiny.trainer(tmp_path, **ONCE).fit(module, datamodule=HeldOut(source))
    with pytest.raises(ValueError, match="leave out EMA"):
        tiny.trainer(tmp_path, EMA(), **ONCE).fit(module, datamodule=HeldOut(source))


def test_classifiers_made_in_python_cannot_be_exported(tmp_path):
    """Told before anything is asked."""
    module = Combination(planted(plane()), LEVELS)
    trainer = tiny.trainer(tmp_path, Export(), **ONCE)
    with pytest.raises(ValueError, match="classifier was built in Python"):
        trainer.fit(module, datamodule=HeldOut(Source(plane(), 20)))
    assert not module.choice


def combination(classifiers, **changes):
    """As a configuration."""
    data = tiny.spec("data.HeldOut", source=tiny.spec("data.Digits"), batch_size=64)
    arguments = {"classifiers": classifiers, "levels": [0.1, 1.0, 5.0]} | changes
    trainer = tiny.TRAINER | {"max_epochs": 1}
    model = tiny.spec("modules.Combination", **arguments)
    return {"seed_everything": 0, "model": model, "data": data, "trainer": trainer}


@pytest.fixture(scope="module")
def run(runs, tmp_path_factory):
    """A trained file, and a network that is built as it stands."""
    path = runs / "classifier/classifier.safetensors"
    folder = tmp_path_factory.mktemp("combined") / "run"
    parts = {"trained": tiny.loaded("classifier", path), "untrained": tiny.classifier(width=4)}
    cli = tiny.run(folder, "fit", combination(parts, by="nll"))
    return folder, cli


def test_the_command_exports_what_it_chose(run, runs, json_of):
    folder, cli = run
    found = load_classifier(str(folder / "classifier.safetensors"))
    assert isinstance(found, Combined)
    assert (found.sigmas, found.choice) == ((0.1, 1.0, 5.0), cli.model.classifier.choice)
    trained = load_classifier(str(runs / "classifier/classifier.safetensors"))
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.05, 0.1, 0.2])
    assert cli.model.choice[0] == 0 and torch.equal(found(x, sigma), trained(x, sigma))
    sigma = torch.tensor([0.05, 1.0, 40.0])
    assert torch.equal(found(x, sigma), cli.model.classifier(x, sigma))


def test_the_choice_is_noted_in_results_and_file(run, json_of):
    folder, cli = run
    results = json_of(folder)
    assert results["metrics"] == cli.model.metrics
    assert results["curves"]["combination"] == cli.model.curves["combination"]
    assert results["metrics"]["integral_nll_chosen"]["n"] == 179  # a tenth of the digits
    metadata = read_metadata(folder / "classifier.safetensors")
    noted = metadata.extra["combination"]
    names = ["trained", "untrained"]
    assert noted["names"] == [names[number] for number in cli.model.choice]
    assert noted["nll_trained"] == cli.model.curves["combination"]["nll_trained"]
    assert "load_classifier" not in json.dumps(metadata.specification)


def test_a_file_of_a_combination_is_a_candidate_like_others(run, tmp_path):
    """Beside one of those that it is made of."""
    folder, cli = run
    path = folder / "classifier.safetensors"
    parts = {"combined": tiny.loaded("classifier", path), "untrained": tiny.classifier(width=4)}
    again = tiny.run(tmp_path / "again", "fit", combination(parts, by="nll"))
    want = cli.model.curves["combination"]
    best = [min(want[f"nll_{name}"][k] for name in ("trained", "untrained")) for k in range(3)]
    assert again.model.curves["combination"]["nll_combined"] == pytest.approx(best, rel=1e-6)


def test_nothing_read_is_nothing_chosen(runs, tmp_path):
    path = runs / "classifier/classifier.safetensors"
    parts = {"trained": tiny.loaded("classifier", path), "untrained": tiny.classifier(width=4)}
    config = tiny.merged(combination(parts), {"trainer": {"limit_train_batches": 0}})
    tiny_run = tmp_path / "run"
    with pytest.raises(ValueError, match="reads the held-out images once; leave out"):
        tiny.run(tiny_run, "fit", config)
    assert not (tiny_run / "classifier.safetensors").exists()
    with pytest.raises(ValueError, match="No held-out image was read"):
        _ = Combination(planted(tilted()), LEVELS).notes


class Halving(Codec):
    """Latents of half the size."""

    image_channels, channels, factor = 1, 1, 2

    def encode(self, images, noise=None):
        return F.avg_pool2d(images, 2)


def test_classifiers_of_latents(tmp_path):
    """The images are encoded; the file is of latents."""
    net = tiny.mlp(shape=[1, 4, 4], num_logits=10)
    described = tiny.spec("classifiers.SigmaConditioned", net=net, num_classes=10)
    parts = {"a": build(described), "b": build(described)}
    module = Combination(parts, LEVELS, codec=Halving())
    module.save_hyperparameters({"classifiers": {"a": described, "b": described}})
    trainer = tiny.trainer(tmp_path, Export(), **ONCE)
    trainer.fit(module, datamodule=HeldOut(eval_limit=30))
    assert read_metadata(tmp_path / "classifier.safetensors").shape == (1, 4, 4)
    assert module.metrics["integral_ece_a"]["n"] == 30


# Forked processes are what this test is about.
@pytest.mark.filterwarnings("ignore:.*fork", "ignore:Total length of")
def test_two_processes_choose_as_one_does(runs, tmp_path, json_of):
    """In batches of one, so that each image is computed in the same way."""
    path = runs / "classifier/classifier.safetensors"
    parts = {"trained": tiny.loaded("classifier", path), "untrained": tiny.classifier(width=4)}
    small = {"data": {"init_args": {"batch_size": 1, "eval_limit": 10}}}
    config = tiny.merged(combination(parts), small)
    two = {"trainer": {"devices": 2, "strategy": "ddp_fork"}}
    tiny.run(tmp_path / "one", "fit", config)
    tiny.run(tmp_path / "two", "fit", tiny.merged(config, two))
    one, other = map(json_of, (tmp_path / "one", tmp_path / "two"))
    assert one["metrics"] == other["metrics"] and one["curves"] == other["curves"]
    assert one["metrics"]["integral_ece_trained"]["n"] == 10
    files = [
        load_classifier(str(tmp_path / name / "classifier.safetensors")) for name in ("one", "two")
    ]
    for name, value in files[0].state_dict().items():
        assert torch.equal(files[1].state_dict()[name], value)
