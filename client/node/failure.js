// Errors as Vitrail sends them: a status, and beside it the field at fault and when to try again.

import { status } from "@grpc/grpc-js";
import { decode } from "./api.js";

/** Something that the server refused or failed to do, or did against the rules. */
export class Failure extends Error {
  /**
   * `code` is a name such as INVALID_ARGUMENT. `field` is the path of the request's field at fault, if
   * one is. `retryDelay` is the number of seconds after which trying again makes sense, if it does.
   */
  constructor(code, message, { field, retryDelay } = {}) {
    super(message);
    this.code = code;
    this.field = field;
    this.retryDelay = retryDelay;
  }
}

/** Returns the failure behind the error with which grpc-js ends a call. */
export function fromCallError(error) {
  const found = {};
  const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
  for (const detail of bytes ? decode("google.rpc.Status", bytes).details : []) {
    const name = detail.type_url.split("/").pop();
    if (name === "google.rpc.BadRequest") {
      found.field = decode(name, detail.value).fieldViolations[0]?.field;
    } else if (name === "google.rpc.RetryInfo") {
      const { seconds, nanos } = decode(name, detail.value).retryDelay ?? { seconds: 0, nanos: 0 };
      found.retryDelay = seconds + nanos / 1e9;
    }
  }
  return new Failure(status[error.code], error.details, found);
}
