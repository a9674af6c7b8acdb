"""How and where TensorFlow computes: its threads, its devices, and float32 that is float32."""

from contextlib import AbstractContextManager, nullcontext

import tensorflow as tf


def configure(intra_op: int, inter_op: int) -> None:
    """Set TensorFlow's threads within and across operations; 0 leaves the choice to TensorFlow.

    GPUs keep the whole precision of float32: maps are differences of numbers that are nearly equal.

    It takes effect only before the process has computed anything, so later calls must repeat the same.
    """
    threads = tf.config.threading
    if threads.get_intra_op_parallelism_threads() != intra_op:
        threads.set_intra_op_parallelism_threads(intra_op)
    if threads.get_inter_op_parallelism_threads() != inter_op:
        threads.set_inter_op_parallelism_threads(inter_op)
    tf.config.experimental.enable_tensor_float_32_execution(enabled=False)


def count_gpus() -> int:
    """Return how many GPUs TensorFlow can use; each takes memory as it is needed, not all there is at once.

    It has to be called before the process has computed anything, like `configure`.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        if not tf.config.experimental.get_memory_growth(gpu):
            tf.config.experimental.set_memory_growth(gpu, enable=True)
    return len(gpus)


def computing_on(device: str) -> AbstractContextManager[object]:
    """Let what this thread traces and computes within the block be on one device, by TensorFlow's name."""
    if len(tf.config.list_logical_devices()) == 1:
        return nullcontext()  # there is no choice
    place: AbstractContextManager[object] = tf.device(f"/device:{device}")
    return place


def accelerated() -> bool:
    """Whether what this thread computes now is computed by a device with memory of its own."""
    return "CPU" not in str(tf.constant(0).device)


def gpu_capability() -> tuple[int, int] | None:
    """Return the compute capability of the GPU on which this thread computes now; None on a CPU."""
    place = tf.DeviceSpec.from_string(tf.constant(0).device)
    if place.device_type != "GPU":
        return None
    gpu = tf.config.list_physical_devices("GPU")[place.device_index]
    major, minor = tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
    return major, minor


def settle_on(device: str) -> None:
    """Let whatever this thread computes from now on be on one device, as a device's own thread does."""
    computing_on(device).__enter__()
