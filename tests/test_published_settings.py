"""Settings that papers published, in our configurations: each against its source and its card."""

import re
from pathlib import Path

import lightning
import pytest
import torch
import yaml
from documented import FILES, PRESETS, ROOT, built, commands, configs, header, newcomer, of, stated
from golden_files import listing
from jsonargparse import ArgumentParser

from robustguide.attacks import L2Ball, LinfBall
from robustguide.cards import card
from robustguide.classifiers import Decoded, NoiseConditioned, SigmaConditioned
from robustguide.codecs import EDM2Codec, StableDiffusionCodec
from robustguide.data import Balanced, Listed, Random
from robustguide.denoisers import EDMDenoiser
from robustguide.guidance import Channels, ClassifierFree, Guided, RawLogit, Reference, WithinSteps
from robustguide.noise import Clipped, LogNormal, RhoGrid, UniformT
from robustguide.samplers import DDIM, Ancestral, Heun, Learned, Nudge, Sine


@pytest.fixture(scope="module", autouse=True)
def fetched(tmp_path_factory):
    """Weights that a library was asked to fetch."""
    with newcomer(tmp_path_factory.mktemp("newcomer")) as found:
        yield found


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
