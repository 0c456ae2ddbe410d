"""Reads the recorded numbers in tests/goldens."""

import gzip
import json
from pathlib import Path

from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "goldens"
loaded = []  # called with every golden that is read; see parity.py


def load(name):
    """The description of a golden, and its tensors: `model.*`, `in.*` and `out.*`."""
    description = json.loads((FOLDER / f"{name}.json").read_text())
    tensors = load_file(FOLDER / f"{name}.safetensors")
    for told in loaded:
        told(name, tensors)
    return description, tensors


def weights(tensors, prefix="model."):
    """The state dict that a golden holds; stored as float16, which float32 holds exactly."""
    named = {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
    return {name: x.float() if x.is_floating_point() else x for name, x in named.items()}


def tolerance(description, key):
    """`rtol` and `atol` for one result, to hand to torch.testing.assert_close."""
    allowed = description["tolerance"]
    atol = allowed["atol"]
    return {"rtol": allowed["rtol"], "atol": atol[key] if isinstance(atol, dict) else atol}


def listing(name):
    """Flags of a published checkpoint, and the shape of each of its parameters by name."""
    content = json.loads(gzip.decompress((FOLDER / "listings" / f"{name}.json.gz").read_bytes()))
    return content["flags"], {key: tuple(shape) for key, shape, _, _ in content["state_dict"]}
