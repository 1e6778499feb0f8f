// SocketBudgets: how much each descriptor's operations have done in this turn without waiting.
//
// A coroutine that always finds data, or room for it, would otherwise never let others run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace loop {

class SocketBudgets {
 public:
  struct Budget {
    std::uint64_t turn = 0;
    std::uint32_t spent = 0;
    bool much = false;  // the last thing received was large
  };

  // What counts for `fd`, which is not negative, in turn number `turn`.
  Budget& of(int fd, std::uint64_t turn) {
    const auto place = static_cast<std::size_t>(fd);
    if (place >= budgets_.size()) budgets_.resize(2 * place + 16);
    Budget& budget = budgets_[place];
    if (budget.turn != turn) {
      budget.turn = turn;
      budget.spent = 0;
    }
    return budget;
  }

  static void spend(Budget& budget, std::size_t bytes) {
    budget.spent += 1 + static_cast<std::uint32_t>(bytes / kBytes);
  }
  static bool exhausted(const Budget& budget) { return budget.spent >= kOperations; }

 private:
  static constexpr std::uint32_t kOperations = 64;
  static constexpr std::size_t kBytes = 16 * 1024;  // count as one operation more

  std::vector<Budget> budgets_;
};

}  // namespace loop
