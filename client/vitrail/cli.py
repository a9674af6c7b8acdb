"""The command line of the client: ``vitrail explain``, ``vitrail models`` and ``vitrail status``.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 failed (one line says
why), 2 wrong usage, 130 interrupted. Pillow and rich are imported only for what they draw.
"""

import argparse
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import grpc
import numpy as np
from google.protobuf.json_format import MessageToDict

from vitrail.client import Client
from vitrail.enums import name_of
from vitrail.errors import InvalidArgument, Unavailable, VitrailError
from vitrail.explanation import Explanation
from vitrail.methods import (
    ChannelReduction,
    Edge,
    Fill,
    FillLike,
    Gradient,
    Method,
    Occlusion,
    Order,
    Resolution,
    Size,
    WindowScore,
)
from vitrail.request import ImageLike, Objective, ObjectiveKind, Options, TargetsLike, TopK
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.model_pb2 import ModelVersion

DEFAULT_SERVER = "localhost:8001"

TOKEN_VARIABLE = "VITRAIL_TOKEN"  # noqa: S105 - the name of the variable, not a token
"""The environment variable with the bearer token, for servers that ask for one."""

ANSWER_SECONDS = 10.0
"""How long ``models`` and ``status`` wait for an answer."""

METHODS: dict[str, type[Gradient] | type[Occlusion]] = {"gradient": Gradient, "occlusion": Occlusion}
"""Every method by its name on the command line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; None: the arguments of the process."""
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a name that it cannot write stops nothing
        arguments = _parser().parse_args(argv)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("cancelled", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read stdout has seen enough; Python's own flush at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (VitrailError, OSError, ImportError) as error:
        # gRPC's own sentence does not say what would help; retry_delay 0 tells that it is gRPC's.
        unreachable = isinstance(error, Unavailable) and error.retry_delay == 0
        hint = " (is vitrail-server running there? see --server)" if unreachable else ""
        print("error:", " ".join(str(error).split()) + hint, file=sys.stderr)
        return 1
    return code


def _explain(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    image = _image(arguments.image)
    if arguments.out:
        import vitrail.render  # noqa: F401 - a missing Pillow is better known before the work than after
    with _client(arguments) as client, _progress(arguments) as show:
        started, first_tile = time.monotonic(), math.nan
        for explanation in client.explain_tiles(image, model=arguments.model, **options):
            if explanation.tiles == 1:
                first_tile = time.monotonic() - started
            show(explanation)
        seconds = time.monotonic() - started
    overlays = _save_overlays(explanation, arguments.out) if arguments.out else []
    if arguments.npy:
        np.save(arguments.npy, explanation.values)
    if arguments.json:
        report = _report(explanation, arguments, overlays)
        report |= {"seconds": seconds, "first_tile_seconds": first_tile}
        _print_json(report)
    elif not arguments.quiet:
        from vitrail.terminal import print_explanation

        files = overlays + ([str(arguments.npy)] if arguments.npy else [])
        print_explanation(explanation, seconds, files)
    return 0


def _models(arguments: argparse.Namespace) -> int:
    with _client(arguments) as client:
        models = client.models(timeout=ANSWER_SECONDS)
    if arguments.json:
        _print_json([MessageToDict(model, preserving_proto_field_name=True) for model in models])
    else:
        from vitrail.terminal import print_models

        print_models(models)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    with _client(arguments) as client:
        ready = client.ready(timeout=ANSWER_SECONDS)
        models = client.models(timeout=ANSWER_SECONDS)
    states = [
        {
            "model": model.name,
            "version": each.version,
            "state": name_of(ModelVersion.State, each.state),
            "reason": each.reason,
        }
        for model in models
        for each in model.versions
    ]
    broken = [{"model": model.name, "reason": model.reason} for model in models if model.reason]
    if arguments.json:
        _print_json({"server": arguments.server, "ready": ready, "versions": states, "broken": broken})
        return 0 if ready else 1
    available = sum(state["state"] == "AVAILABLE" for state in states)
    print(f"{arguments.server} is {'ready' if ready else 'not ready'}")
    print(f"{available} of {len(states)} model versions are available")
    for state in states:
        if state["reason"]:
            print(f"{state['model']} version {state['version']}: {state['state']}: {state['reason']}")
    for model in broken:
        print(f"{model['model']}: {model['reason']}")
    return 0 if ready else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vitrail", description="Explain image models where they are served."
    )
    parser.add_argument("--version", action="version", version=f"vitrail {version('vitrail')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    explain = commands.add_parser("explain", help="compute the map of one image", allow_abbrev=False)
    _add_explain(explain)
    explain.set_defaults(run=_explain, parser=explain)
    models = commands.add_parser(
        "models", help="list the models and what can be done with them", allow_abbrev=False
    )
    models.set_defaults(run=_models)
    status = commands.add_parser(
        "status", help="say whether the server is ready; exit code 1 if not", allow_abbrev=False
    )
    status.set_defaults(run=_status)
    for command in (explain, models, status):
        command.add_argument(
            "--server", default=DEFAULT_SERVER, metavar="HOST:PORT", help="default: %(default)s"
        )
        command.add_argument("--tls", action="store_true", help="encrypt the connection")
        command.add_argument(
            "--ca",
            type=Path,
            metavar="FILE.pem",
            help="encrypt, and trust the certificates of this file only",
        )
        command.add_argument("--json", action="store_true", help="print JSON on stdout instead of a table")
    return parser


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "image", metavar="IMAGE", help="a JPEG or PNG file, or a .npy array in the model's units"
    )
    parser.add_argument("--model", required=True, metavar="NAME")
    parser.add_argument("--model-version", type=int, metavar="N", help="default: the highest available")
    parser.add_argument("--version-label", metavar="LABEL", help='for example "stable"')
    parser.add_argument("--method", choices=METHODS, default="gradient", help="default: %(default)s")

    gradient = parser.add_argument_group("the gradient's parameters")
    gradient.add_argument("--signed", action="store_true", default=None, help="keep the sign")
    _add_choice(gradient, "--channel-reduction", ChannelReduction)
    gradient.add_argument("--times-input", action="store_true", default=None, help="multiply by the image")

    occlusion = parser.add_argument_group("the occlusion's parameters")
    occlusion.add_argument("--patch", type=_size, metavar="PIXELS", help="32, or rows x columns: 6x6")
    occlusion.add_argument("--stride", type=_size, metavar="PIXELS", help="default: the patch")
    occlusion.add_argument(
        "--fill", type=_fill, help="0.5, one number per channel: 0.4,0.5,0.6, mean, or blur:SIGMA"
    )
    _add_choice(occlusion, "--edge", Edge)
    _add_choice(occlusion, "--window-score", WindowScore)
    _add_choice(occlusion, "--resolution", Resolution)
    _add_choice(occlusion, "--order", Order)

    question = parser.add_argument_group("what is explained")
    targets = question.add_mutually_exclusive_group()
    targets.add_argument(
        "--target", type=_target, action="append", help="an index or a label; may be given several times"
    )
    targets.add_argument("--top-k", type=int, metavar="N", help="the N highest outputs")
    targets.add_argument("--all-targets", action="store_true", help="every output")
    _add_choice(question, "--objective", ObjectiveKind)
    question.add_argument(
        "--objective-value",
        type=float,
        action="append",
        metavar="VALUE",
        help="the true value of a target, for squared_error; once, or once per target",
    )

    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="return what there is by then")
    parser.add_argument("--priority", type=int, metavar="N", help="1 is the most urgent; default: 100")
    parser.add_argument(
        "--out", type=_file(".png"), metavar="FILE.png", help="save the overlay; one file per target"
    )
    parser.add_argument("--npy", type=_file(".npy"), metavar="FILE.npy", help="save the map's values")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no table")


def _add_choice(group: "argparse._ActionsContainer", flag: str, names: object) -> None:
    choices = get_args(names)
    group.add_argument(flag, type=str.upper, choices=choices, metavar="NAME", help=", ".join(choices).lower())


def _client(arguments: argparse.Namespace) -> Client:
    credentials = None
    if arguments.tls or arguments.ca:
        credentials = grpc.ssl_channel_credentials(arguments.ca.read_bytes() if arguments.ca else None)
    return Client(arguments.server, token=os.environ.get(TOKEN_VARIABLE) or None, credentials=credentials)


def _options(arguments: argparse.Namespace) -> Options:
    """Return the request that the arguments describe; wrong combinations end the process with 2."""
    options = Options(
        method=_method(arguments),
        version=arguments.model_version,
        version_label=arguments.version_label,
        targets=_targets(arguments),
        priority=arguments.priority,
        timeout=arguments.timeout,
    )
    if arguments.objective or arguments.objective_value:
        kind: ObjectiveKind = arguments.objective or "OUTPUT"
        options["objective"] = Objective(kind, tuple(arguments.objective_value or ()))
    return options


def _method(arguments: argparse.Namespace) -> Method:
    chosen = {}
    for name, method in METHODS.items():
        for field in fields(method):
            given = getattr(arguments, field.name)
            if given is None:
                continue
            if name != arguments.method:
                flag = f"--{field.name.replace('_', '-')}"
                arguments.parser.error(f"{flag} is a parameter of --method {name}")
            chosen[field.name] = given
    if arguments.method == "occlusion" and "patch" not in chosen:
        arguments.parser.error("--method occlusion needs the size of the window, for example --patch 32")
    return METHODS[arguments.method](**chosen)


def _targets(arguments: argparse.Namespace) -> TargetsLike | None:
    if arguments.all_targets:
        return "all"
    if arguments.top_k is not None:
        return TopK(arguments.top_k)
    targets: list[int | str] | None = arguments.target
    return targets


def _target(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _size(text: str) -> Size:
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    match sides:
        case [side]:
            return side
        case [rows, columns]:
            return rows, columns
    raise argparse.ArgumentTypeError(
        f"{text!r} is not a size; use pixels, for example 32, or 6x8 (rows x columns)"
    )


def _fill(text: str) -> FillLike:
    try:
        if text == "mean":
            return Fill.IMAGE_MEAN
        if text.startswith("blur:"):
            return Fill.blur(float(text.removeprefix("blur:")))
        numbers = [float(number) for number in text.split(",")]
        return numbers[0] if len(numbers) == 1 else numbers
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a fill; use a number, one number per channel (0.4,0.5,0.6), mean, or blur:SIGMA"
        ) from None


def _file(suffix: Literal[".png", ".npy"]) -> Callable[[str], Path]:
    """Return the reader of a path to write to, refused here rather than after the work."""

    def read(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() != suffix:
            raise argparse.ArgumentTypeError(f"{text!r} must end in {suffix}")
        if not path.parent.is_dir():
            raise argparse.ArgumentTypeError(f"there is no directory {str(path.parent)!r}")
        return path

    return read


def _image(path: str) -> ImageLike:
    if not path.lower().endswith(".npy"):
        return Path(path)
    try:
        array: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InvalidArgument(f"cannot read {path}: {error}", field="spec.image") from error
    return array


def _progress(arguments: argparse.Namespace) -> AbstractContextManager[Callable[[Explanation], None]]:
    if arguments.quiet:
        return nullcontext(lambda _: None)
    from vitrail.terminal import progress

    return progress(arguments.server)


def _save_overlays(explanation: Explanation, out: Path) -> list[str]:
    """Save one overlay per target and return the files: `out` itself, or numbered where there are several."""
    count = len(explanation.targets)
    paths = [out] if count == 1 else [out.with_stem(f"{out.stem}-{k + 1}") for k in range(count)]
    for k, path in enumerate(paths):
        explanation.overlay(k).save(path)
    return [str(path) for path in paths]


def _report(
    explanation: Explanation, arguments: argparse.Namespace, overlays: Sequence[str]
) -> dict[str, object]:
    """Return everything known of a finished explanation but its map, as JSON has it."""
    plan, summary = explanation.plan, explanation.summary or pb.Summary()
    partial = summary.completion == pb.Summary.COMPLETION_PARTIAL
    return {
        "image": Path(arguments.image).name,
        "model": explanation.model,
        "version": explanation.model_version,
        "method": plan.WhichOneof("method"),
        "parameters": {
            field.name: _plain(getattr(explanation.method, field.name))
            for field in fields(explanation.method)
        },
        "objective": name_of(pb.Objective.Kind, plan.objective.kind),
        "targets": [
            {
                "index": target.index,
                "label": target.label,
                "output": target.output,
                "score": target.score,
                "overlay": overlays[k] if overlays else None,
            }
            for k, target in enumerate(explanation.targets)
        ],
        "map_shape": list(plan.map_shape),
        "npy": str(arguments.npy) if arguments.npy else None,
        "complete": explanation.complete,
        "partial_reason": name_of(pb.Summary.PartialReason, summary.partial_reason) if partial else None,
        "measured_fraction": summary.measured_fraction,
        "evaluations": plan.evaluations,
        "evaluations_done": summary.evaluations.done,
        "evaluations_skipped": summary.evaluations.skipped,
        "evaluations_dropped": summary.evaluations.dropped,
        "tiles": explanation.tiles,
        "queue_seconds": summary.queue_seconds,
        "device_seconds": summary.device_seconds,
        "warnings": [warning.message for warning in (*plan.warnings, *summary.warnings)],
    }


def _plain(value: object) -> object:
    if isinstance(value, Fill):
        return {"kind": value.kind, "numbers": list(value.numbers)}
    return value


def _print_json(report: object) -> None:
    escaped = not (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(_finite(report), indent=2, ensure_ascii=escaped, allow_nan=False))


def _finite(value: object) -> object:
    """Return `value` with null for numbers that JSON does not have."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(each) for key, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
    return value


if __name__ == "__main__":
    sys.exit(main())
