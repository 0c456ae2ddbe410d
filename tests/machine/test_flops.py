"""What is counted as it runs, and the speed and time that it is compared with."""

import pytest
import torch
from torch.nn import functional as F

from robustguide.machine import laps, peak
from robustguide.machine.flops import Tally
from robustguide.machine.laps import Laps
from robustguide.machine.peak import matmul_peak

CPU = torch.device("cpu")


def test_attention_on_the_cpu_is_that_of_its_two_products():
    q = torch.zeros(1, 2, 64, 4, requires_grad=True)
    product = 2 * 2 * 64 * 64 * 4  # multiply and add, in two heads
    with Tally() as tally:
        found = F.scaled_dot_product_attention(q, q, q)
    assert tally.flops == 2 * product and not tally.unknown
    with Tally() as tally:
        found.sum().backward()
    assert tally.flops == 5 * product and not tally.unknown  # the scores once more


def test_inference_mode_is_counted_alike():
    x, w = torch.zeros(3, 5), torch.zeros(7, 5)
    with torch.inference_mode(), Tally() as tally:
        F.linear(x, w)
    assert tally.flops == 2 * 3 * 5 * 7 and not tally.unknown


def test_the_peak_is_measured_once(monkeypatch):
    monkeypatch.setattr(peak, "SIZES", (16, 32))
    seconds = {16: [3e-6, 2e-6, 4e-6], 32: [9e-6, 8e-6, 9e-6]}
    monkeypatch.setattr(peak, "product_seconds", lambda x: seconds[len(x)].pop())
    peak._measured.cache_clear()
    try:
        found = [matmul_peak(CPU, torch.float32) for _ in range(2)]
    finally:
        peak._measured.cache_clear()
    assert found == [pytest.approx(2 * 32**3 / 8e-6)] * 2


def test_numbers_that_a_device_does_not_multiply(monkeypatch):
    def refuse(x):
        raise RuntimeError("not implemented")

    monkeypatch.setattr(peak, "product_seconds", refuse)
    assert matmul_peak(CPU, torch.int8) is None


def test_laps_of_the_host(monkeypatch):
    times = iter([1.0, 3.0, 10.0, 11.5])
    monkeypatch.setattr(laps.time, "perf_counter", lambda: next(times))
    watch = Laps(CPU)
    for _ in range(2):
        watch.start()
        watch.stop()
    assert watch.seconds == 3.5


def test_laps_of_a_device_do_not_wait(monkeypatch):
    """Not before the sum is asked for."""
    waited = []

    class Event:
        now = 0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            Event.now += 1
            self.at = Event.now**2

        def query(self):
            return self.at <= 4

        def synchronize(self):
            waited.append(self.at)

        def elapsed_time(self, end):
            return 1000.0 * (end.at - self.at)

    module = type("Module", (), {"Event": Event})
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    watch = Laps(torch.device("cuda:1"))
    for _ in range(3):
        watch.start()
        watch.stop()
    assert not waited and len(watch.open) == 2
    assert watch.seconds == (4 - 1) + (16 - 9) + (36 - 25) and waited == [16, 36]
    assert watch.seconds == 21
