"""Checkpoints that guidance loads, written when training ends."""

from collections.abc import Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_info

from robustguide.callbacks.ema import EMA
from robustguide.callbacks.reporting import callbacks_of, run_folder
from robustguide.checkpoints import export, verify


class Export(Callback):
    """Writes the trained network into the run folder, as `<role>.safetensors`.

    The role is the module's attribute, `classifier`, `denoiser` or `codec`. With an EMA callback
    the weights are the average, and the file says so.

    What is exported is described by the configuration, or, where it is none of the networks that
    the configuration names, by the module's own `specification`. At the start of a run both the
    attribute and that may be provisional, so long as they fit each other and could be exported;
    at its end they are final. What `notes` of a module says goes into the file.
    """

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Refuses before training what could not be loaded after it."""
        if not getattr(trainer, "fast_dev_run", False):
            role = role_of(module)
            verify(getattr(module, role), specification_of(module, role))

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes the file; later than `on_train_end`, where EMA hands the average over."""
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        role = role_of(module)
        averages = [c for c in callbacks_of(trainer) if isinstance(c, WeightAveraging)]
        for average in averages:
            if isinstance(average, EMA):
                average.hand_over(module)
        data: Any = getattr(trainer, "datamodule", None)
        path = run_folder(trainer) / f"{role}.safetensors"
        export(
            getattr(module, role),
            str(path),
            specification_of(module, role),
            class_names=() if role == "codec" else data.class_names,
            shape=shape_seen(module, getattr(data, "shape", None)),
            weights="ema" if averages else "raw",
            extra={"steps": trainer.global_step, **getattr(module, "notes", {})},
        )
        rank_zero_info(f"Exported the {role} to {path}")


def shape_seen(module: Any, images: Sequence[int] | None) -> tuple[int, ...]:
    """Shape of what the trained network sees: of latents, where the module has a codec.

    Without images, of what the module samples.
    """
    if images is None:
        return tuple(module.denoiser.shape)
    space = getattr(module, "space", None)
    return tuple(images) if space is None else space.shape(images)


def role_of(module: LightningModule) -> str:
    """The name of what a module trains."""
    for role in ("classifier", "denoiser", "codec"):
        if hasattr(module, role):
            return role
    raise ValueError(
        f"{type(module).__name__} has neither a classifier nor a denoiser nor a codec to "
        "export; remove the Export callback."
    )


def specification_of(module: LightningModule, role: str) -> Any:
    """Plain description of the network: the module's own, or of the configuration that made it."""
    described = getattr(module, "specification", None) or module.hparams.get(role)
    if not isinstance(described, dict):
        raise ValueError(
            f"The {role} was built in Python, so no configuration describes it; train through the "
            "command line, or call robustguide.checkpoints.export with your own specification."
        )
    return described
