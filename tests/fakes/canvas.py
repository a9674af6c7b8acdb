"""A client's map, which holds every tile to the paste rule."""

from collections.abc import Iterable

import numpy as np

from vitrail_server.explainers.run import Tile


class Canvas:
    """Values pasted so far; fails if a final value changes or becomes final twice."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.values = np.full(shape, np.nan, np.float32)
        self.known = np.zeros(shape[:3], np.bool_)
        self.final = np.zeros(shape[:3], np.bool_)
        self.tiles: list[Tile] = []

    def paste(self, tile: Tile) -> None:
        targets, height, width = tile.values.shape[:3]
        assert tile.values.dtype == np.float32
        assert min(targets, height, width) > 0
        area = (
            slice(tile.first_target, tile.first_target + targets),
            slice(tile.row, tile.row + height),
            slice(tile.column, tile.column + width),
        )
        assert self.final[area].shape == (targets, height, width), "the tile lies outside the map"
        settled = self.final[area]
        assert self.values[area][settled].tobytes() == tile.values[settled].tobytes(), "a final value changed"
        if tile.final:
            assert not settled.any(), "a value became final twice"
            self.final[area] = True
        self.values[area] = tile.values
        self.known[area] = True
        self.tiles.append(tile)

    def paste_all(self, tiles: Iterable[Tile]) -> None:
        for tile in tiles:
            self.paste(tile)
