"""The dashboard per model, version and method."""

from grafana_dashboards.board import Board, Graph, Heat, Section, Stack, Stat
from grafana_dashboards.queries import (
    ERROR_BUDGET,
    EXPLANATIONS,
    FAILURES,
    FIRST_TILE_SECONDS,
    SERVERS,
    buckets,
    mean,
    rate,
    ratio,
    recorded_p95,
)

EACH = "{{model}} {{version}} {{method}}"
OF_VERSIONS = f'{SERVERS}, model=~"$model", version=~"$version"'
OF_MODELS = f'{SERVERS}, model=~"$model"'

NOW = Section(
    "Now",
    (
        Stat(
            "Explanations",
            "Explanations that end, whatever their outcome.",
            "ops",
            rate("vitrail_explanations_total", EXPLANATIONS),
            6,
        ),
        Stat(
            "Failures, 1 h",
            "The part of the last hour's explanations that the server failed.",
            "percentunit",
            f"sum(rate(vitrail_explanations_total{{{EXPLANATIONS}, {FAILURES}}}[1h]))"
            f" / sum(rate(vitrail_explanations_total{{{EXPLANATIONS}}}[1h]))",
            6,
            limits=ERROR_BUDGET,
        ),
        Stat(
            "Duration, p95",
            "Of the slowest version and method.",
            "s",
            f"max({recorded_p95('vitrail_explanation_duration_seconds')})",
            6,
        ),
        Stat(
            "First tile, p95",
            "Of the slowest version and method; the objective is 1 s.",
            "s",
            f"max({recorded_p95('vitrail_explanation_first_tile_seconds')})",
            6,
            limits=(FIRST_TILE_SECONDS,),
        ),
    ),
)

TRAFFIC = Section(
    "Explanations",
    (
        Stack(
            "By version and method",
            "Explanations that end, whatever their outcome.",
            "ops",
            {EACH: rate("vitrail_explanations_total", EXPLANATIONS, "model, version, method")},
            8,
        ),
        Stack(
            "By outcome",
            "Complete, partial, or the status code that they ended with.",
            "ops",
            {"{{outcome}}": f"{rate('vitrail_explanations_total', EXPLANATIONS, 'outcome')} > 0"},
            8,
        ),
        Stack(
            "By execution",
            "How the plans say that their evaluations are computed.",
            "ops",
            {"{{execution}}": rate("vitrail_explanation_plans_total", EXPLANATIONS, "execution")},
            8,
        ),
    ),
)

LATENCY = Section(
    "Latency",
    (
        Graph(
            "Duration, p95",
            "From a request's arrival to its last message.",
            "s",
            {EACH: recorded_p95("vitrail_explanation_duration_seconds")},
            8,
        ),
        Graph(
            "First tile, p95",
            "From a request's arrival to its first tile; the objective is 1 s.",
            "s",
            {EACH: recorded_p95("vitrail_explanation_first_tile_seconds")},
            8,
            limits=(FIRST_TILE_SECONDS,),
        ),
        Stack(
            "Where the time goes",
            "The mean time of an explanation in each stage. It is written while the device computes.",
            "s",
            {"{{stage}}": mean("vitrail_explanation_stage_duration_seconds", EXPLANATIONS, "stage")},
            8,
        ),
        Heat(
            "Durations",
            "How many explanations took how long.",
            "s",
            {"{{le}}": buckets("vitrail_explanation_duration_seconds", EXPLANATIONS)},
            12,
        ),
        Heat(
            "First tiles",
            "How many first tiles took how long.",
            "s",
            {"{{le}}": buckets("vitrail_explanation_first_tile_seconds", EXPLANATIONS)},
            12,
        ),
    ),
)

WORK = Section(
    "Work",
    (
        Stack(
            "Announced evaluations by how they ended",
            "Done on the device, skipped because the window showed the fill already, or dropped.",
            "ops",
            {"{{result}}": rate("vitrail_explanation_evaluations_total", EXPLANATIONS, "result")},
            8,
        ),
        Graph(
            "Evaluations of one explanation",
            "The mean number that a plan announces.",
            "short",
            {
                "{{model}} {{method}}": ratio(
                    "vitrail_explanation_announced_evaluations_total",
                    "vitrail_explanation_plans_total",
                    EXPLANATIONS,
                    "model, method",
                )
            },
            8,
        ),
        Graph(
            "Tiles of one explanation",
            "The mean number sent; a slow reader gets fewer and larger ones.",
            "short",
            {
                "{{model}} {{method}}": ratio(
                    "vitrail_explanation_tiles_total",
                    "vitrail_explanation_plans_total",
                    EXPLANATIONS,
                    "model, method",
                )
            },
            8,
        ),
    ),
)

VERSIONS = Section(
    "Versions",
    (
        Stack(
            "State",
            "The state that each version is in. END: failed to load.",
            "short",
            {
                "{{model}} {{version}} {{state}}": "sum by (model, version, state) "
                f"(vitrail_model_state{{{OF_VERSIONS}}} == 1)"
            },
            8,
        ),
        Graph(
            "Time to load",
            "The mean time of loading and warming up a version, since the server began.",
            "s",
            {
                "{{model}} {{outcome}}": "sum by (model, outcome) "
                f"(vitrail_model_load_duration_seconds_sum{{{OF_MODELS}}}) / sum by (model, outcome) "
                f"(vitrail_model_load_duration_seconds_count{{{OF_MODELS}}})"
            },
            8,
        ),
        Graph(
            "Replacements",
            "How often what a model serves was replaced in the last hour, or should have been and stayed.",
            "short",
            {
                "{{model}} {{outcome}}": "sum by (model, outcome) "
                f"(increase(vitrail_model_reloads_total{{{OF_MODELS}}}[1h]))"
            },
            8,
        ),
    ),
)

BOARD = Board(
    title="Vitrail: models",
    uid="vitrail-models",
    text="Each model, version and method by itself.",
    sections=(NOW, TRAFFIC, LATENCY, WORK, VERSIONS),
    variables={
        "model": f"vitrail_explanations_total{{{SERVERS}}}",
        "version": f"vitrail_explanations_total{{{OF_MODELS}}}",
        "method": f"vitrail_explanations_total{{{OF_VERSIONS}}}",
    },
)
