// Errors as Vitrail sends them: a status, and beside it the field at fault and when to try again.

import { ConnectError } from "@connectrpc/connect";
import { Code } from "./gen/google/rpc/code_pb.js";
import { BadRequestSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";

/** Something that the server refused or failed to do, or did against the rules. */
export class Failure extends Error {
  constructor(
    /** A gRPC status code other than OK. */
    readonly code: Code,
    message: string,
    /** The path of the request's field at fault, if one is. */
    readonly field?: string,
    /** After how many seconds trying again makes sense, if it does. */
    readonly retryDelay?: number,
  ) {
    super(message);
  }

  /** Returns the failure behind what a call was ended with. */
  static from(reason: unknown): Failure {
    if (reason instanceof Failure) return reason;
    const error = ConnectError.from(reason);
    const [badRequest] = error.findDetails(BadRequestSchema);
    const [retryInfo] = error.findDetails(RetryInfoSchema);
    const { seconds = 0n, nanos = 0 } = retryInfo?.retryDelay ?? {};
    return new Failure(
      // Connect numbers its codes as gRPC does.
      error.code as number as Code,
      error.rawMessage,
      badRequest?.fieldViolations[0]?.field,
      retryInfo && Number(seconds) + nanos / 1e9,
    );
  }
}
