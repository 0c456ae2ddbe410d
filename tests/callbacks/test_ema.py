import pytest
import tiny
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from robustguide.callbacks import EMA, Quality, ReportCards
from robustguide.callbacks.requeue import Requeue
from robustguide.callbacks.throughput import Throughput
from robustguide.checkpoints import build
from robustguide.data import Images
from robustguide.interfaces import Classifier
from robustguide.metrics import ClassifierFeatures
from robustguide.modules import RobustClassification
from robustguide.noise import LogNormal


class Normed(Classifier):
    """A classifier with batch statistics."""

    num_classes = 10

    def __init__(self):
        super().__init__()
        self.norm, self.leave = nn.BatchNorm1d(64), nn.Linear(64, 10)

    def forward(self, x, sigma):
        return self.leave(self.norm(x.flatten(1)))


class Steps(Callback):
    """Keeps the weights after each step."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, module, *arguments):
        self.states.append({k: v.clone() for k, v in module.state_dict().items()})


def test_the_average_is_exponential(tmp_path):
    """Parameters from the first step on; buffers are those of the last one."""
    module = RobustClassification(Normed(), LogNormal())
    steps, ema = Steps(), EMA(0.75)
    trainer = tiny.trainer(tmp_path, steps, ema, max_steps=5)
    trainer.fit(module, datamodule=Images(batch_size=32, eval_limit=4))
    average = ema._average_model.module.state_dict()
    parameters = {name for name, _ in module.named_parameters()}
    for name, value in average.items():
        expected = steps.states[0][name]
        for state in steps.states[1:]:
            expected = 0.75 * expected + 0.25 * state[name] if name in parameters else state[name]
        torch.testing.assert_close(value, expected)
    assert int(average["classifier.norm.num_batches_tracked"]) == 5


def test_measuring_sees_the_average_and_training_does_not(tmp_path):
    module = RobustClassification(build(tiny.classifier()), LogNormal(), levels=[0.1])
    seen = []

    class Watching(ReportCards):
        def on_validation_epoch_end(self, trainer, module):
            super().on_validation_epoch_end(trainer, module)
            seen.append(module.classifier.net.enter.weight.clone())

    steps, ema = Steps(), EMA(0.5)
    settings = {"max_steps": 4, "val_check_interval": 2, "check_val_every_n_epoch": None}
    trainer = tiny.trainer(tmp_path, steps, Watching(), ema, **settings)
    trainer.fit(module, datamodule=Images(batch_size=32, eval_limit=4))
    weights = [state["classifier.net.enter.weight"] for state in steps.states]
    torch.testing.assert_close(seen[0], 0.5 * weights[0] + 0.5 * weights[1])
    assert not torch.equal(seen[0], weights[1])
    # the third step starts from the raw weights: Adam's step is at most the rate, 1e-3
    assert (weights[2] - weights[1]).abs().max() < 1.1e-3


def test_what_measures_stands_before_it(tmp_path):
    module = RobustClassification(build(tiny.classifier()), LogNormal())
    trainer = tiny.trainer(tmp_path, EMA(0.9), ReportCards())
    with pytest.raises(ValueError, match=r"ReportCards stands behind EMA.*list EMA last"):
        trainer.fit(module, datamodule=Images(batch_size=32))


def test_the_command_line_orders_them(tmp_path):
    config = tiny.merged(
        tiny.classification(),
        {"trainer": {"max_steps": 2, "val_check_interval": 2, "enable_checkpointing": True}},
    )
    config["trainer"]["callbacks"] = [
        tiny.spec("callbacks.EMA", decay=0.5),
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"every_n_train_steps": 1, "save_top_k": -1},
        },
    ]
    cli = tiny.run(tmp_path / "run", "fit", config)
    kinds = [type(callback) for callback in cli.trainer.callbacks]
    assert kinds[-4:] == [EMA, ModelCheckpoint, Throughput, Requeue]
    # so a checkpoint of step 2 holds the average with that step
    first, second = (
        torch.load(path, weights_only=True)
        for path in sorted(tmp_path.glob("run/checkpoints/*step=[12].ckpt"))
    )
    name = "classifier.net.enter.weight"
    expected = (first["state_dict"][name] + second["current_model_state"][name]) / 2
    torch.testing.assert_close(second["state_dict"][name], expected)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_that_is_none(decay):
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got"):
        EMA(decay)


def test_no_extractor_gets_into_a_checkpoint_or_an_average(tmp_path):
    """Metrics and their networks belong to callbacks: a module would save and average them."""
    module = RobustClassification(build(tiny.classifier()), LogNormal(), levels=[0.1])
    features = ClassifierFeatures(build(tiny.classifier()), "tiny")
    ema = EMA(0.9)
    callbacks = [Quality(extractor=features), ReportCards(), ema]
    trainer = tiny.trainer(tmp_path, *callbacks, enable_checkpointing=True, max_steps=2)
    trainer.fit(module, datamodule=Images(batch_size=32, eval_limit=4))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    names = {f"classifier.{name}" for name in build(tiny.classifier()).state_dict()}
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == set(checkpoint["current_model_state"]) == names
    assert set(ema._average_model.module.state_dict()) == names
    assert not checkpoint.get("hyper_parameters")
    for key, state in checkpoint["callbacks"].items():
        assert "Tensor" not in str(type(state)) and "features" not in str(state), key
