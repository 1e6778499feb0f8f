#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "cnode/mailbox/channel_queue.hpp"
#include "cnode/mailbox/credit.hpp"
#include "cnode/mailbox/fifo.hpp"
#include "tests/cpp/catch.hpp"

using mailbox::Batch;
using mailbox::ChannelQueue;
using mailbox::Credit;
using mailbox::Fifo;

namespace {

// Messages are their own sizes here: a slice's `size` is the message, its offset the sender.
Batch batch_of(std::uint32_t sender, std::vector<std::uint32_t> messages, std::uint32_t cost = 1) {
  Batch batch;
  for (const std::uint32_t message : messages) batch.slices.push_back({sender, message, cost});
  batch.sender = sender;
  return batch;
}

std::vector<std::uint32_t> messages_in(const Batch& batch) {
  std::vector<std::uint32_t> all;
  for (std::size_t i = batch.next; i < batch.slices.size(); ++i)
    all.push_back(batch.slices[i].size);
  return all;
}

class Sleeper final : public mailbox::Waiter {
 public:
  void wake() override {
    const std::lock_guard lock(mutex_);
    ++woken_;
    changed_.notify_all();
  }
  void sleep() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return woken_ > 0; });
    --woken_;
  }
  int woken() {
    const std::lock_guard lock(mutex_);
    return woken_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int woken_ = 0;
};

// What a sender has at hand according to what it was told.
struct Ledger {
  explicit Ledger(std::uint64_t bound) : credit(bound) {}

  Credit::Sender add() {
    Credit::Changes changes;
    const auto sender = credit.add(changes);
    at_hand.resize(sender + 1);
    used.resize(sender + 1);
    apply(changes);
    return sender;
  }
  void apply(const Credit::Changes& changes) {
    std::vector<Credit::Change> returns;
    for (const auto& change : changes) {
      at_hand[change.sender] += static_cast<std::int64_t>(change.grant);
      if (change.reclaim > 0) returns.push_back(change);
    }
    for (const auto& change : returns) {
      const auto give = std::min(std::max<std::int64_t>(at_hand[change.sender], 0),
                                 static_cast<std::int64_t>(change.reclaim));
      at_hand[change.sender] -= give;
      Credit::Changes more;
      credit.returned(change.sender, static_cast<std::uint64_t>(give), more);
      apply(more);
    }
  }
  bool send(Credit::Sender sender, std::int64_t bytes) {
    if (at_hand[sender] < bytes) return false;
    at_hand[sender] -= bytes;
    used[sender] += bytes;
    return true;
  }
  void consume(Credit::Sender sender, std::int64_t bytes) {
    used[sender] -= bytes;
    Credit::Changes changes;
    credit.consumed(sender, static_cast<std::uint64_t>(bytes), changes);
    apply(changes);
  }
  std::int64_t waiting() const {
    std::int64_t all = 0;
    for (const auto bytes : used) all += bytes;
    return all;
  }

  Credit credit;
  std::vector<std::int64_t> at_hand, used;
};

}  // namespace

// --- Fifo

TEST_CASE("a fifo gives back in order what it was given, and may be taken from in the middle",
          "[channel]") {
  Fifo<int> fifo;
  CHECK(fifo.empty());
  int next = 0;
  for (int i = 0; i < 1000; ++i) {
    fifo.push(i);
    if (i % 3 == 2) CHECK(fifo.pop() == next++);
  }
  CHECK(fifo.remove_if([](int value) { return value == 700; }));
  CHECK_FALSE(fifo.remove_if([](int value) { return value == 700; }));
  for (; next < 1000; ++next) {
    if (next == 700) continue;
    CHECK(fifo.front() == next);
    CHECK(fifo.pop() == next);
  }
  CHECK(fifo.empty());
}

// --- Credit

TEST_CASE("one sender has the whole bound, and gets back what is consumed", "[channel]") {
  Ledger ledger(1000);
  const auto sender = ledger.add();
  CHECK(ledger.at_hand[sender] == 1000);
  CHECK(ledger.send(sender, 600));
  CHECK_FALSE(ledger.send(sender, 500));
  ledger.consume(sender, 200);
  CHECK(ledger.send(sender, 500));
  ledger.consume(sender, 900);
  CHECK(ledger.at_hand[sender] == 1000);
}

TEST_CASE("a second sender gets its half of what is unused, and the rest as it is consumed",
          "[channel]") {
  Ledger ledger(1000);
  const auto first = ledger.add();
  REQUIRE(ledger.send(first, 800));
  const auto second = ledger.add();
  CHECK(ledger.at_hand[first] == 0);
  CHECK(ledger.at_hand[second] == 200);
  ledger.consume(first, 300);
  CHECK(ledger.at_hand[first] == 0);
  CHECK(ledger.at_hand[second] == 500);
  ledger.consume(first, 500);
  CHECK(ledger.at_hand[first] == 500);
  CHECK(ledger.at_hand[second] == 500);
}

TEST_CASE("who leaves sets its share free", "[channel]") {
  Ledger ledger(900);
  const auto first = ledger.add();
  const auto second = ledger.add();
  const auto third = ledger.add();
  CHECK(ledger.at_hand[first] == 300);
  CHECK(ledger.at_hand[third] == 300);
  Credit::Changes changes;
  ledger.credit.remove(third, changes);
  ledger.apply(changes);
  CHECK(ledger.at_hand[first] == 450);
  CHECK(ledger.at_hand[second] == 450);
}

TEST_CASE("one message larger than the share leaves no trace once it is consumed", "[channel]") {
  Ledger ledger(1000);
  const auto first = ledger.add();
  ledger.add();
  REQUIRE(ledger.at_hand[first] == 500);
  ledger.at_hand[first] -= 800;  // allowed while nothing else of it is on the way
  ledger.used[first] += 800;
  ledger.consume(first, 800);
  CHECK(ledger.at_hand[first] == 500);
}

TEST_CASE("whatever senders and consumers do, the bound holds and nothing of it is lost",
          "[channel]") {
  std::mt19937 random(7);
  const auto up_to = [&](std::uint32_t most) { return static_cast<std::int64_t>(random() % most); };
  Ledger ledger(10'000);
  std::vector<Credit::Sender> senders{ledger.add()};
  for (int i = 0; i < 20'000; ++i) {
    const auto sender =
        senders[static_cast<std::size_t>(up_to(static_cast<std::uint32_t>(senders.size())))];
    switch (up_to(40)) {
      case 0:
        if (senders.size() < 6) senders.push_back(ledger.add());
        break;
      default:
        if (random() % 2 == 0)
          ledger.send(sender, up_to(700));
        else
          ledger.consume(sender, std::min(ledger.used[sender], up_to(700)));
    }
    REQUIRE(ledger.waiting() <= 10'000);
    std::int64_t all = ledger.waiting();
    for (const auto bytes : ledger.at_hand) all += bytes;
    REQUIRE(all <= 10'000);
  }
  for (const auto sender : senders) ledger.consume(sender, ledger.used[sender]);
  for (const auto sender : senders)
    CHECK(ledger.at_hand[sender] == static_cast<std::int64_t>(10'000 / senders.size()));
}

// --- ChannelQueue

TEST_CASE("messages are taken in order, no more than asked for at once", "[channel]") {
  ChannelQueue queue;
  queue.push(batch_of(0, {1, 2, 3, 4, 5}));
  queue.push(batch_of(1, {6}));
  CHECK(queue.available() == 6);
  CHECK(queue.bytes() == 6);
  CHECK(messages_in(*queue.take(2)) == std::vector<std::uint32_t>{1, 2});
  CHECK(messages_in(*queue.take(100)) == std::vector<std::uint32_t>{3, 4, 5});
  CHECK(messages_in(*queue.take(100)) == std::vector<std::uint32_t>{6});
  CHECK_FALSE(queue.take(100).has_value());
  CHECK(queue.available() == 6);  // until they are handed out
  for (int i = 0; i < 6; ++i) queue.hand_out(1);
  CHECK(queue.available() == 0);
  CHECK(queue.bytes() == 0);
}

TEST_CASE("as many waiters are woken as there are messages, first come first", "[channel]") {
  ChannelQueue queue;
  std::vector<std::shared_ptr<Sleeper>> sleepers;
  for (int i = 0; i < 3; ++i) {
    sleepers.push_back(std::make_shared<Sleeper>());
    REQUIRE(queue.wait(sleepers.back()) == ChannelQueue::Wait::kWaiting);
  }
  queue.push(batch_of(0, {1, 2}));
  CHECK(sleepers[0]->woken() == 1);
  CHECK(sleepers[1]->woken() == 1);
  CHECK(sleepers[2]->woken() == 0);
  CHECK(queue.reserved() == 2);
  // They are not for somebody who comes now.
  auto late = std::make_shared<Sleeper>();
  CHECK(queue.wait(late) == ChannelQueue::Wait::kWaiting);
  queue.push(batch_of(0, {3}));
  CHECK(sleepers[2]->woken() == 1);
  CHECK(late->woken() == 0);
}

TEST_CASE("a turn that is not used is the next waiter's", "[channel]") {
  ChannelQueue queue;
  auto first = std::make_shared<Sleeper>();
  auto second = std::make_shared<Sleeper>();
  queue.wait(first);
  queue.wait(second);
  queue.push(batch_of(0, {1}));
  REQUIRE(queue.granted(first));
  CHECK(queue.leave(first) == ChannelQueue::Left::kGranted);
  CHECK(second->woken() == 1);
  CHECK(queue.granted(second));
  queue.hand_out(1);
  queue.leave(second);
  CHECK(queue.reserved() == 0);
}

TEST_CASE("who waits no more is not woken, and a message is then for the taking", "[channel]") {
  ChannelQueue queue;
  auto gone = std::make_shared<Sleeper>();
  queue.wait(gone);
  CHECK(queue.leave(gone) == ChannelQueue::Left::kUngranted);
  queue.push(batch_of(0, {1}));
  CHECK(gone->woken() == 0);
  auto other = std::make_shared<Sleeper>();
  CHECK(queue.wait(other) == ChannelQueue::Wait::kTryAgain);
}

TEST_CASE("closing wakes all who wait; what came before can still be taken, nothing comes after",
          "[channel]") {
  ChannelQueue queue;
  queue.push(batch_of(0, {1}));
  auto sleeper = std::make_shared<Sleeper>();
  auto first = std::make_shared<Sleeper>();
  queue.take(1);
  queue.hand_out(1);
  queue.wait(sleeper);
  queue.push(batch_of(0, {2}));
  queue.wait(first);
  CHECK(queue.close());
  CHECK_FALSE(queue.close());
  CHECK(first->woken() == 1);
  CHECK_FALSE(queue.granted(first));
  CHECK(queue.push(batch_of(0, {3})) == ChannelQueue::Pushed::kClosed);
  CHECK(queue.granted(sleeper));  // 2 is still its
  CHECK(messages_in(*queue.take(10)) == std::vector<std::uint32_t>{2});
  queue.hand_out(1);
  queue.leave(sleeper);
  CHECK(queue.wait(first) == ChannelQueue::Wait::kClosed);
}

TEST_CASE("eight senders and eight consumers: every message once, each sender's in order",
          "[channel][threads]") {
  ChannelQueue queue;
  constexpr std::uint32_t kSenders = 8;
  constexpr std::uint32_t kEach = 2000;
  std::mutex taking;  // as the GIL does for those who decode
  std::map<std::uint32_t, std::vector<std::uint32_t>> came;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      const auto sleeper = std::make_shared<Sleeper>();
      for (int round = 0;; ++round) {
        const auto wait = queue.wait(sleeper);
        if (wait == ChannelQueue::Wait::kClosed) return;
        if (wait == ChannelQueue::Wait::kWaiting) {
          if ((round + i) % 17 != 0) sleeper->sleep();  // else it gives up at once
        }
        const std::lock_guard lock(taking);
        const bool mine = wait == ChannelQueue::Wait::kWaiting
                              ? queue.granted(sleeper)
                              : queue.available() > queue.reserved();
        if (mine) {
          if (auto batch = queue.take(1)) {
            came[batch->sender].push_back(messages_in(*batch)[0]);
            queue.hand_out(1);
          }
        }
        queue.leave(sleeper);
        while (sleeper->woken() > 0) sleeper->sleep();  // it was woken as it gave up
      }
    });
  }
  std::vector<std::thread> senders;
  for (std::uint32_t sender = 0; sender < kSenders; ++sender) {
    senders.emplace_back([&, sender] {
      for (std::uint32_t i = 0; i < kEach; i += 4)
        queue.push(batch_of(sender, {i, i + 1, i + 2, i + 3}));
    });
  }
  for (auto& thread : senders) thread.join();
  while (queue.available() > 0) std::this_thread::yield();
  queue.close();
  for (auto& thread : threads) thread.join();
  REQUIRE(came.size() == kSenders);
  for (const auto& [sender, messages] : came) {
    REQUIRE(messages.size() == kEach);
    for (std::uint32_t i = 0; i < kEach; ++i) REQUIRE(messages[i] == i);
  }
  CHECK(queue.reserved() == 0);
  CHECK(queue.bytes() == 0);
}
