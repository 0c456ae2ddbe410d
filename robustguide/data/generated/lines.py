"""What is told of each sample: a line of `samples.jsonl`, or a JSON member of a shard."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robustguide.data.errors import DataError

FACTS = ("method", "scale", "checkpoints", "guides")  # the same for all samples of a set
NAME = "samples.jsonl"


@dataclass(frozen=True)
class Line:
    """Of one sample.

    Attributes:
        index: Its number; samples are in this order.
        seed: Of its noise.
        file: Its image, relative to the folder of the lines; null in a shard.
        y: Its label; null where it has none.
        class_name: What the label means, where that is told.
        made: Those of `FACTS` that are told.
    """

    index: int
    seed: int
    file: str | None = None
    y: int | None = None
    class_name: str | None = None
    made: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, told: Any, where: str) -> "Line":
        """From plain data.

        Args:
            told: With "index" at least.
            where: Names the line in errors.

        Raises:
            DataError: For something else.
        """
        read = told if isinstance(told, dict) else {}
        numbers = {name: read.get(name) for name in ("index", "seed", "y")}
        words = {name: read.get(name) for name in ("file", "class")}
        is_right = numbers["index"] is not None
        is_right &= all(x is None or (type(x) is int and x >= 0) for x in numbers.values())
        if not is_right or not all(x is None or isinstance(x, str) for x in words.values()):
            raise DataError(
                f"{where} is {json.dumps(told)[:200]}; expected whole numbers of 0 or more as "
                'index, seed and y, and text as file and class, of which "index" must be there.'
            )
        index = int(read["index"])
        seed = index if numbers["seed"] is None else int(read["seed"])
        made = {name: read[name] for name in FACTS if name in read}
        return cls(index, seed, words["file"], numbers["y"], words["class"], made)

    def told(self) -> dict[str, Any]:
        """As plain data; what is not known is left out."""
        found = {
            "index": self.index,
            "file": self.file,
            "seed": self.seed,
            "y": self.y,
            "class": self.class_name,
        }
        return {k: v for k, v in found.items() if v is not None} | dict(self.made or {})


def read_lines(path: Path) -> list[Line]:
    """The lines of a file, in their order.

    Raises:
        DataError: For a line that is none.
    """
    lines: list[Line] = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        where = f"Line {number} of {path}"
        try:
            told = json.loads(text)
        except ValueError as error:
            raise DataError(
                f"{where} is no JSON ({error}); run the command that wrote it again."
            ) from error
        line = Line.of(told, where)
        if lines and line.made == lines[-1].made:  # one of them is enough
            line = replace(line, made=lines[-1].made)
        lines.append(line)
    return lines


def as_text(lines: Iterable[Line]) -> str:
    """What `read_lines` reads."""
    return "".join(json.dumps(line.told()) + "\n" for line in lines)


def facts_of(lines: Sequence[Line], where: str) -> dict[str, Any]:
    """How all samples were made.

    Raises:
        DataError: When they were made in several ways: one score of them would be of none.
    """
    ways: dict[str, Line] = {}
    for line in lines:
        ways.setdefault(json.dumps(line.made or {}, sort_keys=True), line)
    if len(ways) > 1:
        first, second = list(ways.values())[:2]
        raise DataError(
            f"{where} holds samples that were made in {len(ways)} ways: number {first.index} by "
            f"{short(first.made)}, number {second.index} by {short(second.made)}. Keep the "
            "samples of each in a folder of their own."
        )
    return dict(lines[0].made or {}) if lines else {}


def short(made: Mapping[str, Any] | None) -> str:
    """The beginning of it, for errors."""
    return json.dumps(dict(made or {}))[:120]


def classes_of(lines: Sequence[Line], where: str) -> tuple[list[int] | None, list[str] | None]:
    """Label of each line and names of the classes; null where lines have none.

    Classes that are told by name alone get their labels in the order of their names.

    Raises:
        DataError: When some lines have a label and some have none, or a label has two names.
    """
    by_name = [line.class_name for line in lines if line.class_name is not None]
    labels = [line.y for line in lines if line.y is not None]
    if not labels and len(by_name) == len(lines) > 0:
        names = sorted(set(by_name))
        place = {name: y for y, name in enumerate(names)}
        return [place[name] for name in by_name], names
    if len(labels) not in (0, len(lines)):
        raise DataError(
            f"{where} has {len(labels)} labels for {len(lines)} samples; give each sample its "
            "label y, or none."
        )
    if not labels:
        return None, None
    return labels, names_of(lines, where)


def names_of(lines: Iterable[Line], where: str) -> list[str] | None:
    """Name of each class up to the largest label; its number for one that no line names."""
    named: dict[int, str] = {}
    largest = -1
    for line in lines:
        assert line.y is not None
        largest = max(largest, line.y)
        if line.class_name is None:
            continue
        if named.setdefault(line.y, line.class_name) != line.class_name:
            raise DataError(
                f"{where} names class {line.y} {named[line.y]!r} and {line.class_name!r}; give "
                "each class one name."
            )
    return [named.get(y, str(y)) for y in range(largest + 1)] if named else None
