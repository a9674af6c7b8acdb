"""What one process finds out about a model and hands to another: facts, flat graphs, and their constants.

The constants go through a file, each of them once; the rest is small.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from vitrail_server.savedmodel.backward import cheapen
from vitrail_server.savedmodel.constants import ALIGNMENT, read_block
from vitrail_server.savedmodel.flat import FlatGraph
from vitrail_server.savedmodel.flatten import flatten
from vitrail_server.savedmodel.functions import Gradient, Shared, flat_forward, flat_gradient
from vitrail_server.savedmodel.loader import LoadedModel, Planning, samples_of, sized_graphs
from vitrail_server.savedmodel.messages import NotPrepared, PackedGradient, PackedGraph, Place, Prepared
from vitrail_server.savedmodel.probe import Run, Sample
from vitrail_server.savedmodel.programs import (
    BatchProgram,
    Computation,
    Differentiate,
    Evaluate,
    example_rows,
)
from vitrail_server.savedmodel.rows import RowBuffer
from vitrail_server.servable import ImageSize
from vitrail_server.wording import reason_of
from vitrail_server.work import Kind

log = logging.getLogger(__name__)

ALIKE = 0.9999
"""The cosine of two gradients that are the same."""

EXACT = 1e-5
"""How far a cheaper gradient may be from the other one, as a part of the largest slope."""


@dataclass(slots=True)
class ConstantsWriter:
    """Writes constants to a file, equal ones once."""

    file: BinaryIO
    _places: dict[bytes, Place] = field(default_factory=dict)

    def write(self, graph: FlatGraph) -> PackedGraph:
        """Write a graph's constants and return the graph without them."""
        places = {name: self._place(value) for name, value in graph.constants.items()}
        definition = graph.definition(embed=()).SerializeToString()
        return PackedGraph(definition, places, graph.inputs, graph.outputs)

    def _place(self, value: NDArray[Any]) -> Place:
        dtype, content = tf.as_dtype(value.dtype).name, np.ascontiguousarray(value).tobytes()
        key = blake2b(content, key=f"{dtype}{value.shape}".encode()[:64]).digest()
        if key not in self._places:
            self.file.write(b"\0" * (-self.file.tell() % ALIGNMENT))
            self._places[key] = Place(self.file.tell(), dtype, value.shape)
            self.file.write(content)
        return self._places[key]


class ConstantsReader:
    """Reads constants back; the same array every time."""

    def __init__(self, file: BinaryIO) -> None:
        self._content = read_block(file)
        self._arrays: dict[Place, NDArray[Any]] = {}

    def read(self, packed: PackedGraph) -> FlatGraph:
        """Return a graph with its constants."""
        definition = tf.compat.v1.GraphDef.FromString(packed.definition)
        return FlatGraph(
            nodes={node.name: node for node in definition.node if node.name not in packed.constants},
            constants={name: self._array(place) for name, place in packed.constants.items()},
            inputs=packed.inputs,
            outputs=packed.outputs,
            library=definition.library,
            versions=definition.versions,
        )

    def _array(self, place: Place) -> NDArray[Any]:
        if place not in self._arrays:
            dtype = np.dtype(tf.as_dtype(place.dtype).as_numpy_dtype)
            size = int(np.prod(place.shape)) * dtype.itemsize
            found = self._content[place.start : place.start + size]
            self._arrays[place] = found.view(dtype).reshape(place.shape)
        return self._arrays[place]


def pack(model: LoadedModel, constants: BinaryIO) -> Prepared:
    """Return what another process needs to serve a model, and write its constants over what is in a file.

    Raises:
        NotPrepared: that is not possible.

    """
    forward, description = model.forward, model.description
    reason = description.capabilities.frozen_reason
    if forward is None or forward.flat is None or reason:
        raise NotPrepared(reason or "the model has no image")
    missing = description.signature.outputs.keys() - set(forward.outputs)
    if missing:
        raise NotPrepared(f"the outputs {sorted(missing)} have no row per image")
    constants.seek(0)
    constants.truncate()
    writer = ConstantsWriter(constants)
    packed_gradient = None
    if model.gradient is not None:
        graph = _flat_gradient(model.gradient, *samples_of(description).values())
        packed_gradient = PackedGradient(
            writer.write(graph), model.gradient.inputs, model.gradient.outputs, model.gradient.differentiable
        )
    return Prepared(
        description=description,
        forward=writer.write(forward.flat),
        inputs=forward.inputs,
        outputs=forward.outputs,
        gradient=packed_gradient,
        fixed=any(program.fixed for program in model.programs.values()),
    )


def unpack(prepared: Prepared, constants: BinaryIO, planning: Planning, run: Run) -> LoadedModel:
    """Return the model, traced, with every program run once on the calling thread.

    A function's first call prepares it, which takes longer than any later one; on the calling thread it
    makes no batch wait for it. `run` is for the trials of later plans.
    """
    reader, shared = ConstantsReader(constants), Shared()
    forward = flat_forward(reader.read(prepared.forward), prepared.inputs, prepared.outputs, shared)
    gradient = None
    if prepared.gradient is not None:
        packed = prepared.gradient
        gradient = flat_gradient(
            reader.read(packed.graph), packed.inputs, packed.outputs, packed.differentiable, shared
        )
    programs = dict(_programs(prepared, forward_computation=Evaluate(forward), gradient=gradient))
    description, preparations = prepared.description, None
    if not description.capabilities.incremental_reason:
        graphs, samples = sized_graphs(description, forward), samples_of(description)
        preparations = planning.preparations(description, forward, graphs, samples, programs, run)
    return LoadedModel(description, forward, gradient, programs, preparations, whole=forward)


def _programs(
    prepared: Prepared, forward_computation: Computation, gradient: Gradient | None
) -> Iterator[tuple[tuple[Kind, ImageSize], BatchProgram]]:
    samples = samples_of(prepared.description)
    for chosen in prepared.description.capabilities.batch_sizes:
        sample = samples[chosen.image_size]
        output = min(prepared.description.output_elements)
        computation = forward_computation
        if chosen.kind is Kind.GRADIENT:
            if gradient is None:
                raise ValueError("a gradient was measured, but is not there")
            computation, output = Differentiate(gradient), min(gradient.differentiable)
        program = BatchProgram(computation, sample.layout, chosen.batch_size, fixed=prepared.fixed)
        program.warm(sample.subjects[0], output)
        program.seconds = chosen.seconds
        yield (chosen.kind, chosen.image_size), program


def _flat_gradient(gradient: Gradient, *samples: Sample) -> FlatGraph:
    """Return the gradient as a flat graph, tried; a cheaper one, if that gives the same."""

    def slopes(graph: FlatGraph) -> list[NDArray[np.float32]]:
        flat = flat_gradient(graph, gradient.inputs, gradient.outputs, gradient.differentiable)
        return [_slopes(flat, sample) for sample in samples]

    graph = flatten(gradient.concrete)
    expected = slopes(graph)
    if not all(
        _alike(_slopes(gradient, sample), found) for sample, found in zip(samples, expected, strict=True)
    ):
        raise NotPrepared("the flat gradient differs from the signature's")
    try:
        cheap = cheapen(graph)
        if all(_same(some, found) for some, found in zip(expected, slopes(cheap), strict=True)):
            return cheap
        log.warning("a cheaper gradient has other values and is not used")
    except Exception as error:  # noqa: BLE001 - whatever it is, there is the other one
        log.warning("a cheaper gradient cannot be used: %s", reason_of(error))
    return graph


def _same(expected: NDArray[np.float32], found: NDArray[np.float32]) -> bool:
    """Return whether gradients are the same up to rounding, at every pixel."""
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    return bool(np.allclose(expected, found, rtol=0, atol=EXACT * scale, equal_nan=True))


def _alike(expected: NDArray[np.float32], found: NDArray[np.float32]) -> bool:
    """Return whether gradients are the same but for single pixels, which a tie of a ReLU may change."""
    some, others = expected.ravel().astype(np.float64), found.ravel().astype(np.float64)
    if not np.isfinite(some).all():
        return bool(np.array_equal(some, others, equal_nan=True))
    return bool(np.dot(some, others) >= ALIKE * np.sqrt(np.dot(some, some) * np.dot(others, others)))


def _slopes(gradient: Gradient, sample: Sample) -> NDArray[np.float32]:
    output = min(gradient.differentiable)
    rows = [example_rows(Kind.GRADIENT, subject, output, 1) for subject in sample.subjects]
    results = Differentiate(gradient)(RowBuffer(sample.layout, len(rows)), rows)
    return np.stack([result.gradients for result in results if result.gradients is not None])
