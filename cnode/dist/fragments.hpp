// Assembler: puts fragmented messages together, within bounds.
//
//   first (seq 7, 3) ─┐
//   first (seq 9, 2) ─┼─▶ { 7: bytes…, 9: bytes… } ── fragment 1 ──▶ control [message]
//   next  (seq 7, 2) ─┘
//
// Many sequences run interleaved on one link; inside one the fragment numbers count down to 1
// without a gap, and anything else is an error of the stream. A message over the bounds is no such
// error: its bytes are dropped as they come, and at its end the control tuple and the message's
// beginning come out, marked, so that the sender can be told. Memory that is used grows with the
// bytes that arrived, never to a size that was announced; addresses are set aside for what is
// announced, within the bounds, so that nothing is moved as it grows.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>

#include "cnode/base/memory_budget.hpp"
#include "cnode/base/result.hpp"
#include "cnode/etf/writer.hpp"

namespace dist {

struct FragmentLimits {
  std::size_t message = etf::kMaxMessage;    // bytes of one message, its control tuple included
  std::size_t total = 2 * etf::kMaxMessage;  // bytes held for all unfinished ones together
  std::size_t sequences = 10'000;            // unfinished ones; one more is an error
  std::size_t control = 256 * 1024;   // bytes kept of a control tuple whose message is dropped
  std::size_t beginning = 16 * 1024;  // and of that message: enough to see who asked
  // Messages whose first fragment it likes are dropped, too, when the budget has no room for them,
  // and counted while they are here.
  std::shared_ptr<base::MemoryBudget> budget{};
  std::function<bool(etf::Bytes first)> counts{};
};

struct Assembled {
  etf::Buffer bytes;  // control [message], as in a whole frame
  // The message was dropped: bytes is the control tuple and the message's beginning, or nothing if
  // even the tuple is too large.
  bool too_large = false;
  bool no_memory = false;  // likewise, and not for its own size
  base::Charge charge;
};

class Assembler {
 public:
  using Clock = std::chrono::steady_clock;
  using Outcome = base::Result<std::optional<Assembled>>;  // nothing yet, or the whole

  explicit Assembler(FragmentLimits limits = {}) : limits_(limits) {}

  Outcome on_first(std::uint64_t sequence, std::uint64_t fragment, etf::Bytes body,
                   Clock::time_point now = Clock::now());
  Outcome on_next(std::uint64_t sequence, std::uint64_t fragment, etf::Bytes data,
                  Clock::time_point now = Clock::now());

  // Frees what unfinished sequences hold that have been silent since before `since`; returns how
  // many. Should one go on after all, its rest is dropped too and never comes out.
  std::size_t drop_idle(Clock::time_point since);

  std::size_t open() const { return open_.size(); }
  std::size_t held() const { return held_; }          // bytes
  std::size_t reserved() const { return reserved_; }  // addresses set aside, used or not

 private:
  enum class Fate { kKept, kTooLarge, kNoMemory, kForgotten };
  struct Sequence {
    etf::Buffer bytes;
    std::size_t reserved = 0;  // addresses set aside
    std::uint64_t next = 0;    // the fragment number that must come
    Fate fate = Fate::kKept;
    bool counted = false;
    base::Charge charge;
    Clock::time_point touched;
  };

  Outcome add(std::unordered_map<std::uint64_t, Sequence>::iterator at, etf::Bytes data,
              Clock::time_point now);
  base::Status shrink_to_control(Sequence& sequence, etf::Bytes data, Fate fate);
  void release(Sequence& sequence);
  void set_aside(Sequence& sequence, std::uint64_t fragments);

  FragmentLimits limits_;
  std::unordered_map<std::uint64_t, Sequence> open_;
  std::size_t held_ = 0;
  std::size_t reserved_ = 0;
};

}  // namespace dist
