#!/usr/bin/env node
// Explains a photo, or assembles a recorded stream, and writes the map.

import { createReadStream } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { setTimeout as pause } from "node:timers/promises";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { sizeDelimitedDecodeStream } from "@bufbuild/protobuf/wire";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { createClient, type Client, type Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { Explanation } from "./explanation.js";
import { Failure } from "./failure.js";
import { Code } from "./gen/google/rpc/code_pb.js";
import {
  ExplainTilesRequestSchema,
  ExplainTilesResponseSchema,
  ExplanationService,
  Summary_Completion,
  type ExplainTilesRequest,
  type ExplainTilesResponse,
  type ExplanationSpecSchema,
} from "./gen/vitrail/v1/explanation_pb.js";
import { parse, USAGE, UsageError, type Explain } from "./options.js";

/** How often a call is tried in all, and the pause before the first retry, which doubles each time. */
const ATTEMPTS = 5;
const FIRST_PAUSE_SECONDS = 0.2;

async function main(args: string[]): Promise<void> {
  const options = parse(args);
  if (options.action === "help") {
    process.stdout.write(USAGE);
    return;
  }
  const began = performance.now();
  const explanation = options.action === "replay" ? await replay(options.recording) : await explain(options);
  report(explanation, (performance.now() - began) / 1000);
  if (options.out) await writeFile(options.out, explanation.values);
}

/** Calls the server and follows the map to its end, or until it is cancelled. */
async function explain(options: Explain): Promise<Explanation> {
  const client = createClient(ExplanationService, await transport(options));
  const request = create(ExplainTilesRequestSchema, { spec: await specification(options) });
  const deadline = deadlineOf(options.timeout);
  for (let attempt = 1; ; attempt++) {
    const explanation = new Explanation();
    try {
      await follow(call(client, request, deadline, options), explanation, options.cancelAfterTiles);
      return explanation;
    } catch (reason) {
      // Connect does not try again by itself. After the first message nobody may.
      const failure = Failure.from(reason);
      const seconds = Math.max(failure.retryDelay ?? 0, FIRST_PAUSE_SECONDS * 2 ** (attempt - 1));
      const inTime = deadline === undefined || Date.now() + 1000 * seconds < deadline;
      if (failure.code !== Code.UNAVAILABLE || explanation.plan || attempt === ATTEMPTS || !inTime) {
        throw failure;
      }
      await pause(1000 * seconds);
    }
  }
}

/** Starts one attempt; leaving the loop over its messages cancels it. */
async function* call(
  client: Client<typeof ExplanationService>,
  request: ExplainTilesRequest,
  deadline: number | undefined,
  { token }: Explain,
): AsyncGenerator<ExplainTilesResponse> {
  const cancellation = new AbortController();
  try {
    yield* client.explainTiles(request, {
      signal: cancellation.signal,
      ...(token && { headers: { authorization: `Bearer ${token}` } }),
      ...(deadline && { timeoutMs: deadline - Date.now() }),
    });
  } finally {
    cancellation.abort();
  }
}

async function replay(file: string): Promise<Explanation> {
  const explanation = new Explanation();
  try {
    await follow(sizeDelimitedDecodeStream(ExplainTilesResponseSchema, createReadStream(file)), explanation);
  } catch (reason) {
    if (reason instanceof Failure || isFileError(reason)) throw reason;
    throw new Failure(Code.INTERNAL, `${file} cannot be read: ${String(reason)}`);
  }
  return explanation;
}

async function specification(options: Explain): Promise<MessageInitShape<typeof ExplanationSpecSchema>> {
  const extent = (pixels: number) => ({ rows: pixels, columns: pixels });
  const { model, method, patch, stride, topK, timeout } = options;
  return {
    modelName: model,
    image: { source: { case: "encoded", value: await readFile(options.photo) } },
    method:
      method === "gradient"
        ? { case: "gradient", value: {} }
        : {
            case: "occlusion",
            value: { ...(patch && { patch: extent(patch) }), ...(stride && { stride: extent(stride) }) },
          },
    ...(topK && { targets: { choice: { case: "topK", value: topK } } }),
    ...(timeout && { timeBudget: durationFromMs(Math.ceil(1000 * timeout)) }),
  };
}

/**
 * Returns when a call must have ended, in milliseconds since 1970.
 *
 * The server keeps the time budget and returns what it has; the deadline is the hard end, for a server or a
 * network that does not answer.
 */
function deadlineOf(timeout: number | undefined): number | undefined {
  return timeout && Date.now() + 1000 * (1.05 * timeout + 1);
}

async function transport({ server, tls }: Explain): Promise<Transport> {
  if (!tls) return createGrpcTransport({ baseUrl: `http://${server}` });
  const { ca, cert, key } = tls;
  return createGrpcTransport({
    baseUrl: `https://${server}`,
    nodeOptions: {
      ca: await readFile(ca),
      ...(cert && key && { cert: await readFile(cert), key: await readFile(key) }),
    },
  });
}

/** Takes in the messages and shows what they say, up to the end or to `mostTiles` tiles. */
async function follow(
  messages: AsyncIterable<ExplainTilesResponse>,
  explanation: Explanation,
  mostTiles?: number,
): Promise<void> {
  for await (const message of messages) {
    const before = percent(explanation);
    explanation.receive(message);
    if (message.event.case === "plan") showPlan(explanation);
    else if (Math.floor(percent(explanation) / 10) > Math.floor(before / 10)) showProgress(explanation);
    if (explanation.tiles === mostTiles) return;
  }
  explanation.end();
}

function showPlan({ plan }: Explanation): void {
  if (!plan) return;
  const shape = plan.mapShape.join(", ");
  console.log(
    `${plan.modelName} version ${plan.modelVersion}, map [${shape}], ${plan.evaluations} evaluations`,
  );
  for (const { index, label, output, score } of plan.targets) {
    const name = label ? `${label} (${index})` : `output ${index}`;
    console.log(`  ${name}: output ${output.toFixed(4)}, score ${score.toFixed(4)}`);
  }
}

function showProgress(explanation: Explanation): void {
  const { plan, evaluationsDone, tiles } = explanation;
  const done = `${evaluationsDone} of ${plan?.evaluations} evaluations`;
  process.stderr.write(`  ${percent(explanation)} %: ${done}, ${tiles} tiles\n`);
}

function percent({ plan, evaluationsDone }: Explanation): number {
  return plan && plan.evaluations > 0n ? Number((100n * evaluationsDone) / plan.evaluations) : 0;
}

function report({ plan, summary, evaluationsDone, tiles }: Explanation, seconds: number): void {
  for (const { message } of [...(plan?.warnings ?? []), ...(summary?.warnings ?? [])]) {
    console.log(`warning: ${message}`);
  }
  const outcome = summary ? (Summary_Completion[summary.completion] ?? summary.completion) : "CANCELLED";
  const done = `${evaluationsDone} of ${plan?.evaluations} evaluations`;
  console.log(`${outcome}: ${done}, ${tiles} tiles in ${seconds.toFixed(3)} s`);
}

/** Whether a file could not be read or written. */
function isFileError(reason: unknown): reason is Error {
  return reason instanceof Error && "syscall" in reason;
}

try {
  await main(process.argv.slice(2));
} catch (reason) {
  if (reason instanceof UsageError) {
    process.stderr.write(`error: ${reason.message}\n\n${USAGE}`);
    process.exitCode = 2;
  } else if (reason instanceof Failure) {
    process.stderr.write(`error: ${Code[reason.code]}: ${reason.message}\n`);
    if (reason.field) process.stderr.write(`  field: ${reason.field}\n`);
    if (reason.retryDelay !== undefined) process.stderr.write(`  retry after: ${reason.retryDelay} s\n`);
    process.exitCode = 1;
  } else if (isFileError(reason)) {
    process.stderr.write(`error: ${reason.message}\n`);
    process.exitCode = 1;
  } else {
    throw reason;
  }
}
