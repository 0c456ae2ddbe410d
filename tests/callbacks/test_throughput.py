"""Images a second and the share of waiting, by a clock that the test turns."""

from types import SimpleNamespace

import pytest
import torch

from robustguide.callbacks import throughput
from robustguide.callbacks.throughput import Throughput


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


def trainer_of(entries, world_size=1, every=2):
    """As much of a trainer as is asked."""
    logger = SimpleNamespace(log_metrics=lambda found, step: entries.append((step, found)))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        logger=logger,
        log_every_n_steps=every,
        global_step=0,
        world_size=world_size,
        strategy=strategy,
    )


def steps(callback, trainer, clock, count, wait, work, rows=10):
    """Batches that are waited for and worked on."""
    batch = (torch.zeros(rows, 1), torch.zeros(rows))
    for index in range(count):
        clock.now += wait
        callback.on_train_batch_start(trainer, None, batch, index)
        clock.now += work
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, None, None, batch, index)


def test_a_window_tells_images_and_the_share_of_waiting(clock):
    entries, callback = [], Throughput()
    trainer = trainer_of(entries, world_size=2)
    callback.on_train_start(trainer, None)
    steps(callback, trainer, clock, 4, wait=1.0, work=3.0)
    assert [step for step, _ in entries] == [2, 4]
    # the first batch's wait is the start of the workers, and not known
    assert entries[0][1]["speed/data_wait"] == pytest.approx(1 / 7)
    assert entries[1][1]["speed/data_wait"] == pytest.approx(2 / 8)
    assert entries[1][1]["speed/images_per_second"] == pytest.approx(2 * 20 / 8)
    assert entries[1][1]["speed/peak_memory_mib"] > 10


def test_validation_and_new_epochs_are_no_waiting(clock):
    entries, callback = [], Throughput()
    trainer = trainer_of(entries, every=3)
    callback.on_train_start(trainer, None)
    for begin in (callback.on_train_epoch_start, callback.on_validation_start, lambda *_: None):
        begin(trainer, None)
        steps(callback, trainer, clock, 1, wait=50.0, work=2.0)
    assert entries[0][1]["speed/data_wait"] == pytest.approx(50 / 56)


def test_batches_of_one_step_of_the_optimizer_are_one_entry(clock):
    entries, callback = [], Throughput()
    trainer = trainer_of(entries, every=1)
    callback.on_train_start(trainer, None)
    for _ in range(3):  # two batches a step
        steps(callback, trainer, clock, 1, wait=1.0, work=1.0)
        trainer.global_step -= 1
        steps(callback, trainer, clock, 1, wait=1.0, work=1.0)
    assert [step for step, _ in entries] == [1, 2, 3]
