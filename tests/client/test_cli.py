import io
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vitrail import Client, Explanation, cli, terminal
from vitrail.errors import NotFound, Unavailable, VitrailError
from vitrail.v1 import explanation_pb2 as pb
from vitrail.v1.model_pb2 import Capabilities, Model, ModelVersion, TensorSpec
from vitrail.v1.tensor_pb2 import DataType, Precision

from .certificate import CERTIFICATE, KEY
from .fake_server import UNTIL_CANCELLED, FakeServer
from .messages import complete, occlusion_plan, partial, tile, whole_map
from .test_client import server_state

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "coffee.png"
    Image.effect_noise((30, 20), 50).convert("RGB").save(path)
    return path


@pytest.fixture
def run(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line against the server; return exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([*map(str, arguments), "--server", server.target])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_explain_prints_a_table(server: FakeServer, run: Run, photo: Path) -> None:
    server.scripts.append(whole_map())

    code, out, err = run("explain", photo, "--model", "net")

    assert code == 0
    assert "net version 3, occlusion" in out
    assert "label 0 (967)" in out
    assert "complete, 7 evaluations, 2 tiles in" in out
    assert err == ""
    assert server.requests[0].spec.image.encoded == photo.read_bytes()
    assert server.requests[0].spec.WhichOneof("method") == "gradient"


def test_explain_writes_the_overlay_and_the_values(
    server: FakeServer, run: Run, photo: Path, tmp_path: Path
) -> None:
    server.scripts.append(whole_map())

    code, out, _ = run(
        "explain", photo, "--model", "net", "--out", tmp_path / "map.png", "--npy", tmp_path / "map.npy"
    )

    assert code == 0
    with Image.open(tmp_path / "map.png") as overlay:
        assert overlay.width >= 512
    np.testing.assert_array_equal(np.load(tmp_path / "map.npy"), [[[0, 1, 2], [3, 4, 5]]])
    assert f"wrote {tmp_path / 'map.png'}" in out
    assert f"wrote {tmp_path / 'map.npy'}" in out


def test_several_targets_get_an_overlay_each(
    server: FakeServer, run: Run, photo: Path, tmp_path: Path
) -> None:
    server.scripts.append(whole_map((2, 2, 3)))

    code, _, _ = run("explain", photo, "--model", "net", "--top-k", 2, "--out", tmp_path / "map.png")

    assert code == 0
    assert sorted(path.name for path in tmp_path.glob("map*")) == ["map-1.png", "map-2.png"]


def test_json_is_one_object_on_stdout(server: FakeServer, run: Run, photo: Path, tmp_path: Path) -> None:
    script = whole_map()
    summary = complete()
    summary.warnings.add(kind=pb.Warning.KIND_ZERO_MAP, message="the map is 0 everywhere")
    server.scripts.append([*script[:-1], summary])

    code, out, _ = run("explain", photo, "--model", "net", "--json", "--out", tmp_path / "map.png")

    assert code == 0
    report = json.loads(out)
    assert report["image"] == "coffee.png"
    assert (report["model"], report["version"], report["method"]) == ("net", 3, "occlusion")
    assert report["parameters"]["patch"] == [1, 1]
    assert report["parameters"]["fill"] == {"kind": "constant", "numbers": [0.5]}
    assert report["objective"] == "OUTPUT"
    [target] = report["targets"]
    assert (target["index"], target["label"]) == (967, "label 0")
    assert target["overlay"] == str(tmp_path / "map.png")
    assert report["map_shape"] == [1, 2, 3]
    assert (report["complete"], report["partial_reason"], report["measured_fraction"]) == (True, None, 1.0)
    assert (report["evaluations"], report["evaluations_done"], report["tiles"]) == (7, 7, 2)
    assert 0 <= report["first_tile_seconds"] <= report["seconds"]
    assert report["warnings"] == ["the map is 0 everywhere"]


def test_json_has_null_for_what_it_cannot_say(server: FakeServer, run: Run, photo: Path) -> None:
    plan = occlusion_plan()
    plan.targets[0].output = float("nan")
    server.scripts.append([plan, partial(2)])

    _, out, _ = run("explain", photo, "--model", "net", "--json")

    report = json.loads(out)
    assert report["targets"][0]["output"] is None
    assert report["first_tile_seconds"] is None
    assert (report["complete"], report["partial_reason"]) == (False, "TIME_BUDGET")


def test_a_partial_map_says_so_and_is_a_success(server: FakeServer, run: Run, photo: Path) -> None:
    server.scripts.append([occlusion_plan(), tile(0, 0, [[1]], done=2), partial(2)])

    code, out, _ = run("explain", photo, "--model", "net", "--timeout", 20)

    assert code == 0
    assert "PARTIAL: 29% measured" in out


def test_quiet_prints_nothing(server: FakeServer, run: Run, photo: Path) -> None:
    server.scripts.append(whole_map())

    assert run("explain", photo, "--model", "net", "--quiet") == (0, "", "")


def test_names_with_markup_are_printed_as_they_are(server: FakeServer, run: Run, photo: Path) -> None:
    server.scripts.append([occlusion_plan(labels=("[bold]cup[/bold]",)), complete()])

    code, out, _ = run("explain", photo, "--model", "net")

    assert code == 0
    assert "[bold]cup[/bold] (967)" in out


def spec_of(server: FakeServer, run: Run, *arguments: object) -> pb.ExplanationSpec:
    server.scripts.append(whole_map())
    code, _, err = run("explain", *arguments, "--model", "net", "--quiet")
    assert (code, err) == (0, "")
    return server.requests[-1].spec


def test_the_occlusions_parameters(server: FakeServer, run: Run, photo: Path) -> None:
    flags = (
        "--method occlusion --patch 6x8 --stride 3 --fill 0.5 --edge shift --window-score absolute "
        "--resolution windows --order progressive"
    )

    assert spec_of(server, run, photo, *flags.split()).occlusion == pb.Occlusion(
        patch=pb.Extent(rows=6, columns=8),
        stride=pb.Extent(rows=3, columns=3),
        fill=pb.Fill(constant=0.5),
        edge=pb.Occlusion.EDGE_SHIFT,
        window_score=pb.Occlusion.WINDOW_SCORE_ABSOLUTE,
        resolution=pb.Occlusion.RESOLUTION_WINDOWS,
        order=pb.Occlusion.ORDER_PROGRESSIVE,
    )


@pytest.mark.parametrize(
    ("text", "fill"),
    [
        ("0", pb.Fill(constant=0)),
        ("-1.5", pb.Fill(constant=-1.5)),
        ("0.25,0.5,1", pb.Fill(channels=pb.ChannelValues(values=[0.25, 0.5, 1]))),
        ("mean", pb.Fill(image_mean=pb.ImageMean())),
        ("blur:2.5", pb.Fill(blur=pb.Blur(sigma=2.5))),
    ],
)
def test_fills(server: FakeServer, run: Run, photo: Path, text: str, fill: pb.Fill) -> None:
    spec = spec_of(server, run, photo, "--method", "occlusion", "--patch", 4, "--fill", text)

    assert spec.occlusion.fill == fill


def test_the_gradients_parameters(server: FakeServer, run: Run, photo: Path) -> None:
    spec = spec_of(server, run, photo, "--signed", "--channel-reduction", "sum", "--times-input")

    assert spec.gradient == pb.Gradient(
        signed=True, channel_reduction=pb.Gradient.CHANNEL_REDUCTION_SUM, times_input=True
    )


def test_what_is_explained(server: FakeServer, run: Run, photo: Path) -> None:
    spec = spec_of(
        server,
        run,
        photo,
        *("--target", "3", "--target", "espresso", "--model-version", 7, "--priority", 2, "--timeout", 9),
        *("--objective", "squared_error", "--objective-value", "1.5", "--objective-value", "-2"),
    )

    assert spec.targets.list == pb.TargetList(targets=[pb.Target(index=3), pb.Target(label="espresso")])
    assert spec.version == 7
    assert spec.priority == 2
    assert 0 < spec.time_budget.ToMilliseconds() <= 9000
    assert spec.objective == pb.Objective(kind=pb.Objective.KIND_SQUARED_ERROR, values=[1.5, -2])


def test_other_ways_to_name_targets_and_versions(server: FakeServer, run: Run, photo: Path) -> None:
    assert spec_of(server, run, photo, "--all-targets").targets.WhichOneof("choice") == "all"
    assert spec_of(server, run, photo, "--top-k", 5).targets.top_k == 5
    assert spec_of(server, run, photo, "--version-label", "stable").version_label == "stable"


def test_an_npy_file_is_sent_in_the_models_units(server: FakeServer, run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.ones((2, 2, 1), np.float32))

    spec = spec_of(server, run, tmp_path / "image.npy")

    assert list(spec.image.tensor.shape) == [2, 2, 1]


def test_a_token_comes_from_the_environment(
    server: FakeServer, run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cli.TOKEN_VARIABLE, "secret")

    spec_of(server, run, photo)

    assert server.metadata[0]["authorization"] == "Bearer secret"


def test_a_server_with_tls_is_reached_with_its_certificate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ca.pem").write_bytes(CERTIFICATE)
    with FakeServer(grpc.ssl_server_credentials([(KEY, CERTIFICATE)])) as server:
        server.health.set("", server_state("SERVING"))

        assert cli.main(["status", "--server", server.target, "--ca", str(tmp_path / "ca.pem")]) == 0
        assert cli.main(["status", "--server", server.target, "--tls"]) == 1, "nobody vouches for it"
        assert cli.main(["status", "--server", server.target, "--ca", str(tmp_path / "none.pem")]) == 1

    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "required: COMMAND"),
        (["explain", "x.png"], "required: --model"),
        (
            ["explain", "x.png", "--model", "net", "--patch", "3"],
            "--patch is a parameter of --method occlusion",
        ),
        (
            ["explain", "x.png", "--model", "net", "--method", "occlusion", "--patch", "3", "--times-input"],
            "--times-input is a parameter of --method gradient",
        ),
        (["explain", "x.png", "--model", "net", "--method", "occlusion"], "needs the size of the window"),
        (["explain", "x.png", "--model", "net", "--patch", "3x3x3"], "is not a size"),
        (["explain", "x.png", "--model", "net", "--fill", "grey"], "is not a fill"),
        (["explain", "x.png", "--model", "net", "--edge", "wrap"], "invalid choice"),
        (["explain", "x.png", "--model", "net", "--target", "1", "--top-k", "2"], "not allowed with"),
        (["explain", "x.png", "--model", "net", "--out", "map.jpg"], "must end in .png"),
        (["explain", "x.png", "--model", "net", "--npy", "no/such/map.npy"], "there is no directory"),
        (["explain", "x.png", "--model", "net", "--version", "2"], "unrecognized arguments: --version"),
        (["models", "--serv", "elsewhere:8001"], "unrecognized arguments: --serv"),
        (["status", "--js"], "unrecognized arguments: --js"),
    ],
)
def test_wrong_usage_exits_with_2(
    arguments: Sequence[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)

    assert caught.value.code == 2
    assert reason in capsys.readouterr().err


def test_help_and_version_exit_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], ["--help"], ["explain", "--help"], ["models", "--help"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 0
    assert "--window-score" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error", [NotFound("no model 'net';\nserved are: cat"), Unavailable("version 3 is broken")]
)
def test_an_error_is_one_line_and_exits_with_1(
    server: FakeServer, run: Run, photo: Path, error: VitrailError
) -> None:
    server.scripts.append([error])

    code, out, err = run("explain", photo, "--model", "net", "--json")

    assert (code, out) == (1, "")
    assert err == f"error: {' '.join(error.message.split())}\n"


def test_wrong_values_are_errors_too(run: Run, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged.npy").write_bytes(b"no array")

    for arguments, reason in (
        ([tmp_path / "none.jpg"], "cannot read"),
        ([tmp_path / "none.npy"], "No such file"),
        ([tmp_path / "damaged.npy"], "cannot read"),
        ([photo, "--timeout", "-1"], "spec.time_budget"),
        ([photo, "--timeout", "1e30"], "spec.time_budget"),
        ([photo, "--fill", "blur:0"], "spec.occlusion.fill.blur.sigma"),
        ([photo, "--objective-value", "1"], "only SQUARED_ERROR has values"),
        ([photo, "--target", 2**70], "spec.targets.list.targets[0].index"),
    ):
        code, out, err = run("explain", *arguments, "--model", "net")

        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert reason in err
        assert err.count("\n") == 1


def test_a_server_that_is_not_there_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer() as server:
        target = server.target

    assert cli.main(["status", "--server", target]) == 1
    assert "is vitrail-server running there? see --server" in capsys.readouterr().err


def test_ctrl_c_cancels_the_call_and_exits_with_130(
    server: FakeServer, run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.scripts.append([occlusion_plan(), tile(0, 0, [[1]]), UNTIL_CANCELLED])
    tiles = Client.explain_tiles

    def interrupted(self: Client, *arguments: Any, **options: Any) -> Iterator[Explanation]:
        growing = tiles(self, *arguments, **options)
        yield next(growing)
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "explain_tiles", interrupted)

    assert run("explain", photo, "--model", "net") == (130, "", "cancelled\n")
    assert server.cancelled.wait(30)


def test_a_missing_pillow_is_known_before_the_work(
    server: FakeServer, run: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vitrail.render

    monkeypatch.delitem(sys.modules, "vitrail.render")
    monkeypatch.delattr(vitrail, "render")
    monkeypatch.setitem(sys.modules, "PIL", None)

    code, _, err = run("explain", photo, "--model", "net", "--out", tmp_path / "map.png")

    assert code == 1
    assert 'pip install "vitrail[cli]"' in err
    assert not server.requests


def test_without_rich_quiet_still_works(
    server: FakeServer, run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "vitrail.terminal")
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.setitem(sys.modules, name, None)
    server.scripts.append(whole_map())

    assert run("explain", photo, "--model", "net", "--quiet") == (0, "", "")
    code, _, err = run("explain", photo, "--model", "net")

    assert code == 1
    assert 'pip install "vitrail[cli]"' in err


MODELS = [
    Model(
        name="net",
        versions=[
            ModelVersion(
                version=3,
                state=ModelVersion.STATE_AVAILABLE,
                version_labels=["stable"],
                inputs=[TensorSpec(name="image", data_type=DataType.DATA_TYPE_FP32, shape=[-1, 224, -1, 3])],
                image_input="image",
                task=ModelVersion.TASK_CLASSIFICATION,
                capabilities=Capabilities(
                    gradient_reason="it looks up a table",
                    occlusion=True,
                    precision=Precision.PRECISION_BF16,
                    precision_difference=0.0125,
                ),
            ),
            ModelVersion(version=4, state=ModelVersion.STATE_END, reason="no such file"),
        ],
    ),
    Model(name="other", reason="config.pbtxt: line 3"),
]


def test_models_are_listed_with_what_can_be_done(server: FakeServer, run: Run) -> None:
    server.models = MODELS

    code, out, _ = run("models")

    assert code == 0
    for text in (
        "3 (stable)",
        "AVAILABLE",
        "classification",
        "FP32 224 x any x 3",
        "occlusion",
        "net version 3: no gradient: it looks up a table",
        "net version 3: computed in BF16: outputs differ by 0.013 of the largest",
        "net version 4: no such file",
        "other: config.pbtxt: line 3",
    ):
        assert text in out


def test_models_as_json(server: FakeServer, run: Run) -> None:
    server.models = MODELS

    code, out, _ = run("models", "--json")

    assert code == 0
    assert [model["name"] for model in json.loads(out)] == ["net", "other"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_stdout_cannot_write_is_escaped(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    server.models = [Model(name="\u6a21", reason="\U0001f600 broken")]

    def printed(*arguments: str) -> str:
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
        cli.main([*arguments, "--server", server.target])
        return written.getvalue().decode(encoding)

    [model] = json.loads(printed("models", "--json"))
    assert model == {"name": "\u6a21", "reason": "\U0001f600 broken"}
    for command in ("models", "status"):
        assert ("\u6a21" if encoding == "utf-8" else r"\u6a21") in printed(command)


def test_status_says_whether_the_server_is_ready(server: FakeServer, run: Run) -> None:
    server.models = MODELS
    server.health.set("", server_state("SERVING"))

    code, out, _ = run("status")

    assert code == 0
    assert out.splitlines() == [
        f"{server.target} is ready",
        "1 of 2 model versions are available",
        "net version 4: END: no such file",
        "other: config.pbtxt: line 3",
    ]


def test_status_of_a_server_that_still_loads_exits_with_1(server: FakeServer, run: Run) -> None:
    server.health.set("", server_state("NOT_SERVING"))

    code, out, _ = run("status", "--json")

    assert code == 1
    assert json.loads(out) == {"server": server.target, "ready": False, "versions": [], "broken": []}


def test_the_progress_bar_counts_windows() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    explanation = Explanation(occlusion_plan(evaluations=7), pb.Image())
    shown = threading.Event()

    with terminal.progress("localhost:8001", console) as show:
        show(explanation)
        explanation.paste(tile(0, 0, [[1]], done=4))
        show(explanation)
        shown.set()

    assert "3 of 6 windows" in screen.getvalue()
    assert "espresso (967)" in screen.getvalue()


def test_no_progress_bar_where_nobody_looks() -> None:
    screen = io.StringIO()

    with terminal.progress("localhost:8001", Console(file=screen, force_terminal=False)) as show:
        show(Explanation(occlusion_plan(), pb.Image()))

    assert screen.getvalue() == ""


COMMAND = (sys.executable, "-m", "vitrail.cli")


def test_the_command_runs_as_a_process(server: FakeServer, photo: Path, tmp_path: Path) -> None:
    server.scripts.append(whole_map())
    out = tmp_path / "map.png"

    done = subprocess.run(
        [*COMMAND, "explain", photo, "--model", "net", "--server", server.target, "--out", out, "--json"],
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["complete"]
    assert out.exists()


def test_a_process_that_is_interrupted_exits_with_130(server: FakeServer, photo: Path) -> None:
    server.scripts.append([occlusion_plan(), UNTIL_CANCELLED])
    with subprocess.Popen(
        [*COMMAND, "explain", photo, "--model", "net", "--server", server.target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert server.begun.wait(60)

        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)

    assert (process.returncode, out, err) == (130, "", "cancelled\n")
    assert server.cancelled.wait(30)


def test_a_reader_that_has_seen_enough_is_no_error(server: FakeServer) -> None:
    server.models = [Model(name=f"model {number}") for number in range(5000)]

    with subprocess.Popen(
        [*COMMAND, "models", "--json", "--server", server.target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()

        assert process.stderr.read() == ""
