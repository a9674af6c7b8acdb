// The command line. It is the same in every language.

#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

extern const char kUsage[];

// What is wrong with the command line.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Options {
  bool help = false;
  std::string photo;
  std::string server = "localhost:8001";
  std::string model;
  std::string method = "gradient";
  std::optional<std::uint32_t> patch, stride, top_k;
  std::optional<std::chrono::nanoseconds> timeout;
  std::optional<std::uint32_t> cancel_after_tiles;
  std::optional<std::string> out, replay;
  std::optional<std::string> tls_ca, tls_cert, tls_key;
  std::optional<std::string> token;
};

// Throws UsageError.
Options ParseOptions(int argc, char** argv);
