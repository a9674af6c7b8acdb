"""The served side of the oracles: the real server with the sample repository."""

from integration.conftest import client, served

__all__ = ["client", "served"]
