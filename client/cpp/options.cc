#include "options.h"

#include <getopt.h>

#include <cstdlib>
#include <vector>

const char kUsage[] =
    R"(Explains what a model saw in a photo: a map, assembled while it is computed.

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
)";

namespace {

[[noreturn]] void Refuse(const char* flag, const char* text, const char* wanted) {
  throw UsageError("--" + std::string(flag) + " is " + text + "; it must be " + wanted);
}

std::uint32_t Whole(const char* flag, const char* text) {
  char* end = nullptr;
  const unsigned long long number = std::strtoull(text, &end, 10);
  if (*text < '0' || *text > '9' || *end != '\0' || number < 1 || number > UINT32_MAX) {
    Refuse(flag, text, "a whole number from 1 on");
  }
  return static_cast<std::uint32_t>(number);
}

std::chrono::nanoseconds Seconds(const char* flag, const char* text) {
  constexpr double kMost = 1e9;  // some thirty years; the clock's type holds more
  char* end = nullptr;
  const double number = std::strtod(text, &end);
  if (end == text || *end != '\0' || !(number > 0 && number <= kMost)) {
    Refuse(flag, text, "a number above 0, and at most 1000000000");
  }
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(number));
}

// A flag that takes a value, and what becomes of the value.
struct Flag {
  const char* name;
  void (*set)(Options& options, const char* name, const char* text);
};

constexpr Flag kFlags[] = {
    {"server", [](Options& o, const char*, const char* text) { o.server = text; }},
    {"model", [](Options& o, const char*, const char* text) { o.model = text; }},
    {"method", [](Options& o, const char*, const char* text) { o.method = text; }},
    {"patch", [](Options& o, const char* name, const char* text) { o.patch = Whole(name, text); }},
    {"stride", [](Options& o, const char* name, const char* text) { o.stride = Whole(name, text); }},
    {"top-k", [](Options& o, const char* name, const char* text) { o.top_k = Whole(name, text); }},
    {"timeout", [](Options& o, const char* name, const char* text) { o.timeout = Seconds(name, text); }},
    {"cancel-after-tiles",
     [](Options& o, const char* name, const char* text) { o.cancel_after_tiles = Whole(name, text); }},
    {"out", [](Options& o, const char*, const char* text) { o.out = text; }},
    {"replay", [](Options& o, const char*, const char* text) { o.replay = text; }},
    {"tls-ca", [](Options& o, const char*, const char* text) { o.tls_ca = text; }},
    {"tls-cert", [](Options& o, const char*, const char* text) { o.tls_cert = text; }},
    {"tls-key", [](Options& o, const char*, const char* text) { o.tls_key = text; }},
};

// What getopt_long returns for --help, and for the n-th of kFlags: values that no character has.
constexpr int kHelp = 256;
constexpr int kFirstFlag = 257;

std::vector<option> LongOptions() {
  std::vector<option> options{{"help", no_argument, nullptr, kHelp}};
  for (const Flag& flag : kFlags) {
    options.push_back({flag.name, required_argument, nullptr, kFirstFlag + static_cast<int>(&flag - kFlags)});
  }
  options.push_back({nullptr, 0, nullptr, 0});
  return options;
}

void Check(const Options& options, int photos) {
  if (!options.replay && (options.model.empty() || photos != 1)) {
    throw UsageError("--model and one PHOTO are needed");
  }
  if (options.method != "gradient" && options.method != "occlusion") {
    Refuse("method", options.method.c_str(), "gradient or occlusion");
  }
  if (options.method != "occlusion" && (options.patch || options.stride)) {
    throw UsageError("--patch and --stride need --method occlusion");
  }
  if (options.tls_cert.has_value() != options.tls_key.has_value()) {
    throw UsageError("--tls-cert and --tls-key need each other");
  }
  if (options.tls_cert && !options.tls_ca) throw UsageError("--tls-cert needs --tls-ca");
}

}  // namespace

Options ParseOptions(int argc, char** argv) {
  Options options;
  if (const char* token = std::getenv("VITRAIL_TOKEN"); token != nullptr && *token != '\0') {
    options.token = token;
  }
  const std::vector<option> long_options = LongOptions();
  opterr = 0;  // errors are told by the caller
  for (int found; (found = getopt_long(argc, argv, ":", long_options.data(), nullptr)) != -1;) {
    if (found == '?') throw UsageError(std::string("there is no ") + argv[optind - 1]);
    if (found == ':') throw UsageError(std::string(argv[optind - 1]) + " needs a value");
    if (found == kHelp) {
      options.help = true;
      return options;
    }
    const Flag& flag = kFlags[found - kFirstFlag];
    flag.set(options, flag.name, optarg);
  }
  Check(options, argc - optind);
  if (optind < argc) options.photo = argv[optind];
  return options;
}
