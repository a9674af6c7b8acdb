"""inference.GRPCInferenceService: KServe's v2 protocol with Triton's extensions.

The rpcs are short: what they do is in the other files of this directory, and `handlers.py` refuses what
Triton has and this server does not.
"""

from collections.abc import AsyncIterator, Callable

from vitrail.errors import InvalidArgument, NotFound, Unavailable, VitrailError
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb
from vitrail_server.repository.manager import Manager
from vitrail_server.repository.state import ModelStatus, State
from vitrail_server.rpc.context import Context, write
from vitrail_server.rpc.inference import log_settings
from vitrail_server.rpc.inference.errors import identified
from vitrail_server.rpc.inference.explain import Explanations
from vitrail_server.rpc.inference.infer import InferenceEngine, infer
from vitrail_server.rpc.inference.lookup import model_status, pin, version_number
from vitrail_server.rpc.inference.metadata import model_metadata, model_statistics, server_metadata
from vitrail_server.rpc.inference.parameters import FINAL_RESPONSE, read_parameters
from vitrail_server.rpc.inference.repository import (
    index_response,
    load_options,
    refuse_repository,
    unload_waits,
)
from vitrail_server.rpc.inference.stream import GRPC_ERRORS, InferenceStream, Send
from vitrail_server.rpc.inference.turns import Turn
from vitrail_server.wording import quoted


class InferenceService:
    """Answers inference.GRPCInferenceService.

    `ready` says whether the server is; `write_timeout` is how many seconds one message may wait for a reader
    that has stopped.
    """

    def __init__(
        self,
        engine: InferenceEngine,
        explanations: Explanations,
        ready: Callable[[], bool],
        write_timeout: float,
    ) -> None:
        self._engine = engine
        self._explanations = explanations
        self._ready = ready
        self._write_timeout = write_timeout

    @property
    def _manager(self) -> Manager:
        return self._engine.manager

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """Say that the server answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Say whether the models found at start are loaded or have failed, and the server goes on."""
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Say whether a model answers; one that does not exist does not."""
        version_number(request.version)
        try:
            pin(self._manager, request.name, request.version).close()
        except (NotFound, Unavailable):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        """Say what the server is."""
        return server_metadata()

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        """Say what a model expects and gives."""
        with pin(self._manager, request.name, request.version) as handle:
            description = handle.servable.description
        versions = (
            [description.version] if request.version else _ready_versions(self._manager.model(request.name))
        )
        return model_metadata(description, versions)

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Compute one inference, or explain one."""
        try:
            parameters = read_parameters(request.parameters)
            if parameters.explanation:
                return await self._explanations.whole(request, parameters, context)
            return await infer(self._engine, request, parameters, context)
        except VitrailError as error:
            raise identified(error, request.id) from None

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> None:
        """Compute many inferences over one connection, or explain them tile by tile."""

        async def answer(request: pb.ModelInferRequest, turn: Turn, send: Send) -> None:
            try:
                parameters = read_parameters(request.parameters)
                if parameters.explanation:
                    turn.done()
                    await self._explanations.tiles(request, parameters, context, send)
                    return
                response = await infer(self._engine, request, parameters, context)
            except VitrailError:
                await turn.come()
                raise
            await turn.come()
            response.parameters[FINAL_RESPONSE].bool_param = True
            await send(response)

        async def write_response(response: pb.ModelStreamInferResponse) -> None:
            await write(context, response, self._write_timeout)

        metadata = dict(context.invocation_metadata() or ())
        stream = InferenceStream(answer, grpc_errors=metadata.get(GRPC_ERRORS) == "true")
        await stream.hold(request_iterator, write_response)

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        """Return a model's configuration, completed from its signature."""
        with pin(self._manager, request.name, request.version) as handle:
            version = handle.servable.description.version
        return pb.ModelConfigResponse(config=self._manager.config(request.name, version))

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        """Say what the models have computed since they were loaded."""
        if request.version and not request.name:
            raise InvalidArgument("a version without a name is of no model: give both, or none")
        number = version_number(request.version)
        models = [model_status(self._manager, request.name)] if request.name else self._manager.models()
        found = []
        for model in models:
            for version in _ready_versions(model):
                if number in (None, version):
                    with self._manager.handle(model.name, version) as handle:
                        servable = handle.servable
                        found.append(
                            model_statistics(servable.description, self._engine.statistics_of(servable))
                        )
        if request.name and not found:
            raise NotFound(
                f"requested model version is not available for model {quoted(request.name)}"
                if number
                else f"requested model {quoted(request.name)} is not available"
            )
        return pb.ModelStatisticsResponse(model_stats=found)

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        """List the models of the repository and their states."""
        refuse_repository(request.repository_name)
        return index_response(await self._manager.index(ready=request.ready))

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Load a model, or load it again."""
        refuse_repository(request.repository_name)
        options = load_options(request.parameters)
        await self._manager.load(
            request.model_name, config=options.config, files=options.files, force=options.force
        )
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Take a model out of service."""
        refuse_repository(request.repository_name)
        await self._manager.unload(request.model_name, wait=unload_waits(request.parameters))
        return pb.RepositoryModelUnloadResponse()

    async def LogSettings(self, request: pb.LogSettingsRequest, context: Context) -> pb.LogSettingsResponse:
        """Read or change what is logged."""
        return log_settings.change(request.settings)


def _ready_versions(model: ModelStatus) -> list[int]:
    return [each.version for each in model.versions if each.state is State.AVAILABLE]
