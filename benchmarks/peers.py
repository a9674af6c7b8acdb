"""The suite `peers`: what a user could do instead, over what Vitrail's client gets for the same map.

Every value is how many times longer the other way takes; all sides on one core. Our maps evaluate every
window in full: incremental occlusions would make the comparison one of algorithms.
"""

from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.comparison import compared
from benchmarks.figures import Figure, Target
from benchmarks.models import APPLICATIONS
from benchmarks.raw import Raw
from benchmarks.rivals import PERTURBATIONS, Rivals
from benchmarks.scale import Case
from benchmarks.served import INFER_BATCHES, Image
from benchmarks.sides import Needs, Sides, say
from benchmarks.timing import Cost, best_batch

SUITE = "peers"

NEEDS = Needs(plain=lambda case: case.peers, libraries=True)

SLOWER = Target(1.0, at_most=False)

Peer = Callable[[], Cost]
"""Makes one whole map, or a part of one from which the whole is extrapolated."""


def measure(sides: Sides) -> Iterator[Figure]:
    """Yield the figures of every case that has peers."""
    for case in sides.scale.cases:
        if case.peers:
            yield from _figures(sides, case)


def _figures(sides: Sides, case: Case) -> Iterator[Figure]:
    """Let all sides take turns, beginning with another one in every round."""
    [image] = sides.images(case.model, 1)
    ours = sides.served.occlusion(case.model, image, case.patch)
    peers = {
        **_without_libraries(sides, case, image, ours.evaluations),
        **_libraries(sides, case, image, ours.answer),
    }
    sides_by_name: dict[str, Callable[[], Cost]] = {
        "": lambda: sides.served.occlusion(case.model, image, case.patch).cost,
        **{name: make for name, (make, _) in peers.items()},
    }
    names = list(sides_by_name)
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for turn in range(sides.scale.rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            say(f"{SUITE} {case.model} round {turn + 1}: {name or 'vitrail'}")
            costs[name].append(sides_by_name[name]())
    for name, (_, how) in peers.items():
        yield compared(
            SUITE,
            f"{name}_patch_{case.patch}",
            case.model,
            costs[name],
            costs[""],
            target=SLOWER,
            how=(
                f"{how}, over our served map of the same network and the same {ours.evaluations - 1} windows "
                f"of {case.patch} x {case.patch}, client to client"
            ),
        )


def _without_libraries(
    sides: Sides, case: Case, image: Image, evaluations: int
) -> dict[str, tuple[Peer, str]]:
    """Return the peers that need nothing but the server and TensorFlow, each with what it is."""
    raw, served, windows = sides.raw, sides.served, sides.scale.loop_windows
    extrapolated = f"extrapolated from {windows} windows a round"

    def notebook() -> Cost:
        return raw.call(Raw.predict_windows, case.model, image, case.patch, windows).times(evaluations)

    def infer(batch: int) -> Cost:
        some = max(windows, 2 * batch) // batch * batch
        return served.infer_windows(case.model, image, case.patch, some, batch).times(evaluations)

    theirs = raw.call(Raw.answer, case.model, image)
    ours = served.occlusion(case.model, image, image.shape[:2]).answer
    _same(case.model, "Keras", float(theirs[ours[0]]), ours[1])
    best = best_batch(infer, INFER_BATCHES)
    return {
        "notebook_loop": (
            notebook,
            f"the notebook's loop: model.predict for the image and each window, {extrapolated}",
        ),
        "infer_each": (
            lambda: infer(1),
            f"a client that sends every occluded image through ModelInfer to the same server, {extrapolated}",
        ),
        "infer_batches": (
            lambda: infer(best),
            f"the same in requests of {best} images, the best of those tried",
        ),
    }


def _libraries(
    sides: Sides, case: Case, image: Image, answer: tuple[int, float]
) -> dict[str, tuple[Peer, str]]:
    """Return the peers that are libraries; none where they are not measured, or not installed."""
    rivals = sides.rivals
    if rivals is None or case.model not in APPLICATIONS:
        return {}
    say(f"loading {case.model} for the peers' libraries")
    for library, output in rivals.call(Rivals.load, case.model, image).items():
        _same(case.model, library, output, answer[1])

    def captum(perturbations: int) -> Cost:
        return rivals.call(Rivals.captum, case.model, image, case.patch, perturbations)

    best = best_batch(captum, PERTURBATIONS)
    arguments = (case.model, image, case.patch)
    return {
        "tf_explain": (
            lambda: rivals.call(Rivals.tf_explain, *arguments),
            "tf-explain on the Keras model",
        ),
        "xplique": (lambda: rivals.call(Rivals.xplique, *arguments), "Xplique on the Keras model"),
        "captum": (
            lambda: captum(best),
            f"Captum on the same network in PyTorch, {best} perturbations at a time, the best of those tried",
        ),
    }


def _same(model: str, where: str, theirs: float, ours: float) -> None:
    """Make sure that the sides compute the same network.

    Raises:
        RuntimeError: they do not.

    """
    if not np.isclose(ours, theirs, rtol=1e-3):
        raise RuntimeError(
            f"{model} answers {ours:g} when served and {theirs:g} in {where}: delete build/benchmark-models, "
            "which another version of Keras has written"
        )
