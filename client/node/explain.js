#!/usr/bin/env node
// Explains a photo, or assembles a recorded stream, and writes the map.

import { readFile, writeFile } from "node:fs/promises";
import grpc from "@grpc/grpc-js";
import { ExplanationService, decode } from "./api.js";
import { Explanation } from "./explanation.js";
import { Failure, fromCallError } from "./failure.js";
import { USAGE, UsageError, parse } from "./options.js";

// gRPC itself tries again what ends UNAVAILABLE, and never after the first message of the answer. It can
// only do so while it holds the request, which has the photo in it.
const CHANNEL_OPTIONS = {
  "grpc.service_config": JSON.stringify({
    methodConfig: [
      {
        name: [{ service: "vitrail.v1.ExplanationService" }],
        retryPolicy: {
          maxAttempts: 5,
          initialBackoff: "0.2s",
          maxBackoff: "2s",
          backoffMultiplier: 2,
          retryableStatusCodes: ["UNAVAILABLE"],
        },
      },
    ],
  }),
  "grpc.per_rpc_retry_buffer_size": 64 << 20,
  "grpc.retry_buffer_size": 64 << 20,
};

async function main(args) {
  const options = parse(args);
  if (options.help) {
    process.stdout.write(USAGE);
    return;
  }
  const explanation = new Explanation();
  const began = performance.now();
  const cancelled = options.replay
    ? await replay(options.replay, explanation)
    : await explain(options, explanation);
  report(explanation, cancelled, (performance.now() - began) / 1000);
  if (options.out) await writeFile(options.out, explanation.values);
}

/** Calls the server and follows the map; returns whether the call was cancelled. */
async function explain(options, explanation) {
  const request = { spec: await specification(options) };
  const client = new ExplanationService(options.server, await credentials(options), CHANNEL_OPTIONS);
  const call = client.explainTiles(request, metadata(options), { deadline: deadline(options.timeout) });
  call.on("error", () => {}); // a cancelled call still ends with an error, which the loop below has left
  try {
    for await (const message of call) {
      follow(explanation, message);
      if (explanation.tiles === options.cancelAfterTiles) return true;
    }
  } catch (error) {
    throw error instanceof Failure ? error : fromCallError(error);
  } finally {
    call.cancel(); // does nothing where the call has ended
    client.close();
  }
  explanation.end();
  return false;
}

/** Follows a recorded map: messages, each after its length as a varint. */
async function replay(file, explanation) {
  const recording = await readFile(file);
  for (let at = 0; at < recording.length; ) {
    let length = 0;
    for (let shift = 0, more = true; more; shift += 7) {
      if (at === recording.length) throw new Failure("INTERNAL", `${file} ends within a length`);
      const byte = recording[at++];
      length += (byte & 0x7f) * 2 ** shift;
      more = byte >= 0x80;
    }
    if (at + length > recording.length) throw new Failure("INTERNAL", `${file} ends within a message`);
    follow(explanation, decoded(recording.subarray(at, at + length)));
    at += length;
  }
  explanation.end();
  return false;
}

function decoded(bytes) {
  try {
    return decode("vitrail.v1.ExplainTilesResponse", bytes);
  } catch (error) {
    throw new Failure("INTERNAL", `a message cannot be read: ${error.message}`);
  }
}

async function specification({ photo, model, method, patch, stride, topK, timeout }) {
  const extent = (pixels) => pixels && { rows: pixels, columns: pixels };
  return {
    modelName: model,
    image: { encoded: await readFile(photo) },
    ...(method === "gradient"
      ? { gradient: {} }
      : { occlusion: { patch: extent(patch), stride: extent(stride) } }),
    ...(topK && { targets: { topK } }),
    ...(timeout && { timeBudget: duration(timeout) }),
  };
}

function duration(seconds) {
  const whole = Math.floor(seconds);
  return { seconds: whole, nanos: Math.floor((seconds - whole) * 1e9) };
}

// The server keeps the time budget and returns what it has; the deadline is the hard end, for a server or a
// network that does not answer.
function deadline(timeout) {
  return timeout ? Date.now() + 1000 * (1.05 * timeout + 1) : Infinity;
}

async function credentials({ tlsCa, tlsCert, tlsKey }) {
  if (!tlsCa) return grpc.credentials.createInsecure();
  const read = (file) => (file ? readFile(file) : null);
  return grpc.credentials.createSsl(await read(tlsCa), await read(tlsKey), await read(tlsCert));
}

function metadata({ token }) {
  const metadata = new grpc.Metadata();
  if (token) metadata.set("authorization", `Bearer ${token}`);
  return metadata;
}

/** Takes in one message and shows what it says. */
function follow(explanation, message) {
  const before = percent(explanation);
  explanation.receive(message);
  const { plan, evaluationsDone, tiles } = explanation;
  if (message.event === "plan") {
    const shape = plan.mapShape.join(", ");
    console.log(
      `${plan.modelName} version ${plan.modelVersion}, map [${shape}], ${plan.evaluations} evaluations`,
    );
    for (const { index, label, output, score } of plan.targets) {
      const name = label ? `${label} (${index})` : `output ${index}`;
      console.log(`  ${name}: output ${output.toFixed(4)}, score ${score.toFixed(4)}`);
    }
  } else if (Math.floor(percent(explanation) / 10) > Math.floor(before / 10)) {
    const done = `${evaluationsDone} of ${plan.evaluations} evaluations`;
    process.stderr.write(`  ${percent(explanation)} %: ${done}, ${tiles} tiles\n`);
  }
}

function percent({ plan, evaluationsDone }) {
  return plan ? Math.floor((100 * evaluationsDone) / Math.max(1, plan.evaluations)) : 0;
}

function report({ plan, summary, evaluationsDone, tiles }, cancelled, seconds) {
  for (const { message } of [...(plan?.warnings ?? []), ...(summary?.warnings ?? [])]) {
    console.log(`warning: ${message}`);
  }
  const outcome = cancelled ? "CANCELLED" : String(summary.completion).replace("COMPLETION_", "");
  console.log(
    `${outcome}: ${evaluationsDone} of ${plan.evaluations} evaluations, ${tiles} tiles in ${seconds.toFixed(3)} s`,
  );
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  if (error instanceof UsageError) {
    process.stderr.write(`error: ${error.message}\n\n${USAGE}`);
    process.exitCode = 2;
  } else if (error instanceof Failure) {
    process.stderr.write(`error: ${error.code}: ${error.message}\n`);
    if (error.field) process.stderr.write(`  field: ${error.field}\n`);
    if (error.retryDelay !== undefined) process.stderr.write(`  retry after: ${error.retryDelay} s\n`);
    process.exitCode = 1;
  } else if (error.syscall) {
    process.stderr.write(`error: ${error.message}\n`); // a file that cannot be read or written
    process.exitCode = 1;
  } else {
    throw error;
  }
}
