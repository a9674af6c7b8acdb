"""Messages of a server, made by hand for the tests."""

import numpy as np
from numpy.typing import ArrayLike

from vitrail.v1 import explanation_pb2 as pb

Event = pb.Plan | pb.Tile | pb.Summary


def occlusion_plan(
    shape: tuple[int, ...] = (1, 2, 3), labels: tuple[str, ...] = ("espresso",), evaluations: int = 7
) -> pb.Plan:
    """Return the plan of an occlusion with a map of `shape`: one target per label."""
    return pb.Plan(
        model_name="net",
        model_version=3,
        output_name="probabilities",
        targets=[
            pb.ResolvedTarget(index=967 + k, label=label, output=0.94, score=0.94)
            for k, label in enumerate(labels)
        ],
        objective=pb.Objective(kind=pb.Objective.KIND_OUTPUT),
        occlusion=pb.Occlusion(
            patch=pb.Extent(rows=1, columns=1),
            stride=pb.Extent(rows=1, columns=1),
            fill=pb.Fill(constant=0.5),
            edge=pb.Occlusion.EDGE_CLIP,
            window_score=pb.Occlusion.WINDOW_SCORE_SIGNED,
            resolution=pb.Occlusion.RESOLUTION_PIXELS,
            order=pb.Occlusion.ORDER_RASTER,
        ),
        map_shape=shape,
        window_grid=pb.WindowGrid(rows=2, columns=3),
        evaluations=evaluations,
        priority=100,
    )


def gradient_plan(shape: tuple[int, ...] = (1, 2, 3), *, signed: bool = False) -> pb.Plan:
    """Return the plan of a gradient with a map of `shape`."""
    reduction = pb.Gradient.CHANNEL_REDUCTION_SUM if signed else pb.Gradient.CHANNEL_REDUCTION_MAX_ABS
    plan = occlusion_plan(shape, ("",) * shape[0], shape[0])
    plan.gradient.CopyFrom(pb.Gradient(signed=signed, channel_reduction=reduction))
    plan.ClearField("window_grid")
    return plan


def tile(row: int, column: int, values: ArrayLike, *, first_target: int = 0, done: int = 1) -> pb.Tile:
    """Return the tile with `values` (height, width), (targets, height, width[, channels]) at this place."""
    array = np.asarray(values, "<f4")
    array = array[None] if array.ndim == 2 else array
    return pb.Tile(
        row=row,
        column=column,
        height=array.shape[1],
        width=array.shape[2],
        first_target=first_target,
        target_count=array.shape[0],
        values=array.tobytes(),
        evaluations_done=done,
        final=True,
    )


def complete(evaluations: int = 7) -> pb.Summary:
    """Return the summary of a whole map."""
    return pb.Summary(
        completion=pb.Summary.COMPLETION_COMPLETE,
        measured_fraction=1.0,
        evaluations=pb.Evaluations(done=evaluations),
        total_seconds=0.5,
        diagnostics=[pb.TargetDiagnostics(lowest_score=0.12, lowest_window=1, class_changes=2)],
    )


def partial(done: int, evaluations: int = 7) -> pb.Summary:
    """Return the summary of a map that a time budget ended."""
    return pb.Summary(
        completion=pb.Summary.COMPLETION_PARTIAL,
        partial_reason=pb.Summary.PARTIAL_REASON_TIME_BUDGET,
        measured_fraction=done / evaluations,
        evaluated_windows=b"\x03",
        evaluations=pb.Evaluations(done=done, dropped=evaluations - done),
    )


def whole_map(shape: tuple[int, ...] = (1, 2, 3)) -> list[Event]:
    """Return the messages of one finished map, in two tiles, whose values are 0, 1, 2, ..."""
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    labels = tuple(f"label {k}" for k in range(shape[0]))
    return [
        occlusion_plan(shape, labels),
        tile(0, 0, values[:, :1], done=4),
        tile(1, 0, values[:, 1:], done=7),
        complete(),
    ]


def in_tiles_response(event: Event) -> pb.ExplainTilesResponse:
    """Return the message of an ExplainTiles that carries `event`."""
    match event:
        case pb.Plan():
            return pb.ExplainTilesResponse(plan=event)
        case pb.Tile():
            return pb.ExplainTilesResponse(tile=event)
        case pb.Summary():
            return pb.ExplainTilesResponse(summary=event)


def in_stream_response(name: str, event: Event) -> pb.ExplainStreamResponse:
    """Return the message of an ExplainStream that carries `event` for the id `name`."""
    match event:
        case pb.Plan():
            return pb.ExplainStreamResponse(id=name, plan=event)
        case pb.Tile():
            return pb.ExplainStreamResponse(id=name, tile=event)
        case pb.Summary():
            return pb.ExplainStreamResponse(id=name, summary=event)
