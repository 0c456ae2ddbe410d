"""Every command line in the head of a configuration: parsed, built without memory, compared."""

import re
from itertools import combinations
from pathlib import Path

import lightning
import pytest
import torch
import yaml
from documented import (
    COMMANDS,
    FILES,
    PRESETS,
    ROOT,
    built,
    commands,
    configs,
    lines,
    name,
    newcomer,
    of,
    specification,
    stated,
)

from robustguide import main as command_line
from robustguide.commands import encode
from robustguide.data import FashionMNIST
from robustguide.interfaces import Classifier
from robustguide.modules import Autoencoding, Calibration, Combination, KnobSearch

EXPERIMENTS = [file for file in FILES if "/overlay/" not in file]
BUILT_PRESETS = {
    "img512_s_autog_fid",  # in the head of edm2.yaml
    "img512_s_uncond_autog_fid",
    "img512_xxl_interval_fid",
    "img64_s_fid",
}


@pytest.fixture(scope="module", autouse=True)
def newcomers_folder(tmp_path_factory):
    """Where the commands are called."""
    with newcomer(tmp_path_factory.mktemp("newcomer")):
        yield


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


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_no_file_repeats_a_value_of_another(command):
    for earlier, later in combinations(map(stated, configs(command)), 2):
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
