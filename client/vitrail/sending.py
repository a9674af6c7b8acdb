"""A request for one map, as the bytes that are sent.

protobuf copies an image into its message, from there into a buffer that it writes to, and out of that once
more. Copies of this size are memory that the system hands out page by page, each with a fault, and takes
back after every call: an image of 600 KB took 400 faults more, which with their copies were 1.2 ms of the 3.4
that a call cost the client. Here the fields around the image are written by hand, so that its data is
copied once.
"""

from google.protobuf.message import Message

from vitrail.request import ImageLike, complete, image_parts, set_budget
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.tensor_pb2 import Tensor

LENGTH_DELIMITED = 2
"""The wire type of bytes and of messages within messages."""


class TilesRequest:
    """An `ExplainTilesRequest` with its image.

    `spec` is without an image and a time budget. The image is what it was when this was made, whatever
    becomes of the array meanwhile.

    Raises:
        InvalidArgument: the image cannot be sent; see `request.image_parts`.

    """

    def __init__(self, spec: pb.ExplanationSpec, image: ImageLike) -> None:
        self._spec = spec
        self._image, data = image_parts(image)
        self._write(data)

    def set_budget(self, budget: float | None) -> None:
        """Set how many seconds the explanation may take; None: without a limit."""
        if budget is not None or self._spec.HasField("time_budget"):
            set_budget(self._spec, budget)
            self._write(self._data)

    def serialized(self) -> bytes:
        """Return the bytes of the `ExplainTilesRequest`."""
        return self._bytes

    def image(self) -> pb.Image:
        """Return the image as it is sent."""
        image = pb.Image()
        image.CopyFrom(self._image)
        complete(image, self._data)
        return image

    def _write(self, data: bytes | memoryview) -> None:
        head = b""
        for message, field in self._around():
            # A field may stand anywhere in its message: here what holds the data comes last.
            size = len(head) + len(data)
            key = field << 3 | LENGTH_DELIMITED
            head = b"".join((message.SerializeToString(), varint(key), varint(size), head))
        self._bytes = b"".join((head, data))
        self._data = memoryview(self._bytes)[len(head) :]

    def _around(self) -> list[tuple[Message, int]]:
        """Return the messages around the data, the innermost first, and the field of each that holds it."""
        request = (
            (self._spec, pb.ExplanationSpec.IMAGE_FIELD_NUMBER),
            (
                pb.ExplainTilesRequest(),
                pb.ExplainTilesRequest.SPEC_FIELD_NUMBER,
            ),
        )
        if self._image.WhichOneof("source") == "encoded":
            return [(pb.Image(), pb.Image.ENCODED_FIELD_NUMBER), *request]
        tensor = self._image.tensor
        return [
            (tensor, Tensor.DATA_FIELD_NUMBER),
            (pb.Image(), pb.Image.TENSOR_FIELD_NUMBER),
            *request,
        ]


def varint(number: int) -> bytes:
    """Return a number from 0 on in protobuf's variable length: 7 bits in a byte, the lowest first."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
