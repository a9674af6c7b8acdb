from collections.abc import Mapping
from typing import Any

import pytest

from vitrail.errors import FailedPrecondition, InvalidArgument, VitrailError
from vitrail_server.repository.completion import complete, served_signature
from vitrail_server.repository.config import ModelConfig, TensorConfig
from vitrail_server.repository.parameters import Parameters
from vitrail_server.servable import Batching, ModelSettings, Signature, TensorSpec

Shape = tuple[int, ...] | None


def signature_of(
    inputs: Mapping[str, tuple[str, Shape]], outputs: Mapping[str, tuple[str, Shape]] | None = None
) -> Signature:
    return Signature(
        {name: TensorSpec(name, *spec) for name, spec in inputs.items()},
        {name: TensorSpec(name, *spec) for name, spec in (outputs or {"y": ("FP32", (-1, 5))}).items()},
    )


PHOTO = signature_of({"x": ("FP32", (-1, 4, 6, 3))})
FREE_SIZE = signature_of({"x": ("FP32", (-1, -1, -1, 3))})
FIXED_BATCH = signature_of({"x": ("FP32", (2, 4, 6, 3))}, {"y": ("FP32", (2, 5))})
TWO_INPUTS = signature_of({"x": ("FP32", (-1, 4, 6, 3)), "age": ("INT64", (-1, 1))})


def refusal(config: ModelConfig, signature: Signature) -> VitrailError:
    with pytest.raises((InvalidArgument, FailedPrecondition)) as caught:
        complete(config, signature)
    return caught.value


def reason(config: ModelConfig, signature: Signature) -> str:
    """Return why a model is not explained; what else its configuration says must be kept."""
    settings = complete(config, signature)
    assert settings.image_input is None
    assert settings.max_batch_size == (config.max_batch_size or None)
    assert settings.labels == config.labels
    return settings.image_reason


def with_parameters(**parameters: Any) -> ModelConfig:
    return ModelConfig("m", parameters=Parameters(**parameters))


def test_a_model_without_configuration_is_completed() -> None:
    assert complete(ModelConfig("m"), PHOTO) == ModelSettings(
        image_input="x",
        image_range=(0.0, 255.0),
        image_resize="STRETCH",
        image_sizes=(),
        fill=(0.0,),
        task=None,
        labels={},
        max_batch_size=None,
        max_request_batch=64,
        batching=Batching(),
    )


def test_everything_that_is_configured_is_kept() -> None:
    config = ModelConfig(
        "m",
        max_batch_size=8,
        inputs=(TensorConfig("x", "FP32", (-1, -1, 3)),),
        outputs=(TensorConfig("y", "FP32", (5,)),),
        labels={"y": ("a", "b", "c", "d", "e")},
        parameters=Parameters(
            task="CLASSIFICATION",
            image_input="x",
            image_range=(-1.0, 1.0),
            image_resize="CENTER_CROP",
            image_sizes=((4, 6), (8, 8)),
            fill=(0.1, 0.2, 0.3),
        ),
    )
    assert complete(config, FREE_SIZE) == ModelSettings(
        image_input="x",
        image_range=(-1.0, 1.0),
        image_resize="CENTER_CROP",
        image_sizes=((4, 6), (8, 8)),
        fill=(0.1, 0.2, 0.3),
        task="CLASSIFICATION",
        labels={"y": ("a", "b", "c", "d", "e")},
        max_batch_size=8,
        max_request_batch=8,
        batching=Batching(),
    )


@pytest.mark.parametrize(
    ("config", "signature", "largest"),
    [
        (ModelConfig("m"), PHOTO, 7),
        (ModelConfig("m", max_batch_size=1), PHOTO, 1),
        (ModelConfig("m", inputs=(TensorConfig("x", dims=(4, 6, 3)),)), PHOTO, 7),
        (ModelConfig("m", inputs=(TensorConfig("x", dims=(-1, 4, 6, 3)),)), PHOTO, 0),
        (ModelConfig("m"), FIXED_BATCH, 0),
        (ModelConfig("m"), signature_of({"x": ("FP32", (-1, 2)), "keep": ("FP32", ())}), 0),
        (ModelConfig("m"), signature_of({"x": ("FP32", None)}, {"loss": ("FP32", ())}), 7),
    ],
)
def test_the_largest_batch_of_a_request_is_completed(
    config: ModelConfig, signature: Signature, largest: int
) -> None:
    settings = complete(config, signature, default_max_batch_size=7)
    assert settings.max_request_batch == largest
    assert settings.max_batch_size == (config.max_batch_size or None)
    assert settings.batching == (Batching() if largest > 1 else None)


@pytest.mark.parametrize(("signature", "largest"), [(PHOTO, 64), (FIXED_BATCH, 0)])
def test_a_preferred_batch_size_is_one_that_a_request_can_have(signature: Signature, largest: int) -> None:
    config = ModelConfig("m", batching=Batching(preferred_batch_sizes=(65,)))
    error = refusal(config, signature)
    assert error.field == "dynamic_batching.preferred_batch_size"
    assert error.message == (
        f"dynamic batching preferred size must be <= max batch size for m, 65 is above {largest}"
    )
    assert complete(config, PHOTO, default_max_batch_size=65).batching == config.batching


def test_only_the_outputs_listed_are_served() -> None:
    signature = signature_of(
        {"x": ("FP32", (-1, 4, 6, 3))}, {"y": ("FP32", (-1, 5)), "features": ("FP32", (-1, 9))}
    )
    config = ModelConfig("m", outputs=(TensorConfig("y"),))
    assert served_signature(config, signature) == Signature(signature.inputs, {"y": signature.outputs["y"]})
    assert served_signature(ModelConfig("m"), signature) == signature
    assert complete(config, served_signature(config, signature)).image_input == "x"


def test_the_score_tensor_is_an_output_that_is_served() -> None:
    signature = signature_of(
        {"x": ("FP32", (-1, 4, 6, 3))}, {"y": ("FP32", (-1, 5)), "features": ("FP32", (-1, 9))}
    )
    ours = Parameters(score_tensor="features")
    assert complete(ModelConfig("m", parameters=ours), signature).score_tensor == "features"
    error = refusal(ModelConfig("m", parameters=ours, outputs=(TensorConfig("y"),)), signature)
    assert error.field == 'parameters["vitrail.score_tensor"]'
    assert error.message == (
        "parameter 'vitrail.score_tensor' is 'features', which is no output served: it must be one of y; "
        "export a tensor from within the model as an output"
    )


# The image input.


def test_the_only_numeric_input_of_rank_4_is_the_image() -> None:
    signature = signature_of(
        {
            "name": ("BYTES", (-1, 4, 6, 3)),
            "mask": ("BOOL", (-1, 4, 6, 3)),
            "half": ("BF16", (-1, 4, 6, 3)),
            "age": ("INT64", (-1, 1)),
            "unknown": ("FP32", None),
            "photo": ("UINT8", (-1, 4, 6, 3)),
        }
    )
    assert complete(ModelConfig("m"), signature).image_input == "photo"


def test_several_possible_images_need_a_name() -> None:
    signature = signature_of({"left": ("FP32", (-1, 4, 6, 3)), "right": ("FP32", (-1, 4, 6, 3))})
    text = (
        "parameter 'vitrail.image_input' must name the input that holds the image, since several could: "
        "'left', 'right'"
    )
    assert reason(ModelConfig("m"), signature) == text
    error = refusal(with_parameters(fill=(0.5,)), signature)
    assert error.message == text
    assert error.field == 'parameters["vitrail.image_input"]'
    assert complete(with_parameters(image_input="right"), signature).image_input == "right"


@pytest.mark.parametrize("name", ["z", "age"])
def test_a_named_image_must_be_one(name: str) -> None:
    assert refusal(with_parameters(image_input=name), TWO_INPUTS).message == (
        f"parameter 'vitrail.image_input' names '{name}', which is not a numeric input of shape [N,H,W,C]; "
        "the model has: 'x' FP32 [-1,4,6,3], 'age' INT64 [-1,1]"
    )


def test_a_model_without_an_image_predicts_without_being_explained() -> None:
    signature = signature_of({"x": ("FP32", (-1, 10)), "s": ("BYTES", None)})
    config = ModelConfig("m", max_batch_size=8, labels={"y": ("a", "b", "c", "d", "e")}, batching=Batching())
    assert reason(config, signature) == (
        "the model has no image input, only 'x' FP32 [-1,10], 's' BYTES of unknown rank: explanations need "
        "a numeric one of shape [N,H,W,C]"
    )
    assert complete(with_parameters(task="CLASSIFICATION"), signature).task == "CLASSIFICATION"


@pytest.mark.parametrize(
    "parameters",
    [
        {"image_range": (0.0, 1.0)},
        {"image_resize": "STRETCH"},
        {"image_sizes": ((4, 6),)},
        {"fill": (0.0,)},
    ],
)
def test_a_configuration_that_speaks_of_an_image_needs_one(parameters: dict[str, Any]) -> None:
    error = refusal(with_parameters(**parameters), signature_of({"x": ("FP32", (-1, 10))}))
    assert isinstance(error, FailedPrecondition)
    assert error.message.startswith("the model has no image input, only 'x' FP32 [-1,10]: ")


def test_the_channels_must_be_fixed() -> None:
    assert reason(ModelConfig("m"), signature_of({"x": ("FP32", (-1, 4, 6, -1))})) == (
        "input 'x' has shape [-1,4,6,-1]: its last dimension, the channels, is free; export the model with a "
        "fixed number of channels"
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_first_is_recognised(channels: int) -> None:
    signature = signature_of({"x": ("FP32", (-1, channels, 224, 224))})
    assert reason(ModelConfig("m"), signature) == (
        f"input 'x' has shape [-1,{channels},224,224], which looks like [N,channels,height,width]; export "
        "the model with images [height,width,channels], or, if they are, give the input 'format: "
        "FORMAT_NHWC' in config.pbtxt"
    )
    declared = ModelConfig("m", inputs=(TensorConfig("x", declared_nhwc=True),))
    assert complete(declared, signature).image_input == "x"


@pytest.mark.parametrize("shape", [(-1, 3, 3, 3), (-1, 1, 8, 4), (-1, 2, 9, 9), (-1, 4, 6, 13)])
def test_small_and_many_channelled_images_are_images(shape: tuple[int, ...]) -> None:
    assert complete(ModelConfig("m"), signature_of({"x": ("FP32", shape)})).image_input == "x"


# The image sizes.


def test_free_height_and_width_need_sizes() -> None:
    assert reason(ModelConfig("m"), FREE_SIZE) == (
        "parameter 'vitrail.image_sizes' must list the sizes to serve, for example 224x224, since input 'x' "
        "takes any x any (height x width)"
    )
    assert complete(with_parameters(image_sizes=((4, 6),)), FREE_SIZE).image_sizes == ((4, 6),)


def test_dims_may_fix_a_free_height_and_width() -> None:
    for dims in ((4, 6, 3), (-1, 4, 6, 3)):
        config = ModelConfig("m", inputs=(TensorConfig("x", dims=dims),))
        assert complete(config, FREE_SIZE).image_sizes == ((4, 6),)


def test_sizes_must_fit_what_is_fixed() -> None:
    half_free = signature_of({"x": ("FP32", (-1, 4, -1, 3))})
    assert complete(with_parameters(image_sizes=((4, 6), (4, 9))), half_free).image_sizes == ((4, 6), (4, 9))
    assert refusal(with_parameters(image_sizes=((4, 6), (5, 6))), half_free).message == (
        "parameter 'vitrail.image_sizes' lists 5x6, input 'x' takes 4 x any (height x width)"
    )
    assert refusal(with_parameters(image_sizes=((4, 7),)), PHOTO).message == (
        "parameter 'vitrail.image_sizes' lists 4x7, input 'x' takes 4 x 6 (height x width)"
    )
    fixed_by_dims = ModelConfig(
        "m", inputs=(TensorConfig("x", dims=(4, 6, 3)),), parameters=Parameters(image_sizes=((8, 8),))
    )
    assert refusal(fixed_by_dims, FREE_SIZE).message == (
        "parameter 'vitrail.image_sizes' lists 8x8, input 'x' takes 4 x 6 (height x width)"
    )


def test_a_fixed_size_may_be_listed_and_is_not_kept() -> None:
    assert complete(with_parameters(image_sizes=((4, 6),)), PHOTO).image_sizes == ()


# Fill and range.


def test_the_fill_has_one_value_or_one_per_channel() -> None:
    assert complete(with_parameters(fill=(0.5,)), PHOTO).fill == (0.5,)
    assert complete(with_parameters(fill=(1.0, 2.0, 3.0)), PHOTO).fill == (1.0, 2.0, 3.0)
    assert refusal(with_parameters(fill=(1.0, 2.0)), PHOTO).message == (
        "parameter 'vitrail.fill' has 2 values, input 'x' has 3 channels; give one value, or one per channel"
    )


@pytest.mark.parametrize(
    ("datatype", "fill", "fault"),
    [
        ("UINT8", 256.0, "has the value 256, which UINT8 of input 'x' cannot hold"),
        ("UINT8", 0.5, "has the value 0.5, which UINT8 of input 'x' cannot hold"),
        ("UINT8", -1.0, "has the value -1, which UINT8 of input 'x' cannot hold"),
        ("FP16", 1e6, "has the value 1e+06, which FP16 of input 'x' cannot hold"),
        ("FP32", -1e39, "has the value -1e+39, which FP32 of input 'x' cannot hold"),
    ],
)
def test_the_fill_must_be_a_pixel(datatype: str, fill: float, fault: str) -> None:
    signature = signature_of({"x": (datatype, (-1, 4, 6, 3))})
    assert refusal(with_parameters(fill=(fill,)), signature).message == f"parameter 'vitrail.fill' {fault}"


def test_the_range_must_be_pixels() -> None:
    signature = signature_of({"x": ("UINT8", (-1, 4, 6, 3))})
    assert complete(ModelConfig("m"), signature).image_range == (0.0, 255.0)
    assert refusal(with_parameters(image_range=(-1.0, 1.0)), signature).message == (
        "parameter 'vitrail.image_range' has the value -1, which UINT8 of input 'x' cannot hold"
    )


# Names, types, shapes: Triton's rules.


def test_inputs_are_listed_all_or_none() -> None:
    assert refusal(ModelConfig("m", inputs=(TensorConfig("x"),)), TWO_INPUTS).message == (
        "unable to load model 'm', configuration expects 1 inputs, model provides 2: x, age"
    )


def test_a_tensor_must_exist() -> None:
    assert refusal(ModelConfig("m", inputs=(TensorConfig("z"),)), PHOTO).message == (
        "unexpected inference input 'z' for model 'm', the model has: x"
    )
    error = refusal(ModelConfig("m", outputs=(TensorConfig("z"),)), PHOTO)
    assert error.message == "unexpected inference output 'z' for model 'm', the model has: y"
    assert error.field == "output.name"


def test_a_datatype_must_be_the_models() -> None:
    error = refusal(ModelConfig("m", inputs=(TensorConfig("x", "BYTES"),)), PHOTO)
    assert error.message == (
        "unable to load model 'm', configuration expects datatype TYPE_STRING for input 'x', "
        "model provides TYPE_FP32"
    )
    assert error.field == "input.data_type"


def test_batching_needs_a_free_batch_dimension() -> None:
    error = refusal(ModelConfig("m", max_batch_size=4), FIXED_BATCH)
    assert error.message == (
        "unable to autofill for 'm', configuration specified max-batch 4 but model signature does not "
        "support batching: tensor 'x' has shape [2,4,6,3]; leave 'max_batch_size' out, or export the model "
        "with a free batch dimension"
    )
    assert error.field == "max_batch_size"


@pytest.mark.parametrize("shape", [None, ()])
def test_tensors_of_unknown_rank_and_scalars_do_not_prevent_batching(shape: Shape) -> None:
    signature = signature_of({"x": ("FP32", (-1, 4, 6, 3))}, {"y": ("FP32", shape)})
    assert complete(ModelConfig("m", max_batch_size=4), signature).max_batch_size == 4


@pytest.mark.parametrize(
    ("config", "signature"),
    [
        (ModelConfig("m", max_batch_size=4, inputs=(TensorConfig("x", dims=(4, 6, 3)),)), PHOTO),
        (ModelConfig("m", inputs=(TensorConfig("x", dims=(4, 6, 3)),)), PHOTO),
        (ModelConfig("m", inputs=(TensorConfig("x", dims=(-1, 4, 6, 3)),)), PHOTO),
        (ModelConfig("m", inputs=(TensorConfig("x", dims=(8, 4, 6, 3)),)), PHOTO),
        (ModelConfig("m", inputs=(TensorConfig("x", dims=(2, 4, 6, 3)),)), FIXED_BATCH),
        (
            ModelConfig(
                "m", inputs=(TensorConfig("x", dims=(4, 6, 3)),), outputs=(TensorConfig("y", dims=(5,)),)
            ),
            PHOTO,
        ),
    ],
)
def test_dims_that_fit(config: ModelConfig, signature: Signature) -> None:
    assert complete(config, signature).image_sizes == ()


@pytest.mark.parametrize(
    ("max_batch_size", "dims", "signature", "message"),
    [
        (
            4,
            (-1, 4, 6, 3),
            PHOTO,
            (
                "the model expects 4 dimensions (shape [-1,4,6,3]) but the model configuration specifies 5 "
                "dimensions (an initial batch dimension because max_batch_size > 0 followed by the explicit "
                "tensor shape, making complete shape [-1,-1,4,6,3])"
            ),
        ),
        (
            0,
            (4, 6),
            PHOTO,
            (
                "the model expects 4 dimensions (shape [-1,4,6,3]) but the model configuration specifies 2 "
                "dimensions (shape [4,6])"
            ),
        ),
        (
            0,
            (4, 6, 3),
            FIXED_BATCH,
            (
                "the model expects 4 dimensions (shape [2,4,6,3]) but the model configuration specifies 3 "
                "dimensions (shape [4,6,3])"
            ),
        ),
        (
            4,
            (6, 4, 3),
            PHOTO,
            "the model expects shape [-1,4,6,3] but the model configuration specifies shape [-1,6,4,3]",
        ),
        (
            0,
            (-1, 6, 3),
            PHOTO,
            "the model expects shape [-1,4,6,3] but the model configuration specifies shape [-1,-1,6,3]",
        ),
        (
            0,
            (1, 4, 6, 3),
            FIXED_BATCH,
            "the model expects shape [2,4,6,3] but the model configuration specifies shape [1,4,6,3]",
        ),
    ],
)
def test_dims_that_do_not_fit(
    max_batch_size: int, dims: tuple[int, ...], signature: Signature, message: str
) -> None:
    config = ModelConfig("m", max_batch_size=max_batch_size, inputs=(TensorConfig("x", dims=dims),))
    error = refusal(config, signature)
    assert error.message == f"model 'm', tensor 'x': {message}"
    assert error.field == "input.dims"


def test_dims_must_agree_on_the_batch_dimension() -> None:
    config = ModelConfig(
        "m", inputs=(TensorConfig("x", dims=(4, 6, 3)),), outputs=(TensorConfig("y", dims=(-1, 5)),)
    )
    assert refusal(config, PHOTO).message == (
        "unable to autofill for 'm', model tensor configurations are contradicting each other in terms of "
        "whether batching is supported: leave the batch dimension out of all 'dims', or leave 'dims' out"
    )


# Labels.


@pytest.mark.parametrize("shape", [(-1, 2), (-1, 2, 1), None, (-1, -1)])
def test_labels_that_fit_or_cannot_be_counted(shape: Shape) -> None:
    signature = signature_of({"x": ("FP32", (-1, 4, 6, 3))}, {"y": ("FP32", shape)})
    config = ModelConfig("m", outputs=(TensorConfig("y"),), labels={"y": ("cat", "dog")})
    assert complete(config, signature).labels == {"y": ("cat", "dog")}


def test_there_is_one_label_per_element() -> None:
    config = ModelConfig("m", outputs=(TensorConfig("y"),), labels={"y": ("cat", "dog")})
    error = refusal(config, PHOTO)
    assert error.message == "the label file of output 'y' has 2 labels, the output has 5 elements"
    assert error.field == "output.label_filename"
