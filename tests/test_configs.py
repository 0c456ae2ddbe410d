"""Every command line in the head of a configuration: parsed, built on the meta device, compared.

The checkpoints that a newcomer would have trained before are written, tiny, into an empty folder;
data sets are not there, so that building cannot have read one.
"""

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

from robustguide import main as command_line
from robustguide.attacks import L2Ball, LinfBall
from robustguide.checkpoints import build, export
from robustguide.classifiers import NoiseConditioned, SigmaConditioned
from robustguide.denoisers import EDMDenoiser
from robustguide.interfaces import Classifier
from robustguide.noise import Clipped, LogNormal, RhoGrid, UniformT
from robustguide.samplers import Learned

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/**/*.yaml"))
EXPERIMENTS = [file for file in FILES if "/overlay/" not in file]
SHAPES = {
    "imagenet": (1000, [3, 128, 128]),
    "adm": (1000, [3, 128, 128]),
    "cifar": (10, [3, 32, 32]),
    "fashion": (10, [1, 32, 32]),
    "": (10, [1, 8, 8]),
}


def commands(file):
    """The command lines in the comment that a file begins with, as words behind `robustguide`."""
    head = []
    for line in (ROOT / file).read_text().splitlines():
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").strip())
    return [tuple(shlex.split(line)[1:]) for line in head if line.startswith("robustguide ")]


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
        unet |= dict(image_size=4, channel_mult=[1], out_channels=num_classes, pool="attention")
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
    names = [str(y) for y in range(num_classes)]
    network = build(described)
    export(network, path, described, class_names=names, shape=shape, weights="raw")


@pytest.fixture(scope="module")
def fetched():
    """Weights that a library was asked to fetch."""
    return []


@pytest.fixture(scope="module", autouse=True)
def newcomer(tmp_path_factory, fetched) -> Iterator[None]:
    """A folder with the configurations and the checkpoints that they name, and no network."""

    def resnet50(weights, **kwargs):
        fetched.append(str(weights))
        return torchvision.models.resnet50().state_dict()

    def load_pretrained(model, pretrained_cfg, **kwargs):
        fetched.append(pretrained_cfg["hf_hub_id"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models.WeightsEnum, "get_state_dict", resnet50)
        patch.setattr("timm.models._builder.load_pretrained", load_pretrained)
        # The commands are the real ones, up to the moment when the trainer would start.
        patch.setattr(command_line.CommandLine, "_run_subcommand", lambda self, subcommand: None)
        # Lightning 2.6 calls what jsonargparse 5 will drop.
        patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        patch.chdir(tmp_path_factory.mktemp("newcomer"))
        Path("configs").symlink_to(ROOT / "configs")
        text = " ".join((ROOT / file).read_text() for file in FILES)
        for path in sorted(set(re.findall(r"[\w/]+/(?:classifier|denoiser)\.safetensors", text))):
            write_checkpoint(path)
        yield
        built.cache_clear()


@cache
def built(command):
    """What the command line made of a command; what is to be trained is on the meta device."""
    known = command_line.CommandLine.subcommands()
    device = "meta" if command[0] == "fit" else "cpu"  # labels have values, and files are tiny
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


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_the_documented_command_builds_what_it_names(command):
    """And, for training, what would go wrong later: see the checks that follow."""
    cli = built(command)
    config = cli.config[command[0]]
    for made, described in ((cli.model, config.model), (cli.datamodule, config.data)):
        assert described.class_path.endswith(f".{type(made).__name__}")
    assert config.trainer.default_root_dir.startswith("runs/")
    if command[0] == "fit":
        network = cli.model.classifier if hasattr(cli.model, "classifier") else cli.model.denoiser
        assert_network_reads_images(network, cli.datamodule.shape)
        assert cli.model.noise is not None
        assert_rate_falls_over_the_run(cli)
        assert_only_zero_rates_freeze(network, cli.model.rates)


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


def test_published_setting_of_robust_guidance():
    """Kawar, Ganz and Elad (2022), README and classifier_sample.py."""
    cli = of("test/imagenet128_robust")
    sampler, (term,) = cli.model.sampler, cli.model.guidance.values()
    assert len(sampler.grid.indices()) == 250 and len(sampler.grid.levels) == 1000
    assert type(sampler.variance) is Learned and sampler.clip == 1
    assert term.scales == (1.0,)
    assert cli.datamodule.y.bincount(minlength=1000).eq(50).all()


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
