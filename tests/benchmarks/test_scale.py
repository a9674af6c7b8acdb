"""What is measured: the models exist, and both scales can say something with 95 % confidence."""

import pytest
from benchmarks.figures import LEAST_ROUNDS, lower_bound
from benchmarks.models import APPLICATIONS, CONFIG, SAMPLES, find
from benchmarks.scale import FULL, QUICK, Case, Scale

from vitrail_server.repository.config import parse_config

SCALES = {"quick": QUICK, "full": FULL}


@pytest.fixture(params=SCALES)
def scale(request: pytest.FixtureRequest) -> Scale:
    return SCALES[str(request.param)]


def test_every_model_is_made_here_or_in_the_sample_repository(scale: Scale) -> None:
    for model in scale.models:
        assert model in APPLICATIONS or (SAMPLES / model).is_dir()


def test_quick_needs_no_model_that_another_command_builds() -> None:
    assert set(QUICK.models) <= set(APPLICATIONS)


def test_rounds_are_enough_to_bound_a_median(scale: Scale) -> None:
    assert scale.rounds >= LEAST_ROUNDS
    assert lower_bound([1.0] * LEAST_ROUNDS, 0.5) is not None
    assert lower_bound([1.0] * (LEAST_ROUNDS - 1), 0.5) is None


def test_single_images_are_measured(scale: Scale) -> None:
    assert 1 in scale.batch_sizes
    assert 1 in scale.gradient_batch_sizes


def test_no_two_cases_give_a_figure_of_the_same_name(scale: Scale) -> None:
    assert len({(case.model, case.patch) for case in scale.cases}) == len(scale.cases)
    for model in scale.models:
        cases = [case for case in scale.cases if case.model == model]
        assert sum(case.gradients for case in cases) <= 1
        assert sum(case.callers for case in cases) <= 1


def test_a_model_with_two_cases_counts_once() -> None:
    cases = (Case("one", 8), Case("two", 8), Case("one", 16))

    assert Scale(cases, 5, 1.0, (1,), (1,), 1, 1, 1, 1, 1.0).models == ("one", "two")


def test_unknown_models_are_refused() -> None:
    with pytest.raises(LookupError, match="there is no model 'nothing'"):
        find("nothing")


def test_targets_of_the_incremental_occlusions_are_for_windows_of_16_pixels(scale: Scale) -> None:
    for case in scale.cases:
        assert case.incremental_limit is None or (case.incremental and case.patch == 16)


def test_the_model_that_is_loaded_beside_another_is_made_here() -> None:
    assert FULL.loading is not None
    assert QUICK.loading is None
    assert set(FULL.loading) <= set(APPLICATIONS)
    assert FULL.loading[0] in FULL.models


def test_configuration_of_the_models_made_here_is_one_that_the_server_reads() -> None:
    config = parse_config(CONFIG.format(name="mobilenet_v2").encode(), "config.pbtxt")

    assert config.name == "mobilenet_v2"
    assert config.parameters["vitrail.fill"].string_value == "0.5"
