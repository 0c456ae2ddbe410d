"""Each sample where it belongs: resumed runs, ranks, workers."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from robustguide.data import CropAndFlip, Digits, Images, SeedData, ShardImages, write_shards
from robustguide.data.batches import spread
from robustguide.data.loaders import ignore_requeue_signal

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .srun. command is available on your system"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Recorder(LightningModule):
    """Remembers what it was given; may save in the middle of a step, as a signal does."""

    def __init__(self, save_at=None, path=None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen, self.pixels, self.validated = [], [], []
        self.save_at, self.path = save_at, path

    def training_step(self, batch, batch_idx):
        x_0, _, index = batch
        if self.save_at == len(self.seen):
            self.trainer.save_checkpoint(self.path)
        self.seen.append(index.tolist())
        self.pixels.append(float(x_0.double().sum()))
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.validated += batch[2].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(tmp_path, **limits):
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"enable_checkpointing": False, "num_sanity_val_steps": 0} | silent | limits
    return Trainer(accelerator="cpu", default_root_dir=tmp_path, **options)


def fit(tmp_path, module, data, ckpt_path=None, **limits):
    trainer = make_trainer(tmp_path, **limits)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


def images(num_workers=0):
    source = Digits(fold=(0, 8))  # 157 or 158 images, so four batches
    return Images(source, 39, num_workers=num_workers, seed=3, augment=CropAndFlip())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    module = Recorder()
    fit(tmp_path_factory.mktemp("run"), module, images(), max_epochs=5)
    assert [len(batch) for batch in module.seen] == 20 * [39]
    for epoch in range(5):
        rows = [row for batch in module.seen[4 * epoch : 4 * epoch + 4] for row in batch]
        assert len(set(rows)) == len(rows)
    assert len({tuple(batch) for batch in module.seen}) == 20
    return module


@pytest.mark.parametrize("stop", [1, 4, 6])
@pytest.mark.parametrize("rest", [{"max_epochs": 3}, {"max_steps": 12}])
def test_stopped_and_resumed_run_sees_the_images_of_an_unbroken_one(
    tmp_path, unbroken, stop, rest
):
    first, second = Recorder(), Recorder()
    path = tmp_path / "stopped.ckpt"
    fit(tmp_path, first, images(), max_steps=stop).save_checkpoint(path)
    fit(tmp_path, second, images(), ckpt_path=path, **rest)
    seen = first.seen + second.seen
    # A trainer that stops within an epoch counts it as done, so max_epochs may mean fewer steps.
    assert len(first.seen) == stop and (len(seen) == 12 or "max_epochs" in rest)
    assert len(second.seen) >= 4
    assert seen == unbroken.seen[: len(seen)]
    assert first.pixels + second.pixels == unbroken.pixels[: len(seen)]


@pytest.mark.parametrize("num_workers, save_at", [(0, 0), (0, 3), (0, 4), (0, 6), (2, 6)])
def test_step_that_a_signal_interrupted_is_done_again(tmp_path, unbroken, save_at, num_workers):
    path = tmp_path / "signal.ckpt"
    first, second = Recorder(save_at, path), Recorder()
    fit(tmp_path, first, images(), max_steps=save_at + 1)
    fit(tmp_path, second, images(num_workers), ckpt_path=path, max_epochs=3)
    assert second.seen == unbroken.seen[save_at:12]
    assert second.pixels == unbroken.pixels[save_at:12]


@pytest.mark.parametrize("options", [{"every_n_train_steps": 4}, {"every_n_epochs": 1}])
def test_checkpoint_at_the_end_of_an_epoch(tmp_path, unbroken, options):
    def limits(epochs):
        saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **options)
        return {"max_epochs": epochs, "callbacks": [saver], "enable_checkpointing": True}

    fit(tmp_path, Recorder(), images(), **limits(2))
    second = Recorder()
    fit(tmp_path, second, images(), tmp_path / "step=4.ckpt", **limits(3))
    assert second.seen == unbroken.seen[4:12]


def test_short_epochs_walk_through_the_whole_split(tmp_path, unbroken):
    module = Recorder()
    fit(tmp_path, module, images(), limit_train_batches=3, max_epochs=4)
    assert module.seen == unbroken.seen[:12]


def test_overfit_batches_repeat(tmp_path):
    module = Recorder()
    fit(tmp_path, module, images(), overfit_batches=2, max_epochs=3, limit_val_batches=0)
    assert module.seen == 3 * module.seen[:2]


def test_resuming_with_another_batch_size_is_told(tmp_path):
    path = tmp_path / "stopped.ckpt"
    fit(tmp_path, Recorder(), images(), max_steps=1).save_checkpoint(path)
    other = Images(Digits(fold=(0, 8)), 20, seed=3)
    with pytest.warns(UserWarning, match="batch_size was 39, is 20"):
        fit(tmp_path, Recorder(), other, ckpt_path=path, max_steps=2)


def test_loading_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    next(iter(images().train_dataloader()))
    next(iter(images().val_dataloader()))
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_trainer_each_pass_is_the_next_epoch(unbroken):
    loader = images().train_dataloader()
    passes = [[index.tolist() for _, _, index in loader] for _ in range(2)]
    assert passes == [unbroken.seen[:4], unbroken.seen[4:8]]


def test_too_few_images_for_a_batch():
    with pytest.raises(ValueError, match=r"158 images.*batch of 200.*lower batch_size to 158"):
        Images(Digits(fold=(0, 8)), 200).train_dataloader()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_hands_out_each_image_once_in_order(num_workers):
    data = Images(eval_batch_size=50, num_workers=num_workers)
    x_0, y, index = (torch.cat(part) for part in zip(*data.test_dataloader(), strict=True))
    split = data.split("test")
    assert index.tolist() == list(range(len(split))) and x_0.shape == (len(split), 1, 8, 8)
    assert y.tolist() == [split[i][1] for i in index.tolist()]


SERVED = """
import multiprocessing
from robustguide.data.loaders import load
if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    print([list(batch) for batch in load([3, 4, 5, 6], [[0, 1], [2, 3]], 1)])
"""


@pytest.mark.check
def test_workers_that_a_server_starts(tmp_path):
    """As Python 3.14 does it; the server is then the parent of a worker."""
    script = tmp_path / "served.py"
    script.write_text(SERVED)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[[3, 4], [5, 6]]\n", done.stderr


def test_workers_ignore_the_signal_of_slurm():
    before = signal.getsignal(signal.SIGUSR1)
    try:
        ignore_requeue_signal(0)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_shards_have_their_steps_and_go_on_after_a_stop(tmp_path):
    def shards():
        return ShardImages(str(tmp_path), batch_size=4, eval_batch_size=5, seed=1, buffer=10)

    write_shards(Digits(fold=(0, 40)), str(tmp_path), per_shard=100)
    steps = len(shards().train_dataloader())
    whole, first, second = Recorder(), Recorder(), Recorder()
    fit(tmp_path, whole, shards(), max_epochs=2)
    assert len(whole.pixels) == 2 * steps and whole.pixels[:steps] != whole.pixels[steps:]
    assert whole.validated == list(range(179)) * 2
    path = tmp_path / "stopped.ckpt"
    fit(tmp_path, first, shards(), max_steps=steps + 2).save_checkpoint(path)
    fit(tmp_path, second, shards(), ckpt_path=path, max_steps=2 * steps)
    assert first.pixels == whole.pixels[: steps + 2]
    assert len(second.pixels) == steps - 2
    # Another draw than the epoch's first images, which have been seen.
    assert second.pixels != whole.pixels[steps : 2 * steps - 2]


class Generator(LightningModule):
    """Answers with what it is asked for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def test_step(self, batch, batch_idx):
        self.seen += zip(*(part.tolist() for part in batch), strict=True)

    def predict_step(self, batch, batch_idx):
        return batch


def test_seeds_reach_tests_and_predictions(tmp_path):
    module, data = Generator(), SeedData(5, num_classes=3, first=4, batch_size=2)
    trainer = make_trainer(tmp_path)
    trainer.test(module, data, verbose=False)
    assert module.seen == [(4, 1), (5, 2), (6, 0), (7, 1), (8, 2)]
    batches = trainer.predict(module, data)
    assert torch.cat([index for index, _ in batches]).tolist() == [4, 5, 6, 7, 8]


@pytest.mark.check
def test_two_processes_share_the_images(tmp_path):
    """Lightning may add distributed samplers, and leaves our loaders as they are."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    address["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, str(Path(__file__).with_name("two_processes.py")), str(tmp_path)]
    runs = [
        subprocess.Popen(
            command,
            env=os.environ | address | {"LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for run in runs:
        _, errors = run.communicate(timeout=100)
        assert run.returncode == 0, errors.decode()[-2000:]
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    expected = {"validation": spread(179, 19), "test": list(range(359))}
    for name, rows in expected.items():
        assert sorted(seen[0][name] + seen[1][name]) == rows
    assert [len(rank["train"]) for rank in seen] == [3, 3]
    train = [row for rank in seen for batch in rank["train"] for row in batch]
    assert len(train) == len(set(train)) == 1200
