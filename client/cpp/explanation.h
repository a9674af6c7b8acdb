// A map, as it is assembled from the messages of its stream. Nothing here does I/O.

#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "vitrail/v1/explanation.pb.h"

// The largest map that is taken.
constexpr std::uint64_t kMaxMapBytes = std::uint64_t{1} << 30;

// The map of one image: one plan, then tiles, then one summary.
class Explanation {
 public:
  // Takes in the next message. Throws Failure if it has no place here.
  void Receive(const vitrail::v1::ExplainTilesResponse& message);

  // Checks that a stream which has ended was whole. Throws Failure if the summary is missing.
  void End() const;

  const std::optional<vitrail::v1::Plan>& plan() const { return plan_; }
  const std::optional<vitrail::v1::Summary>& summary() const { return summary_; }
  // The map as it is on the wire: little-endian float32, row-major, NaN where no value has arrived.
  const std::string& values() const { return values_; }
  std::uint32_t tiles() const { return tiles_; }
  std::uint64_t evaluations_done() const { return evaluations_done_; }

 private:
  void Begin(const vitrail::v1::Plan& plan);
  void Paste(const vitrail::v1::Tile& tile);
  void Finish(const vitrail::v1::Summary& summary);

  std::optional<vitrail::v1::Plan> plan_;
  std::optional<vitrail::v1::Summary> summary_;
  std::string values_;
  std::uint32_t tiles_ = 0;
  std::uint64_t evaluations_done_ = 0;
  // The map's sides; without a channel reduction there are several channels.
  std::uint64_t targets_ = 0, rows_ = 0, columns_ = 0, channels_ = 1;
};

// A map's shape as text: "1, 224, 224".
std::string ShapeText(const vitrail::v1::Plan& plan);
