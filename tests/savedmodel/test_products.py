"""The one switch for TensorFloat-32: on while who wants it computes, off for others, and nobody starves."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from saved_models import numbers
from savedmodel.conftest import DeviceThread, Saved, load_model
from vitrail_server.savedmodel import loader, precision
from vitrail_server.savedmodel.products import products_in
from vitrail_server.turns import Turns
from vitrail_server.work import GradientRows, Kind, Objective, OccludeRows, Subject

PATIENCE = 10.0
"""Seconds after which a test that hangs fails."""


class Switch:
    """Notes how it was set."""

    def __init__(self) -> None:
        self.settings: list[bool] = []

    def __call__(self, on: bool) -> None:
        self.settings.append(on)


class Guest(threading.Thread):
    """Takes a turn, and leaves when it is told to."""

    def __init__(self, turns: Turns, *, on: bool) -> None:
        super().__init__(daemon=True)
        self._turns = turns
        self._on = on
        self.asked, self.entered, self.leave = (threading.Event() for _ in range(3))

    def run(self) -> None:
        self.asked.set()
        with self._turns.turn(on=self._on):
            self.entered.set()
            self.leave.wait(PATIENCE)

    def end(self) -> None:
        self.leave.set()
        self.join(PATIENCE)
        assert not self.is_alive()


def test_the_switch_is_set_only_where_it_has_to_change() -> None:
    switch = Switch()
    turns = Turns(switch)
    for on in (False, True, True, False, False, True):
        with turns.turn(on=on):
            pass
    assert switch.settings == [False, True, False, True]


def test_those_who_agree_are_inside_together() -> None:
    turns = Turns(Switch())
    guests = [Guest(turns, on=True) for _ in range(3)]
    for guest in guests:
        guest.start()
        assert guest.entered.wait(PATIENCE)
    for guest in guests:
        guest.end()


def test_who_wants_it_otherwise_waits_and_is_not_overtaken() -> None:
    switch = Switch()
    turns = Turns(switch)
    first, second, third = Guest(turns, on=True), Guest(turns, on=False), Guest(turns, on=True)
    first.start()
    assert first.entered.wait(PATIENCE)
    second.start()
    assert second.asked.wait(PATIENCE)
    end = time.monotonic() + PATIENCE
    while not turns._first.locked():
        assert time.monotonic() < end
    third.start()
    assert third.asked.wait(PATIENCE)
    # The third agrees with the first, who is inside, and yet comes after the second.
    assert not second.entered.is_set()
    assert not third.entered.is_set()
    first.end()
    assert second.entered.wait(PATIENCE)
    assert not third.entered.is_set()
    assert switch.settings == [True, False]
    second.end()
    assert third.entered.wait(PATIENCE)
    third.end()
    assert switch.settings == [True, False, True]


def test_who_fails_inside_leaves() -> None:
    turns = Turns(Switch())
    with pytest.raises(ZeroDivisionError), turns.turn(on=True):
        raise ZeroDivisionError
    with turns.turn(on=False):
        pass


def test_a_cpu_waits_for_nobody() -> None:
    with products_in("FP32", accelerated=True)(), products_in("FP32", accelerated=False)():
        assert not is_on()
    with products_in("TF32", accelerated=True)(), products_in("FP32", accelerated=False)():
        assert is_on()


def is_on() -> bool:
    return bool(tf.config.experimental.tensor_float_32_execution_enabled())


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CPU that passes for a GPU."""
    monkeypatch.setattr(loader, "accelerated", lambda: True)
    monkeypatch.setattr(precision, "gpu_capability", lambda: (8, 0))
    yield
    with products_in("FP32", accelerated=True)():
        assert not is_on()


@pytest.mark.usefixtures("_gpu")
def test_forwards_and_gradients_of_a_model_that_asks_for_it_run_with_it(
    saved: Saved, device: DeviceThread
) -> None:
    path, size = saved("local"), (64, 64)
    subject = Subject(numbers(*size, 3, seed=4), {}, np.zeros(3, np.float32))
    windows = np.array([[0, 0, 4, 4]], np.int32)
    occlusion = OccludeRows(subject, "probabilities", windows)
    gradient = GradientRows(
        subject, "probabilities", np.zeros(1, np.int32), Objective.OUTPUT, np.zeros(1, np.float32)
    )
    for name, on in (("TF32", True), ("FP32", False), ("TF32", True)):
        model: Any = load_model(path, device.run, precision=name)
        seen: list[bool] = []
        for function in (model.forward, model.gradient):
            function.concrete = _watched(function.concrete, seen)
        model.program(Kind.FORWARD, size).execute([occlusion])
        with products_in("FP32" if on else "TF32", accelerated=True)():
            pass  # another model's batch comes between
        model.program(Kind.GRADIENT, size).execute([gradient])
        assert seen == [on, on]
        assert model.description.precision(Kind.GRADIENT) == name


def _watched(concrete: Any, seen: list[bool]) -> Any:
    def call(*tensors: Any) -> Any:
        seen.append(is_on())
        return concrete(*tensors)

    return call
