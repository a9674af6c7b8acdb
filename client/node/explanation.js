// A map, as it is assembled from the messages of its stream. Nothing here does I/O.

import { Failure } from "./failure.js";

/** The largest map that is taken. */
const MAX_MAP_BYTES = 2 ** 30;

const NAN = Buffer.from([0x00, 0x00, 0xc0, 0x7f]); // a quiet NaN, little-endian

/**
 * The map of one image: one plan, then tiles, then one summary.
 *
 * `values` holds the map as it is on the wire: little-endian float32 in row-major order of `shape`, NaN
 * where no value has arrived.
 */
export class Explanation {
  plan = null;
  summary = null;
  shape = [];
  values = Buffer.alloc(0);
  tiles = 0;
  evaluationsDone = 0;

  /**
   * Takes in the next message.
   *
   * @throws {Failure} it has no place here.
   */
  receive(message) {
    const kind = message.event ?? "message that this client does not know";
    if (this.summary) throw refused(`a ${kind} after the summary`);
    if (!this.plan && kind !== "plan") throw refused(`a ${kind} before the plan`);
    if (kind === "plan" && !this.plan) this.#begin(message.plan);
    else if (kind === "tile") this.#paste(message.tile);
    else if (kind === "summary") this.#finish(message.summary);
    else throw refused(`a ${kind} between the plan and the summary`);
  }

  /**
   * Checks that a stream which has ended was whole.
   *
   * @throws {Failure} the summary is missing.
   */
  end() {
    if (!this.summary) throw refused("no summary");
  }

  #begin(plan) {
    const shape = plan.mapShape;
    if (![3, 4].includes(shape.length) || shape[0] !== plan.targets.length) {
      throw refused(`a map of shape [${shape}] for ${plan.targets.length} targets`);
    }
    const bytes = shape.reduce((size, side) => size * side, NAN.length);
    if (Math.min(...shape) < 1 || bytes > MAX_MAP_BYTES) {
      throw refused(
        `a map of shape [${shape}]; its sides must be 1 or more and its bytes at most ${MAX_MAP_BYTES}`,
      );
    }
    this.values = Buffer.alloc(bytes, NAN);
    this.shape = shape;
    this.plan = plan;
  }

  // The paste rule: a tile's values replace what was there. Bytes are copied, so no bit changes.
  #paste(tile) {
    const [targets, rows, columns, channels = 1] = this.shape;
    const fits =
      within(tile.firstTarget, tile.targetCount, targets) &&
      within(tile.row, tile.height, rows) &&
      within(tile.column, tile.width, columns);
    const line = 4 * channels * tile.width;
    if (!fits || tile.values.length !== tile.targetCount * tile.height * line) {
      throw refused(
        `a tile of ${tile.targetCount} targets from ${tile.firstTarget} on, ${tile.height} rows from ` +
          `${tile.row} and ${tile.width} columns from ${tile.column} with ${tile.values.length} bytes, ` +
          `which does not fit its map of shape [${this.shape}]`,
      );
    }
    let from = 0;
    for (let target = tile.firstTarget; target < tile.firstTarget + tile.targetCount; target++) {
      for (let row = tile.row; row < tile.row + tile.height; row++) {
        const to = 4 * channels * ((target * rows + row) * columns + tile.column);
        tile.values.copy(this.values, to, from, from + line);
        from += line;
      }
    }
    this.tiles++;
    this.evaluationsDone = Math.max(this.evaluationsDone, tile.evaluationsDone);
  }

  #finish(summary) {
    this.summary = summary;
    this.evaluationsDone = (summary.evaluations?.done ?? 0) + (summary.evaluations?.skipped ?? 0);
  }
}

function within(first, count, size) {
  return count >= 1 && first + count <= size;
}

function refused(what) {
  return new Failure("INTERNAL", `the server sent ${what}`);
}
