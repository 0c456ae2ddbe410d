"""Generated images: judged, shown and written."""

import json
from functools import partial
from typing import Any

import torch
from lightning import LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor
from torchvision.io import encode_png

from robustguide.callbacks.reporting import Reporting, publish, run_folder
from robustguide.files import whole
from robustguide.interfaces import Classifier, to_pixels
from robustguide.metrics import CalibrationByNoise
from robustguide.report import figures


class ClassAccuracy(Reporting):
    """Share of generated images that an independent classifier takes for their label.

    Args:
        judge: Reads the clean images at noise level 0; never the classifier that guides.
    """

    def __init__(self, judge: Classifier) -> None:
        super().__init__()
        self.judge = judge
        self.metric: CalibrationByNoise | None = None

    def on_test_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """New sums."""
        self.judge.to(module.device).eval()
        self.metric = CalibrationByNoise(1).to(module.device)

    @torch.no_grad()
    def on_test_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Judges a batch."""
        assert self.metric is not None
        images = outputs["images"]
        logits = self.judge(images, images.new_zeros(len(images)))
        self.metric.update(logits, outputs["y"], 0)

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Logs the share and its 95% limits."""
        assert self.metric is not None
        found = self.metric.compute()
        lower, upper = found.limits
        self.measured(
            module,
            "test",
            "class_accuracy",
            float(found.accuracy[0]),
            int(found.count[0]),
            limits=[float(lower[0]), float(upper[0])],
        )
        self.judge.to("cpu")


class SampleGrid(Reporting):
    """Shows the first images as a grid, the same seeds and labels in every run.

    Args:
        count: Images shown.
        columns: Images in a row; the number of classes puts each class into its column.
    """

    def __init__(self, count: int = 50, columns: int = 10) -> None:
        super().__init__()
        self.count, self.columns = count, columns
        self.images: list[Tensor] = []

    def on_test_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Forgets the last run's."""
        self.images = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first ones."""
        missing = self.count - sum(len(images) for images in self.images)
        if missing > 0:
            self.images.append(outputs["images"][:missing].cpu())

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Publishes the grid, and keeps its images as a file for pages that compare runs."""
        if not trainer.is_global_zero:
            return
        images = torch.cat(self.images)
        publish(trainer, "test/samples", partial(figures.image_grid, images, self.columns))
        pixels = {"pixels": to_pixels(images)}
        with whole(run_folder(trainer) / "samples.safetensors") as part:
            save_file(pixels, part)


class SampleWriter(Reporting):
    """Writes generated images as `images/<index>.png` and a line for each to `samples.jsonl`.

    A file has its final name only when it is whole, so a run that was stopped can be repeated.
    """

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes a batch."""
        folder = run_folder(trainer) / "images"
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        rows = zip(outputs["index"].tolist(), outputs["y"].tolist(), strict=True)
        for image, (index, y) in zip(to_pixels(outputs["images"]).cpu(), rows, strict=True):
            png = bytes(encode_png(image).numpy())
            name = f"{index:08d}.png"
            with whole(folder / name) as part:
                part.write_bytes(png)
            names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
            lines.append(
                {"index": index, "file": f"images/{name}", "y": y, "class": names and names[y]}
            )
        with open(run_folder(trainer) / f"samples-{trainer.global_rank}.jsonl", "a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

