"""The short names of the wire's enum values: ``CLIP`` for ``EDGE_CLIP``.

The generated enums are the one list of names; this file only adds and removes their prefix.
"""

from typing import TYPE_CHECKING, TypeVar

from vitrail.errors import InvalidArgument

if TYPE_CHECKING:
    # A name of the types only: at run time every enum is an EnumTypeWrapper.
    from google.protobuf.internal.enum_type_wrapper import _EnumTypeWrapper

V = TypeVar("V", bound=int)

UNSPECIFIED = "UNSPECIFIED"
"""The short name of every enum's zero, which no caller may choose."""


def choices(enum: "_EnumTypeWrapper[V]") -> list[str]:
    """Return the short names that a caller may choose from."""
    prefix = _prefix(enum)
    return [short for key in enum.keys() if (short := key.removeprefix(prefix)) != UNSPECIFIED]  # noqa: SIM118


def value_of(enum: "_EnumTypeWrapper[V]", short: str, field: str) -> V:
    """Return the value with the short name `short`; `field` is its path in the request.

    Raises:
        InvalidArgument: the enum has no such value.

    """
    if short not in choices(enum):
        raise InvalidArgument(f"{field} is {short!r}; use one of {', '.join(choices(enum))}", field=field)
    return enum.Value(_prefix(enum) + short)


def name_of(enum: "_EnumTypeWrapper[V]", value: V) -> str:
    """Return the short name of `value`; its number where a newer server sends one not known here."""
    if value not in enum.values():
        return str(value)
    return enum.Name(value).removeprefix(_prefix(enum))


def _prefix(enum: "_EnumTypeWrapper[V]") -> str:
    return enum.keys()[0].removesuffix(UNSPECIFIED)
