"""One of two DDP processes: trains, validates and tests, and writes down which images it saw."""

import json
import sys
from pathlib import Path

import torch
from lightning import LightningModule, Trainer
from torch import nn

from robustguide.data import Images


class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("level", torch.zeros(()))  # DDP sends buffers at each call
        self.seen = {"train": [], "validation": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch[2].tolist())
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.seen["validation"] += batch[2].tolist()

    def test_step(self, batch, batch_idx):
        self.seen["test"] += batch[2].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main(folder):
    module = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    # Nineteen images are ten and nine, which would be two batches and one.
    trainer.fit(module, Images(batch_size=200, eval_batch_size=9, eval_limit=19))
    trainer.test(module, Images(eval_batch_size=100), verbose=False)
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(module.seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
