#include "cnode/mailbox/credit.hpp"

#include <algorithm>
#include <cstddef>

namespace mailbox {

std::uint64_t Credit::level(Sender sender) const {
  const std::uint64_t lent = fair() / 2;
  if (at(sender).lends) return lent;
  return lenders_ == 0 ? fair() : (bound_ - lenders_ * lent) / (senders_ - lenders_);
}

std::uint64_t Credit::share(Sender sender) const {
  const std::uint64_t most = level(sender);
  if (most <= fair()) return most;
  return std::clamp(static_cast<std::uint64_t>(std::max<std::int64_t>(at(sender).held, 0)), fair(),
                    most);
}

std::int64_t Credit::above(Sender sender) const {
  return at(sender).held - static_cast<std::int64_t>(level(sender));
}

Credit::Sender Credit::add(Time now, Changes& changes) {
  // Numbers are not used again: messages of one that left may still be consumed.
  const auto sender = static_cast<Sender>(states_.size());
  states_.push_back({.active = now, .present = true});
  ++senders_;
  const std::size_t before = changes.size();
  if (!top_up(sender, changes)) tell(sender, 0, 0, changes);
  if (changes[before].grant == level(sender)) return sender;
  for (Sender other = 0; other < sender; ++other) {
    if (at(other).present && above(other) > 0) ask(other, changes);
  }
  return sender;
}

void Credit::remove(Sender sender, Changes& changes) {
  free_ += states_[sender].held;
  take_part(states_[sender]);
  states_[sender] = {};
  --senders_;
  if (senders_ == lenders_) {
    // Nobody is left to lend to.
    for (State& state : states_) take_part(state);
  }
  distribute(changes);
}

void Credit::want(Sender sender, std::uint64_t bytes, Time now, Changes& changes) {
  State& state = states_[sender];
  if (!state.present) return;
  state.wants = true;
  state.asking = false;
  state.active = now;
  take_part(state);
  release(state, bytes);
  bool told = top_up(sender, changes);
  if (!told && senders_ > 1) {
    if (above(sender) >= 0) borrow(sender, now);
    told = top_up(sender, changes);
  }
  if (above(sender) < 0) ask_others(sender, changes);
  distribute(changes);
  // A message larger than its share may go when it has all of it: it has to know how much that is.
  if (!told && state.told != share(sender)) tell(sender, 0, 0, changes);
}

void Credit::consumed(Sender sender, std::uint64_t bytes, Time now, Changes& changes) {
  State& state = states_[sender];
  if (!state.present) return;
  state.active = now;
  state.asking = false;
  release(state, bytes);
  top_up(sender, changes);
  distribute(changes);
}

bool Credit::returned(Sender sender, std::uint64_t bytes, Changes& changes) {
  State& state = states_[sender];
  if (!state.present) return true;
  if (bytes > std::min(state.asked, bound_)) return false;
  state.asked -= bytes;
  state.asking = false;
  release(state, bytes);
  distribute(changes);
  return true;
}

void Credit::release(State& state, std::uint64_t bytes) {
  state.held -= static_cast<std::int64_t>(bytes);
  free_ += static_cast<std::int64_t>(bytes);
}

bool Credit::top_up(Sender sender, Changes& changes) {
  State& state = states_[sender];
  if (!state.present || above(sender) >= 0 || free_ <= 0) return false;
  const std::int64_t grant = std::min(free_, -above(sender));
  state.held += grant;
  free_ -= grant;
  state.wants = false;
  tell(sender, static_cast<std::uint64_t>(grant), 0, changes);
  return true;
}

void Credit::distribute(Changes& changes) {
  for (Sender sender = 0; sender < states_.size() && free_ > 0; ++sender) top_up(sender, changes);
}

// The quiet ones lend.
void Credit::borrow(Sender sender, Time now) {
  for (Sender other = 0; other < states_.size(); ++other) {
    State& state = states_[other];
    if (other == sender || !state.present || state.lends || state.wants) continue;
    if (now - state.active < kQuiet) continue;
    state.lends = true;
    ++lenders_;
  }
}

// As many as it takes. Who was asked is not asked again before it has answered or something of it
// was consumed.
void Credit::ask_others(Sender sender, Changes& changes) {
  std::int64_t missing = -above(sender);
  for (Sender other = 0; other < states_.size() && missing > 0; ++other) {
    if (other == sender || !at(other).present || above(other) <= 0) continue;
    missing -= above(other);
    if (!at(other).asking) ask(other, changes);
  }
}

void Credit::ask(Sender sender, Changes& changes) {
  State& state = states_[sender];
  const auto bytes = static_cast<std::uint64_t>(above(sender));
  state.asked += bytes;
  state.asking = true;
  tell(sender, 0, bytes, changes);
}

// It lends no more.
void Credit::take_part(State& state) {
  if (!state.lends) return;
  state.lends = false;
  --lenders_;
}

void Credit::tell(Sender sender, std::uint64_t grant, std::uint64_t reclaim, Changes& changes) {
  states_[sender].told = share(sender);
  changes.push_back({sender, grant, reclaim, share(sender)});
}

}  // namespace mailbox
