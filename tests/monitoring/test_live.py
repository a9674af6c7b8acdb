"""Dashboards, rules and counters against a real server under load, as a real Prometheus saw it."""

import math
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from monitoring.conftest import Seen
from monitoring.load import ABANDONED, BROKEN, MODEL
from monitoring.panels import Query, queries
from monitoring.servers import DEPLOYED, ROOT

QUERIES = [query for name in ("overview", "models") for query in queries(name)]
ALERTS = re.findall(r"- alert: (\w+)", (DEPLOYED / "rules" / "alerts.yml").read_text("utf-8"))
RECORDED = sorted(
    set(re.findall(r"- record: (\S+)", (DEPLOYED / "rules" / "recording.yml").read_text("utf-8")))
)


def counted(seen: Seen, metric: str, *labels: str, selector: str = "") -> Counter[tuple[str, ...]]:
    """Return a counter as Prometheus has it, summed by labels, without what is 0."""
    grouping = f"sum by ({', '.join(labels)})" if labels else "sum"
    return Counter(
        {
            tuple(series.labels.get(label, "") for label in labels): round(series.values[0][1])
            for series in seen.prometheus.now(f"{grouping} ({metric}{{{selector}}}) > 0")
        }
    )


def test_the_load_had_every_kind_of_end(seen: Seen) -> None:
    assert {outcome for *_, outcome in seen.ledger.outcomes} == {
        "complete",
        "partial",
        "cancelled",
        "invalid_argument",
        "not_found",
        "unavailable",
        "deadline_exceeded",
        "resource_exhausted",
    }


def test_explanations_counted_are_those_that_were_sent(seen: Seen) -> None:
    outcomes = counted(seen, "vitrail_explanations_total", "model", "method", "outcome")

    assert outcomes == seen.ledger.outcomes
    print(f"\n{sum(outcomes.values())} explanations sent and counted:", dict(outcomes))  # noqa: T201


def test_plans_and_their_evaluations_are_those_that_were_received(seen: Seen) -> None:
    of = ("model", "method")

    assert counted(seen, "vitrail_explanation_plans_total", *of) == seen.ledger.plans
    announced = counted(seen, "vitrail_explanation_announced_evaluations_total", *of)
    assert announced == seen.ledger.announced
    assert announced == counted(seen, "vitrail_explanation_evaluations_total", *of)


def test_evaluations_are_those_of_the_summaries(seen: Seen) -> None:
    """Of those that were cancelled only the announced number is known: they have a model of their own."""
    results = counted(seen, "vitrail_explanation_evaluations_total", "model", "method", "result")

    assert {key: count for key, count in results.items() if key[0] == MODEL} == {
        key: count for key, count in seen.ledger.results.items() if key[0] == MODEL and count
    }


def test_tiles_are_those_that_were_received(seen: Seen) -> None:
    """Whole maps are pasted by the server, and of an abandoned map more may be on their way."""
    tiles = counted(seen, "vitrail_explanation_tiles_total", "model", "method")

    for key, count in seen.ledger.tiles.items():
        assert tiles[key] >= count, key
    messages = counted(
        seen, "grpc_server_msg_sent_total", "grpc_method", selector='grpc_method="ExplainStream"'
    )
    assert messages == {("ExplainStream",): seen.ledger.received["ExplainStream"]}


def test_rpcs_and_messages_are_those_that_were_sent(seen: Seen) -> None:
    ours = 'grpc_service=~"vitrail.v1.*"'
    handled = counted(seen, "grpc_server_handled_total", "grpc_method", "grpc_code", selector=ours)
    started = counted(seen, "grpc_server_started_total", "grpc_method", selector=ours)
    received = counted(seen, "grpc_server_msg_received_total", "grpc_method", selector=ours)
    sent = counted(seen, "grpc_server_msg_sent_total", "grpc_method", selector=ours)

    assert handled == seen.ledger.rpcs
    assert started.total() == handled.total()
    assert {name: count for (name,), count in received.items()} == dict(seen.ledger.sent)
    for name in ("Explain", "ExplainStream", "ListModels"):
        assert sent[name,] == seen.ledger.received[name]
    assert sent["ExplainTiles",] >= seen.ledger.received["ExplainTiles"]


def test_waits_are_told_apart_by_priority(seen: Seen) -> None:
    """Who got a plan has waited; who was cancelled or refused in the queue may have too."""
    waits = counted(seen, "vitrail_queue_wait_seconds_count", "priority")

    assert set(seen.ledger.priorities) == {"urgent", "default", "background"}
    for name, count in seen.ledger.priorities.items():
        assert waits[name,] >= count


def test_the_device_computed_all_that_was_done(seen: Seen) -> None:
    """And some rows that were in a batch when nobody wanted them any more."""
    rows = counted(seen, "vitrail_batch_rows_sum").total()
    done = counted(seen, "vitrail_explanation_evaluations_total", selector='result="done"').total()
    dropped = counted(seen, "vitrail_batch_dropped_rows_total").total()

    assert rows >= done > 0
    assert dropped > 0


def test_nothing_is_left_in_flight(seen: Seen) -> None:
    for gauge in ("vitrail_explanations_in_flight", "vitrail_queue_depth", "vitrail_batches_in_flight"):
        assert seen.prometheus.now(gauge)[0].values[0][1] == 0, gauge


def test_models_show_the_states_that_they_are_in(seen: Seen) -> None:
    states = {
        (series.labels["model"], series.labels["state"])
        for series in seen.prometheus.now("vitrail_model_state == 1")
    }

    assert states == {(MODEL, "AVAILABLE"), (ABANDONED, "AVAILABLE"), (BROKEN, "END")}


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.board}-{query.title}-{query.legend}")
@pytest.mark.parametrize("chosen", [".*", MODEL], ids=["all", "one model"])
def test_every_query_of_a_panel_has_data(seen: Seen, query: Query, chosen: str) -> None:
    answer = seen.prometheus.range(query.promql(model=chosen), seen.begin, seen.end)

    assert [value for series in answer for _, value in series.values if math.isfinite(value)], query.promql()


@pytest.mark.parametrize("name", RECORDED)
def test_every_recording_rule_has_data(seen: Seen, name: str) -> None:
    rules = [rule for rule in seen.prometheus.rules() if rule["name"] == name]
    answer = seen.prometheus.range(name, seen.begin, seen.end)

    assert rules
    assert [(rule["health"], rule.get("lastError", "")) for rule in rules] == [("ok", "")] * len(rules)
    assert [value for series in answer for _, value in series.values if math.isfinite(value)]


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_is_evaluated_on_data(seen: Seen, name: str) -> None:
    (rule,) = (rule for rule in seen.prometheus.rules() if rule["name"] == name)

    assert (rule["health"], rule.get("lastError", "")) == ("ok", "")
    for metric in metrics_of(rule["query"]):
        if metric != "vitrail_model_refused":  # no model of this repository is
            assert seen.prometheus.now(metric), metric


def test_the_model_that_failed_to_load_raises_the_alert(seen: Seen) -> None:
    (rule,) = (rule for rule in seen.prometheus.rules() if rule["name"] == "VitrailModelFailedToLoad")

    assert rule["state"] in ("pending", "firing")
    assert [alert["labels"]["model"] for alert in rule["alerts"]] == [BROKEN]


@pytest.mark.parametrize("name", ["VitrailDown", "VitrailNoDeviceProgress", "VitrailMemoryNearLimit"])
def test_alerts_without_a_reason_are_quiet(seen: Seen, name: str) -> None:
    (rule,) = (rule for rule in seen.prometheus.rules() if rule["name"] == name)

    assert rule["state"] == "inactive"


def test_what_the_server_exposes_is_to_promtools_taste(seen: Seen) -> None:
    exposed = urlopen(f"http://{seen.server.metrics}/metrics").read()
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=exposed, capture_output=True, check=False
    )

    assert checked.stderr.decode() + checked.stdout.decode() == ""


def test_the_picture_is_drawn(seen: Seen, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    wanted = request.config.getoption("--picture")
    if wanted is not None:
        from monitoring.picture import draw

        path = ROOT / wanted
        draw(path, seen.prometheus, seen.begin, seen.end)
        assert path.stat().st_size < 300_000


def metrics_of(expression: str) -> Iterator[str]:
    """Yield the names of the series in an expression."""
    yield from set(re.findall(r"\b(?:up|(?:vitrail|process|job|instance)[\w:]*_[\w:]+)\b", expression))
