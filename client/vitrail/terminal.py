"""What the command line shows a person: a live progress bar and tables. Importing it needs rich."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from vitrail.enums import name_of
from vitrail.explanation import Explanation
from vitrail.methods import Gradient
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.model_pb2 import Model, ModelVersion
from vitrail.v1.tensor_pb2 import DataType, Precision

try:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise ImportError(
        'the progress bar and the tables need rich; install it with: pip install "vitrail[cli]"'
    ) from error

PIPE_WIDTH = 200
"""The most columns of a table that is not written to a terminal."""


class _Rate(ProgressColumn):
    """How many evaluations are done, of how many, and how fast."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        rate = f", {task.speed:.1f}/s" if task.speed else ""
        return Text(f"{task.completed:.0f} of {task.total:.0f} {task.fields['unit']}{rate}")


@contextmanager
def progress(server: str, console: Console | None = None) -> Iterator[Callable[[Explanation], None]]:
    """Show a bar on stderr, if that is a terminal, and yield the function that moves it."""
    console = console or Console(stderr=True)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(f"waiting for {server}", total=None, unit="")

        def show(explanation: Explanation) -> None:
            gradient = isinstance(explanation.method, Gradient)
            # The first evaluation of an occlusion is the unperturbed image, which is not a window.
            clean = 0 if gradient else 1
            bar.update(
                task,
                description=", ".join(map(str, explanation.targets[:3])),
                total=explanation.plan.evaluations - clean,
                completed=max(0, explanation.evaluations_done - clean),
                unit="gradients" if gradient else "windows",
            )

        yield show


def print_explanation(explanation: Explanation, seconds: float, files: Sequence[str]) -> None:
    """Print what was found, in a few lines."""
    console = _stdout()
    plan, summary = explanation.plan, explanation.summary
    if summary is None:
        return
    method = plan.WhichOneof("method")
    table = Table(box=SIMPLE_HEAD, title=f"{explanation.model} version {explanation.model_version}, {method}")
    hidden = ("Lowest if hidden", "Class changes") if method == "occlusion" else ()
    for heading in ("Target", "Output", "Score", "Strongest at", *hidden):
        table.add_column(heading, justify="left" if heading == "Target" else "right")
    for k, target in enumerate(explanation.targets):
        found = summary.diagnostics[k] if k < len(summary.diagnostics) else pb.TargetDiagnostics()
        cells = (
            str(target),
            f"{target.output:.4g}",
            f"{target.score:.4g}",
            _strongest(explanation, k),
            f"{found.lowest_score:.4g}" if found.HasField("lowest_score") else "",
            str(found.class_changes) if found.HasField("class_changes") else "",
        )
        table.add_row(*cells[: len(table.columns)])
    console.print(table)
    counts = summary.evaluations
    state = "complete" if explanation.complete else f"PARTIAL: {summary.measured_fraction:.0%} measured"
    skipped = f", {counts.skipped} skipped" if counts.skipped else ""
    console.print(
        f"{state}, {counts.done} evaluations{skipped}, {explanation.tiles} tiles in {seconds:.2f} s"
    )
    for warning in (*plan.warnings, *summary.warnings):
        console.print(f"warning: {warning.message}")
    for file in files:
        console.print(f"wrote {file}")


def print_models(models: Sequence[Model]) -> None:
    """Print what is served, and why what is not served is not."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("Model", "Version", "State", "Task", "Image", "Explained by"):
        table.add_column(heading, overflow="fold")
    reasons = []
    for model in models:
        if model.reason:
            reasons.append(f"{model.name}: {model.reason}")
        if not model.versions:
            table.add_row(model.name, "", "", "", "", "")
        for version in model.versions:
            labels = f" ({', '.join(version.version_labels)})" if version.version_labels else ""
            available = version.state == ModelVersion.STATE_AVAILABLE
            table.add_row(
                model.name,
                f"{version.version}{labels}",
                name_of(ModelVersion.State, version.state),
                name_of(ModelVersion.Task, version.task).lower() if available else "",
                _image(version),
                _methods(version),
            )
            reasons.extend(
                f"{model.name} version {version.version}: {reason}" for reason in _reasons(version)
            )
    console = _stdout()
    console.print(table)
    for reason in reasons:
        console.print(reason)


def _stdout() -> Console:
    # Names and messages come from files and servers: they are shown as they are, never as markup.
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(file=sys.stdout, markup=False, highlight=False, soft_wrap=True, width=width)


def _strongest(explanation: Explanation, target: int) -> str:
    sizes = np.abs(explanation.values[target])
    if np.isnan(sizes).all():
        return ""
    row, column = np.unravel_index(np.nanargmax(sizes), sizes.shape)[:2]
    return f"row {row}, column {column}"


def _image(version: ModelVersion) -> str:
    for tensor in version.inputs:
        if tensor.name == version.image_input:
            sides = " x ".join("any" if side < 0 else str(side) for side in tensor.shape[1:])
            return f"{name_of(DataType, tensor.data_type)} {sides}"
    return ""


def _methods(version: ModelVersion) -> str:
    able = version.capabilities
    return ", ".join(
        name for name, can in (("gradient", able.gradient), ("occlusion", able.occlusion)) if can
    )


def _reasons(version: ModelVersion) -> Iterator[str]:
    if version.reason:
        yield version.reason
    if version.HasField("capabilities"):
        able = version.capabilities
        if not able.gradient:
            yield f"no gradient: {able.gradient_reason}"
        if not able.occlusion:
            yield f"no occlusion: {able.occlusion_reason}"
        if able.precision not in (Precision.PRECISION_UNSPECIFIED, Precision.PRECISION_FP32):
            found = f"outputs differ by {able.precision_difference:.2g} of the largest"
            yield f"computed in {name_of(Precision, able.precision)}" + (
                f": {found}" if able.precision_difference else ""
            )
