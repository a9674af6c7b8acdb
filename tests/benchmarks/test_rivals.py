"""What the peers' libraries are given."""

from benchmarks.models import PROJECT


def test_every_package_of_the_peers_is_pinned() -> None:
    lines = (PROJECT / "benchmarks" / "peers.txt").read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]

    assert {"captum", "tf-explain", "xplique"} <= {line.partition("==")[0] for line in packages}
    assert all("==" in line for line in packages)


def test_packages_that_the_project_has_too_are_pinned_to_the_same_versions() -> None:
    def pinned(file: str) -> set[tuple[str, str]]:
        lines = (PROJECT / file).read_text().splitlines()
        found = (line.partition(" ")[0].partition("==") for line in lines if "==" in line)
        return {(name.lower(), version) for name, _, version in found}

    ours, theirs = pinned("constraints.txt"), pinned("benchmarks/peers.txt")
    both = {name for name, _ in ours} & {name for name, _ in theirs}
    assert both
    assert {each for each in theirs if each[0] in both} <= ours  # which may have one for each Python
