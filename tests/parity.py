"""How far results are from those of the reference implementations, as the tests compare them.

    python tests/parity.py docs/parity.md

runs the tests that read `tests/goldens` and notes every comparison with a recorded tensor: the
largest error, and the largest share of its tolerance that an element takes. Nothing is compared a
second time, so the table says what the tests say.
"""

import re
import sys
from bisect import bisect_right
from pathlib import Path

import golden_files
import pytest
import torch

TESTS = Path(__file__).parent
DEFAULTS = {torch.float32: (1.3e-6, 1e-5), torch.float64: (1e-7, 1e-7)}
READS_GOLDENS = re.compile(r"golden_files|recorded_\w+|sampler_runs|goldens")


class Recorder:
    """A plugin of pytest that sees comparisons of tensors.

    Args:
        path: Document whose tables are replaced when all tests have passed.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.kept = []  # goldens stay in memory, so that addresses name them
        self.starts, self.places = [], []
        self.rows, self.known, self.values = {}, set(), {}
        self.close, self.equal = torch.testing.assert_close, torch.equal

    def pytest_configure(self, config):
        golden_files.loaded.append(self.know)
        torch.testing.assert_close = self.assert_close
        torch.equal = self.are_equal

    def pytest_sessionfinish(self, session, exitstatus):
        torch.testing.assert_close, torch.equal = self.close, self.equal
        if exitstatus == 0:
            write(self.path, self.rows, self.known - set(self.rows))

    def know(self, name, tensors):
        """Notes where the tensors of a golden lie."""
        for key, tensor in tensors.items():
            if tensor.numel():
                at = bisect_right(self.starts, tensor.data_ptr())
                self.starts.insert(at, tensor.data_ptr())
                self.places.insert(at, (tensor.data_ptr() + tensor.nbytes, name, key))
            if is_result(key):
                self.known.add((name, key))
                rows = tensor if tensor.ndim > 1 and len(tensor) <= 64 else ()
                for each in (*rows, tensor):
                    if (known := content(each)) is not None:  # others would all be this one
                        self.values[known] = name, key
        self.kept.append(tensors)

    def place(self, tensor):
        """The golden and the name of a recorded result that a tensor is or is a part of."""
        if not isinstance(tensor, torch.Tensor) or not tensor.numel() or tensor.is_meta:
            return None
        at = bisect_right(self.starts, tensor.data_ptr()) - 1
        if at < 0 or tensor.data_ptr() >= self.places[at][0]:
            return self.values.get(content(tensor))  # of another type, perhaps
        _, name, key = self.places[at]
        return (name, key) if is_result(key) else None

    def assert_close(self, actual, expected, *args, rtol=None, atol=None, **kwargs):
        """As torch's, and notes it."""
        self.close(actual, expected, *args, rtol=rtol, atol=atol, **kwargs)
        for want, got in ((expected, actual), (actual, expected)):
            if (place := self.place(want)) is not None:
                used = DEFAULTS.get(want.dtype, (0.0, 0.0)) if rtol is None else (rtol, atol)
                self.note(place, torch.as_tensor(got), want, used)
                return

    def are_equal(self, first, second):
        """As torch's, and notes it."""
        answer = self.equal(first, second)
        for want in (first, second):
            if answer and (place := self.place(want)) is not None:
                self.note(place, want, want, (0.0, 0.0))
        return answer

    def note(self, place, got, want, used):
        """The largest error of a comparison, and the largest share of what was allowed."""
        want = want.detach().double()  # a network's own answer may equal what was recorded
        error = (got.detach().double() - want).abs()
        allowed = used[1] + used[0] * want.abs()
        share = torch.where(error == 0, 0.0, error / allowed).nan_to_num(0.0)
        row = float(error.nan_to_num(0.0).max()), float(share.max())
        self.rows[place] = tuple(map(max, row, self.rows.get(place, (0.0, 0.0))))


def content(tensor):
    """The shape and values of a tensor, whatever its type; null for what many tensors are like."""
    if tensor.layout != torch.strided or tensor.is_complex() or tensor.unique().numel() < 3:
        return None
    flat = tensor.detach().double().contiguous()
    return tuple(tensor.shape), hash(flat.numpy().tobytes())


def is_result(key):
    """Whether a tensor of a golden is something that a reference gave out."""
    return not key.startswith(("model.", "in.")) and ".in." not in key


def write(path, rows, unseen):
    """Puts the tables between their marks."""
    from robustguide.cards import cards
    from robustguide.cards.catalogue import SHIPPED

    golden = {}
    for (name, key), row in rows.items():
        golden.setdefault(name, {})[key.replace("out.", "")] = row
    table = [
        "| golden | quantity | largest error | share of its tolerance |",
        "| --- | --- | --- | --- |",
    ]
    for name in sorted(golden):
        for key, (error, share) in sorted(golden[name].items()):
            table.append(f"| `{name}` | `{key}` | {error:.1e} | {share:.1%} |")
    by_name = {}
    for name, key in sorted(unseen):
        by_name.setdefault(name, []).append(key.replace("out.", ""))
    others = [
        f"* `{name}`: {', '.join(f'`{key}`' for key in keys)}" for name, keys in by_name.items()
    ]
    files = dict.fromkeys(
        f"`{each.file}`"
        for each in cards().values()
        if "[" not in each.file and not (SHIPPED / each.file).is_file()
    )
    text = Path(path).read_text()
    for mark, lines in (("parity", table), ("unseen", others), ("files", [", ".join(files)])):
        begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
        before, _, rest = text.partition(begin)
        text = "\n".join([before + begin, *lines, end + rest.partition(end)[2]])
    Path(path).write_text(text)


def run(path):
    """The tests that read goldens; their exit code."""
    files = [
        str(file) for file in sorted(TESTS.rglob("test_*.py"))
        if READS_GOLDENS.search(file.read_text()) and file.name != "test_parity.py"
    ]  # fmt: skip
    # The check of annotations would take as long again.
    options = ["-q", "-m", "not check", "-p", "no:cacheprovider", "--jaxtyping-packages="]
    return pytest.main([*options, *files], plugins=[Recorder(path)])


def rows_of(text):
    """What a document says: share of the tolerance by golden and quantity."""
    found = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \| \S+ \| ([\d.]+)% \|$", text, re.MULTILINE)
    return {(name, key): float(share) / 100 for name, key, share in found}


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(run(sys.argv[1]))
