import pytest

from vitrail.errors import FailedPrecondition
from vitrail_server.wording import listed, quoted, reason_of, shape_text, shortened

GRAPH_ERROR = """Graph execution error:

Detected at node CheckNumerics defined at (most recent call last):
  File "export.py", line 6, in <module>

  File "export.py", line 4, in predict

a pixel : Tensor had NaN values
\t [[{{node CheckNumerics}}]] [Op:__inference_predict_7]"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [("m", "'m'"), ("a\nb\x00", r"'a\nb\x00'"), ("\udcff", r"'\udcff'"), ("x" * 100, f"'{'x' * 61}...'")],
)
def test_quoted_is_printable_and_short(name: str, expected: str) -> None:
    assert quoted(name) == expected


def test_listed() -> None:
    assert listed([]) == "none"
    assert listed([], none="no models") == "no models"
    assert listed([1, 2]) == "1, 2"
    assert listed(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert listed(range(13)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 3 more"


def test_shape_text() -> None:
    assert shape_text((-1, 224, 224, 3)) == "[-1,224,224,3]"
    assert shape_text(()) == "[]"
    assert shape_text(None) == "of unknown rank"


def test_shortened_keeps_the_limit() -> None:
    assert shortened("12345", 5) == "12345"
    assert shortened("123456", 5) == "12..."


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FailedPrecondition("no SavedModel"), "no SavedModel"),
        (ValueError("bad value\nat line 3\nat line 4"), "ValueError: bad value"),
        (ValueError("\n  bad value"), "ValueError: bad value"),
        (ValueError(GRAPH_ERROR), "ValueError: a pixel : Tensor had NaN values"),
        (
            PermissionError(13, "Permission denied", "/models/net/1"),
            "PermissionError: Permission denied: '1'",
        ),
        (OSError(5, "Input/output error", b"/models/net"), "OSError: Input/output error: 'net'"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (MemoryError(), "MemoryError"),
        (FailedPrecondition(""), "FailedPrecondition"),
        (RuntimeError("x" * 1000), "RuntimeError: " + "x" * 397 + "..."),
    ],
)
def test_reason_is_one_short_line(error: Exception, expected: str) -> None:
    assert reason_of(error) == expected
