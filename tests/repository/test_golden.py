"""Configurations as files, each with the exact message or the completed configuration that it gets.

In the manner of Triton's model_config suite. A file of `golden/refused` begins with the message, in lines
that start with "#!"; one of `golden/completed` has beside it what the ModelConfig rpc shows, in a file that
ends in ".out.pbtxt". A line "#? NAME" chooses the signature; without one it is `photo`.

Left out of that suite: what concerns other platforms, ensembles, sequences and agents, which are refused by
name (one file each), and the device-dependent part of instance groups.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format

from vitrail.errors import VitrailError
from vitrail_server.repository.completed import completed_config
from vitrail_server.repository.completion import served
from vitrail_server.repository.directory import read_model_directory
from vitrail_server.repository.source import ModelSource, read_model
from vitrail_server.servable import Capabilities, Description, ModelSettings, Signature, TensorSpec

from .fakes import write_model

GOLDEN = Path(__file__).parent / "golden"
REFUSED = sorted((GOLDEN / "refused").glob("*.pbtxt"))
COMPLETED = sorted(
    path for path in (GOLDEN / "completed").glob("*.pbtxt") if not path.name.endswith(".out.pbtxt")
)


def signature(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Signature:
    return Signature({spec.name: spec for spec in inputs}, {spec.name: spec for spec in outputs})


SCORES = TensorSpec("scores", "FP32", (-1, 3))
SIGNATURES = {
    "photo": signature([TensorSpec("image", "FP32", (-1, 4, 6, 3))], [SCORES]),
    "any_size": signature([TensorSpec("image", "UINT8", (-1, -1, -1, 3))], [SCORES]),
    "fixed_batch": signature(
        [TensorSpec("image", "FP32", (2, 4, 6, 3))], [TensorSpec("scores", "FP32", (2, 3))]
    ),
    "sums": signature(
        [TensorSpec("INPUT0", "INT32", (-1, 16)), TensorSpec("INPUT1", "INT32", (-1, 16))],
        [TensorSpec("OUTPUT0", "INT32", (-1, 16)), TensorSpec("OUTPUT1", "INT32", (-1, 16))],
    ),
    "text": signature([TensorSpec("text", "BYTES", None)], [TensorSpec("length", "INT64", (-1,))]),
    "rate": signature([TensorSpec("x", "FP32", (-1, 8)), TensorSpec("rate", "FP32", ())], [SCORES]),
}


def read(path: Path, repository: Path) -> tuple[ModelSource, Description]:
    """Return what a model 'm' with this configuration is, in versions 1 and 2."""
    text = path.read_text("utf-8")
    model = write_model(repository, "m", 1, 2, files={"labels.txt": "cat\ndog\nfox\n"})
    (model / "config.pbtxt").write_text(text, "utf-8")
    source = read_model(read_model_directory("m", model))
    found = SIGNATURES[next(iter(marked(text, "#? ")), "photo")]
    description = Description(
        "m", 2, found, ModelSettings(None), "REGRESSION", frozenset(), {}, Capabilities()
    )
    shown, settings = served(source.config, found)
    task = settings.task or ("CLASSIFICATION" if settings.labels else "REGRESSION")
    return source, replace(description, signature=shown, settings=settings, task=task)


def marked(text: str, mark: str) -> list[str]:
    return [line.removeprefix(mark) for line in text.splitlines() if line.startswith(mark)]


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
def test_a_wrong_configuration_has_its_exact_message(path: Path, tmp_path: Path) -> None:
    with pytest.raises(VitrailError) as caught:
        read(path, tmp_path)
    assert caught.value.message.split("\n") == [" ".join(marked(path.read_text("utf-8"), "#! "))]


@pytest.mark.parametrize("path", COMPLETED, ids=lambda path: path.stem)
def test_a_configuration_is_completed(path: Path, tmp_path: Path) -> None:
    completed = text_format.MessageToString(completed_config(*read(path, tmp_path)))
    assert completed == path.with_suffix(".out.pbtxt").read_text("utf-8")


@pytest.mark.parametrize("path", COMPLETED, ids=lambda path: path.stem)
def test_a_completed_configuration_is_one(path: Path, tmp_path: Path) -> None:
    """It can be given back, and says the same again."""
    source, description = read(path, tmp_path / "first")
    message = completed_config(source, description)
    again = tmp_path / "again.pbtxt"
    mark = "".join(f"#? {name}\n" for name in marked(path.read_text("utf-8"), "#? "))
    again.write_text(mark + text_format.MessageToString(message), "utf-8")
    assert completed_config(*read(again, tmp_path / "second")) == message


def test_there_are_some() -> None:
    assert len(REFUSED) >= 50
    assert len(COMPLETED) >= 8
