import math

import pytest

from vitrail.errors import InvalidArgument
from vitrail_server.repository.parameters import Parameters, read_parameters


def test_nothing_given_is_nothing_said() -> None:
    assert read_parameters({}) == (Parameters(), ())
    assert Parameters() == Parameters(
        task=None,
        image_input=None,
        image_range=None,
        image_resize=None,
        image_sizes=(),
        fill=(),
        version_labels={},
        build_command="",
    )


def test_every_key() -> None:
    parameters, notes = read_parameters(
        {
            "vitrail.task": "CLASSIFICATION",
            "vitrail.image_input": "image",
            "vitrail.image_range": "-1, 1",
            "vitrail.image_resize": "CENTER_CROP",
            "vitrail.image_sizes": "224x224, 192x256, 224x224",
            "vitrail.fill": "0.5,-1,2e-1",
            "vitrail.version_labels": "stable=3, canary = 4,last good=3",
            "vitrail.incremental": "OFF",
            "vitrail.precision": "BF16",
            "vitrail.build_command": "scripts/models efficientnet_lite0",
        }
    )
    assert notes == ()
    assert parameters == Parameters(
        task="CLASSIFICATION",
        image_input="image",
        image_range=(-1.0, 1.0),
        image_resize="CENTER_CROP",
        image_sizes=((224, 224), (192, 256)),
        fill=(0.5, -1.0, 0.2),
        version_labels={"stable": 3, "canary": 4, "last good": 3},
        incremental="OFF",
        precision="BF16",
        build_command="scripts/models efficientnet_lite0",
    )


ONE_LINE = "printable text on one line"
NUMBERS = "one finite number, or several separated by commas"
RANGE = "two different finite numbers, separated by a comma"
SIZES = "sizes HEIGHTxWIDTH, separated by commas, for example 224x224"
LABELS = "labels LABEL=VERSION, separated by commas, for example stable=3,canary=4"


@pytest.mark.parametrize(
    ("key", "text", "must_be"),
    [
        ("task", "classification", "CLASSIFICATION or REGRESSION"),
        ("task", "", "CLASSIFICATION or REGRESSION"),
        ("image_resize", "FIT", "STRETCH or CENTER_CROP"),
        ("incremental", "ON", "AUTO or OFF"),
        ("precision", "bf16", "FP32 or TF32 or BF16 or FP16"),
        ("image_input", "", ONE_LINE),
        ("score_tensor", "", ONE_LINE),
        ("build_command", "make\nrm", ONE_LINE),
        ("fill", "gray", NUMBERS),
        ("fill", "1,,2", NUMBERS),
        ("fill", "nan", NUMBERS),
        ("fill", "1e999", NUMBERS),
        ("image_range", "0", RANGE),
        ("image_range", "0,1,2", RANGE),
        ("image_range", "1,1", RANGE),
        ("image_range", "0,inf", RANGE),
        ("image_sizes", "224", SIZES),
        ("image_sizes", "224x0", SIZES),
        ("image_sizes", "224x224,", SIZES),
        ("image_sizes", "-1x224", SIZES),
        ("version_labels", "stable", LABELS),
        ("version_labels", "stable=", LABELS),
        ("version_labels", "stable=0", LABELS),
        ("version_labels", "=1", LABELS),
        ("version_labels", "a=1=2", LABELS),
        ("version_labels", "a=1,a=2", "given once per label; 'a' is there twice"),
    ],
)
def test_a_malformed_value_is_refused_with_what_it_must_be(key: str, text: str, must_be: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_parameters({f"vitrail.{key}": text})
    assert caught.value.message == f"parameter 'vitrail.{key}' is {text!r}; it must be {must_be}"
    assert caught.value.field == f'parameters["vitrail.{key}"]'


@pytest.mark.parametrize("key", ["vitrail.Precision", "vitrail.Incremental", "vitrail.Fill", "vitrail."])
def test_an_unknown_key_of_ours_is_refused_with_those_known(key: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_parameters({key: "x"})
    assert caught.value.message == (
        f"unknown parameter '{key}'; known are: vitrail.task, vitrail.image_input, vitrail.score_tensor, "
        "vitrail.image_range, vitrail.image_resize, vitrail.image_sizes, vitrail.fill, "
        "vitrail.version_labels, vitrail.incremental, vitrail.precision, vitrail.build_command"
    )
    assert caught.value.field == f'parameters["{key}"]'


def test_other_keys_are_noted() -> None:
    parameters, notes = read_parameters({"TF_NUM_INTRA_THREADS": "2", "owner": "vision", "vitrail.fill": "1"})
    assert parameters == Parameters(fill=(1.0,))
    assert notes == ("parameter 'TF_NUM_INTRA_THREADS' is not used", "parameter 'owner' is not used")


def test_the_signature_and_graph_that_are_served_may_be_named() -> None:
    assert read_parameters({"TF_SIGNATURE_DEF": "serving_default", "TF_GRAPH_TAG": "serve"})[1] == ()


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        (
            "TF_SIGNATURE_DEF",
            "embed",
            "parameter 'TF_SIGNATURE_DEF' is 'embed'; only 'serving_default' is served",
        ),
        ("TF_GRAPH_TAG", "train", "parameter 'TF_GRAPH_TAG' is 'train'; only 'serve' is served"),
        (
            "TF_INIT_OPS_FILE",
            "init.json",
            "parameter 'TF_INIT_OPS_FILE' is not supported: export a model that needs no such file",
        ),
    ],
)
def test_a_key_that_asks_for_another_function_is_refused(key: str, text: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_parameters({key: text})
    assert caught.value.message == message


def test_a_range_may_be_reversed() -> None:
    black, white = read_parameters({"vitrail.image_range": "1,-1"})[0].image_range or (math.nan, math.nan)
    assert (black, white) == (1.0, -1.0)
