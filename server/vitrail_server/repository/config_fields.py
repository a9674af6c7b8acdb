"""Which fields of Triton's config.pbtxt Vitrail honours, which it leaves unused and which it refuses.

`RULES` is the one list. A field is unused only if it tunes how Triton runs a model and cannot change an
answer or a promise made to clients; the operator is told. Everything else that is not honoured is refused
by name, since a model that silently behaves differently is worse than one that does not load.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from google.protobuf.message import Message

from vitrail.errors import InvalidArgument
from vitrail_server.kserve.v2.model_config_pb2 import ModelConfig


class Use(Enum):
    """What Vitrail does with a field that is set."""

    HONOURED = "honoured"
    UNUSED = "unused"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Rule:
    """The decision on one field."""

    use: Use
    why: str
    """What the field does here, why it may be left unused, or what to do instead."""


def _honoured(why: str) -> Rule:
    return Rule(Use.HONOURED, why)


def _unused(why: str) -> Rule:
    return Rule(Use.UNUSED, why)


def _refused(why: str) -> Rule:
    return Rule(Use.REFUSED, why)


_TENSORRT = "it is for TensorRT models"
_RESHAPE = "leave 'dims' and 'reshape' out: they are taken from the SavedModel"
_RATE = "leave it out: the server shares its device fairly among requests"

RULES: Mapping[str, Rule] = {
    "name": _honoured("equals the name of the directory"),
    "platform": _honoured("tensorflow_savedmodel or unset"),
    "backend": _honoured("tensorflow or unset"),
    "runtime": _refused("leave it out: there is one TensorFlow runtime"),
    "version_policy.latest.num_versions": _honoured("at least 1"),
    "version_policy.specific.versions": _honoured("versions that are absent are reported"),
    "max_batch_size": _honoured("the largest batch; 0: chosen by the server"),
    "input.name": _honoured("an input of the SavedModel"),
    "input.data_type": _honoured("that of the SavedModel"),
    "input.format": _honoured("FORMAT_NONE or FORMAT_NHWC"),
    "input.dims": _honoured("fit the SavedModel; may fix a free height and width"),
    "input.reshape": _refused(_RESHAPE),
    "input.is_shape_tensor": _refused(_TENSORRT),
    "input.allow_ragged_batch": _refused("every image of a batch has the same shape"),
    "input.optional": _refused("a SavedModel needs every input"),
    "input.is_non_linear_format_io": _refused(_TENSORRT),
    "output.name": _honoured("an output of the SavedModel; outputs that are not listed are not served"),
    "output.data_type": _honoured("that of the SavedModel"),
    "output.dims": _honoured("fit the SavedModel"),
    "output.label_filename": _honoured("one label per line and element"),
    "output.reshape": _refused(_RESHAPE),
    "output.is_shape_tensor": _refused(_TENSORRT),
    "output.is_non_linear_format_io": _refused(_TENSORRT),
    "batch_input": _refused("export the model so that it needs no input made from the batch"),
    "batch_output": _refused("export the model so that every output has a batch dimension"),
    "default_model_filename": _honoured("the SavedModel's name in the version's directory"),
    "cc_model_filenames": _refused("name the one SavedModel in 'default_model_filename'"),
    "parameters": _honoured("the keys 'vitrail.*'"),
    "dynamic_batching.preferred_batch_size": _honoured("1 to max_batch_size"),
    "dynamic_batching.max_queue_delay_microseconds": _honoured("how long a batch waits for more requests"),
    "dynamic_batching.preserve_ordering": _honoured("replies leave in the order of their requests"),
    "dynamic_batching.priority_levels": _honoured("1 is the most urgent"),
    "dynamic_batching.default_priority_level": _honoured("1 to priority_levels"),
    "dynamic_batching.default_queue_policy": _honoured("how long requests may wait, and how many"),
    "dynamic_batching.priority_queue_policy": _honoured("the same for one priority"),
    "sequence_batching": _refused("every request stands alone"),
    "ensemble_scheduling": _refused("export one SavedModel that contains all steps"),
    "instance_group.name": _honoured("its name in messages"),
    "instance_group.kind": _honoured("KIND_AUTO, KIND_CPU or KIND_GPU"),
    "instance_group.count": _honoured(
        "not negative; the instances of a device are one, however many it says"
    ),
    "instance_group.gpus": _honoured("the devices, by number"),
    "instance_group.host_policy": _unused("the operating system places the server's threads"),
    "instance_group.rate_limiter": _refused(_RATE),
    "instance_group.secondary_devices": _refused(_TENSORRT),
    "instance_group.profile": _refused(_TENSORRT),
    "instance_group.passive": _refused("leave it out: an instance that takes no requests serves nothing"),
    "optimization.graph": _unused("the graph is optimized as far as it pays on this machine"),
    "optimization.priority": _unused("the priority is part of each request"),
    "optimization.cuda": _unused("programs are compiled by TensorFlow"),
    "optimization.execution_accelerators": _refused("leave it out: they change the model's numbers"),
    "optimization.input_pinned_memory": _unused("TensorFlow manages the device's memory"),
    "optimization.output_pinned_memory": _unused("TensorFlow manages the device's memory"),
    "optimization.gather_kernel_buffer_threshold": _unused("batches are gathered by the server"),
    "optimization.eager_batching": _unused("the next batch is always prepared while one runs"),
    "metric_tags": _unused("metrics have the labels that docs/metrics.md lists"),
    "model_metrics": _unused("metrics have the buckets that docs/metrics.md lists"),
    "model_warmup": _honoured("inferences answered before a version is AVAILABLE"),
    "model_operations": _refused("export the model with TensorFlow's own operations"),
    "model_transaction_policy.decoupled": _refused("a SavedModel answers every request once"),
    "model_repository_agents": _refused("prepare the files before they come into the repository"),
    "response_cache.enable": _refused("leave it out: replies are not cached"),
}
"""The decision on every field, by path. A message without a rule of its own has rules for its fields;
setting such a message without any of its fields says nothing and is accepted."""


def check_fields(config: ModelConfig) -> tuple[str, ...]:
    """Return a note on every field that is set and not used.

    Raises:
        InvalidArgument: a field is set that Vitrail does not support.

    """
    notes: dict[str, None] = {}
    for path in _paths_set(config, ""):
        rule = RULES[path]
        if rule.use is Use.REFUSED:
            raise InvalidArgument(f"'{path}' is not supported: {rule.why}", field=path)
        if rule.use is Use.UNUSED:
            notes[f"'{path}' is not used: {rule.why}"] = None
    return tuple(notes)


def _paths_set(message: Message, prefix: str) -> Iterator[str]:
    """Yield the path of every field that is set, down to those that have a rule."""
    for field, value in message.ListFields():
        path = prefix + field.name
        if path in RULES or field.message_type is None:
            yield path
        else:
            for part in [value] if isinstance(value, Message) else value:
                yield from _paths_set(part, path + ".")
