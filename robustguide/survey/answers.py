"""Files of answers, which come from strangers: read strictly, or set aside with a reason."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustguide.survey.key import Key

BASE, PER_ANSWER = 4096, 256  # bytes; the page writes less than half of it
LONGEST = 10**9  # ms, as in page.js
RATER = re.compile("[0-9a-f]{32}")
FIELDS = {"survey", "rater", "answers"}
CHOICES = ("left", "right", "tie")


@dataclass(frozen=True)
class Answer:
    """To one question.

    Attributes:
        choice: "left", "right" or "tie".
        ms: Milliseconds that the question was shown.
    """

    choice: str
    ms: int


@dataclass(frozen=True)
class Answers:
    """Of one rater.

    Attributes:
        rater: Random, made by the page.
        given: By the id of the question.
    """

    rater: str
    given: dict[str, Answer]

    def failed(self, key: Key) -> int:
        """Attention checks with a wrong answer or none."""
        return sum(
            each.id not in self.given or self.given[each.id].choice != each.known
            for each in key.checks
        )


@dataclass(frozen=True)
class SetAside:
    """A file that is not used, by its name, and why; both can be printed."""

    file: str
    reason: str


@dataclass(frozen=True)
class Gathered:
    """All files.

    Attributes:
        raters: Each once.
        repeated: Files that say what another one says, and are not counted again.
        set_aside: Those that are not used.
    """

    raters: tuple[Answers, ...]
    repeated: tuple[str, ...]
    set_aside: tuple[SetAside, ...]


def gather(paths: Sequence[Path], key: Key) -> Gathered:
    """Reads all files.

    A file that is no answers to this survey is set aside. So are all files of a rater of whom two
    files differ, since which of them is meant is not told.

    Args:
        paths: Of the files.
        key: Of the survey.
    """
    read: dict[str, list[tuple[str, Answers]]] = {}
    aside: list[SetAside] = []
    for path in paths:
        try:
            answers = read_answers(path, key)
        except (ValueError, OSError) as error:
            aside.append(SetAside(plain(str(path)), plain(str(error), 300)))
        else:
            read.setdefault(answers.rater, []).append((plain(str(path)), answers))
    raters, repeated = [], []
    for files in read.values():
        names, (first, *others) = [name for name, _ in files], [each for _, each in files]
        if all(each == first for each in others):
            raters.append(first)
            repeated += names[1:]
        else:
            reason = f"rater {first.rater[:8]} has other answers in another file"
            aside += [SetAside(name, reason) for name in names]
    return Gathered(tuple(raters), tuple(repeated), tuple(aside))


def read_answers(path: Path, key: Key) -> Answers:
    """Reads a file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is anything but answers to this survey.
    """
    if not path.is_file():
        raise ValueError("there is no such file")
    limit = BASE + PER_ANSWER * len(key.questions)
    with path.open("rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is larger than {limit:,} bytes, which no answers are")
    try:
        told = json.loads(
            content.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON that the page writes ({plain(str(error))})") from error
    if not isinstance(told, dict) or told.keys() != FIELDS:
        raise ValueError("it does not hold survey, rater and answers, and nothing else")
    if told["survey"] != key.survey:
        raise ValueError("it answers another survey, or an older page of this one")
    rater, rows = told["rater"], told["answers"]
    if not isinstance(rater, str) or not RATER.fullmatch(rater):
        raise ValueError("its rater is not 32 hexadecimal digits")
    if not isinstance(rows, list):
        raise ValueError("its answers are no list")
    given: dict[str, Answer] = {}
    for row in rows:
        own, answer = answer_of(row, key)
        if own in given:
            raise ValueError(f"it answers question {own} twice")
        given[own] = answer
    if not given:
        raise ValueError("it holds no answers")
    return Answers(rater, given)


def answer_of(row: Any, key: Key) -> tuple[str, Answer]:
    """Id and answer.

    Raises:
        ValueError: For anything else.
    """
    if not isinstance(row, dict) or row.keys() != {"id", "answer", "ms"}:
        raise ValueError("an answer does not hold id, answer and ms, and nothing else")
    own, choice, ms = row["id"], row["answer"], row["ms"]
    if not isinstance(own, str) or own not in key.by_id:
        raise ValueError(f"it answers a question that was not asked ({plain(repr(own), 40)})")
    expected = CHOICES if key.has_ties else CHOICES[:2]
    if not isinstance(choice, str) or choice not in expected:
        raise ValueError(
            f"its answer to {own} is {plain(repr(choice), 40)}; expected {', '.join(expected)}"
        )
    if type(ms) is not int or not 0 <= ms <= LONGEST:
        raise ValueError(
            f"its time for {own} is no whole number of ms from 0 to {LONGEST:,} "
            f"({plain(repr(ms), 40)})"
        )
    return own, Answer(choice, ms)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names differ.

    Raises:
        ValueError: If a name is there twice: readers would differ about what it says.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has one name twice")
    return found


def refuse_constant(name: str) -> None:
    """NaN and infinities are no JSON.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name} is no number")


def plain(text: str, longest: int = 120) -> str:
    """For a terminal: without control characters, which could rewrite what it shows, and short."""
    kept = "".join(sign if sign.isprintable() else "?" for sign in text[: longest + 1])
    return kept if len(text) <= longest else kept[: longest - 3] + "..."
