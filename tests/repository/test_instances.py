import pytest
from google.protobuf import text_format

from vitrail.errors import InvalidArgument
from vitrail_server.kserve.v2.model_config_pb2 import ModelConfig
from vitrail_server.repository.instances import devices_of, read_instances
from vitrail_server.servable import InstanceGroup


def read(text: str) -> tuple[InstanceGroup, ...]:
    return read_instances(text_format.Parse(text, ModelConfig()), "m")


def test_instance_groups_are_read() -> None:
    assert read("") == ()
    assert read("instance_group [ { } ]") == (InstanceGroup("AUTO", (), "m_0"),)
    text = """
        instance_group [
          { name: "a" count: 2 kind: KIND_GPU gpus: [ 1, 0 ] },
          { kind: KIND_CPU count: 3 },
          { kind: KIND_AUTO gpus: 2 }
        ]
    """
    assert read(text) == (
        InstanceGroup("GPU", (1, 0), "a"),
        InstanceGroup("CPU", (), "m_1"),
        InstanceGroup("AUTO", (2,), "m_2"),
    )


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        (
            "{ kind: KIND_MODEL gpus: 0 }",
            "gpus",
            "instance group m_0 of model m has kind KIND_MODEL but specifies one or more GPUs",
        ),
        (
            "{ kind: KIND_MODEL }",
            "kind",
            (
                "instance group m_0 of model m has a kind that is not supported; give KIND_AUTO, KIND_CPU or "
                "KIND_GPU"
            ),
        ),
        (
            '{ } instance_group { name: "c" kind: KIND_CPU gpus: 0 }',
            "gpus",
            "instance group c of model m has kind KIND_CPU but specifies one or more GPUs",
        ),
        ("{ count: -1 }", "count", "instance group m_0 of model m has count -1; it must not be negative"),
        (
            "{ kind: KIND_GPU gpus: [ 1, 1 ] }",
            "gpus",
            "instance group m_0 of model m must name each GPU once, by its number, counting from 0",
        ),
        (
            "{ gpus: -1 }",
            "gpus",
            "instance group m_0 of model m must name each GPU once, by its number, counting from 0",
        ),
        (
            '{ name: "a" } instance_group { name: "a" }',
            "name",
            "instance group a of model m is there twice",
        ),
    ],
)
def test_a_contradiction_is_refused(text: str, field: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read(f"instance_group {text}")
    assert (caught.value.message, caught.value.field) == (message, f"instance_group.{field}")


@pytest.mark.parametrize(
    ("text", "gpus", "devices"),
    [
        ("", 0, ("CPU:0",)),
        ("", 2, ("GPU:0", "GPU:1")),
        ("instance_group { count: 4 }", 0, ("CPU:0",)),
        ("instance_group { gpus: 1 }", 0, ("CPU:0",)),
        ("instance_group { gpus: 1 }", 2, ("GPU:1",)),
        ("instance_group { kind: KIND_CPU }", 2, ("CPU:0",)),
        ("instance_group { kind: KIND_GPU }", 2, ("GPU:0", "GPU:1")),
        ("instance_group { kind: KIND_GPU gpus: 1 count: 2 }", 2, ("GPU:1",)),
        (
            "instance_group [ { kind: KIND_GPU gpus: [ 1, 0 ] }, { kind: KIND_CPU }, { gpus: 1 } ]",
            3,
            ("GPU:1", "GPU:0", "CPU:0"),
        ),
    ],
)
def test_devices_are_those_of_all_groups_each_once(text: str, gpus: int, devices: tuple[str, ...]) -> None:
    assert devices_of(read(text), "m", gpus) == devices


@pytest.mark.parametrize(
    ("text", "gpus", "field", "message"),
    [
        (
            "instance_group { kind: KIND_GPU }",
            0,
            "instance_group.kind",
            "instance group m_0 of model m has kind KIND_GPU but no GPUs are available",
        ),
        (
            'instance_group { name: "fast" kind: KIND_GPU gpus: [ 0, 2 ] }',
            2,
            "instance_group.gpus",
            "instance group fast of model m specifies GPU 2, but the GPUs available are 0 to 1",
        ),
    ],
)
def test_gpus_that_are_not_there_are_refused(text: str, gpus: int, field: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        devices_of(read(text), "m", gpus)
    assert message in refused.value.message
    assert refused.value.field == field
