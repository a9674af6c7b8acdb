"""How thoroughly properties are tried: no deadlines, because a slow machine is not a wrong answer."""

from hypothesis import HealthCheck, settings


def examples(count: int) -> settings:
    """Return the settings for a property that is tried on `count` examples."""
    return settings(
        max_examples=count,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
