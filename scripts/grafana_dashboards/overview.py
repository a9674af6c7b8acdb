"""The dashboard for the wall: how all servers are doing."""

from grafana_dashboards.board import Board, Graph, Section, Stack, Stat
from grafana_dashboards.queries import (
    ERROR_BUDGET,
    FIRST_TILE_BUDGET,
    FIRST_TILE_SECONDS,
    SERVERS,
    mean,
    quantiles,
    rate,
    share,
)

NOW = Section(
    "Now",
    (
        Stat(
            "Explanations",
            "Explanations that end, whatever their outcome.",
            "ops",
            rate("vitrail_explanations_total", SERVERS),
            4,
        ),
        Stat(
            "Failures, 1 h",
            "The part of the last hour's explanations that the server failed; the budget is 0.5 %.",
            "percentunit",
            'max(job:vitrail_explanation_errors:ratio_rate1h{job=~"$job"})',
            4,
            limits=ERROR_BUDGET,
        ),
        Stat(
            "Slow first tiles, 1 h",
            "The part of the last hour's first tiles that took longer than 1 s; the budget is 5 %.",
            "percentunit",
            'max(job:vitrail_explanation_first_tile_slow:ratio_rate1h{job=~"$job"})',
            4,
            limits=FIRST_TILE_BUDGET,
        ),
        Stat(
            "Device use",
            "The part of the time that the devices compute, as the mean over the servers.",
            "percentunit",
            f"avg(instance:vitrail_device_use:ratio_rate5m{{{SERVERS}}})",
            4,
        ),
        Stat(
            "Permits out",
            "Explanations in flight against the most that are taken, on the fullest server.",
            "percentunit",
            f"max(instance:vitrail_explanations_in_flight:ratio{{{SERVERS}}})",
            4,
            limits=(0.7, 0.9),
        ),
        Stat(
            "Versions available",
            "Versions of models that answer requests, over all servers.",
            "short",
            f'sum(vitrail_model_state{{{SERVERS}, state="AVAILABLE"}})',
            4,
        ),
    ),
)

TRAFFIC = Section(
    "Traffic and errors",
    (
        Stack(
            "Explanations by outcome",
            "Complete, partial, or the status code that they ended with.",
            "ops",
            {"{{outcome}}": f"{rate('vitrail_explanations_total', SERVERS, 'outcome')} > 0"},
            8,
        ),
        Graph(
            "Failures against the budget",
            "The part of the explanations that the server failed, by the windows of the alerts.",
            "percentunit",
            {
                window: f'max(job:vitrail_explanation_errors:ratio_rate{window}{{job=~"$job"}})'
                for window in ("5m", "30m", "1h", "6h")
            },
            8,
            limits=ERROR_BUDGET,
        ),
        Stack(
            "Rpcs by status code",
            "Every rpc of the server, health checks and model listings included.",
            "ops",
            {"{{grpc_code}}": rate("grpc_server_handled_total", SERVERS, "grpc_code")},
            8,
        ),
    ),
)

LATENCY = Section(
    "Latency",
    (
        Graph(
            "Duration",
            "From a request's arrival to its last message.",
            "s",
            quantiles("vitrail_explanation_duration_seconds", SERVERS),
            8,
        ),
        Graph(
            "First tile",
            "From a request's arrival to its first tile; the objective is 1 s for 95 %.",
            "s",
            quantiles("vitrail_explanation_first_tile_seconds", SERVERS),
            8,
            limits=(FIRST_TILE_SECONDS,),
        ),
        Stack(
            "Where the time goes",
            "The mean time of an explanation in each stage. It is written while the device computes.",
            "s",
            {"{{stage}}": mean("vitrail_explanation_stage_duration_seconds", SERVERS, "stage")},
            8,
        ),
    ),
)

DEVICE = Section(
    "Device and queue",
    (
        Graph(
            "Device use and batch fill",
            "The part of the time that a device computes, and of its rows that are no padding.",
            "percentunit",
            {
                "use {{instance}} {{device}}": rate(
                    "vitrail_batch_duration_seconds_sum", SERVERS, "instance, device"
                ),
                "fill {{instance}}": share(
                    "vitrail_batch_rows_sum", "vitrail_batch_padding_rows_total", SERVERS, "instance"
                ),
            },
            8,
            most=1.0,
        ),
        Graph(
            "Queue",
            "Explanations in flight, those of them with rows that wait for a batch, and the limit.",
            "short",
            {
                "limit": f"sum(vitrail_explanations_limit{{{SERVERS}}})",
                "in flight": f"sum(vitrail_explanations_in_flight{{{SERVERS}}})",
                "waiting": f"sum(vitrail_queue_depth{{{SERVERS}}})",
                "batches": f"sum(vitrail_batches_in_flight{{{SERVERS}}})",
            },
            8,
        ),
        Graph(
            "Wait for the first batch",
            "The mean wait of explanations of urgent, default and background priority.",
            "s",
            {"{{priority}}": mean("vitrail_queue_wait_seconds", SERVERS, "priority")},
            8,
        ),
        Graph(
            "Rows in a batch",
            "The mean number of rows in a batch, without padding.",
            "short",
            {"{{program}}": mean("vitrail_batch_rows", SERVERS, "program")},
            6,
        ),
        Graph(
            "Duration of a batch",
            "The mean duration; batch sizes are chosen so that it stays within the time slice.",
            "s",
            {"{{program}}": mean("vitrail_batch_duration_seconds", SERVERS, "program")},
            6,
        ),
        Graph(
            "Padding and dropped rows",
            "Rows computed for nothing, and rows left out because nobody wanted them any more.",
            "ops",
            {
                "padding {{program}}": rate("vitrail_batch_padding_rows_total", SERVERS, "program"),
                "dropped {{program}}": rate("vitrail_batch_dropped_rows_total", SERVERS, "program"),
            },
            6,
        ),
        Graph(
            "Failed batches",
            "Out of memory: tried again in smaller batches. Error: the explanation fails.",
            "ops",
            {"{{reason}}": rate("vitrail_batch_failures_total", SERVERS, "reason")},
            6,
        ),
    ),
)

PROCESS = Section(
    "Process and models",
    (
        Graph(
            "Memory",
            "Memory in use, and the most that the process may take.",
            "bytes",
            {
                "in use {{instance}}": f"process_resident_memory_bytes{{{SERVERS}}}",
                "limit {{instance}}": f"vitrail_memory_limit_bytes{{{SERVERS}}}",
            },
            8,
        ),
        Graph(
            "Processors in use",
            "Seconds of processor time spent per second.",
            "short",
            {"{{instance}}": rate("process_cpu_seconds_total", SERVERS, "instance")},
            8,
        ),
        Stack(
            "Versions by state",
            "END: failed to load. Versions that were unloaded are not shown.",
            "short",
            {"{{state}}": f"sum by (state) (vitrail_model_state{{{SERVERS}}})"},
            8,
        ),
    ),
)

BOARD = Board(
    title="Vitrail: overview",
    uid="vitrail-overview",
    text="Traffic, errors, latency and the device, over all models.",
    sections=(NOW, TRAFFIC, LATENCY, DEVICE, PROCESS),
    variables={},
)
