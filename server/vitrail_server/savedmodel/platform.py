"""How TensorFlow computes: its threads, and float32 that is float32."""

import tensorflow as tf


def configure(intra_op: int, inter_op: int) -> None:
    """Set TensorFlow's threads within and across operations; 0 leaves the choice to TensorFlow.

    GPUs keep the whole precision of float32: maps are differences of numbers that are nearly equal.

    It takes effect only before the process has computed anything, so later calls must repeat the same.
    """
    threading = tf.config.threading
    if threading.get_intra_op_parallelism_threads() != intra_op:
        threading.set_intra_op_parallelism_threads(intra_op)
    if threading.get_inter_op_parallelism_threads() != inter_op:
        threading.set_inter_op_parallelism_threads(inter_op)
    tf.config.experimental.enable_tensor_float_32_execution(enabled=False)
