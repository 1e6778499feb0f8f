// CallMetrics: what calls came to, by function, and how long they waited, ran and were encoded.
//
//   Router: received ──▶ WorkerPool: taken ──▶ Invoker: ran ──▶ answered()
//                 queue               run              encode
//
// Functions come from peers, so only the first kMaxFunctions that exist get a name of their own;
// the others count together. A function is looked up and added under the GIL, or by the reactor
// where worker processes run the calls; whoever reads sees those that were there when it began.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

#include "cnode/bridge/histogram.hpp"

namespace bridge {

struct Call;

class CallMetrics {
 public:
  using Clock = std::chrono::steady_clock;

  static constexpr std::size_t kMaxFunctions = 200;
  static constexpr std::size_t kMaxName = 128;  // bytes

  enum class Result : std::uint8_t {
    kOk,
    kError,      // it raised
    kCancelled,  // nobody waited for it any more
    kRefused     // not allowed, or not understood
  };
  static constexpr std::array<std::string_view, 4> kResults{"ok", "error", "cancelled", "refused"};

  // Calls that nobody looked at: why.
  enum class Refusal : std::uint8_t { kQueue, kDraining, kTooLarge, kMemory };
  static constexpr std::array<std::string_view, 4> kRefusals{"queue", "draining", "too_large",
                                                             "memory"};

  struct Function {
    explicit Function(std::string_view text) : name(text) {}
    const std::string name;  // module.function
    std::array<std::atomic<std::uint64_t>, kResults.size()> results{};
    std::atomic<std::uint64_t> run_ns{0};      // all of them together
    std::atomic<std::uint64_t> longest_ns{0};  // one of them
  };

  CallMetrics() : other_("other") {}
  CallMetrics(const CallMetrics&) = delete;
  CallMetrics& operator=(const CallMetrics&) = delete;

  // For one that exists.
  Function* function(std::string_view module, std::string_view name);
  // The call's own code ended at `ran`, and its answer is on its way now.
  // Returns the time.
  Clock::time_point answered(const Call& call, Result result, Clock::time_point ran);
  void refused(Refusal why, std::size_t calls = 1) {
    refusals_[static_cast<std::size_t>(why)].fetch_add(calls, std::memory_order_relaxed);
  }

  // Any thread.
  std::size_t functions() const { return size_.load(std::memory_order_acquire); }
  const Function& function(std::size_t at) const { return *functions_[at]; }
  const Function& other() const { return other_; }
  std::uint64_t refusals(Refusal why) const {
    return refusals_[static_cast<std::size_t>(why)].load(std::memory_order_relaxed);
  }
  const Histogram& queue() const { return queue_; }
  const Histogram& run() const { return run_; }
  const Histogram& encode() const { return encode_; }

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const {
      return std::hash<std::string_view>{}(text);
    }
  };

  Function other_;
  std::array<std::unique_ptr<Function>, kMaxFunctions> functions_;
  std::atomic<std::size_t> size_{0};
  Function* last_ = nullptr;  // under the GIL; calls of one function come together
  std::unordered_map<std::string, Function*, Hash, std::equal_to<>> by_name_;  // under the GIL
  std::array<std::atomic<std::uint64_t>, kRefusals.size()> refusals_{};
  Histogram queue_, run_, encode_;
};

}  // namespace bridge
