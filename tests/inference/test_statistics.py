"""Statistics: what is counted, and that their number stays bounded."""

from vitrail_server.inference.statistics import RESPONSES, Statistics


def test_a_batch_is_counted_once_by_its_rows() -> None:
    statistics = Statistics()
    for rows in (3, 1, 3):
        statistics.executed(rows, 0.5)
    assert statistics.execution_count == 3
    assert {rows: each.compute_infer.count for rows, each in statistics.batches.items()} == {3: 2, 1: 1}
    assert statistics.batches[3].compute_infer.nanoseconds == 1_000_000_000


def test_a_request_is_counted_by_its_parts() -> None:
    statistics = Statistics()
    statistics.succeeded(4, 1.0, queue=0.25, decode=0.125, infer=0.5, encode=0.0625, now=1e9)
    statistics.failed(2.0)
    assert (statistics.inference_count, statistics.last_inference) == (4, 1e9)
    assert (statistics.success.count, statistics.success.nanoseconds) == (1, 1_000_000_000)
    assert (statistics.fail.count, statistics.fail.seconds) == (1, 2.0)
    parts = (statistics.queue, statistics.compute_input, statistics.compute_infer, statistics.compute_output)
    assert [each.seconds for each in parts] == [0.25, 0.125, 0.5, 0.0625]


def test_late_responses_are_counted_together() -> None:
    statistics = Statistics()
    for position in range(RESPONSES * 10):
        statistics.responded(position).success.add(0.0)
    assert len(statistics.responses) == RESPONSES
    assert statistics.responses[0].success.count == 1
    assert statistics.responses[RESPONSES - 1].success.count == RESPONSES * 9 + 1
