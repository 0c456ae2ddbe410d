"""Writes files as the field's own programs do, and pieces of files that only look like them."""

import io
import pickle
import struct
import sys
import zipfile
from types import ModuleType

import torch

MAGIC = 0x1950A86A20F9469CFC6C


def _reconstruct_persistent_obj(meta):
    """Stands for the function that would run the source in a snapshot."""
    raise AssertionError("the source was run")


class EasyDict(dict):
    """The dict in which snapshots keep their parts."""


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
EasyDict.__module__ = "dnnlib.util"


class Persistent:
    """An object as EDM pickles it: source, class name, state."""

    def __init__(self, class_name, state, **changes):
        self.meta = {
            "type": "class", "version": 6, "module_src": "raise SystemExit",
            "class_name": class_name, "state": state, **changes,
        }  # fmt: skip

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,)


def module(class_name, parameters=None, buffers=None, modules=None, passing=(), **arguments):
    """A torch module as EDM pickles it; `passing` buffers are no part of its state dict."""
    given = (parameters or {}).items()
    parameters = {name: None if x is None else torch.nn.Parameter(x) for name, x in given}
    state = {
        "training": False,
        "_parameters": parameters,
        "_buffers": buffers or {},
        "_non_persistent_buffers_set": set(passing),
        "_modules": modules or {},
        "_init_args": (),
        "_init_kwargs": arguments,
        **arguments,
    }
    return Persistent(class_name, state)


def snapshot(value, protocol=4):
    """A bare pickle, in which objects of EDM are named as there."""
    persistence, util = ModuleType("torch_utils.persistence"), ModuleType("dnnlib.util")
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    util.EasyDict = EasyDict
    made = {
        "torch_utils": ModuleType("torch_utils"), "torch_utils.persistence": persistence,
        "dnnlib": ModuleType("dnnlib"), "dnnlib.util": util,
    }  # fmt: skip
    sys.modules.update(made)
    try:
        return pickle.dumps(value, protocol)
    finally:
        for name in made:
            del sys.modules[name]


def torch_file(value, **options):
    """What torch.save writes; old streams with `_use_new_zipfile_serialization=False`."""
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def archive(description, storages=None, compression=zipfile.ZIP_STORED):
    """A zip archive like torch's, around any pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        file.writestr("archive/data.pkl", description)
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/version", "3\n")
        for key, content in (storages or {}).items():
            file.writestr(f"archive/data/{key}", content)
    return stream.getvalue()


def old_stream(description, storages=None, magic=MAGIC, little_endian=True):
    """Torch's older container, around any pickle; storages by key as (count, content)."""
    system = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {}}
    storages = storages or {}
    parts = [pickle.dumps(each, 2) for each in (magic, 1001, system)]
    parts += [description, pickle.dumps(list(storages), 2)]
    parts += [struct.pack("<Q", count) + content for count, content in storages.values()]
    return b"".join(parts)


def text(value):
    """A string, as a pickle has it."""
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def blob(content):
    """Bytes, as a pickle has them."""
    return b"B" + struct.pack("<I", len(content)) + content


def named(path):
    """A class or function by its name."""
    parent, _, name = path.rpartition(".")
    return f"c{parent}\n{name}\n".encode()


def called(path, *arguments):
    """A call of something by its name."""
    return named(path) + b"(" + b"".join(arguments) + b"tR"


def number(value):
    """An integer of four bytes."""
    return b"J" + struct.pack("<i", value)


def tensor(storage, shape=(2,), strides=(1,), offset=0):
    """A tensor on a storage that is given as instructions."""
    sizes = [b"(" + b"".join(map(number, numbers)) + b"t" for numbers in (shape, strides)]
    hooks = called("collections.OrderedDict")
    return called(
        "torch._utils._rebuild_tensor_v2", storage, number(offset), *sizes, b"\x89", hooks
    )


def stored(key="0", count=2, kind="torch.FloatStorage", is_old=False):
    """A storage of torch's own containers."""
    place = named(kind) + text(key) + text("cpu") + number(count)
    return b"(" + text("storage") + place + (b"N" if is_old else b"") + b"tQ"


def whole(*instructions, protocol=2):
    """A pickle of these instructions."""
    return bytes([0x80, protocol]) + b"".join(instructions) + b"."


def entry(key, value):
    """A dict with one entry."""
    return b"}" + text(key) + value + b"s"
