#include "explanation.h"

#include <algorithm>
#include <string_view>
#include <vector>

#include "failure.h"

namespace {

using vitrail::v1::ExplainTilesResponse;
using vitrail::v1::Plan;
using vitrail::v1::Summary;
using vitrail::v1::Tile;

constexpr std::string_view kNaN("\x00\x00\xc0\x7f", 4);  // a quiet one, little-endian

Failure Refused(const std::string& what) {
  return Failure(google::rpc::Code::INTERNAL, "the server sent " + what);
}

std::string NameOf(const ExplainTilesResponse& message) {
  switch (message.event_case()) {
    case ExplainTilesResponse::kPlan:
      return "a plan";
    case ExplainTilesResponse::kTile:
      return "a tile";
    case ExplainTilesResponse::kSummary:
      return "a summary";
    case ExplainTilesResponse::EVENT_NOT_SET:
      break;
  }
  return "a message that this client does not know";
}

std::string NameOf(const Tile& tile) {
  return "a tile of " + std::to_string(tile.target_count()) + " targets from " +
         std::to_string(tile.first_target()) + " on, " + std::to_string(tile.height()) + " rows from " +
         std::to_string(tile.row()) + " and " + std::to_string(tile.width()) + " columns from " +
         std::to_string(tile.column()) + " with " + std::to_string(tile.values().size()) + " bytes";
}

// The sum is of 64 bits, so that no pair of 32-bit numbers overflows it.
bool Within(std::uint64_t first, std::uint64_t count, std::uint64_t size) {
  return count >= 1 && first + count <= size;
}

}  // namespace

void Explanation::Receive(const ExplainTilesResponse& message) {
  if (summary_) throw Refused(NameOf(message) + " after the summary");
  if (!plan_ && !message.has_plan()) throw Refused(NameOf(message) + " before the plan");
  if (!plan_) {
    Begin(message.plan());
  } else if (message.has_tile()) {
    Paste(message.tile());
  } else if (message.has_summary()) {
    Finish(message.summary());
  } else {
    throw Refused(NameOf(message) + " between the plan and the summary");
  }
}

void Explanation::End() const {
  if (!summary_) throw Refused("no summary");
}

void Explanation::Begin(const Plan& plan) {
  std::vector<std::int64_t> shape(plan.map_shape().begin(), plan.map_shape().end());
  if (shape.size() == 3) shape.push_back(1);
  const std::string name = "a map of shape [" + ShapeText(plan) + "]";
  if (shape.size() != 4 || shape[0] != plan.targets_size()) {
    throw Refused(name + " for " + std::to_string(plan.targets_size()) + " targets");
  }
  std::uint64_t bytes = kNaN.size();
  for (const std::int64_t side : shape) {
    if (side < 1 || static_cast<std::uint64_t>(side) > kMaxMapBytes / bytes) {
      throw Refused(name + "; its sides must be 1 or more and its bytes at most " +
                    std::to_string(kMaxMapBytes));
    }
    bytes *= static_cast<std::uint64_t>(side);
  }
  targets_ = static_cast<std::uint64_t>(shape[0]);
  rows_ = static_cast<std::uint64_t>(shape[1]);
  columns_ = static_cast<std::uint64_t>(shape[2]);
  channels_ = static_cast<std::uint64_t>(shape[3]);
  values_.reserve(bytes);
  while (values_.size() < bytes) values_ += kNaN;
  plan_ = plan;
}

// The paste rule: a tile's values replace what was there. Bytes are copied, so no bit changes.
void Explanation::Paste(const Tile& tile) {
  const std::uint64_t cell = kNaN.size() * channels_;
  const std::uint64_t line = cell * tile.width();
  const bool fits = Within(tile.first_target(), tile.target_count(), targets_) &&
                    Within(tile.row(), tile.height(), rows_) && Within(tile.column(), tile.width(), columns_);
  // What does not fit is not multiplied: it could overflow.
  if (!fits || tile.values().size() != tile.target_count() * tile.height() * line) {
    throw Refused(NameOf(tile) + ", which does not fit its map of shape [" + ShapeText(*plan_) + "]");
  }
  auto from = tile.values().begin();
  for (std::uint64_t target = 0; target < tile.target_count(); ++target) {
    for (std::uint64_t row = 0; row < tile.height(); ++row) {
      const std::uint64_t to =
          ((tile.first_target() + target) * rows_ + tile.row() + row) * columns_ + tile.column();
      const auto end = from + static_cast<std::ptrdiff_t>(line);
      std::copy(from, end, values_.begin() + static_cast<std::ptrdiff_t>(to * cell));
      from = end;
    }
  }
  ++tiles_;
  evaluations_done_ = std::max<std::uint64_t>(evaluations_done_, tile.evaluations_done());
}

void Explanation::Finish(const Summary& summary) {
  summary_ = summary;
  evaluations_done_ = summary.evaluations().done() + summary.evaluations().skipped();
}

std::string ShapeText(const Plan& plan) {
  std::string text;
  for (const std::int64_t side : plan.map_shape()) {
    text += (text.empty() ? "" : ", ") + std::to_string(side);
  }
  return text;
}
