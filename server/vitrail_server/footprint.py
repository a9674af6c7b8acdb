"""The memory that versions take: told by their instances as plans come and go, shown as one number each."""

from collections.abc import Callable
from weakref import WeakValueDictionary

Show = Callable[[str, int, int], object]
"""Shows what a version takes: name, version, bytes."""


class Footprint:
    """What the instances of one version take. Any thread may report."""

    def __init__(self, changed: Callable[["Footprint", int], object]) -> None:
        self._changed = changed
        self._sizes: dict[str, int] = {}

    def report(self, device: str, size: int) -> None:
        """Take note of the bytes of the instance on a device."""
        self._sizes[device] = size
        self._changed(self, self.size)

    @property
    def size(self) -> int:
        """The bytes of all instances."""
        return sum(list(self._sizes.values()))


class Footprints:
    """Shows the footprint of what serves: while a version is loaded anew, that of the old one."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._serving: WeakValueDictionary[tuple[str, int], Footprint] = WeakValueDictionary()

    def begun(self, name: str, version: int) -> Footprint:
        """Return the footprint of a version that is about to be loaded; nobody sees it yet."""
        key = name, version

        def changed(footprint: Footprint, size: int) -> None:
            if self._serving.get(key) is footprint:
                self._show(name, version, size)

        return Footprint(changed)

    def loaded(self, name: str, version: int, footprint: Footprint) -> None:
        """Show this one from now on: the version has been loaded."""
        self._serving[name, version] = footprint
        self._show(name, version, footprint.size)
