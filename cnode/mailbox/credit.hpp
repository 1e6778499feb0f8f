// Credit: how much each sender may have on its way or waiting, out of one bound they share.
//
//   bound = free + Σ held       held: granted to a sender and not yet consumed; below 0 while the
//                               one message is on its way that may be larger than a whole share
//
// Every sender's fair share is bound / senders. Whoever holds more than its share when another
// comes is asked to give back what it has not used, and is granted nothing new until it is below.
//
// Plain arithmetic: no lock, no thread. Bytes throughout.
#pragma once

#include <cstdint>
#include <vector>

namespace mailbox {

class Credit {
 public:
  using Sender = std::uint32_t;
  struct Change {
    Sender sender = 0;
    std::uint64_t grant = 0;
    std::uint64_t reclaim = 0;  // please give back up to so much
  };
  using Changes = std::vector<Change>;

  explicit Credit(std::uint64_t bound) : bound_(bound), free_(static_cast<std::int64_t>(bound)) {}

  std::uint64_t bound() const { return bound_; }
  std::uint64_t share() const { return senders_ == 0 ? bound_ : bound_ / senders_; }
  std::int64_t held(Sender sender) const { return at(sender).held; }

  // A new sender; its number and what follows. The first change in the list is its own grant.
  Sender add(Changes& changes);
  void remove(Sender sender, Changes& changes);
  // So much of what it sent is consumed.
  void consumed(Sender sender, std::uint64_t bytes, Changes& changes);
  // So much it gives back unused, because it was asked to.
  void returned(Sender sender, std::uint64_t bytes, Changes& changes);

 private:
  struct State {
    std::int64_t held = 0;
    bool present = false;
  };

  const State& at(Sender sender) const { return states_[sender]; }
  void release(Sender sender, std::uint64_t bytes);
  void top_up(Sender sender, Changes& changes);
  void distribute(Changes& changes);

  const std::uint64_t bound_;
  std::int64_t free_;
  std::uint64_t senders_ = 0;
  std::vector<State> states_;
};

}  // namespace mailbox
