from pathlib import Path

import pytest

from vitrail.errors import FailedPrecondition
from vitrail_server.wording import cause_of, listed, quoted, reason_of, shape_text, shortened

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
        (OSError(2, "Not found", "/models/a b\n\udcff"), r"FileNotFoundError: Not found: 'a b\n\udcff'"),
        (ValueError("at /srv/models/net/1/a.pb: /srv/x"), "ValueError: at a.pb: x"),
        (
            ValueError("[Op:X] on /job:a/task:0/device:CPU:0"),
            "ValueError: [Op:X] on /job:a/task:0/device:CPU:0",
        ),
        (ValueError("1 / 2, see https://a.org/b/c"), "ValueError: 1 / 2, see https://a.org/b/c"),
        (ValueError("'/srv/a/b' or \"/srv/c/\""), "ValueError: 'b' or \"\""),
        (FailedPrecondition("'/etc/passwd' must be inside"), "'/etc/passwd' must be inside"),
        (MemoryError(), "MemoryError"),
        (FailedPrecondition(""), "FailedPrecondition"),
        (RuntimeError("x" * 1000), "RuntimeError: " + "x" * 397 + "..."),
    ],
)
def test_reason_is_one_short_line(error: Exception, expected: str) -> None:
    assert reason_of(error) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(21, "Is a directory", "/models/net/1/a.pb"), "IsADirectoryError: Is a directory: '1/a.pb'"),
        (OSError(21, "Is a directory", "/elsewhere/a.pb"), "IsADirectoryError: Is a directory: 'a.pb'"),
        (ValueError("no /models/net/1/a.pb in /srv/models/"), "ValueError: no 1/a.pb in "),
        (ValueError(f"no /models/net/{'x' * 400}"), f"ValueError: no {'x' * 394}..."),
    ],
)
def test_a_reason_tells_where_a_file_is_below_a_directory(error: Exception, expected: str) -> None:
    assert reason_of(error, below=Path("/models/net")) == expected


def test_a_long_path_is_taken_out_before_a_reason_is_cut() -> None:
    below = Path("/" + "long/" * 100 + "net")
    assert reason_of(ValueError(f"no {below}/1/a.pb"), below) == "ValueError: no 1/a.pb"


def test_the_cause_is_told_whole_in_one_line() -> None:
    error = FailedPrecondition("unreadable")
    assert cause_of(error) == ""
    error.__cause__ = ValueError("no /models/net/1/a.pb\n\tnor b.pb")
    told = "ValueError: no /models/net/1/a.pb nor b.pb"
    assert cause_of(error) == told
    again = FailedPrecondition("unreadable, still")
    again.__cause__ = error
    assert cause_of(again) == told
