// Credit: how much each sender may have on its way or waiting, out of one bound they share.
//
//   bound = free + Σ held       held: granted to a sender and not yet consumed; below 0 while the
//                               one message is on its way that may be larger than a whole share
//
// Every sender has a level up to which it is granted what comes free: its fair share, bound /
// senders. One that has been quiet lends half of its share while another wants more than its own,
// and has it back when it wants something itself. Whoever holds more than its level when another is
// short is asked to give back what it has not used, and is granted nothing new until it is below.
//
// Who does not give back keeps what it holds until that is consumed, or until it leaves.
//
// Plain arithmetic: no lock, no thread, no clock. Bytes throughout.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

namespace mailbox {

class Credit {
 public:
  using Sender = std::uint32_t;
  using Time = std::chrono::steady_clock::time_point;
  // What a sender is to be told: that it has so much more or, else, that it is asked for some back.
  struct Change {
    Sender sender = 0;
    std::uint64_t grant = 0;
    std::uint64_t reclaim = 0;  // please give back up to so much
    std::uint64_t share = 0;
  };
  using Changes = std::vector<Change>;

  // Who wanted nothing for so long, and had nothing consumed, is quiet.
  static constexpr std::chrono::milliseconds kQuiet{100};

  explicit Credit(std::uint64_t bound) : bound_(bound), free_(static_cast<std::int64_t>(bound)) {}

  std::uint64_t bound() const { return bound_; }
  // Up to where it is granted what comes free.
  std::uint64_t level(Sender sender) const;
  // Its credit when nothing of it is on its way: without what is lent and has not been given back.
  std::uint64_t share(Sender sender) const;
  std::int64_t held(Sender sender) const { return at(sender).held; }
  // It has asked for more and was granted nothing since.
  bool wants(Sender sender) const { return at(sender).wants; }

  // A new sender; its number and what follows. The first change in the list is its own grant.
  Sender add(Time now, Changes& changes);
  void remove(Sender sender, Changes& changes);
  // It found too little; so much of what it sent is consumed.
  void want(Sender sender, std::uint64_t bytes, Time now, Changes& changes);
  // So much of what it sent is consumed.
  void consumed(Sender sender, std::uint64_t bytes, Time now, Changes& changes);
  // So much it gives back unused, because it was asked to. False when that is more than it was
  // asked for: nothing is changed.
  [[nodiscard]] bool returned(Sender sender, std::uint64_t bytes, Changes& changes);

 private:
  struct State {
    std::int64_t held = 0;
    std::uint64_t asked = 0;  // for so much back, and not given yet
    std::uint64_t told = 0;   // the share it knows
    Time active{};
    bool present = false;
    bool wants = false;
    bool lends = false;
    bool asking = false;  // neither answered nor consumed since it was asked
  };

  const State& at(Sender sender) const { return states_[sender]; }
  std::uint64_t fair() const { return senders_ == 0 ? bound_ : bound_ / senders_; }
  std::int64_t above(Sender sender) const;  // its level
  void release(State& state, std::uint64_t bytes);
  bool top_up(Sender sender, Changes& changes);
  void distribute(Changes& changes);
  void borrow(Sender sender, Time now);
  void ask_others(Sender sender, Changes& changes);
  void ask(Sender sender, Changes& changes);
  void take_part(State& state);
  void tell(Sender sender, std::uint64_t grant, std::uint64_t reclaim, Changes& changes);

  const std::uint64_t bound_;
  std::int64_t free_;
  std::uint64_t senders_ = 0;
  std::uint64_t lenders_ = 0;
  std::vector<State> states_;
};

}  // namespace mailbox
