"""How thoroughly properties are tried."""

from hypothesis import HealthCheck, settings


def examples(count: int) -> settings:
    """Return the settings for a property that is tried on `count` examples."""
    return settings(
        max_examples=count,
        stateful_step_count=30,
        suppress_health_check=[HealthCheck.too_slow],
    )
