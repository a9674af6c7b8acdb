"""Just enough of protobuf's wire format to write a request and read an answer, by hand.

Written from the encoding's public description (https://protobuf.dev/programming-guides/encoding), so that
the tests here depend on the bytes of the API alone: on no stub, no client and no protobuf library.
"""

import struct
from dataclasses import dataclass, field
from typing import Self

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


def varint(number: int) -> bytes:
    """Return the encoding of a number that is not negative."""
    low, high = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def number(field_number: int, value: int) -> bytes:
    """Return a field with a whole number, a boolean or an enum."""
    return varint(field_number << 3 | VARINT) + varint(value)


def double(field_number: int, value: float) -> bytes:
    """Return a field with a double."""
    return varint(field_number << 3 | FIXED64) + struct.pack("<d", value)


def content(field_number: int, *parts: bytes) -> bytes:
    """Return a field with bytes, text, packed numbers or a message, which is the sum of its fields."""
    joined = b"".join(parts)
    return varint(field_number << 3 | LENGTH) + varint(len(joined)) + joined


def text(field_number: int, value: str) -> bytes:
    """Return a field with text."""
    return content(field_number, value.encode())


@dataclass
class Message:
    """A message as it lies on the wire: the values of each field, in their order."""

    numbers: dict[int, list[int]] = field(default_factory=dict)
    fixed: dict[int, list[bytes]] = field(default_factory=dict)
    contents: dict[int, list[bytes]] = field(default_factory=dict)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Read a message; fails where it is malformed."""
        message, at = cls(), 0
        while at < len(data):
            key, at = _varint_at(data, at)
            field_number, kind = key >> 3, key & 7
            assert field_number > 0
            if kind == VARINT:
                value, at = _varint_at(data, at)
                message.numbers.setdefault(field_number, []).append(value)
                continue
            if kind == LENGTH:
                length, at = _varint_at(data, at)
                into = message.contents
            else:
                length = {FIXED32: 4, FIXED64: 8}[kind]
                into = message.fixed
            assert at + length <= len(data)
            into.setdefault(field_number, []).append(data[at : at + length])
            at += length
        return message

    def __contains__(self, field_number: int) -> bool:
        return any(field_number in values for values in (self.numbers, self.fixed, self.contents))

    def number(self, field_number: int) -> int:
        """Return a whole number, a boolean or an enum; 0 where the field is unset. The last one counts."""
        return self.numbers.get(field_number, [0])[-1]

    def float(self, field_number: int) -> float:
        """Return a float or a double; 0 where the field is unset."""
        [*_, packed] = self.fixed.get(field_number, [bytes(8)])
        [value] = struct.unpack("<f" if len(packed) == 4 else "<d", packed)
        return float(value)

    def bytes(self, field_number: int) -> bytes:
        """Return bytes; empty where the field is unset."""
        return self.contents.get(field_number, [b""])[-1]

    def text(self, field_number: int) -> str:
        """Return text; empty where the field is unset."""
        return self.bytes(field_number).decode()

    def message(self, field_number: int) -> "Message":
        """Return a message; an empty one where the field is unset."""
        return Message.of(self.bytes(field_number))

    def messages(self, field_number: int) -> list["Message"]:
        """Return every message of a repeated field."""
        return [Message.of(each) for each in self.contents.get(field_number, [])]

    def repeated(self, field_number: int) -> list[int]:
        """Return every number of a repeated field, packed or not."""
        values = list(self.numbers.get(field_number, []))
        for packed in self.contents.get(field_number, []):
            at = 0
            while at < len(packed):
                value, at = _varint_at(packed, at)
                values.append(value)
        return values


def _varint_at(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return value, at
