"""The key of a survey: what the page asks and does not tell."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from robustguide.files import whole

Side = Literal["left", "right"]
SIDES: tuple[Side, ...] = get_args(Side)
FORMAT = 1


@dataclass(frozen=True)
class Method:
    """One of those that are compared.

    Attributes:
        name: As results show it.
        path: Of its samples.
        made: How they were made, as far as that is told.
    """

    name: str
    path: str
    made: Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """A pair of images of one seed.

    Attributes:
        id: Opaque; all that the page and the answers tell.
        left: Method of the image at the left; null is noise, in an attention check.
        right: Method of the image at the right.
        seed: Of both images.
        class_name: Of both; null where samples have no labels.
    """

    id: str
    left: str | None
    right: str | None
    seed: int
    class_name: str | None

    @property
    def is_check(self) -> bool:
        """Whether one side is noise, so that the answer is known."""
        return self.left is None or self.right is None

    @property
    def known(self) -> Side:
        """Of a check: the side that is no noise."""
        return "right" if self.left is None else "left"


@dataclass(frozen=True)
class Key:
    """Of one survey.

    Attributes:
        survey: SHA-256 of all that the page shows; answers name it.
        title: Of the page.
        question: With `{class}` where the class is named.
        has_ties: Whether "no difference" may be answered.
        seed: From which order, sides and seeds were drawn.
        methods: At least two.
        questions: In the order of the page, checks among them.
    """

    survey: str
    title: str
    question: str
    has_ties: bool
    seed: int
    methods: tuple[Method, ...]
    questions: tuple[Question, ...]

    @cached_property
    def by_id(self) -> dict[str, Question]:
        """The questions."""
        return {each.id: each for each in self.questions}

    @property
    def names(self) -> list[str]:
        """Of the methods."""
        return [each.name for each in self.methods]

    @property
    def checks(self) -> list[Question]:
        """Attention checks."""
        return [each for each in self.questions if each.is_check]

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        with whole(path) as part:
            part.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Key":
        """Reads it.

        Raises:
            FileNotFoundError: There is none.
            ValueError: For something else.
        """
        try:
            told = json.loads(path.read_text())
            if told.pop("format") != FORMAT:
                raise ValueError(f"expected format {FORMAT}")
            methods = tuple(Method(**each) for each in told.pop("methods"))
            questions = tuple(Question(**each) for each in told.pop("questions"))
            key = cls(**told, methods=methods, questions=questions)
            key.require()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path} is no key of a survey ({type(error).__name__}: {str(error)[:200]!r}); "
                "give the .key.json that `robustguide survey build` wrote beside the page."
            ) from error
        return key

    def require(self) -> None:
        """Looks whether the parts fit each other.

        Raises:
            ValueError: If they do not.
        """
        texts = [self.survey, self.title, self.question, *self.names, *self.by_id]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("digest, title, question, names and ids must be texts")
        names = set(self.names)
        asked = {name for each in self.questions for name in (each.left, each.right)} - {None}
        if len(names) < 2 or len(names) < len(self.methods) or not asked <= names:
            raise ValueError("questions must be about two or more methods that are listed")
        if len(self.by_id) < len(self.questions) or not self.questions:
            raise ValueError("each question must have an id of its own")
        if any(each.left == each.right for each in self.questions):
            raise ValueError("a question must be about two methods")
