"""How an inference waits for its turn: Triton's dynamic batching and queue policies, as pure facts.

The scheduler asks; it alone decides what runs. Times are seconds of its clock.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from vitrail_server.servable import Batching, QueuePolicy


@dataclass(frozen=True, slots=True, eq=False)
class Queueing:
    """The terms on which one request waits."""

    queue: object
    """What has the queue: requests with the same one are counted together."""
    batching: Batching
    level: int
    """Its priority among the levels of its model; 0 where that has none."""
    rows: int
    arrived: float
    timeout: float = 0.0
    """Seconds that the request would wait at most; 0: it does not say."""

    @property
    def policy(self) -> QueuePolicy:
        """The policy of its priority."""
        return self.batching.priority_queue_policies.get(self.level, self.batching.default_queue_policy)

    @property
    def times_out(self) -> float | None:
        """When it has waited too long; None: never.

        A request may only shorten what its model allows, where the model allows that.
        """
        seconds = self.policy.default_timeout
        if self.policy.allow_timeout_override and 0 < self.timeout < seconds:
            seconds = self.timeout
        return self.arrived + seconds if seconds else None

    @property
    def wants_company_until(self) -> float:
        """Until when a batch of it waits for more rows."""
        return self.arrived + self.batching.max_queue_delay

    def rejected(self, now: float) -> bool:
        """Whether it has waited too long, and is refused for that."""
        return self.policy.timeout_action == "REJECT" and self._late(now)

    def delayed(self, now: float) -> bool:
        """Whether it has waited too long, and comes after all that have not."""
        return self.policy.timeout_action == "DELAY" and self._late(now)

    def _late(self, now: float) -> bool:
        return self.times_out is not None and self.times_out <= now


def rows_to_run(waiting: Iterable[Queueing], most: int, now: float) -> int | None:
    """Return how many rows the next batch of these requests should have; None: wait for more of them.

    They are in the order in which they would be served, and share a program that takes `most` rows. A
    preferred size is taken as soon as whole requests make it, the largest of them first; else the batch
    runs when it is full, or when one of its requests has waited long enough.
    """
    total = best = 0
    ripe = False
    for each in waiting:
        if total + each.rows > most:
            return best or total or most
        total += each.rows
        ripe = ripe or each.wants_company_until <= now
        if total in each.batching.preferred_batch_sizes:
            best = total
    if best or total == most or ripe:
        return best or total
    return None
