import pytest
from google.protobuf import text_format

from vitrail.errors import InvalidArgument
from vitrail_server.kserve.v2.model_config_pb2 import ModelConfig
from vitrail_server.repository.batching import read_batching
from vitrail_server.servable import Batching, QueuePolicy


def read(text: str) -> Batching | None:
    return read_batching(text_format.Parse(text, ModelConfig()), "m")


def test_what_is_not_said_is_unset() -> None:
    assert read("max_batch_size: 4") is None
    assert read("dynamic_batching { }") == Batching()


def test_everything_that_can_be_said() -> None:
    batching = read("""
        max_batch_size: 8
        dynamic_batching {
          preferred_batch_size: [ 8, 4, 4 ]
          max_queue_delay_microseconds: 2500
          priority_levels: 3
          default_priority_level: 2
          default_queue_policy {
            timeout_action: DELAY
            default_timeout_microseconds: 1000000
            allow_timeout_override: true
            max_queue_size: 5
          }
          priority_queue_policy { key: 3 value { max_queue_size: 1 } }
          priority_queue_policy { key: 1 value { default_timeout_microseconds: 500 } }
        }
    """)
    assert batching == Batching(
        preferred_batch_sizes=(4, 8),
        max_queue_delay=0.0025,
        priority_levels=3,
        default_priority_level=2,
        default_queue_policy=QueuePolicy("DELAY", 1.0, allow_timeout_override=True, max_queue_size=5),
        priority_queue_policies={
            1: QueuePolicy(default_timeout=0.0005),
            3: QueuePolicy(max_queue_size=1),
        },
    )


def test_ordering_with_one_priority_and_no_delay() -> None:
    batching = read("""
        dynamic_batching {
          preserve_ordering: true
          priority_levels: 1
          default_priority_level: 1
          default_queue_policy { timeout_action: DELAY }
        }
    """)
    assert batching is not None
    assert batching.preserve_ordering


def test_a_preferred_size_needs_no_largest_batch() -> None:
    assert read("dynamic_batching { preferred_batch_size: 32 }") == Batching(preferred_batch_sizes=(32,))


DELAYED = "{ timeout_action: DELAY default_timeout_microseconds: 1 }"
ONE_LEVEL = "priority_levels: 1 default_priority_level: 1"
NO_DELAY = "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for m"


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        (
            "preferred_batch_size: [ 4, 0 ]",
            "preferred_batch_size",
            "dynamic batching preferred size must be positive for m, not 0",
        ),
        (
            "preferred_batch_size: 9",
            "preferred_batch_size",
            "dynamic batching preferred size must be <= max batch size for m, 9 is above 8",
        ),
        (
            "priority_levels: 2",
            "default_priority_level",
            "default priority level must be in range [1, 2] for m",
        ),
        (
            "priority_levels: 2 default_priority_level: 3",
            "default_priority_level",
            "default priority level must be in range [1, 2] for m",
        ),
        (
            "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 0 }",
            "priority_queue_policy",
            "priority queue policy must have priority level in range [1, 2] for m",
        ),
        (
            "priority_queue_policy { key: 1 }",
            "priority_levels",
            "'priority_levels' must be at least 1 for m, since the configuration speaks of priorities",
        ),
        (
            "default_priority_level: 1",
            "priority_levels",
            "'priority_levels' must be at least 1 for m, since the configuration speaks of priorities",
        ),
        (
            "preserve_ordering: true priority_levels: 2 default_priority_level: 1",
            "priority_levels",
            "Only one priority level is allowed when 'preserve_ordering' is true for m",
        ),
        (f"preserve_ordering: true default_queue_policy {DELAYED}", "preserve_ordering", NO_DELAY),
        (
            f"preserve_ordering: true {ONE_LEVEL} priority_queue_policy {{ key: 1 value {DELAYED} }}",
            "preserve_ordering",
            NO_DELAY,
        ),
    ],
)
def test_a_contradiction_is_refused(text: str, field: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read(f"max_batch_size: 8 dynamic_batching {{ {text} }}")
    assert caught.value.message == message
    assert caught.value.field == f"dynamic_batching.{field}"
