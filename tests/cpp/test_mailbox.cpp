#include <poll.h>

#include <atomic>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "cnode/mailbox/mailbox.hpp"
#include "cnode/mailbox/wakeup.hpp"
#include "tests/cpp/catch.hpp"

using mailbox::Mailbox;
using mailbox::Pushed;
using mailbox::Wakeup;

namespace {

bool awake(const Wakeup& wakeup, int milliseconds = 0) {
  pollfd entry{wakeup.descriptor(), POLLIN, 0};
  return ::poll(&entry, 1, milliseconds) == 1;
}

}  // namespace

TEST_CASE("items come out in the order they went in, each once", "[mailbox]") {
  Mailbox<int> box;
  for (int i = 0; i < 5; ++i) box.push(i, 1);
  for (int i = 0; i < 5; ++i) CHECK(box.take() == i);
  CHECK_FALSE(box.take().has_value());
}

TEST_CASE("only the push that finds the mailbox empty asks for a wake-up", "[mailbox]") {
  Mailbox<int> box;
  CHECK(box.push(1, 1) == Pushed::kFirst);
  CHECK(box.push(2, 1) == Pushed::kQueued);
  box.take();
  CHECK(box.push(3, 1) == Pushed::kQueued);
  box.take();
  box.take();
  CHECK(box.push(4, 1) == Pushed::kFirst);
}

TEST_CASE("one item more than the bound is refused and counted, until another is taken",
          "[mailbox]") {
  Mailbox<int> box({.items = 2});
  box.push(1, 1);
  CHECK_FALSE(box.full());
  box.push(2, 1);
  CHECK(box.full());
  CHECK(box.push(3, 1) == Pushed::kFull);
  CHECK(box.push(3, 1) == Pushed::kFull);
  CHECK(box.refused() == 2);
  CHECK(box.size() == 2);
  box.take();
  CHECK(box.push(4, 1) == Pushed::kQueued);
  CHECK(box.take() == 2);
  CHECK(box.take() == 4);
}

TEST_CASE("one byte more than the bound is refused, until bytes are taken", "[mailbox]") {
  Mailbox<int> box({.items = 100, .bytes = 10});
  CHECK(box.push(1, 6) == Pushed::kFirst);
  CHECK(box.push(2, 5) == Pushed::kFull);
  CHECK(box.push(3, 4) == Pushed::kQueued);
  CHECK(box.full());
  box.take();
  CHECK(box.push(4, 6) == Pushed::kQueued);
}

TEST_CASE("one item over the byte bound fits an empty mailbox, and then nothing more does",
          "[mailbox]") {
  Mailbox<int> box({.items = 100, .bytes = 10});
  CHECK(box.push(1, 50) == Pushed::kFirst);
  CHECK(box.push(2, 1) == Pushed::kFull);
  box.take();
  CHECK(box.push(3, 10) == Pushed::kFirst);
}

TEST_CASE("the node's own items are taken beyond the bounds and after the close", "[mailbox]") {
  Mailbox<int> box({.items = 1});
  box.push(1, 1);
  box.push_internal(2);
  box.close();
  box.push_internal(3);
  CHECK(box.take() == 1);
  CHECK(box.take() == 2);
  CHECK(box.take() == 3);
}

TEST_CASE("a closed mailbox takes nothing more, and what it held is still taken out", "[mailbox]") {
  Mailbox<int> box;
  box.push(1, 1);
  box.close();
  CHECK(box.push(2, 1) == Pushed::kClosed);
  CHECK(box.refused() == 0);
  CHECK(box.take() == 1);
  CHECK_FALSE(box.take().has_value());
}

TEST_CASE("the first item that is liked is taken, and the others keep their places", "[mailbox]") {
  Mailbox<int> box({.items = 10, .bytes = 10});
  for (int i = 1; i <= 4; ++i) box.push(i, 2);
  CHECK(box.take_if([](int i) { return i % 2 == 0; }) == 2);
  CHECK_FALSE(box.take_if([](int i) { return i > 10; }).has_value());
  CHECK(box.push(5, 4) == Pushed::kQueued);  // the bytes of the second are free again
  CHECK(box.take() == 1);
  CHECK(box.take() == 3);
  CHECK(box.take() == 4);
  CHECK(box.take() == 5);
}

TEST_CASE("items are moved through, not copied", "[mailbox]") {
  Mailbox<std::unique_ptr<int>> box;
  box.push(std::make_unique<int>(7), 1);
  box.push(std::make_unique<int>(8), 1);
  CHECK(**box.take_if([](const std::unique_ptr<int>& item) { return *item == 8; }) == 8);
  CHECK(**box.take() == 7);
}

TEST_CASE("a knock is seen until it is cleared, however many there were", "[mailbox]") {
  Wakeup wakeup;
  CHECK_FALSE(awake(wakeup));
  wakeup.clear();  // of nothing: does not block
  wakeup.knock();
  wakeup.knock();
  CHECK(awake(wakeup));
  CHECK(awake(wakeup));
  wakeup.clear();
  CHECK_FALSE(awake(wakeup));
  wakeup.knock();
  CHECK(awake(wakeup));
}

TEST_CASE("with many senders each one's items arrive in order, and no wake-up is missed",
          "[mailbox][threads]") {
  constexpr int kSenders = 4;
  constexpr int kItems = 20'000;
  Mailbox<std::pair<int, int>> box({.items = 64, .bytes = 1 << 20});
  Wakeup wakeup;
  std::atomic<int> wakeups{0};
  std::vector<std::thread> senders;
  for (int sender = 0; sender < kSenders; ++sender) {
    senders.emplace_back([&, sender] {
      for (int i = 0; i < kItems;) {
        switch (box.push({sender, i}, 8)) {
          case Pushed::kFirst:
            ++wakeups;
            wakeup.knock();
            [[fallthrough]];
          case Pushed::kQueued:
            ++i;
            break;
          default:
            std::this_thread::yield();
        }
      }
    });
  }
  std::map<int, int> next;
  int taken = 0;
  bool in_order = true;
  bool woken = true;
  while (taken < kSenders * kItems && woken) {
    woken = awake(wakeup, 20'000);
    wakeup.clear();
    while (auto item = box.take()) {
      in_order = in_order && item->second == next[item->first]++;
      ++taken;
    }
  }
  for (auto& sender : senders) sender.join();
  CHECK(woken);
  CHECK(taken == kSenders * kItems);
  CHECK(in_order);
  CHECK(wakeups <= taken);
  CHECK(box.size() == 0);
}

TEST_CASE("each item goes to one of many consumers", "[mailbox][threads]") {
  constexpr int kItems = 40'000;
  Mailbox<int> box;
  std::vector<std::atomic<int>> seen(kItems);
  std::atomic<int> taken{0};
  std::vector<std::thread> consumers;
  for (int i = 0; i < 3; ++i) {
    consumers.emplace_back([&, picky = i == 0] {
      while (taken < kItems) {
        auto item = picky ? box.take_if([](int number) { return number % 3 == 0; }) : box.take();
        if (!item) {
          std::this_thread::yield();
          continue;
        }
        ++seen[static_cast<std::size_t>(*item)];
        ++taken;
      }
    });
  }
  for (int i = 0; i < kItems; ++i) box.push(i, 1);
  for (auto& consumer : consumers) consumer.join();
  bool once = true;
  for (const auto& count : seen) once = once && count == 1;
  CHECK(once);
}

TEST_CASE("a close in the middle of pushes refuses all later ones, and loses no earlier one",
          "[mailbox][threads]") {
  Mailbox<int> box;
  std::atomic<int> accepted{0};
  std::vector<std::thread> senders;
  for (int i = 0; i < 3; ++i) {
    senders.emplace_back([&] {
      while (box.push(1, 1) != Pushed::kClosed) {
        if (++accepted > 80'000) std::this_thread::yield();
        if (box.full()) return;
      }
    });
  }
  while (accepted < 1000) std::this_thread::yield();
  box.close();
  for (auto& sender : senders) sender.join();
  int taken = 0;
  while (box.take()) ++taken;
  CHECK(taken == accepted - static_cast<int>(box.refused()));
}
