"""The machine that reads pickles reads plain data as Python does, and knows nothing else."""

import pickle
import pickletools

import numpy as np
import pytest
import snapshot_files as files
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustguide.checkpoints.claims import Claim, RefusedError
from robustguide.checkpoints.pickles import STEPS, STOP, UNWANTED, Budget, Inert, Machine, Name
from robustguide.checkpoints.vocabulary import TABLE

SCALARS = st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.text(max_size=9)
FLOATS = st.floats(allow_nan=False)
KEYS = SCALARS | FLOATS | st.tuples(SCALARS, SCALARS)
PLAIN = st.recursive(
    SCALARS | FLOATS | st.sets(SCALARS, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.lists(inner, max_size=6).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=30,
)


def read(content, table=TABLE):
    return Machine(memoryview(bytearray(content)), table, Budget()).run()


def value_of(found):
    """A numpy object, which a pickle makes first and fills then."""
    found = getattr(found, "value", found)
    return found.tensor() if isinstance(found, Claim) else found


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(PLAIN, st.sampled_from([2, 3, 4, 5]))
def test_plain_data_is_what_python_reads(value, protocol):
    content = pickle.dumps(value, protocol)
    assert read(content) == pickle.loads(content) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_that_come_twice_are_one(protocol):
    shared = [1, 2]
    loop = {"inner": shared, "again": shared}
    loop["self"] = loop
    found = read(pickle.dumps(loop, protocol))
    assert found["inner"] is found["again"] and found["self"] is found
    closed = ([],)
    closed[0].append(closed)  # a tuple in itself takes an instruction of its own
    found = read(pickle.dumps(closed, protocol))
    assert found[0][0] is found


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", "f2 f4 f8 i1 i2 i4 i8 u1 b1".split())
def test_numpy_arrays_are_tensors(protocol, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    for each in (array, np.asfortranarray(array), array[:0], array[0, 0]):
        found = value_of(read(pickle.dumps(each, protocol)))
        assert torch.equal(found, torch.from_numpy(each.copy()))


@pytest.mark.parametrize("package", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("number", [np.float32(0.1), np.float64(0.1), np.int64(-3), np.bool_(1)])
def test_numpy_numbers_are_numbers_under_either_name(package, number):
    content = pickle.dumps(number, 2).replace(b"numpy._core", package.encode())
    found = read(content.replace(b"numpy.core", package.encode()))
    assert found == number.item() and type(found) is type(number.item())


def test_an_object_of_a_listed_class_is_a_record():
    layer = torch.nn.Linear(2, 3)
    table = {**TABLE, ("torch.storage", "_load_from_bytes"): Name("torch.storage", "bytes")}
    for pair in (("torch._utils", "_rebuild_parameter"), ("torch._utils", "_rebuild_tensor_v2")):
        table[pair] = Name(*pair)
    found = read(pickle.dumps(layer), table)
    assert isinstance(found, Inert) and str(found.kind) == "torch.nn.modules.linear.Linear"
    assert found.state["in_features"] == 2 and not isinstance(found, torch.nn.Module)


def test_every_instruction_of_protocol_2_and_later_is_known_or_named_as_unwanted():
    of_text = "INT LONG STRING FLOAT UNICODE GET PUT LIST DICT".split()  # protocols 0 and 1
    known = {*STEPS, *UNWANTED, STOP}
    unknown = [each.name for each in pickletools.opcodes if ord(each.code) not in known]
    assert sorted(unknown) == sorted(of_text)
    assert not set(STEPS) & set(UNWANTED)


def test_names_are_pairs_and_never_paths():
    for module, name in [
        ("torch", "_utils._rebuild_tensor_v2"),
        ("torch._utils._rebuild_tensor_v2", "__globals__"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("collections", "OrderedDict.fromkeys"),
        ("collections.OrderedDict", ""),
        ("collections", "ordereddict"),
        ("collections ", "OrderedDict"),
    ]:
        with pytest.raises(RefusedError, match="none of the names that weights need"):
            read(files.whole(f"c{module}\n{name}\n".encode()))


def test_the_table_names_nothing_that_acts():
    """No module of the table can start programs, open files or import."""
    modules = {module for module, _ in TABLE}
    acting = {"os", "posix", "nt", "sys", "subprocess", "importlib", "runpy", "pty", "shutil",
              "socket", "builtins.eval", "functools", "operator", "io", "torch.hub"}  # fmt: skip
    assert not modules & acting
    built_in = {name for module, name in TABLE if module in ("builtins", "__builtin__")}
    assert built_in == {"dict", "set", "bytes", "__main__"}


@pytest.mark.parametrize(
    ("instructions", "reason"),
    [
        (b"0", "takes what it never gave"),
        (b"N(0N", "ends in the middle"),
        (b"(N", "ends in the middle"),
        (b"NN", "ends in the middle"),
        (b"", "ends in the middle"),
        (b"t", "takes what it never gave"),
        (b"(Nt0(a", "takes what it never gave"),
        (b"h\x05", "recalls what it never noted"),
        (b"}Ns", "takes what it never gave"),
        (b"}(Nu", "a key without a value"),
        (b"}]Ns", "a key that is a list"),
        (b"}}Ns", "a key that is a dict"),
        (b"})\x85\x85Ns", "a key that is a tuple"),
        (b"NNa", "fills a NoneType"),
        (b"]NNs", "fills a list"),
        (b"N)R", "calls a NoneType"),
        (files.named("collections.OrderedDict") + b"]R", "calls a Maker"),
        (files.named("torch.FloatStorage") + b")R", "calls a StorageType"),
        (b"\x8b\xff\xff\xff\x7f", "a number of 2147483647 bytes"),
        (b"\x8a\xff", "a number of 255 bytes"),
        (b"X\xff\xff\xff\xff", "a text of 4294967295 bytes"),
        (b"\x8d" + b"\xff" * 8, "a text of"),
        (b"X\x02\0\0\0\xff\xff", "no UTF-8"),
        (b"\x8e" + (2**60).to_bytes(8, "little"), f"breaks off: {2**60} bytes are missing"),
        (b"B\xff\xff\xff\xff", "breaks off: 4294967295 bytes are missing"),
        (b"\x96" + b"\xff" * 8, "breaks off"),
        (b"c" + b"a" * 300, "a name without an end"),
        (b"NN\x93", "a name that is no text"),
        (b"(" * 501, "nested more than 500 deep"),
        (b"\x80\x06", "an unknown protocol"),
        (b"\x80\x01", "an unknown protocol"),
        (b"]Q", "refers to something outside of itself"),
    ],
)
def test_broken_programs_are_refused(instructions, reason):
    with pytest.raises(RefusedError, match=reason):
        read(files.whole(instructions))


def test_the_number_of_instructions_is_bounded():
    content = memoryview(files.whole(b"N0" * 49, b"N"))
    assert Machine(content, TABLE, Budget(100)).run() is None
    with pytest.raises(RefusedError, match="more than 2000000 instructions"):
        Machine(content, TABLE, Budget(99)).run()


def test_a_file_without_an_end_is_refused():
    for content in (
        b"",
        b"\x80",
        b"\x80\x04",
        b"\x80\x04N",
        b"\x80\x04\x8c",
        b"\x80\x04\x8c\x05a",
    ):
        with pytest.raises(RefusedError, match="breaks off"):
            read(content)
