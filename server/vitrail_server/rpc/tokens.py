"""Who may do what: bearer tokens in a file, one role and token a line.

Without a token file every caller may do everything. With one, every rpc except the standard health
service needs the metadata `authorization: Bearer TOKEN`. A role may do what it names and everything
before it: `observe` may ask what is served, `explain` may ask for maps and inferences too, `control` may
change what is loaded and logged.
"""

import hmac
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path

from vitrail.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated

HEALTH = "/grpc.health.v1.Health/"
EXPLANATIONS = "/vitrail.v1.ExplanationService/"
INFERENCES = "/inference.GRPCInferenceService/"
METADATA_KEY = "authorization"
SCHEME = "Bearer"


class Role(IntEnum):
    """What a token allows; each role includes those before it."""

    OBSERVE = 1
    EXPLAIN = 2
    CONTROL = 3


NEEDED = {
    INFERENCES + "ModelInfer": Role.EXPLAIN,
    INFERENCES + "ModelStreamInfer": Role.EXPLAIN,
    INFERENCES + "RepositoryModelLoad": Role.CONTROL,
    INFERENCES + "RepositoryModelUnload": Role.CONTROL,
    INFERENCES + "LogSettings": Role.CONTROL,
}
"""The rpcs of the v2 service that need more than `observe`."""


def role_needed(method: str) -> Role:
    """Return the least role that may call `method`, a full rpc path."""
    return Role.EXPLAIN if method.startswith(EXPLANATIONS) else NEEDED.get(method, Role.OBSERVE)


class Tokens:
    """The tokens of one server and their roles."""

    def __init__(self, roles: Mapping[str, Role]) -> None:
        self._roles = dict(roles)

    def check(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Let the caller of `method` (a full rpc path) pass.

        Raises:
            Unauthenticated: no token, or one that is not in the file.
            PermissionDenied: the token's role does not allow the rpc.

        """
        if method.startswith(HEALTH):
            return
        given = next((value for key, value in metadata if key == METADATA_KEY), "")
        role = self._role(given if isinstance(given, str) else given.decode("ascii", "replace"))
        needed = role_needed(method)
        if role < needed:
            raise PermissionDenied(
                f"the token's role is {role.name.lower()}, and {method} needs {needed.name.lower()}"
            )

    def _role(self, given: str) -> Role:
        scheme, _, token = given.partition(" ")
        if scheme.lower() != SCHEME.lower():
            raise Unauthenticated(
                f"this server needs a token: send the metadata '{METADATA_KEY}: {SCHEME} TOKEN'"
            )
        # Every token is compared, in constant time each, so that timing tells nothing.
        matches = [
            role for known, role in self._roles.items() if hmac.compare_digest(known.encode(), token.encode())
        ]
        if not matches:
            raise Unauthenticated("the token is not one that this server knows")
        return matches[0]


def read_tokens(path: Path) -> Tokens:
    """Return the tokens of a file: a line `ROLE TOKEN` each; empty lines and those after # are skipped.

    Raises:
        InvalidArgument: a line that is neither, an unknown role, or no token at all.
        FailedPrecondition: the file cannot be read.

    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise FailedPrecondition(f"--token-file: {path} cannot be read ({reason})") from error
    roles: dict[str, Role] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or words[0].upper() not in Role.__members__:
            known = " or ".join(role.name.lower() for role in Role)
            raise InvalidArgument(f"{path}, line {number}: expected ROLE TOKEN, where ROLE is {known}")
        roles[words[1]] = Role[words[0].upper()]
    if not roles:
        raise InvalidArgument(f"{path} holds no token; leave --token-file out to let every caller in")
    return Tokens(roles)
