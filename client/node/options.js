// The command line. It is the same in every language.

import { parseArgs } from "node:util";

export const USAGE = `Explains what a model saw in a photo: a map, assembled while it is computed.

usage: vitrail-explain [OPTIONS] --model NAME PHOTO
       vitrail-explain [OPTIONS] --replay FILE

  --server HOST:PORT       where the server is (default localhost:8001)
  --model NAME             the model whose answer is explained
  --method METHOD          gradient or occlusion (default gradient)
  --patch PIXELS           occlusion: the side of the hidden window
  --stride PIXELS          occlusion: the step to the next window (default: the patch)
  --top-k N                explain the N highest outputs (default: the server's choice)
  --timeout SECONDS        return what there is by then; the call's deadline is a little later
  --cancel-after-tiles N   cancel the call after N tiles
  --out FILE               write the map: little-endian float32, row-major, NaN without a value
  --replay FILE            assemble a recorded stream instead of calling a server
  --tls-ca FILE            encrypt, and trust these certificates (PEM)
  --tls-cert FILE          identify the caller by this certificate (PEM), with --tls-key
  --tls-key FILE           the certificate's private key (PEM)
  --help                   show this

A token for the server is read from VITRAIL_TOKEN.
`;

/** What is wrong with the command line. */
export class UsageError extends Error {}

const FLAGS = {
  server: { type: "string", default: "localhost:8001" },
  model: { type: "string" },
  method: { type: "string", default: "gradient" },
  patch: { type: "string" },
  stride: { type: "string" },
  "top-k": { type: "string" },
  timeout: { type: "string" },
  "cancel-after-tiles": { type: "string" },
  out: { type: "string" },
  replay: { type: "string" },
  "tls-ca": { type: "string" },
  "tls-cert": { type: "string" },
  "tls-key": { type: "string" },
  help: { type: "boolean" },
};

/**
 * Returns the options that `args` give; a number that is not given is undefined.
 *
 * @throws {UsageError} they are wrong.
 */
export function parse(args) {
  const { values, positionals } = parsed(args);
  if (values.help) return { help: true };
  if (!values.replay) {
    if (!values.model || positionals.length !== 1) throw new UsageError("--model and one PHOTO are needed");
    if (!["gradient", "occlusion"].includes(values.method)) {
      throw new UsageError(`--method is ${values.method}; it must be gradient or occlusion`);
    }
    if (values.method !== "occlusion" && (values.patch ?? values.stride) !== undefined) {
      throw new UsageError("--patch and --stride need --method occlusion");
    }
  }
  if (!values["tls-cert"] !== !values["tls-key"]) {
    throw new UsageError("--tls-cert and --tls-key need each other");
  }
  if (values["tls-cert"] && !values["tls-ca"]) throw new UsageError("--tls-cert needs --tls-ca");
  return {
    photo: positionals[0],
    server: values.server,
    model: values.model,
    method: values.method,
    patch: whole(values, "patch"),
    stride: whole(values, "stride"),
    topK: whole(values, "top-k"),
    timeout: seconds(values, "timeout"),
    cancelAfterTiles: whole(values, "cancel-after-tiles"),
    out: values.out,
    replay: values.replay,
    tlsCa: values["tls-ca"],
    tlsCert: values["tls-cert"],
    tlsKey: values["tls-key"],
    token: process.env.VITRAIL_TOKEN,
  };
}

function parsed(args) {
  try {
    return parseArgs({ args, options: FLAGS, allowPositionals: true });
  } catch (error) {
    throw new UsageError(error.message);
  }
}

function whole(values, name) {
  const text = values[name];
  if (text === undefined) return undefined;
  const number = Number(text);
  if (!/^\d+$/.test(text) || number < 1 || number >= 2 ** 32) {
    throw new UsageError(`--${name} is ${text}; it must be a whole number from 1 on`);
  }
  return number;
}

function seconds(values, name) {
  const text = values[name];
  if (text === undefined) return undefined;
  const number = Number(text);
  if (!(number > 0 && number < Infinity)) {
    throw new UsageError(`--${name} is ${text}; it must be a number above 0`);
  }
  return number;
}
