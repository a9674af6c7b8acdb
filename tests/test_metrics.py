import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fakes.models import Linear, picture, weights
from fakes.runs import CostedProgram, CountedRun
from fakes.serving import Gate, Offer, served
from repository.fakes import FakeLane, FakeServable, OneLife
from rpc.messages import occlusion, refused, spec, whole
from vitrail.v1 import explanation_pb2 as pb
from vitrail_server.events import BatchExecuted, ExplanationEnded, InferenceEnded
from vitrail_server.metrics import OUTCOMES, Metrics, memory_limit
from vitrail_server.repository.lifecycle import Lanes, Version
from vitrail_server.repository.state import State
from vitrail_server.runtime.device import Device, Submission
from vitrail_server.servable import Servable
from vitrail_server.work import Kind, OutOfMemory, Result, Rows

ENDED = ExplanationEnded(
    request_id="r",
    model="m",
    version=3,
    method="occlusion",
    outcome="complete",
    urgency="default",
    seconds=2.0,
    first_tile_seconds=0.5,
    decode_seconds=0.125,
    queue_seconds=0.25,
    device_seconds=1.0,
    write_seconds=0.0625,
    execution="full",
    announced=50,
    done=40,
    skipped=10,
    dropped=0,
    tiles=7,
)
OF = {"model": "m", "version": "3", "method": "occlusion"}
SHAPE = (4, 6, 1)
REFUSED = replace(
    ENDED,
    model="",
    version=0,
    method="",
    outcome="not_found",
    urgency=None,
    first_tile_seconds=None,
    decode_seconds=None,
    queue_seconds=None,
    device_seconds=None,
    write_seconds=None,
    execution="",
    announced=0,
    done=0,
    skipped=0,
    tiles=0,
)


def serving(*versions: tuple[str, int]) -> Metrics:
    """Return metrics that know some versions, which are AVAILABLE."""
    metrics = Metrics()
    for name, number in versions:
        metrics.model_state(name, number, State.AVAILABLE, "")
    return metrics


def value(metrics: Metrics, name: str, labels: Mapping[str, str] | None = None) -> float | None:
    """Return one sample; None where there is none."""
    return metrics.registry.get_sample_value(name, dict(labels or {}))


def label_sets(metrics: Metrics) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    return {
        (sample.name, frozenset(sample.labels.items()))
        for family in metrics.registry.collect()
        for sample in family.samples
    }


def test_an_explanation_is_counted_in_every_metric_of_its_version() -> None:
    metrics = serving(("m", 3))
    metrics.explanation_started()
    metrics.explanation_ended(ENDED, admitted=True)

    assert value(metrics, "vitrail_explanations_total", {**OF, "outcome": "complete"}) == 1
    assert value(metrics, "vitrail_explanations_in_flight") == 0
    assert value(metrics, "vitrail_explanation_duration_seconds_sum", OF) == 2
    assert value(metrics, "vitrail_explanation_first_tile_seconds_sum", OF) == 0.5
    assert value(metrics, "vitrail_explanation_plans_total", {**OF, "execution": "full"}) == 1
    assert value(metrics, "vitrail_explanation_announced_evaluations_total", OF) == 50
    assert value(metrics, "vitrail_explanation_evaluations_total", {**OF, "result": "done"}) == 40
    assert value(metrics, "vitrail_explanation_evaluations_total", {**OF, "result": "skipped"}) == 10
    assert value(metrics, "vitrail_explanation_evaluations_total", {**OF, "result": "dropped"}) == 0
    assert value(metrics, "vitrail_explanation_tiles_total", OF) == 7
    assert value(metrics, "vitrail_queue_wait_seconds_sum", {"priority": "default"}) == 0.25


@pytest.mark.parametrize(
    ("stage", "seconds"), [("decode", 0.125), ("queue", 0.25), ("device", 1.0), ("write", 0.0625)]
)
def test_each_stage_has_its_own_series(stage: str, seconds: float) -> None:
    metrics = serving(("m", 3))
    metrics.explanation_ended(ENDED, admitted=False)

    assert value(metrics, "vitrail_explanation_stage_duration_seconds_sum", {**OF, "stage": stage}) == seconds


def test_a_refused_explanation_is_counted_without_stages_and_never_was_in_flight() -> None:
    metrics = serving(("m", 3))
    metrics.explanation_ended(REFUSED, admitted=False)

    nobody = {"model": "", "version": "", "method": ""}
    assert value(metrics, "vitrail_explanations_total", {**nobody, "outcome": "not_found"}) == 1
    assert value(metrics, "vitrail_explanations_in_flight") == 0
    assert not [name for name, _ in label_sets(metrics) if "stage" in name or "first_tile_seconds_" in name]


def test_an_explanation_that_outlives_its_version_is_counted_without_it() -> None:
    """The map may still be read when the last row is computed, the handle closed and the version gone."""
    metrics = serving(("m", 3))
    metrics.model_state("m", 3, State.UNLOADING, "")
    metrics.model_state("m", 3, State.END, "unloaded")
    metrics.explanation_ended(ENDED, admitted=False)

    assert value(metrics, "vitrail_explanations_total", {**OF, "outcome": "complete"}) is None
    nobody = {**OF, "model": "", "version": "", "outcome": "complete"}
    assert value(metrics, "vitrail_explanations_total", nobody) == 1


def test_a_version_that_comes_back_is_counted_again() -> None:
    metrics = serving(("m", 3))
    metrics.explanation_ended(ENDED, admitted=False)
    metrics.model_state("m", 3, State.END, "unloaded")
    metrics.model_state("m", 3, State.AVAILABLE, "")
    metrics.explanation_ended(ENDED, admitted=False)

    assert value(metrics, "vitrail_explanations_total", {**OF, "outcome": "complete"}) == 1


def test_counters_of_a_version_begin_at_zero_for_every_outcome() -> None:
    metrics = Metrics()
    metrics.offered(("gradient", "occlusion"), 64, 1024)
    metrics.model_state("m", 3, State.LOADING, "")
    before = value(metrics, "vitrail_explanations_total", {**OF, "outcome": "internal"})
    metrics.model_state("m", 3, State.AVAILABLE, "")

    assert before is None
    for outcome in OUTCOMES:
        assert value(metrics, "vitrail_explanations_total", {**OF, "outcome": outcome}) == 0
        nobody = {"model": "", "version": "", "method": "", "outcome": outcome}
        assert value(metrics, "vitrail_explanations_total", nobody) == 0
    assert value(metrics, "vitrail_explanation_evaluations_total", {**OF, "result": "dropped"}) == 0
    assert value(metrics, "vitrail_explanations_limit") == 64


def test_batches_are_counted_by_program() -> None:
    metrics = Metrics()
    metrics.device_added("GPU:1")
    metrics.batch_executed(BatchExecuted(Kind.FORWARD, rows=5, size=8, seconds=0.25, device="GPU:1"))
    metrics.batch_failed(Kind.FORWARD, out_of_memory=True)
    metrics.batch_failed(Kind.GRADIENT, out_of_memory=False)
    metrics.rows_dropped(Kind.FORWARD, 2)
    metrics.queue_changed(4, 2)

    occlude, gradient = {"program": "forward"}, {"program": "gradient"}
    assert value(metrics, "vitrail_batch_rows_sum", occlude) == 5
    assert value(metrics, "vitrail_batch_rows_bucket", {**occlude, "le": "4.0"}) == 0
    assert value(metrics, "vitrail_batch_rows_bucket", {**occlude, "le": "8.0"}) == 1
    assert value(metrics, "vitrail_batch_padding_rows_total", occlude) == 3
    assert value(metrics, "vitrail_batch_duration_seconds_sum", {**occlude, "device": "GPU:1"}) == 0.25
    assert value(metrics, "vitrail_batch_duration_seconds_count", {**gradient, "device": "GPU:1"}) == 0
    assert value(metrics, "vitrail_batch_dropped_rows_total", occlude) == 2
    assert value(metrics, "vitrail_batch_dropped_rows_total", gradient) == 0
    assert value(metrics, "vitrail_batch_failures_total", {**occlude, "reason": "out_of_memory"}) == 1
    assert value(metrics, "vitrail_batch_failures_total", {**gradient, "reason": "error"}) == 1
    assert value(metrics, "vitrail_batch_failures_total", {**gradient, "reason": "out_of_memory"}) == 0
    assert value(metrics, "vitrail_queue_depth") == 4
    assert value(metrics, "vitrail_batches_in_flight") == 2


def test_rpcs_are_counted_by_the_parts_of_their_method() -> None:
    metrics = Metrics()
    method, kind = "/vitrail.v1.ExplanationService/ExplainTiles", "unary_stream"
    metrics.rpc_started(method, kind)
    metrics.message_received(method, kind)
    metrics.message_sent(method, kind)
    metrics.message_sent(method, kind)
    metrics.rpc_handled(method, kind, "OK", 1.5)

    of = {
        "grpc_type": "unary_stream",
        "grpc_service": "vitrail.v1.ExplanationService",
        "grpc_method": "ExplainTiles",
    }
    assert value(metrics, "grpc_server_started_total", of) == 1
    assert value(metrics, "grpc_server_handled_total", {**of, "grpc_code": "OK"}) == 1
    assert value(metrics, "grpc_server_msg_received_total", of) == 1
    assert value(metrics, "grpc_server_msg_sent_total", of) == 2
    assert value(metrics, "grpc_server_handling_seconds_sum", of) == 1.5


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.004, "0.005"), (0.3, "0.5"), (45.0, "60.0"), (290.0, "300.0")]
)
def test_buckets_tell_times_from_milliseconds_to_minutes_apart(seconds: float, bucket: str) -> None:
    metrics = serving(("m", 3))
    metrics.explanation_ended(replace(ENDED, seconds=seconds), admitted=False)

    name = "vitrail_explanation_duration_seconds_bucket"
    counts = {
        sample.labels["le"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }
    assert [bound for bound, count in counts.items() if count == 0] == list(counts)[
        : list(counts).index(bucket)
    ]


def test_a_version_shows_the_one_state_that_it_is_in() -> None:
    metrics = Metrics()
    for state in (State.START, State.LOADING, State.AVAILABLE):
        metrics.model_state("m", 3, state, "")
        shown = {
            each: value(metrics, "vitrail_model_state", {"model": "m", "version": "3", "state": each})
            for each in State
        }
        assert shown == {each: float(each is state) for each in State}


def test_the_memory_of_a_version_goes_with_it() -> None:
    metrics = serving(("m", 3))
    of = {"model": "m", "version": "3"}
    metrics.model_memory("m", 3, 1 << 20)
    assert value(metrics, "vitrail_model_memory_bytes", of) == 1 << 20
    metrics.model_state("m", 3, State.END, "unloaded")
    assert value(metrics, "vitrail_model_memory_bytes", of) is None


def test_a_version_that_failed_to_load_shows_its_end_until_it_is_loaded_again() -> None:
    metrics = Metrics()
    end = {"model": "m", "version": "3", "state": "END"}
    metrics.model_state("m", 3, State.LOADING, "")
    metrics.load_finished("m", 3, 1.0, ok=False)
    metrics.model_state("m", 3, State.END, "no signature")
    assert value(metrics, "vitrail_model_state", end) == 1
    assert (
        value(metrics, "vitrail_model_load_duration_seconds_count", {"model": "m", "outcome": "failed"}) == 1
    )

    metrics.model_state("m", 3, State.LOADING, "")
    metrics.load_finished("m", 3, 1.0, ok=True)
    metrics.model_state("m", 3, State.AVAILABLE, "")
    assert value(metrics, "vitrail_model_state", end) == 0


def test_a_version_that_failed_while_it_was_being_unloaded_is_forgotten() -> None:
    metrics = Metrics()
    before = label_sets(metrics)
    for state in (State.START, State.LOADING, State.UNLOADING):
        metrics.model_state("m", 3, state, "")
    metrics.load_finished("m", 3, 1.0, ok=False)
    metrics.model_state("m", 3, State.END, "unloaded")

    assert label_sets(metrics) == before


def test_a_model_that_could_not_be_served_is_shown_until_one_of_its_versions_is() -> None:
    metrics = Metrics()
    metrics.model_refused("m", "a fault")
    metrics.model_refused("n", "a fault")
    assert value(metrics, "vitrail_model_refused", {"model": "m"}) == 1
    metrics.model_state("m", 1, State.START, "")

    assert value(metrics, "vitrail_model_refused", {"model": "m"}) is None
    assert value(metrics, "vitrail_model_refused", {"model": "n"}) == 1


def test_a_version_that_failed_is_shown_until_it_is_forgotten() -> None:
    metrics = serving(("m", 1))
    for state in (State.START, State.LOADING):
        metrics.model_state("m", 2, state, "")
    metrics.load_finished("m", 2, 1.0, ok=False)
    metrics.model_state("m", 2, State.END, "broken")
    end = {"model": "m", "version": "2", "state": "END"}
    assert value(metrics, "vitrail_model_state", end) == 1
    metrics.version_forgotten("m", 2)

    assert value(metrics, "vitrail_model_state", end) is None


def test_a_version_whose_replacement_failed_is_still_shown_as_available() -> None:
    metrics = serving(("m", 1))
    metrics.load_finished("m", 1, 1.0, ok=False)
    metrics.reload_finished("m", ok=False)
    metrics.model_state("m", 1, State.AVAILABLE, "broken")

    available = {"model": "m", "version": "1", "state": "AVAILABLE"}
    assert value(metrics, "vitrail_model_state", available) == 1
    metrics.model_state("m", 1, State.UNLOADING, "")
    metrics.model_state("m", 1, State.END, "unloaded")
    assert value(metrics, "vitrail_model_state", available) is None


def test_replacements_are_counted_from_zero_until_the_model_goes() -> None:
    metrics = serving(("m", 1))

    def counted(outcome: str) -> float | None:
        return value(metrics, "vitrail_model_reloads_total", {"model": "m", "outcome": outcome})

    assert (counted("ok"), counted("failed")) == (0, 0)
    metrics.reload_finished("m", ok=True)
    metrics.reload_finished("m", ok=False)
    metrics.reload_finished("m", ok=False)
    assert (counted("ok"), counted("failed")) == (1, 2)
    metrics.model_state("m", 1, State.END, "unloaded")
    assert counted("ok") is None


def test_nothing_is_left_of_a_model_that_was_removed() -> None:
    metrics = Metrics()
    before = label_sets(metrics)
    metrics.model_refused("m", "a fault")
    metrics.load_finished("m", 1, 1.0, ok=False)
    metrics.reload_finished("m", ok=False)
    metrics.model_removed("m")

    assert label_sets(metrics) == before


async def test_no_series_is_left_after_a_thousand_versions_came_and_went() -> None:
    metrics, lane = Metrics(), FakeLane()
    lanes = Lanes(loading=lane, repository=lane)
    metrics.offered(("gradient", "occlusion"), 64, 1024)

    def failing() -> Servable:
        raise ValueError("broken")

    async def live(name: str, number: int) -> None:
        """Load a version, explain with it, unload it; one explanation ends when it is gone."""
        version = Version(name, number, lambda: FakeServable(name, number), lanes, OneLife(metrics, name))
        await version.load()
        version.publish()
        for event in (ENDED, replace(ENDED, method="gradient", outcome="internal")):
            metrics.explanation_ended(replace(event, model=name, version=number), admitted=False)
        version.unload()
        await version.ended()
        metrics.explanation_ended(replace(ENDED, model=name, version=number), admitted=False)

    await live("m", 1)
    before = label_sets(metrics)
    for cycle in range(1000):
        name, number = f"model_{cycle % 10}", cycle
        await live(name, number)
        if cycle % 10 == 0:  # one that fails first, and is repaired
            await Version(name, number, failing, lanes, OneLife(metrics, name)).load()
            await live(name, number)

    assert label_sets(metrics) == before


def test_other_versions_keep_their_series_when_one_ends() -> None:
    metrics = serving(("m", 3), ("m", 4), ("n", 3))
    for model, number in (("m", 3), ("m", 4), ("n", 3)):
        metrics.load_finished(model, number, 1.0, ok=True)
        metrics.explanation_ended(replace(ENDED, model=model, version=number), admitted=False)
    metrics.model_state("m", 3, State.END, "unloaded")

    for model, version, expected in (("m", "3", None), ("m", "4", 1), ("n", "3", 1)):
        of = {"model": model, "version": version, "method": "occlusion", "outcome": "complete"}
        assert value(metrics, "vitrail_explanations_total", of) == expected
    assert value(metrics, "vitrail_model_load_duration_seconds_count", {"model": "m", "outcome": "ok"}) == 2


def test_prometheus_reads_what_is_served() -> None:
    metrics = serving(("m", 3))
    port = metrics.serve("127.0.0.1", 0)
    text = urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    metrics.close()

    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {"vitrail_build_info", "vitrail_model_state", "process_resident_memory_bytes"} <= set(families)
    (build,) = families["vitrail_build_info"].samples
    assert build.value == 1
    assert all(build.labels.values())
    assert not [name for name in families if name.endswith("_created")]


@pytest.mark.parametrize(
    ("file", "text", "limit"),
    [
        ("memory.max", "4096\n", 4096),
        ("memory/memory.limit_in_bytes", "8192\n", 8192),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
        ("neither", "1\n", None),
    ],
)
def test_the_limit_of_memory_is_the_containers_or_the_machines(
    tmp_path: Path, file: str, text: str, limit: int | None
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    machine = memory_limit(tmp_path / "nothing")

    assert machine > 1 << 20
    assert memory_limit(tmp_path) == (limit or machine)


def offer(gate: Gate | None = None) -> Offer:
    return Offer(model=Linear(weights(1, 3, SHAPE)), batch_size=4, gate=gate)


async def test_what_was_sent_is_what_is_counted(tmp_path: Path) -> None:
    """One of each end, over real connections: explanations, evaluations, tiles and messages add up."""
    async with served(tmp_path, {"m": offer()}) as running:
        plans, done, skipped, tiles = 0, 0, 0, 0
        image = picture(1, SHAPE)
        image[:2] = 0  # windows that show the fill already
        for method in ({"gradient": pb.Gradient()}, {"occlusion": occlusion(2)}):
            for _ in range(3):
                got = await whole(
                    running.explanations.ExplainTiles(pb.ExplainTilesRequest(spec=spec("m", image, **method)))
                )
                plans += got.plan.evaluations
                done += got.summary.evaluations.done
                skipped += got.summary.evaluations.skipped
                tiles += len(got.tiles)
        wrong = spec("m", image, occlusion=occlusion(99))
        await refused(running.explanations.Explain(pb.ExplainRequest(spec=wrong)))
        await refused(running.explanations.Explain(pb.ExplainRequest(spec=spec("nobody", image))))
        scrape = await running.at_rest(8)

    name = "vitrail_explanations_total"
    assert scrape.total(name) == 8
    assert scrape.total(name, outcome="complete", method="gradient", model="m", version="1") == 3
    assert scrape.total(name, outcome="complete", method="occlusion", model="m", version="1") == 3
    assert scrape.total(name, outcome="invalid_argument", method="occlusion", model="m") == 1
    assert scrape.total(name, outcome="not_found", model="", version="") == 1
    assert skipped > 0
    results = {
        result: scrape.total("vitrail_explanation_evaluations_total", result=result)
        for result in ("done", "skipped", "dropped")
    }
    assert results == {"done": done, "skipped": skipped, "dropped": 0}
    assert scrape.total("vitrail_explanation_announced_evaluations_total") == plans == done + skipped
    assert scrape.total("vitrail_explanation_plans_total", execution="full") == 6
    assert scrape.total("vitrail_explanation_tiles_total") == tiles
    assert scrape.total("vitrail_batch_rows_sum") == done
    for stage in ("decode", "queue", "device", "write"):
        assert scrape.total("vitrail_explanation_stage_duration_seconds_count", stage=stage) == 6
    of = {"grpc_method": "ExplainTiles"}
    assert scrape.total("grpc_server_started_total", **of) == 6
    assert scrape.total("grpc_server_handled_total", **of, grpc_code="OK") == 6
    assert scrape.total("grpc_server_msg_sent_total", **of) == tiles + 2 * 6
    assert scrape.total("grpc_server_handled_total", grpc_method="Explain", grpc_code="OK") == 0
    assert scrape.total("grpc_server_handled_total", grpc_method="Explain") == 2


def inference(outcome: str = "complete", **fields: Any) -> InferenceEnded:
    return InferenceEnded(
        **{
            "request_id": "r",
            "model": "m",
            "version": 1,
            "outcome": outcome,
            "rows": 3,
            "seconds": 0.5,
            "decode_seconds": 0.125,
            "queue_seconds": 0.25,
            "device_seconds": 0.0625,
            "encode_seconds": None,
            **fields,
        }
    )


def test_inferences_are_counted_and_their_series_go_with_the_version() -> None:
    metrics = Metrics()
    metrics.offered(("gradient",), 64, 1024)
    metrics.model_state("m", 1, State.AVAILABLE, "")
    of = {"model": "m", "version": "1"}
    assert value(metrics, "vitrail_inferences_total", {**of, "outcome": "complete"}) == 0
    assert value(metrics, "vitrail_inferences_limit") == 1024
    for admitted in (True, True, False):
        if admitted:
            metrics.inference_started()
        metrics.inference_ended(inference(), admitted=admitted)
    metrics.inference_ended(inference("not_found", model="", version=0, rows=0), admitted=False)
    assert value(metrics, "vitrail_inferences_in_flight") == 0
    assert value(metrics, "vitrail_inferences_total", {**of, "outcome": "complete"}) == 3
    assert value(metrics, "vitrail_inference_rows_total", of) == 9
    assert value(metrics, "vitrail_inference_duration_seconds_sum", of) == 1.5
    for stage, seconds in (("decode", 0.375), ("queue", 0.75), ("device", 0.1875), ("encode", None)):
        name = "vitrail_inference_stage_duration_seconds_sum"
        assert value(metrics, name, {**of, "stage": stage}) == seconds
    nothing = {"model": "", "version": "", "outcome": "not_found"}
    assert value(metrics, "vitrail_inferences_total", nothing) == 1
    metrics.model_state("m", 1, State.END, "unloaded")
    metrics.inference_ended(inference(), admitted=False)
    assert value(metrics, "vitrail_inferences_total", {**of, "outcome": "complete"}) is None
    assert value(metrics, "vitrail_inference_rows_total", of) is None
    assert value(metrics, "vitrail_inferences_total", {**nothing, "outcome": "complete"}) == 1


async def test_the_stages_of_an_explanation_are_no_longer_than_all_of_it(tmp_path: Path) -> None:
    async with served(tmp_path, {"m": offer()}) as running:
        request = pb.ExplainTilesRequest(spec=spec("m", picture(1, SHAPE), priority=7))
        await whole(running.explanations.ExplainTiles(request))
        scrape = await running.at_rest(1)

    stages = scrape.total("vitrail_explanation_stage_duration_seconds_sum")
    assert 0 < stages <= scrape.total("vitrail_explanation_duration_seconds_sum")
    assert scrape.value("vitrail_queue_wait_seconds_count", priority="urgent") == 1
    assert scrape.value("vitrail_queue_wait_seconds_count", priority="default") == 0


async def test_the_evaluations_of_a_cancelled_explanation_add_up(tmp_path: Path) -> None:
    gate = Gate(is_open=False)
    async with served(tmp_path, {"m": offer(gate)}) as running:
        request = pb.ExplainTilesRequest(spec=spec("m", picture(1, SHAPE), occlusion=occlusion(1)))
        call = running.explanations.ExplainTiles(request)
        gate.let_through()
        await call.read()  # the plan: 24 windows and the image itself; one batch of 4 is computed
        call.cancel()
        await running.metrics.until(lambda: bool(running.metrics.ended))
        gate.open()
        scrape = await running.at_rest(1)

    assert scrape.total("vitrail_explanations_total", outcome="cancelled") == 1
    assert scrape.total("vitrail_explanation_announced_evaluations_total") == 25
    assert scrape.total("vitrail_explanation_evaluations_total", result="done") == 4
    assert scrape.total("vitrail_explanation_evaluations_total", result="dropped") == 21


class HeldProgram(CostedProgram):
    """Computes as many batches as it has permits; fails with each of `errors` first."""

    def __init__(self, batch_size: int, errors: Sequence[Exception] = ()) -> None:
        super().__init__(batch_size, seconds=0.001)
        self.began, self.permits = threading.Event(), threading.Semaphore(0)
        self._errors = list(errors)

    def execute(self, parts: Sequence[Rows]) -> list[Result]:
        self.began.set()
        self.permits.acquire()
        if self._errors:
            raise self._errors.pop(0)
        return super().execute(parts)

    def halve(self) -> bool:
        self.batch_size //= 2
        return True


@dataclass
class Workbench:
    """A Run on the device of these metrics."""

    metrics: Metrics
    device: Device
    program: HeldProgram
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def submit(self, rows: int, priority: int = 100) -> Submission[CountedRun]:
        return self.device.submit(
            CountedRun(rows),
            self.program,
            self,
            self.changed.set,
            caller="c",
            arrived=time.monotonic(),
            priority=priority,
        )

    def close(self) -> None:
        """Nothing is held."""

    async def rest(self) -> None:
        """Let the program go, and return when the device has nothing left."""
        self.program.permits.release(100)
        while value(self.metrics, "vitrail_batches_in_flight"):
            await self.changed.wait()
            self.changed.clear()


@pytest.fixture
def device_of() -> Iterator[Callable[[HeldProgram], Workbench]]:
    made: list[Workbench] = []

    def make(program: HeldProgram) -> Workbench:
        metrics = Metrics()
        made.append(Workbench(metrics, Device(metrics), program))
        return made[-1]

    yield make
    for work in made:
        work.program.permits.release(100)
        work.device.close()


async def test_the_queue_counts_the_runs_that_have_rows_left(
    device_of: Callable[[HeldProgram], Workbench],
) -> None:
    work = device_of(HeldProgram(4))

    def shown() -> tuple[float | None, float | None]:
        return value(work.metrics, "vitrail_queue_depth"), value(work.metrics, "vitrail_batches_in_flight")

    work.submit(1)
    assert shown() == (0, 1)
    work.submit(9)
    assert shown() == (1, 2)
    waiting = work.submit(2)
    assert shown() == (2, 2)
    waiting.cancel()
    assert shown() == (1, 2)
    await work.rest()
    assert shown() == (0, 0)


async def test_rows_that_are_given_back_wait_again(device_of: Callable[[HeldProgram], Workbench]) -> None:
    """The first batch does not fit, and those that do are filled with more urgent rows."""
    work = device_of(HeldProgram(4, [OutOfMemory()]))
    work.submit(3)
    work.submit(9, priority=1)
    before = value(work.metrics, "vitrail_queue_depth")
    work.program.permits.release()
    await work.changed.wait()

    assert (before, value(work.metrics, "vitrail_queue_depth")) == (1, 2)


async def test_rows_that_nobody_wants_any_more_are_dropped(
    device_of: Callable[[HeldProgram], Workbench],
) -> None:
    """The first batch is being computed when its explanation is cancelled, the second one is not."""
    work = device_of(HeldProgram(4))
    submission = work.submit(9)
    await asyncio.to_thread(work.program.began.wait)
    submission.cancel()
    await work.rest()

    assert value(work.metrics, "vitrail_batch_rows_sum", {"program": "forward"}) == 4
    assert value(work.metrics, "vitrail_batch_dropped_rows_total", {"program": "forward"}) == 4


async def test_batches_that_fail_are_counted_by_reason(device_of: Callable[[HeldProgram], Workbench]) -> None:
    work = device_of(HeldProgram(4, [OutOfMemory(), ValueError("no")]))
    submission = work.submit(3)
    await work.rest()

    assert submission.error is not None
    for reason in ("out_of_memory", "error"):
        of = {"program": "forward", "reason": reason}
        assert value(work.metrics, "vitrail_batch_failures_total", of) == 1
