"""A dashboard as data, and how it becomes Grafana's JSON: places, ids, colours and the data source.

Panels are set from left to right and top to bottom in the order of their sections, and numbered in it.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphTresholdsStyleMode,
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

DATASOURCE = DataSourceRef(type_val="prometheus", uid="$datasource")
TAG = "vitrail"
GRID_WIDTH = 24
COLOURS = ("yellow", "red")

PanelBuilder = timeseries.Panel | stat.Panel | heatmap.Panel


@dataclass(frozen=True, slots=True)
class Panel(ABC):
    """One panel: a title, a sentence, a unit of Grafana's and queries by legend, or the only one."""

    title: str
    text: str
    unit: str
    queries: str | Mapping[str, str]
    width: int
    limits: Sequence[float] = ()
    """From the first on a value is yellow, from the second on red."""
    most: float | None = None
    """The upper end of the axis. None: what there is."""

    height = 8

    @abstractmethod
    def builder(self) -> PanelBuilder:
        """Return the panel without what all kinds of panels have."""


class Stat(Panel):
    """The last value, as a number."""

    __slots__ = ()
    height = 4

    def builder(self) -> stat.Panel:
        """Return a number."""
        return stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


class Graph(Panel):
    """Lines over time, with the limits drawn."""

    __slots__ = ()

    def builder(self) -> timeseries.Panel:
        """Return lines."""
        legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).show_legend(show_legend=True)
        built = (
            timeseries.Panel()
            .legend(legend.placement(LegendPlacement.BOTTOM))
            .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
            .show_points(VisibilityMode.NEVER)
            .line_width(2)
            .fill_opacity(5)
        )
        if self.limits:
            style = common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.LINE)
            built.thresholds_style(style)
        return built


class Stack(Graph):
    """Areas over time that add up."""

    __slots__ = ()

    def builder(self) -> timeseries.Panel:
        """Return areas."""
        stacking = common.StackingConfig().mode(StackingMode.NORMAL)
        return Graph.builder(self).fill_opacity(30).stacking(stacking)


class Heat(Panel):
    """The buckets of a histogram over time."""

    __slots__ = ()

    def builder(self) -> heatmap.Panel:
        """Return a heat map."""
        axis = heatmap.YAxisConfig().unit(self.unit)
        return heatmap.Panel().calculate(calculate=False).y_axis(axis).show_legend().show_tooltip()


@dataclass(frozen=True, slots=True)
class Section:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard. `variables` are label values to choose from: name and query, beside job and instance."""

    title: str
    uid: str
    text: str
    sections: Sequence[Section]
    variables: Mapping[str, str]

    def json(self) -> str:
        """Return the file."""
        return json.dumps(self._built().build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"

    def _built(self) -> dashboard.Dashboard:
        board = self._frame()
        number, top = 1, 0
        for section in self.sections:
            place = GridPos(x=0, y=top, w=GRID_WIDTH, h=1)
            board.with_row(dashboard.Row(section.title).id(number).grid_pos(place))
            number, top, left, height = number + 1, top + 1, 0, 0
            for panel in section.panels:
                if left + panel.width > GRID_WIDTH:
                    top, left = top + height, 0
                place = GridPos(x=left, y=top, w=panel.width, h=panel.height)
                board.with_panel(_filled(panel).id(number).grid_pos(place))
                number, left, height = number + 1, left + panel.width, panel.height
            top += height
        return board

    def _frame(self) -> dashboard.Dashboard:
        """Return the dashboard without its panels."""
        links = dashboard.DashboardLink("Vitrail").type(DashboardLinkType.DASHBOARDS).tags([TAG])
        board = (
            dashboard.Dashboard(self.title)
            .uid(self.uid)
            .description(self.text)
            .tags([TAG])
            .tooltip(DashboardCursorSync.CROSSHAIR)
            .time("now-1h", "now")
            .timezone("browser")
            .refresh("30s")
            .annotations([])
            .link(links.include_vars(include_vars=True).keep_time(keep_time=True))
            .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
            .with_variable(_variable("job", "vitrail_build_info"))
            .with_variable(_variable("instance", 'vitrail_build_info{job=~"$job"}'))
        )
        for name, series in self.variables.items():
            board.with_variable(_variable(name, series))
        return board


def _variable(name: str, series: str) -> dashboard.QueryVariable:
    """Return a variable of the values that a label has; All takes the series where it is empty too."""
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


def _filled(panel: Panel) -> PanelBuilder:
    """Return a panel with everything but its place."""
    built = panel.builder().title(panel.title).description(panel.text).datasource(DATASOURCE)
    built.unit(panel.unit).min(0)
    if panel.most is not None:
        built.max(panel.most)
    limits = zip(COLOURS[: len(panel.limits)], panel.limits, strict=True)
    steps = [Threshold(color="green"), *(Threshold(color=colour, value=limit) for colour, limit in limits)]
    built.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    queries = {"__auto": panel.queries} if isinstance(panel.queries, str) else panel.queries
    form = PromQueryFormat.HEATMAP if isinstance(panel, Heat) else PromQueryFormat.TIME_SERIES
    for position, (legend, expression) in enumerate(queries.items()):
        query = prometheus.Dataquery().ref_id(chr(ord("A") + position)).datasource(DATASOURCE).range()
        built.with_target(query.expr(expression).legend_format(legend).format(form))
    return built
