"""Every command line in the head of a configuration: parsed, built on the meta device, compared.

The checkpoints that a newcomer would have trained before are written, tiny, into an empty folder,
and published networks are built from their cards, without memory. Data sets are not there, so that
building cannot have read one.
"""

import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path

import lightning
import pytest
import torch
import torchvision
import yaml
from golden_files import listing
from jsonargparse import ArgumentParser
from safetensors.torch import save_file

from robustguide import main as command_line
from robustguide.attacks import L2Ball, LinfBall
from robustguide.cards import card
from robustguide.checkpoints import build, export
from robustguide.classifiers import Decoded, NoiseConditioned, SigmaConditioned
from robustguide.classifiers.clip import clip
from robustguide.codecs import EDM2Codec, KLAutoencoder, StableDiffusionCodec
from robustguide.commands import encode
from robustguide.data import (
    Balanced,
    Encoding,
    FashionMNIST,
    Listed,
    Manifest,
    Random,
)
from robustguide.data.splits import SPLITS
from robustguide.denoisers import EDMDenoiser
from robustguide.guidance import Channels, ClassifierFree, Guided, RawLogit, Reference, WithinSteps
from robustguide.interfaces import Classifier
from robustguide.modules import Autoencoding, Calibration, Combination, KnobSearch
from robustguide.noise import Clipped, LogNormal, RhoGrid, UniformT
from robustguide.samplers import DDIM, Ancestral, Heun, Learned, Nudge, Sine

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/**/*.yaml"))
EXPERIMENTS = [file for file in FILES if "/overlay/" not in file]
# Each is a network, a weight and a number on top of edm2.yaml; some are built as commands as well.
PRESETS = [file for file in FILES if "/published/edm2_" in file]
BUILT_PRESETS = {
    "img512_s_autog_fid",  # in the head of edm2.yaml
    "img512_s_uncond_autog_fid",
    "img512_xxl_interval_fid",
    "img64_s_fid",
}
SHAPES = {
    "imagenet": (1000, [3, 128, 128]),
    "cifar": (10, [3, 32, 32]),
    "fashion": (10, [1, 32, 32]),
    "": (10, [1, 8, 8]),
}


def lines(file):
    """All command lines in the comment that a file begins with, as words behind `robustguide`."""
    head = []
    for line in (ROOT / file).read_text().splitlines():
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").strip())
    return [tuple(shlex.split(line)[1:]) for line in head if line.startswith("robustguide ")]


def commands(file):
    """Those that read the file; others make what it reads."""
    return [words for words in lines(file) if words[0] in command_line.CommandLine.subcommands()]


def configs(command):
    """The files that a command line reads, in order."""
    return [word for before, word in pairwise(command) if before == "--config"]


COMMANDS = sorted({command for file in FILES for command in commands(file)})


def name(command):
    """For the names of tests."""
    stems = [Path(file).stem for file in configs(command)]
    return "-".join([command[0], *stems])


def specification(class_path, **arguments):
    return {"class_path": class_path, "init_args": arguments}


def tiny(kind, num_classes, shape):
    """The smallest network that stands in for a trained one."""
    unet = dict(image_size=shape[1], in_channels=shape[0], model_channels=4, num_res_blocks=1)
    unet |= dict(attention_resolutions=[], channel_mult=[1], num_heads=1)
    levels = specification("robustguide.noise.linear_levels")
    if kind == "classifier" and shape[1] == 32:  # with the readout of the networks of that size
        unet |= dict(out_channels=num_classes, pool="attention")
        net = specification("robustguide.nets.EncoderUNet", **unet)
    elif kind == "classifier":
        net = specification("robustguide.nets.MLP", shape=shape, num_logits=num_classes, width=4)
    else:
        net = specification(
            "robustguide.nets.UNet",
            **unet,
            out_channels=2 * shape[0],
            num_classes=num_classes,
            num_null_labels=1,
        )
    common = dict(net=net, levels=levels, num_classes=num_classes)
    if kind == "classifier":
        return specification("robustguide.classifiers.Timed", **common)
    denoiser = "robustguide.denoisers.EpsDenoiser"
    return specification(denoiser, **common, shape=shape, learns_variance=True)


def write_checkpoint(path):
    """What training would have left under this path."""
    num_classes, shape = next(made for key, made in SHAPES.items() if key in path)
    described = tiny(Path(path).stem, num_classes, shape)
    if "digits_clean" in path:  # with the activations that some configurations replace
        net = dict(shape=shape, num_logits=num_classes, width=4, activation="relu")
        net = specification("robustguide.nets.MLP", **net)
        shelf = dict(net=net, num_classes=num_classes, mean=[0.5], std=[0.5])
        described = specification("robustguide.classifiers.OffTheShelf", **shelf)
    names = [str(y) for y in range(num_classes)]
    network = build(described)
    export(network, path, described, class_names=names, shape=shape, weights="raw")


def write_autoencoder(folder):
    """A tiny autoencoder in the layout of `diffusers`: 4 channels, an eighth of the size."""
    arguments = dict(block_out_channels=[4] * 4, layers_per_block=1, norm_num_groups=2)
    config = {"_class_name": "AutoencoderKL", "latent_channels": 4, **arguments}
    tensors = KLAutoencoder(**arguments).net.state_dict()
    Path(folder).mkdir(parents=True)
    Path(folder, "config.json").write_text(json.dumps(config))
    save_file(tensors, Path(folder, "diffusion_pytorch_model.safetensors"))


def write_latents(folder):
    """A manifest as `robustguide encode` leaves it, of no images."""
    encoding = Encoding("KLCodec", "", (1, 32, 32), 4, "float16", False, (1.0,) * 4, (0.0,) * 4)
    names = [str(y) for y in range(10)]
    Path(folder).mkdir(parents=True)
    Manifest(names, (4, 8, 8), "", {split: [] for split in SPLITS}, encoding).write(Path(folder))


@pytest.fixture(scope="module")
def fetched():
    """Weights that a library was asked to fetch."""
    return []


@pytest.fixture(scope="module", autouse=True)
def newcomer(tmp_path_factory, fetched) -> Iterator[None]:
    """A folder with the configurations and the checkpoints that they name, and no network."""

    def resnet(weights, **kwargs):
        fetched.append(str(weights))
        name = type(weights).__name__.removesuffix("_Weights").lower()
        return torchvision.models.get_model(name).state_dict()

    def load_pretrained(model, pretrained_cfg, **kwargs):
        fetched.append(pretrained_cfg["hf_hub_id"])

    def whole_clip(weights):
        architectures = {
            "clip-rn50": "RN50-quickgelu",
            "clip-vit-l14-336": "ViT-L-14-336-quickgelu",
        }
        known = {card(name).file: architecture for name, architecture in architectures.items()}
        fetched.append(weights)
        return clip(known[Path(weights).name]).state_dict()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models.WeightsEnum, "get_state_dict", resnet)
        patch.setattr("timm.models._builder.load_pretrained", load_pretrained)
        patch.setattr("robustguide.checkpoints.off_the_shelf.tensors_of", whole_clip)
        # The commands are the real ones, up to the moment when the trainer would start.
        patch.setattr(command_line.CommandLine, "_run_subcommand", lambda self, subcommand: None)
        # Lightning 2.6 calls what jsonargparse 5 will drop.
        patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        patch.chdir(tmp_path_factory.mktemp("newcomer"))
        Path("configs").symlink_to(ROOT / "configs")
        text = " ".join((ROOT / file).read_text() for file in FILES)
        for path in sorted(set(re.findall(r"[\w/]+/(?:classifier|denoiser)\.safetensors", text))):
            write_checkpoint(path)
        for folder in sorted(set(re.findall(r"root: (runs/\w+_latents)\}", text))):
            write_latents(folder)
        for folder in sorted(set(re.findall(r"path: (models/[\w-]+)\}", text))):
            write_autoencoder(folder)
        yield
        built.cache_clear()


@cache
def built(command):
    """What the command line made of a command.

    What is to be trained, or published, is on the meta device; tiny files are read.
    """
    known = command_line.CommandLine.subcommands()
    text = "".join((ROOT / file).read_text() for file in configs(command))
    device = "meta" if command[0] == "fit" or "{card: " in text else "cpu"
    if "/published/" in "".join(command):
        command = (*command, "--data.count=1000")  # drawing 50,000 labels takes a second
    with torch.device(device), pytest.MonkeyPatch.context() as patch:
        # The parsers of the other three subcommands would be the longest part.
        only = staticmethod(lambda: {command[0]: known[command[0]]})
        patch.setattr(command_line.CommandLine, "subcommands", only)
        return command_line.run(list(command))


def of(file):
    """What is built by the first command line in the head of a file."""
    return built(commands(f"configs/{file}.yaml")[0])


@pytest.mark.parametrize("file", FILES)
def test_a_file_says_how_it_is_used(file):
    first = (ROOT / file).read_text().splitlines()[0]
    assert re.match(r"# \w", first)
    using = [command for command in COMMANDS if file in configs(command)]
    assert using
    if file in EXPERIMENTS:
        assert set(commands(file)) & set(using)
        assert all(file in configs(command) for command in commands(file))


def is_built(command):
    """Whether a command is built as it stands.

    Of the published settings, `test` is and `predict`, which has the same files, is not; and see
    `test_presets_of_edm2`.
    """
    file = configs(command)[-1]
    if file in PRESETS:
        return Path(file).stem.removeprefix("edm2_") in BUILT_PRESETS and command[0] == "test"
    return "/published/" not in file or command[0] == "test"


@pytest.mark.parametrize("command", [*filter(is_built, COMMANDS)], ids=name)
def test_the_documented_command_builds_what_it_names(command):
    """And, for training, what would go wrong later: see the checks that follow."""
    cli = built(command)
    config = cli.config[command[0]]
    for made, described in ((cli.model, config.model), (cli.datamodule, config.data)):
        assert described.class_path.endswith(f".{type(made).__name__}")
    assert config.trainer.default_root_dir.startswith("runs/")
    if command[0] == "fit" and isinstance(cli.model, Autoencoding):
        assert_codec_reads_images(cli.model.codec, cli.datamodule.shape)
        assert_rate_falls_over_the_run(cli)
    elif command[0] == "fit" and isinstance(cli.model, Calibration | Combination | KnobSearch):
        assert cli.model.configure_optimizers() == []  # fitted or chosen, not trained
        if hasattr(cli.model, "space"):
            assert cli.model.classifier.reads(cli.model.space.shape(cli.datamodule.shape))
    elif command[0] == "fit":
        network = cli.model.classifier if hasattr(cli.model, "classifier") else cli.model.denoiser
        assert_network_reads_images(network, cli.model.space.shape(cli.datamodule.shape))
        assert cli.model.noise is not None
        assert_rate_falls_over_the_run(cli)
        assert_only_zero_rates_freeze(network, cli.model.rates)


def assert_codec_reads_images(codec, shape):
    """Those of the data, into moments of its latents' shape; and its latents into such images."""
    channels, height, width = codec.latent_shape(shape)
    images = torch.zeros(2, *shape, device=codec.scale.device)
    assert codec.moments(images).shape == (2, 2 * channels, height, width)
    x_0 = torch.zeros(2, channels, height, width, device=codec.scale.device)
    assert codec.decode(x_0).shape == images.shape


def assert_network_reads_images(network, shape):
    """Those of the data, into logits or an image of their shape."""
    device = next(network.parameters()).device
    x, sigma = torch.zeros(2, *shape, device=device), torch.ones(2, device=device)
    if isinstance(network, Classifier):
        assert network(x, sigma).shape == (2, network.num_classes)
        return
    y = torch.zeros(2, dtype=torch.long, device=device)
    prediction = network.predict(x, sigma, network.null(y) if network.has_null else y)
    assert prediction.denoised.shape == x.shape and network.shape == shape
    assert (prediction.fraction is not None) == network.learns_variance


def assert_rate_falls_over_the_run(cli):
    """From 1 to 0 where there is a schedule; every prefix of `rates` is known, or this raises."""
    made = cli.model.configure_optimizers()
    if cli.model.scheduler is None:
        assert isinstance(made, torch.optim.Optimizer)
        return
    schedule = made["lr_scheduler"]["scheduler"]
    assert made["lr_scheduler"]["interval"] == "step"
    assert (schedule.start_factor, schedule.end_factor) == (1, 0)
    assert schedule.total_iters == cli.trainer.max_steps


def assert_only_zero_rates_freeze(network, rates):
    """After the optimizer was made."""
    zero = tuple(key for key, rate in (rates or {}).items() if rate == 0)
    for key, value in network.named_parameters():
        assert value.requires_grad != key.startswith(zero)


@pytest.mark.parametrize(
    ("file", "role", "published"),
    [
        ("fit/imagenet128_plain", "classifier", "adm_classifier_128"),
        ("fit/imagenet128_robust", "classifier", "kawar_imagenet128_classifier"),
        ("fit/cifar10_robust", "classifier", "kawar_cifar10_classifier"),
        ("overlay/cifar10_kawar", "denoiser", "kawar_cifar10_diffusion"),
        ("overlay/adm128", "denoiser", "adm_imagenet128_diffusion"),
        ("overlay/adm256", "denoiser", "adm_imagenet256_diffusion"),
    ],
)
def test_parameters_are_those_of_the_published_checkpoint(file, role, published):
    net = getattr(of(file).model, role).net
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert shapes == listing(published)[1]


# Dhariwal and Nichol (2021), README of openai/guided-diffusion; Kawar, Ganz and Elad (2022), their
# scripts and README. Radius and steps are the scripts' defaults.
@pytest.mark.parametrize(
    ("file", "batch_size", "attack"),
    [
        ("fit/imagenet128_plain", 256, None),
        ("fit/imagenet128_robust", 128, (L2Ball, 0.5, 7, 0.5 * 0.5 / 3)),
        ("fit/cifar10_plain", 128, None),
        ("fit/cifar10_robust", 128, (L2Ball, 0.5, 7, 2.5 * 0.5 / 7)),
        ("overlay/linf", 128, (LinfBall, 8 / 255, 7, 2.5 * 8 / 255 / 7)),
    ],
)
def test_published_classifier_recipes(file, batch_size, attack):
    cli = of(file)
    made = cli.model.configure_optimizers()
    optimizer = made["optimizer"]
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert (group["initial_lr"], group["weight_decay"]) == (3e-4, 0.05)
    assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)
    assert cli.trainer.max_steps == 300_000
    assert cli.datamodule.batch_size == batch_size
    augment = cli.datamodule.augment
    assert (augment.min_fraction, augment.max_fraction, augment.flip) == (0.8, 1.0, 0.5)
    assert type(cli.model.noise) is UniformT
    for levels in (cli.model.noise.levels, cli.model.classifier.levels):
        assert (len(levels), levels.betas[0], levels.betas[-1]) == (1000, 1e-4, 0.02)
    found = cli.model.attack
    if attack is None:
        assert found is None
        return
    ball, radius, steps, step_size = attack
    assert (found.ball, found.radius, found.steps) == (ball, radius, steps)
    assert found.fraction * found.radius == pytest.approx(step_size, rel=1e-15)
    assert (found.random_start, found.restarts, found.early_stop) == (False, 0, True)


def test_fine_tuning_starts_from_published_weights(fetched):
    for file in ("finetune_resnet50", "finetune_resnet50_timed", "finetune_timm"):
        classifier = of(f"fit/{file}").model.classifier
        inner = classifier.classifier if isinstance(classifier, NoiseConditioned) else classifier
        assert (inner.size, inner.num_classes) == (224, 1000)
    assert {"ResNet50_Weights.IMAGENET1K_V2", "timm/convnext_tiny.fb_in1k"} <= set(fetched)


def test_fine_tuning_slows_layers_down():
    model = of("fit/finetune_resnet50").model
    optimizer = model.configure_optimizers()["optimizer"]
    rate = {p: group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    rates = {key: rate.get(value) for key, value in model.classifier.net.named_parameters()}
    assert rates["conv1.weight"] is None
    expected = {"layer1.0.conv1": 1e-5, "layer2.0.conv1": 2e-5, "layer3.0.conv1": 5e-5}
    for layer, value in {**expected, "layer4.0.conv1": 1e-4, "fc": 1e-4}.items():
        assert rates[f"{layer}.weight"] == pytest.approx(value)


def test_noise_of_edm():
    """Karras et al. (2022), table 1."""
    for file in ("fit/cifar10_sigma", "fit/digits_edm"):
        noise = of(file).model.noise
        assert type(noise) is LogNormal and (noise.mean, noise.std) == (-1.2, 1.2)
    clipped = of("fit/digits_sigma").model.noise
    assert type(clipped) is Clipped
    ends = clipped.quantile(torch.tensor([2**-25, 1 - 2**-24]))
    assert 0.01 <= ends[0] < 0.0101 and 75 < ends[1] <= 80
    for file in ("fit/cifar10_sigma", "fit/digits_sigma"):
        assert type(of(file).model.classifier) is SigmaConditioned
    denoiser = of("fit/digits_edm").model.denoiser
    assert type(denoiser) is EDMDenoiser and denoiser.sigma_data == 0.5


# Scale or weight of the guidance, steps, what is expected. Dhariwal and Nichol (2021), tables 4, 5
# and 14; Kawar, Ganz and Elad (2022), README; Karras et al. (2022), abstract and README; Ma et al.
# (2024), table 8, for EDM in 18 and 36 steps; Peebles and Xie (2023), README and sample.py.
ANCESTRAL = dict(clip=1.0, state_dtype="float32")
UNCLIPPED = dict(clip=None, state_dtype="float32")
STRIDED = dict(clip=1.0, eta=0.0)
DETERMINISTIC = dict(clip=None, state_dtype="float64", churn=0.0)
STOCHASTIC = DETERMINISTIC | dict(churn=40.0, churn_min=0.05, churn_max=50.0, churn_noise=1.003)
EDM_IMAGENET, EDM_CIFAR = "edm-imagenet-64x64-cond-adm", "edm-cifar10-32x32"
PUBLISHED = {
    "adm64": ("adm-imagenet64", 1.0, Ancestral, 250, ANCESTRAL, None),
    "adm128": ("adm-imagenet128", 0.5, Ancestral, 250, ANCESTRAL, "FID 2.97"),
    "adm128_ddim25": ("adm-imagenet128", 1.25, DDIM, 25, STRIDED, "FID 5.98"),
    "adm256": ("adm-imagenet256", 1.0, Ancestral, 250, ANCESTRAL, "FID 4.59"),
    "adm256_ddim25": ("adm-imagenet256", 2.5, DDIM, 25, STRIDED, "FID 5.44"),
    "adm256_uncond": ("adm-imagenet256-uncond", 10.0, Ancestral, 250, ANCESTRAL, "FID 12.00"),
    "adm512": ("adm-imagenet512", 4.0, Ancestral, 250, ANCESTRAL, "FID 7.72"),
    "adm512_ddim25": ("adm-imagenet512", 9.0, DDIM, 25, STRIDED, "FID 8.41"),
    "kawar_imagenet128": ("adm-imagenet128", 1.0, Ancestral, 250, ANCESTRAL, None),
    "edm_imagenet64_18": (EDM_IMAGENET, None, Heun, 18, DETERMINISTIC, "FID 2.54"),
    "edm_imagenet64_36": (EDM_IMAGENET, None, Heun, 36, DETERMINISTIC, "FID 2.35"),
    "edm_imagenet64_churn256": (EDM_IMAGENET, None, Heun, 256, STOCHASTIC, "FID 1.36"),
    "edm_cifar10": (f"{EDM_CIFAR}-cond-vp", None, Heun, 18, DETERMINISTIC, "FID 1.79"),
    "edm_cifar10_uncond": (f"{EDM_CIFAR}-uncond-vp", None, Heun, 18, DETERMINISTIC, "FID 1.97"),
    "dit256": ("dit-xl2-imagenet256", 0.5, Ancestral, 250, UNCLIPPED, "FID 2.27"),
    "dit256_samples": ("dit-xl2-imagenet256", 3.0, Ancestral, 250, UNCLIPPED, None),
    "dit512": ("dit-xl2-imagenet512", 0.5, Ancestral, 250, UNCLIPPED, "FID 3.04"),
}
# Where other settings of the same network are published, its card tells another number.
TOLD_BY_THE_CARD = {name for name in PUBLISHED if not re.search(r"ddim25|_18$|_36$", name)}


def header(file):
    """The comment that a file begins with, as one line."""
    lines = (ROOT / file).read_text().splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def stated(file):
    """Values in a file by the way to them."""
    return dict(leaves(yaml.safe_load((ROOT / file).read_text())))


def test_every_published_setting_is_compared_with_its_source():
    found = {Path(file).stem for file in FILES if "/published/" in file} - {"edm2"}
    assert found == {*PUBLISHED, *(Path(file).stem for file in PRESETS)}


@pytest.mark.parametrize(
    "setting",
    [
        "adm64",
        "adm256_uncond",
        "kawar_imagenet128",
        "edm_imagenet64_18",
        "edm_cifar10_uncond",
        "dit512",
        "edm2_img512_s_uncond_autog_fid",
        "edm2_img512_xxl_interval_fid",
        "edm2_img64_s_fid",
    ],
)
def test_published_settings_are_evaluated_without_memory(setting):
    """One of every kind: the networks take what the guidance gives them."""
    model = of(f"published/{setting}").model
    x = torch.zeros(2, *model.denoiser.shape, device="meta")
    y = torch.zeros(2, dtype=torch.long, device="meta")
    guided = Guided(model.denoiser, dict(model.guidance.items()), model.sampler.clip)
    assert guided.predict(x, x.new_ones(2), y).denoised.shape == x.shape


@pytest.mark.parametrize("setting", PUBLISHED)
def test_published_settings(setting):
    name, scale, kind, steps, arguments, expected = PUBLISHED[setting]
    file, cli = f"configs/published/{setting}.yaml", of(f"published/{setting}")
    assert commands(file) == [("test", "--config", file), ("predict", "--config", file)]
    sampler, terms = cli.model.sampler, list(cli.model.guidance.values())
    assert type(sampler) is kind and len(sampler.grid.sigmas()) - 1 == steps
    assert {key: getattr(sampler, key) for key in arguments} == arguments
    assert kind is not Ancestral or type(sampler.variance) is Learned
    if isinstance(sampler.grid, RhoGrid):
        assert (sampler.grid.sigma_min, sampler.grid.sigma_max, sampler.grid.rho) == (0.002, 80, 7)
    else:
        outer = cli.model.denoiser
        levels = getattr(outer, "denoiser", outer).levels
        assert len(levels) == 1000
        assert (sampler.grid.levels.betas == levels.betas).all()
    assert [term.scales for term in terms] == ([] if scale is None else [(scale,)])
    values = stated(file)
    assert name in values.values() and card(name).kind == "denoiser"
    if expected is None:
        assert "No number" in header(file) or "no number" in header(file)
    else:
        assert f"Expected: {expected}" in header(file)
        assert setting not in TOLD_BY_THE_CARD or expected in card(name).result
    assert values["data.count"] == (8 if setting == "dit256_samples" else 50_000)
    assert all(parameter.is_meta for parameter in cli.model.denoiser.parameters())


def test_published_labels():
    """Drawn at random, as by the published scripts; balanced by Kawar, Ganz and Elad (2022)."""
    other = {
        "kawar_imagenet128": Balanced,
        "edm_cifar10_uncond": Balanced,  # there is one class
        "dit256_samples": Listed,
    }
    for setting in PUBLISHED:
        data = of(f"published/{setting}").datamodule
        assert type(data.labels) is other.get(setting, Random)
    assert data.y.tolist() and of("published/edm_cifar10_uncond").datamodule.num_classes == 1
    balanced = of("published/kawar_imagenet128").datamodule.y  # the first 1,000
    assert balanced.bincount(minlength=1000).eq(1).all()


def test_published_guidance_of_dit():
    for setting, folder in (("dit256", "ema"), ("dit256_samples", "mse"), ("dit512", "ema")):
        model = of(f"published/{setting}").model
        (term,) = model.guidance.values()
        assert type(term.term) is Channels and term.term.count == 3
        assert type(term.term.term) is ClassifierFree
        assert type(model.codec) is StableDiffusionCodec
        path = stated(f"configs/published/{setting}.yaml")["model.codec.autoencoder.path"]
        assert path == f"models/sd-vae-ft-{folder}"
        assert stated(f"configs/published/{setting}.yaml")["model.codec.scaling_factor"] == 0.18215


def merged(first, second):
    """Mappings merge, everything else is replaced, as the command line does it."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return second
    both = {key: merged(first[key], second[key]) for key in first.keys() & second.keys()}
    return first | second | both


def model_of(file):
    """The model of edm2.yaml and a file, without the rest of a command line."""
    texts = [(ROOT / part).read_text() for part in ("configs/published/edm2.yaml", file)]
    model = merged(*(yaml.safe_load(text)["model"] for text in texts))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(lightning.LightningModule, "model")
    with torch.device("meta"):
        return parser.instantiate(parser.parse_object({"model": model})).model


@pytest.mark.parametrize("file", PRESETS)
def test_presets_of_edm2(file):
    """Against what the cards tell of the networks, and that the command names edm2.yaml."""
    (command,) = commands(file)
    assert configs(command) == ["configs/published/edm2.yaml", file]
    name, values, model = Path(file).stem.replace("_", "-"), stated(file), model_of(file)
    guide = [value for key, value in values.items() if key.endswith("reference.card")]
    network = card(values["model.denoiser.card"])
    expected = re.search(r"Expected: ((FID|FD_DINOv2) \d+\.\d\d) ", header(file))[1]
    if "interval" not in name:
        weight = values.get("model.guidance.reference.weight")
        how = f" guided by {guide[0]} at weight {weight:g}" if guide else ""
        assert f"{expected}{how} (preset {name})" in network.result
        assert f"Preset {name} " in header(file)
    for term in model.guidance.values():
        term = term.term.term if isinstance(term.term, WithinSteps) else term.term
        assert type(term) is Reference and term.reference.metadata.path == card(guide[0]).file
    assert len(model.guidance) == len(guide)
    assert model.denoiser.metadata.path == network.file
    sampler = model.sampler
    assert (sampler.grid, sampler.churn, sampler.clip) == (RhoGrid(32), 0, None)
    assert sampler.state_dtype == ("float64" if "interval" in name else "float32")
    assert type(model.codec) is (EDM2Codec if "img512" in name else type(None))
    assert all(parameter.is_meta for parameter in model.denoiser.parameters())
    assert values["trainer.default_root_dir"] == f"runs/published/{Path(file).stem}"


# Kynkaanniemi et al. (2024), table 1 and generate_zip.py
@pytest.mark.parametrize(
    ("name", "interval", "weight", "expected"),
    [
        ("s_interval_fid", (0.28, 2.90), 2.1, "FID 1.68"),
        ("s_interval_dino", (0.60, 5.00), 3.2, "FD_DINOv2 46.25"),
        ("xxl_interval_fid", (0.19, 1.61), 2.0, "FID 1.40"),
        ("xxl_interval_dino", (0.60, 5.00), 2.9, "FD_DINOv2 29.16"),
    ],
)
def test_published_intervals(name, interval, weight, expected):
    """They publish the levels that a step begins and ends with, to two digits."""
    file = f"configs/published/edm2_img512_{name}.yaml"
    (term,) = model_of(file).guidance.values()
    within, levels = term.term, RhoGrid(32).sigmas()
    assert type(within) is WithinSteps and term.scales == (weight - 1,)
    ends = levels[within.last + 1], levels[within.first]
    assert ends == pytest.approx(interval, abs=0.005)
    assert f"Expected: {expected} " in header(file)
    assert f"steps {within.first} to {within.last} of 32" in header(file)


def test_the_document_tells_what_is_expected():
    rows = re.findall(
        r"^\| `published/(\w+)\.yaml` \|(.*)", (ROOT / "docs/configs.md").read_text(), re.M
    )
    assert len(rows) == len(PUBLISHED) + len(PRESETS) + 1
    for name, row in rows:
        file = f"configs/published/{name}.yaml"
        expected = re.search(r"Expected: ([\w ]+ \d+\.\d\d)", header(file))
        assert expected is None or f"{expected[1]} " in row
        told = [value for key, value in stated(file).items() if key.endswith("card")]
        assert all(f"`{value}`" in row for value in told)


@pytest.mark.parametrize(
    ("file", "evaluations", "expected"),
    [
        ("overlay/ddim25", 25, {"eta": 0.0, "clip": 1.0}),
        ("overlay/heun18", 18, {"churn": 0.0, "clip": None}),
        # Karras et al. (2022), for ImageNet-64: README of NVlabs/edm
        (
            "overlay/edm_churn256",
            256,
            {
                "churn": 40.0,
                "churn_min": 0.05,
                "churn_max": 50.0,
                "churn_noise": 1.003,
                "clip": None,
            },
        ),
    ],
)
def test_published_samplers(file, evaluations, expected):
    sampler = of(file).model.sampler
    assert len(sampler.grid.sigmas()) - 1 == evaluations
    assert {key: getattr(sampler, key) for key in expected} == expected
    if isinstance(sampler.grid, RhoGrid):
        assert (sampler.grid.sigma_min, sampler.grid.sigma_max, sampler.grid.rho) == (0.002, 80, 7)
    else:
        assert sampler.grid.indices() == list(range(0, 1000, 40))  # starts at t = 960


def test_the_interval_holds_the_published_steps():
    """Kynkaanniemi et al. (2024): steps 17 to 22 of 32, of EDM's grid."""
    (term,) = of("overlay/interval").model.guidance.values()
    within = term.term
    levels = RhoGrid(32).sigmas()
    inside = [i for i, level in enumerate(levels) if within.sigma_min < level <= within.sigma_max]
    assert inside == list(range(17, 23))
    assert term.scales == (1.0,)  # weight 2


# Ma et al. (2023), tables 7 and 8; the commands in the README of AlexMaOLS/EluCD
ELUCD = {"elucd": (3.0, "Tempered", (1.0, 0.5)), "elucd_edm": (5.0, "RawLogit", (1.0, 0.0))}


@pytest.mark.parametrize("setting", ELUCD)
def test_published_settings_of_elucd(setting):
    beta, objective, temperatures = ELUCD[setting]
    model = of(f"overlay/{setting}").model
    assert list(model.guidance) == ["elucd"]
    term = getattr(model.guidance["elucd"], "term", model.guidance["elucd"])
    assert type(term.objective).__name__ == objective
    assert (term.objective.joint, term.objective.marginal) == temperatures
    smooth = term.classifier
    assert (smooth.beta, smooth.classifier.size) == (beta, None)
    assert {smooth.classifier.mean.device.type, smooth.classifier.std.device.type} == {"meta"}
    blocks = [name for name in smooth.state_dict() if name.endswith("conv3.weight")]
    assert len(blocks) == 33  # of a ResNet-101
    x = torch.zeros(2, *model.denoiser.shape, device="meta")
    y = torch.zeros(2, dtype=torch.long, device="meta")
    guided = Guided(model.denoiser, dict(model.guidance.items()), model.sampler.clip)
    assert guided.displaced(x, x.new_ones(2), y).shape == x.shape


def test_published_samplers_of_elucd():
    sampler = of("overlay/elucd").model.sampler
    assert sampler.guidance_variance == Sine(0.3) and type(sampler.variance) is Learned
    assert (len(sampler.grid.sigmas()) - 1, sampler.clip) == (250, 1.0)
    for command, steps, strength in zip(
        commands("configs/overlay/elucd_edm.yaml"), (18, 36), (0.004, 0.0018), strict=True
    ):
        sampler = built(command).model.sampler
        assert len(sampler.grid.sigmas()) - 1 == steps and sampler.state_dtype == "float64"
        assert sampler.nudge == Nudge(strength, 0.3)


def test_elucd_on_latents_moves_the_channels_that_are_published():
    guidance = of("overlay/elucd_dit").model.guidance
    assert set(guidance) == {"classifier_free", "elucd"}
    free, matched = guidance["classifier_free"], guidance["elucd"].term
    assert free.scales == (0.5,) and free.term.count == matched.second.count == 3
    assert matched.first.term.count == 3 and matched.first.every == 5
    assert guidance["elucd"].scales == (1.5,) and matched.moves_denoised


def test_latents_are_encoded_by_the_codec_that_was_trained_for_them():
    """The command in the head of a configuration of shards, and the two runs beside it."""
    file = "configs/fit/fashion_mnist_latent_dit.yaml"
    (words,) = (words[1:] for words in lines(file) if words[0] == "encode")
    arguments = encode.parser(words)
    given = arguments.parse_args(words)
    trained = stated("configs/fit/fashion_mnist_autoencoder.yaml")["trainer.default_root_dir"]
    assert given.codec == f"{trained}/codec.safetensors" and not given.mirrored
    assert given.folder == stated(file)["data.source.root"]
    source = arguments.instantiate(given).source
    assert type(source) is FashionMNIST
    codec = of("fit/fashion_mnist_autoencoder").model.codec
    latents = codec.latent_shape(source.shape)
    assert of("fit/fashion_mnist_latent_dit").model.denoiser.shape == latents == (4, 8, 8)


def test_elucd_on_shipped_latents_goes_with_the_weight_of_classifier_free_guidance():
    """Its scale multiplies the same difference; the classifier reads what is decoded."""
    model = of("replication/latent_elucd").model
    free, elucd = (model.guidance[name] for name in ("free", "elucd"))
    assert elucd.scales == (free.scales[0] + 1,)
    reader = model.reading.classifier
    assert type(reader) is Decoded and reader is elucd.term.first.term.classifier
    assert model.codec.latent_shape((1, 32, 32)) == model.denoiser.shape == reader.shape
    assert model.sampler.clip is None


def test_universal_guidance_by_prompts():
    """Bansal et al. (2023), README: the weight and the repeats for CLIP on ADM at 256 px."""
    model = of("overlay/universal").model
    (term,) = model.guidance.values()
    assert (term.weight, term.descent, model.sampler.repeats) == (2.0, None, 10)
    assert term.num_classes == model.denoiser.num_classes == 2
    assert (term.loss.objective, term.loss.classifier.size) == (RawLogit(), 224)
    x = torch.zeros(2, 3, 256, 256, device="meta")
    guided = Guided(model.denoiser, dict(model.guidance.items()), model.sampler.clip)
    y = torch.zeros(2, dtype=torch.long, device="meta")
    assert guided.predict(x, x.new_ones(2), y).denoised.shape == x.shape


def leaves(value, where=()):
    """Values by the way to them; class paths, which merging may need again, are none."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key != "class_path":
                yield from leaves(part, where if key == "init_args" else (*where, key))
    else:
        yield ".".join(where), value


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_no_file_repeats_a_value_of_another(command):
    stated = [dict(leaves(yaml.safe_load((ROOT / file).read_text()))) for file in configs(command)]
    for earlier, later in combinations(stated, 2):
        assert not [key for key in later if key in earlier and earlier[key] == later[key]]


@pytest.mark.parametrize(
    ("where", "key"),
    [("trainer", "max_step"), ("model.init_args.attack.init_args", "epsilon")],
)
def test_a_wrong_key_is_refused(where, key, tmp_path, capsys):
    file = tmp_path / "wrong.yaml"
    content = {key: 1}
    for part in reversed(where.split(".")):
        content = {part: content}
    file.write_text(yaml.safe_dump(content))
    command = [*commands("configs/fit/digits_robust.yaml")[0], "--config", str(file)]
    with pytest.raises(SystemExit) as stopped:
        command_line.run(command)
    assert stopped.value.code == 2
    assert key in capsys.readouterr().err


def test_the_command_line_changes_one_term(tmp_path):
    def term(scale):
        inner = specification("robustguide.guidance.ClassifierFree")
        return specification("robustguide.guidance.Scaled", scale=scale, term=inner)

    file = tmp_path / "terms.yaml"
    terms = {"first": term(1.0), "second": term(2.0)}
    file.write_text(yaml.safe_dump({"model": {"init_args": {"guidance": terms}}}))
    base = [*commands("configs/test/fashion_mnist.yaml")[0], "--config", str(file)]
    before = built((*base,)).model.guidance
    after = built((*base, "--model.guidance.second.scale=3.0")).model.guidance
    assert {key: value.scales for key, value in before.items()} == {"first": (1,), "second": (2,)}
    assert {key: value.scales for key, value in after.items()} == {"first": (1,), "second": (3,)}


def test_overlays_go_with_any_number_of_processes():
    trainer = of("overlay/gpu_ddp").trainer
    assert isinstance(trainer.strategy, lightning.pytorch.strategies.DDPStrategy)
    assert trainer.precision == "bf16-mixed"
    assert of("overlay/gpu_ddp").datamodule.batch_size == 16
