"""Whether occlusions of a version can be computed incrementally, judged when it is loaded."""

from collections.abc import Mapping

from vitrail_server.savedmodel.functions import Forward
from vitrail_server.savedmodel.incremental.graph import SizedGraph
from vitrail_server.savedmodel.incremental.plan import make_plan
from vitrail_server.savedmodel.incremental.preparations import obstacle_of, typical_grid
from vitrail_server.savedmodel.probe import Behaviour
from vitrail_server.servable import ImageSize, ModelSettings


def reason_against(
    settings: ModelSettings, behaviour: Behaviour, forward: Forward, frozen_reason: str
) -> str:
    """Return why no occlusion of a version is computed incrementally; empty if one may be."""
    if settings.incremental == "OFF":
        return "the configuration says so: vitrail.incremental is OFF"
    if behaviour.non_deterministic:
        return "the model answers differently every time, so nothing can be compared with it"
    if behaviour.batch_dependent:
        return "the answer for an image depends on the others in its batch"
    if behaviour.fixed_batch_size is not None:
        return (
            f"the signature takes batches of {behaviour.fixed_batch_size} only; export it with a free batch "
            "size"
        )
    if forward.flat is None:
        return f"forwards do not run on a frozen graph: {frozen_reason}"
    return ""


def typical_reason(graphs: Mapping[ImageSize, SizedGraph]) -> str:
    """Return why windows of an ordinary size do not gain; empty if they do for one of the image sizes."""
    reasons = []
    for size, graph in graphs.items():
        plan = make_plan(graph, typical_grid(size))
        if plan.worthwhile:
            return ""
        reasons.append(obstacle_of(plan))
    return reasons[0]
