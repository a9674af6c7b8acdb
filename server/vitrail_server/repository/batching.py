"""The `dynamic_batching` of a config.pbtxt in the scheduler's words, checked by Triton's rules."""

from vitrail.errors import InvalidArgument
from vitrail_server.kserve.v2 import model_config_pb2 as triton
from vitrail_server.servable import Batching, QueuePolicy

_FIELD = "dynamic_batching"
_MICROSECONDS = 1e6  # in a second


def read_batching(config: triton.ModelConfig, model: str) -> Batching | None:
    """Return how requests to the model are batched; None if the configuration does not say.

    Raises:
        InvalidArgument: what it says contradicts itself.

    """
    if config.WhichOneof("scheduling_choice") != _FIELD:
        return None
    message = config.dynamic_batching
    _check_preferred_sizes(message, config.max_batch_size, model)
    _check_priorities(message, model)
    if message.preserve_ordering:
        _check_ordering(message, model)
    return Batching(
        preferred_batch_sizes=tuple(sorted(set(message.preferred_batch_size))),
        max_queue_delay=message.max_queue_delay_microseconds / _MICROSECONDS,
        preserve_ordering=message.preserve_ordering,
        priority_levels=message.priority_levels,
        default_priority_level=message.default_priority_level,
        default_queue_policy=_queue_policy(message.default_queue_policy),
        priority_queue_policies={
            level: _queue_policy(policy) for level, policy in sorted(message.priority_queue_policy.items())
        },
    )


def _check_preferred_sizes(message: triton.ModelDynamicBatching, max_batch_size: int, model: str) -> None:
    for size in message.preferred_batch_size:
        if size < 1:
            raise _error(
                f"dynamic batching preferred size must be positive for {model}, not {size}",
                "preferred_batch_size",
            )
        # A largest batch that is not said is completed later, and is then large enough.
        if 0 < max_batch_size < size:
            raise _error(
                f"dynamic batching preferred size must be <= max batch size for {model}, "
                f"{size} is above {max_batch_size}",
                "preferred_batch_size",
            )


def _check_priorities(message: triton.ModelDynamicBatching, model: str) -> None:
    levels, default = message.priority_levels, message.default_priority_level
    if levels == 0:
        if default or message.priority_queue_policy:
            raise _error(
                f"'priority_levels' must be at least 1 for {model}, since the configuration speaks of "
                "priorities",
                "priority_levels",
            )
        return
    if not 1 <= default <= levels:
        raise _error(
            f"default priority level must be in range [1, {levels}] for {model}", "default_priority_level"
        )
    if any(not 1 <= level <= levels for level in message.priority_queue_policy):
        raise _error(
            f"priority queue policy must have priority level in range [1, {levels}] for {model}",
            "priority_queue_policy",
        )


def _check_ordering(message: triton.ModelDynamicBatching, model: str) -> None:
    if message.priority_levels > 1:
        raise _error(
            f"Only one priority level is allowed when 'preserve_ordering' is true for {model}",
            "priority_levels",
        )
    for policy in (message.default_queue_policy, *message.priority_queue_policy.values()):
        if policy.timeout_action == triton.ModelQueuePolicy.DELAY and policy.default_timeout_microseconds:
            raise _error(
                "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for "
                + model,
                "preserve_ordering",
            )


def _queue_policy(policy: triton.ModelQueuePolicy) -> QueuePolicy:
    return QueuePolicy(
        timeout_action="DELAY" if policy.timeout_action == triton.ModelQueuePolicy.DELAY else "REJECT",
        default_timeout=policy.default_timeout_microseconds / _MICROSECONDS,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )


def _error(message: str, field: str) -> InvalidArgument:
    return InvalidArgument(message, field=f"{_FIELD}.{field}")
