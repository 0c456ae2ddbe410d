"""Settings of EluCD's knobs, the order in which they are tried, and what was found of each."""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from robustguide.files import whole
from robustguide.metrics import Answers

Choices = Mapping[str, Sequence[Any]]  # values of knobs by name


@dataclass(frozen=True)
class Knobs:
    """One setting.

    Attributes:
        beta: Of Softplus(beta) in place of ReLU; infinity is the ReLU.
        joint: Multiplies the logit of the label; `tau_1`.
        marginal: Multiplies the logits in the normaliser; `tau_2`.
        strength: Gamma of the sine schedule; null leaves the sampler as it is.
    """

    beta: float = math.inf
    joint: float = 1.0
    marginal: float = 1.0
    strength: float | None = None

    @property
    def named(self) -> dict[str, float]:
        """Those that there are."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def words(self) -> str:
        """For people."""
        return ", ".join(f"{name} {value:g}" for name, value in self.named.items())


Search = Generator[Knobs, float, None]  # yields what is to be tried, and is sent its error


def one_at_a_time(choices: Choices, rounds: int) -> Search:
    """Each knob in turn, the others where they are best so far, until a round changes nothing.

    Args:
        choices: Values of each knob, in the order in which they are turned; it starts from the
            first of each.
        rounds: At most so many times through all knobs.
    """
    now = Knobs(**{name: values[0] for name, values in choices.items()})
    for _ in range(rounds):
        before = now
        for name, values in choices.items():
            tried = [replace(now, **{name: value}) for value in values]
            errors = []
            for knobs in tried:
                errors.append((yield knobs))
            now = tried[errors.index(min(errors))]
        if now == before:
            return


def all_combinations(choices: Choices) -> Search:
    """Every combination, the last knob turning fastest."""
    for values in itertools.product(*choices.values()):
        yield Knobs(**dict(zip(choices, values, strict=True)))


def most_tried(choices: Choices, rounds: int | None = None) -> int:
    """How many settings a search tries at most; without rounds, of all combinations."""
    product = math.prod(map(len, choices.values()))
    if rounds is None:
        return product
    return min(product, 1 + rounds * sum(len(values) - 1 for values in choices.values()))


class Reached(NamedTuple):
    """How far a search is.

    Attributes:
        tried: Settings that it asked for and whose errors are known, in its order.
        pending: What it asks for next; null when it has ended.
    """

    tried: list[Knobs]
    pending: Knobs | None


def replay(search: Search, errors: Mapping[Knobs, float]) -> Reached:
    """Goes through a new search as far as errors are known."""
    tried: dict[Knobs, None] = {}
    try:
        knobs = next(search)
        while knobs in errors:
            tried[knobs] = None
            knobs = search.send(errors[knobs])
    except StopIteration:
        return Reached(list(tried), None)
    return Reached(list(tried), knobs)


@dataclass(frozen=True)
class Trial:
    """What was found of a setting, along the reverse process and with the labels as truth.

    Attributes:
        knobs: The setting.
        n: Images.
        num_bins: Confidence bins.
        levels: Noise levels of the watched steps.
        integral_ece: Mean ECE over the levels; NaN where sampling broke down.
        interval: 95% of its bootstrap over images.
        if_calibrated: Mean and upper 95% limit of what calibrated answers would show at this n.
        agreement: Share of answers that are the label, mean over the levels.
        confidence: Mean confidence, mean over the levels.
        ece: By level.
        ece_if_calibrated: By level, mean.
        agreement_by_level: By level.
        confidence_by_level: By level.
    """

    knobs: Knobs
    n: int
    num_bins: int
    levels: tuple[float, ...]
    integral_ece: float
    interval: tuple[float, float]
    if_calibrated: tuple[float, float]
    agreement: float
    confidence: float
    ece: tuple[float, ...]
    ece_if_calibrated: tuple[float, ...]
    agreement_by_level: tuple[float, ...]
    confidence_by_level: tuple[float, ...]

    @classmethod
    def of(
        cls, knobs: Knobs, levels: Sequence[float], answers: Answers, broken: bool = False
    ) -> "Trial":
        """Sums up the answers to a setting; `broken` where some were no numbers."""
        expected, _, mean, upper = answers.sampling_error()
        agreement, confidence = answers.accuracy, answers.mean_confidence
        return cls(
            knobs,
            answers.n,
            answers.num_bins,
            tuple(levels),
            math.nan if broken else answers.integral_ece,
            (math.nan, math.nan) if broken else answers.integral_interval(),
            (mean, upper),
            float(agreement.mean()),
            float(confidence.mean()),
            tuple(answers.ece.tolist()),
            tuple(expected.tolist()),
            tuple(agreement.tolist()),
            tuple(confidence.tolist()),
        )

    @property
    def error(self) -> float:
        """What is minimised; endless where sampling broke down."""
        return math.inf if math.isnan(self.integral_ece) else self.integral_ece

    @property
    def curves(self) -> dict[str, list[float]]:
        """By noise level, for `results.json`."""
        return {
            "sigma": list(self.levels),
            "ece": list(self.ece),
            "label_agreement": list(self.agreement_by_level),
            "confidence": list(self.confidence_by_level),
        }

    @property
    def plain(self) -> dict[str, Any]:
        """For JSON, which has no infinity and no NaN: words in their place."""
        answer: dict[str, Any] = worded(asdict(self))
        return answer

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "Trial":
        """From `plain`."""
        given = {field.name: numbered(plain[field.name]) for field in fields(cls)}
        return cls(**given | {"knobs": Knobs(**given["knobs"])})


class Ledger:
    """Trials in a file, one a line, each with a fingerprint of what it was made from.

    Those of other fingerprints stay in the file and are not read.

    Args:
        path: Of the file; it need not be there.
        made_from: Fingerprint.
    """

    def __init__(self, path: Path, made_from: str) -> None:
        self.path, self.made_from = path, made_from

    def read(self) -> dict[Knobs, Trial]:
        """The trials of this fingerprint."""
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        found = [json.loads(line) for line in lines]
        trials = [Trial.read(plain) for plain in found if plain["made_from"] == self.made_from]
        return {trial.knobs: trial for trial in trials}

    def add(self, trial: Trial) -> None:
        """Writes one more; the file is whole at any time."""
        before = self.path.read_text() if self.path.is_file() else ""
        line = json.dumps({"made_from": self.made_from, **trial.plain}, allow_nan=False)
        with whole(self.path) as part:
            part.write_text(f"{before}{line}\n")


def fingerprint(described: Any) -> str:
    """Short name of plain data; of other objects within it by their class and attributes."""
    text = json.dumps(described, default=attributes, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def attributes(value: Any) -> Any:
    """An object as plain data."""
    if isinstance(value, Tensor):
        return value.tolist()
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return {"class": kind, **vars(value)} if hasattr(value, "__dict__") else [kind, repr(value)]


def changed(change: Callable[[Any], Any], value: Any) -> Any:
    """Plain data with something made of every leaf."""
    if isinstance(value, dict):
        return {key: changed(change, part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(changed(change, part) for part in value)
    return change(value)


def worded(value: Any) -> Any:
    """Numbers that JSON has not as words."""

    def word(leaf: Any) -> Any:
        return str(leaf) if isinstance(leaf, float) and not math.isfinite(leaf) else leaf

    return changed(word, value)


def numbered(value: Any) -> Any:
    """And back."""
    return changed(lambda leaf: float(leaf) if isinstance(leaf, str) else leaf, value)
