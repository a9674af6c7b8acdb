"""A version without TensorFlow: a description to order, and Programs that compute a `Model`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fakes.models import Model, Shape
from vitrail_server.savedmodel.programs import predicted
from vitrail_server.servable import (
    DTYPES,
    Capabilities,
    Description,
    ModelSettings,
    Signature,
    Task,
    TensorSpec,
)
from vitrail_server.work import (
    GradientRows,
    Kind,
    Objective,
    OccludeRows,
    OutOfMemory,
    PredictRows,
    Result,
    Rows,
    Subject,
)

OUTPUT = "scores"


def describe(
    shape: Shape,
    elements: int,
    *,
    task: Task = "REGRESSION",
    dtype: str = "FP32",
    labels: Sequence[str] = (),
    probabilities: bool = False,
    fill: tuple[float, ...] = (0.0,),
    capabilities: Capabilities | None = None,
) -> Description:
    """Return the description of a version with one image input and one output, `OUTPUT`."""
    assert dtype in DTYPES
    return Description(
        name="fake",
        version=1,
        signature=Signature(
            inputs={"image": TensorSpec("image", dtype, (-1, *shape))},
            outputs={OUTPUT: TensorSpec(OUTPUT, "FP32", (-1, elements))},
        ),
        settings=ModelSettings(
            image_input="image",
            fill=fill,
            labels={OUTPUT: tuple(labels)} if labels else {},
            max_request_batch=8,
        ),
        task=task,
        probabilities=frozenset({OUTPUT} if probabilities else ()),
        output_elements={OUTPUT: elements},
        capabilities=capabilities or Capabilities(),
    )


class FakeProgram:
    """Computes a model on the caller's thread; out of memory above `fits` rows."""

    def __init__(
        self, model: Model, kind: Kind, batch_size: int = 8, seconds: float = 0.1, fits: int | None = None
    ) -> None:
        self.model = model
        self.kind = kind
        self.batch_size = batch_size
        self.seconds = seconds
        self.fits = fits
        self.batches: list[int] = []
        """The rows of every batch that was computed."""

    def execute(self, parts: Sequence[Rows]) -> list[Result]:
        rows = sum(len(part) for part in parts)
        assert 0 < rows <= self.batch_size
        if self.fits is not None and rows > self.fits:
            raise OutOfMemory
        self.batches.append(rows)
        return [compute(self.model, part) for part in parts]

    def halve(self) -> bool:
        if self.batch_size == 1:
            return False
        self.batch_size //= 2
        return True


def compute(model: Model, rows: Rows) -> Result:
    """Compute rows by the model's formulas."""
    if isinstance(rows, OccludeRows):
        outputs = [model.outputs(hidden(rows.subject, window)) for window in rows.windows.tolist()]
        return Result(np.array(outputs, np.float32))
    if isinstance(rows, PredictRows):
        (images,) = rows.inputs.values()
        outputs = [model.outputs(image.astype(np.float64)) for image in images]
        return predicted({OUTPUT: np.array(outputs, np.float32)}, len(rows))
    image = rows.subject.image.astype(np.float64)
    clean = model.outputs(image)
    gradients = [_gradient(model, rows, row, image, clean) for row in range(len(rows))]
    return Result(
        np.repeat(clean[None], len(rows), 0).astype(np.float32),
        np.array(gradients, np.float64).astype(np.float32),
    )


def hidden(subject: Subject, window: Sequence[int]) -> NDArray[np.float64]:
    """Return the subject's image with a window showing the fill."""
    top, left, bottom, right = window
    image = subject.image.astype(np.float64)
    if bottom > top and right > left:
        assert subject.fill is not None
        fill = np.broadcast_to(subject.fill, image.shape)
        image[top:bottom, left:right] = fill[top:bottom, left:right]
    return image


def _gradient(
    model: Model, rows: GradientRows, row: int, image: NDArray[np.float64], clean: NDArray[np.float64]
) -> NDArray[np.float64]:
    target = int(rows.targets[row])
    if target < 0:
        target = int(np.argsort(-clean, kind="stable")[-1 - target])
    slope = model.derivatives(image)[target]
    match rows.objective:
        case Objective.OUTPUT:
            return np.asarray(slope)
        case Objective.SQUARED_ERROR:
            return np.asarray(2 * (clean[target] - float(rows.values[row])) * slope)
        case Objective.CROSS_ENTROPY:
            return np.asarray(-slope / clean[target])
