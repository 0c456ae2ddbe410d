import re

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from robustguide.callbacks import progress
from robustguide.callbacks.progress import Progress
from robustguide.report.progress import Bars

# Lightning's advice about workers, short epochs and srun is not what is tested, nor is how it asks
# torch 2.14 about trees (Lightning-AI/pytorch-lightning, `LeafSpec`)
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(num_workers|log_every_n_steps|`srun` command|LeafSpec)"
)


class Tiny(LightningModule):
    """Ten batches an epoch; fails at a step if told to."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.net, self.fails_at = nn.Linear(2, 1), fails_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fails_at:
            raise ValueError("as told")
        self.log("train/loss", 1.5 + 0 * self.net(batch).sum(), prog_bar=True)
        return self.net(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.net(batch).sum() * 0 + 2.0, prog_bar=True)

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.net(batch).sum() * 0 + 3.0, prog_bar=True)

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return self.net(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def loader(self):
        return DataLoader(torch.zeros(20, 2), batch_size=2)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


class Infinite(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(2)


@pytest.fixture
def trainer(tmp_path):
    def made(bar=None, **arguments):
        return Trainer(
            callbacks=[bar or Progress()],
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **arguments,
        )

    return made


def lines(capsys, name):
    out = capsys.readouterr().out
    assert "\r" not in out and "\x1b" not in out
    return [each for each in out.splitlines() if each.startswith(name)]


def counted(printed):
    return [re.search(r"(\d+)/(\d+) ", each).groups() for each in printed]


def test_training_is_one_count_over_epochs(trainer, capsys):
    trainer(max_steps=25, max_epochs=-1).fit(Tiny())
    printed = lines(capsys, "fit")
    done = [int(done) for done, total in counted(printed) if total == "25"]
    assert done == [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25]
    assert "train/loss=1.5" in printed[1] and "it/s" in printed[1] and " left" in printed[1]
    assert "train/loss=1.5" in printed[-1] and "val/loss=2" in printed[-1]
    assert "100%" in printed[-1] and " in all" in printed[-1]


def test_steps_are_counted_not_batches(trainer, capsys):
    trainer(max_epochs=2, accumulate_grad_batches=5).fit(Tiny())
    assert counted(lines(capsys, "fit")) == [(str(done), "4") for done in range(5)]


class Searching(Tiny):
    """Makes no optimizer step."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return []


def test_without_an_optimizer_batches_are_counted(trainer, capsys):
    trainer(max_epochs=2, limit_val_batches=0).fit(Searching())
    lines = capsys.readouterr().out.splitlines()
    assert "0/20 batches" in lines[0] and "20/20 batches  100%" in lines[-1]
    assert len(lines) > 10  # one after each tenth


def test_a_resumed_run_begins_at_its_step(trainer, capsys, tmp_path):
    first = trainer(max_steps=20, max_epochs=-1)
    first.fit(Tiny())
    first.save_checkpoint(tmp_path / "half.ckpt")
    capsys.readouterr()
    again = trainer(max_steps=40, max_epochs=-1)
    again.fit(Tiny(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert [done for done, _ in counted(lines(capsys, "fit"))] == [
        str(done) for done in range(20, 41, 4)
    ]


def test_a_run_without_end_is_counted(trainer, capsys):
    runner = trainer(max_time="00:00:00:01", max_epochs=-1, limit_val_batches=0)
    runner.fit(Tiny(), train_dataloaders=DataLoader(Infinite(), batch_size=2))
    printed = lines(capsys, "fit")
    assert printed[0] == "fit      0 steps"
    assert re.fullmatch(
        r"fit      \d+ steps  \d+\.\d it/s  0:01 in all  train/loss=1\.5", printed[-1]
    )


@pytest.mark.parametrize("run", ["validate", "test", "predict"])
def test_evaluation_counts_batches(trainer, capsys, run):
    getattr(trainer(limit_test_batches=5), run)(Tiny())
    total = 5 if run == "test" else 10
    printed = lines(capsys, {"validate": "val", "test": "test ", "predict": "predict"}[run])
    assert counted(printed) == [(str(done), str(total)) for done in range(total + 1)]
    if run == "test":
        assert printed[-1].endswith("test/loss=3")


def test_several_loaders_are_one_count(trainer, capsys):
    loader = Tiny().loader
    trainer().predict(Tiny(), dataloaders=[loader(), loader()])
    assert counted(lines(capsys, "predict"))[-1] == ("20", "20")


def test_a_run_that_fails_says_where_it_stopped(trainer, capsys):
    with pytest.raises(ValueError, match="as told"):
        trainer(max_steps=25, max_epochs=-1).fit(Tiny(fails_at=7))
    assert re.fullmatch(
        r"fit       7/25 steps   28%  \d+\.\d it/s  stopped after 0:0\d", lines(capsys, "fit")[-1]
    )


def test_other_processes_print_nothing(trainer, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda self: False))
    trainer(max_steps=5, max_epochs=-1).fit(Tiny())
    assert lines(capsys, "fit") == []


def test_metrics_are_not_read_in_between(trainer, monkeypatch, capsys):
    """Reading waits for the device, so a hundred steps must not read a hundred times."""
    read = []
    original = Progress.get_metrics

    def count(self, *arguments):
        read.append(1)
        return original(self, *arguments)

    monkeypatch.setattr(Progress, "get_metrics", count)
    trainer(max_steps=100, max_epochs=-1, limit_val_batches=0).fit(Tiny())
    assert len(read) == 10  # nine tenths and the end


def test_on_a_terminal_there_is_one_bar(trainer, monkeypatch, capsys):
    monkeypatch.setattr(progress, "is_terminal", lambda file: True)
    displays = []
    monkeypatch.setattr(
        progress, "Bars", lambda refresh: displays.append(Bars(refresh)) or displays[-1]
    )
    bar = Progress(refresh=0.0)
    trainer(bar, max_steps=25, max_epochs=-1).fit(Tiny())
    fit = displays[-1].bars.tasks
    assert [(task.description, task.completed, task.total) for task in fit] == [("fit", 25, 25)]
    assert "100%" in fit[0].fields["text"] and bar.display is None
