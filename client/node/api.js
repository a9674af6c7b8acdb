// Vitrail's API and google.rpc's error details, loaded from the .proto files in protos/.

import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const definition = protoLoader.loadSync(["vitrail/v1/explanation.proto", "google/rpc/error_details.proto"], {
  includeDirs: [fileURLToPath(new URL("protos", import.meta.url))],
  longs: Number,
  enums: String,
  defaults: true,
  oneofs: true,
});

/** The class of clients of vitrail.v1.ExplanationService. */
export const { ExplanationService } = grpc.loadPackageDefinition(definition).vitrail.v1;

/** Returns the message of the type called `name`, for example "google.rpc.Status", that `bytes` hold. */
export function decode(name, bytes) {
  return definition[name].deserialize(bytes);
}
