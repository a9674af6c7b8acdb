from collections.abc import Iterator

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor

from vitrail.errors import InvalidArgument
from vitrail_server.kserve.v2.model_config_pb2 import ModelConfig
from vitrail_server.repository.config_fields import RULES, Use, check_fields


def leaves(message: Descriptor, prefix: str = "") -> Iterator[str]:
    """Every path down to a rule or to a field without fields of its own."""
    for field in message.fields:
        path = prefix + field.name
        if path in RULES or field.message_type is None:
            yield path
        elif field.message_type.fields:
            yield from leaves(field.message_type, path + ".")


def test_every_field_of_the_configuration_has_a_rule() -> None:
    assert set(leaves(ModelConfig.DESCRIPTOR)) == set(RULES)


EXAMPLES = {
    "runtime": 'runtime: "x"',
    "input.reshape": "input { reshape { shape: [] } }",
    "input.is_shape_tensor": "input { is_shape_tensor: true }",
    "input.allow_ragged_batch": "input { } input { allow_ragged_batch: true }",
    "input.optional": "input { optional: true }",
    "input.is_non_linear_format_io": "input { is_non_linear_format_io: true }",
    "output.reshape": "output { reshape { shape: 1 } }",
    "output.is_shape_tensor": "output { is_shape_tensor: true }",
    "output.is_non_linear_format_io": "output { is_non_linear_format_io: true }",
    "batch_input": 'batch_input { kind: BATCH_ITEM_SHAPE target_name: "x" }',
    "batch_output": 'batch_output { target_name: "x" }',
    "cc_model_filenames": 'cc_model_filenames { key: "7.5" value: "x" }',
    "sequence_batching": "sequence_batching { direct { } }",
    "ensemble_scheduling": 'ensemble_scheduling { step { model_name: "x" } }',
    "instance_group.rate_limiter": "instance_group { rate_limiter { priority: 2 } }",
    "instance_group.secondary_devices": "instance_group { secondary_devices { device_id: 1 } }",
    "instance_group.profile": 'instance_group { profile: "1" }',
    "instance_group.passive": "instance_group { passive: true }",
    "optimization.execution_accelerators": (
        'optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }'
    ),
    "model_operations": 'model_operations { op_library_filename: "x.so" }',
    "model_transaction_policy.decoupled": "model_transaction_policy { decoupled: true }",
    "model_repository_agents": 'model_repository_agents { agents { name: "checksum" } }',
    "response_cache.enable": "response_cache { enable: true }",
}


def test_there_is_an_example_of_every_refused_field() -> None:
    assert set(EXAMPLES) == {path for path, rule in RULES.items() if rule.use is Use.REFUSED}


@pytest.mark.parametrize("path", EXAMPLES)
def test_a_field_that_is_not_supported_is_refused_by_name(path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_fields(text_format.Parse(EXAMPLES[path], ModelConfig()))
    assert caught.value.message == f"'{path}' is not supported: {RULES[path].why}"
    assert caught.value.field == path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "response_cache { enable: false }",
        "model_transaction_policy { decoupled: false }",
        "dynamic_batching { }",
        "input { allow_ragged_batch: false }",
        "version_policy { all { } }",
        "version_policy { specific { versions: [1, 3] } }",
        'name: "m" max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: [2] format: FORMAT_NHWC }',
    ],
)
def test_a_field_at_its_default_says_nothing(text: str) -> None:
    assert check_fields(text_format.Parse(text, ModelConfig())) == ()


def test_a_field_that_is_not_used_is_noted_once() -> None:
    text = """
        instance_group [ { host_policy: "a" }, { host_policy: "b" } ]
        optimization { graph { level: 1 } }
    """
    assert check_fields(text_format.Parse(text, ModelConfig())) == tuple(
        f"'{path}' is not used: {RULES[path].why}"
        for path in (
            "instance_group.host_policy",
            "optimization.graph",
        )
    )
