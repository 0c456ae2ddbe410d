"""Training and sampling in the space of a codec."""

import copy

import latent
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from robustguide.checkpoints import build, export, load_classifier, load_denoiser
from robustguide.codecs import PixelCodec
from robustguide.data import ENCODING, Digits, Images, LatentShards, LatentWriter
from robustguide.denoisers import EDMDenoiser, EpsDenoiser
from robustguide.interfaces import Classifier, Codec, Denoiser, Prediction, from_pixels, to_pixels
from robustguide.modules import Denoising, Generation, RobustClassification
from robustguide.modules.latent import Space
from robustguide.nets import MLP
from robustguide.noise import LogNormal, RhoGrid, UniformT, linear_levels
from robustguide.samplers import Heun, SeededNoise
from robustguide.samplers.seeds import mixed


class Seen(Classifier):
    """Keeps what it is shown; its logits are of ten classes."""

    num_classes = 10

    def __init__(self):
        super().__init__()
        self.weight, self.x = nn.Parameter(torch.ones(())), []

    def forward(self, x, sigma):
        self.x.append(x.detach().clone())
        return self.weight * x.flatten(1)[:, :10]


class Halves(Codec):
    """Latents are the mean of 2 x 2 pixels and a little noise; decoding repeats them."""

    image_channels = channels = 1
    factor = 2

    def encode(self, images, noise=None):
        return F.avg_pool2d(images, 2) + (0 if noise is None else 0.1 * noise)

    def decode(self, x_0):
        return F.interpolate(x_0, scale_factor=2)


class Constant(Denoiser):
    """Shows the same latents whatever it sees."""

    num_classes, shape = 10, (1, 4, 4)

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(value)

    def predict(self, x, sigma, y):
        return Prediction(self.value.expand_as(x) + 0 * x)


def mlp_classifier(channels=2):
    net = tiny.spec("nets.MLP", shape=[channels, 4, 4], num_logits=10, width=32, depth=1)
    return build(tiny.spec("classifiers.Timed", net=net, levels=tiny.LEVELS, num_classes=10))


def test_a_classifier_sees_noisy_latents(tmp_path):
    """In a training step: levels, then the codec's noise, then that of the level."""
    classifier, codec = Seen(), latent.codec()
    module = RobustClassification(classifier, LogNormal(-1.0, 0.5), seed=7, codec=codec)
    tiny.trainer(tmp_path, limit_val_batches=0).fit(module, datamodule=Images(batch_size=16))
    blank, x = classifier.x
    assert blank.shape == (1, *latent.LATENTS)
    images, *_ = next(iter(Images(batch_size=16).train_dataloader()))
    torch.manual_seed(mixed(7, 0, 0))
    noise = torch.randn(16, *latent.LATENTS)
    sigma = LogNormal(-1.0, 0.5).sample(16, "cpu")[:, None, None, None]
    expected = codec.encode(images, noise) + sigma * torch.randn(16, *latent.LATENTS)
    torch.testing.assert_close(x, expected)


def test_evaluated_latents_belong_to_the_image():
    classifier, codec = Seen(), latent.codec()
    module = RobustClassification(classifier, levels=[0.0, 2.0], codec=codec)
    images, y, index = tiny.batch()
    module.test_step((images, y, index + 3), 0)
    numbers = (index + 3).tolist()
    x_0 = codec.encode(images, SeededNoise(numbers, ENCODING).draw(latent.LATENTS))
    noise = SeededNoise(numbers, 1).draw(latent.LATENTS)
    assert torch.equal(classifier.x[0], x_0)
    torch.testing.assert_close(classifier.x[1], x_0 + 2 * noise)


def test_the_codec_is_no_part_of_what_is_trained():
    codec = latent.codec().train().requires_grad_(True)
    module = RobustClassification(Seen(), LogNormal(), codec=codec)
    assert set(module.state_dict()) == {"classifier.weight"}
    assert [name for name, _ in module.named_parameters()] == ["classifier.weight"]
    assert copy.deepcopy(module).space is module.space
    module.train()
    assert not codec.training and not any(p.requires_grad for p in codec.parameters())
    images = latent.images().requires_grad_()
    assert not module.space.draw(images).requires_grad


def test_without_a_codec_nothing_changes():
    space, images = Space(None), latent.images()
    assert space.draw(images) is images and space.own(images, torch.arange(5)) is images
    assert space.shape((1, 8, 8)) == (1, 8, 8)
    pixels = Space(PixelCodec(1))
    assert torch.equal(pixels.draw(images), images) and pixels.shape((1, 8, 8)) == (1, 8, 8)


def test_shapes_are_compared_in_the_space_of_the_codec(tmp_path):
    noise, codec = LogNormal(), latent.codec()
    small = EDMDenoiser(MLP([1, 8, 8], num_classes=10), 10, (1, 8, 8), has_null=False)
    module = Denoising(small, noise, label_dropout=0, codec=codec)
    message = r"data's shape is \(2, 4, 4\), the denoiser's \(1, 8, 8\); set"
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path).fit(module, datamodule=Images(batch_size=32))
    module = RobustClassification(build(tiny.classifier()), noise, codec=codec)
    with pytest.raises(ValueError, match=r"cannot read the data's images of shape \[2, 4, 4\]"):
        tiny.trainer(tmp_path).fit(module, datamodule=Images(batch_size=32))


def test_latents_are_not_encoded_again(tmp_path):
    LatentWriter(latent.codec()).write(Digits(fold=(0, 20)), str(tmp_path / "latents"))
    data = Images(LatentShards(str(tmp_path / "latents")), batch_size=32)
    module = RobustClassification(mlp_classifier(), LogNormal(), codec=latent.codec())
    message = r"reads images of 1 channels .* not of shape \[2, 4, 4\]; .* latents already"
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path).fit(module, datamodule=data)


def test_shards_and_codec_validate_to_the_same_number(tmp_path):
    """A denoiser's loss, from kept latents and from encoding on the spot."""
    codec, source = latent.codec(), Digits(fold=(0, 20))
    writer = LatentWriter(codec, dtype=torch.float32)
    writer.write(source, str(tmp_path / "latents"))
    kept = Images(LatentShards(str(tmp_path / "latents")), batch_size=32)
    denoiser = EDMDenoiser(MLP([2, 4, 4], num_classes=10, num_null_labels=1), 10, (2, 4, 4))
    losses = []
    for data, own in ((kept, None), (Images(source, batch_size=32), codec)):
        module = Denoising(denoiser, LogNormal(), codec=own)
        (found,) = tiny.trainer(tmp_path).validate(module, datamodule=data, verbose=False)
        losses.append(found["val/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_robust_classifier_trains_on_latents(tmp_path):
    """Under attack, in the space of the latents; the loss falls below that of chance."""
    from robustguide.attacks import PGD

    module = RobustClassification(
        mlp_classifier(channels=1),
        LogNormal(-2.0, 0.5),
        PGD(0.3, steps=2),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.01),
        levels=[0.1],
        codec=Halves(),
    )
    data = Images(batch_size=128, eval_limit=60)
    trainer = tiny.trainer(tmp_path, max_steps=60, limit_val_batches=0)
    trainer.fit(module, datamodule=data)
    images, y, index = next(iter(data.test_dataloader()))
    logits = module.eval().test_step((images, y, index), 0)["cells"]["forward_x_t"]["logits"][0, 0]
    assert trainer.callback_metrics["train/loss"] < 1.6  # of chance: 2.3
    assert (logits.argmax(-1) == y).float().mean() > 0.5


def dit():
    net = tiny.spec(
        "nets.DiT", size=4, patch=2, channels=2, hidden=32, depth=2, heads=2, num_classes=10,
        learn_sigma=False,
    )  # fmt: skip
    levels = tiny.LEVELS
    return build(
        tiny.spec("denoisers.EpsDenoiser", net=net, levels=levels, num_classes=10, shape=[2, 4, 4])
    )


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode:UserWarning")
def test_a_diffusion_transformer_trains_on_latents(tmp_path):
    """The error of the noise falls from 1, that of a transformer which starts at zero."""
    torch.manual_seed(0)
    denoiser = dit()
    assert isinstance(denoiser, EpsDenoiser)
    module = Denoising(
        denoiser,
        UniformT(linear_levels()),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.003),
        codec=latent.codec(),
    )
    data = Images(batch_size=128, eval_limit=60)
    losses = []
    for steps in (0, 80):
        trainer = tiny.trainer(tmp_path, max_steps=steps, limit_val_batches=0)
        trainer.fit(module, datamodule=data)
        (found,) = tiny.trainer(tmp_path).validate(module, datamodule=data, verbose=False)
        losses.append(found["val/loss"])
    assert losses[0] == pytest.approx(1, abs=0.1)
    assert losses[1] < 0.6 * losses[0]


def test_the_command_line_trains_on_latents_and_samples_images(tmp_path):
    """A codec's file, a denoiser and a classifier of its latents, and a guided generation."""
    codec = str(tmp_path / "codec.safetensors")
    described = latent.codec_spec()
    export(latent.codec(), codec, described, class_names=(), shape=(1, 8, 8), weights="raw")
    shape = {"net": {"init_args": {"shape": [2, 4, 4]}}, "shape": [2, 4, 4]}
    model = {"codec": tiny.loaded("codec", codec), "denoiser": {"init_args": shape}}
    steps = {"max_steps": 2, "val_check_interval": 2}
    changes = {"model": {"init_args": model}, "trainer": steps}
    tiny.run(tmp_path / "denoiser", "fit", tiny.merged(tiny.denoising(), changes))
    model["classifier"] = {"init_args": {"net": shape["net"]}}
    model.pop("denoiser")
    tiny.run(tmp_path / "classifier", "fit", tiny.merged(tiny.classification(), changes))
    denoiser, classifier = (
        str(tmp_path / name / f"{name}.safetensors") for name in ("denoiser", "classifier")
    )
    assert load_denoiser(denoiser).metadata.shape == (2, 4, 4)
    assert load_classifier(classifier).metadata.shape == (2, 4, 4)
    config = tiny.generation(
        denoiser,
        count=3,
        guidance={"robust": tiny.guided(classifier)},
        observer=tiny.loaded("classifier", classifier),
        codec=tiny.loaded("codec", codec),
        callbacks=[tiny.spec("callbacks.SampleGrid"), tiny.spec("callbacks.Frames", count=2)],
    )
    tiny.run(tmp_path / "test", "test", config)
    pixels = load_file(tmp_path / "test" / "samples.safetensors")["pixels"]
    assert pixels.shape == (3, 1, 8, 8)
    frames = load_file(tmp_path / "test" / "frames.safetensors")
    assert frames["x"].shape == (2, 6, 2, 4, 4) and frames["denoised"].shape == (2, 6, 1, 8, 8)
    # ancestral sampling ends at its last predicted clean image
    assert (frames["denoised"][:, -1].int() - pixels[:2].int()).abs().max() <= 1


def test_generation_shows_decoded_bytes():
    value = torch.linspace(-1.4, 1.4, 16).reshape(1, 4, 4)
    observer = Seen()
    sampler = Heun(grid=RhoGrid(steps=4))
    module = Generation(
        Constant(value), sampler, observer=observer, watched_steps=2, codec=Halves()
    )
    answer = module.test_step((torch.arange(3), torch.arange(3)), 0)
    images = F.interpolate(value[None], scale_factor=2)
    expected = from_pixels(to_pixels(images)).expand(3, 1, 8, 8)
    torch.testing.assert_close(answer["images"], expected, rtol=0, atol=0)
    assert answer["denoised"].shape == (2, 3, 1, 8, 8)
    torch.testing.assert_close(answer["denoised"][0], expected, rtol=0, atol=1.01 / 127.5)
    assert answer["logits"].shape == (2, 3, 10)
    torch.testing.assert_close(observer.x[0], value.expand(3, 1, 4, 4))  # latents, as guidance


def test_generation_without_a_codec_shows_what_was_sampled():
    value = torch.linspace(-1.4, 1.4, 16).reshape(1, 4, 4)
    module = Generation(Constant(value), Heun(grid=RhoGrid(steps=4)))
    answer = module.predict_step((torch.arange(2), torch.arange(2)), 0)
    expected = value.clamp(-1, 1).expand(2, 1, 4, 4)
    torch.testing.assert_close(answer["images"], expected, rtol=0, atol=1e-4)


def test_a_codec_of_other_latents():
    sampler = Heun(grid=RhoGrid(steps=4))
    with pytest.raises(
        ValueError, match=r"codec reads latents of 2 channels, the denoiser's have 1"
    ):
        Generation(Constant(torch.zeros(1, 4, 4)), sampler, codec=latent.codec())
