"""Finds the networks in what a file holds, and what it recorded about them.

A network is a dict of tensors by name, or an object with the state of a torch module; names and
order are then those of torch's own state_dict.
"""

from collections.abc import Iterator
from typing import Any

from robustguide.checkpoints.claims import Claim, RefusedError
from robustguide.checkpoints.pickles import HOSTILE, Inert, Name, Unfinished
from robustguide.checkpoints.vocabulary import Persistent

MOST_LEVELS = 64
MOST_VALUES = 500_000
COST_OF_MODULE = 10  # of these values
MOST_LISTED = 64  # elements of an array that is told as numbers; larger ones are weights

Claims = dict[str, Claim]


class Findings:
    """What a file holds, looked through once.

    Args:
        found: What its pickle left.

    Raises:
        RefusedError: It is nested without end.
    """

    def __init__(self, found: Any) -> None:
        self.found = found
        self._left = MOST_VALUES
        self.whole = self._state(found)
        entries = _named(found)
        states = {name: self._state(each) for name, each in entries}
        self.parts: dict[str, Claims] = {name: each for name, each in states.items() if each}

    def chosen(self, part: str | None) -> Claims:
        """The state dict of this name, or the only one there is.

        Raises:
            RefusedError: There is none, or several, or none of this name.
        """
        name = self.name_of(part)
        return self.whole if name is None else self.parts[name]

    def name_of(self, part: str | None) -> str | None:
        """The part that was meant; none for the whole file.

        Raises:
            RefusedError: As `chosen`.
        """
        if part is not None:
            if part in self.parts:
                return part
            raise RefusedError(f"it has no tensors in a part {part!r}", self._repair())
        is_single = all(claim.size == 1 for claim in self.whole.values())  # a loss, a step
        if len(self.parts) == 1 and is_single:
            return next(iter(self.parts))
        if self.whole and not self.parts:
            return None
        if not self.parts:
            raise RefusedError(
                "it holds no tensors by name",
                "Give a file with the state dict of a network, or save one with torch.save",
            )
        raise RefusedError(f"it holds {len(self.parts)} networks", self._repair())

    def recorded(self) -> dict[str, Any]:
        """What stands beside the tensors, as plain data; of an object its class and arguments.

        Raises:
            RefusedError: It is nested without end.
        """
        if isinstance(self.found, Persistent | Inert):
            return {"": self._plain(self.found, 0)}
        weights = set(self.parts or self.whole)
        return {
            str(name): plain
            for name, each in (self.found.items() if isinstance(self.found, dict) else ())
            if not (name in weights and isinstance(each, dict | Claim | Unfinished))
            and (plain := self._plain(each, 0)) is not _LEFT_OUT
        }

    def _repair(self) -> str:
        if not self.parts:
            return "Leave the part out: the file holds one network, or none"
        return f"Say which part to take: {', '.join(map(repr, self.parts))}"

    def _count(self, level: int, cost: int = 1) -> None:
        """Ends what has no end: containers that hold themselves, or each other many times."""
        self._left -= cost
        if self._left < 0 or level > MOST_LEVELS:
            raise RefusedError(
                f"what it holds is nested more than {MOST_LEVELS} deep, or without end", HOSTILE
            )

    def _state(self, value: Any) -> Claims:
        if not isinstance(value, Persistent | Inert):
            return {
                name: tensor
                for name, each in _named(value)
                if isinstance(tensor := _filled(each), Claim)
            }
        claims: Claims = {}
        self._collect(value, "", 0, claims)
        return claims

    def _collect(self, module: Any, prefix: str, level: int, claims: Claims) -> None:
        """Adds the tensors of a module and of those below it."""
        self._count(level, COST_OF_MODULE)
        state = module.state if isinstance(module, Persistent | Inert) else None
        if state is None:
            return
        passing = state.get("_non_persistent_buffers_set")
        left_out = passing if isinstance(passing, set) else ()
        for kind in ("_parameters", "_buffers"):
            for name, each in _named(state.get(kind)):
                if isinstance(tensor := _filled(each), Claim) and name not in left_out:
                    claims[prefix + name] = tensor
        for name, child in _named(state.get("_modules")):
            self._collect(child, f"{prefix}{name}.", level + 1, claims)

    def _plain(self, value: Any, level: int) -> Any:
        """A value as plain data; `_LEFT_OUT` for bytes, weights, and names that may be called."""
        self._count(level)
        match value := _filled(value):
            case None | bool() | int() | float() | str():
                return value
            case Name():
                return str(value)
            case Claim() if value.size == 1:
                return value.tensor().item()
            case dict():
                plain = {str(key): self._plain(each, level + 1) for key, each in value.items()}
                return {key: each for key, each in plain.items() if each is not _LEFT_OUT}
            case list() | tuple() | set():
                values = sorted(value, key=str) if isinstance(value, set) else value
                plain_values = [self._plain(each, level + 1) for each in values]
                return [None if each is _LEFT_OUT else each for each in plain_values]
            case Persistent():
                return self._instance(value.class_name, value.state, level)
            case Inert():
                return self._instance(str(value.kind), value.state or {}, level)
        return _LEFT_OUT

    def _instance(self, class_name: str, state: dict[Any, Any], level: int) -> dict[str, Any]:
        """An object by its class and arguments; of its attributes those that are plain."""
        own = {
            name: _filled(each)
            for name, each in _named(state)
            if not name.startswith("_") and not isinstance(each, Persistent | Inert)
        }
        arrays = {
            name: each.tensor().tolist()
            for name, each in own.items()
            if isinstance(each, Claim) and each.size <= MOST_LISTED
        }
        return {
            "class_name": class_name,
            "init_args": self._plain(state.get("_init_args") or [], level + 1),
            "init_kwargs": self._plain(state.get("_init_kwargs") or {}, level + 1),
            "attributes": self._plain(own, level + 1) | arrays,
        }


_LEFT_OUT = object()


def _named(values: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        yield from ((name, each) for name, each in values.items() if isinstance(name, str))


def _filled(value: Any) -> Any:
    return value.value if isinstance(value, Unfinished) else value
