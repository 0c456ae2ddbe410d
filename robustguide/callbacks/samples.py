"""Generated images: judged, shown and written."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, distributed

from robustguide.callbacks.judging import refuse_guides
from robustguide.callbacks.origin import facts, origin, seeds
from robustguide.callbacks.reporting import Reporting, Summed, callbacks_of, publish, run_folder
from robustguide.data.generated.lines import NAME, Line, as_text
from robustguide.data.parts import Part
from robustguide.files import whole
from robustguide.interfaces import Classifier, to_pixels
from robustguide.metrics import CalibrationByNoise
from robustguide.report import sheets


class ClassAccuracy(Summed):
    """Share of generated images that an independent classifier takes for their label.

    Args:
        judge: Reads the clean images at noise level 0; never a classifier that guides.
        name: Of the judge, where there are several: the metric is `class_accuracy/NAME`.
    """

    def __init__(self, judge: Classifier, name: str | None = None) -> None:
        super().__init__()
        self.judge, self.name = judge, name
        self.metric: CalibrationByNoise | None = None

    def _named(self, text: str) -> str:
        return text if self.name is None else f"{text}/{self.name}"

    @property
    def state_key(self) -> str:
        """Tells it from one of another name."""
        return self._named(type(self).__qualname__)

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Refuses a judge that guides, by its weights, and two of one name.

        Raises:
            ValueError: For either.
        """
        judges = [each for each in callbacks_of(trainer) if isinstance(each, ClassAccuracy)]
        if [each.name for each in judges].count(self.name) > 1:
            raise ValueError(
                f"Two ClassAccuracy callbacks have the name {self.name!r}, and their numbers "
                "would be one; give each a name of its own."
            )
        refuse_guides(self.judge, dict(getattr(module, "guidance", {}).items()))

    def on_test_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """New sums."""
        self.judge.to(module.device).eval()
        self.metric = CalibrationByNoise(1).to(module.device)

    @torch.no_grad()
    def add(self, module: Any, outputs: Any) -> None:
        """Judges a batch."""
        assert self.metric is not None
        images = outputs["images"]
        logits = self.judge(images, images.new_zeros(len(images)))
        self.metric.update(logits, outputs["y"], 0)

    def conclude(self, trainer: Trainer, module: LightningModule) -> None:
        """Logs the share and its 95% limits."""
        assert self.metric is not None
        found = self.metric.compute()
        lower, upper = found.limits
        self.measured(
            module,
            "test",
            self._named("class_accuracy"),
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
        self.kept: dict[int, tuple[Tensor, int]] = {}  # image and label by number

    def on_test_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Forgets the last run's."""
        self.kept = {}

    def add(self, module: Any, outputs: Any) -> None:
        """Keeps the first ones of this process."""
        missing = self.count - len(self.kept)
        if missing > 0:
            images = outputs["images"][:missing].cpu()
            index, y = outputs["index"].tolist(), outputs["y"].tolist()
            self.kept |= zip(index, zip(images, y, strict=False), strict=False)

    def state(self) -> dict[str, Tensor]:
        """The images, their numbers and their labels."""
        images, y = zip(*self.kept.values(), strict=True)
        index = torch.tensor(list(self.kept), device="cpu")
        return {"index": index, "y": torch.tensor(y, device="cpu"), "images": torch.stack(images)}

    def absorb(self, part: Part) -> None:
        """Keeps the first ones of a part."""
        self.add(None, part.states[self.state_key])

    def conclude(self, trainer: Trainer, module: LightningModule) -> None:
        """Publishes the grid, and keeps its images as a file for pages that compare runs."""
        parts = [self.kept]
        if distributed.is_available() and distributed.is_initialized():
            parts *= trainer.world_size
            distributed.all_gather_object(parts, self.kept)
        kept = {index: image for part in parts for index, image in part.items()}
        if not trainer.is_global_zero:
            return
        index = sorted(kept)[: self.count]
        images = torch.stack([kept[each][0] for each in index])
        publish(trainer, "test/samples", partial(sheets.image_grid, images, self.columns))
        y = [kept[each][1] for each in index]
        numbers = {"index": torch.tensor(index), "y": torch.tensor(y)}
        with whole(run_folder(trainer) / "samples.safetensors") as part:
            save_file({"pixels": to_pixels(images), **numbers}, part)


class SampleWriter(Reporting):
    """Writes generated images as `images/<index>.png`, at last a line of each in `samples.jsonl`.

    A file has its final name only when it is whole, and what is there is not made again: a run
    that was stopped goes on with the same command. `images/made_from.json` says what the images
    were made from, and images of anything else are not mixed with them. Each line tells of the
    method and its scales, and of the networks by their SHA-256, so that it still does elsewhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, Any] = {}

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Leaves out the images that are there.

        Raises:
            ValueError: When they were made from something else.
        """
        folder, data = images_folder(trainer), seeds(trainer)
        if stage != "predict":
            return
        note, made_from = folder / "made_from.json", origin(module, data)
        self.facts = facts(module, made_from["checkpoints"])
        if note.is_file() and json.loads(note.read_text()) != made_from:
            raise ValueError(
                f"{folder} holds images of other networks, guidance or labels (see {note.name}); "
                "give this run a trainer.default_root_dir of its own, or delete that folder."
            )
        if trainer.is_global_zero:
            with whole(note) as part:
                part.write_text(json.dumps(made_from, indent=1))
        if data is not None:
            done = (path.stem for path in folder.glob("*.png"))
            data.leave_out({int(stem) for stem in done if stem.isdecimal()})

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
        pixels = to_pixels(outputs["images"]).movedim(1, -1).cpu().numpy()
        for image, index in zip(pixels, outputs["index"].tolist(), strict=True):
            with whole(images_folder(trainer) / file_name(index)) as part:
                Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
                    part, format="png"
                )

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Lists the images; here, since predictions without anything left to do do not end."""
        data = seeds(trainer)
        if stage != "predict" or data is None:
            return
        trainer.strategy.barrier()  # the other processes' images
        rows = zip(data.indices, data.y.tolist(), strict=True)
        lines = [
            Line(i, i, f"images/{file_name(i)}", y, data.class_names[y], self.facts)
            for i, y in rows
            if (images_folder(trainer) / file_name(i)).is_file()
        ]
        if trainer.is_global_zero:
            with whole(run_folder(trainer) / NAME) as part:
                part.write_text(as_text(lines))


def images_folder(trainer: Trainer) -> Path:
    """Where a run writes its images."""
    return run_folder(trainer) / "images"


def file_name(index: int) -> str:
    """Of the image of a number."""
    return f"{index:08d}.png"
