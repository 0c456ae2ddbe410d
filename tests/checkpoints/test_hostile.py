"""Files that would run something, fill the memory or mislead: each one error, and nothing runs."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from functools import partial

import audit
import golden_files
import numpy as np
import pytest
import snapshot_files as files
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from robustguide.checkpoints import parts
from robustguide.checkpoints.opening import open_tensors

GOLDENS = golden_files.FOLDER
SMALL = {
    "snapshot": files.snapshot(
        files.EasyDict(
            ema=files.module(
                "Precond", {"w": torch.ones(2, 3)}, {"freqs": torch.ones(4)},
                {"unet": files.module("UNet", {"gain": torch.tensor(1.0)}, width=8)},
                img_resolution=8,
            ),
            encoder=files.Persistent("Encoder", {"scale": np.float32([0.5, 2.0])}),
        )
    ),
    "archive": files.torch_file({"ema": {"w": torch.ones(2, 3)}, "step": 3}),
    "stream": files.torch_file(
        {"ema": {"w": torch.ones(2, 3)}, "step": 3}, _use_new_zipfile_serialization=False
    ),
    "safetensors": save({"w": torch.ones(2, 3)}, {"licence": "MIT"}),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def everything_is_imported(tmp_path_factory):
    """What torch imports when it is first used is not the file's doing."""
    folder = tmp_path_factory.mktemp("warm")
    for name, content in SMALL.items():
        (folder / name).write_bytes(content)
        assert open_tensors(folder / name).tensors["w"].sum() == 6
        (folder / name).write_bytes(content[:-40])
        with pytest.raises(ValueError):
            open_tensors(folder / name)


@pytest.fixture
def refused(tmp_path):
    """Opens content as a file, and expects our error and nothing else to happen."""

    def refused(content, reason, part=None, name="weights.pt"):
        path = tmp_path / name
        path.write_bytes(content)
        with audit.watched() as events, pytest.raises(ValueError, match=reason) as caught:
            open_tensors(path, part)
        message = str(caught.value)
        assert type(caught.value) is ValueError
        assert message.startswith(f"{path} was not opened: ")
        assert message.count(". ") >= 1 and message.endswith(".")  # reason and repair
        assert events == []
        assert os.listdir(tmp_path) == [name]

    return refused


class Call:
    """Pickles into a call."""

    def __init__(self, called, *arguments):
        self.call = called, arguments

    def __reduce__(self):
        return self.call


ECHO = Call(os.system, "touch canary")
SYSTEM = files.called("os.system", files.text("touch canary"))
EXEC = files.called("builtins.exec", files.text("open('canary', 'w')"))


def everywhere(instructions):
    """A pickle in every place where a file has one."""
    good = files.whole(b"}")
    bare = files.whole(instructions)
    nested = files.called("torch.storage._load_from_bytes", files.blob(files.old_stream(bare)))
    yield bare
    yield files.whole(files.text("w"), instructions, b"0", files.entry("w", instructions))
    yield files.archive(bare)
    yield files.old_stream(bare)
    for place in range(5):  # the pickles of a stream, the one with the magic number first
        parts = [pickle.dumps(each, 2) for each in (files.MAGIC, 1001, {"little_endian": True})]
        parts += [good, pickle.dumps([], 2)]
        parts[place] = bare
        content = b"".join(parts)
        yield content
        blob = files.called("torch.storage._load_from_bytes", files.blob(content))
        yield files.whole(files.entry("w", files.tensor(blob)))
    yield files.whole(nested)
    for inner in (bare, files.archive(bare), files.whole(nested)):
        yield files.whole(files.called("torch.storage._load_from_bytes", files.blob(inner)))


@pytest.mark.parametrize("instructions", [SYSTEM, EXEC], ids=["system", "exec"])
def test_a_call_is_refused_wherever_it_is(instructions, refused):
    contents = list(everywhere(instructions))
    assert len(contents) == 18
    for content in contents:
        refused(content, r"was not opened: ")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_python_pickles_by_reduce(protocol, refused):
    reason = r"it names '(posix|nt)\.system', which is none of the names"
    refused(pickle.dumps(ECHO, protocol), reason)
    refused(pickle.dumps({"w": [({"deep": ECHO},)]}, protocol), reason)
    refused(files.snapshot({"ema": files.module("Net", buffers={"w": ECHO})}, protocol), reason)
    refused(files.torch_file({"w": torch.ones(1), "x": ECHO}), reason)
    old = files.torch_file({"x": ECHO}, _use_new_zipfile_serialization=False)
    refused(old, reason)
    refused(files.torch_file({"x": ECHO}, pickle_protocol=max(protocol, 2)), reason)


@pytest.mark.parametrize(
    "path",
    """builtins.eval builtins.exec builtins.getattr builtins.__import__ builtins.compile
    builtins.open builtins.type builtins.object __builtin__.eval posix.system nt.system
    subprocess.Popen subprocess.check_output importlib.import_module runpy.run_path pty.spawn
    functools.partial operator.attrgetter operator.methodcaller copyreg._reconstructor
    copyreg.__newobj__ types.CodeType types.FunctionType marshal.loads pickle.loads _pickle.loads
    torch.load torch.hub.load torch.jit.load torch.serialization.load
    torch.utils.cpp_extension.load
    torch._utils.os.system torch.storage.os.system torch.serialization.os
    torch._utils._rebuild_tensor_v2.__globals__ torch._utils._import_dotted_name
    torch.storage._load_from_bytes.__globals__ numpy.load numpy.core.multiarray.os
    numpy.testing._private.utils.runstring torch_utils.persistence._src_to_module
    torch_utils.persistence.exec dnnlib.util.open_url dnnlib.util.get_obj_by_name
    dill._dill._eval_repr dill._dill._import_module dill._dill._get_attr dill._dill.loads
    collections.OrderedDict.__init__ collections.namedtuple webbrowser.open shutil.rmtree
    socket.create_connection asyncio.run code.interact pdb.run timeit.timeit
    robustguide.checkpoints.trust.build argparse.FileType""".split(),
)
def test_other_names_are_refused(path, refused):
    content = files.whole(files.called(path, files.text("touch canary")))
    refused(content, r"it names '.*', which is none of the names")
    refused(files.archive(content), "none of the names")
    parent, _, name = path.rpartition(".")
    memoised = files.text(parent) + b"q\x00" + files.text(name) + b"q\x0100h\x00h\x01\x93)R"
    refused(files.whole(memoised, protocol=4), "none of the names")
    dotted, _, rest = path.partition(".")
    walk = files.text(dotted) + files.text(rest) + b"\x93)R"
    refused(files.whole(walk, protocol=4), "none of the names")


@pytest.mark.parametrize(
    ("instructions", "reason"),
    {
        "INST": (b"(" + files.text("touch canary") + b"ios\nsystem\n", "makes an object of any"),
        "OBJ": (b"(" + files.named("collections.OrderedDict") + b"o", "makes an object of any"),
        "EXT1": (b"\x82\x01", "names a class by a number"),
        "EXT2": (b"\x83\x01\x00", "names a class by a number"),
        "EXT4": (b"\x84\x01\0\0\0", "names a class by a number"),
        "NEWOBJ_EX": (files.named("collections.OrderedDict") + b")}\x92", "named arguments"),
        "PERSID": (b"Pstorage\n", "outside of the file by text"),
        "NEXT_BUFFER": (b"\x97", "takes a buffer"),
        "protocol 0": (b"cos\nsystem\n(S'touch canary'\ntR", "none of the names"),
        "text": (b"S'a'\n", "no instruction of a pickle by protocol 2"),
        "called data": (b"](tR", "calls a list"),
        "called record": (files.called("argparse.Namespace") + b")R", "calls a argparse.Namesp"),
        "BUILD on a class": (files.named("argparse.Namespace") + b"}b", "fills a Name"),
        "BUILD on a function": (files.named("torch.Size") + b"}b", "fills a Maker"),
        "BUILD on a dict": (b"}}b", "fills a dict"),
        "BUILD on a text": (files.text("a") + b"}b", "fills a str"),
        "__setstate__": (
            files.called("collections.OrderedDict")
            + files.entry("__setstate__", files.named("torch.Size")) + b"b",
            "a state that is none",
        ),
        "__class__": (
            files.called("argparse.Namespace") + files.entry("__class__", files.text("a")) + b"b",
            "gives argparse.Namespace a state that is none",
        ),
        "__dict__ in slots": (
            files.called("argparse.Namespace")
            + b"N" + files.entry("__dict__", b"}") + b"\x86b",
            "a state that is none",
        ),
        "two states": (files.called("argparse.Namespace") + b"}b}b", "two states"),
        "state of data": (files.called("argparse.Namespace") + b"]b", "a state that is none"),
        "factory": (
            files.called("collections.defaultdict", files.named("os.system")), "none of the names"
        ),
        "codec": (
            files.called("_codecs.encode", files.text("a"), files.text("hex")),
            "encodes something that is no text",
        ),
        "no Latin-1": (
            files.called("_codecs.encode", files.text("\u2603"), files.text("latin1")),
            "no Latin-1",
        ),
        "wrong arguments": (files.called("torch._utils._rebuild_tensor_v2"), "wrongly"),
        "objects in numpy": (files.called("numpy.dtype", files.text("O8")), "of type O8"),
        "records in numpy": (files.called("numpy.dtype", files.text("f4,f4")), "of type f4,f4"),
        "quantized": (files.called("torch._utils._rebuild_qtensor"), "a quantized tensor"),
        "sparse": (files.called("torch._utils._rebuild_sparse_tensor"), "a sparse tensor"),
        "set of lists": (files.called("builtins.set", b"]]a"), "a key that is a list"),
        "persistent": (
            files.called("torch_utils.persistence._reconstruct_persistent_obj", b"}"),
            "without class name or state",
        ),
        "persistent text": (
            files.called("torch_utils.persistence._reconstruct_persistent_obj", files.text("a")),
            "without a description",
        ),
    }.values(),
)  # fmt: skip
def test_other_instructions_are_refused(instructions, reason, refused):
    refused(files.whole(instructions), reason)
    refused(files.archive(files.whole(instructions)), reason)


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        (b"(" + files.text("module") + files.named("torch.FloatStorage") + b"tQ", "no storage"),
        (b"(" + files.text("storage") + SYSTEM + b"tQ", "none of the names"),
        (files.text("storage") + b"Q", "no storage"),
        (b"NQ", "no storage"),
        (files.stored(kind="collections.OrderedDict"), "no storage"),
        (files.stored(key="../data.pkl"), "lacks the storage"),
        (files.stored(key="9"), "lacks the storage"),
        (files.stored(count=3), "a storage of 12 bytes|lacks|longer|breaks|its content"),
        (files.stored(count=2**31 - 1), "a storage of 8589934588 bytes, more than it has"),
        (files.stored(count=-1), "no storage"),
        (files.stored() + files.stored(kind="torch.LongStorage"), "two types or lengths"),
        (files.stored(is_old=True), "lacks the storage"),
    ],
)
def test_persistent_ids_are_storages_alone(identity, reason, refused):
    content = files.whole(files.entry("w", files.tensor(identity)))
    refused(files.archive(content, {"0": bytes(8)}), reason)
    refused(files.whole(identity), r"outside of itself|none of the names")


def test_complex_sparse_and_quantized_tensors_are_refused(refused):
    for dtype in (torch.complex64, torch.complex128):
        refused(files.torch_file({"w": torch.ones(2, dtype=dtype)}), f"'w' is {dtype}")
    refused(save({"w": torch.ones(2, dtype=torch.complex64)}), "'w' is torch.complex64")
    refused(save({"w": torch.ones(2).to(torch.float8_e5m2)}), "'w' is torch.float8_e5m2")
    refused(files.torch_file({"w": torch.eye(3).to_sparse()}), "it holds a sparse tensor")
    whole = files.called("torch._utils._rebuild_qtensor", files.stored(kind="torch.QInt8Storage"))
    refused(files.archive(files.whole(whole), {"0": b"ab"}), "it holds a quantized tensor")


def test_source_inside_a_snapshot_is_never_run(tmp_path):
    source = "import os\nos.system('touch canary')\nopen('canary', 'w')\nclass Net: pass\n"
    state = files.module("Net", {"w": torch.ones(2)}).meta["state"]
    ema = files.Persistent("Net", state, module_src=source)
    path = tmp_path / "a.pkl"
    path.write_bytes(files.snapshot({"ema": ema}))
    with audit.watched() as events:
        found = open_tensors(path)
    assert events == [] and os.listdir(tmp_path) == ["a.pkl"]
    assert torch.equal(found.tensors["w"], torch.ones(2))
    assert source not in str(found.recorded)


def test_the_watch_notices_what_it_should(tmp_path):
    """Otherwise the other tests would show nothing."""
    path = tmp_path / "a"
    with audit.watched() as events:
        pickle.loads(pickle.dumps(Call(str, "a"), 2))
        exec("1")
        path.write_text("")
    assert {event for event, _ in events} >= {"pickle.find_class", "exec", "open"}


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((2**20,), (0,), 0),
        ((2**20, 2**20), (0, 0), 0),
        ((3,), (1,), 0),
        ((2,), (2,), 0),
        ((2,), (1,), 1),
        ((2, 2), (1,), 0),
        ((2,), (-1,), 1),
        ((-2,), (1,), 0),
        ((2,), (1,), -1),
        ((1,) * 17, (1,) * 17, 0),
    ],
)
@pytest.mark.parametrize("is_old", [True, False])
def test_tensors_lie_inside_their_storage(shape, strides, offset, is_old, refused):
    claim = files.tensor(files.stored(is_old=is_old), shape, strides, offset)
    content = files.whole(files.entry("w", claim))
    raw = bytes(8)
    made = (
        files.old_stream(content, {"0": (2, raw)})
        if is_old
        else files.archive(content, {"0": raw})
    )
    refused(made, r"it claims a tensor of shape|other than whole numbers")


def test_one_storage_is_not_many_networks(refused):
    """A thousand tensors of one storage would fill a thousand times the file when copied."""
    names = b"".join(files.text(f"w{i}") + b"h\x00" for i in range(1000))
    first = files.tensor(files.stored(count=10**5), (10**5,)) + b"q\x000"
    content = files.archive(files.whole(first, b"}(", names, b"u"), {"0": bytes(4 * 10**5)})
    refused(content, r"would fill 400000000 bytes, more than 8 times")


def zipped(members, compression=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


def test_zip_bombs_are_refused_before_they_grow(refused):
    claim = files.tensor(files.stored(count=2**21), (2**21,))
    content = files.whole(files.entry("w", claim))
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        bomb = files.archive(content, {"0": bytes(2**23)}, compression)
        assert len(bomb) < 2**15
        refused(bomb, r"is compressed or encrypted")
    refused(
        zipped({"a/data.pkl": b"." * 10**7}), "compressed or encrypted, .* would become 10000000"
    )


def test_archives_that_mislead_are_refused(refused):
    good = SMALL["archive"]
    directory = good.rindex(b"PK\x05\x06")
    with pytest.warns(UserWarning, match="Duplicate name"):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as file:
            file.writestr("a/data.pkl", files.whole(b"}"))
            file.writestr("a/data.pkl", files.whole(SYSTEM))
    refused(stream.getvalue(), "two members of one name")
    stored = partial(zipped, compression=zipfile.ZIP_STORED)
    refused(stored({"a/data.pkl": b"", "A/DATA.PKL": b""}), "two members of one name")
    refused(stored({"a/data.pkl": b"", "b/data.pkl": b""}), "that torch.save did not write")
    refused(stored({"a/b/data.pkl": b""}), "that torch.save did not write")
    refused(stored({"data.pkl": b""}), "that torch.save did not write; it holds data.pkl")
    refused(stored({"word/document.xml": b""}), "it holds word/document.xml")
    refused(stored({"w.npy": b""}), "an archive of numpy arrays")
    refused(stored({"a/data.pkl": b"", "a/constants.pkl": b""}), "TorchScript")
    refused(good + b"more", "the end of its zip archive is missing")
    for far in (0, 7):
        wrong = good[: directory + 16] + struct.pack("<I", far) + good[directory + 20 :]
        refused(wrong, "directory|directories")
    many = good[: directory + 10] + b"\xfe\xff" + good[directory + 12 :]
    refused(many, "directory|directories|breaks off")


def test_members_that_share_bytes_are_refused(refused):
    raw = files.archive(files.whole(b"}"), {"0": bytes(64)})
    # The second entry of the directory points at the first member, under its name.
    first = raw.index(b"PK\x01\x02")
    second = raw.index(b"PK\x01\x02", first + 4)
    moved = raw[: second + 42] + raw[first + 42 : first + 46] + raw[second + 46 :]
    refused(moved, "a member under two names")


def test_big_endian_files_are_refused(refused):
    content = files.whole(b"}")
    refused(files.old_stream(content, little_endian=False), "largest byte first")
    members = {"a/data.pkl": content, "a/byteorder": b"big"}
    refused(zipped(members, zipfile.ZIP_STORED), "largest byte first")
    refused(pickle.dumps({"w": np.ones(3, ">f4")}, 4), "largest byte first")


def doubled(levels, start, more):
    """A container that holds the one before it twice, and so on: 2^levels in all."""
    content = start + b"q\x00"
    for _ in range(levels):
        content += more + b"q\x00"
    return content


@pytest.mark.parametrize(
    "instructions",
    {
        "lists": doubled(60, b"]", b"0](h\x00h\x00e"),
        "tuples": doubled(60, b")", b"0h\x00h\x00\x86"),
        "dicts": doubled(
            60, b"}", b"0}(" + files.text("a") + b"h\x00" + files.text("b") + b"h\x00u"
        ),
        "itself": b"]q\x00h\x00a",
        "dict of itself": b"}q\x00" + files.text("a") + b"h\x00s",
        "deep tuples": b")" + b"\x85" * 20_000,
        "deep lists": b"]" * 20_000 + b"a" * 19_999,
        "wide": b"](" + b"N" * 20_000 + b"e",
    }.values(),
    ids="lists tuples dicts itself dict-of-itself deep-tuples deep-lists wide".split(),
)  # fmt: skip
def test_containers_without_end_are_refused(instructions, refused, monkeypatch):
    monkeypatch.setattr(parts, "MOST_VALUES", 9000)  # the checks of types make all this slow
    network = files.text("w") + files.tensor(files.stored())
    content = files.whole(b"}(", network, files.text("x"), instructions, b"u")
    refused(files.archive(content, {"0": bytes(8)}), "without end")


def test_keys_without_end_are_refused(refused):
    """The hash of such a tuple would take 2^60 steps."""
    laughs = doubled(60, files.text("ha"), b"0h\x00h\x00\x86")
    refused(files.whole(b"}", laughs, b"Ns"), "a key that is a tuple")
    refused(files.whole(b"\x8f(", laughs, b"\x90", protocol=4), "a key that is a tuple")


def test_modules_without_end_are_refused(refused, monkeypatch):
    monkeypatch.setattr(parts, "MOST_VALUES", 9000)
    leaf = files.module("Leaf", {"w": torch.ones(1)})
    for _ in range(60):
        leaf = files.module("Twice", modules={"a": leaf, "b": leaf})
    refused(files.snapshot({"ema": leaf}), "without end")
    own = files.called("argparse.Namespace") + b"q\x00"
    loop = files.entry("_modules", files.entry("a", b"h\x00"))
    refused(files.whole(files.entry("ema", own + loop + b"b")), "without end")


def test_pages_pointers_and_other_impostors(refused, tmp_path):
    page = b"<!DOCTYPE html>\n<html><title>Google Drive - Virus scan warning</title></html>"
    refused(page, "it is a web page. Download the file itself again")
    refused(b"\xef\xbb\xbf\r\n  <?xml version='1.0'?><Error/>", "it is a web page")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    refused(pointer, "the pointer of a file in Git LFS. Run `git lfs pull`")
    refused(gzip.compress(SMALL["snapshot"]), "compressed with gzip. Unpack it")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        file.addfile(tarfile.TarInfo("a"))
    refused(stream.getvalue(), "a tar archive. Unpack it")
    array = io.BytesIO()
    np.save(array, np.ones(3))
    refused(array.getvalue(), "it is a numpy array")
    refused(b"", "it is empty. Download or copy it again")
    refused(b"Not Found", "it is text, which begins 'Not Found'")
    refused(b"cos\nsystem\n(S'touch canary'\ntR.", "it is text, which begins")
    refused(bytes(range(256)), "neither safetensors, nor")
    refused(b"\0", "neither safetensors, nor")


def test_a_folder_is_none(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"it is a folder. .* holds model.safetensors.index.json"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("name", ["edm2_pickle.pkl", "robustness_cifar_style.pt", *SMALL])
def test_truncated_files_are_told(name, refused):
    content = SMALL.get(name) or (GOLDENS / name).read_bytes()
    step = max(1, len(content) // (40 if name in SMALL else 8))
    for length in sorted({1, 2, 7, 8, 9, 20, len(content) - 1, *range(1, len(content), step)}):
        refused(content[:length], r"was not opened: ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_no_numbers(value, dtype, refused, tmp_path):
    weights = torch.ones(2, 3, dtype=dtype)
    weights[1, 2] = value
    reason = "'ema.w' holds values that are infinite or no numbers"
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        refused(files.torch_file({"ema.w": weights}, **options), reason)
        refused(files.torch_file({"ema.w": weights.t()}, **options), reason)
    refused(save({"ema.w": weights}), reason)
    refused(files.snapshot({"ema": files.module("N", buffers={"ema.w": weights})}), reason)
    path = tmp_path / "weights.pt"
    found = open_tensors(path, allow_nan=True)
    assert torch.equal(found.tensors["ema.w"], weights) or value != value


def test_unreadable_files_are_told(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    path.write_bytes(SMALL["archive"])

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ValueError, match=r"a.pt cannot be read: .*Permission denied"):
        open_tensors(path)


def mutated(content, data):
    """A few bytes flipped, cut out, copied elsewhere or brought from another file."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(content) - 1, 0)))
        size = data.draw(st.sampled_from([1, 1, 2, 4, 16, 100]))
        match data.draw(st.sampled_from("flip flip flip set cut copy splice text".split())):
            case "flip" if content:
                content[at] ^= 1 << data.draw(st.integers(0, 7))
            case "set" if content:
                content[at] = data.draw(st.sampled_from(list(b"\0\xff.(RbcQ\x81\x93\x94h")))
            case "cut":
                del content[at : at + data.draw(st.sampled_from([size, len(content)]))]
            case "copy":
                start = data.draw(st.integers(0, len(content)))
                content[at:at] = content[start : start + size]
            case "splice":
                other = data.draw(st.sampled_from([*SMALL.values(), files.whole(SYSTEM), EXEC]))
                start = data.draw(st.integers(0, len(other)))
                content[at : at + size] = other[start : start + size * 4]
            case "text":
                content[at:at] = data.draw(st.sampled_from([SYSTEM, EXEC, b"cos\nsystem\n"]))
    return bytes(content)


def opens_or_is_refused(path, content):
    path.write_bytes(content)
    with audit.watched() as events:
        try:
            found = open_tensors(path)
        except ValueError as error:
            assert type(error) is ValueError and str(error).startswith(f"{path} was not opened: ")
        else:
            # Sums read every byte, so a tensor that reached outside would be found out.
            assert all(bool(x.double().sum().isfinite()) for x in found.tensors.values())
            assert found.tensors
    assert events == []


def damaged(name, data):
    """A small file with mutations; "description" has them inside of an archive that is whole."""
    if name in SMALL:
        return mutated(SMALL[name], data)
    with zipfile.ZipFile(io.BytesIO(SMALL["archive"])) as file:
        parts = [file.read(next(n for n in file.namelist() if n.endswith(end))) for end in ENDS]
    return files.archive(mutated(parts[0], data), {"0": parts[1]})


ENDS = ("/data.pkl", "/data/0")
NAMES = st.sampled_from(["description", *SMALL])


def fuzz(examples):
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None)


@fuzz(1000)
@given(NAMES, st.data())
def test_mutated_files_open_or_are_refused(tmp_path_factory, name, data):
    path = tmp_path_factory.getbasetemp() / "mutated"
    opens_or_is_refused(path, damaged(name, data))


@fuzz(25)
@given(st.sampled_from(["edm2_pickle.pkl", "robustness_cifar_style.pt"]), st.data())
def test_mutated_goldens_open_or_are_refused(tmp_path_factory, name, data):
    path = tmp_path_factory.getbasetemp() / "mutated"
    opens_or_is_refused(path, mutated((GOLDENS / name).read_bytes(), data))


@pytest.mark.check
@fuzz(4000)
@given(NAMES, st.data())
def test_many_mutated_files_open_or_are_refused(tmp_path_factory, name, data):
    path = tmp_path_factory.getbasetemp() / "mutated"
    opens_or_is_refused(path, damaged(name, data))
