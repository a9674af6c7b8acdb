"""Figures as a table."""

from benchmarks.figures import Figure, Target
from benchmarks.table import number, table


def test_columns_are_aligned_and_numbers_stand_to_the_right() -> None:
    slow = Figure(
        suite="serving",
        name="served_gradient",
        model="net",
        value=1.25,
        target=Target(1.1, at_most=True),
        holds=False,
        detail={"spread": [1.0, 120.4], "processor_ratio": 1.5},
    )
    plain = Figure(suite="limit", name="rate", model="net", value=1234.5, unit="images/s")

    assert table([slow, plain]).splitlines() == [
        "| suite   | figure          | model |         value |  spread | processor | target | holds |",
        "| ------- | --------------- | ----- | ------------: | ------: | --------: | ------ | ----- |",
        "| serving | served_gradient | net   |          1.25 | 1 - 120 |       1.5 | <= 1.1 | NO    |",
        "| limit   | rate            | net   | 1234 images/s |         |           |        |       |",
    ]


def test_numbers_have_three_digits_or_all_before_the_point() -> None:
    assert [number(each) for each in (0.12345, 1.0, 99.96, 100.4, 12345.6)] == [
        "0.123",
        "1",
        "100",
        "100",
        "12346",
    ]
