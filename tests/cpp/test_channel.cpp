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
  // A BEAM with an older version of the application is silent where it has nothing to give.
  enum class Answers : std::uint8_t { kAlways, kWhenItGives, kNever };

  explicit Ledger(std::uint64_t bound) : credit(bound) {}

  Credit::Sender add() {
    Credit::Changes changes;
    const auto sender = credit.add(now, changes);
    at_hand.resize(sender + 1);
    used.resize(sender + 1);
    answers.resize(sender + 1);
    share.resize(sender + 1);
    apply(changes);
    return sender;
  }
  void apply(const Credit::Changes& changes) {
    std::vector<Credit::Change> returns;
    for (const auto& change : changes) {
      ++told;
      at_hand[change.sender] += static_cast<std::int64_t>(change.grant);
      share[change.sender] = static_cast<std::int64_t>(change.share);
      if (change.reclaim > 0) returns.push_back(change);
    }
    for (const auto& change : returns) {
      if (answers[change.sender] == Answers::kNever) continue;
      const auto give = std::min(std::max<std::int64_t>(at_hand[change.sender], 0),
                                 static_cast<std::int64_t>(change.reclaim));
      if (give == 0 && answers[change.sender] == Answers::kWhenItGives) continue;
      at_hand[change.sender] -= give;
      Credit::Changes more;
      REQUIRE(credit.returned(change.sender, static_cast<std::uint64_t>(give), more));
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
    credit.consumed(sender, static_cast<std::uint64_t>(bytes), now, changes);
    apply(changes);
  }
  // Something of it is consumed and not told yet when it wants more.
  void want(Credit::Sender sender, std::int64_t bytes = 0) {
    used[sender] -= bytes;
    Credit::Changes changes;
    credit.want(sender, static_cast<std::uint64_t>(bytes), now, changes);
    apply(changes);
  }
  void be_quiet() { now += Credit::kQuiet; }
  std::int64_t waiting() const {
    std::int64_t all = 0;
    for (const auto bytes : used) all += bytes;
    return all;
  }

  Credit credit;
  Credit::Time now{};
  std::vector<std::int64_t> at_hand, used, share;
  std::vector<Answers> answers;
  int told = 0;
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

TEST_CASE("a sender that has been quiet lends half of its share, and has it back when it wants",
          "[channel]") {
  Ledger ledger(1000);
  const auto quiet = ledger.add();
  const auto busy = ledger.add();
  REQUIRE(ledger.send(busy, 500));
  ledger.want(busy);
  CHECK(ledger.at_hand[busy] == 0);  // the other may yet use what it has
  ledger.be_quiet();
  ledger.want(busy);
  CHECK(ledger.at_hand[quiet] == 250);
  CHECK(ledger.at_hand[busy] == 250);
  CHECK(ledger.share[busy] == 750);
  // What it still has it may send, and is given that much again.
  REQUIRE(ledger.send(quiet, 250));
  ledger.consume(quiet, 250);
  CHECK(ledger.at_hand[quiet] == 250);
  REQUIRE(ledger.send(quiet, 250));
  ledger.want(quiet);
  CHECK(ledger.at_hand[quiet] == 250);
  CHECK(ledger.at_hand[busy] == 0);
  CHECK(ledger.share[busy] == 500);
}

TEST_CASE("nobody who wants something himself lends, however long he has waited", "[channel]") {
  Ledger ledger(1000);
  const auto first = ledger.add();
  const auto second = ledger.add();
  REQUIRE(ledger.send(first, 500));
  ledger.want(first);
  ledger.be_quiet();
  ledger.want(second);
  ledger.consume(first, 500);
  CHECK(ledger.at_hand[first] == 500);
  CHECK(ledger.at_hand[second] == 500);
}

TEST_CASE("when nobody is left to lend to, what was lent is back", "[channel]") {
  Ledger ledger(1000);
  const auto quiet = ledger.add();
  const auto busy = ledger.add();
  ledger.be_quiet();
  ledger.want(busy);
  REQUIRE(ledger.at_hand[quiet] == 250);
  Credit::Changes changes;
  ledger.credit.remove(busy, changes);
  ledger.apply(changes);
  CHECK(ledger.at_hand[quiet] == 1000);
}

TEST_CASE("who does not give back is not asked again and again, and keeps it until it is used",
          "[channel]") {
  Ledger ledger(1000);
  const auto first = ledger.add();
  ledger.answers[first] = Ledger::Answers::kNever;
  const auto second = ledger.add();
  CHECK(ledger.at_hand[second] == 0);
  const int told = ledger.told;
  for (int i = 0; i < 100; ++i) ledger.want(second);
  CHECK(ledger.told == told);
  REQUIRE(ledger.send(first, 600));
  ledger.consume(first, 600);
  CHECK(ledger.at_hand[first] == 500);
  CHECK(ledger.at_hand[second] == 500);
}

TEST_CASE("what could not be given back when it was asked for is asked for again", "[channel]") {
  Ledger ledger(1000);
  const auto first = ledger.add();
  ledger.at_hand[first] -= 1000;  // taken, and not sent in the end
  const auto second = ledger.add();
  ledger.at_hand[first] += 1000;
  REQUIRE(ledger.at_hand[second] == 0);
  ledger.want(second);
  CHECK(ledger.at_hand[first] == 500);
  CHECK(ledger.at_hand[second] == 500);
}

TEST_CASE("nobody gives back more than he was asked for", "[channel]") {
  Credit credit(1000);
  Credit::Changes changes;
  const auto first = credit.add({}, changes);
  CHECK_FALSE(credit.returned(first, 1, changes));
  changes.clear();
  const auto second = credit.add({}, changes);
  REQUIRE(changes.back().reclaim == 500);
  CHECK_FALSE(credit.returned(first, 501, changes));
  CHECK(credit.held(first) == 1000);
  CHECK(credit.returned(first, 200, changes));
  CHECK(credit.returned(first, 300, changes));
  CHECK_FALSE(credit.returned(first, 1, changes));
  CHECK(credit.held(second) == 500);
}

TEST_CASE("what is lent and not given back is nobody's share", "[channel]") {
  Ledger ledger(1000);
  const auto quiet = ledger.add();
  const auto busy = ledger.add();
  ledger.answers[quiet] = Ledger::Answers::kNever;
  ledger.be_quiet();
  ledger.want(busy);
  CHECK(ledger.at_hand[busy] == 500);
  CHECK(ledger.share[busy] == 500);  // so that a message of 800 may still go
  REQUIRE(ledger.send(quiet, 100));
  ledger.consume(quiet, 100);
  CHECK(ledger.at_hand[busy] == 600);
  CHECK(ledger.share[busy] == 600);
}

TEST_CASE("who wants more is told when its share is another than it knows", "[channel]") {
  Ledger ledger(900);
  const auto first = ledger.add();
  REQUIRE(ledger.send(first, 900));
  const auto second = ledger.add();
  ledger.consume(first, 300);
  REQUIRE(ledger.at_hand[second] == 300);
  REQUIRE(ledger.share[second] == 450);
  ledger.add();
  REQUIRE(ledger.share[second] == 450);  // it has what is its now, and is asked for nothing
  ledger.want(second);
  CHECK(ledger.share[second] == 300);
  const int told = ledger.told;
  ledger.want(second);
  CHECK(ledger.told == told);
}

TEST_CASE("whatever senders and consumers do, the bound holds and nothing of it is lost",
          "[channel]") {
  std::mt19937 random(7);
  const auto up_to = [&](std::uint32_t most) { return static_cast<std::int64_t>(random() % most); };
  Ledger ledger(10'000);
  std::vector<Credit::Sender> senders{ledger.add()};
  for (int i = 0; i < 50'000; ++i) {
    const auto sender =
        senders[static_cast<std::size_t>(up_to(static_cast<std::uint32_t>(senders.size())))];
    ledger.now += std::chrono::milliseconds(up_to(30));
    switch (up_to(40)) {
      case 0:
        if (senders.size() < 6) {
          senders.push_back(ledger.add());
          ledger.answers[senders.back()] = static_cast<Ledger::Answers>(up_to(2));
        }
        break;
      default:
        if (const auto bytes = up_to(700); random() % 2 == 0) {
          if (!ledger.send(sender, bytes))
            ledger.want(sender, std::min(ledger.used[sender], up_to(700)));
        } else {
          ledger.consume(sender, std::min(ledger.used[sender], bytes));
        }
    }
    REQUIRE(ledger.waiting() <= 10'000);
    std::int64_t all = ledger.waiting();
    for (const auto bytes : ledger.at_hand) all += bytes;
    REQUIRE(all <= 10'000);
  }
  for (const auto sender : senders) ledger.consume(sender, ledger.used[sender]);
  for (const auto sender : senders) ledger.want(sender);
  for (const auto sender : senders) {
    CHECK(ledger.at_hand[sender] == ledger.share[sender]);
    CHECK(ledger.at_hand[sender] >= static_cast<std::int64_t>(10'000 / senders.size() / 2));
  }
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
