"""Images a second and the share of waiting, by a clock that the test turns."""

import pytest
import tiny
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robustguide.callbacks import throughput
from robustguide.callbacks.throughput import Throughput

MODULE = LightningModule()


class Clock:
    """Tells the time it is set to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(throughput.time, "perf_counter", made)
    return made


class Entries(Logger):
    """Keeps what is logged."""

    name, version = "entries", 0

    def __init__(self):
        super().__init__()
        self.found = []

    def log_hyperparams(self, *_, **__):
        """Nothing."""

    def log_metrics(self, metrics, step=None):
        self.found.append((step, metrics))


class Told(Trainer):
    """A trainer whose place in a run is told."""

    global_step, world_size = 0, 1


def trainer_of(every=2):
    """With a logger, and what it was given."""
    logger = Entries()
    made = Told(
        logger=logger,
        log_every_n_steps=every,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    return made, logger.found


def steps(callback, trainer, clock, count, wait, work, rows=10):
    """Batches that are waited for and worked on."""
    batch = (torch.zeros(rows, 1), torch.zeros(rows))
    for index in range(count):
        clock.now += wait
        callback.on_train_batch_start(trainer, MODULE, batch, index)
        clock.now += work
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, MODULE, None, batch, index)


def test_a_window_tells_images_and_the_share_of_waiting(clock):
    callback, (trainer, entries) = Throughput(), trainer_of()
    trainer.world_size = 2
    callback.on_train_start(trainer, MODULE)
    steps(callback, trainer, clock, 4, wait=1.0, work=3.0)
    assert [step for step, _ in entries] == [2, 4]
    # the first batch's wait is the start of the workers, and not known
    assert entries[0][1]["speed/data_wait"] == pytest.approx(1 / 7)
    assert entries[1][1]["speed/data_wait"] == pytest.approx(2 / 8)
    assert entries[1][1]["speed/images_per_second"] == pytest.approx(2 * 20 / 8)
    assert entries[1][1]["speed/peak_memory_mib"] > 10


def test_validation_and_new_epochs_are_no_waiting(clock):
    callback, (trainer, entries) = Throughput(), trainer_of(every=3)
    callback.on_train_start(trainer, MODULE)
    for begin in (callback.on_train_epoch_start, callback.on_validation_start, lambda *_: None):
        begin(trainer, MODULE)
        steps(callback, trainer, clock, 1, wait=50.0, work=2.0)
    assert entries[0][1]["speed/data_wait"] == pytest.approx(50 / 56)


def test_batches_of_one_step_of_the_optimizer_are_one_entry(clock):
    callback, (trainer, entries) = Throughput(), trainer_of(every=1)
    callback.on_train_start(trainer, MODULE)
    for _ in range(3):  # two batches a step
        steps(callback, trainer, clock, 1, wait=1.0, work=1.0)
        trainer.global_step -= 1
        steps(callback, trainer, clock, 1, wait=1.0, work=1.0)
    assert [step for step, _ in entries] == [1, 2, 3]


def test_a_training_logs_them_to_tensorboard(tmp_path):
    config = tiny.merged(
        tiny.classification(),
        {"trainer": {"max_steps": 6, "val_check_interval": 6, "log_every_n_steps": 3}},
    )
    tiny.run(tmp_path / "run", "fit", config)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    for name in ("images_per_second", "data_wait", "peak_memory_mib"):
        found = events.Scalars(f"speed/{name}")
        assert [each.step for each in found] == [3, 6]
        assert all(each.value > 0 for each in found)
    assert max(each.value for each in events.Scalars("speed/data_wait")) < 1
