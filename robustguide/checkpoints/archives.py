"""Torch's two containers of tensors, and pickles that hold such containers inside.

The older one is five pickles in a row (a magic number, a version, the writer's machine, the object
and the keys of its storages), then every storage with its length before it. The newer one is a zip
archive of uncompressed members: data.pkl, and data/KEY for every storage.
"""

import struct
from functools import partial
from typing import Any, NamedTuple

from robustguide.checkpoints.claims import DAMAGED, RESAVE, RefusedError, Storage
from robustguide.checkpoints.pickles import HOSTILE, Budget, Machine, Maker, Table
from robustguide.checkpoints.vocabulary import TABLE, StorageType

MAGIC = 0x1950A86A20F9469CFC6C
LARGEST_DIRECTORY = 2**24  # of a zip archive; a thousand tensors need a tenth of a megabyte


def read_pickle(content: memoryview) -> Any:
    """A bare pickle, whose tensors are containers of the older kind inside.

    Raises:
        RefusedError: It asks for anything but data.
    """
    budget = Budget()
    pair = ("torch.storage", "_load_from_bytes")
    table = {**TABLE, pair: Maker(pair, partial(_read_nested, budget))}
    return Machine(content, table, budget).run()


def _read_nested(budget: Budget, inner: Any) -> Storage:
    if not isinstance(inner, memoryview):
        raise RefusedError("it holds a storage that is no bytes", DAMAGED)
    storage = _read_stream(inner, NESTED, budget)
    if not isinstance(storage, Storage):
        raise RefusedError("it holds a storage that is none", HOSTILE)
    return storage


def read_stream(content: memoryview) -> Any:
    """Torch's older container.

    Raises:
        RefusedError: It asks for anything but data, or is incomplete.
    """
    return _read_stream(content, TABLE, Budget())


def _read_stream(content: memoryview, table: Table, budget: Budget) -> Any:
    machine = Machine(content, {}, budget)
    if machine.run() != MAGIC or machine.run() != 1001:
        raise RefusedError("it is no file of torch.save", DAMAGED)
    writer = machine.run()
    if not isinstance(writer, dict) or writer.get("little_endian") is not True:
        raise RefusedError("it was written on a machine with the largest byte first", RESAVE)
    storages: dict[str, Storage] = {}
    answer = partial(_stream_storage, storages, len(content))
    machine = Machine(content, table, budget, answer, machine.position)
    found = machine.run()
    machine = Machine(content, {}, budget, position=machine.position)
    _fill(storages, machine.run(), machine)
    return found


def _stream_storage(storages: dict[str, Storage], room: int, identity: Any) -> Storage:
    """What a persistent id in the older container names; its content comes later."""
    kind, key, count, rest = _described(identity)
    if rest != (None,):  # a storage that is a part of another one
        raise RefusedError("it was written by a version of torch before 0.4", RESAVE)
    return _shared(storages, key, Storage(kind.dtype, count), room)


def _fill(storages: dict[str, Storage], keys: Any, machine: Machine) -> None:
    """Gives the storages the bytes that follow the last pickle."""
    if not isinstance(keys, list) or {str(key) for key in keys} != set(storages):
        raise RefusedError("its storages are not those that its tensors name", DAMAGED)
    for key in keys:
        storage = storages[str(key)]
        if machine.number(8) != storage.count:
            raise RefusedError("it has a storage of another length than declared", DAMAGED)
        storage.content = machine.take(storage.nbytes)


def _described(identity: Any) -> tuple[StorageType, str, int, tuple[Any, ...]]:
    """Type, key and length of a storage, and what else follows, from a persistent id of torch."""
    match identity:
        case ("storage", StorageType() as kind, str(key), str(), int(count), *rest) if (
            type(count) is int and 0 <= count < 2**48
        ):
            return kind, key, count, tuple(rest)
    raise RefusedError("its pickle refers to something outside that is no storage", HOSTILE)


def _shared(storages: dict[str, Storage], key: str, new: Storage, room: int) -> Storage:
    """The storage of this key, the same one for all that name it."""
    known = storages.setdefault(key, new)
    if (known.dtype, known.count) != (new.dtype, new.count):
        raise RefusedError(f"it gives storage {key!r} two types or lengths", DAMAGED)
    if known.nbytes > room:
        raise RefusedError(
            f"it declares a storage of {known.nbytes} bytes, more than it has", DAMAGED
        )
    return known


# Inside a bare pickle a container holds one storage and nothing else.
NESTED: Table = {pair: kind for pair, kind in TABLE.items() if isinstance(kind, StorageType)}


class Member(NamedTuple):
    """A file in a zip archive: where its content is."""

    offset: int
    size: int


def read_archive(content: memoryview, members: dict[str, Member]) -> Any:
    """Torch's newer container, given the places of its members by `members_of`.

    Raises:
        RefusedError: It asks for anything but data, or is incomplete.
    """
    root = root_of(members)
    order = members.get(f"{root}byteorder")
    if order and bytes(_slice(content, order)[:10]) != b"little":
        raise RefusedError("it was written on a machine with the largest byte first", RESAVE)
    places = {
        name.removeprefix(f"{root}data/"): _slice(content, place)
        for name, place in members.items()
        if name.startswith(f"{root}data/")
    }
    description = _slice(content, members[f"{root}data.pkl"])
    return Machine(description, TABLE, Budget(), partial(_archive_storage, {}, places)).run()


def _archive_storage(
    storages: dict[str, Storage], places: dict[str, memoryview], identity: Any
) -> Storage:
    """What a persistent id in the newer container names."""
    kind, key, count, rest = _described(identity)
    if rest or key not in places:
        raise RefusedError(f"it lacks the storage {key[:40]!r} that its tensors name", DAMAGED)
    storage = _shared(storages, key, Storage(kind.dtype, count), len(places[key]))
    storage.content = places[key][: storage.nbytes]
    return storage


def root_of(members: dict[str, Member]) -> str:
    """The folder in a zip archive that torch's members are in, with its slash.

    Raises:
        RefusedError: The archive is none of torch, or is one with code.
    """
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if any(name.endswith("/constants.pkl") for name in members):
        raise RefusedError("it is a TorchScript archive, which is made of code", RESAVE)
    if len(roots) == 1 and roots[0].count("/") == 1:
        return roots[0]
    if any(name.endswith(".npy") for name in members):
        raise RefusedError("it is an archive of numpy arrays", RESAVE)
    names = ", ".join(sorted(members)[:5])
    raise RefusedError(f"it is a zip archive that torch.save did not write; it holds {names}")


def _slice(content: memoryview, place: Member) -> memoryview:
    return content[place.offset : place.offset + place.size]


def members_of(content: memoryview) -> dict[str, Member]:
    """Places of all files in a zip archive, from its directory at the end.

    Torch stores its members as they are, so a compressed one, which could grow to any size, is
    refused, and so are two that share bytes.

    Raises:
        RefusedError: The archive is incomplete, damaged, or made to mislead.
    """
    start, size, count = _directory(content)
    if size > LARGEST_DIRECTORY or start + size > len(content):
        raise RefusedError("the directory of its zip archive is damaged", DAMAGED)
    machine = Machine(content[: start + size], {}, Budget(), position=start)
    members: dict[str, Member] = {}
    for _ in range(count):
        name, place = _entry(machine, content)
        members[name] = place
    # Torch tells no capitals from small letters here, and could take the other one.
    if len({name.lower() for name in members}) != count:
        raise RefusedError("its zip archive has two members of one name", HOSTILE)
    end = 0
    for place in sorted(members.values()):
        if place.offset < end:
            raise RefusedError("members of its zip archive share their bytes", HOSTILE)
        end = place.offset + place.size
    return members


def _directory(content: memoryview) -> tuple[int, int, int]:
    """Where the directory begins, its length, and how many entries it has."""
    end = bytes(content[-22:])
    if len(end) < 22 or end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise RefusedError("the end of its zip archive is missing", DAMAGED)
    near = struct.unpack("<HII", end[10:20])
    locator = bytes(content[-42:-22])
    if locator[:4] != b"PK\x06\x07":
        count, size, start = near
        return start, size, count
    (far,) = struct.unpack("<Q", locator[8:16])
    record = bytes(content[far : far + 56])
    if len(record) != 56 or record[:4] != b"PK\x06\x06":
        raise RefusedError("the directory of its zip archive is damaged", DAMAGED)
    count, size, start = wide = struct.unpack("<QQQ", record[32:56])
    limits = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    if any(a not in (b, most) for a, b, most in zip(near, wide, limits, strict=True)):
        raise RefusedError("its zip archive has two directories", HOSTILE)
    return start, size, count


def _entry(machine: Machine, content: memoryview) -> tuple[str, Member]:
    """The next entry of the directory, held against the header before the member itself."""
    fixed = struct.unpack("<4s6H3I5H2I", machine.take(46))
    signature, flags, method, packed, size = (fixed[i] for i in (0, 3, 4, 8, 9))
    offset = fixed[16]
    raw = bytes(machine.take(fixed[10]))
    extra, _ = machine.take(fixed[11]), machine.take(fixed[12])
    if signature != b"PK\x01\x02":
        raise RefusedError("the directory of its zip archive is damaged", DAMAGED)
    size, packed, offset = _wide(extra, size, packed, offset)
    name = raw.decode("utf-8", "replace")
    if method != 0 or size != packed or flags & 1:
        raise RefusedError(
            f"member {name[:80]!r} of its zip archive is compressed or encrypted, {packed} bytes "
            f"that would become {size}, which torch never writes", RESAVE,
        )  # fmt: skip
    header = bytes(content[offset : offset + 30])
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise RefusedError(f"member {name[:80]!r} of its zip archive is not there", DAMAGED)
    name_length, extra_length = struct.unpack("<HH", header[26:])
    if bytes(content[offset + 30 : offset + 30 + name_length]) != raw:
        raise RefusedError("its zip archive has a member under two names", HOSTILE)
    place = Member(offset + 30 + name_length + extra_length, size)
    if place.offset + size > len(content):
        raise RefusedError(f"member {name[:80]!r} of its zip archive breaks off", DAMAGED)
    return name, place


def _wide(extra: memoryview, *values: int) -> tuple[int, ...]:
    """Sizes and offset beyond 4 GB, which stand in an extra field in this order."""
    fields = _extra_fields(extra)
    wide = fields.get(1, b"")
    found = []
    for value in values:
        if value == 0xFFFFFFFF:
            if len(wide) < 8:
                raise RefusedError("the directory of its zip archive is damaged", DAMAGED)
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        found.append(value)
    return tuple(found)


def _extra_fields(extra: memoryview) -> dict[int, bytes]:
    fields: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack("<HH", extra[at : at + 4])
        fields.setdefault(kind, bytes(extra[at + 4 : at + 4 + length]))
        at += 4 + length
    return fields
