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
from lightning import LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor

from robustguide.callbacks.meter import told_by
from robustguide.callbacks.origin import facts, origin, seeds
from robustguide.callbacks.reporting import Reporting, callbacks_of, run_folder
from robustguide.data.generated import Bytes, Generated, write_samples
from robustguide.data.parts import SAMPLES, STATE
from robustguide.files import PART, whole
from robustguide.interfaces import to_pixels
from robustguide.machine.memory import peak_memory


class PartWriter(Reporting):
    """Writes images and the callbacks' states of a test into the run folder, and measures nothing.

    One process alone; others make other parts.
    """

    writes_part = True

    def __init__(self) -> None:
        super().__init__()
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

    def add(self, module: Any, outputs: Any) -> None:
        """Keeps a batch of images as bytes."""
        self.seen.append(
            (to_pixels(outputs["images"]).cpu(), outputs["y"].cpu(), outputs["index"].cpu())
        )

    def on_test_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes all, the facts last."""
        folder, data = run_folder(trainer), seeds(trainer)
        assert data is not None
        made_from = origin(module, data)
        pixels, y, index = (torch.cat(each) for each in zip(*self.seen, strict=True))
        made = facts(module, made_from["checkpoints"])
        write_samples(Given(pixels, y, index, data.class_names, made), folder / SAMPLES)
        states = {
            f"{callback.state_key}|{name}": tensor.detach().cpu().contiguous()
            for callback in callbacks_of(trainer)
            if isinstance(callback, Reporting)
            for name, tensor in callback.state().items()
        }
        with whole(folder / STATE) as part:
            save_file(states, part)
        evaluated: Any = getattr(module, "evaluated", None)
        memory, kind = peak_memory(trainer.strategy.root_device)
        work = told_by(trainer)
        told = {
            "first": int(index[0]),
            "count": len(index),
            "evaluated": asdict(evaluated) if evaluated else {},
            "peak_memory_bytes": memory,
            "peak_memory_kind": kind,
            "work": work[0] if work else None,
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
        self.pixels, self.y, self.index = pixels, y, index

    def batches(self, size: int) -> Iterator[Bytes]:
        """Slices."""
        for first in range(0, self.count, size):
            rows = slice(first, first + size)
            index = self.index[rows]
            yield Bytes(self.pixels[rows], self.y[rows], index, index)
