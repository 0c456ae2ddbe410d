"""How far the results are from those of the reference implementations, as the tests compare them.

    python -m pytest -q --parity docs/parity.md tests

A run with `--parity` notes every comparison with a tensor of `tests/goldens`: the largest error, and
the largest share of its tolerance that an element takes. Nothing is compared a second time, so the
table says what the tests say.
"""

import json
from bisect import bisect_right
from pathlib import Path

import golden_files
import torch

BEGIN, END = "<!-- parity -->", "<!-- end of parity -->"
DEFAULTS = {torch.float32: (1.3e-6, 1e-5), torch.float64: (1e-7, 1e-7)}


class Recorder:
    """A plugin of pytest that sees comparisons of tensors.

    Args:
        path: Document whose table is replaced.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.kept = []  # goldens stay in memory, so that addresses name them
        self.starts, self.places = [], []
        self.rows = {}
        self.close, self.equal = torch.testing.assert_close, torch.equal

    def pytest_sessionstart(self, session):
        golden_files.loaded.append(self.know)
        torch.testing.assert_close = self.assert_close
        torch.equal = self.are_equal

    def pytest_sessionfinish(self, session, exitstatus):
        torch.testing.assert_close, torch.equal = self.close, self.equal
        if exitstatus == 0:
            write(self.path, self.rows)

    def know(self, name, tensors):
        """Notes where the tensors of a golden lie."""
        for key, tensor in tensors.items():
            if tensor.numel():
                at = bisect_right(self.starts, tensor.data_ptr())
                self.starts.insert(at, tensor.data_ptr())
                self.places.insert(at, (tensor.data_ptr() + tensor.nbytes, name, key))
        self.kept.append(tensors)

    def place(self, tensor):
        """The golden and the name of a recorded result that a tensor is, or is a part of."""
        if not isinstance(tensor, torch.Tensor) or not tensor.numel() or tensor.is_meta:
            return None
        at = bisect_right(self.starts, tensor.data_ptr()) - 1
        if at < 0 or tensor.data_ptr() >= self.places[at][0]:
            return None
        _, name, key = self.places[at]
        return (name, key) if not key.startswith(("model.", "in.")) and ".in." not in key else None

    def assert_close(self, actual, expected, *args, rtol=None, atol=None, **kwargs):
        self.close(actual, expected, *args, rtol=rtol, atol=atol, **kwargs)
        for want, got in ((expected, actual), (actual, expected)):
            if (place := self.place(want)) is not None:
                default = DEFAULTS.get(want.dtype, (0.0, 0.0))
                used = default if rtol is None else (rtol, atol)
                self.note(place, torch.as_tensor(got), want, used)
                return

    def are_equal(self, first, second):
        answer = self.equal(first, second)
        for want in (first, second):
            if answer and (place := self.place(want)) is not None:
                self.note(place, want, want, (0.0, 0.0))
        return answer

    def note(self, place, got, want, used):
        """The largest error of a comparison, and the largest share of what was allowed."""
        error = (got.detach().double() - want.double()).abs()
        allowed = used[1] + used[0] * want.double().abs()
        share = torch.where(error == 0, 0.0, error / allowed).nan_to_num(0.0)
        row = float(error.nan_to_num(0.0).max()), float(share.max())
        self.rows[place] = tuple(map(max, row, self.rows.get(place, (0.0, 0.0))))


def write(path, rows):
    """Puts the table between its marks."""
    golden = {}
    for (name, key), row in rows.items():
        golden.setdefault(name, {})[key.removeprefix("out.")] = row
    lines = [
        "| golden | quantity | largest error | share of its tolerance |",
        "| --- | --- | --- | --- |",
    ]
    for name in sorted(golden):
        for key in sorted(golden[name]):
            error, share = golden[name][key]
            lines.append(f"| `{name}` | `{key}` | {error:.1e} | {share:.1%} |")
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text("\n".join([before + BEGIN, *lines, END + after]))


def missing(rows):
    """Recorded results of the goldens that nothing was compared with."""
    known = set(rows)
    for file in sorted(golden_files.FOLDER.glob("*.json")):
        stored = json.loads(file.read_text()).get("tensors", {})
        yield from ((file.stem, key) for key in stored if (file.stem, key) not in known)
