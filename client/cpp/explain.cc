// Explains a photo, or assembles a recorded stream, and writes the map.

#include <google/protobuf/io/zero_copy_stream_impl.h>
#include <google/protobuf/util/delimited_message_util.h>
#include <google/protobuf/util/time_util.h>
#include <grpcpp/grpcpp.h>

#include <cerrno>
#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <tuple>

#include "explanation.h"
#include "failure.h"
#include "options.h"
#include "vitrail/v1/explanation.grpc.pb.h"

namespace {

namespace pb = vitrail::v1;
using std::chrono::steady_clock;
using std::chrono::system_clock;

// gRPC itself tries again what ends UNAVAILABLE, and never after the first message of the answer.
constexpr char kServiceConfig[] = R"({
  "methodConfig": [{
    "name": [{"service": "vitrail.v1.ExplanationService"}],
    "retryPolicy": {
      "maxAttempts": 5,
      "initialBackoff": "0.2s",
      "maxBackoff": "2s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
})";

// How large a request may be and still be tried again: it has the photo in it.
constexpr int kRetryBufferBytes = 64 << 20;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(file), {}};
  if (!file) throw std::system_error(errno, std::generic_category(), path);
  return content;
}

void WriteFile(const std::string& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary);
  file << content << std::flush;
  if (!file) throw std::system_error(errno, std::generic_category(), path);
}

void SetExtent(std::uint32_t pixels, pb::Extent* extent) {
  extent->set_rows(pixels);
  extent->set_columns(pixels);
}

pb::ExplainTilesRequest Request(const Options& options) {
  pb::ExplainTilesRequest request;
  pb::ExplanationSpec* spec = request.mutable_spec();
  spec->set_model_name(options.model);
  spec->mutable_image()->set_encoded(ReadFile(options.photo));
  if (options.method == "gradient") {
    spec->mutable_gradient();
  } else {
    pb::Occlusion* occlusion = spec->mutable_occlusion();
    if (options.patch) SetExtent(*options.patch, occlusion->mutable_patch());
    if (options.stride) SetExtent(*options.stride, occlusion->mutable_stride());
  }
  if (options.top_k) spec->mutable_targets()->set_top_k(*options.top_k);
  if (options.timeout) {
    *spec->mutable_time_budget() =
        google::protobuf::util::TimeUtil::NanosecondsToDuration(options.timeout->count());
  }
  return request;
}

std::shared_ptr<grpc::Channel> Connect(const Options& options) {
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(kServiceConfig);
  arguments.SetInt(GRPC_ARG_PER_RPC_RETRY_BUFFER_SIZE, kRetryBufferBytes);
  if (!options.tls_ca) {
    return grpc::CreateCustomChannel(options.server, grpc::InsecureChannelCredentials(), arguments);
  }
  grpc::SslCredentialsOptions files;
  files.pem_root_certs = ReadFile(*options.tls_ca);
  if (options.tls_cert) files.pem_cert_chain = ReadFile(*options.tls_cert);
  if (options.tls_key) files.pem_private_key = ReadFile(*options.tls_key);
  return grpc::CreateCustomChannel(options.server, grpc::SslCredentials(files), arguments);
}

std::uint64_t Percent(const Explanation& explanation) {
  const std::uint64_t all = explanation.plan() ? explanation.plan()->evaluations() : 0;
  return all > 0 ? 100 * explanation.evaluations_done() / all : 0;
}

void ShowPlan(const pb::Plan& plan) {
  std::cout << plan.model_name() << " version " << plan.model_version() << ", map [" << ShapeText(plan)
            << "], " << plan.evaluations() << " evaluations\n";
  for (const pb::ResolvedTarget& target : plan.targets()) {
    const std::string index = std::to_string(target.index());
    const std::string name = target.label().empty() ? "output " + index : target.label() + " (" + index + ")";
    std::cout << "  " << name << ": output " << target.output() << ", score " << target.score() << '\n';
  }
  std::cout.flush();
}

// Takes in one message and shows what it says.
void Follow(const pb::ExplainTilesResponse& message, Explanation& explanation) {
  const std::uint64_t before = Percent(explanation);
  explanation.Receive(message);
  if (message.has_plan()) {
    ShowPlan(*explanation.plan());
  } else if (Percent(explanation) / 10 > before / 10) {
    std::cerr << "  " << Percent(explanation) << " %: " << explanation.evaluations_done() << " of "
              << explanation.plan()->evaluations() << " evaluations, " << explanation.tiles() << " tiles\n";
  }
}

// Calls the server and follows the map to its end, or until it is cancelled.
Explanation Explain(const Options& options) {
  Explanation explanation;
  const auto stub = pb::ExplanationService::NewStub(Connect(options));
  grpc::ClientContext context;
  if (options.token) context.AddMetadata("authorization", "Bearer " + *options.token);
  if (options.timeout) {
    // The server keeps the time budget and returns what it has; the deadline is the hard end, for a server
    // or a network that does not answer.
    context.set_deadline(system_clock::now() + *options.timeout + *options.timeout / 20 +
                         std::chrono::seconds(1));
  }
  const auto reader = stub->ExplainTiles(&context, Request(options));
  for (pb::ExplainTilesResponse message; reader->Read(&message);) {
    try {
      Follow(message, explanation);
    } catch (const Failure&) {
      context.TryCancel();
      throw;
    }
    if (explanation.tiles() == options.cancel_after_tiles) {
      context.TryCancel();
      reader->Finish();
      return explanation;
    }
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) throw Failure(status);
  explanation.End();
  return explanation;
}

// Follows a recorded map: messages, each after its length as a varint.
Explanation Replay(const std::string& path) {
  Explanation explanation;
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::system_error(errno, std::generic_category(), path);
  google::protobuf::io::IstreamInputStream stream(&file);
  bool at_end = false;
  pb::ExplainTilesResponse message;
  while (google::protobuf::util::ParseDelimitedFromZeroCopyStream(&message, &stream, &at_end)) {
    Follow(message, explanation);
    message.Clear();
  }
  if (!at_end) throw Failure(google::rpc::Code::INTERNAL, path + ": cannot read a message");
  explanation.End();
  return explanation;
}

template <typename Warnings>
void ShowWarnings(const Warnings& warnings) {
  for (const pb::Warning& warning : warnings) std::cout << "warning: " << warning.message() << '\n';
}

std::string Outcome(const std::optional<pb::Summary>& summary) {
  if (!summary) return "CANCELLED";
  const std::string& name = pb::Summary::Completion_Name(summary->completion());
  return name.empty() ? std::to_string(summary->completion()) : name.substr(sizeof("COMPLETION_") - 1);
}

void Report(const Explanation& explanation, steady_clock::duration took) {
  const auto& [plan, summary] = std::tie(explanation.plan(), explanation.summary());
  ShowWarnings(plan->warnings());
  if (summary) ShowWarnings(summary->warnings());
  const double seconds = std::chrono::duration<double>(took).count();
  std::cout.precision(3);
  std::cout << Outcome(summary) << ": " << explanation.evaluations_done() << " of " << plan->evaluations()
            << " evaluations, " << explanation.tiles() << " tiles in " << seconds << " s\n";
}

int Run(const Options& options) {
  if (options.help) {
    std::cout << kUsage;
    return 0;
  }
  const auto began = steady_clock::now();
  const Explanation explanation = options.replay ? Replay(*options.replay) : Explain(options);
  Report(explanation, steady_clock::now() - began);
  if (options.out) WriteFile(*options.out, explanation.values());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::cout << std::fixed;
  std::cout.precision(4);
  try {
    return Run(ParseOptions(argc, argv));
  } catch (const UsageError& error) {
    std::cerr << "error: " << error.what() << "\n\n" << kUsage;
    return 2;
  } catch (const Failure& failure) {
    std::cerr << "error: " << google::rpc::Code_Name(failure.code) << ": " << failure.what() << '\n';
    if (!failure.field.empty()) std::cerr << "  field: " << failure.field << '\n';
    if (failure.retry_delay) std::cerr << "  retry after: " << *failure.retry_delay << " s\n";
  } catch (const std::system_error& error) {
    std::cerr << "error: " << error.what() << '\n';
  }
  return 1;
}
