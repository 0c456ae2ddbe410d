import pytest
import tiny
import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from robustguide.callbacks import EMA, Export
from robustguide.checkpoints import build, load_denoiser, read_metadata
from robustguide.data import Images
from robustguide.modules import Denoising, RobustClassification
from robustguide.noise import LogNormal, UniformT, linear_levels


def classification():
    """A module as the command line makes it, with the configuration that it remembers."""
    described = tiny.classifier()
    module = RobustClassification(build(described), LogNormal())
    module.save_hyperparameters({"classifier": described})
    return module


def test_the_file_says_what_was_trained_on_what(runs):
    found = read_metadata(runs / "classifier/classifier.safetensors")
    assert (found.kind, found.weights, found.conditioning) == ("classifier", "raw", "t")
    assert found.class_names == tuple("0123456789") and found.num_classes == 10
    assert found.shape == (1, 8, 8) and found.extra == {"steps": 60}
    assert found.specification["class_path"] == "robustguide.classifiers.Timed"
    assert found.specification["init_args"]["net"]["init_args"]["width"] == 16
    found = read_metadata(runs / "denoiser/denoiser.safetensors")
    assert (found.kind, found.weights) == ("denoiser", "ema")


def test_the_average_is_what_is_exported(tmp_path):
    """Not the last step's weights."""
    described = tiny.denoiser()
    module = Denoising(build(described), UniformT(linear_levels()))
    module.save_hyperparameters({"denoiser": described})
    last = {}

    class Last(Export):
        def on_train_end(self, trainer, module):
            last.update({k: v.clone() for k, v in module.denoiser.state_dict().items()})

    ema = EMA(0.9)
    trainer = tiny.trainer(tmp_path, Last(), ema, max_steps=4)
    trainer.fit(module, datamodule=Images(batch_size=32, eval_limit=4))
    average = ema._average_model.module.denoiser.state_dict()
    found = load_denoiser(str(tmp_path / "denoiser.safetensors")).state_dict()
    assert all(torch.equal(found[name], average[name]) for name in found)
    assert not torch.equal(found["net.enter.weight"], last["net.enter.weight"])


def test_an_earlier_checkpoint_is_exported_as_it_was(tmp_path):
    """Resumed with no step left, the file is that of a run which ended there: its average."""
    described = tiny.denoiser()

    def fitted(folder, steps, **resumed):
        torch.manual_seed(0)
        module = Denoising(build(described), UniformT(linear_levels()))
        module.save_hyperparameters({"denoiser": described})
        keep = ModelCheckpoint(tmp_path, folder + "-{step}", every_n_train_steps=2, save_top_k=-1)
        parts = Export(), EMA(0.9), keep
        trainer = tiny.trainer(
            tmp_path / folder, *parts, max_steps=steps, enable_checkpointing=True
        )
        trainer.fit(module, datamodule=Images(batch_size=32, eval_limit=4), **resumed)
        return load_denoiser(str(tmp_path / folder / "denoiser.safetensors")).state_dict()

    whole, two = fitted("whole", 4), fitted("two", 2)
    early = fitted("early", 2, ckpt_path=tmp_path / "whole-step=2.ckpt", weights_only=False)
    assert all(torch.equal(early[name], two[name]) for name in two)
    assert not torch.equal(early["net.enter.weight"], whole["net.enter.weight"])


def test_a_module_made_in_python_is_refused_before_it_trains(tmp_path):
    module = RobustClassification(build(tiny.classifier()), LogNormal())
    trainer = tiny.trainer(tmp_path, Export())
    with pytest.raises(
        ValueError, match=r"classifier was built in Python.*robustguide\.checkpoints\.export"
    ):
        trainer.fit(module, datamodule=Images(batch_size=32))
    assert trainer.global_step == 0


def test_a_configuration_of_something_else_is_refused_before_it_trains(tmp_path):
    module = classification()
    module.hparams["classifier"]["init_args"]["net"]["init_args"]["width"] = 32
    trainer = tiny.trainer(tmp_path, Export())
    with pytest.raises(ValueError, match="does not describe the module"):
        trainer.fit(module, datamodule=Images(batch_size=32))
    assert trainer.global_step == 0


def test_nothing_to_export(tmp_path):
    class Other(LightningModule):
        def training_step(self, batch, batch_idx):
            raise AssertionError("trained")

        def validation_step(self, batch, batch_idx):
            raise AssertionError("validated")

        def configure_optimizers(self):
            return torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))])

    with pytest.raises(ValueError, match="Other has neither a classifier nor a denoiser"):
        tiny.trainer(tmp_path, Export()).fit(Other(), datamodule=Images(batch_size=32))


@pytest.mark.filterwarnings("ignore:.*fast_dev_run")
def test_a_trial_run_writes_nothing(tmp_path):
    trainer = tiny.trainer(tmp_path, Export(), fast_dev_run=True)
    trainer.fit(classification(), datamodule=Images(batch_size=32, eval_limit=4))
    assert trainer.global_step == 1 and not list(tmp_path.iterdir())
