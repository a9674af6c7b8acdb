import numpy as np
import pytest

from fakes.models import Linear, picture, weights
from fakes.questions import ask
from vitrail.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from vitrail_server.explainers.question import (
    DEFAULT_TARGETS,
    AllTargets,
    Limits,
    Question,
    Targets,
    TopK,
    resolved_targets,
    targets_of,
    values_of,
)
from vitrail_server.servable import Task
from vitrail_server.work import Objective

SHAPE = (2, 3, 1)
LABELS = ("cat", "dog", "espresso", "expresso maker")


def question(
    elements: int = 4,
    *,
    targets: tuple[int | str, ...] | TopK | AllTargets | None = None,
    labels: tuple[str, ...] = (),
    task: Task = "REGRESSION",
    objective: Objective = Objective.OUTPUT,
    values: tuple[float, ...] = (),
    probabilities: bool = False,
    limits: Limits | None = None,
) -> Question:
    return ask(
        Linear(weights(0, elements, SHAPE)),
        picture(0, SHAPE),
        targets=targets,
        labels=labels,
        task=task,
        objective=objective,
        values=values,
        probabilities=probabilities,
        limits=limits,
    )


def test_a_classifier_explains_its_top_class_by_default() -> None:
    assert targets_of(question(task="CLASSIFICATION")) == Targets(1, None)


def test_a_regressor_explains_all_of_its_few_outputs_by_default() -> None:
    assert targets_of(question(DEFAULT_TARGETS)) == Targets(16, tuple(range(16)))


def test_a_regressor_with_many_outputs_has_no_default() -> None:
    with pytest.raises(InvalidArgument) as caught:
        targets_of(question(17))
    assert caught.value.field == "spec.targets"
    assert caught.value.message == (
        "spec.targets is unset, and output 'scores' of this regressor has 17 elements, more than the 16 that "
        "are explained unasked: name the targets"
    )


def test_all_targets_are_all() -> None:
    assert targets_of(question(20, targets=AllTargets())) == Targets(20, tuple(range(20)))


def test_indices_and_labels_in_the_order_asked_for() -> None:
    assert targets_of(question(targets=("espresso", 0, "dog", 0), labels=LABELS)) == Targets(4, (2, 0, 1, 0))


@pytest.mark.parametrize(
    ("targets", "labels", "field", "message"),
    [
        ((), (), "spec.targets.list", "spec.targets.list is empty; name at least one target, or leave"),
        ((0, 4), (), "spec.targets.list.targets[1].index", "is 4; output 'scores' has the elements 0 to 3"),
        ((-1,), (), "spec.targets.list.targets[0].index", "is -1; output 'scores' has the elements 0 to 3"),
        (
            ("dog",),
            (),
            "spec.targets.list.targets[0].label",
            "is 'dog', but output 'scores' has no label file",
        ),
        ((0, "dgo"), LABELS, "spec.targets.list.targets[1].label", "did you mean 'dog'?"),
        (("expreso",), LABELS, "spec.targets.list.targets[0].label", "did you mean 'espresso'"),
        (
            ("zebra",),
            LABELS,
            "spec.targets.list.targets[0].label",
            "does not have; GetModel lists the labels",
        ),
        (("",), LABELS, "spec.targets.list.targets[0].label", "is ''"),
        (TopK(0), (), "spec.targets.top_k", "is 0; output 'scores' has 4 elements, so 1 to 4 are possible"),
        (TopK(5), (), "spec.targets.top_k", "is 5; output 'scores' has 4 elements, so 1 to 4 are possible"),
    ],
)
def test_targets_that_the_output_does_not_have_are_refused(
    targets: tuple[int | str, ...] | TopK, labels: tuple[str, ...], field: str, message: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        targets_of(question(targets=targets, labels=labels))
    assert caught.value.field == field
    assert caught.value.message.startswith(field)
    assert message in caught.value.message


def test_a_label_of_several_elements_is_refused_with_their_indices() -> None:
    """ImageNet has two cranes: the bird and the machine."""
    with pytest.raises(InvalidArgument) as caught:
        targets_of(question(targets=("crane",), labels=("cat", "crane", "dog", "crane")))
    assert caught.value.field == "spec.targets.list.targets[0].label"
    assert (
        "'crane', the name of the elements 1 and 3 of output 'scores': use an index" in caught.value.message
    )


@pytest.mark.parametrize("targets", [(0,) * 4, TopK(4), AllTargets()])
def test_more_targets_than_the_server_allows(targets: tuple[int | str, ...] | TopK | AllTargets) -> None:
    with pytest.raises(ResourceExhausted, match="4 targets are asked for; at most 3 are allowed") as caught:
        targets_of(question(targets=targets, limits=Limits(targets=3)))
    assert caught.value.field == "spec.targets"
    assert targets_of(question(targets=targets, limits=Limits(targets=4))).count == 4


class TestSquaredError:
    @pytest.mark.parametrize("values", [(1.0,), (1.0, 2.0, 3.0, 4.0)])
    def test_one_value_for_all_targets_or_one_each(self, values: tuple[float, ...]) -> None:
        each = question(objective=Objective.SQUARED_ERROR, values=values)
        assert targets_of(each).count == 4
        assert values_of(each, 4).tolist() == list(values) * (4 // len(values))

    @pytest.mark.parametrize("values", [(), (1.0, 2.0), (1.0,) * 5])
    def test_any_other_number_of_values(self, values: tuple[float, ...]) -> None:
        with pytest.raises(InvalidArgument) as caught:
            targets_of(question(objective=Objective.SQUARED_ERROR, values=values))
        assert caught.value.field == "spec.objective.values"
        assert caught.value.message == (
            f"spec.objective.values has {len(values)} values; KIND_SQUARED_ERROR needs one for all targets, "
            "or one for each of the 4"
        )

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
    def test_values_that_float32_cannot_hold(self, value: float) -> None:
        with pytest.raises(
            InvalidArgument, match="values holds a value that is not finite in float32"
        ) as caught:
            targets_of(question(objective=Objective.SQUARED_ERROR, values=(value,)))
        assert caught.value.field == "spec.objective.values"

    @pytest.mark.parametrize("objective", [Objective.OUTPUT, Objective.CROSS_ENTROPY])
    def test_other_objectives_have_no_values(self, objective: Objective) -> None:
        each = question(objective=objective, values=(1.0,), targets=(0,), probabilities=True)
        with pytest.raises(InvalidArgument, match="only KIND_SQUARED_ERROR has values") as caught:
            targets_of(each)
        assert caught.value.field == "spec.objective.values"

    def test_values_are_zeros_for_other_objectives(self) -> None:
        assert values_of(question(), 3).tolist() == [0.0] * 3


class TestCrossEntropy:
    def test_one_named_target_of_probabilities(self) -> None:
        each = question(
            objective=Objective.CROSS_ENTROPY, targets=("dog",), labels=LABELS, probabilities=True
        )
        assert targets_of(each) == Targets(1, (1,))

    @pytest.mark.parametrize("targets", [None, TopK(1), AllTargets(), (0, 1)])
    def test_anything_but_one_known_class(
        self, targets: tuple[int | str, ...] | TopK | AllTargets | None
    ) -> None:
        each = question(
            objective=Objective.CROSS_ENTROPY, targets=targets, probabilities=True, task="CLASSIFICATION"
        )
        with pytest.raises(InvalidArgument, match="name exactly one target, the true class") as caught:
            targets_of(each)
        assert caught.value.field == "spec.targets"

    def test_outputs_that_are_no_probabilities(self) -> None:
        with pytest.raises(
            FailedPrecondition, match="use KIND_OUTPUT, or export the model with its softmax"
        ) as caught:
            targets_of(question(objective=Objective.CROSS_ENTROPY, targets=(0,)))
        assert caught.value.field == "spec.objective.kind"


class TestTopK:
    OUTPUTS = np.array([2, 5, 5, -1, 7], np.float32)

    def test_highest_first_and_ties_go_to_the_lower_index(self) -> None:
        assert Targets(4, None).resolve(self.OUTPUTS).tolist() == [4, 1, 2, 0]

    def test_all_equal(self) -> None:
        assert Targets(3, None).resolve(np.zeros(5, np.float32)).tolist() == [0, 1, 2]

    def test_no_answer_counts_as_lowest(self) -> None:
        outputs = np.array([np.nan, 1, -np.inf], np.float32)
        assert Targets(3, None).resolve(outputs).tolist() == [1, 2, 0]

    @pytest.mark.parametrize(
        "outputs",
        [
            [2, 5, 5, -1],
            [0, 0, 0],
            [np.nan, -np.inf, 1, np.nan],
            [np.nan, np.nan, -np.inf],
            [np.nan, np.nan],
            [-np.inf, np.inf, np.inf],
        ],
    )
    def test_the_highest_alone_is_the_first_of_all(self, outputs: list[float]) -> None:
        array = np.array(outputs, np.float32)
        assert Targets(1, None).resolve(array)[0] == Targets(len(outputs), None).resolve(array)[0]

    def test_rows_name_ranks_where_the_targets_are_not_known_yet(self) -> None:
        assert Targets(3, None).rows().tolist() == [-1, -2, -3]

    def test_rows_name_elements_where_they_are(self) -> None:
        fixed = Targets(2, (3, 1))
        assert fixed.rows().tolist() == fixed.resolve(self.OUTPUTS).tolist() == [3, 1]


def test_resolved_targets_carry_label_output_and_score() -> None:
    outputs = np.array([0.5, 1.5, 2.5, 3.5], np.float32)
    indices = np.array([2, 0], np.int32)
    first, second = resolved_targets(question(labels=LABELS), indices, outputs, np.array([9.0, 8.0]))
    assert (first.index, first.label, first.output, first.score) == (2, "espresso", 2.5, 9.0)
    assert (second.index, second.label, second.output, second.score) == (0, "cat", 0.5, 8.0)
    (unnamed,) = resolved_targets(question(), indices[:1], outputs, np.array([9.0]))
    assert unnamed.label == ""
