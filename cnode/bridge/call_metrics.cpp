#include "cnode/bridge/call_metrics.hpp"

#include <algorithm>
#include <cstring>

#include "cnode/bridge/call.hpp"

namespace bridge {

CallMetrics::Function* CallMetrics::function(std::string_view module, std::string_view name) {
  const std::size_t length = module.size() + 1 + name.size();
  if (length > kMaxName) return &other_;
  if (last_ != nullptr && last_->name.size() == length &&
      last_->name.compare(0, module.size(), module) == 0 && last_->name[module.size()] == '.' &&
      last_->name.compare(module.size() + 1, name.size(), name) == 0)
    return last_;
  std::array<char, kMaxName> text;  // NOLINT(cppcoreguidelines-pro-type-member-init): filled below
  std::memcpy(text.data(), module.data(), module.size());
  text[module.size()] = '.';
  std::memcpy(text.data() + module.size() + 1, name.data(), name.size());
  const std::string_view whole(text.data(), length);
  if (auto known = by_name_.find(whole); known != by_name_.end()) return last_ = known->second;
  const std::size_t size = size_.load(std::memory_order_relaxed);
  if (size == kMaxFunctions) return &other_;
  functions_[size] = std::make_unique<Function>(whole);
  Function* added = functions_[size].get();
  by_name_.emplace(whole, added);
  size_.store(size + 1, std::memory_order_release);
  return last_ = added;
}

CallMetrics::Clock::time_point CallMetrics::answered(const Call& call, Result result,
                                                     Clock::time_point ran) {
  Function& function = call.function_counts != nullptr ? *call.function_counts : other_;
  call.outcome = result;
  function.results[static_cast<std::size_t>(result)].fetch_add(1, std::memory_order_relaxed);
  queue_.add(call.taken - call.received);
  run_.add(ran - call.taken);
  const auto ns = std::chrono::nanoseconds(ran - call.taken).count();
  const auto took = static_cast<std::uint64_t>(std::max<std::int64_t>(ns, 0));
  function.run_ns.fetch_add(took, std::memory_order_relaxed);
  std::uint64_t longest = function.longest_ns.load(std::memory_order_relaxed);
  while (took > longest && !function.longest_ns.compare_exchange_weak(longest, took)) continue;
  const auto now = Clock::now();
  encode_.add(now - ran);
  return now;
}

}  // namespace bridge
