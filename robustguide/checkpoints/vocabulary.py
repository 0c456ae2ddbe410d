"""The names that files of weights may hold, and what is made of each.

Exact pairs of module and name, as they were written by torch, numpy, the persistence of EDM and
EDM2, and trainers. None of them is imported for a file's sake.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from robustguide.checkpoints.claims import DAMAGED, RESAVE, Claim, RefusedError, Storage, claimed
from robustguide.checkpoints.pickles import Maker, Mapped, Name, Pair, Unfinished, hashable

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    # Refused by name of the tensor, once they are built.
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
}
NUMPY = {
    "f8": torch.float64, "f4": torch.float32, "f2": torch.float16, "i8": torch.int64,
    "i4": torch.int32, "i2": torch.int16, "i1": torch.int8, "u1": torch.uint8, "b1": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class StorageType:
    """Class of a storage, named in a file before the storage itself."""

    dtype: torch.dtype


@dataclass(eq=False)
class Persistent:
    """An object that carried its own source code; here its class name and state remain."""

    class_name: str
    state: dict[Any, Any]


@dataclass(frozen=True)
class NumpyType:
    """A numpy dtype, the smallest byte first."""

    code: str


def _mapping(*content: Any) -> Mapped:
    """OrderedDict and its like, from nothing, another dict or a list of pairs."""
    match content:
        case () | (Maker() | Name(),):  # of a defaultdict comes what makes its values
            return Mapped()
        case (dict(values),):
            return Mapped(values)
        case (list(pairs),) if all(isinstance(each, list | tuple) for each in pairs):
            if all(len(pair) == 2 for pair in pairs):
                return Mapped((hashable(key), value) for key, value in pairs)
    raise RefusedError("it makes a dict of something that is none", DAMAGED)


def _set(values: Any = ()) -> set[Any]:
    if not isinstance(values, list | tuple):
        raise RefusedError("it makes a set of something that is no list", DAMAGED)
    return {hashable(value) for value in values}


def _no_bytes() -> memoryview:
    """How Python 3 writes empty bytes by protocol 2."""
    return memoryview(bytearray())


def _encoded(text: Any, encoding: Any) -> memoryview:
    """Bytes, as Python 3 writes them by protocol 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedError("it encodes something that is no text", DAMAGED)
    try:
        return memoryview(bytearray(text, "latin-1"))
    except UnicodeEncodeError as error:
        raise RefusedError("it encodes text that is no Latin-1", DAMAGED) from error


def _size(values: Any = ()) -> tuple[Any, ...]:
    if not isinstance(values, tuple | list):
        raise RefusedError("it gives a shape that is none", DAMAGED)
    return tuple(values)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Claim:
    """What torch rebuilds a tensor from; gradients and hooks are of no interest."""
    return claimed(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Claim:
    if not isinstance(tensor, Claim):
        raise RefusedError("it makes a parameter of something that is no tensor", DAMAGED)
    return tensor


def _persistent(meta: Any) -> Persistent:
    """An object of EDM or EDM2; its source code is looked at by nobody."""
    if not isinstance(meta, dict):
        raise RefusedError("it holds an object without a description", DAMAGED)
    name, state = meta.get("class_name"), meta.get("state")
    if meta.get("type") != "class" or not isinstance(name, str) or not isinstance(state, dict):
        raise RefusedError("it holds an object without class name or state", DAMAGED)
    return Persistent(name[:200], state)


def _numpy_type(code: Any, *_: Any) -> Unfinished:
    if not isinstance(code, str) or code.lstrip("<>|=") not in (*NUMPY, "u2", "u4", "u8"):
        raise RefusedError(f"it holds numpy's numbers of type {str(code)[:40]}", RESAVE)
    return Unfinished(partial(_type_of_state, code.lstrip("<>|=")))


def _type_of_state(code: str, state: Any) -> NumpyType:
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
    if order not in ("<", "|", "="):
        raise RefusedError("it holds numbers with the largest byte first", RESAVE)
    return NumpyType(code)


def _numpy_array(*_: Any) -> Unfinished:
    return Unfinished(_array_of_state)


def _array_of_state(state: Any) -> Claim:
    if not isinstance(state, tuple) or len(state) != 5:
        raise RefusedError("it holds a numpy array without content", DAMAGED)
    _, shape, kind, is_fortran, content = state
    return _array(content, kind, shape, is_fortran is True)


def _array_from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> Claim:
    """Numpy's own reading of protocol 5."""
    return _array(content, kind, shape, order == "F")


def _array(content: Any, kind: Any, shape: Any, is_fortran: bool) -> Claim:
    """A numpy array as a claim on its bytes."""
    code = _code(kind)
    if code not in NUMPY or not isinstance(content, memoryview) or not isinstance(shape, tuple):
        raise RefusedError("it holds a numpy array of something other than numbers", RESAVE)
    dtype = NUMPY[code]
    storage = Storage(dtype, len(content) // dtype.itemsize, content)
    if not all(type(n) is int for n in shape):
        raise RefusedError("it holds a numpy array whose shape is none", DAMAGED)
    axes = shape if is_fortran else shape[::-1]
    steps = [math.prod(axes[:i]) for i in range(len(axes))]
    return claimed(storage, 0, shape, tuple(steps if is_fortran else steps[::-1]))


def _numpy_number(kind: Any, content: Any) -> Any:
    code = _code(kind)
    if not isinstance(content, memoryview) or len(content) != int(code[1]):
        raise RefusedError("it holds a numpy number of another size", DAMAGED)
    return np.frombuffer(content, dtype=f"<{code}")[0].item()


def _code(kind: Any) -> str:
    found = kind.value if isinstance(kind, Unfinished) else None
    if not isinstance(found, NumpyType):
        raise RefusedError("it holds numpy's numbers without their type", DAMAGED)
    return found.code


def _dill_type(name: Any) -> Name:
    """A type of Python's own, such as that of code; what is made of it stays a record."""
    if not isinstance(name, str):
        raise RefusedError("it names a type by something that is no text", DAMAGED)
    return Name("types", name[:40])


def _refuse(what: str, *_: Any) -> Any:
    raise RefusedError(f"it holds {what}", DENSE)


def _classes(module: str, names: str) -> list[Pair]:
    return [(module, name) for name in names.split()]


DENSE = "Save it again with dense tensors of real numbers, `tensor.to_dense()` or `.dequantize()`"
MAKERS: dict[Pair, Any] = {
    ("collections", "OrderedDict"): _mapping,
    ("collections", "defaultdict"): _mapping,
    ("collections", "Counter"): _mapping,
    ("dnnlib.util", "EasyDict"): _mapping,
    ("builtins", "dict"): _mapping,
    ("__builtin__", "dict"): _mapping,
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
    ("builtins", "bytes"): _no_bytes,
    ("__builtin__", "bytes"): _no_bytes,
    ("_codecs", "encode"): _encoded,
    ("torch", "Size"): _size,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("numpy", "dtype"): _numpy_type,
    **{
        (f"{package}.{module}", name): make
        for package in ("numpy.core", "numpy._core")
        for module, name, make in (
            ("multiarray", "_reconstruct", _numpy_array),
            ("multiarray", "scalar", _numpy_number),
            ("numeric", "_frombuffer", _array_from_buffer),
        )
    },
    ("dill._dill", "_load_type"): _dill_type,
    ("dill.dill", "_load_type"): _dill_type,
    ("torch._utils", "_rebuild_qtensor"): partial(_refuse, "a quantized tensor"),
    ("torch.serialization", "_get_layout"): partial(_refuse, "a sparse tensor"),
    ("torch._utils", "_rebuild_sparse_tensor"): partial(_refuse, "a sparse tensor"),
    ("torch._utils", "_rebuild_sparse_csr_tensor"): partial(_refuse, "a sparse tensor"),
}

# Names whose objects stay records: layers of torch, and what trainers save on the side.
INERT = [
    *_classes("torch.nn.modules.container",
              "Sequential ModuleList ModuleDict ParameterList ParameterDict"),
    *_classes("torch.nn.modules.linear", "Identity Linear"),
    *_classes("torch.nn.modules.conv", "Conv1d Conv2d ConvTranspose2d"),
    *_classes("torch.nn.modules.activation", "GELU LeakyReLU ReLU SiLU Sigmoid Softmax Tanh"),
    *_classes("torch.nn.modules.batchnorm", "BatchNorm1d BatchNorm2d SyncBatchNorm"),
    *_classes("torch.nn.modules.normalization", "GroupNorm LayerNorm"),
    *_classes("torch.nn.modules.dropout", "Dropout Dropout2d"),
    *_classes("torch.nn.modules.flatten", "Flatten"),
    *_classes("torch.nn.modules.pooling", "AdaptiveAvgPool2d AvgPool2d MaxPool2d"),
    *_classes("torch.nn.modules.sparse", "Embedding"),
    *_classes("torch.nn.modules.upsampling", "Upsample"),
    *_classes("torch.nn.parallel.data_parallel", "DataParallel"),
    *_classes("torch", "device float16 float32 float64 bfloat16 int64 int32 uint8 bool"),
    *_classes("torch.optim.sgd", "SGD"),
    *_classes("torch.optim.adam", "Adam"),
    *_classes("torch.optim.adamw", "AdamW"),
    *_classes("torch.optim.lr_scheduler",
              "CosineAnnealingLR LambdaLR MultiStepLR OneCycleLR ReduceLROnPlateau StepLR"),
    *_classes("numpy", "ndarray float16 float32 float64 int32 int64 uint8 bool_"),
    *_classes("argparse", "Namespace"),
    *_classes("cox.utils", "Parameters"),
    # Files of `robustness` hold functions that dill wrote out; they are never put together.
    *_classes("dill._dill", "_create_cell _create_code _create_function"),
    *_classes("dill.dill", "_create_cell _create_code _create_function"),
    *_classes("__builtin__", "__main__"),
    *_classes("builtins", "__main__"),
    *_classes("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
    *_classes("pytorch_lightning.callbacks.early_stopping", "EarlyStopping"),
]  # fmt: skip

TABLE: dict[Pair, Any] = {
    **{pair: Maker(pair, make) for pair, make in MAKERS.items()},
    **{pair: Name(*pair) for pair in INERT},
    **{
        (module, name): StorageType(dtype)
        for module in ("torch", "torch.cuda")
        for name, dtype in STORAGES.items()
    },
    ("torch.storage", "UntypedStorage"): StorageType(torch.uint8),
}
