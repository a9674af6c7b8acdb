"""What versions take: one number for all instances, of what serves."""

from vitrail_server.footprint import Footprints


def test_it_is_shown_from_the_end_of_a_load_on_for_all_devices_together() -> None:
    shown: list[tuple[str, int, int]] = []
    footprints = Footprints(lambda *what: shown.append(what))
    footprint = footprints.begun("m", 3)
    footprint.report("GPU:0", 100)
    footprint.report("GPU:1", 50)
    assert shown == []
    footprints.loaded("m", 3, footprint)
    footprint.report("GPU:1", 70)
    assert shown == [("m", 3, 150), ("m", 3, 170)]


def test_while_a_version_is_loaded_anew_the_old_one_is_shown() -> None:
    """And when it has been, what goes on in the old one until it is closed is not."""
    shown: list[int] = []
    footprints = Footprints(lambda _name, _version, size: shown.append(size))
    old, new = footprints.begun("m", 1), footprints.begun("m", 1)
    old.report("CPU:0", 10)
    footprints.loaded("m", 1, old)
    new.report("CPU:0", 500)
    old.report("CPU:0", 11)
    footprints.loaded("m", 1, new)
    old.report("CPU:0", 12)
    new.report("CPU:0", 501)
    assert shown == [10, 11, 500, 501]
