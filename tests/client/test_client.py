import gc
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from vitrail import Client, Explanation, Occlusion
from vitrail.conversation import PIECE_BYTES, Result
from vitrail.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    VitrailError,
)
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.model_pb2 import Model

from .fake_server import PATIENCE, UNTIL_CANCELLED, FakeServer
from .messages import Event, complete, occlusion_plan, partial, tile, whole_map
from .stream_handlers import in_order, interleaved

IMAGE = b"a photo"


def test_explain_returns_the_finished_map(server: FakeServer, client: Client) -> None:
    server.scripts.append(whole_map((1, 2, 3)))

    explanation = client.explain(IMAGE, model="net", method=Occlusion(1), targets=["espresso"])

    np.testing.assert_array_equal(explanation.values, [[[0, 1, 2], [3, 4, 5]]])
    assert explanation.complete
    [request] = server.requests
    assert request.spec.model_name == "net"
    assert request.spec.image.encoded == IMAGE
    assert request.spec.targets.list.targets[0].label == "espresso"
    assert not request.spec.HasField("time_budget")


def test_explain_tiles_yields_one_growing_object(server: FakeServer, client: Client) -> None:
    server.scripts.append(whole_map((1, 2, 3)))

    seen = [
        (id(growing), int(np.isfinite(growing.values).sum()), growing.complete)
        for growing in client.explain_tiles(IMAGE, model="net")
    ]

    first = seen[0][0]
    assert seen == [(first, 0, False), (first, 3, False), (first, 6, False), (first, 6, True)]


def test_a_partial_map_is_returned_as_it_is(server: FakeServer, client: Client) -> None:
    server.scripts.append([occlusion_plan(), tile(0, 0, [[1]], done=2), partial(2)])

    explanation = client.explain(IMAGE, model="net", timeout=PATIENCE)

    assert not explanation.complete
    assert explanation.summary is not None
    assert explanation.summary.partial_reason == pb.Summary.PARTIAL_REASON_TIME_BUDGET


def test_the_timeout_is_the_budget_and_the_deadline_comes_later(server: FakeServer, client: Client) -> None:
    server.scripts.append(whole_map())

    client.explain(IMAGE, model="net", timeout=20)

    budget = server.requests[0].spec.time_budget.ToMilliseconds() / 1000
    assert budget <= 20
    assert server.deadlines[0] is not None
    # 5 % and a second later, less what passed until the server looked; gRPC sends it rounded up to 0.1 s.
    assert budget < server.deadlines[0] <= 22.1


def test_a_passed_deadline_is_deadline_exceeded(server: FakeServer, client: Client) -> None:
    server.scripts.append([occlusion_plan(), UNTIL_CANCELLED])

    with pytest.raises(DeadlineExceeded):
        client.explain(IMAGE, model="net", timeout=0.001)


def test_an_error_keeps_its_class_sentence_and_field(server: FakeServer, client: Client) -> None:
    server.scripts.append([InvalidArgument("patch is 300", field="spec.occlusion.patch.rows")])

    with pytest.raises(InvalidArgument, match="patch is 300") as caught:
        client.explain(IMAGE, model="net")

    assert caught.value.field == "spec.occlusion.patch.rows"


def test_an_error_after_tiles_is_raised_and_the_map_so_far_is_kept(
    server: FakeServer, client: Client
) -> None:
    server.scripts.append([occlusion_plan(), tile(0, 0, [[1]]), ResourceExhausted("too slow a reader")])
    growing = client.explain_tiles(IMAGE, model="net")
    explanation = next(growing)

    with pytest.raises(ResourceExhausted, match="too slow a reader"):
        list(growing)

    assert explanation.values[0, 0, 0] == 1


def test_wrong_arguments_are_refused_before_any_call(server: FakeServer, client: Client) -> None:
    with pytest.raises(InvalidArgument):
        client.explain_tiles(b"", model="net")
    with pytest.raises(InvalidArgument):
        client.explain_many([IMAGE], model="")

    assert not server.requests


def test_unavailable_is_tried_again_before_the_first_message(server: FakeServer, client: Client) -> None:
    loading = Unavailable("version 3 is loading", retry_delay=0.01)
    server.scripts.extend([[loading], [loading], whole_map()])

    explanation = client.explain(IMAGE, model="net", timeout=PATIENCE)

    assert explanation.complete
    budgets = [request.spec.time_budget.ToNanoseconds() for request in server.requests]
    assert len(budgets) == 3
    assert budgets == sorted(budgets, reverse=True)


def test_unavailable_is_not_tried_again_after_the_first_message(server: FakeServer, client: Client) -> None:
    server.scripts.extend([[occlusion_plan(), Unavailable("gone", retry_delay=0.01)], whole_map()])

    with pytest.raises(Unavailable, match="gone"):
        client.explain(IMAGE, model="net")

    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "error",
    [Unavailable("broken for good"), Unavailable("in an hour", retry_delay=3600), NotFound("no such model")],
)
def test_what_is_hopeless_is_not_tried_again(server: FakeServer, client: Client, error: VitrailError) -> None:
    server.scripts.extend([[error], whole_map()])

    with pytest.raises(type(error)):
        client.explain(IMAGE, model="net", timeout=PATIENCE)

    assert len(server.requests) == 1


def test_no_server_at_all_is_unavailable() -> None:
    with FakeServer() as server:
        target = server.target

    with Client(target) as client, pytest.raises(Unavailable):
        client.explain(IMAGE, model="net", timeout=0.1)


def test_leaving_early_cancels_the_call(server: FakeServer, client: Client) -> None:
    server.scripts.append([occlusion_plan(), UNTIL_CANCELLED])

    for growing in client.explain_tiles(IMAGE, model="net"):
        assert growing.progress == 0
        break
    gc.collect()

    assert server.cancelled.wait(PATIENCE)


def test_closing_the_generator_cancels_the_call(server: FakeServer, client: Client) -> None:
    server.scripts.append([occlusion_plan(), UNTIL_CANCELLED])
    growing = client.explain_tiles(IMAGE, model="net")
    next(growing)

    growing.close()

    assert server.cancelled.wait(PATIENCE)


def test_closing_the_client_ends_its_calls(server: FakeServer) -> None:
    server.scripts.append([occlusion_plan(), UNTIL_CANCELLED])
    with Client(server.target) as client:
        growing = client.explain_tiles(IMAGE, model="net")
        next(growing)

    with pytest.raises(Cancelled):
        next(growing)


@pytest.mark.parametrize(
    "script",
    [[], [occlusion_plan()], [tile(0, 0, [[1]])], [occlusion_plan(), tile(2, 0, [[1]]), complete()]],
    ids=["nothing", "no summary", "no plan", "a tile outside"],
)
def test_a_server_that_breaks_the_contract_is_internal(
    server: FakeServer, client: Client, script: list[Event]
) -> None:
    server.scripts.append(script)

    with pytest.raises(Internal, match="the server"):
        client.explain(IMAGE, model="net")


def test_calls_carry_the_token_and_the_clients_name(server: FakeServer) -> None:
    server.scripts.append(whole_map())
    with Client(server.target, token="secret") as client:  # noqa: S106
        client.explain(IMAGE, model="net")
        client.models()

    for metadata in server.metadata:
        assert metadata["authorization"] == "Bearer secret"
        assert str(metadata["user-agent"]).startswith("vitrail-python/")


def test_models(server: FakeServer, client: Client) -> None:
    server.models = [Model(name="a"), Model(name="b")]

    assert [model.name for model in client.models()] == ["a", "b"]
    assert client.model("b") == Model(name="b")
    with pytest.raises(NotFound, match="'c'"):
        client.model("c")


def test_models_are_asked_for_again_while_the_server_starts(server: FakeServer, client: Client) -> None:
    server.model_failures.append(Unavailable("starting", retry_delay=0.01))

    assert client.models(timeout=PATIENCE) == []
    assert len(server.metadata) == 2


def test_ready_asks_the_health_service(server: FakeServer, client: Client) -> None:
    server.health.set("", server_state("SERVING"))
    server.health.set("models/net", server_state("NOT_SERVING"))

    assert client.ready()
    assert not client.ready("models/net", timeout=PATIENCE)
    with pytest.raises(NotFound):
        client.ready("models/other")


def server_state(name: str) -> int:
    from grpc_health.v1.health_pb2 import HealthCheckResponse

    state: int = HealthCheckResponse.ServingStatus.Value(name)
    return state


def whole(_: bytes) -> list[Event | VitrailError]:
    return list(whole_map())


def test_explain_many_answers_every_image_of_a_mapping(server: FakeServer, client: Client) -> None:
    server.on_stream = in_order(whole)

    results = dict(client.explain_many({"a": b"1", "b": b"2", "c": b"3"}, model="net"))

    assert list(results) == ["a", "b", "c"]
    for key, image in (("a", b"1"), ("b", b"2"), ("c", b"3")):
        result = results[key]
        assert isinstance(result, Explanation)
        assert result.image.encoded == image
        assert result.complete
    assert server.streams == 1


def test_explain_many_keeps_interleaved_answers_apart_and_goes_on_after_a_failure(
    server: FakeServer, client: Client
) -> None:
    def answer(image: bytes) -> list[Event | VitrailError]:
        if image == b"bad":
            return [occlusion_plan(), NotFound("unloaded meanwhile")]
        return [occlusion_plan((1, 1, 1)), tile(0, 0, [[image[0]]]), complete()]

    server.on_stream = interleaved(3, answer)

    results = dict(client.explain_many([b"\x07", b"bad", b"\x09"], model="net"))

    assert isinstance(results[1], NotFound)
    assert str(results[1]) == "unloaded meanwhile"
    assert [value_of(results[key]) for key in (0, 2)] == [7, 9]


def value_of(result: Result) -> float:
    assert isinstance(result, Explanation)
    return float(result.values[0, 0, 0])


def test_explain_many_reads_no_further_ahead_than_in_flight(server: FakeServer, client: Client) -> None:
    server.on_stream = in_order(whole)
    read = []

    def images() -> Iterator[bytes]:
        for number in range(6):
            read.append(number)
            yield bytes([number])

    results = client.explain_many(images(), model="net", in_flight=2)
    next(results)

    # Two were opened; one is settled, and made room for a third.
    assert read == [0, 1, 2]
    assert [key for key, _ in results] == [1, 2, 3, 4, 5]


def test_explain_many_uploads_large_images_in_pieces(server: FakeServer, client: Client) -> None:
    seen = []

    def answer(image: bytes) -> list[Event | VitrailError]:
        seen.append(image)
        return whole(image)

    server.on_stream = in_order(answer)
    large = bytes(range(256)) * (PIECE_BYTES // 100)

    assert len(list(client.explain_many([large, b"small"], model="net"))) == 2
    assert sorted(seen, key=len) == [b"small", large]


def test_explain_many_reports_an_image_that_cannot_be_read_and_goes_on(
    server: FakeServer, client: Client
) -> None:
    server.on_stream = in_order(whole)

    results = dict(client.explain_many(["no/such/photo.jpg", b"1", b""], model="net"))

    assert isinstance(results[0], InvalidArgument)
    assert isinstance(results[1], Explanation)
    assert isinstance(results[2], InvalidArgument)


@pytest.mark.parametrize("images", [[], [b""]])
def test_explain_many_without_anything_to_send_makes_no_call(
    server: FakeServer, client: Client, images: list[bytes]
) -> None:
    assert len(list(client.explain_many(images, model="net"))) == len(images)
    assert server.streams == 0


def test_explain_many_raises_what_ends_the_stream(server: FakeServer, client: Client) -> None:
    def handle(
        requests: Iterator[pb.ExplainStreamRequest],
    ) -> Iterator[pb.ExplainStreamResponse | VitrailError]:
        answers = in_order(whole)(requests)
        for _ in range(4):
            yield next(answers)
        yield Unavailable("shutting down", retry_delay=0.01)

    server.on_stream = handle
    results = client.explain_many([b"1", b"2"], model="net")

    assert next(results)[0] == 0
    with pytest.raises(Unavailable, match="shutting down"):
        next(results)
    assert server.streams == 1


def test_explain_many_tries_a_stream_again_that_never_answered(server: FakeServer, client: Client) -> None:
    def refuse(
        requests: Iterator[pb.ExplainStreamRequest],
    ) -> Iterator[pb.ExplainStreamResponse | VitrailError]:
        next(requests)
        server.on_stream = in_order(whole)
        yield Unavailable("starting", retry_delay=0.01)

    server.on_stream = refuse

    assert [key for key, _ in client.explain_many([b"1", b"2", b"3"], model="net")] == [0, 1, 2]
    assert server.streams == 2


def test_explain_many_whose_server_stops_early_is_internal(server: FakeServer, client: Client) -> None:
    server.on_stream = lambda _: iter(())

    with pytest.raises(Internal, match="1 explanations open"):
        list(client.explain_many([b"1"], model="net"))


def test_leaving_explain_many_early_ends_the_stream(server: FakeServer, client: Client) -> None:
    ended = threading.Event()

    def handle(
        requests: Iterator[pb.ExplainStreamRequest],
    ) -> Iterator[pb.ExplainStreamResponse | VitrailError]:
        try:
            yield from in_order(whole)(requests)
        finally:
            ended.set()

    server.on_stream = handle
    results = client.explain_many([b"1", b"2"], model="net")
    next(results)

    results.close()

    assert ended.wait(PATIENCE)
