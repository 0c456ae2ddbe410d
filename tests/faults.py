"""Work that can be killed in the middle: what it does, and what must hold then and at its end.

Each kind begins in an empty folder, or goes on in one where it was killed.
"""

import multiprocessing
import os

import array_runs
import photographs
import tiny
import torch
import yaml

from robustguide.data import Folder, ImageWriter
from robustguide.data.generated import open_samples
from robustguide.plans import jobs
from robustguide.plans.arrays import Plan
from robustguide.plans.merging import merge
from robustguide.plans.submission import Wanted, planned, written
from robustguide.plans.tasks import work


class Preparing:
    """Shards of 400 photographs, by two workers."""

    def __init__(self, root):
        self.photos = photographs.folder(root / "photos", {"train": 150, "val": 10, "test": 40})
        self.whole = None

    def run(self, folder):
        ImageWriter(per_shard=20, num_workers=2).write(Folder(str(self.photos), 64), str(folder))

    def inspect(self, folder):
        for path in folder.glob("[!.]*"):
            assert path.read_bytes() == self.whole[path.name], path

    def conclude(self, folder):
        found = photographs.contents(folder)
        self.whole = self.whole or found
        assert found == self.whole


class Sampling:
    """The chunks of a task, and the merge of them."""

    def __init__(self, root):
        self.config = root / "sampling.yaml"
        self.config.write_text(yaml.safe_dump(array_runs.measured(16, steps=40)))
        self.whole, self.images = None, {}

    def run(self, folder):
        # a chunk's process is forked from this one, which has imported everything
        jobs.forking = lambda: multiprocessing.get_context("fork")
        wanted = Wanted("test", (str(self.config),), folder, 16, chunk=4)
        written(*planned(wanted))
        work(Plan.read(folder), 0, lambda line: None)
        merge(Plan.read(folder), 1)

    def inspect(self, folder):
        for part in folder.glob("all/parts/[!.]*"):
            (batch,) = open_samples(part / "samples.tar").batches(100)
            assert batch.index.tolist() == list(range(int(part.name), int(part.name) + 4))
            assert torch.equal(batch.pixels, self.images[part.name]), part
            assert {"part.json", "state.safetensors"} <= set(os.listdir(part))

    def conclude(self, folder):
        found = array_runs.found(folder / "all")
        self.whole = self.whole or found
        array_runs.same(found, self.whole)
        for part in folder.glob("all/parts/*"):
            (batch,) = open_samples(part / "samples.tar").batches(100)
            self.images.setdefault(part.name, batch.pixels)
        assert len(list(folder.glob("all/parts/*"))) == len(self.images) == 4


class Saving:
    """A training that saves itself at every fourth step, and goes on from the last checkpoint."""

    def __init__(self, root):
        self.whole = None

    def run(self, folder):
        saving = tiny.saving(4, save_last=True, save_top_k=-1)
        config = tiny.merged(tiny.classification(), {"trainer": {"callbacks": [saving]}})
        last = folder / "checkpoints/last.ckpt"
        tiny.run(folder, "fit", config, *([f"--ckpt_path={last}"] if last.exists() else []))

    def inspect(self, folder):
        for path in folder.glob("checkpoints/[!.]*.ckpt"):
            step = torch.load(path, weights_only=False)["global_step"]
            assert path.name == "last.ckpt" or f"step={step}" in path.stem.split("-"), path

    def conclude(self, folder):
        self.inspect(folder)
        found = (folder / "classifier.safetensors").read_bytes()
        self.whole = self.whole or found
        assert found == self.whole


def start(kind, folder, log):
    """In the process that may be killed: leads a group of all that it starts."""
    os.setpgid(0, 0)
    multiprocessing.set_start_method(None, force=True)  # as in a process of its own
    with open(log, "ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    kind.run(folder)
