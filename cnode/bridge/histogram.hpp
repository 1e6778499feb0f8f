// Histogram: how often something took how long, in fixed buckets. Any thread adds and reads.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace bridge {

class Histogram {
 public:
  // Upper bounds in nanoseconds; one more bucket takes what is longer.
  static constexpr std::array<std::int64_t, 20> kBounds{
      10'000,        25'000,        50'000,        100'000,        250'000,
      500'000,       1'000'000,     2'500'000,     5'000'000,      10'000'000,
      25'000'000,    50'000'000,    100'000'000,   250'000'000,    500'000'000,
      1'000'000'000, 2'500'000'000, 5'000'000'000, 10'000'000'000, 30'000'000'000};

  void add(std::chrono::nanoseconds time) {
    const std::int64_t value = time.count() > 0 ? time.count() : 0;
    std::size_t bucket = 0;
    while (bucket < kBounds.size() && value > kBounds[bucket]) ++bucket;
    counts_[bucket].fetch_add(1, std::memory_order_relaxed);
    sum_.fetch_add(static_cast<std::uint64_t>(value), std::memory_order_relaxed);
  }

  std::uint64_t count(std::size_t bucket) const {
    return counts_[bucket].load(std::memory_order_relaxed);
  }
  double sum() const {  // seconds
    return static_cast<double>(sum_.load(std::memory_order_relaxed)) / 1e9;
  }

 private:
  std::array<std::atomic<std::uint64_t>, kBounds.size() + 1> counts_{};
  std::atomic<std::uint64_t> sum_{0};
};

}  // namespace bridge
