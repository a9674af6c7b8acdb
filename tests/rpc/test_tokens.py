"""Tokens: who may ask for maps, who may only look, and what is open to everybody."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from fakes.serving import Offer, Served, served
from fakes.wide import Plain
from vitrail.errors import FailedPrecondition, InvalidArgument
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1 import model_pb2
from vitrail_server.rpc.tokens import Role, read_tokens

from .messages import refused, send_bytes, spec, start, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

Metadata = tuple[tuple[str, str], ...]

FILE = """
# who may look
observe   look-around
EXPLAIN   open-sesame
explain   sesame-offen
control   all-mine
"""
OBSERVER: Metadata = (("authorization", "Bearer look-around"),)
CONTROLLER: Metadata = (("authorization", "Bearer all-mine"),)
EXPLAINER: Metadata = (("authorization", "Bearer open-sesame"),)
NOBODIES: list[Metadata] = [
    (),
    (("authorization", ""),),
    (("authorization", "Bearer "),),
    (("authorization", "Bearer open-sesam"),),
    (("authorization", "Bearer open-sesame "),),
    (("authorization", "Bearer open-sesamee"),),
    (("authorization", "Basic open-sesame"),),
    (("authorization", "open-sesame"),),
    (("x-authorization", "Bearer open-sesame"),),
]
SPEC = spec("m", bytes(0))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    directory = tmp_path_factory.mktemp("guarded")
    (directory / "tokens").write_text(FILE)
    offers = {"m": Offer(model=Plain((2, 2, 1), 1))}
    async with served(directory, offers, token_file=directory / "tokens") as running:
        yield running


@pytest.mark.parametrize("metadata", NOBODIES)
async def test_without_a_token_that_is_known_nothing_is_answered(guarded: Served, metadata: Metadata) -> None:
    stream = guarded.explanations.ExplainStream(metadata=metadata)
    reflection = ServerReflectionStub(guarded.channel).ServerReflectionInfo(metadata=metadata)
    calls = [
        guarded.explanations.Explain(pb.ExplainRequest(spec=SPEC), metadata=metadata),
        whole(guarded.explanations.ExplainTiles(pb.ExplainTilesRequest(spec=SPEC), metadata=metadata)),
        stream.read(),
        guarded.models.ListModels(model_pb2.ListModelsRequest(), metadata=metadata),
        guarded.models.GetModel(model_pb2.GetModelRequest(name="m"), metadata=metadata),
        reflection.read(),
    ]
    for call in calls:
        refusal = await refused(call)

        assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
        assert refusal.retry_delay is None
        assert "open-sesame" not in refusal.message


async def test_the_refusal_says_how_to_send_a_token(guarded: Served) -> None:
    missing = await refused(guarded.models.ListModels(model_pb2.ListModelsRequest()))
    unknown = await refused(guarded.models.ListModels(model_pb2.ListModelsRequest(), metadata=NOBODIES[3]))

    assert missing.message == "this server needs a token: send the metadata 'authorization: Bearer TOKEN'"
    assert unknown.message == "the token is not one that this server knows"


async def test_an_observer_may_look_but_not_ask_for_maps(guarded: Served) -> None:
    models = await guarded.models.ListModels(model_pb2.ListModelsRequest(), metadata=OBSERVER)
    reflection = ServerReflectionStub(guarded.channel).ServerReflectionInfo(metadata=OBSERVER)
    await reflection.write(ServerReflectionRequest(list_services=""))
    services = await reflection.read()
    await reflection.done_writing()
    stream = guarded.explanations.ExplainStream(metadata=OBSERVER)
    refusals = [
        await refused(guarded.explanations.Explain(pb.ExplainRequest(spec=SPEC), metadata=OBSERVER)),
        await refused(
            whole(guarded.explanations.ExplainTiles(pb.ExplainTilesRequest(spec=SPEC), metadata=OBSERVER))
        ),
        await refused(stream.read()),
    ]

    assert [model.name for model in models.models] == ["m"]
    assert len(services.list_services_response.service) == 5
    for refusal, rpc in zip(refusals, ("Explain", "ExplainTiles", "ExplainStream"), strict=True):
        assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
        assert refusal.message == (
            f"the token's role is observe, and /vitrail.v1.ExplanationService/{rpc} needs explain"
        )


@pytest.mark.parametrize(
    ("rpc", "role"),
    [
        ("ServerLive", Role.OBSERVE),
        ("ModelMetadata", Role.OBSERVE),
        ("ModelStatistics", Role.OBSERVE),
        ("RepositoryIndex", Role.OBSERVE),
        ("ModelInfer", Role.EXPLAIN),
        ("ModelStreamInfer", Role.EXPLAIN),
        ("RepositoryModelLoad", Role.CONTROL),
        ("RepositoryModelUnload", Role.CONTROL),
        ("LogSettings", Role.CONTROL),
    ],
)
async def test_the_v2_service_is_guarded_too(guarded: Served, rpc: str, role: Role) -> None:
    call: Any = guarded.channel.unary_unary(f"/inference.GRPCInferenceService/{rpc}")
    for given, metadata in ((Role.OBSERVE, OBSERVER), (Role.EXPLAIN, EXPLAINER), (Role.CONTROL, CONTROLLER)):
        allowed = True
        try:
            await call(b"", metadata=metadata)
        except grpc.aio.AioRpcError as error:
            allowed = error.code() is not grpc.StatusCode.PERMISSION_DENIED
        assert allowed == (given >= role), given
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call(b"")
    assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("token", ["open-sesame", "sesame-offen"])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_an_explainer_may_do_both(guarded: Served, token: str, scheme: str) -> None:
    """The scheme's name has no case (RFC 9110, section 11.1)."""
    metadata = (("authorization", f"{scheme} {token}"),)
    await guarded.models.ListModels(model_pb2.ListModelsRequest(), metadata=metadata)

    refusal = await refused(guarded.explanations.Explain(pb.ExplainRequest(spec=SPEC), metadata=metadata))
    stream = guarded.explanations.ExplainStream(metadata=metadata)
    await stream.write(start("a", SPEC))
    answer = await stream.read()

    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT  # let in, and then told that the image is none
    assert isinstance(answer, pb.ExplainStreamResponse)
    assert answer.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


async def test_health_is_open_because_probes_have_no_token(guarded: Served) -> None:
    response = await guarded.health.Check(HealthCheckRequest())
    watch = guarded.health.Watch(HealthCheckRequest(service="models/m"))

    assert response.status == HealthCheckResponse.SERVING
    assert (await watch.read()).status == HealthCheckResponse.SERVING
    watch.cancel()


async def test_what_does_not_exist_is_unimplemented_for_everybody(guarded: Served) -> None:
    # A path like the health service's opens nothing.
    for path in ("/grpc.health.v1.Health/Explain", "/vitrail.v1.ExplanationService/Delete"):
        refusal = await refused(send_bytes(guarded.channel, path))

        assert refusal.code is grpc.StatusCode.UNIMPLEMENTED


async def test_refused_callers_are_counted_as_calls_and_not_as_explanations(guarded: Served) -> None:
    before = await guarded.scrape()
    await refused(guarded.explanations.Explain(pb.ExplainRequest(spec=SPEC)))
    after = await guarded.scrape()

    def counted(name: str, **labels: str) -> float:
        return after.total(name, **labels) - before.total(name, **labels)

    assert counted("grpc_server_handled_total", grpc_code="UNAUTHENTICATED", grpc_method="Explain") == 1
    assert counted("vitrail_explanations_total") == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no token; leave --token-file out to let every caller in"),
        ("# nothing\n\n", "holds no token"),
        ("explain\n", "line 1: expected ROLE TOKEN, where ROLE is observe or explain or control"),
        ("\nadmin secret\n", "line 2: expected ROLE TOKEN"),
        ("explain one two\n", "line 1: expected ROLE TOKEN"),
    ],
)
async def test_a_file_without_a_clear_meaning_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)

    with pytest.raises(InvalidArgument, match=said) as caught:
        read_tokens(file)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file or directory"), (b"explain \xff", "it is not UTF-8 text")]
)
async def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "tokens"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(FailedPrecondition, match=rf"--token-file: .* cannot be read \({reason}\)"):
        read_tokens(file)
