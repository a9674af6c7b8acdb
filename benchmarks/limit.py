"""The suite `limit`: what TensorFlow itself makes of the models on one core.

The suite `serving` is held against this; nothing here has a target.
"""

from collections.abc import Iterator, Sequence

from benchmarks.figures import Figure, measured, rounded
from benchmarks.raw import Raw
from benchmarks.sides import Needs, Sides
from benchmarks.timing import Cost

SUITE = "limit"

NEEDS = Needs()


def measure(sides: Sides) -> Iterator[Figure]:
    """Yield the figures of every model."""
    for model in dict.fromkeys(case.model for case in sides.scale.cases if case.limits):
        yield from _forwards(sides, model)
        yield from _gradients(sides, model)


def _forwards(sides: Sides, model: str) -> Iterator[Figure]:
    raw, scale = sides.raw, sides.scale
    frozen: dict[int, list[Cost]] = {size: [] for size in scale.batch_sizes}
    signature: dict[int, list[Cost]] = {size: [] for size in scale.batch_sizes}
    for _ in range(scale.rounds):
        for size in scale.batch_sizes:
            frozen[size].append(raw.call(Raw.forward, model, "frozen", size, scale.seconds))
            signature[size].append(raw.call(Raw.forward, model, "signature", size, scale.seconds))
    for size, costs in frozen.items():
        how = f"forwards in batches of {size}, the graph that the server runs: frozen and optimised"
        yield _rate(model, f"forward_frozen_batch_{size}", costs, how)
    for size, costs in signature.items():
        how = f"forwards in batches of {size}, the signature as it was exported"
        yield _rate(model, f"forward_signature_batch_{size}", costs, how)

    best = min(scale.batch_sizes, key=lambda size: min(each.known_seconds for each in frozen[size]))
    yield measured(
        SUITE,
        "frozen_over_signature",
        model,
        _ratios(signature[best], frozen[best]),
        how=f"images per second of the frozen graph over those of the signature, in batches of {best}",
    )
    patch = next(case.patch for case in scale.cases if case.model == model)
    hiding = raw.call(Raw.hide_windows, sides.images(model, 1)[0], patch, 1000)
    yield measured(
        SUITE,
        "evaluation",
        model,
        [1000 * each.seconds for each in frozen[best]],
        unit="ms",
        how=f"what one window of an occlusion costs: one image's share of a frozen forward of {best}",
        detail={
            "batch": best,
            "processor_ms": rounded(1000 * min(each.known_seconds for each in frozen[best])),
            "hiding_the_window_ms": rounded(1000 * hiding.seconds),
        },
    )


def _gradients(sides: Sides, model: str) -> Iterator[Figure]:
    raw, scale = sides.raw, sides.scale
    forwards: list[Cost] = []
    gradients: dict[int, list[Cost]] = {size: [] for size in scale.gradient_batch_sizes}
    rewritten: list[Cost] = []
    for _ in range(scale.rounds):
        forwards.append(raw.call(Raw.forward, model, "signature", 1, scale.seconds))
        for size, costs in gradients.items():
            costs.append(raw.call(Raw.gradient, model, size, scale.seconds))
        if scale.rewritten:
            rewritten.append(raw.call(Raw.rewritten_gradient, model, 1, scale.seconds))
    for size, costs in gradients.items():
        how = f"forwards and backwards in batches of {size}, compiled, on the signature"
        yield _rate(model, f"gradient_batch_{size}", costs, how)
    yield measured(
        SUITE,
        "gradient_over_forward",
        model,
        _ratios(gradients[1], forwards),
        how="a compiled gradient over a forward, of one image, both on the signature",
    )
    if rewritten:
        yield measured(
            SUITE,
            "rewritten_gradient_over_gradient",
            model,
            _ratios(gradients[1], rewritten),
            how="gradients per second of the graph that the server makes of a compiled one, over its own",
        )


def _rate(model: str, name: str, costs: Sequence[Cost], how: str) -> Figure:
    return measured(
        SUITE,
        name,
        model,
        [1 / each.seconds for each in costs],
        unit="images/s",
        how=how,
        detail={"processor_ms_per_image": rounded(1000 * min(each.known_seconds for each in costs))},
    )


def _ratios(costs: Sequence[Cost], others: Sequence[Cost]) -> list[float]:
    return [one.seconds / other.seconds for one, other in zip(costs, others, strict=True)]
