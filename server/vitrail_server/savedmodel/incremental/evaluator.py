"""A plan with its traced functions: NumPy in, NumPy out, for windows of any image of the plan's size."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from vitrail_server.savedmodel.functions import memory_errors
from vitrail_server.savedmodel.incremental.executor import trace_tables, trace_windows
from vitrail_server.savedmodel.incremental.graph import SizedGraph
from vitrail_server.savedmodel.incremental.pixels import PixelFinder
from vitrail_server.savedmodel.incremental.plan import PAD_ROWS, Plan
from vitrail_server.savedmodel.incremental.weights import Weights
from vitrail_server.savedmodel.products import Products
from vitrail_server.work import Subject

Tables: TypeAlias = Sequence[Any]
"""What is kept of one clean image, as tensors."""


class Evaluator:
    """Evaluates windows of one grid. Made on a thread for tracing, called on the device's."""

    def __init__(
        self,
        graph: SizedGraph,
        plan: Plan,
        weights: Weights,
        inputs: Sequence[str],
        image_input: str,
        outputs: Sequence[str],
        products: Products = nullcontext,
    ) -> None:
        """Trace the functions; `inputs` and `outputs` are the names of those of `graph`, in order."""
        self._products = products
        self.plan = plan
        self.table_bytes = table_bytes(graph, plan)
        self._graph = graph
        self._inputs = tuple(inputs)
        self._image_input = image_input
        self._outputs = tuple(outputs)
        self._finder = PixelFinder(plan, graph.image)
        self._tables = trace_tables(graph, plan, weights)
        self._windows = trace_windows(graph, plan, weights, self._finder)
        self.operations = self._tables.operations + self._windows.operations

    def tables(self, subject: Subject) -> Tables:
        """Return what is kept of the subject's image, nothing hidden.

        Raises:
            OutOfMemory: the device could not hold it.

        """
        arrays = {**subject.inputs, self._image_input: subject.image}
        with memory_errors(), self._products():
            tables: Tables = self._tables(*(tf.constant(arrays[name][None]) for name in self._inputs))
            return tables

    def outputs(
        self, tables: Tables, subject: Subject, windows: NDArray[np.int32], wanted: Collection[str]
    ) -> Mapping[str, NDArray[np.generic]]:
        """Return the wanted outputs for windows (n, 4) of the grid, or empty ones that hide nothing.

        Raises:
            OutOfMemory: the device could not hold the batch.

        """
        pixels = self._finder.find(windows)
        shown = self._shown(subject, windows, pixels.starts)
        others = [
            np.repeat(subject.inputs[name][None], len(windows), 0)
            for name in self._inputs
            if name != self._image_input
        ]
        with memory_errors(), self._products():
            given = (tf.constant(each) for each in (*pixels.tensors, shown))
            tensors = self._windows(*given, *tables, *(tf.constant(each) for each in others))
            return {name: tensors[self._outputs.index(name)].numpy() for name in wanted}

    def _shown(
        self, subject: Subject, windows: NDArray[np.int32], starts: NDArray[np.int32]
    ) -> NDArray[np.generic]:
        """Return what the image shows around each window (n, rows, columns, channels), the window hidden."""
        image = subject.image
        height, width = self.plan.regions[self._graph.image].size
        shown = np.empty((len(windows), height, width, image.shape[2]), image.dtype)
        fill = None if subject.fill is None else np.broadcast_to(subject.fill, image.shape)
        for row, (window, (y, x)) in enumerate(zip(windows.tolist(), starts.tolist(), strict=True)):
            top, left, bottom, right = window
            shown[row] = image[y : y + height, x : x + width]
            if top < bottom and left < right:
                if fill is None:
                    raise ValueError("a window is hidden, but the subject has no fill")
                shown[row, top - y : bottom - y, left - x : right - x] = fill[top:bottom, left:right]
        return shown


def table_bytes(graph: SizedGraph, plan: Plan) -> int:
    """Return the memory that the tables of one image take."""
    return sum(_table_bytes(graph, name) for name in plan.tables)


def _table_bytes(graph: SizedGraph, name: str) -> int:
    _, height, width, channels = graph.shape(name) or (1, 0, 0, 0)
    return int((PAD_ROWS + height * width) * channels * graph.dtype(name).size)
