#include "failure.h"

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

Failure::Failure(const grpc::Status& status)
    : Failure(static_cast<google::rpc::Code>(status.error_code()), status.error_message()) {
  google::rpc::Status carried;
  if (!carried.ParseFromString(status.error_details())) return;
  for (const google::protobuf::Any& detail : carried.details()) {
    google::rpc::BadRequest bad_request;
    google::rpc::RetryInfo retry_info;
    if (detail.UnpackTo(&bad_request) && bad_request.field_violations_size() > 0) {
      field = bad_request.field_violations(0).field();
    } else if (detail.UnpackTo(&retry_info)) {
      const auto& delay = retry_info.retry_delay();
      retry_delay = static_cast<double>(delay.seconds()) + delay.nanos() / 1e9;
    }
  }
}
