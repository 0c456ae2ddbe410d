"""Peak memory."""

import subprocess
import sys

import pytest
import torch

from robustguide.machine import memory
from robustguide.machine.memory import peak_memory

CPU = torch.device("cpu")
ALLOCATES = """
import torch
from robustguide.machine.memory import peak_memory
before, kind = peak_memory(torch.device("cpu"))
block = torch.ones(2**27, dtype=torch.int8)
held, _ = peak_memory(torch.device("cpu"))
del block
after, _ = peak_memory(torch.device("cpu"))
print(held - before, after - held, kind)
"""

BOUND = """
import torch
from robustguide.machine.memory import bound, forget_peak, held, peak_memory
cpu = torch.device("cpu")
for more in (2**27, 2**29):
    try:
        with bound(held(cpu) + more, cpu):
            torch.ones(2**28, dtype=torch.int8)
        print("held")
    except RuntimeError as error:
        print("refused" if "can't allocate memory" in str(error) else error)
torch.ones(2**28, dtype=torch.int8)
print(peak_memory(cpu)[0] - held(cpu))
forget_peak(cpu)
print(peak_memory(cpu)[0] - held(cpu))
try:
    with bound(1000, cpu):
        pass
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="others neither bound memory nor forget")
def test_memory_is_refused_beyond_a_bound_and_a_peak_forgotten():
    done = subprocess.run([sys.executable, "-c", BOUND], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    small, large, before, after, error = done.stdout.splitlines()
    assert (small, large) == ("refused", "held")
    assert int(before) > 2**27 > 2**24 > int(after)
    assert "are held before the step; give a larger" in error


def test_a_block_of_known_size():
    """It stays the peak when it is given back; that of the process which asks is another."""
    own = torch.ones(2**29, dtype=torch.int8)
    done = subprocess.run([sys.executable, "-c", ALLOCATES], capture_output=True, text=True)
    assert done.returncode == 0 and own.all(), done.stderr
    held, after, *kind = done.stdout.split()
    assert 0.8 * 2**27 < int(held) < 1.2 * 2**27 and abs(int(after)) < 2**22
    assert " ".join(kind) == "resident in the process"


@pytest.mark.skipif(sys.platform != "linux", reason="the units of Linux and macOS")
def test_units_of_systems_without_a_status(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    kibibytes, _ = peak_memory(CPU)
    monkeypatch.setattr(sys, "platform", "darwin")
    as_bytes, _ = peak_memory(CPU)
    assert kibibytes / as_bytes == pytest.approx(1024, rel=0.2)  # it may grow in between
    assert kibibytes > 2**26


def test_the_status_of_a_process(monkeypatch, tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t  999 kB\nVmHWM:\t   12345 kB\nVmRSS:\t    77 kB\n")
    monkeypatch.setattr(memory, "STATUS", status)
    assert peak_memory(CPU) == (12345 * 1024, "resident in the process")


def test_a_gpu_tells_of_its_tensors(monkeypatch):
    devices = {torch.device("cuda:1"): 1234}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", devices.get)
    assert peak_memory(torch.device("cuda:1")) == (1234, "tensors on the GPU")


def test_a_system_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(CPU) == (None, "not known on this system")
