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

/** What every way of running takes; what was not given is undefined. */
interface Common {
  out: string | undefined;
}

export interface Replay extends Common {
  action: "replay";
  recording: string;
}

export interface Explain extends Common {
  action: "explain";
  photo: string;
  server: string;
  model: string;
  method: "gradient" | "occlusion";
  patch: number | undefined;
  stride: number | undefined;
  topK: number | undefined;
  /** Seconds. */
  timeout: number | undefined;
  cancelAfterTiles: number | undefined;
  tls: { ca: string; cert: string | undefined; key: string | undefined } | undefined;
  token: string | undefined;
}

export type Options = { action: "help" } | Replay | Explain;

/**
 * Returns what the command line asks for.
 *
 * @throws {UsageError} it is wrong.
 */
export function parse(args: string[]): Options {
  const { values, positionals } = parsed(args);
  const { out, model, method, replay } = values;
  if (values.help) return { action: "help" };
  if (replay !== undefined) return { action: "replay", recording: replay, out };
  const [photo] = positionals;
  if (!model || !photo || positionals.length > 1) throw new UsageError("--model and one PHOTO are needed");
  if (method !== "gradient" && method !== "occlusion") {
    throw new UsageError(`--method is ${method}; it must be gradient or occlusion`);
  }
  if (method !== "occlusion" && (values.patch ?? values.stride) !== undefined) {
    throw new UsageError("--patch and --stride need --method occlusion");
  }
  return {
    action: "explain",
    photo,
    server: values.server,
    model,
    method,
    patch: whole("patch", values.patch),
    stride: whole("stride", values.stride),
    topK: whole("top-k", values["top-k"]),
    timeout: seconds("timeout", values.timeout),
    cancelAfterTiles: whole("cancel-after-tiles", values["cancel-after-tiles"]),
    out,
    tls: tls(values["tls-ca"], values["tls-cert"], values["tls-key"]),
    token: process.env["VITRAIL_TOKEN"],
  };
}

function parsed(args: string[]) {
  try {
    return parseArgs({
      args,
      allowPositionals: true,
      options: {
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
      },
    });
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

function tls(ca: string | undefined, cert: string | undefined, key: string | undefined): Explain["tls"] {
  if ((cert === undefined) !== (key === undefined)) {
    throw new UsageError("--tls-cert and --tls-key need each other");
  }
  if (cert !== undefined && ca === undefined) throw new UsageError("--tls-cert needs --tls-ca");
  return ca === undefined ? undefined : { ca, cert, key };
}

function whole(name: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const number = Number(text);
  if (!/^\d+$/.test(text) || number < 1 || number >= 2 ** 32) {
    throw new UsageError(`--${name} is ${text}; it must be a whole number from 1 on`);
  }
  return number;
}

function seconds(name: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const number = Number(text);
  if (!(number > 0 && number < Infinity)) {
    throw new UsageError(`--${name} is ${text}; it must be a number above 0`);
  }
  return number;
}
