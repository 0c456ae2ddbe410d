"""Command lines that sample the same seeds with several configurations, block by block.

Block b of every method makes the images of numbers first + b count to first + (b + 1) count - 1,
so that blocks share no seed and methods differ by nothing else.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from robustguide.files import whole
from robustguide.plans.jobs import Job, JobError

LEAST_BLOCKS = 3  # of two, an interval by Student's t reaches 13 standard errors
# Options of the plan, which another value of the configuration would contradict.
TAKEN = {
    "data.first": "--first",
    "data.count": "--count",
    "trainer.default_root_dir": "--folder",
}


@dataclass(frozen=True)
class Way:
    """How a method is configured.

    Attributes:
        configs: Files, each over the one before.
        changes: `key=value` of options, over the files.
    """

    configs: tuple[Path, ...]
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ablation:
    """Which runs there are.

    Attributes:
        methods: How each method is configured, by name.
        base: Configurations that all methods share, read before their own.
        folder: Holds a folder of blocks for each method.
        count: Images in a block.
        blocks: Blocks of each method.
        first: Number of the first image.
        changes: `key=value` of options that all methods get.

    Raises:
        FileNotFoundError: A configuration is not there.
        ValueError: For numbers that leave no interval, or changes that the plan would undo.
    """

    methods: dict[str, Way]
    base: tuple[Path, ...]
    folder: Path
    count: int
    blocks: int = LEAST_BLOCKS
    first: int = 0
    changes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.blocks < LEAST_BLOCKS:
            raise ValueError(
                f"--blocks is {self.blocks}; expected {LEAST_BLOCKS} or more, since the intervals "
                "are made of the spread between blocks."
            )
        if self.count < 1 or self.first < 0:
            raise ValueError(
                f"--count is {self.count} and --first {self.first}; expected a count of 1 or more "
                "and a number of 0 or more."
            )
        own = (change for way in self.methods.values() for change in way.changes)
        for change in (*self.changes, *own):
            key, equals, _ = change.removeprefix("--").partition("=")
            if not equals:
                raise ValueError(
                    f"--set got {change!r}; expected key=value, such as model.watched_steps=5."
                )
            if key in TAKEN:
                raise ValueError(f"{key} is set by {TAKEN[key]}; leave it out of --set.")
        for path in (*self.base, *(path for way in self.methods.values() for path in way.configs)):
            if not path.is_file():
                raise FileNotFoundError(f"The configuration {path} is not there.")

    def only(self, methods: Iterable[str]) -> "Ablation":
        """The same with some of the methods."""
        return replace(self, methods={method: self.methods[method] for method in methods})

    def done(self, method: str) -> list[Path]:
        """The run folders of the blocks that have results."""
        return [folder for folder in self.run_folders(method) if is_done(folder)]

    def run_folder(self, method: str, block: int) -> Path:
        """Where a run leaves its files."""
        return self.folder / method / f"block_{block}"

    def run_folders(self, method: str) -> list[Path]:
        """Of all blocks."""
        return [self.run_folder(method, block) for block in range(self.blocks)]

    def pairs(self) -> list[tuple[str, int]]:
        """Methods and blocks, all methods' first blocks first."""
        return [(method, block) for block in range(self.blocks) for method in self.methods]

    def files(self, method: str) -> tuple[Path, ...]:
        """The configurations of a method, each over the one before."""
        return (*self.base, *self.methods[method].configs)

    def left(self) -> list[tuple[str, int]]:
        """Methods and blocks that have no results."""
        return [each for each in self.pairs() if not is_done(self.run_folder(*each))]

    def job(self, method: str, block: int) -> Job:
        """One run."""
        configs = (word for file in self.files(method) for word in ("--config", str(file)))
        place = f"--trainer.default_root_dir={self.run_folder(method, block)}"
        words = ("test", *configs, *self.options(method, block), place)
        return Job(job_name(method, block), words)

    def options(self, method: str, block: int) -> tuple[str, ...]:
        """What goes over the configurations."""
        told = (*self.changes, *self.methods[method].changes)
        changes = (f"--{change.removeprefix('--')}" for change in told)
        first = self.first + block * self.count
        return (*changes, f"--data.first={first}", f"--data.count={self.count}")

    def asked(self, method: str, block: int) -> dict[str, Any]:
        """What decides about a run's results: what its configurations say, and its options."""
        said = {str(file): content(file) for file in self.files(method)}
        return said | {"options": list(self.options(method, block))}

    def missing(self) -> list[Job]:
        """The runs that have no results yet.

        Raises:
            ValueError: A folder holds results of something else.
        """
        hashed = cache(hash_of)  # one reading of a checkpoint that many runs name
        left = self.left()
        for method, block in self.pairs():
            if (method, block) not in left:
                self.refuse_others(method, block, hashed)
        return [self.job(method, block) for method, block in left]

    def note(self) -> None:
        """Writes beside each missing run what it is asked for; called before they run."""
        for method, block in self.left():
            with whole(self.run_folder(method, block) / "asked.json") as part:
                part.write_text(json.dumps(self.asked(method, block), indent=1))

    def refuse_others(self, method: str, block: int, hashed: Callable[[str], str | None]) -> None:
        """Refuses results that another command or other networks left in a run's folder."""
        folder, asked = self.run_folder(method, block), self.asked(method, block)
        note = folder / "asked.json"
        found = json.loads(note.read_text()) if note.is_file() else {}
        other = [part for part, value in asked.items() if found.get(part) != value]
        if "options" in other:
            other[other.index("options")] = f"options ({' '.join(found.get('options', ()))})"
        read = json.loads((folder / "results.json").read_text())["run"]["checkpoints"]
        other += [path for path, sha256 in read.items() if hashed(path) != sha256]
        if other:
            raise ValueError(
                f"{folder} holds results of a run that differed in {', '.join(other)}; give "
                f"--folder another folder, or delete {folder.parent} to run the method again."
            )

    def failed(self, failures: Mapping[str, JobError]) -> dict[str, str]:
        """Of each method that has failed blocks how many there are, and the first one's error."""
        found = {}
        for method in self.methods:
            names = (job_name(method, block) for block in range(self.blocks))
            errors = [str(failures[name]) for name in names if name in failures]
            if errors:
                found[method] = f"{len(errors)} of {self.blocks} blocks failed. {errors[0]}"
        return found


def named(configs: Sequence[str]) -> dict[str, Way]:
    """Methods by the names of their files.

    Raises:
        ValueError: When two have the same name.
    """
    methods: dict[str, Way] = {}
    for config in configs:
        path = Path(config)
        if path.stem in methods:
            raise ValueError(
                f"{methods[path.stem].configs[0]} and {path} would both be the method "
                f"{path.stem!r}; give one of them another file name."
            )
        methods[path.stem] = Way((path,))
    return methods


def job_name(method: str, block: int) -> str:
    """Names a run and its log."""
    return f"{method}_block_{block}"


def is_done(folder: Path) -> bool:
    """Whether a run has ended: its results are the last that it writes."""
    return (folder / "results.json").is_file()


def content(file: Path) -> Any:
    """What a configuration says, whatever its comments; its text where it cannot be read."""
    text = file.read_text()
    try:
        return json.loads(json.dumps(yaml.safe_load(text), default=str))
    except yaml.YAMLError:
        return text  # the run will say what is wrong


def hash_of(path: str) -> str | None:
    """Hash of a file; null where there is none."""
    from robustguide.checkpoints import sha256_of  # and torch, which no help needs

    return sha256_of(path) if Path(path).is_file() else None
