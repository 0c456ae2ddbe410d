"""Gradients and denoised images by noise level: numbers, and that training stays the same."""

import math

import latent
import oracles
import pytest
import tiny
import torch
from lightning import LightningModule, Trainer
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robustguide import load_classifier, load_denoiser
from robustguide.callbacks import Acceleration, DenoisedByNoise, GradientsByNoise
from robustguide.callbacks.by_noise import first_of_classes
from robustguide.checkpoints import build
from robustguide.data import Digits, Images
from robustguide.guidance import score
from robustguide.interfaces import Classifier, Denoiser, Prediction
from robustguide.main import CommandLine
from robustguide.modules.latent import Space
from robustguide.noise import LEVELS, perturb
from robustguide.samplers import evaluation_noise

EMA = tiny.spec("callbacks.EMA", decay=0.9)
TWICE = {"trainer": {"max_steps": 12, "val_check_interval": 6, "log_every_n_steps": 6}}


class Logger:
    """Keeps what is logged."""

    def __init__(self):
        self.found = {}

    def log_metrics(self, metrics, step=None):
        self.found |= metrics


class Training(LightningModule):
    """What the callbacks read of a module in training."""

    def __init__(self, levels=(0.5, 2.0), codec=None, **networks):
        super().__init__()
        for name, network in networks.items():
            setattr(self, name, network.eval())
        self.levels, self.space = levels, Space(codec)


class Identity(Denoiser):
    """Predicts what it is shown."""

    num_classes, shape = 10, (1, 8, 8)

    def predict(self, x, sigma, y):
        return Prediction(x)


class Dice(Classifier):
    """Draws random numbers where it should not."""

    num_classes, shape = 10, (1, 8, 8)

    def forward(self, x, sigma):
        return x.flatten(1)[:, :10] * torch.rand(10)


class Blocked(Classifier):
    """Lets no gradient through."""

    num_classes, shape = 10, (1, 8, 8)

    def forward(self, x, sigma):
        return x.detach().flatten(1)[:, :10]


def validated(callback, module, batches, folder, *others):
    """What a callback logs of one validation of a training."""
    made = tiny.trainer(folder, callback, *others)
    made.loggers = [Logger()]
    callback.setup(made, module, "fit")
    callback.on_validation_epoch_start(made, module)
    for number, batch in enumerate(batches):
        callback.on_validation_batch_end(made, module, None, batch, number)
    callback.on_validation_epoch_end(made, module)
    return made.loggers[0].found


def scalars(folder, prefix):
    """The last value by name."""
    events = EventAccumulator(str(folder))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if name.startswith(prefix)]
    return {name: events.Scalars(name)[-1].value for name in names}


def test_norms_and_cosines_are_those_of_the_exact_gradient(tmp_path):
    """Of a mixture of Gaussians, whose log p(y | x) has a known gradient."""
    mixture, levels = oracles.plane(), (0.5, 2.0, 8.0)
    x_0, y = mixture.sample(7, torch.Generator().manual_seed(0))
    index = torch.arange(20, 27)
    batches = [(x_0[:4].float(), y[:4], index[:4]), (x_0[4:].float(), y[4:], index[4:])]
    module = Training(levels, classifier=oracles.ExactClassifier(mixture))
    found = validated(GradientsByNoise(count=6, shown=3), module, batches, tmp_path)
    x_0, y, noise = x_0[:6], y[:6], evaluation_noise(index[:6]).draw((1, 1, 2)).double()
    exact = []
    for level in levels:
        sigma = torch.full((6,), level, dtype=torch.float64)
        x = x_0 + level * noise
        null = torch.full_like(y, len(mixture))
        exact.append((mixture.score(x, sigma, y) - mixture.score(x, sigma, null)).flatten(1))
        norms = math.sqrt(1 + level**2) * exact[-1].norm(dim=1)
        assert found[f"val/gradient_norm/sigma_{level:g}"] == pytest.approx(
            float(norms.quantile(0.5)), rel=1e-4
        )
    for low, high, level in zip(exact, exact[1:], levels, strict=False):
        cosine = torch.nn.functional.cosine_similarity(low, high).mean()
        name = f"val/gradient_neighbour/sigma_{level:g}"
        assert found[name] == pytest.approx(float(cosine), abs=1e-4)
    assert len(found) == 5  # the highest level has no neighbour
    with Image.open(tmp_path / "val_gradients.png") as image:
        assert image.width == 700


def test_the_error_of_a_denoiser_that_removes_nothing_is_that_of_the_noise(tmp_path):
    images, y, index = tiny.batch(9)
    module = Training(denoiser=Identity())
    found = validated(DenoisedByNoise([0.5, 3.0], count=6), module, [(images, y, index)], tmp_path)
    power = evaluation_noise(index[:6]).draw((1, 8, 8)).square().mean()
    assert found == {
        "val/denoising_error/sigma_0.5": pytest.approx(0.25 * float(power), rel=1e-5),
        "val/denoising_error/sigma_3": pytest.approx(9 * float(power), rel=1e-5),
    }
    assert (tmp_path / "val_denoised.png").is_file()


def dropped(kind):
    """A training that uses random numbers wherever it can."""
    if kind == "classifier":
        attack = tiny.pgd(random_start=True)
        return tiny.classification(classifier=tiny.classifier(dropout=0.3), attack=attack)
    return tiny.denoising(denoiser=tiny.denoiser(dropout=0.3))


@pytest.mark.parametrize(
    ("kind", "picture"), [("classifier", "val_gradients.png"), ("denoiser", "val_denoised.png")]
)
def test_trained_weights_are_equal_to_the_bit(tmp_path, kind, picture):
    config = tiny.merged(dropped(kind), TWICE)
    for name, extra in (("with", {}), ("without", {"logger": False})):
        tiny.run(tmp_path / name, "fit", tiny.merged(config, {"trainer": extra}))
    found = [load_file(tmp_path / n / f"{kind}.safetensors") for n in ("with", "without")]
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name
    assert (tmp_path / "with" / picture).is_file()
    assert not (tmp_path / "without" / picture).exists()


def test_random_states_and_modes_are_put_back(tmp_path):
    module, (images, y, index) = Training(classifier=Dice()), tiny.batch()
    module.train()
    module.classifier.eval()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert validated(GradientsByNoise(), module, [(images, y, index)], tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert module.training and not module.classifier.training
    assert all(parameter.grad is None for parameter in module.parameters())


def test_numbers_of_a_training_are_those_of_the_average(tmp_path):
    """At the end of training the exported network is what the last validation saw."""
    with_average = {"trainer": {"callbacks": [EMA]}}
    config = tiny.merged(tiny.classification(levels=[0.1, 1.0]), TWICE, with_average)
    tiny.run(tmp_path / "classifier", "fit", config)
    config = tiny.merged(tiny.denoising(), TWICE, with_average)
    tiny.run(tmp_path / "denoiser", "fit", config)
    data = Images(Digits(), batch_size=64, eval_limit=60)
    images, y, index = (each[:16] for each in next(iter(data.val_dataloader())))
    noise = evaluation_noise(index).draw(images.shape[1:])
    denoiser = load_denoiser(str(tmp_path / "denoiser/denoiser.safetensors"))
    classifier = load_classifier(str(tmp_path / "classifier/classifier.safetensors"))
    found = scalars(tmp_path / "denoiser", "val/denoising_error")
    assert len(found) == len(LEVELS)
    for level in LEVELS:
        sigma = torch.full((16,), level)
        with torch.no_grad():
            error = (denoiser(perturb(images, sigma, noise), sigma, y) - images).square().mean()
        name = f"val/denoising_error/sigma_{level:.3g}"
        assert found[name] == pytest.approx(float(error), rel=1e-4)
    found = scalars(tmp_path / "classifier", "val/gradient_")
    assert len(found) == 3
    for level in (0.1, 1.0):
        sigma = torch.full((16,), level)
        gradient = score(classifier, perturb(images, sigma, noise), sigma, y)
        norm = math.sqrt(1 + level**2) * gradient.flatten(1).norm(dim=1).quantile(0.5)
        name = f"val/gradient_norm/sigma_{level:.3g}"
        assert found[name] == pytest.approx(float(norm), rel=1e-3)


def test_tensorboard_shows_the_pictures(runs):
    for name, tag in (("classifier", "val/gradients"), ("denoiser", "val/denoised")):
        events = EventAccumulator(str(runs / name))
        events.Reload()
        assert tag in events.Tags()["images"]
        shown = events.Images(tag)[-1]
        with Image.open(runs / name / f"{tag.replace('/', '_')}.png") as image:
            assert (shown.width, shown.height) == image.size


def test_a_classifier_without_a_gradient_is_left_alone(tmp_path):
    module, batch, callback = Training(classifier=Blocked()), tiny.batch(), GradientsByNoise()
    with pytest.warns(UserWarning, match="graph of its logits ends before.*Training goes on"):
        found = validated(callback, module, [batch], tmp_path)
    assert not found and not list(tmp_path.glob("*.png"))
    made = tiny.trainer(tmp_path, callback)  # the next validation is silent: warnings are errors
    callback.on_validation_batch_end(made, module, None, batch, 0)
    callback.on_validation_epoch_end(made, module)


@pytest.mark.parametrize("why", ["logger", "rank", "sanity", "count", "stage"])
def test_where_nothing_is_shown(tmp_path, monkeypatch, why):
    module, batch = Training(denoiser=Identity()), tiny.batch()
    callback = DenoisedByNoise(count=0 if why == "count" else 16)
    made = tiny.trainer(tmp_path, callback)
    made.loggers = [] if why == "logger" else [Logger()]
    if why == "rank":
        monkeypatch.setattr(Trainer, "is_global_zero", False)
    made.sanity_checking = why == "sanity"
    callback.setup(made, module, "validate" if why == "stage" else "fit")
    callback.on_validation_epoch_start(made, module)
    callback.on_validation_batch_end(made, module, None, batch, 0)
    callback.on_validation_epoch_end(made, module)
    assert not list(tmp_path.iterdir())


def test_modules_that_train_something_else_are_left_alone():
    for callback in (GradientsByNoise(), DenoisedByNoise()):
        assert not callback.reads(LightningModule())
    assert not GradientsByNoise().reads(Training(denoiser=Identity()))
    assert not DenoisedByNoise().reads(Training(classifier=Dice()))


def test_latents_are_drawn_as_tiles_or_decoded(tmp_path):
    """Of a codec that encodes images: noise and gradients in its space, clean images decoded."""
    codec, (images, y, index) = latent.codec(), tiny.batch(4)

    class Shrunk(Identity):
        shape = latent.LATENTS

        def predict(self, x, sigma, y):
            return Prediction(x / (1 + sigma**2).reshape(-1, 1, 1, 1))

    class Read(Dice):
        shape = latent.LATENTS

        def forward(self, x, sigma):
            return x.flatten(1)[:, :10]

    module = Training(codec=codec, denoiser=Shrunk(), classifier=Read())
    batch = [(images, y, index)]
    assert len(validated(DenoisedByNoise([1.0]), module, batch, tmp_path)) == 1
    assert len(validated(GradientsByNoise(), module, batch, tmp_path)) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"val_denoised.png", "val_gradients.png"}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_low_precision(tmp_path, precision):
    trainer = {"trainer": {"precision": precision, "max_steps": 2, "val_check_interval": 2}}
    noise = tiny.spec("noise.UniformT", levels=tiny.LEVELS)  # log-normal noise is in float32 alone
    for name, config in (("c", tiny.classification(noise=noise)), ("d", tiny.denoising())):
        tiny.run(tmp_path / name, "fit", tiny.merged(config, trainer))
    norms = scalars(tmp_path / "c", "val/gradient_norm")
    errors = scalars(tmp_path / "d", "val/denoising_error")
    assert all(0 < value < math.inf for value in [*norms.values(), *errors.values()])
    assert len(norms) == 2 and len(errors) == len(LEVELS)


def test_a_classifier_that_is_no_number_any_more_stops_no_training(tmp_path):
    class Broken(Dice):
        def forward(self, x, sigma):
            return x.flatten(1)[:, :10] * torch.nan

    found = validated(GradientsByNoise(), Training(classifier=Broken()), [tiny.batch()], tmp_path)
    assert not found and (tmp_path / "val_gradients.png").is_file()


def test_networks_are_not_compiled_anew_for_a_picture(tmp_path):
    """A batch of another size would take minutes."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    denoiser = build(tiny.denoiser()).eval()
    denoiser.net.compile(backend=backend)
    module, (images, y, index) = Training(denoiser=denoiser), tiny.batch()
    faster = Acceleration(compiled=True)
    assert validated(DenoisedByNoise(), module, [(images, y, index)], tmp_path, faster)
    assert not compiled
    denoiser(images, torch.ones(len(y)), y)
    assert compiled


def test_images_of_many_classes_are_drawn_first():
    assert first_of_classes(torch.tensor([4, 4, 4, 1, 4, 0, 1]), 4) == [0, 3, 5, 1]
    assert first_of_classes(torch.tensor([2, 2]), 4) == [0, 1]


def test_one_that_is_named_takes_the_place_of_the_default(tmp_path):
    named = tiny.spec("callbacks.DenoisedByNoise", levels=[1.0], count=4)
    config = tiny.merged(tiny.denoising(), TWICE, {"trainer": {"callbacks": [named]}})
    made = tiny.run(tmp_path / "run", "fit", config)
    assert isinstance(made, CommandLine)
    assert sum(isinstance(c, DenoisedByNoise) for c in made.trainer.callbacks) == 1
    assert scalars(tmp_path / "run", "val/denoising_error").keys() == {
        "val/denoising_error/sigma_1"
    }


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"GradientsByNoise measures 0 images or more.*count=-1"):
        GradientsByNoise(count=-1)
    with pytest.raises(ValueError, match=r"draws 1 or more, got count=16 and shown=0"):
        DenoisedByNoise(shown=0)
    for levels in ([], [0.0], [math.inf]):
        with pytest.raises(ValueError, match="levels must be positive, finite noise levels"):
            DenoisedByNoise(levels)
