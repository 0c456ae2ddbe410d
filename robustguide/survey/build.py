"""Makes a survey: draws its questions, writes the page, and the key beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from robustguide.data.generated import Generated
from robustguide.survey.key import Key, Method, Question
from robustguide.survey.page import Content, Pair, write_page
from robustguide.survey.questions import draw
from robustguide.survey.sets import matched, pictures

LARGE = 256  # pixels of the page that a small image should have at least


@dataclass(frozen=True)
class Wanted:
    """What the maker of a survey decides.

    Attributes:
        pairs: Questions about methods.
        checks: Attention checks.
        question: With `{class}` where the class is named; null asks for the better image.
        title: Of the page.
        scale: Pixels of the page for each pixel of an image; null makes small images 256 px large.
        has_ties: Whether "no difference" may be answered.
        seed: Order, sides, seeds and ids are drawn from it.

    Raises:
        ValueError: For numbers that make no sense, and empty texts.
    """

    pairs: int = 30
    checks: int = 3
    question: str | None = None
    title: str = "Which image is better?"
    scale: int | None = None
    has_ties: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"pairs": 1, "checks": 0, "seed": 0, "scale": 1}
        for name, value in least.items():
            given = getattr(self, name)
            if given is not None and given < value:
                raise ValueError(f"--{name} is {given}; expected {value} or more.")
        for name in ("question", "title"):
            given = getattr(self, name)
            if given is not None and not given.strip():
                raise ValueError(f"--{name} is empty; give a text, or leave it out.")


@dataclass(frozen=True)
class Built:
    """A survey that was written.

    Attributes:
        page: The HTML file.
        key_path: The key's file.
        key: What is in it.
        equal: Questions that show the same image twice.
    """

    page: Path
    key_path: Path
    key: Key
    equal: int


def build(sets: Mapping[str, Generated], out: Path, wanted: Wanted) -> Built:
    """Writes a survey.

    Args:
        sets: Samples by the names of their methods, two or more.
        out: The page; the key is beside it, as `survey.key.json` beside `survey.html`.
        wanted: The rest.

    Raises:
        FileExistsError: Something is there: answers of an older page would lose their key.
        ValueError: If the sets do not match, or there are not enough seeds.
    """
    if len(sets) < 2:
        raise ValueError(f"A survey compares two or more sets of samples, got {len(sets)}.")
    key_path = new_places(out)
    random = np.random.default_rng(wanted.seed)
    classes = matched(sets)
    questions = draw(list(sets), classes, wanted.pairs, wanted.checks, random)
    pairs = images_of(questions, sets, random)
    content = Content(
        wanted.title,
        tuple(prompt(wanted.question, each.class_name) for each in questions),
        tuple(each.id for each in questions),
        pairs,
        wanted.scale or enlarged(pairs[0].left.shape[1:]),
        wanted.has_ties,
    )
    methods = tuple(
        Method(name, str(samples.path), samples.made) for name, samples in sets.items()
    )
    asked = wanted.question or prompt(None, "{class}" if has_classes(questions) else None)
    told = wanted.title, asked, wanted.has_ties, wanted.seed
    key = Key(content.digest(), *told, methods, questions)
    key.save(key_path)  # first: a page without its key would be of no use
    write_page(out, content)
    equal = sum(np.array_equal(one.left, one.right) for one in pairs)
    return Built(out, key_path, key, equal)


def new_places(out: Path) -> Path:
    """The key's file, where neither it nor the page is there.

    Raises:
        FileExistsError: One of them is.
        ValueError: If the page's name does not end in .html.
    """
    if out.suffix != ".html":
        raise ValueError(f"--out is {out}; name a file that ends in .html.")
    key_path = out.with_suffix(".key.json")
    for path in (out, key_path):
        if path.exists():
            raise FileExistsError(
                f"{path} is there already, and answers may be on their way; name another --out, "
                "or remove it."
            )
    return key_path


def enlarged(sides: tuple[int, ...]) -> int:
    """The whole factor that makes a small image large; 1 for others."""
    return max(1, -(-LARGE // max(sides)))


def has_classes(questions: tuple[Question, ...]) -> bool:
    """Whether the samples are labelled."""
    return questions[0].class_name is not None


def prompt(question: str | None, class_name: str | None) -> str:
    """What is asked about a pair.

    Raises:
        ValueError: If the question names the class, and there is none.
    """
    if question is None:
        return f"Which image shows “{class_name}” better?" if class_name else "Which is better?"
    if "{class}" not in question:
        return question
    if class_name is None:
        raise ValueError(
            "--question names {class}, but the samples have no classes; leave it out."
        )
    return question.replace("{class}", class_name)


def images_of(
    questions: tuple[Question, ...], sets: Mapping[str, Generated], random: np.random.Generator
) -> tuple[Pair, ...]:
    """The images of each question; noise is uniform over the bytes."""
    shape = next(iter(sets.values())).shape
    asked: dict[str | None, set[int]] = {name: set() for name in sets}
    for each in questions:
        for name in {each.left, each.right} - {None}:
            asked[name].add(each.seed)
    found = {name: pictures(samples, asked[name]) for name, samples in sets.items()}

    def image(method: str | None, seed: int) -> UInt8[np.ndarray, "c h w"]:
        if method is None:
            return random.integers(0, 256, shape, dtype=np.uint8)
        return found[method][seed]

    return tuple(Pair(image(q.left, q.seed), image(q.right, q.seed)) for q in questions)
