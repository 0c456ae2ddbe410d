"""A test of a part of the images: what callbacks have seen is written, and measured later.

The callbacks take the parts in again where all images are put together, and measure there what one
run of all images would have measured.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, UInt8
from lightning import Callback, LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics import Metric

from robustguide.callbacks.origin import facts, origin, seeds
from robustguide.data.generated import Bytes, Generated, write_samples
from robustguide.data.parts import SAMPLES, STATE
from robustguide.files import PART, whole
from robustguide.interfaces import to_pixels
from robustguide.machine.memory import peak_memory


class PartWriter(Callback):
    """Writes images and the callbacks' states of a test into the run folder, and measures nothing.

    One process alone; others make other parts.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Refuses what cannot be put together.

        Raises:
            ValueError: For several processes, or anything but the test of a generation.
        """
        if trainer.world_size > 1:
            raise ValueError(
                f"A part is made by one process, got {trainer.world_size}; set trainer.devices "
                "and trainer.num_nodes to 1, and let other tasks make other parts."
            )
        if stage != "test" or seeds(trainer) is None:
            raise ValueError(
                "PartWriter writes parts of `robustguide test` of a generation, with data of "
                f"robustguide.data.SeedData; got {stage} of {type(module).__name__}."
            )

    def on_test_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Nothing seen yet."""
        self.seen = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps a batch of images as bytes."""
        self.seen.append(
            (to_pixels(outputs["images"]).cpu(), outputs["y"].cpu(), outputs["index"].cpu())
        )

    def on_test_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes all, the facts last."""
        declared: Any = trainer
        folder, data = Path(trainer.default_root_dir), seeds(trainer)
        assert data is not None
        made_from = origin(module, data)
        pixels, y, index = (torch.cat(each) for each in zip(*self.seen, strict=True))
        made = facts(module, made_from["checkpoints"])
        write_samples(Given(pixels, y, index, data.class_names, made), folder / SAMPLES)
        states = {
            f"{callback.state_key}|{name}": tensor.detach().cpu().contiguous()
            for callback in declared.callbacks
            for name, tensor in getattr(callback, "state", dict)().items()
        }
        with whole(folder / STATE) as part:
            save_file(states, part)
        evaluated: Any = getattr(module, "evaluated", None)
        memory, kind = peak_memory(trainer.strategy.root_device)
        told = {
            "first": int(index[0]),
            "count": len(index),
            "evaluated": asdict(evaluated) if evaluated else {},
            "peak_memory_bytes": memory,
            "peak_memory_kind": kind,
            **made_from,
        }
        with whole(folder / PART) as part:
            part.write_text(json.dumps(told, indent=1))
        self.seen = []


class Given(Generated):
    """Samples in memory.

    Args:
        pixels: Images.
        y: Labels.
        index: Numbers, which are the seeds too.
        class_names: One a class.
        made: How.
    """

    def __init__(
        self,
        pixels: UInt8[Tensor, "n c h w"],
        y: Int[Tensor, " n"],
        index: Int[Tensor, " n"],
        class_names: list[str],
        made: Mapping[str, Any],
    ) -> None:
        self.path, self.count = Path(), len(index)
        _, c, h, w = pixels.shape
        self.shape, self.class_names = (c, h, w), class_names
        self.made = {"kind": "memory", **made}
        self.all = Bytes(pixels, y, index, index)

    def batches(self, size: int) -> Iterator[Bytes]:
        """Slices."""
        for first in range(0, self.count, size):
            rows = slice(first, first + size)
            whole_set = self.all
            assert whole_set.y is not None
            yield Bytes(
                whole_set.pixels[rows],
                whole_set.y[rows],
                whole_set.index[rows],
                whole_set.seed[rows],
            )


def is_part(trainer: Trainer) -> bool:
    """Whether a test sees a part of the images, which is not measured by itself."""
    declared: Any = trainer
    return any(isinstance(each, PartWriter) for each in declared.callbacks)


def state_of(metric: Metric | None) -> dict[str, Tensor]:
    """What a metric of one process has seen."""
    found = {} if metric is None else metric.metric_state
    return {
        name: torch.cat(value) if isinstance(value, list) else value
        for name, value in found.items()
        if not isinstance(value, list) or value
    }


def add_state(metric: Metric, state: Mapping[str, Tensor]) -> None:
    """Adds what another metric of the same kind has seen, after what this one has."""
    for name, value in state.items():
        own = getattr(metric, name)
        value = value.to(metric.device)
        if isinstance(own, list):
            own.append(value)
        else:
            setattr(metric, name, own + value)
    metric._update_count += 1  # otherwise it warns that it has seen nothing
