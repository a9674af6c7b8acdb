// A map, as it is assembled from the messages of its stream. Nothing here does I/O.

import { Failure } from "./failure.js";
import { Code } from "./gen/google/rpc/code_pb.js";
import type { ExplainTilesResponse, Plan, Summary, Tile } from "./gen/vitrail/v1/explanation_pb.js";

/** The largest map that is taken. */
const MAX_MAP_BYTES = 2 ** 30;

/** The sides of a map; without a channel reduction it has several channels. */
interface Shape {
  targets: number;
  rows: number;
  columns: number;
  channels: number;
}

/** The map of one image: one plan, then tiles, then one summary. */
export class Explanation {
  plan: Plan | undefined;
  summary: Summary | undefined;
  /** The map as it is on the wire: little-endian float32, row-major, NaN where no value has arrived. */
  values = new Uint8Array();
  tiles = 0;
  evaluationsDone = 0n;

  #shape: Shape = { targets: 0, rows: 0, columns: 0, channels: 0 };

  /**
   * Takes in the next message.
   *
   * @throws {Failure} it has no place here.
   */
  receive({ event }: ExplainTilesResponse): void {
    const kind = event.case ?? "message that this client does not know";
    if (this.summary) throw refused(`a ${kind} after the summary`);
    if (!this.plan && event.case !== "plan") throw refused(`a ${kind} before the plan`);
    if (event.case === "plan" && !this.plan) this.#begin(event.value);
    else if (event.case === "tile") this.#paste(event.value);
    else if (event.case === "summary") this.#finish(event.value);
    else throw refused(`a ${kind} between the plan and the summary`);
  }

  /**
   * Returns the plan and the summary of a stream that has ended.
   *
   * @throws {Failure} the summary is missing.
   */
  end(): { plan: Plan; summary: Summary } {
    if (!this.plan || !this.summary) throw refused("no summary");
    return { plan: this.plan, summary: this.summary };
  }

  #begin(plan: Plan): void {
    const [targets = 0, rows = 0, columns = 0, channels = 1, ...more] = plan.mapShape.map(Number);
    const name = `a map of shape [${plan.mapShape.join(", ")}]`;
    if (plan.mapShape.length < 3 || more.length > 0 || targets !== plan.targets.length) {
      throw refused(`${name} for ${plan.targets.length} targets`);
    }
    const bytes = 4 * targets * rows * columns * channels;
    if (Math.min(targets, rows, columns, channels) < 1 || bytes > MAX_MAP_BYTES) {
      throw refused(`${name}; its sides must be 1 or more and its bytes at most ${MAX_MAP_BYTES}`);
    }
    this.values = new Uint8Array(bytes);
    const view = new DataView(this.values.buffer);
    for (let at = 0; at < view.byteLength; at += 4) view.setUint32(at, 0x7fc00000, true); // NaN
    this.#shape = { targets, rows, columns, channels };
    this.plan = plan;
  }

  /** The paste rule: a tile's values replace what was there. Bytes are copied, so no bit changes. */
  #paste(tile: Tile): void {
    const { targets, rows, columns, channels } = this.#shape;
    const fits =
      within(tile.firstTarget, tile.targetCount, targets) &&
      within(tile.row, tile.height, rows) &&
      within(tile.column, tile.width, columns);
    const line = 4 * channels * tile.width;
    if (!fits || tile.values.length !== tile.targetCount * tile.height * line) {
      throw refused(
        `a tile of ${tile.targetCount} targets from ${tile.firstTarget} on, ${tile.height} rows from ` +
          `${tile.row} and ${tile.width} columns from ${tile.column} with ${tile.values.length} bytes, ` +
          `which does not fit its map of shape [${this.plan?.mapShape.join(", ")}]`,
      );
    }
    let from = 0;
    for (let target = tile.firstTarget; target < tile.firstTarget + tile.targetCount; target++) {
      for (let row = tile.row; row < tile.row + tile.height; row++) {
        const to = 4 * channels * ((target * rows + row) * columns + tile.column);
        this.values.set(tile.values.subarray(from, from + line), to);
        from += line;
      }
    }
    this.tiles++;
    if (tile.evaluationsDone > this.evaluationsDone) this.evaluationsDone = tile.evaluationsDone;
  }

  #finish(summary: Summary): void {
    this.summary = summary;
    const { done = 0n, skipped = 0n } = summary.evaluations ?? {};
    this.evaluationsDone = done + skipped;
  }
}

function within(first: number, count: number, size: number): boolean {
  return count >= 1 && first + count <= size;
}

function refused(what: string): Failure {
  return new Failure(Code.INTERNAL, `the server sent ${what}`);
}
