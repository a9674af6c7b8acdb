// Errors as Vitrail sends them: a status, and beside it the field at fault and when to try again.

#pragma once

#include <grpcpp/support/status.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "google/rpc/code.pb.h"

// Something that the server refused or failed to do, or did against the rules.
class Failure : public std::runtime_error {
 public:
  Failure(google::rpc::Code status_code, const std::string& message)
      : std::runtime_error(message), code(status_code) {}

  // The failure behind a status that is not OK; its details are google.rpc messages.
  explicit Failure(const grpc::Status& status);

  google::rpc::Code code;
  // The path of the request's field at fault; empty where no field is.
  std::string field;
  // After how many seconds trying again makes sense, if it does.
  std::optional<double> retry_delay;
};
