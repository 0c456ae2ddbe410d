import pytest
import tiny
import torch
from torch.nn import functional as F

from robustguide.attacks import PGD, Attack
from robustguide.checkpoints import build, load_classifier
from robustguide.data import Images, SeedData
from robustguide.interfaces import Classifier
from robustguide.modules import CalibrationPenalty, RobustClassification
from robustguide.noise import LEVELS, Clipped, LogNormal, UniformT, linear_levels, vp_scale
from robustguide.samplers.seeds import mixed


class Seen(Attack):
    """Keeps what it is given, and moves by one."""

    def __init__(self):
        self.batches = []

    def __call__(self, classifier, x, sigma, y, generator=None):
        self.batches.append((x.clone(), sigma, y))
        return x + 1


def cell(answer):
    """What was found of noised images."""
    return answer["cells"]["forward_x_t"]


def clean(answer):
    """Logits (levels, b, k) of the only draw."""
    return cell(answer)["logits"][0]


class Echo(Classifier):
    """Its logits are its input."""

    num_classes = 64

    def forward(self, x, sigma):
        return x.flatten(1)


def test_the_loss_is_that_of_the_attacked_images(tmp_path):
    """The noise of the step is drawn from generators that the seed and the step's number seed."""
    classifier, attack, data = build(tiny.classifier()), Seen(), Images(batch_size=16)
    calls = []
    classifier.register_forward_hook(lambda module, inputs, output: calls.append((inputs, output)))
    noise = LogNormal(-1.0, 0.5)
    module = RobustClassification(classifier, noise, attack, seed=7)
    trainer = tiny.trainer(tmp_path)
    trainer.fit(module, datamodule=data)
    ((x, sigma, y),) = attack.batches
    torch.manual_seed(mixed(7, 0, 0))
    expected_sigma = noise.sample(16, "cpu")
    eps = torch.randn(16, 1, 8, 8)
    keys = next(iter(Images(batch_size=16).train_dataloader()))
    torch.testing.assert_close(sigma, expected_sigma, rtol=0, atol=0)
    torch.testing.assert_close(x, keys[0] + expected_sigma[:, None, None, None] * eps)
    assert torch.equal(y, keys[1])
    _, ((moved, told), logits), *_ = calls  # the first one tries a blank image
    assert torch.equal(moved, x + 1) and torch.equal(told, sigma)
    loss = F.cross_entropy(logits.detach(), y)
    torch.testing.assert_close(trainer.callback_metrics["train/loss"], loss)
    accuracy = (logits.argmax(-1) == y).float().mean()
    torch.testing.assert_close(trainer.callback_metrics["train/accuracy"], accuracy)


def first_step(path, attack=None, **init_args):
    """Metrics of one step, its labels, and what the classifier was given and answered."""
    classifier, calls = build(tiny.classifier()), []
    classifier.register_forward_hook(lambda module, inputs, output: calls.append((inputs, output)))
    module = RobustClassification(classifier, LogNormal(-1.0, 0.5), attack, **init_args)
    trainer = tiny.trainer(path)
    trainer.fit(module, datamodule=Images(batch_size=16))
    y = next(iter(Images(batch_size=16).train_dataloader()))[1]
    return trainer.callback_metrics, y, calls[1:]  # the first one tries a blank image


def test_the_plain_loss_is_the_cross_entropy_bit_for_bit(tmp_path):
    """With nothing of calibration asked for, nothing of it is computed."""
    metrics, y, calls = first_step(tmp_path, Seen())
    assert len(calls) == 1
    assert torch.equal(metrics["train/loss"], F.cross_entropy(calls[0][1].detach(), y))
    assert {name for name in metrics if "train" in name} == {"train/loss", "train/accuracy"}


def test_smoothed_labels(tmp_path):
    """Each row pays (1 - s) times its own cross-entropy and s times the mean over the classes."""
    metrics, y, calls = first_step(tmp_path, label_smoothing=0.2)
    log_p = calls[0][1].detach().log_softmax(-1)
    own = log_p.gather(-1, y[:, None])[:, 0]
    expected = -(0.8 * own + 0.2 * log_p.mean(-1)).mean()
    torch.testing.assert_close(metrics["train/loss"], expected)


@pytest.mark.parametrize("attack", [None, Seen()])
def test_the_penalty_judges_images_before_the_attack(attack, tmp_path):
    """It costs a forward pass where the cross-entropy sees others."""
    penalty = CalibrationPenalty(3.0, edges=[0.3])
    metrics, y, calls = first_step(tmp_path, attack, penalty=penalty, label_smoothing=0.1)
    ((x, sigma), logits), *more = calls
    assert len(more) == (attack is not None)
    for (natural, told), judged in more:
        torch.testing.assert_close(natural + 1, x, rtol=0, atol=0)
        assert torch.equal(told, sigma)
        logits = judged
    entropy = F.cross_entropy(calls[0][1].detach(), y, label_smoothing=0.1)
    error = penalty(logits.detach(), y, sigma)
    torch.testing.assert_close(metrics["train/cross_entropy"], entropy)
    torch.testing.assert_close(metrics["train/calibration_error"], error)
    torch.testing.assert_close(metrics["train/loss"], entropy + 3 * error)


def test_the_penalty_trains(tmp_path):
    """From the same start, a large weight leaves a smaller calibration error."""
    x_0, y, _ = next(iter(Images(batch_size=1024).train_dataloader()))
    sigma = torch.full((len(y),), 0.3)
    x = x_0 + 0.3 * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))

    def error(weight):
        torch.manual_seed(0)
        classifier = build(tiny.classifier())
        module = RobustClassification(
            classifier,
            LogNormal(-1.0, 0.5),
            PGD(1.0, 1),
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
            penalty=CalibrationPenalty(weight) if weight else None,
        )
        trainer = tiny.trainer(tmp_path, max_steps=25)
        trainer.fit(module, datamodule=Images(batch_size=64))
        with torch.no_grad():
            return CalibrationPenalty(1.0)(classifier.eval()(x, sigma), y, sigma).item()

    before, after = error(0), error(20.0)
    assert after < 0.5 * before


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_label_smoothing_is_a_share(share):
    with pytest.raises(ValueError, match=rf"label_smoothing is a share.*got {share}; 0 is none"):
        RobustClassification(Echo(), label_smoothing=share)


def test_every_level_sees_the_noise_of_the_image(tmp_path):
    """And no other: the noise is that of the image's number, in any batch."""
    module = RobustClassification(Echo(), levels=[0.0, 0.5, 4.0])
    x_0, y, index = tiny.batch()
    answer = module.test_step((x_0, y, index + 3), 0)
    assert clean(answer).shape == (3, 6, 64) and "attacked" not in cell(answer)
    eps = torch.stack(
        [
            torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(mixed(i + 3, 1)))
            for i in range(6)
        ]
    )
    for level, seen in zip(module.levels, clean(answer), strict=True):
        torch.testing.assert_close(seen, (x_0 + level * eps).flatten(1), rtol=0, atol=0)
    parts = [
        module.test_step((x_0[rows], y[rows], index[rows] + 3), 0)
        for rows in ([0, 1], [2, 3, 4, 5])
    ]
    together = torch.cat([clean(part) for part in parts], dim=1)
    assert torch.equal(together, clean(answer))


def test_the_evaluated_attack_is_that_of_the_configuration():
    classifier, attack = build(tiny.classifier()).eval(), PGD(0.5, steps=3)
    module = RobustClassification(classifier, levels=[0.3], evaluation_attack=attack)
    x_0, y, index = tiny.batch()
    answer = module.validation_step((x_0, y, index), 0)
    x = clean(RobustClassification(Echo(), levels=[0.3]).test_step((x_0, y, index), 0))
    x, sigma = x[0].reshape(x_0.shape), torch.full((6,), 0.3)
    torch.testing.assert_close(clean(answer)[0], classifier(x, sigma))
    torch.testing.assert_close(
        cell(answer)["attacked"][0, 0, 0], classifier(attack(classifier, x, sigma, y), sigma)
    )
    assert torch.equal(cell(answer)["y"], y) and torch.equal(cell(answer)["index"], index)
    assert not cell(answer)["attacked"].requires_grad


def test_attacked_training_is_more_robust(runs, tmp_path, json_of):
    """PGD-2 of radius 1 in training; the same number of steps without it gives less."""
    config = tiny.classification(evaluation_attack=tiny.pgd(radius=1.0, steps=5), levels=[0.2])
    config = tiny.merged(config, {"data": tiny.spec("data.Images", eval_limit=300)})
    tiny.run(tmp_path / "plain", "fit", config)
    path = runs / "classifier/classifier.safetensors"
    robust = {"model": {"init_args": {"classifier": tiny.loaded("classifier", path)}}}
    tiny.run(tmp_path / "robust", "validate", tiny.merged(config, robust))
    curves = [json_of(tmp_path / name)["curves"]["classifier"] for name in ("plain", "robust")]
    plain, robust = (curve["robust_accuracy"][0] for curve in curves)
    assert robust > plain + 0.05


def test_a_loaded_classifier_trains_again(runs, tmp_path):
    classifier = load_classifier(str(runs / "classifier/classifier.safetensors"))
    assert not any(p.requires_grad for p in classifier.parameters()) and not classifier.training
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    module = RobustClassification(classifier, LogNormal())
    tiny.trainer(tmp_path).fit(module, datamodule=Images(batch_size=32))
    assert classifier.training and all(p.requires_grad for p in classifier.parameters())
    assert all(
        not torch.equal(before[name], value) for name, value in classifier.named_parameters()
    )


def test_the_threat_model_is_stated(tmp_path, caplog):
    module = RobustClassification(
        build(tiny.classifier()),
        LogNormal(),
        attack=PGD(0.5),
        evaluation_attack=PGD(0.25, steps=20),
    )
    with caplog.at_level("INFO"):
        tiny.trainer(tmp_path).fit(module, datamodule=Images(batch_size=32))
    assert "Training attack: L2, radius 0.5 in x_t units on the [-1,1] scale, PGD-7" in caplog.text
    assert "Evaluation attack: L2, radius 0.25 in x_t units" in caplog.text


def test_default_levels_span_the_range_of_the_chain():
    sigmas = linear_levels().sigmas
    assert sigmas[0] < min(LEVELS) and max(LEVELS) < sigmas[-1]


@pytest.mark.parametrize("noise", [UniformT(linear_levels()), Clipped(LogNormal(), sigma_max=1.0)])
def test_any_distribution_of_noise_trains(noise, tmp_path):
    module = RobustClassification(build(tiny.classifier()), noise)
    trainer = tiny.trainer(tmp_path)
    trainer.fit(module, datamodule=Images(batch_size=32))
    assert trainer.callback_metrics["train/loss"] > 0


@pytest.mark.parametrize("levels", [[], [-0.1], [float("nan")], [1.0, float("inf")]])
def test_levels_that_are_none(levels):
    with pytest.raises(ValueError, match=r"levels must be finite noise levels of at least 0"):
        RobustClassification(Echo(), levels=levels)


def test_training_needs_noise_levels(tmp_path):
    module = RobustClassification(build(tiny.classifier()))
    with pytest.raises(ValueError, match=r"model\.noise, such as robustguide\.noise\.UniformT"):
        tiny.trainer(tmp_path).fit(module, datamodule=Images(batch_size=32))


def test_other_classes_than_the_data(tmp_path):
    module = RobustClassification(Echo(), LogNormal())
    with pytest.raises(ValueError, match=r"data has 10 classes, the classifier 64.*num_classes"):
        tiny.trainer(tmp_path).test(module, datamodule=Images(batch_size=32), verbose=False)
    assert SeedData(count=1, num_classes=64).num_classes == 64


def test_an_attack_starts_where_it_ended():
    """Of each image by its number, at whatever level it is met again."""
    attack = PGD(0.5, steps=2, early_stop=False)
    module = RobustClassification(build(tiny.classifier()), attack=attack, warm_start=True)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 1, 8, 8, generator=generator), torch.arange(4)
    low, high = torch.full((4,), 0.1), torch.full((4,), 2.0)
    first = module.attacked(x, low, y, torch.tensor([5, 6, 7, 8]))
    assert torch.equal(first, attack(module.classifier, x, low, y))
    offsets = (first - x) / vp_scale(low)[:, None, None, None]
    start = torch.stack([offsets[2], torch.zeros_like(x[0]), offsets[0], offsets[1]])
    again = module.attacked(x, high, y, torch.tensor([7, 9, 5, 6]))
    want = attack(module.classifier, x, high, y, start=start.half().float())
    assert torch.equal(again, want)
    assert not torch.equal(again, attack(module.classifier, x, high, y))


@pytest.mark.parametrize("attack", [None, Seen(), PGD(0.5, random_start=True)])
def test_who_cannot_be_told_where_to_start(attack):
    with pytest.raises(ValueError, match="warm_start tells PGD"):
        RobustClassification(build(tiny.classifier()), attack=attack, warm_start=True)
