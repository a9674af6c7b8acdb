"""Questions about closed-form models, with everything filled in that a test does not name."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fakes.models import Model
from fakes.servables import OUTPUT, describe
from vitrail_server.explainers.question import AllTargets, Limits, Question, TopK
from vitrail_server.servable import Capabilities, Task
from vitrail_server.work import Objective


def ask(
    model: Model,
    image: NDArray[np.generic],
    *,
    targets: tuple[int | str, ...] | TopK | AllTargets | None = None,
    objective: Objective = Objective.OUTPUT,
    values: tuple[float, ...] = (),
    limits: Limits | None = None,
    task: Task = "REGRESSION",
    dtype: str = "FP32",
    labels: Sequence[str] = (),
    probabilities: bool = False,
    fill: tuple[float, ...] = (0.0,),
    capabilities: Capabilities | None = None,
) -> Question:
    """Return a question about `image` (h, w, c)."""
    return Question(
        description=describe(
            model.shape,
            model.elements,
            task=task,
            dtype=dtype,
            labels=labels,
            probabilities=probabilities,
            fill=fill,
            capabilities=capabilities,
        ),
        image=image,
        output=OUTPUT,
        targets=targets,
        objective=objective,
        values=values,
        limits=limits or Limits(),
    )
