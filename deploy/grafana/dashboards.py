"""The Grafana dashboards: run this file to write `overview.json` and `models.json` beside it.

`--check` writes nothing and fails if the files are not what this code makes. The data source and what is
looked at are variables; the queries are proved against a real Prometheus by `scripts/monitoring`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    GridPos,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

HERE = Path(__file__).parent
DATASOURCE = DataSourceRef(type_val="prometheus", uid="$datasource")
TAG = "vitrail"
GRID_WIDTH = 24
STAT_HEIGHT, GRAPH_HEIGHT = 4, 8

SERVERS = 'job=~"$job", instance=~"$instance"'
VERSIONS = f'{SERVERS}, model=~"$model", version=~"$version", method=~"$method"'
QUANTILES = (0.5, 0.95, 0.99)

FAILURES = 'outcome=~"internal|unavailable|deadline_exceeded"'
"""What the server is to blame for, as in deploy/prometheus/rules/recording.yml."""

ERROR_BUDGET = 0.005
SLOW_BUDGET = 0.05
FIRST_TILE_SECONDS = 1.0

Builder = timeseries.Panel | stat.Panel | heatmap.Panel


@dataclass(frozen=True, kw_only=True)
class Query:
    """One expression of a panel, and how its series are called."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel, without its place. `limits` colours values from there on: yellow, then red."""

    title: str
    text: str
    unit: str
    queries: Sequence[Query]
    width: int
    limits: Sequence[float] = ()
    most: float | None = None
    """The highest value that makes sense. None: there is none."""


class Stat(Panel):
    """The last value as a number."""


class Graph(Panel):
    """Lines over time."""


class Stack(Graph):
    """Areas over time that add up."""


class Heat(Panel):
    """The buckets of a histogram over time."""


@dataclass(frozen=True)
class Section:
    """A row of the dashboard with its panels, which are set from left to right."""

    title: str
    panels: Sequence[Panel] = field(default_factory=tuple)


def quantiles(metric: str, selector: str, by: str = "") -> list[Query]:
    """Return one query per quantile of a histogram."""
    labels = f"{by}, le" if by else "le"
    return [
        Query(
            expression=f"histogram_quantile({each}, "
            f"sum by ({labels}) (rate({metric}_bucket{{{selector}}}[$__rate_interval])))",
            legend=f"{{{{{by}}}}} p{each * 100:g}" if by else f"p{each * 100:g}",
        )
        for each in QUANTILES
    ]


def rate(metric: str, selector: str, by: str) -> str:
    """Return the rate of a counter per second, summed by labels."""
    return f"sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))"


def mean(metric: str, selector: str, by: str) -> str:
    """Return the mean of a histogram's values."""
    return f"{rate(f'{metric}_sum', selector, by)} / {rate(f'{metric}_count', selector, by)}"


OVERVIEW = (
    Section(
        "Now",
        (
            Stat(
                title="Explanations",
                text="Explanations that end, whatever their outcome.",
                unit="ops",
                queries=[
                    Query(expression=f"sum(rate(vitrail_explanations_total{{{SERVERS}}}[$__rate_interval]))")
                ],
                width=4,
            ),
            Stat(
                title="Failures, 1 h",
                text="The part of the last hour's explanations that the server failed; the budget is 0.5 %.",
                unit="percentunit",
                queries=[Query(expression='max(job:vitrail_explanation_errors:ratio_rate1h{job=~"$job"})')],
                width=4,
                limits=(ERROR_BUDGET, 14.4 * ERROR_BUDGET),
            ),
            Stat(
                title="Slow first tiles, 1 h",
                text="The part of the last hour's first tiles that took longer than 1 s; the budget is 5 %.",
                unit="percentunit",
                queries=[
                    Query(expression='max(job:vitrail_explanation_first_tile_slow:ratio_rate1h{job=~"$job"})')
                ],
                width=4,
                limits=(SLOW_BUDGET, 14.4 * SLOW_BUDGET),
            ),
            Stat(
                title="Device use",
                text="The part of the time that the devices compute, as the mean over the servers.",
                unit="percentunit",
                queries=[Query(expression=f"avg(instance:vitrail_device_use:ratio_rate5m{{{SERVERS}}})")],
                width=4,
            ),
            Stat(
                title="Permits out",
                text="Explanations in flight against the most that are taken, on the fullest server.",
                unit="percentunit",
                queries=[
                    Query(expression=f"max(instance:vitrail_explanations_in_flight:ratio{{{SERVERS}}})")
                ],
                width=4,
                limits=(0.7, 0.9),
            ),
            Stat(
                title="Versions available",
                text="Versions of models that answer requests, over all servers.",
                unit="short",
                queries=[Query(expression=f'sum(vitrail_model_state{{{SERVERS}, state="AVAILABLE"}})')],
                width=4,
            ),
        ),
    ),
    Section(
        "Traffic and errors",
        (
            Stack(
                title="Explanations by outcome",
                text="Complete, partial, or the status code that they ended with.",
                unit="ops",
                queries=[
                    Query(
                        expression=f"{rate('vitrail_explanations_total', SERVERS, 'outcome')} > 0",
                        legend="{{outcome}}",
                    )
                ],
                width=8,
            ),
            Graph(
                title="Failures against the budget",
                text="The part of the explanations that the server failed, by the windows that the alerts use.",
                unit="percentunit",
                queries=[
                    Query(
                        expression=f'max(job:vitrail_explanation_errors:ratio_rate{window}{{job=~"$job"}})',
                        legend=window,
                    )
                    for window in ("5m", "30m", "1h", "6h")
                ],
                width=8,
                limits=(ERROR_BUDGET, 14.4 * ERROR_BUDGET),
            ),
            Stack(
                title="Rpcs by status code",
                text="Every rpc of the server, health checks and model listings included.",
                unit="ops",
                queries=[
                    Query(
                        expression=rate("grpc_server_handled_total", SERVERS, "grpc_code"),
                        legend="{{grpc_code}}",
                    )
                ],
                width=8,
            ),
        ),
    ),
    Section(
        "Latency",
        (
            Graph(
                title="Duration",
                text="From a request's arrival to its last message.",
                unit="s",
                queries=quantiles("vitrail_explanation_duration_seconds", SERVERS),
                width=8,
            ),
            Graph(
                title="First tile",
                text="From a request's arrival to its first tile; the objective is 1 s for 95 %.",
                unit="s",
                queries=quantiles("vitrail_explanation_first_tile_seconds", SERVERS),
                width=8,
                limits=(FIRST_TILE_SECONDS,),
            ),
            Stack(
                title="Where the time goes",
                text="The mean time of an explanation in each stage. Writing goes on while the device computes.",
                unit="s",
                queries=[
                    Query(
                        expression=mean("vitrail_explanation_stage_duration_seconds", SERVERS, "stage"),
                        legend="{{stage}}",
                    )
                ],
                width=8,
            ),
        ),
    ),
    Section(
        "Device and queue",
        (
            Graph(
                title="Device use and batch fill",
                text="The part of the time that a device computes, and of its rows that are no padding.",
                unit="percentunit",
                queries=[
                    Query(
                        expression=f"instance:vitrail_device_use:ratio_rate5m{{{SERVERS}}}",
                        legend="use {{instance}}",
                    ),
                    Query(
                        expression=f"instance:vitrail_batch_fill:ratio_rate5m{{{SERVERS}}}",
                        legend="fill {{instance}}",
                    ),
                ],
                width=8,
                most=1.0,
            ),
            Graph(
                title="Queue",
                text="Explanations in flight, those with rows that wait for a place in a batch, and the limit.",
                unit="short",
                queries=[
                    Query(expression=f"sum(vitrail_explanations_in_flight{{{SERVERS}}})", legend="in flight"),
                    Query(expression=f"sum(vitrail_queue_depth{{{SERVERS}}})", legend="waiting for a batch"),
                    Query(expression=f"sum(vitrail_batches_in_flight{{{SERVERS}}})", legend="batches"),
                    Query(expression=f"sum(vitrail_explanations_limit{{{SERVERS}}})", legend="limit"),
                ],
                width=8,
            ),
            Graph(
                title="Wait for the first batch by priority",
                text="The mean wait of explanations of urgent, default and background priority.",
                unit="s",
                queries=[
                    Query(
                        expression=mean("vitrail_queue_wait_seconds", SERVERS, "priority"),
                        legend="{{priority}}",
                    )
                ],
                width=8,
            ),
            Graph(
                title="Rows in a batch",
                text="The mean number of rows in a batch, without padding.",
                unit="short",
                queries=[
                    Query(expression=mean("vitrail_batch_rows", SERVERS, "program"), legend="{{program}}")
                ],
                width=6,
            ),
            Graph(
                title="Duration of a batch",
                text="The mean duration; the server chooses batch sizes that stay within its time slice.",
                unit="s",
                queries=[
                    Query(
                        expression=mean("vitrail_batch_duration_seconds", SERVERS, "program"),
                        legend="{{program}}",
                    )
                ],
                width=6,
            ),
            Graph(
                title="Padding and dropped rows",
                text="Rows computed for nothing, and rows left out because nobody wanted them any more.",
                unit="ops",
                queries=[
                    Query(
                        expression=rate("vitrail_batch_padding_rows_total", SERVERS, "program"),
                        legend="padding {{program}}",
                    ),
                    Query(
                        expression=rate("vitrail_batch_dropped_rows_total", SERVERS, "program"),
                        legend="dropped {{program}}",
                    ),
                ],
                width=6,
            ),
            Graph(
                title="Failed batches",
                text="Out of memory: tried again in smaller batches. Error: the explanation fails.",
                unit="ops",
                queries=[
                    Query(
                        expression=rate("vitrail_batch_failures_total", SERVERS, "reason"),
                        legend="{{reason}}",
                    )
                ],
                width=6,
            ),
        ),
    ),
    Section(
        "Process and models",
        (
            Graph(
                title="Memory",
                text="Memory in use, and the most that the process may take.",
                unit="bytes",
                queries=[
                    Query(
                        expression=f"process_resident_memory_bytes{{{SERVERS}}}", legend="in use {{instance}}"
                    ),
                    Query(expression=f"vitrail_memory_limit_bytes{{{SERVERS}}}", legend="limit {{instance}}"),
                ],
                width=8,
            ),
            Graph(
                title="Processors in use",
                text="Seconds of processor time spent per second.",
                unit="short",
                queries=[
                    Query(
                        expression=f"rate(process_cpu_seconds_total{{{SERVERS}}}[$__rate_interval])",
                        legend="{{instance}}",
                    )
                ],
                width=8,
            ),
            Stack(
                title="Versions by state",
                text="END: failed to load. Versions that were unloaded are not shown.",
                unit="short",
                queries=[
                    Query(expression=f"sum by (state) (vitrail_model_state{{{SERVERS}}})", legend="{{state}}")
                ],
                width=8,
            ),
        ),
    ),
)

MODELS = (
    Section(
        "Now",
        (
            Stat(
                title="Explanations",
                text="Explanations of these versions that end, whatever their outcome.",
                unit="ops",
                queries=[
                    Query(expression=f"sum(rate(vitrail_explanations_total{{{VERSIONS}}}[$__rate_interval]))")
                ],
                width=6,
            ),
            Stat(
                title="Failures, 1 h",
                text="The part of the last hour's explanations that the server failed.",
                unit="percentunit",
                queries=[
                    Query(
                        expression=f"sum(rate(vitrail_explanations_total{{{VERSIONS}, {FAILURES}}}[1h])) "
                        f"/ sum(rate(vitrail_explanations_total{{{VERSIONS}}}[1h]))"
                    )
                ],
                width=6,
                limits=(ERROR_BUDGET, 14.4 * ERROR_BUDGET),
            ),
            Stat(
                title="Duration, p95",
                text="The slowest of these versions and methods.",
                unit="s",
                queries=[
                    Query(
                        expression="max(model_version_method:vitrail_explanation_duration_seconds:quantile5m"
                        f'{{job=~"$job", model=~"$model", version=~"$version", method=~"$method", quantile="0.95"}})'
                    )
                ],
                width=6,
            ),
            Stat(
                title="First tile, p95",
                text="The slowest of these versions and methods; the objective is 1 s.",
                unit="s",
                queries=[
                    Query(
                        expression="max(model_version_method:vitrail_explanation_first_tile_seconds:quantile5m"
                        f'{{job=~"$job", model=~"$model", version=~"$version", method=~"$method", quantile="0.95"}})'
                    )
                ],
                width=6,
                limits=(FIRST_TILE_SECONDS,),
            ),
        ),
    ),
    Section(
        "Explanations",
        (
            Stack(
                title="By version and method",
                text="Explanations that end, whatever their outcome.",
                unit="ops",
                queries=[
                    Query(
                        expression=rate("vitrail_explanations_total", VERSIONS, "model, version, method"),
                        legend="{{model}} {{version}} {{method}}",
                    )
                ],
                width=8,
            ),
            Stack(
                title="By outcome",
                text="Complete, partial, or the status code that they ended with.",
                unit="ops",
                queries=[
                    Query(
                        expression=f"{rate('vitrail_explanations_total', VERSIONS, 'outcome')} > 0",
                        legend="{{outcome}}",
                    )
                ],
                width=8,
            ),
            Stack(
                title="By execution",
                text="How the plans say that their evaluations are computed.",
                unit="ops",
                queries=[
                    Query(
                        expression=rate("vitrail_explanation_plans_total", VERSIONS, "execution"),
                        legend="{{execution}}",
                    )
                ],
                width=8,
            ),
        ),
    ),
    Section(
        "Latency",
        (
            Graph(
                title="Duration, p95",
                text="From a request's arrival to its last message, by version and method.",
                unit="s",
                queries=[
                    Query(
                        expression="model_version_method:vitrail_explanation_duration_seconds:quantile5m"
                        f'{{job=~"$job", model=~"$model", version=~"$version", method=~"$method", quantile="0.95"}}',
                        legend="{{model}} {{version}} {{method}}",
                    )
                ],
                width=8,
            ),
            Graph(
                title="First tile, p95",
                text="From a request's arrival to its first tile, by version and method.",
                unit="s",
                queries=[
                    Query(
                        expression="model_version_method:vitrail_explanation_first_tile_seconds:quantile5m"
                        f'{{job=~"$job", model=~"$model", version=~"$version", method=~"$method", quantile="0.95"}}',
                        legend="{{model}} {{version}} {{method}}",
                    )
                ],
                width=8,
                limits=(FIRST_TILE_SECONDS,),
            ),
            Stack(
                title="Where the time goes",
                text="The mean time of an explanation in each stage. Writing goes on while the device computes.",
                unit="s",
                queries=[
                    Query(
                        expression=mean("vitrail_explanation_stage_duration_seconds", VERSIONS, "stage"),
                        legend="{{stage}}",
                    )
                ],
                width=8,
            ),
            Heat(
                title="Durations",
                text="How many explanations took how long.",
                unit="s",
                queries=[
                    Query(
                        expression="sum by (le) "
                        f"(increase(vitrail_explanation_duration_seconds_bucket{{{VERSIONS}}}[$__rate_interval]))",
                        legend="{{le}}",
                    )
                ],
                width=12,
            ),
            Heat(
                title="First tiles",
                text="How many first tiles took how long.",
                unit="s",
                queries=[
                    Query(
                        expression="sum by (le) "
                        f"(increase(vitrail_explanation_first_tile_seconds_bucket{{{VERSIONS}}}[$__rate_interval]))",
                        legend="{{le}}",
                    )
                ],
                width=12,
            ),
        ),
    ),
    Section(
        "Work",
        (
            Stack(
                title="Announced evaluations by how they ended",
                text="Done on the device, skipped because the window showed the fill already, or dropped.",
                unit="ops",
                queries=[
                    Query(
                        expression=rate("vitrail_explanation_evaluations_total", VERSIONS, "result"),
                        legend="{{result}}",
                    )
                ],
                width=8,
            ),
            Graph(
                title="Evaluations of one explanation",
                text="The mean number that a plan announces.",
                unit="short",
                queries=[
                    Query(
                        expression=f"{rate('vitrail_explanation_announced_evaluations_total', VERSIONS, 'model, method')}"
                        f" / {rate('vitrail_explanation_plans_total', VERSIONS, 'model, method')}",
                        legend="{{model}} {{method}}",
                    )
                ],
                width=8,
            ),
            Graph(
                title="Tiles of one explanation",
                text="The mean number written; a slow reader gets fewer and larger ones.",
                unit="short",
                queries=[
                    Query(
                        expression=f"{rate('vitrail_explanation_tiles_total', VERSIONS, 'model, method')}"
                        f" / {rate('vitrail_explanation_plans_total', VERSIONS, 'model, method')}",
                        legend="{{model}} {{method}}",
                    )
                ],
                width=8,
            ),
        ),
    ),
    Section(
        "Versions",
        (
            Graph(
                title="State",
                text="The state that each version is in. END: failed to load.",
                unit="short",
                queries=[
                    Query(
                        expression="sum by (model, version, state) "
                        f'(vitrail_model_state{{{SERVERS}, model=~"$model", version=~"$version"}} == 1)',
                        legend="{{model}} {{version}} {{state}}",
                    )
                ],
                width=12,
            ),
            Graph(
                title="Time to load",
                text="The mean time of loading and warming up one version, since the server began.",
                unit="s",
                queries=[
                    Query(
                        expression="sum by (model, outcome) "
                        f'(vitrail_model_load_duration_seconds_sum{{{SERVERS}, model=~"$model"}}) '
                        "/ sum by (model, outcome) "
                        f'(vitrail_model_load_duration_seconds_count{{{SERVERS}, model=~"$model"}})',
                        legend="{{model}} {{outcome}}",
                    )
                ],
                width=12,
            ),
        ),
    ),
)


def overview() -> dashboard.Dashboard:
    """Return the dashboard for the wall."""
    board = _empty("Vitrail: overview", "vitrail-overview", "Traffic, errors, latency and the device.")
    return _placed(board, OVERVIEW)


def models() -> dashboard.Dashboard:
    """Return the dashboard per model, version and method."""
    board = _empty("Vitrail: models", "vitrail-models", "Each model, version and method by itself.")
    for name, metric, under in (
        ("model", "vitrail_explanations_total", SERVERS),
        ("version", "vitrail_explanations_total", f'{SERVERS}, model=~"$model"'),
        ("method", "vitrail_explanations_total", f'{SERVERS}, model=~"$model", version=~"$version"'),
    ):
        board.with_variable(_labels(name, metric, under))
    return _placed(board, MODELS)


BOARDS = {"overview.json": overview, "models.json": models}


def text_of(name: str) -> str:
    """Return what the file of this name should hold."""
    return json.dumps(BOARDS[name]().build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def main() -> None:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only fail if the files are out of date")
    check = parser.parse_args().check
    for name in BOARDS:
        if not check:
            (HERE / name).write_text(text_of(name), "utf-8")
        elif (HERE / name).read_text("utf-8") != text_of(name):
            sys.exit(f"{name} is out of date: run {Path(__file__).name}")


def _empty(title: str, uid: str, text: str) -> dashboard.Dashboard:
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(text)
        .tags([TAG])
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .link(
            dashboard.DashboardLink("Vitrail")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(as_dropdown=False)
            .include_vars(include_vars=True)
            .keep_time(keep_time=True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_labels("job", "vitrail_build_info"))
        .with_variable(_labels("instance", "vitrail_build_info", 'job=~"$job"'))
    )


def _labels(name: str, metric: str, selector: str = "") -> dashboard.QueryVariable:
    """Return a variable with the values of a label; "All" takes series without it too."""
    series = f"{metric}{{{selector}}}" if selector else metric
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(DATASOURCE)
        .query(f"label_values({series}, {name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".*")
        .current(VariableOption(text="All", value="$__all", selected=True))
    )


def _placed(board: dashboard.Dashboard, sections: Sequence[Section]) -> dashboard.Dashboard:
    """Add the panels, from left to right and top to bottom, with ids in that order."""
    number, top = 1, 0
    for section in sections:
        board.with_row(
            dashboard.Row(section.title).id(number).grid_pos(GridPos(x=0, y=top, w=GRID_WIDTH, h=1))
        )
        number, top, left, height = number + 1, top + 1, 0, 0
        for panel in section.panels:
            if left + panel.width > GRID_WIDTH:
                top, left = top + height, 0
            height = STAT_HEIGHT if isinstance(panel, Stat) else GRAPH_HEIGHT
            place = GridPos(x=left, y=top, w=panel.width, h=height)
            board.with_panel(_built(panel).id(number).grid_pos(place))
            number, left = number + 1, left + panel.width
        top += height
    return board


def _built(panel: Panel) -> Builder:
    built = (
        _stat(panel)
        if isinstance(panel, Stat)
        else _heat(panel)
        if isinstance(panel, Heat)
        else _graph(panel)
    )
    built.title(panel.title).description(panel.text).datasource(DATASOURCE).unit(panel.unit).min(0)
    if panel.most is not None:
        built.max(panel.most)
    colours = zip(("yellow", "red"), panel.limits, strict=False)
    steps = [Threshold(color="green"), *(Threshold(color=colour, value=limit) for colour, limit in colours)]
    built.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    for letter, query in zip("ABCDEF", panel.queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).datasource(DATASOURCE).expr(query.expression)
        target.legend_format(query.legend or "__auto").range()
        if isinstance(panel, Heat):
            target.format(PromQueryFormat.HEATMAP)
        built.with_target(target)
    return built


def _stat(panel: Panel) -> stat.Panel:
    return stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def _heat(panel: Panel) -> heatmap.Panel:
    return heatmap.Panel().calculate(calculate=False).show_legend()


def _graph(panel: Panel) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(show_legend=True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        .line_width(2)
        .show_points(VisibilityMode.NEVER)
        .fill_opacity(30 if isinstance(panel, Stack) else 5)
    )
    if isinstance(panel, Stack):
        built.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if panel.limits:
        built.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.LINE))
    return built


if __name__ == "__main__":
    main()
