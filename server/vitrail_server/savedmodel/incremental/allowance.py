"""How much memory a version may take with its plans, and what one plan is taken to need."""

from collections.abc import Mapping

from vitrail_server.savedmodel.graph import Activations
from vitrail_server.savedmodel.incremental.graph import SizedGraph
from vitrail_server.savedmodel.measure import row_bytes
from vitrail_server.savedmodel.probe import Sample
from vitrail_server.servable import ImageSize, Program
from vitrail_server.work import Kind

TIMES_WEIGHTS = 4
"""A version takes so many times its weights at most, beside one batch of activations."""

OPERATION_BYTES = 9 << 10
"""What an operation of a plan takes, by and large: its definition, its kernel, what oneDNN made for it."""

APART = 2
"""How many times as much, or as little, a measurement may say: what others do meanwhile is in it too."""


def allowance(
    weights: int,
    graphs: Mapping[ImageSize, SizedGraph],
    samples: Mapping[ImageSize, Sample],
    programs: Mapping[tuple[Kind, ImageSize], Program],
) -> int:
    """Return the bytes that a version may take in all: four times its weights, and its largest batch."""
    batches = (
        row_bytes(kind, samples[size].layout.nbytes, activations_of(graphs[size])) * program.batch_size
        for (kind, size), program in programs.items()
    )
    return TIMES_WEIGHTS * weights + max(batches, default=0)


def activations_of(graph: SizedGraph) -> Activations:
    """Return what one image occupies on its way through a graph; tensors of unknown shape are left out."""
    sizes = [graph.tensor_bytes(node.name) for node in graph.nodes if graph.depends(node.name)]
    return Activations(max(sizes, default=0), sum(sizes))


def charge(operations: int, before: int, after: int) -> int:
    """Return what a plan is taken to need: what memory grew by, if that can be true of so many operations.

    Memory is 0 where the system does not tell.
    """
    estimate = operations * OPERATION_BYTES
    if not after:
        return estimate
    return max(estimate // APART, min(after - before, estimate * APART))
