"""Pieces of PromQL that the panels share. `$job`, `$instance` and so on are variables of the dashboards."""

SERVERS = 'job=~"$job", instance=~"$instance"'
CHOSEN = 'model=~"$model", version=~"$version", method=~"$method"'
EXPLANATIONS = f"{SERVERS}, {CHOSEN}"

FAILURES = 'outcome=~"internal|unavailable|deadline_exceeded"'
"""What the server is to blame for, as in the recording rules."""

ERROR_BUDGET = (0.005, 14.4 * 0.005)
FIRST_TILE_BUDGET = (0.05, 14.4 * 0.05)
"""The part of all that may fail or be slow, and the part at which the fast alert fires."""

FIRST_TILE_SECONDS = 1.0
"""What a first tile may take."""


def rate(metric: str, selector: str, by: str = "") -> str:
    """Return the rate of a counter per second, summed by labels."""
    grouping = f"sum by ({by}) " if by else "sum"
    return f"{grouping}(rate({metric}{{{selector}}}[$__rate_interval]))"


def mean(metric: str, selector: str, by: str) -> str:
    """Return the mean of what a histogram observed."""
    return f"{rate(f'{metric}_sum', selector, by)} / {rate(f'{metric}_count', selector, by)}"


def ratio(part: str, whole: str, selector: str, by: str) -> str:
    """Return one counter's rate over another's."""
    return f"{rate(part, selector, by)} / {rate(whole, selector, by)}"


def share(part: str, rest: str, selector: str, by: str) -> str:
    """Return one counter's rate over that of both together."""
    return f"{rate(part, selector, by)} / ({rate(part, selector, by)} + {rate(rest, selector, by)})"


def quantiles(metric: str, selector: str) -> dict[str, str]:
    """Return three quantiles of a histogram, by legend."""
    buckets = rate(f"{metric}_bucket", selector, "le")
    return {f"p{each * 100:g}": f"histogram_quantile({each}, {buckets})" for each in (0.5, 0.95, 0.99)}


def recorded_p95(metric: str) -> str:
    """Return the recorded 95th percentile of each version and method."""
    return f'model_version_method:{metric}:quantile5m{{job=~"$job", {CHOSEN}, quantile="0.95"}}'


def buckets(metric: str, selector: str) -> str:
    """Return how many observations came into each bucket of a histogram."""
    return f"sum by (le) (increase({metric}_bucket{{{selector}}}[$__rate_interval]))"
