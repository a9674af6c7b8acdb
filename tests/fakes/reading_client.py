"""A client in a process of its own, to be killed: opens some explanations, reads one message of each, waits.

Run as `python -m fakes.reading_client TARGET`, with a serialized ExplanationSpec in hexadecimal on standard
input. Prints a line when it has read from every call, and then never reads again.
"""

import sys
import threading
from collections.abc import Iterator

import grpc

from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.explanation_pb2_grpc import ExplanationServiceStub


def main() -> None:
    spec = pb.ExplanationSpec.FromString(bytes.fromhex(sys.stdin.readline()))
    forever = threading.Event()

    with grpc.insecure_channel(sys.argv[1]) as channel:
        stub = ExplanationServiceStub(channel)

        def starts() -> Iterator[pb.ExplainStreamRequest]:
            yield pb.ExplainStreamRequest(id="a", start=pb.ExplainStreamRequest.Start(spec=spec))
            yield pb.ExplainStreamRequest(
                id="b", start=pb.ExplainStreamRequest.Start(spec=without_image(spec), upload_bytes=1000)
            )
            forever.wait()

        tiles = stub.ExplainTiles(pb.ExplainTilesRequest(spec=spec))
        calls: list[Iterator[object]] = [tiles, stub.ExplainStream(starts())]
        for call in calls:
            next(call)
        print("read", flush=True)  # noqa: T201 - this is how the test learns of it
        forever.wait()


def without_image(spec: pb.ExplanationSpec) -> pb.ExplanationSpec:
    """Return a request whose image is to be uploaded as a file."""
    result = pb.ExplanationSpec()
    result.CopyFrom(spec)
    result.image.encoded = b""
    return result


if __name__ == "__main__":
    main()
