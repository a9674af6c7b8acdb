"""The repository's rpcs: what their messages say to the manager, and what it answers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vitrail.errors import InvalidArgument, Unimplemented
from vitrail_server.kserve.v2 import grpc_service_pb2 as pb
from vitrail_server.repository.state import IndexEntry
from vitrail_server.wording import quoted

FILE = "file:"
"""What the names of files in a load begin with."""

Parameters = Mapping[str, pb.ModelRepositoryParameter]


def refuse_repository(name: str) -> None:
    """Refuse a request for one of several repositories.

    Raises:
        Unimplemented: it names one.

    """
    if name:
        raise Unimplemented("'repository_name' specification is not supported")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What comes with a request to load."""

    config: str | None
    """A configuration in place of the model's own."""
    files: Mapping[str, bytes]
    force: bool
    """Whether to load again what has not changed."""


def load_options(parameters: Parameters) -> LoadOptions:
    """Return what comes with a request to load; `vitrail_force` is a parameter of ours.

    Raises:
        InvalidArgument: a parameter is unknown, or of another type.

    """
    config, files, force = None, {}, False
    for name, value in parameters.items():
        if name == "config":
            config = str(_typed(name, value, "string_param", "load"))
        elif name.startswith(FILE):
            _typed(name, value, "bytes_param", "load")
            files[name] = value.bytes_param
        elif name == "vitrail_force":
            force = bool(_typed(name, value, "bool_param", "load"))
        else:
            raise InvalidArgument(f"unrecognized load parameter {quoted(name)}.")
    return LoadOptions(config, files, force)


def unload_waits(parameters: Parameters) -> bool:
    """Return whether an unload returns only when the model's memory is given back.

    Triton's own parameter, `unload_dependents`, may be given: no model here depends on another.

    Raises:
        InvalidArgument: a parameter is unknown, or of another type.

    """
    wait = False
    for name, value in parameters.items():
        if name not in ("unload_dependents", "vitrail_wait"):
            raise InvalidArgument(f"unrecognized unload parameter {quoted(name)}.")
        flag = bool(_typed(name, value, "bool_param", "unload"))
        wait = flag if name == "vitrail_wait" else wait
    return wait


def index_response(entries: Iterable[IndexEntry]) -> pb.RepositoryIndexResponse:
    """Return the message of an index."""
    return pb.RepositoryIndexResponse(
        models=[
            pb.RepositoryIndexResponse.ModelIndex(
                name=each.name, version=each.version, state=each.state, reason=each.reason
            )
            for each in entries
        ]
    )


def _typed(name: str, value: pb.ModelRepositoryParameter, wanted: str, what: str) -> object:
    if value.WhichOneof("parameter_choice") != wanted:
        raise InvalidArgument(f"invalid value type for {what} parameter {quoted(name)}, expected {wanted}.")
    return getattr(value, wanted)
