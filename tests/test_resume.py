"""A run that was stopped within an epoch and resumed equals one that was not, bit for bit."""

import shutil

import pytest
import tiny
import torch

# A run may go on in another folder.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

EMA = tiny.spec("callbacks.EMA", decay=0.9)
CHECKPOINT = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"every_n_train_steps": 7, "save_top_k": -1},
}
SCHEDULE = {
    "class_path": "torch.optim.lr_scheduler.LinearLR",
    "init_args": {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 14},
}
DATA = {"source": tiny.spec("data.Digits", fold=[0, 5]), "batch_size": 50, "eval_limit": 20}
TRAINER = {
    "max_steps": 14,
    "val_check_interval": 5,
    "log_every_n_steps": 1,
    "callbacks": [CHECKPOINT],
}


def robust():
    """Dropout, an attack with a random start and a schedule; 5 steps an epoch."""
    config = tiny.classification(
        classifier=tiny.classifier(dropout=0.3),
        attack=tiny.pgd(random_start=True),
        scheduler=SCHEDULE,
    )
    data = DATA | {"augment": tiny.spec("data.CropAndFlip")}
    return tiny.merged(config, {"data": {"init_args": data}, "trainer": TRAINER})


def averaged():
    """Dropped labels, dropout and a moving average."""
    config = tiny.denoising(denoiser=tiny.denoiser(dropout=0.3), scheduler=SCHEDULE)
    trainer = TRAINER | {"callbacks": [CHECKPOINT, EMA]}
    return tiny.merged(config, {"data": {"init_args": DATA}, "trainer": trainer})


def checkpoint(folder, step):
    (path,) = folder.glob(f"checkpoints/*step={step}.ckpt")
    return path


def same(one, other, where=""):
    """Names of tensors and numbers that differ."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        return [name for key in one for name in same(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list | tuple):
        assert len(one) == len(other), where
        pairs = enumerate(zip(one, other, strict=True))
        return [name for i, pair in pairs for name in same(*pair, f"{where}/{i}")]
    equal = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if equal else [where]


@pytest.fixture(scope="module", params=[robust, averaged])
def unbroken(request, tmp_path_factory):
    """Folder of a run of 14 steps, which saved after the seventh, and its configuration."""
    folder = tmp_path_factory.mktemp(request.param.__name__) / "unbroken"
    config = request.param()
    tiny.run(folder, "fit", config)
    return folder, config


def test_a_checkpoint_carries_no_code(unbroken):
    folder, _ = unbroken
    state = torch.load(checkpoint(folder, 7), weights_only=True)
    assert state["global_step"] == 7 and state["epoch"] == 1
    assert state["state_dict"] and state["optimizer_states"]


def test_it_continues_where_it_was_saved(unbroken, tmp_path):
    folder, config = unbroken
    path = shutil.copy(checkpoint(folder, 7), tmp_path / "saved.ckpt")
    tiny.run(tmp_path / "resumed", "fit", config, f"--ckpt_path={path}")
    check(tmp_path / "resumed", folder)


def test_it_continues_where_it_was_stopped(unbroken, tmp_path):
    """A trainer that stops within an epoch counts that epoch as done."""
    folder, config = unbroken
    cli = tiny.run(tmp_path / "resumed", "fit", tiny.merged(config, {"trainer": {"max_steps": 7}}))
    assert cli.trainer.global_step == 7 and cli.trainer.current_epoch == 2
    path = tmp_path / "stopped.ckpt"
    cli.trainer.save_checkpoint(path)
    if "EMA" in str(config):  # the average has taken the place of the raw weights by now
        path = shutil.copy(checkpoint(tmp_path / "resumed", 7), path)
    tiny.run(tmp_path / "resumed", "fit", config, f"--ckpt_path={path}")
    check(tmp_path / "resumed", folder)


def check(resumed, unbroken):
    one, other = (
        torch.load(checkpoint(folder, 14), weights_only=True) for folder in (resumed, unbroken)
    )
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same(one[key], other[key], key) == []
    if "current_model_state" in other:
        assert same(one["current_model_state"], other["current_model_state"]) == []
        assert same(one["averaging_state"], other["averaging_state"]) == []
        raw, mean = other["current_model_state"], other["state_dict"]
        assert not torch.equal(raw["denoiser.net.enter.weight"], mean["denoiser.net.enter.weight"])
    before = torch.load(checkpoint(unbroken, 7), weights_only=True)
    assert same(before["state_dict"], other["state_dict"])
    names = ("classifier.safetensors", "denoiser.safetensors")
    (name,) = [name for name in names if (unbroken / name).is_file()]
    assert (resumed / name).read_bytes() == (unbroken / name).read_bytes()
