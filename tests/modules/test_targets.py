"""What the denoised image is trained towards."""

import copy

import pytest
import tiny
import torch
from lightning import Callback
from oracles import ExactDenoiser, noisy, tilted
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.testing import assert_close

from robustguide.checkpoints import build, load_denoiser
from robustguide.data import Images
from robustguide.denoisers import EDMDenoiser, ScaleInput
from robustguide.interfaces import Codec, Denoiser, Prediction
from robustguide.modules import (
    CleanImage,
    Denoising,
    ModelGuidance,
    ScaleAwareModelGuidance,
)
from robustguide.noise import LogNormal, UniformT, linear_levels

EXACT = dict(rtol=0, atol=1e-10)
LEVELS = UniformT(linear_levels())


class Table(Denoiser):
    """One picture a label, the null label too, whatever it sees; `calls` lists rows."""

    def __init__(self, num_classes=3, shape=(1, 2, 2), has_null=True):
        super().__init__()
        self.num_classes, self.shape, self.has_null = num_classes, shape, has_null
        self.pictures = nn.Parameter(torch.zeros(num_classes + 1, *shape, dtype=torch.float64))
        self.calls = []

    def predict(self, x, sigma, y):
        self.calls.append(len(x))
        return Prediction(self.pictures[y])

    def fit(self, images, y):
        """The exact minimiser of the squared error: a mean for every label."""
        for label in range(self.num_classes + 1):
            self.pictures.data[label] = images[y == label].mean(0)


class Set:
    """Clean images of three classes of different size, once with their label, once without."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        labels = torch.tensor([0] * 6 + [1] * 3 + [2])
        x_0 = torch.randn(10, 1, 2, 2, generator=generator, dtype=torch.float64)
        x_0 += labels[:, None, None, None]
        self.x_0, self.y = torch.cat([x_0, x_0]), torch.cat([labels, torch.full_like(labels, 3)])
        self.x = self.x_0 + torch.randn(20, 1, 2, 2, generator=generator, dtype=torch.float64)
        self.sigma, self.u = (
            torch.ones(20, dtype=torch.float64),
            torch.linspace(0, 0.99, 20).double(),
        )
        self.null = x_0.mean(0)
        self.gap = torch.stack([x_0[labels == c].mean(0) for c in range(3)]) - self.null

    def goal(self, target, denoiser):
        return target(denoiser, self.x_0, self.x, self.sigma, self.y, self.u)


def settle(target, denoiser, data, rounds):
    """Fits the denoiser to its own goals again and again; the last number that was watched."""
    target.attach(denoiser)
    for _ in range(rounds):
        goal = data.goal(target, denoiser)
        denoiser.fit(goal.image, data.y)
        target.update(denoiser)
    return data.goal(target, denoiser).watched["gap"]


@pytest.mark.parametrize("decay", [None, 0.0, 0.6])
@pytest.mark.parametrize(("scale", "multiple"), [(0.5, 2), (0.2, 1.25), (1 / 3, 1.5)])
def test_it_settles_at_a_multiple_of_the_plain_gap(scale, multiple, decay):
    """Half the gap added to the target doubles it: E_null + gap / (1 - scale)."""
    data, denoiser = Set(), Table()
    watched = settle(ModelGuidance(scale, decay), denoiser, data, 120)
    assert_close(denoiser.pictures[:3], data.null + multiple * data.gap, **EXACT)
    assert_close(denoiser.pictures[3], data.null, **EXACT)
    assert_close(watched, torch.tensor(multiple, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize(
    ("scale", "gaps"), [(1.0, [1, 2, 3, 4, 5, 6]), (2.0, [1, 3, 7, 15, 31, 63])]
)
def test_from_a_scale_of_1_on_it_settles_nowhere(scale, gaps):
    for rounds, multiple in enumerate(gaps, start=1):
        data, denoiser = Set(), Table()
        watched = settle(ModelGuidance(scale, None), denoiser, data, rounds)
        assert_close(denoiser.pictures[:3], data.null + multiple * data.gap, **EXACT)
        assert watched == pytest.approx(multiple, rel=1e-10)


class Affine(Denoiser):
    """For every label a matrix and an offset; it can be fitted exactly, by least squares."""

    num_classes, shape = 2, (1, 1, 3)

    def __init__(self):
        super().__init__()
        self.matrices = torch.zeros(3, 4, 3, dtype=torch.float64)

    @staticmethod
    def extended(x):
        return torch.cat([x.flatten(1), torch.ones(len(x), 1, dtype=x.dtype)], 1)

    def predict(self, x, sigma, y):
        rows = torch.einsum("bi,bij->bj", self.extended(x), self.matrices[y])
        return Prediction(rows.reshape(x.shape))

    def fit(self, x, images, y):
        for label in range(3):
            rows = self.extended(x[y == label]), images[y == label].flatten(1)
            self.matrices[label] = torch.linalg.lstsq(*rows).solution


def test_a_denoiser_that_looks_settles_like_classifier_free_guidance():
    """Linear regression: scale 0.4 ends as classifier-free guidance of scale 0.4 / 0.6."""
    x, sigma, labels = noisy(tilted(2, (1, 1, 3)), [1.0] * 80)
    x_0 = x + 0.3 * x.flip(0)
    x, x_0, sigma = torch.cat([x, x]), torch.cat([x_0, x_0]), torch.cat([sigma, sigma])
    y = torch.cat([labels, torch.full_like(labels, 2)])
    plain, guided = Affine(), Affine()
    plain.fit(x, x_0, y)
    target = ModelGuidance(0.4, None)
    for _ in range(60):
        guided.fit(x, target(guided, x_0, x, sigma, y, sigma * 0).image, y)
    labelled, unlabelled = plain(x, sigma, y), plain(x, sigma, plain.null(y))
    expected = labelled + 0.4 / 0.6 * (labelled - unlabelled)
    assert_close(guided(x, sigma, y), expected, **EXACT)


def test_it_is_the_published_target_in_other_units():
    """Tang et al. (2025), eq. 18, of eps(x, y) = -sigma * score."""
    mixture = tilted()
    x, sigma, y = noisy(mixture, [0.2, 0.7, 1.5, 4.0, 20.0])
    y = torch.tensor([0, 1, 4, 3, 2])  # one is dropped
    x_0, level = x.flip(0), sigma[:, None, None, None]
    goal = ModelGuidance(0.7, None)(ExactDenoiser(mixture), x_0, x, sigma, y, sigma * 0)

    def eps_of(labels):
        return -level * mixture.score(x, sigma, labels)

    null = torch.full_like(y, 4)
    eps = (x - x_0) / level + 0.7 * (eps_of(y) - eps_of(null))
    assert_close((x - goal.image) / level, eps, **EXACT)
    assert torch.equal(goal.image[2], x_0[2])


def test_a_plain_model_is_watched_at_1():
    """Exact denoisers: x_0 is drawn from the mixture, so its mean beyond E_null is the gap."""
    mixture = tilted()
    generator = torch.Generator().manual_seed(0)
    x_0, y = mixture.sample(40_000, generator)
    sigma = torch.linspace(0.3, 3, len(y), dtype=torch.float64)
    x = x_0 + sigma[:, None, None, None] * torch.randn(
        x_0.shape, generator=generator, dtype=torch.float64
    )
    goal = ModelGuidance(0.7, None)(ExactDenoiser(mixture), x_0, x, sigma, y, sigma * 0)
    assert goal.watched["gap"] == pytest.approx(1, abs=0.02)


def test_both_labels_are_asked_for_in_one_call_and_none_at_scale_0():
    data, denoiser = Set(), Table()
    target = ModelGuidance(0.5, None)
    data.goal(target, denoiser)
    assert denoiser.calls == [40]
    off = ModelGuidance(0.0, None)
    goal = data.goal(off, denoiser)
    assert goal.image is data.x_0 and not goal.watched and denoiser.calls == [40]
    assert data.goal(CleanImage(), denoiser).image is data.x_0


def test_no_gap_is_watched_as_0():
    """An untrained network with a last layer of zeros."""
    data = Set()
    assert data.goal(ModelGuidance(0.5, None), Table()).watched["gap"] == 0


class Noisy(nn.Module):
    """Dropout, batch statistics and labels."""

    def __init__(self):
        super().__init__()
        self.labels = nn.Embedding(11, 64)
        self.norm, self.drop = nn.BatchNorm1d(64), nn.Dropout(0.5)

    def forward(self, x, t, y):
        return self.drop(self.norm(x.flatten(1) + self.labels(y))).reshape(x.shape)


def noisy_denoiser():
    torch.manual_seed(0)
    return EDMDenoiser(Noisy(), 10, (1, 8, 8))


def arguments():
    x_0, y, _ = tiny.batch()
    y[2] = 10
    return x_0, x_0 + 0.5 * x_0.flip(0), torch.full((6,), 0.5), y, torch.linspace(0, 0.9, 6)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_the_reference_is_evaluated_without_gradient_dropout_or_trace(decay):
    denoiser = noisy_denoiser()
    denoiser.net.labels.eval()  # frozen, as by a rate of 0
    modes = [module.training for module in denoiser.modules()]
    before = copy.deepcopy(denoiser.state_dict())
    target = ModelGuidance(0.5, decay)
    target.attach(denoiser)
    x_0, x, sigma, y, u = arguments()
    one, other = (target(denoiser, x_0, x, sigma, y, u).image for _ in range(2))
    assert torch.equal(one, other) and not one.requires_grad
    assert not torch.equal(one, x_0) and torch.equal(one[2], x_0[2])
    assert [module.training for module in denoiser.modules()] == modes
    after = denoiser.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    parameters = list(target.parameters())
    assert len(parameters) == (0 if decay is None else 3)
    assert not any(parameter.requires_grad for parameter in parameters)


def test_a_network_that_answers_itself_learns_as_from_an_equal_average():
    """In mixed precision, whose cache of cast weights the two passes share."""
    denoiser = build(tiny.denoiser())
    x_0, _, sigma, y, u = arguments()

    def gradients(decay):
        module = Denoising(denoiser, LEVELS, target=ModelGuidance(0.5, decay))
        denoiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            module.compare(x_0, y, sigma, x_0.flip(0), u)[0].backward()
        return [parameter.grad.clone() for parameter in denoiser.parameters()]

    own, average = gradients(None), gradients(0.9)  # the average is equal, and another module
    assert all(gradient.abs().amax() > 0 for gradient in own[-2:])
    for one, other in zip(own, average, strict=True):
        assert torch.equal(one, other)


def test_the_gradient_is_that_of_a_fixed_goal():
    denoiser = build(tiny.denoiser())
    module = Denoising(denoiser, LEVELS, target=ModelGuidance(0.5, None))
    x_0, _, sigma, y, u = arguments()
    noise = x_0.flip(0)
    x = x_0 + sigma[:, None, None, None] * noise
    found = torch.autograd.grad(
        module.compare(x_0, y, sigma, noise, u)[0], denoiser.net.leave.weight
    )
    with torch.no_grad():
        null = torch.full_like(y, 10)
        goal = x_0 + 0.5 * (denoiser(x, sigma, y) - denoiser(x, sigma, null))
    error = (denoiser(x, sigma, y) - goal).square().mean((1, 2, 3)) / sigma**2
    expected = torch.autograd.grad(error.mean(), denoiser.net.leave.weight)
    assert_close(found, expected, rtol=1e-5, atol=1e-7)


class Weights(Callback):
    """Copies of the denoiser, one after every optimizer step."""

    def __init__(self):
        self.seen, self.step = [], 0

    def on_train_batch_end(self, trainer, module, *args):
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            self.seen.append(copy.deepcopy(module.denoiser.state_dict()))


@pytest.mark.parametrize("batches", [1, 3])
def test_the_average_follows_every_optimizer_step(batches, tmp_path):
    denoiser, weights = noisy_denoiser(), Weights()
    start = copy.deepcopy(denoiser.state_dict())
    module = Denoising(denoiser, LogNormal(), target=ModelGuidance(0.3, 0.75))
    trainer = tiny.trainer(
        tmp_path, weights, max_steps=4, limit_val_batches=0, accumulate_grad_batches=batches
    )
    trainer.fit(module, datamodule=Images(batch_size=16))
    average = module.target.average.state_dict()
    assert len(weights.seen) == 4 and average.keys() == start.keys()
    for name, value in start.items():
        for seen in weights.seen:
            value = 0.75 * value + 0.25 * seen[name] if "running" not in name else seen[name]
        value = weights.seen[-1][name] if "tracked" in name else value
        assert_close(average[name], value)
    assert int(average["net.norm.num_batches_tracked"]) == 4 * batches


# --- runs by the command line

CHECKPOINT = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"every_n_train_steps": 3, "save_top_k": -1},
}
EMA = tiny.spec("callbacks.EMA", decay=0.8)


def guided(target, *callbacks, **init_args):
    """A short run of a network with dropout."""
    config = tiny.denoising(
        **{"denoiser": tiny.denoiser(dropout=0.3)} | init_args,
        target=target,
    )
    trainer = {"max_steps": 6, "val_check_interval": 5, "log_every_n_steps": 1}
    trainer["callbacks"] = [CHECKPOINT, *callbacks]
    data = {"source": tiny.spec("data.Digits", fold=[0, 5]), "batch_size": 50, "eval_limit": 20}
    return tiny.merged(config, {"data": {"init_args": data}, "trainer": trainer})


def state(folder, step):
    (path,) = folder.glob(f"checkpoints/*step={step}.ckpt")
    return path, torch.load(path, weights_only=True)


def scale_aware():
    return tiny.spec("modules.ScaleAwareModelGuidance", scales=[0.0, 2.0], decay=0.7)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(
    ("told", "callbacks"), [(False, ()), (True, (EMA,))], ids=["raw", "told and averaged"]
)
def test_a_resumed_run_equals_an_unbroken_one(told, callbacks, tmp_path):
    """Also with the callback that averages, whose checkpoints hold raw weights and the mean."""
    target, net = tiny.spec("modules.ModelGuidance", scale=0.5, decay=0.7), tiny.denoiser()
    if told:
        target = scale_aware()
        net = tiny.spec("denoisers.ScaleInput", denoiser=net, layers={"net.embed": 16}, width=8)
    config = guided(target, *callbacks, denoiser=net)
    tiny.run(tmp_path / "unbroken", "fit", config)
    path, middle = state(tmp_path / "unbroken", 3)
    tiny.run(tmp_path / "resumed", "fit", config, f"--ckpt_path={path}")
    one, other = (state(tmp_path / name, 6)[1] for name in ("unbroken", "resumed"))
    for key in {"state_dict", "current_model_state"} & one.keys():
        averages = [name for name in one[key] if name.startswith("target.average.")]
        assert averages and one[key].keys() == other[key].keys()
        assert all(torch.equal(one[key][name], other[key][name]) for name in one[key])
        assert any(not torch.equal(one[key][name], middle[key][name]) for name in averages)
    files = [tmp_path / name / "denoiser.safetensors" for name in ("unbroken", "resumed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    exported = load_file(files[0])
    assert exported.keys() == build(net).state_dict().keys()
    trained = {name: one["state_dict"][f"denoiser.{name}"] for name in exported}
    if not callbacks:  # the file holds what was trained, not the target's average
        assert all(torch.equal(exported[name], trained[name]) for name in exported)
        mean = {name: one["state_dict"][f"target.average.{name}"] for name in exported}
        assert any(not torch.equal(exported[name], mean[name]) for name in exported)
    assert load_denoiser(str(files[0])).has_null


def test_the_gap_is_logged_and_an_average_of_the_module_has_no_average_of_the_target(tmp_path):
    target = tiny.spec("modules.ModelGuidance", scale=0.5)
    cli = tiny.run(tmp_path / "run", "fit", guided(target, EMA))
    (ema,) = [c for c in cli.trainer.callbacks if type(c).__name__ == "EMA"]
    assert ema._average_model.module.target is cli.model.target
    assert ema._average_model.module.denoiser is not cli.model.denoiser
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    gaps = events.Scalars("train/gap")
    assert [event.step for event in gaps] == list(range(6))
    values = torch.tensor([event.value for event in gaps])
    assert values.isfinite().all()
    assert values[0] == 0  # blocks that start as the identity do not see the label
    assert values[1:].all()


@pytest.mark.filterwarnings("ignore:.*fork", "ignore:Total length of")
def test_two_processes_keep_one_average(tmp_path):
    """Neither unused parameters nor averages that differ from process to process."""
    config = guided(tiny.spec("modules.ModelGuidance", scale=0.5, decay=0.7))
    two = {"trainer": {"devices": 2, "strategy": "ddp_fork", "max_steps": 3}}
    config = tiny.merged(config, two, {"data": {"init_args": {"batch_size": 25}}})
    tiny.run(tmp_path / "two", "fit", config)
    _, saved = state(tmp_path / "two", 3)
    names = [name for name in saved["state_dict"] if name.startswith("target.average.net.enter")]
    assert len(names) == 2
    for name in names:
        raw = saved["state_dict"][name.replace("target.average", "denoiser")]
        assert 0 < (raw - saved["state_dict"][name]).abs().amax() < 0.1


class Halved(Codec):
    """Latents are the mean of 2 x 2 pixels."""

    image_channels = channels = 1
    factor = 2

    def encode(self, images, noise=None):
        return nn.functional.avg_pool2d(images, 2)

    def decode(self, x_0):
        return nn.functional.interpolate(x_0, scale_factor=2)


def test_it_guides_latents(tmp_path):
    net = tiny.mlp(num_classes=10, num_null_labels=1, shape=[1, 4, 4])
    denoiser = EDMDenoiser(build(net), 10, [1, 4, 4])
    module = Denoising(denoiser, LogNormal(), codec=Halved(), target=ModelGuidance(0.5, 0.9))
    trainer, data = tiny.trainer(tmp_path, max_steps=3), Images(batch_size=16, eval_limit=20)
    trainer.fit(module, datamodule=data)
    assert trainer.logged_metrics["train/gap"] != 0
    (found,) = trainer.validate(module, datamodule=data, verbose=False)
    assert 0.3 < found["val/loss"] < 3


# --- what it says and refuses


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_a_scale_that_settles_nowhere_is_warned_of_once(scale, tmp_path):
    module = Denoising(noisy_denoiser(), LogNormal(), target=ModelGuidance(scale, 0.9))
    trainer = tiny.trainer(tmp_path, max_steps=2, limit_val_batches=0)
    with pytest.warns(UserWarning) as found:
        trainer.fit(module, datamodule=Images(batch_size=16))
    (said,) = [str(warning.message) for warning in found if "guidance" in str(warning.message)]
    assert f"scale {scale:g} settles nowhere" in said
    assert "1 / (1 - scale)" in said and "s / (1 + s)" in said
    assert "ScaleAwareModelGuidance" in said and "train/gap" in said


def test_a_scale_below_1_says_where_it_settles(caplog, capsys):
    with caplog.at_level("INFO"):
        ModelGuidance(0.75).announce()
        ModelGuidance(0.0).announce()
        ScaleAwareModelGuidance((0.0, 3.0)).announce()
    text = caplog.text + capsys.readouterr().err
    assert "settles at 4 times the plain gap, like classifier-free guidance of scale 3" in text
    assert text.count("settles") == 1


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf")])
def test_a_scale_is_a_number_of_at_least_0(scale):
    with pytest.raises(ValueError, match=r"at least 0, got .*scale \+ 1"):
        ModelGuidance(scale)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_lies_between_0_and_1(decay):
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got .*0\.9999 is usual"):
        ModelGuidance(0.5, decay)


@pytest.mark.parametrize("denoiser", [Table(has_null=False), Table(num_classes=0)])
def test_a_network_without_a_null_label_cannot_guide_itself(denoiser):
    with pytest.raises(ValueError, match=r"null label, which the denoiser lacks; .*num_null"):
        Denoising(denoiser, LogNormal(), label_dropout=0, target=ModelGuidance(0.5))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_both_kinds_of_labels_must_be_trained(share):
    with pytest.raises(ValueError, match=r"ModelGuidance compares labels.*between 0 and 1, got"):
        Denoising(Table(), LogNormal(), label_dropout=share, target=ModelGuidance(0.5))


# --- networks that are told the scale


class Told(Denoiser):
    """A picture for every label, moved by a layer that does nothing by itself."""

    num_classes, shape = 3, (1, 2, 2)

    def __init__(self):
        super().__init__()
        self.pictures = torch.zeros(4, 4, dtype=torch.float64)
        self.layer = nn.Identity()

    def predict(self, x, sigma, y):
        return Prediction(self.layer(self.pictures[y]).reshape(x.shape))


class Sloped(ScaleInput):
    """What it is told moves the picture of a label by the scale times another picture."""

    def __init__(self):
        super().__init__(Told(), {"layer": 4})
        self.slopes = torch.zeros(4, 4, dtype=torch.float64)
        self.told_at = []

    def predict(self, x, sigma, y):
        scales = self._scales(x).double().expand(len(x))
        self.told_at.append(scales)
        moved = (scales[:, None] * self.slopes[y]).reshape(x.shape)
        return Prediction(self.denoiser(x, sigma, y) + moved)

    def fit(self, images, y, scales):
        for label in range(4):
            rows, told = images[y == label].flatten(1), scales[y == label]
            design = torch.stack([torch.ones_like(told), told], 1)
            solution = torch.linalg.lstsq(design, rows).solution
            self.denoiser.pictures[label], self.slopes[label] = solution


@pytest.mark.parametrize("decay", [None, 0.5])
def test_a_told_scale_settles_at_that_of_classifier_free_guidance(decay):
    """Also beyond 1, since the gap is that of the plain model."""
    data, network = Set(), Sloped()
    target = ScaleAwareModelGuidance((0.0, 4.0), 0.3, decay)
    target.attach(network)
    # every image at every one of these
    shares = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    u = shares.repeat_interleave(20)
    many = [value.repeat(4, *[1] * (value.ndim - 1)) for value in (data.x_0, data.x, data.sigma)]
    y = data.y.repeat(4)
    for _ in range(60):
        goal = target(network, *many, y, u)
        network.fit(goal.image, y, target.scales(u))
        if decay is not None:  # plain tensors, which an average of parameters does not know
            for mine, theirs in (
                (target.average.denoiser.pictures, network.denoiser.pictures),
                (target.average.slopes, network.slopes),
            ):
                mine.lerp_(theirs, 1 - decay)
    x, sigma = torch.zeros(3, 1, 2, 2, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    labels = torch.arange(3)
    for scale in (0.0, 0.5, 1.0, 2.5, 4.0):
        with network.at(torch.tensor([scale], dtype=torch.float64)):
            guided, unlabelled = network(x, sigma, labels), network(x, sigma, network.null(labels))
        assert_close(guided, data.null + (1 + scale) * data.gap, **EXACT)
        assert_close(unlabelled, data.null.expand(3, -1, -1, -1), **EXACT)
    assert_close(goal.watched["gap"], torch.tensor(1.0, dtype=torch.float64), **EXACT)


def test_a_share_is_told_0_and_the_rest_a_uniform_scale():
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    found = ScaleAwareModelGuidance((0.5, 2.0), plain=0.25).scales(u)
    assert not found[u < 0.25].any()
    assert_close(found[u >= 0.25], 0.5 + 2 * (u[u >= 0.25] - 0.25), **EXACT)
    assert found.amax() == 2


def test_training_rows_are_told_their_scale_and_the_reference_0():
    network = Sloped()
    network.slopes += 1
    network.value = nn.Parameter(torch.zeros(()))
    target = ScaleAwareModelGuidance((0.0, 2.0), 0.5, None)
    module = Denoising(network, LogNormal(), target=target)
    u = torch.tensor([0.0, 0.5, 0.75, 1.0], dtype=torch.float64)
    x_0 = torch.ones(4, 1, 2, 2, dtype=torch.float64)
    loss, _ = module.compare(x_0, torch.tensor([0, 1, 2, 3]), u + 1, x_0, u)
    trained, reference = network.told_at
    assert trained.tolist() == [0, 0, 1, 2] and reference.tolist() == [0] * 8
    # D is the scale, the goal 1: pictures are 0, so there is no gap
    weight = (u + 1) ** -2
    assert float(loss) == pytest.approx(float((weight * (trained - 1) ** 2).mean()), rel=1e-12)


def test_validation_tells_each_image_a_scale_of_its_own(tmp_path):
    denoiser = ScaleInput(build(tiny.denoiser()), {"net.embed": 16}, width=8)
    nn.init.normal_(denoiser.shifts["net/embed"].weight)
    module = Denoising(denoiser, LEVELS, target=ScaleAwareModelGuidance((0.0, 3.0), decay=0.5))
    losses = []
    for size in (60, 7):
        data = Images(eval_batch_size=size, eval_limit=60)
        (found,) = tiny.trainer(tmp_path).validate(module, datamodule=data, verbose=False)
        losses.append(found["val/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_scales_need_a_network_that_is_told_them():
    with pytest.raises(
        ValueError, match=r"told the scale, got EDMDenoiser; wrap it in .*ScaleInp"
    ):
        Denoising(noisy_denoiser(), LogNormal(), target=ScaleAwareModelGuidance())


@pytest.mark.parametrize("scales", [(1.0, 0.5), (-1.0, 1.0), (0.0, 0.0), (0.0, float("inf"))])
def test_scales_are_a_range(scales):
    with pytest.raises(ValueError, match=r"scales must be a lowest and a highest scale, .*got \["):
        ScaleAwareModelGuidance(scales)


@pytest.mark.parametrize("plain", [0.0, 1.0, -0.5, float("nan")])
def test_some_rows_are_plain(plain):
    with pytest.raises(ValueError, match=r"share of rows that are told scale 0, in \(0, 1\), got"):
        ScaleAwareModelGuidance(plain=plain)
