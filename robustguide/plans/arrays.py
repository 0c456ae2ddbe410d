"""Plans of array jobs: images of any number in chunks that any task can make, and trainings.

A plan is a folder with `plan.json` and the whole configuration of each setting. It is fixed when
it is written, so that tasks that start later, or again, do what was asked for at first. A chunk is
a contiguous range of images in batches that do not depend on who makes it; its folder gets its
name when it is whole, and what is there is not made again.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby, product
from pathlib import Path
from typing import Any

import yaml

from robustguide.files import PART, whole

FILE, VERSION = "plan.json", 1
CHUNKS = 4  # a task: what is lost when it is killed is one of them
# Options of the plan, which another value would contradict.
TAKEN = {
    "data.first": "--first",
    "data.count": "--num-samples",
    "data.parts": "`robustguide merge`",
    "trainer.default_root_dir": "--folder",
}


@dataclass(frozen=True)
class Setting:
    """One of the configurations of a plan.

    Attributes:
        name: Of its folder.
        changes: `key=value` of the sweep that made it.
        sha256: Of its configuration file, to which nothing may be added later.
    """

    name: str
    changes: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class Unit:
    """What a task does at a time: a chunk of images, or a training.

    Attributes:
        setting: Whose it is.
        numbers: Of the images; empty for a training.
        folder: Of what comes of it; it is there when it is whole.
    """

    setting: Setting
    numbers: range
    folder: Path

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return (self.folder / (PART if self.numbers else "results.json")).is_file()


@dataclass(frozen=True)
class Plan:
    """Which tasks there are.

    Attributes:
        folder: Of all files.
        stage: "test" for images, "fit" for trainings.
        settings: Configurations; a task has chunks of one or more of them, or one training.
        tasks: Of the array.
        first: Number of the first image.
        count: Images of each setting.
        chunk: Images in a chunk, a multiple of the batch size.
    """

    folder: Path
    stage: str
    settings: tuple[Setting, ...]
    tasks: int
    first: int = 0
    count: int = 0
    chunk: int = 1

    @cached_property
    def units(self) -> list[Unit]:
        """All, in the order in which tasks take them."""
        if self.stage == "fit":
            return [Unit(each, range(0), self.folder / each.name) for each in self.settings]
        numbers = range(self.first, self.first + self.count)
        return [
            Unit(setting, part, self.parts(setting) / f"{part.start:012d}")
            for setting in self.settings
            for part in (numbers[i : i + self.chunk] for i in range(0, self.count, self.chunk))
        ]

    def of_task(self, task: int) -> list[Unit]:
        """Neighbours, so that a task has few settings.

        Raises:
            ValueError: There is no such task.
        """
        if not 0 <= task < self.tasks:
            raise ValueError(
                f"There is no task {task} in {self.folder}: its {self.tasks} tasks are 0 to "
                f"{self.tasks - 1}; send the array as --array=0-{self.tasks - 1}."
            )
        ends = [len(self.units) * k // self.tasks for k in (task, task + 1)]
        return self.units[slice(*ends)]

    def missing(self) -> list[int]:
        """Tasks that have something left to do."""
        return [k for k in range(self.tasks) if not all(u.is_done for u in self.of_task(k))]

    def parts(self, setting: Setting) -> Path:
        """Folder of a setting's chunks."""
        return self.folder / setting.name / "parts"

    def config(self, setting: Setting) -> Path:
        """Its whole configuration.

        Raises:
            ValueError: It is not what it was when the plan was written.
        """
        path = self.folder / "settings" / f"{setting.name}.yaml"
        if not path.is_file() or sha256(path.read_bytes()) != setting.sha256:
            raise ValueError(
                f"{path} is not what it was when the plan was written; put it back, or submit "
                "what you want now with another --folder."
            )
        return path

    def told(self) -> dict[str, Any]:
        """As plain data, with a digest of the rest."""
        fields = {k: v for k, v in asdict(self).items() if k != "folder"}
        plain: dict[str, Any] = json.loads(json.dumps({"version": VERSION, **fields}))
        return plain | {"digest": sha256(json.dumps(plain, sort_keys=True).encode())}

    def write(self, configs: Sequence[str]) -> None:
        """Writes the plan, the configurations before it.

        Args:
            configs: Of the settings, in their order.
        """
        for setting, text in zip(self.settings, configs, strict=True):
            with whole(self.folder / "settings" / f"{setting.name}.yaml") as part:
                part.write_bytes(text.encode())
        with whole(self.folder / FILE) as part:
            part.write_text(json.dumps(self.told(), indent=1))

    @classmethod
    def read(cls, folder: Path) -> "Plan":
        """The plan in a folder.

        Raises:
            ValueError: There is none, or it was edited.
        """
        path = folder / FILE
        if not path.is_file():
            raise ValueError(
                f"There is no {FILE} in {folder} (from {Path.cwd()}); `robustguide submit` writes "
                "one."
            )
        try:
            told = json.loads(path.read_text())
            settings = tuple(
                Setting(each["name"], tuple(each["changes"]), each["sha256"])
                for each in told["settings"]
            )
            numbers = {name: int(told[name]) for name in ("tasks", "first", "count", "chunk")}
            plan = cls(folder, str(told["stage"]), settings, **numbers)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"Cannot read {path}: {error!r}; submit again.") from error
        if plan.told() != told:
            raise ValueError(
                f"{path} was edited after it was written, and its chunks may be there already; "
                "put it back, or submit what you want now with another --folder."
            )
        return plan


def sweep(words: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Name and changes of each combination of swept values.

    Args:
        words: `key=value,value` each.

    Raises:
        ValueError: For something else, and for what the plan sets itself.
    """
    axes = []
    for word in words:
        key, equals, values = word.removeprefix("--").partition("=")
        if not equals or not key or not all(values.split(",")):
            raise ValueError(
                f"--sweep got {word!r}; expected KEY=VALUE,VALUE such as "
                "model.guidance.robust.scale=0.5,1,2."
            )
        refuse_taken(key)
        axes.append([f"{key}={value}" for value in values.split(",")])
    found = [(name_of(changes), changes) for changes in product(*axes)]
    names = [name for name, _ in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"--sweep gives {', '.join(sorted(twice))} twice; give each value once.")
    return found


def refuse_taken(key: str) -> None:
    """Refuses options that the plan sets.

    Raises:
        ValueError: Naming who sets it.
    """
    if key in TAKEN:
        raise ValueError(f"{key} is set by {TAKEN[key]}; leave it out.")


def name_of(changes: Sequence[str]) -> str:
    """Folder of a setting: the last words of its keys with their values."""
    parts = (change.rpartition("=") for change in changes)
    text = "_".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, _, value in parts)
    return re.sub(r"[^\w=.+-]", "-", text) or "all"


def chunk_of(count: int, tasks: int, batch_size: int, wanted: int | None) -> int:
    """Images in a chunk: whole batches, and some chunks a task where none is wanted.

    Raises:
        ValueError: For a chunk of broken batches: its images would not be those of one run.
    """
    if wanted is None:
        batches = -(-count // (CHUNKS * tasks * batch_size))
        return batches * batch_size
    if wanted < 1 or wanted % batch_size:
        raise ValueError(
            f"--chunk is {wanted}; expected a multiple of data.batch_size, {batch_size}, so that "
            "every batch is that of one run of all images."
        )
    return wanted


def batch_size_of(config: str) -> int:
    """Images in a batch of a generation.

    Raises:
        ValueError: For a configuration of something else.
    """
    plain = yaml.safe_load(config)
    data = plain.get("data") or {}
    if not str(data.get("class_path")).endswith(".SeedData"):
        raise ValueError(
            f"The data is {data.get('class_path')}; arrays of images need a generation, with data "
            "of robustguide.data.SeedData. For a training, say `robustguide submit fit CONFIG`."
        )
    return int(data["init_args"]["batch_size"])


def ranges(numbers: Sequence[int]) -> Iterator[str]:
    """Ascending numbers as Slurm writes them: "0-3", "7"."""
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        found = [number for _, number in run]
        yield f"{found[0]}" if len(found) == 1 else f"{found[0]}-{found[-1]}"


def sha256(content: bytes) -> str:
    """Of bytes."""
    return hashlib.sha256(content).hexdigest()
