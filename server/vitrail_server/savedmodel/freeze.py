"""Turns a forward with variables into one with constants: nested calls inlined, batch norm folded.

Same numbers, up to rounding; 3 to 25 per cent faster, most where a network has many small layers. It costs
a second copy of the weights and, while it is being made, several more: hence the limit.
"""

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from vitrail_server.savedmodel.functions import Forward
from vitrail_server.savedmodel.probe import Behaviour, Run, Sample, answers, same
from vitrail_server.wording import reason_of

LARGEST_WEIGHTS = 256 * 2**20
"""Bytes. Freezing 553 MB of weights peaked at 12 GB."""


def freeze(
    forward: Forward, weights: int, behaviour: Behaviour, sample: Sample, run: Run
) -> tuple[Forward, str]:
    """Return a forward that computes the same from constants, or the one given and why it stays.

    `weights` are the bytes of its variables. Takes seconds on the calling thread, then runs one batch of
    each form to compare them.
    """
    if weights > LARGEST_WEIGHTS:
        return forward, (
            f"the weights have {weights // 2**20} MiB, and at most {LARGEST_WEIGHTS // 2**20} MiB are frozen"
        )
    if behaviour.non_deterministic:
        return forward, "the model answers differently every time, so nothing can be compared with it"
    try:
        concrete = convert_variables_to_constants_v2(forward.concrete, lower_control_flow=False)
    except Exception as error:  # noqa: BLE001 - whatever it is, the variables still work
        return forward, f"TensorFlow cannot freeze the graph: {reason_of(error)}"
    if len(concrete.inputs) != len(forward.inputs):
        return forward, "the frozen graph has other inputs: a table, for example, cannot become a constant"
    frozen = Forward(concrete, forward.inputs, forward.outputs, keep=None)
    expected = answers(forward, behaviour.elements, sample, behaviour.trial, run)
    try:
        found = answers(frozen, behaviour.elements, sample, behaviour.trial, run)
    except tf.errors.OpError as error:
        return forward, f"the frozen graph fails: {reason_of(error)}"
    if not same(expected, found):
        return forward, "the frozen graph gives other outputs than the signature"
    return frozen, ""
