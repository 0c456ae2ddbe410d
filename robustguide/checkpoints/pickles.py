"""Reads pickles without running them.

A pickle is a program for a machine with a stack and a memo. The machine here knows the
instructions that data needs, and makes numbers, text, containers and records of them. A name in a
file is looked up in a table of exact pairs (module, name), never imported, and no attribute of
anything is followed; what a table gives for a name is a function of this package, or the name
itself, which makes records. Whatever else a file asks for is refused where it stands.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from robustguide.checkpoints.claims import DAMAGED, RefusedError

MOST_INSTRUCTIONS = 2_000_000  # ten times a training state of the largest published networks
MOST_MARKS = 500
LONGEST_TEXT = 2**26
LONGEST_NUMBER = 32
LONGEST_NAME = 200
HOSTILE = "Do not use this file; the one that was published holds no such thing"

Pair = tuple[str, str]


@dataclass(frozen=True)
class Name:
    """A class of which nothing is known but where it comes from."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Inert:
    """An object of a class that is not built: its class, what it was called with, its state."""

    kind: Name
    arguments: tuple[Any, ...] = ()
    state: dict[Any, Any] | None = None


@dataclass(frozen=True)
class Maker:
    """A name that may be called; the function is one of ours and takes the arguments."""

    pair: Pair
    make: Callable[..., Any]


class Mapped(dict[Any, Any]):
    """A dict of a class of its own, such as OrderedDict, whose attributes are dropped."""


@dataclass(eq=False)
class Unfinished:
    """An object that a pickle makes first and fills later; `value` is none until then."""

    fill: Callable[[Any], Any]
    value: Any = None


@dataclass
class Budget:
    """Instructions that may still be run, in a file and in all pickles inside it."""

    left: int = MOST_INSTRUCTIONS

    def spend(self) -> None:
        """Takes one.

        Raises:
            RefusedError: Nothing is left.
        """
        self.left -= 1
        if self.left < 0:
            raise RefusedError(
                f"its pickles have more than {MOST_INSTRUCTIONS} instructions", HOSTILE
            )


Table = Mapping[Pair, Any]  # a Maker, the Name of an inert class, or the type of a storage


class Machine:
    """Runs the pickle that begins at a place of a file.

    Args:
        content: The file, or a part of it; long bytes are returned as views of it.
        table: What the names in the file stand for.
        budget: Shared with the pickles inside and beside this one.
        storage: Answers a persistent id; without it, such ids are refused.
        position: Where the pickle begins, and after `run`, where it has ended.
    """

    def __init__(
        self,
        content: memoryview,
        table: Table,
        budget: Budget,
        storage: Callable[[Any], Any] | None = None,
        position: int = 0,
    ) -> None:
        self.content, self.table, self.budget = content, table, budget
        self.storage, self.position = storage, position
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value that the pickle leaves.

        Raises:
            RefusedError: It is no complete pickle, or asks for what data does not need.
        """
        end = len(self.content)
        while self.position < end:
            code = self.content[self.position]
            self.position += 1
            if code == STOP:
                return self._result()
            self.budget.spend()
            step = STEPS.get(code)
            if step is None:
                raise self.refused(code)
            step(self)
        raise RefusedError("its pickle breaks off", DAMAGED)

    def _result(self) -> Any:
        if len(self.stack) != 1 or self.marks:
            raise RefusedError("its pickle ends in the middle", DAMAGED)
        return self.stack.pop()

    def refused(self, code: int) -> RefusedError:
        """Names an instruction that is not among those that data needs."""
        what = UNWANTED.get(code, "no instruction of a pickle by protocol 2 or later")
        where = f"the instruction {bytes([code])!r} at byte {self.position - 1}"
        repair = HOSTILE if code in UNWANTED else DAMAGED
        return RefusedError(f"its pickle has {where}, {what}", repair)

    def take(self, count: int) -> memoryview:
        """The next bytes."""
        end = self.position + count
        if end > len(self.content):
            raise RefusedError(f"its pickle breaks off: {count} bytes are missing", DAMAGED)
        taken = self.content[self.position : end]
        self.position = end
        return taken

    def number(self, width: int, signed: bool = False) -> int:
        """The next bytes as a whole number, the smallest first."""
        return int.from_bytes(self.take(width), "little", signed=signed)

    def text(self, width: int) -> str:
        """The next text, whose length comes in so many bytes."""
        length = self.number(width)
        if length > LONGEST_TEXT:
            raise RefusedError(f"its pickle has a text of {length} bytes", DAMAGED)
        try:
            return str(self.take(length), "utf-8")
        except UnicodeDecodeError as error:
            raise RefusedError("its pickle has text that is no UTF-8", DAMAGED) from error

    def line(self) -> str:
        """The rest of a line, for names."""
        ahead = bytes(self.content[self.position : self.position + LONGEST_NAME])
        line, end, _ = ahead.partition(b"\n")
        if not end:
            raise RefusedError("its pickle has a name without an end", DAMAGED)
        self.position += len(line) + 1
        return line.decode("latin-1")

    def pop(self) -> Any:
        """Takes the top of the stack, not past a mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise RefusedError("its pickle takes what it never gave", DAMAGED)
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """Takes all above the last mark."""
        if not self.marks:
            raise RefusedError("its pickle takes what it never gave", DAMAGED)
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def top(self, kind: type | tuple[type, ...]) -> Any:
        """What an instruction adds to: the object below, of one of these types exactly."""
        value = self.pop()
        self.stack.append(value)
        if type(value) not in (kind if isinstance(kind, tuple) else (kind,)):
            raise RefusedError(f"its pickle fills a {_kind(value)}", HOSTILE)
        return value

    def look_up(self, module: Any, name: Any) -> None:
        """Pushes what the table has for a name."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise RefusedError("its pickle gives a name that is no text", HOSTILE)
        found = self.table.get((module, name))
        if found is None:
            raise RefusedError(
                f"it names {f'{module}.{name}'[:LONGEST_NAME]!r}, which is none of the names that "
                "weights need, and what a name leads to can run code", HOSTILE,
            )  # fmt: skip
        self.stack.append(found)


def _kind(value: Any) -> str:
    return str(value.kind) if isinstance(value, Inert) else type(value).__name__


def _mark(machine: Machine) -> None:
    if len(machine.marks) >= MOST_MARKS:
        raise RefusedError(f"its pickle is nested more than {MOST_MARKS} deep", HOSTILE)
    machine.marks.append(len(machine.stack))


def _pop(machine: Machine) -> None:
    if machine.marks and machine.marks[-1] == len(machine.stack):
        machine.marks.pop()  # so does Python, after tuples that contain themselves
    else:
        machine.pop()


def _long(machine: Machine, width: int) -> None:
    length = machine.number(width)
    if length > LONGEST_NUMBER:
        raise RefusedError(f"its pickle has a number of {length} bytes", DAMAGED)
    machine.stack.append(machine.number(length, signed=True))


def _float(machine: Machine) -> None:
    machine.stack.append(struct.unpack(">d", machine.take(8))[0])


def _old_text(machine: Machine, width: int) -> None:
    """Text or bytes: Python 2 made no difference."""
    content = machine.take(machine.number(width))
    is_text = len(content) <= LONGEST_TEXT and bytes(content).isascii()
    machine.stack.append(str(content, "ascii") if is_text else content)


def _tuple(machine: Machine, count: int) -> None:
    taken = [machine.pop() for _ in range(count)]
    machine.stack.append(tuple(reversed(taken)))


def _append(machine: Machine, values: list[Any]) -> None:
    machine.top(list).extend(values)


def _set_items(machine: Machine, values: list[Any]) -> None:
    if len(values) % 2:
        raise RefusedError("its pickle has a key without a value", DAMAGED)
    target = machine.top((dict, Mapped))
    for key, value in zip(values[::2], values[1::2], strict=True):
        target[hashable(key)] = value


def _add_items(machine: Machine) -> None:
    values = [hashable(value) for value in machine.pop_to_mark()]
    machine.top(set).update(values)


def hashable(value: Any) -> Any:
    """The value itself, where it is flat: hashing a tuple of tuples of tuples can take for ever.

    Raises:
        RefusedError: It is not.
    """
    parts = value if type(value) is tuple else (value,)
    if not all(type(part) in (str, int, float, bool, type(None), Name) for part in parts):
        raise RefusedError(f"its pickle has a key that is a {_kind(value)}", HOSTILE)
    return value


def _put(machine: Machine, index: int) -> None:
    value = machine.pop()
    machine.stack.append(value)
    machine.memo[index] = value


def _get(machine: Machine, width: int) -> None:
    index = machine.number(width)
    if index not in machine.memo:
        raise RefusedError("its pickle recalls what it never noted", DAMAGED)
    machine.stack.append(machine.memo[index])


def _stack_global(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.look_up(module, name)


def _call(machine: Machine) -> None:
    """REDUCE and NEWOBJ: a name of the table, with a tuple of arguments."""
    arguments, called = machine.pop(), machine.pop()
    if not isinstance(called, Maker | Name) or type(arguments) is not tuple:
        raise RefusedError(f"its pickle calls a {_kind(called)}", HOSTILE)
    if isinstance(called, Name):
        machine.stack.append(Inert(called, arguments))
        return
    try:
        made = called.make(*arguments)
    except TypeError as error:  # our own functions, called with too few or too many
        raise RefusedError(f"it calls {'.'.join(called.pair)} wrongly", DAMAGED) from error
    machine.stack.append(made)


def _build(machine: Machine) -> None:
    """Gives an object its state."""
    state = machine.pop()
    target = machine.top((Inert, Mapped, Unfinished))
    if isinstance(target, Unfinished):
        if target.value is not None:
            raise RefusedError("its pickle fills an array twice", HOSTILE)
        target.value = target.fill(state)
        return
    if isinstance(state, tuple) and len(state) == 2 and state[0] is None:
        state = state[1]  # attributes in slots
    if type(state) not in (dict, Mapped) or not all(_is_attribute(name) for name in state):
        raise RefusedError(f"its pickle gives {_kind(target)} a state that is none", HOSTILE)
    if isinstance(target, Inert):
        if target.state is not None:
            raise RefusedError(f"its pickle gives {_kind(target)} two states", HOSTILE)
        target.state = dict(state)


def _is_attribute(name: Any) -> bool:
    return isinstance(name, str) and not (name.startswith("__") and name.endswith("__"))


def _persistent(machine: Machine) -> None:
    if machine.storage is None:
        raise RefusedError("its pickle refers to something outside of itself", HOSTILE)
    machine.stack.append(machine.storage(machine.pop()))


def _protocol(machine: Machine) -> None:
    if not 2 <= machine.number(1) <= 5:
        raise RefusedError("its pickle is of an unknown protocol", DAMAGED)


def _frame(machine: Machine) -> None:
    machine.number(8)  # how far to read ahead, which a map of the file does not need


def _drop(machine: Machine) -> None:
    machine.pop_to_mark()


def _push(make: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    return lambda machine: machine.stack.append(make(machine))


STOP = ord(".")
STEPS: dict[int, Callable[[Machine], None]] = {
    0x80: _protocol,
    0x95: _frame,
    ord("("): _mark,
    ord("0"): _pop,
    ord("1"): _drop,
    ord("N"): _push(lambda machine: None),
    0x88: _push(lambda machine: True),
    0x89: _push(lambda machine: False),
    ord("J"): _push(lambda machine: machine.number(4, signed=True)),
    ord("K"): _push(lambda machine: machine.number(1)),
    ord("M"): _push(lambda machine: machine.number(2)),
    0x8A: lambda machine: _long(machine, 1),
    0x8B: lambda machine: _long(machine, 4),
    ord("G"): _float,
    ord("X"): _push(lambda machine: machine.text(4)),
    0x8C: _push(lambda machine: machine.text(1)),
    0x8D: _push(lambda machine: machine.text(8)),
    ord("T"): lambda machine: _old_text(machine, 4),
    ord("U"): lambda machine: _old_text(machine, 1),
    ord("B"): _push(lambda machine: machine.take(machine.number(4))),
    ord("C"): _push(lambda machine: machine.take(machine.number(1))),
    0x8E: _push(lambda machine: machine.take(machine.number(8))),
    0x96: _push(lambda machine: machine.take(machine.number(8))),
    ord("]"): _push(lambda machine: []),
    ord("}"): _push(lambda machine: {}),
    0x8F: _push(lambda machine: set()),
    ord(")"): _push(lambda machine: ()),
    ord("t"): _push(lambda machine: tuple(machine.pop_to_mark())),
    0x85: lambda machine: _tuple(machine, 1),
    0x86: lambda machine: _tuple(machine, 2),
    0x87: lambda machine: _tuple(machine, 3),
    ord("a"): lambda machine: _append(machine, [machine.pop()]),
    ord("e"): lambda machine: _append(machine, machine.pop_to_mark()),
    ord("s"): lambda machine: _set_items(machine, [machine.pop(), machine.pop()][::-1]),
    ord("u"): lambda machine: _set_items(machine, machine.pop_to_mark()),
    0x90: _add_items,
    ord("q"): lambda machine: _put(machine, machine.number(1)),
    ord("r"): lambda machine: _put(machine, machine.number(4)),
    0x94: lambda machine: _put(machine, len(machine.memo)),
    ord("h"): lambda machine: _get(machine, 1),
    ord("j"): lambda machine: _get(machine, 4),
    ord("c"): lambda machine: machine.look_up(machine.line(), machine.line()),
    0x93: _stack_global,
    ord("R"): _call,
    0x81: _call,
    ord("b"): _build,
    ord("Q"): _persistent,
}

# Instructions of Python's own machine that weights never need.
UNWANTED = {
    ord("i"): "which makes an object of any class",
    ord("o"): "which makes an object of any class",
    0x92: "which makes an object with named arguments",
    0x82: "which names a class by a number",
    0x83: "which names a class by a number",
    0x84: "which names a class by a number",
    ord("P"): "which refers to something outside of the file by text",
    0x97: "which takes a buffer from outside of the file",
    0x98: "which takes a buffer from outside of the file",
    0x91: "which makes a frozen set",
    ord("2"): "which repeats the last value",
}
