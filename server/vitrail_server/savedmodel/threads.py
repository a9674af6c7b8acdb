"""How many threads TensorFlow computes with."""

import tensorflow as tf


def use_threads(intra_op: int, inter_op: int) -> None:
    """Set TensorFlow's threads within and across operations; 0 leaves the choice to TensorFlow.

    It takes effect only before the process has computed anything, so later calls must repeat the same.
    """
    threading = tf.config.threading
    if threading.get_intra_op_parallelism_threads() != intra_op:
        threading.set_intra_op_parallelism_threads(intra_op)
    if threading.get_inter_op_parallelism_threads() != inter_op:
        threading.set_inter_op_parallelism_threads(inter_op)
