#include "cnode/mailbox/credit.hpp"

#include <algorithm>
#include <cstddef>

namespace mailbox {

Credit::Sender Credit::add(Changes& changes) {
  // Numbers are not used again: messages of one that left may still be consumed.
  const auto sender = static_cast<Sender>(states_.size());
  states_.push_back({0, true});
  ++senders_;
  const std::size_t before = changes.size();
  top_up(sender, changes);
  if (changes.size() == before) changes.push_back({sender, 0, 0});
  if (changes[before].grant == share()) return sender;
  const auto fair = static_cast<std::int64_t>(share());
  for (Sender other = 0; other < states_.size(); ++other) {
    const State& state = at(other);
    if (state.present && state.held > fair)
      changes.push_back({other, 0, static_cast<std::uint64_t>(state.held - fair)});
  }
  return sender;
}

void Credit::remove(Sender sender, Changes& changes) {
  free_ += states_[sender].held;
  states_[sender] = {};
  --senders_;
  distribute(changes);
}

void Credit::consumed(Sender sender, std::uint64_t bytes, Changes& changes) {
  release(sender, bytes);
  top_up(sender, changes);
  distribute(changes);
}

void Credit::returned(Sender sender, std::uint64_t bytes, Changes& changes) {
  release(sender, bytes);
  distribute(changes);
}

void Credit::release(Sender sender, std::uint64_t bytes) {
  if (!at(sender).present) return;
  states_[sender].held -= static_cast<std::int64_t>(bytes);
  free_ += static_cast<std::int64_t>(bytes);
}

void Credit::top_up(Sender sender, Changes& changes) {
  State& state = states_[sender];
  const auto fair = static_cast<std::int64_t>(share());
  if (!state.present || state.held >= fair || free_ <= 0) return;
  const std::int64_t grant = std::min(free_, fair - state.held);
  state.held += grant;
  free_ -= grant;
  changes.push_back({sender, static_cast<std::uint64_t>(grant), 0});
}

void Credit::distribute(Changes& changes) {
  for (Sender sender = 0; sender < states_.size() && free_ > 0; ++sender) top_up(sender, changes);
}

}  // namespace mailbox
