"""What callers are told of models that cannot be served: what to mend, and no path of the server."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import tritonclient.grpc.aio as triton

import saved_models
import vitrail.aio
from fakes.serving import settings_of
from vitrail_server.server import Server

SAMPLE = """
model_warmup { name: "s" batch_size: 1 inputs { key: "image" value {
  data_type: TYPE_FP32 dims: [ 5, 7, 3 ] input_data_file: "gone" } } }
"""


def write(model: Path) -> Path:
    """Write a model that can be served and return where its SavedModel is."""
    saved_model = model / "1" / "model.savedmodel"
    saved_models.sigmoid(saved_model)
    return saved_model


def corrupt(model: Path) -> None:
    (write(model) / "saved_model.pb").write_bytes(b"no graph at all")


def without_index(model: Path) -> None:
    (write(model) / "variables" / "variables.index").unlink()


def without_weights(model: Path) -> None:
    next(iter((write(model) / "variables").glob("variables.data*"))).unlink()


def without_model(model: Path) -> None:
    (write(model) / "saved_model.pb").unlink()


def with_a_directory_for_config(model: Path) -> None:
    write(model)
    (model / "config.pbtxt").mkdir()


def without_labels(model: Path) -> None:
    write(model)
    (model / "config.pbtxt").write_text("output { name: 'y' label_filename: 'labels.txt' }")


def with_labels_elsewhere(model: Path) -> None:
    without_labels(model)
    (model.parent / "secret").touch()
    (model / "labels.txt").symlink_to(model.parent / "secret")


def without_sample(model: Path) -> None:
    write(model)
    (model / "config.pbtxt").write_text(SAMPLE)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "corrupt": (
        corrupt,
        "TensorFlow cannot read the SavedModel: OSError: Cannot parse file b'model.savedmodel/",
    ),
    "no_index": (without_index, "model.savedmodel/variables/variables"),
    "no_weights": (without_weights, "model.savedmodel/variables/variables"),
    "no_model": (without_model, "there is no 1/model.savedmodel/saved_model.pb nor 1/saved_model.pb"),
    "config": (with_a_directory_for_config, "config/config.pbtxt: it is not a file"),
    "no_labels": (without_labels, "label file 'labels.txt' is not a file in the model's directory"),
    "labels": (with_labels_elsewhere, "label file 'labels.txt' is a link that leads out of"),
    "no_sample": (without_sample, "warmup data file 'gone' cannot be read: No such file or directory"),
}


async def test_no_reason_has_a_path_of_the_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    repository = tmp_path / "a repository"  # in which a path is not one word
    for name, (make, _) in BROKEN.items():
        make(repository / name)
    reasons: dict[str, list[str]] = {name: [] for name in BROKEN}
    async with Server(settings_of(repository)) as server:
        assert not await server.load()
        address = f"127.0.0.1:{server.grpc_port}"
        async with triton.InferenceServerClient(address) as client, vitrail.aio.Client(address) as ours:
            for name in BROKEN:
                with pytest.raises(triton.InferenceServerException) as caught:
                    await client.load_model(name)
                reasons[name].append(caught.value.message())
                with pytest.raises(triton.InferenceServerException) as caught:
                    await client.get_model_metadata(name)
                reasons[name].append(caught.value.message())
            for entry in (await client.get_model_repository_index()).models:
                reasons[entry.name].append(entry.reason)
            for model in await ours.models():
                reasons[model.name].append(model.reason or model.versions[0].reason)
    for name, (_, expected) in BROKEN.items():
        assert len(reasons[name]) == 4
        for reason in reasons[name]:
            assert expected in reason
            assert str(tmp_path) not in reason
            assert "a repository" not in reason
    saved_model = repository / "corrupt" / "1" / "model.savedmodel" / "saved_model.pb"
    assert f"Cannot parse file b'{saved_model}'" in caplog.text
