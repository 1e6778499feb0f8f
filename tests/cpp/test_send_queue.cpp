#include <algorithm>
#include <array>
#include <condition_variable>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "cnode/dist/send_queue.hpp"
#include "tests/cpp/catch.hpp"
#include "tests/cpp/dist_support.hpp"

using namespace dist_support;
using dist::Frame;
using dist::SendQueue;
using Pushed = dist::SendQueue::Pushed;

namespace {

constexpr std::size_t kFragment = dist::kFragmentSize;

struct SocketPair {
  explicit SocketPair(int buffer = 0) {
    std::array<int, 2> ends{};
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) == 0);
    near = Descriptor(ends[0]);
    far = Descriptor(ends[1]);
    if (buffer == 0) return;
    REQUIRE(::setsockopt(near.get(), SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer) == 0);
    REQUIRE(::setsockopt(far.get(), SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer) == 0);
  }
  Descriptor near;
  Descriptor far;
};

Bytes received(int descriptor) {
  Bytes all;
  std::array<std::uint8_t, 65536> room{};
  for (;;) {
    const ssize_t count = ::recv(descriptor, room.data(), room.size(), MSG_DONTWAIT);
    if (count <= 0) return all;
    all.insert(all.end(), room.begin(), room.begin() + count);
  }
}

Bytes bytes_of(const SendQueue::Batch& batch) {
  Bytes all;
  for (const iovec& part : batch.parts) {
    const auto* from = static_cast<const std::uint8_t*>(part.iov_base);
    all.insert(all.end(), from, from + part.iov_len);
  }
  return all;
}

// One turn of the writer; nothing when there is nothing to write.
Bytes taken(SendQueue& queue) {
  SendQueue::Batch batch;
  return queue.take(batch) ? bytes_of(batch) : Bytes{};
}

Bytes drained(SendQueue& queue) {
  Bytes all;
  for (Bytes next = taken(queue); !next.empty(); next = taken(queue))
    all = joined(std::move(all), next);
  return all;
}

// Which messages came out, in order.
std::vector<std::uint32_t> numbers(const Stream& stream) {
  std::vector<std::uint32_t> all;
  for (const Bytes& message : stream.messages) all.push_back(numbered(message).number);
  return all;
}

Stream stream_of(const Bytes& bytes) {
  Stream stream;
  stream.append(bytes);
  REQUIRE(stream.left() == 0);
  return stream;
}

dist::Message small(std::uint32_t number, std::uint32_t lane = 0) {
  return numbered_message({1, lane, number, 20});
}
dist::Message large(std::uint32_t number, std::uint32_t lane, std::size_t fragments = 8) {
  return numbered_message({1, lane, number, fragments * kFragment - 100});
}

const Bytes kTuple{104, 1, 97, 5};
const Bytes kPayload{97, 7};
const Bytes kWholeFrame{0, 0, 0, 9, 131, 68, 0, 104, 1, 97, 5, 97, 7};

}  // namespace

// --- the bytes
// ---------------------------------------------------------------------------------------------------

TEST_CASE("a whole message has a distribution header without atom cache references",
          "[send_queue]") {
  SendQueue queue(-1, true);
  queue.push(message_of(kTuple, kPayload));
  CHECK(drained(queue) == kWholeFrame);
}

TEST_CASE("a pass-through message without payload has one version byte", "[send_queue]") {
  SendQueue queue(-1, false);
  queue.push(message_of(kTuple));
  CHECK(drained(queue) == Bytes{0, 0, 0, 6, 112, 131, 104, 1, 97, 5});
}

TEST_CASE("a pass-through message with payload has a version byte before each term",
          "[send_queue]") {
  SendQueue queue(-1, false);
  queue.push(message_of(kTuple, kPayload));
  CHECK(drained(queue) == Bytes{0, 0, 0, 9, 112, 131, 104, 1, 97, 5, 131, 97, 7});
}

TEST_CASE("without fragments a message of any size is one frame", "[send_queue]") {
  SendQueue queue(-1, false);
  const Bytes payload(3 * kFragment, 9);
  queue.push(message_of(kTuple, payload, 5));
  const Bytes all = drained(queue);
  REQUIRE(all.size() == 4 + 1 + 1 + kTuple.size() + 1 + payload.size());
  CHECK(etf::read_u32(all.data()) == all.size() - 4);
  CHECK(Bytes(all.begin() + 4, all.begin() + 12) == Bytes{112, 131, 104, 1, 97, 5, 131, 9});
}

TEST_CASE("a message of exactly one fragment's size leaves whole, one byte more in two fragments",
          "[send_queue]") {
  SendQueue queue(-1, true);
  queue.push(message_of(kTuple, Bytes(kFragment - kTuple.size(), 1)));
  queue.push(message_of(kTuple, Bytes(kFragment - kTuple.size() + 1, 2)));
  const Stream stream = stream_of(drained(queue));
  CHECK(stream.kinds ==
        std::vector{Frame::Kind::kWhole, Frame::Kind::kFirstFragment, Frame::Kind::kFragment});
  CHECK(stream.messages[1] == joined(kTuple, Bytes(kFragment - kTuple.size() + 1, 2)));
}

TEST_CASE("the heads of fragments carry the sequence and count down to one", "[send_queue]") {
  SendQueue queue(-1, true);
  const Bytes payload(2 * kFragment, 3);
  queue.push(message_of(kTuple, payload));
  const Bytes all = drained(queue);
  const Bytes first{0, 1, 0, 19, 131, 69, 0, 0, 0, 0,   0, 0,  0, 1,
                    0, 0, 0, 0,  0,   0,  0, 3, 0, 104, 1, 97, 5, 3};
  const Bytes second{0, 1, 0, 18, 131, 70, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 3};
  const Bytes last{0, 0, 0, 22, 131, 70, 0, 0, 0, 0, 0, 0, 0,
                   1, 0, 0, 0,  0,   0,  0, 0, 1, 3, 3, 3, 3};
  REQUIRE(all.size() == 23 + kFragment + 22 + kFragment + last.size());
  CHECK(Bytes(all.begin(), all.begin() + 28) == first);
  const auto at = all.begin() + 23 + kFragment;
  CHECK(Bytes(at, at + 23) == second);
  CHECK(Bytes(all.end() - static_cast<std::ptrdiff_t>(last.size()), all.end()) == last);
}

TEST_CASE("each fragmented message has a sequence of its own", "[send_queue]") {
  SendQueue queue(-1, true);
  queue.push(large(1, 0, 2));
  queue.push(large(2, 0, 2));
  const Stream stream = stream_of(drained(queue));
  CHECK(stream.sequences == std::vector<std::uint64_t>{1, 2, 1, 2});
  CHECK(numbers(stream) == std::vector<std::uint32_t>{1, 2});
}

// --- writing directly
// --------------------------------------------------------------------------------------------

TEST_CASE("a message pushed into an idle queue is on the socket when push returns",
          "[send_queue]") {
  SocketPair sockets;
  SendQueue queue(sockets.near.get(), true);
  CHECK(queue.push(message_of(kTuple, kPayload)) == Pushed::kDone);
  CHECK(received(sockets.far.get()) == kWholeFrame);
  CHECK(queue.idle());
  CHECK(queue.bytes_sent() == kWholeFrame.size());
}

TEST_CASE("without a descriptor the writer is woken once and takes everything", "[send_queue]") {
  SendQueue queue(-1, true);
  CHECK(queue.push(message_of(kTuple, kPayload)) == Pushed::kWake);
  CHECK(queue.push(message_of(kTuple, kPayload)) == Pushed::kDone);
  CHECK_FALSE(queue.idle());
  CHECK(taken(queue) == joined(kWholeFrame, kWholeFrame));
  CHECK(queue.bytes_sent() == 2 * kWholeFrame.size());
}

TEST_CASE("while the writer is at work nobody else writes, and nobody wakes it", "[send_queue]") {
  SocketPair sockets;
  SendQueue queue(sockets.near.get(), true);
  queue.push(large(1, 0, 2));
  SendQueue::Batch held;
  REQUIRE(queue.take(held));
  CHECK(queue.push(message_of(kTuple, kPayload)) == Pushed::kDone);
  CHECK(received(sockets.far.get()).empty());
  const Stream rest = stream_of(joined(bytes_of(held), drained(queue)));
  CHECK(rest.kinds ==
        std::vector{Frame::Kind::kFirstFragment, Frame::Kind::kWhole, Frame::Kind::kFragment});
  CHECK(queue.idle());
}

TEST_CASE("while the writer holds the last of what waited nobody writes past it", "[send_queue]") {
  SocketPair sockets;
  SendQueue queue(sockets.near.get(), true);
  queue.push(large(1, 0, 2));
  SendQueue::Batch first;
  SendQueue::Batch last;
  REQUIRE(queue.take(first));
  REQUIRE(queue.take(last));
  CHECK_FALSE(queue.idle());
  CHECK(queue.push(message_of(kTuple, kPayload)) == Pushed::kDone);
  CHECK(queue.push_tick() == Pushed::kDone);
  CHECK(received(sockets.far.get()).empty());
  CHECK(taken(queue) == kWholeFrame);
}

TEST_CASE("an idle queue whose writer was woken waits for the writer", "[send_queue]") {
  SocketPair sockets;
  SendQueue queue(sockets.near.get(), true);
  CHECK(queue.push(large(1, 0, 2)) == Pushed::kWake);
  CHECK(queue.push(message_of(kTuple, kPayload)) == Pushed::kDone);
  CHECK(received(sockets.far.get()).empty());
  CHECK_FALSE(queue.idle());
}

TEST_CASE("what the socket does not take at once is left to the writer, byte for byte",
          "[send_queue]") {
  SocketPair sockets(4096);
  SendQueue queue(sockets.near.get(), true);
  CHECK(queue.push(numbered_message({1, 0, 1, kFragment - 100})) == Pushed::kWake);
  CHECK(queue.push(small(2)) == Pushed::kDone);
  const Bytes begun = received(sockets.far.get());
  REQUIRE_FALSE(begun.empty());
  CHECK(begun.size() < kFragment - 100);
  const Stream stream = stream_of(joined(begun, drained(queue)));
  CHECK(numbers(stream) == std::vector<std::uint32_t>{1, 2});
}

TEST_CASE("a socket that takes nothing keeps the message for the writer", "[send_queue]") {
  SocketPair sockets(4096);
  const std::uint8_t filler = 0;
  std::size_t filled = 0;
  while (::send(sockets.near.get(), &filler, 1, MSG_DONTWAIT) == 1) ++filled;
  SendQueue queue(sockets.near.get(), true);
  CHECK(queue.push(message_of(kTuple, kPayload)) == Pushed::kWake);
  CHECK(received(sockets.far.get()).size() == filled);
  CHECK(taken(queue) == kWholeFrame);
}

TEST_CASE("a peer that is gone leaves the message to the writer, who meets the error",
          "[send_queue]") {
  SocketPair sockets;
  SendQueue queue(sockets.near.get(), true);
  sockets.far.reset();
  CHECK(queue.push(message_of(kTuple, kPayload)) == Pushed::kWake);
  CHECK(taken(queue) == kWholeFrame);
}

TEST_CASE("messages pushed together leave together and in order, however many", "[send_queue]") {
  SocketPair sockets;
  SendQueue queue(sockets.near.get(), true);
  std::vector<dist::Message> messages;
  std::vector<std::uint32_t> expected;
  for (std::uint32_t i = 0; i < 200; ++i) {
    messages.push_back(small(i, 7));
    expected.push_back(i);
  }
  const Pushed pushed = queue.push_all(messages);
  CHECK(pushed == Pushed::kWake);  // more than one write takes
  CHECK(messages.empty());
  const Bytes begun = received(sockets.far.get());
  CHECK_FALSE(begun.empty());
  CHECK(numbers(stream_of(joined(begun, drained(queue)))) == expected);
}

TEST_CASE("a few messages pushed together into an idle queue are on the socket at once",
          "[send_queue]") {
  SocketPair sockets;
  SendQueue queue(sockets.near.get(), true);
  std::vector<dist::Message> messages;
  for (std::uint32_t i = 0; i < 10; ++i) messages.push_back(small(i));
  CHECK(queue.push_all(messages) == Pushed::kDone);
  CHECK(stream_of(received(sockets.far.get())).messages.size() == 10);
  CHECK(queue.idle());
}

// --- order
// -------------------------------------------------------------------------------------------------------

TEST_CASE("small messages pass between the fragments of a large one", "[send_queue]") {
  SendQueue queue(-1, true);
  queue.push(large(1, 7, 16));
  Bytes all = taken(queue);
  REQUIRE(all.size() < 6 * kFragment);  // a turn is short
  queue.push(small(2, 8));
  all = joined(std::move(all), drained(queue));
  const Stream stream = stream_of(all);
  CHECK(numbers(stream) == std::vector<std::uint32_t>{2, 1});
  const auto whole = std::find(stream.kinds.begin(), stream.kinds.end(), Frame::Kind::kWhole);
  CHECK(whole - stream.kinds.begin() < 6);
}

TEST_CASE("a message waits for the large one before it in its lane", "[send_queue]") {
  SendQueue queue(-1, true);
  queue.push(large(1, 7));
  queue.push(small(2, 7));
  queue.push(small(3, 8));
  queue.push(small(4, 7));
  CHECK(numbers(stream_of(drained(queue))) == std::vector<std::uint32_t>{3, 1, 2, 4});
}

TEST_CASE("a large message waits for the small ones before it in its lane, however many",
          "[send_queue]") {
  SendQueue queue(-1, true);
  std::vector<std::uint32_t> expected;
  for (std::uint32_t i = 0; i < 300; ++i) {
    queue.push(small(i, 7));
    expected.push_back(i);
  }
  queue.push(large(300, 7, 3));
  expected.push_back(300);
  const Stream stream = stream_of(drained(queue));
  CHECK(numbers(stream) == expected);
  const auto fragment =
      std::find(stream.kinds.begin(), stream.kinds.end(), Frame::Kind::kFirstFragment);
  CHECK(fragment - stream.kinds.begin() == 300);
}

TEST_CASE("large and small messages of one lane keep their order to the last", "[send_queue]") {
  SendQueue queue(-1, true);
  queue.push(large(1, 7, 3));
  queue.push(small(2, 7));
  queue.push(large(3, 7, 2));
  queue.push(small(4, 7));
  queue.push(large(5, 7, 2));
  queue.push(small(6, 8));
  Bytes all = taken(queue);
  queue.push(small(7, 7));  // while the first is being cut
  all = joined(std::move(all), drained(queue));
  auto order = numbers(stream_of(all));
  CHECK(order.size() == 7);
  std::erase(order, 6u);
  CHECK(order == std::vector<std::uint32_t>{1, 2, 3, 4, 5, 7});
}

TEST_CASE("large messages of different lanes take turns", "[send_queue]") {
  SendQueue queue(-1, true);
  queue.push(large(1, 7, 20));
  queue.push(large(2, 8, 2));
  CHECK(numbers(stream_of(drained(queue))) == std::vector<std::uint32_t>{2, 1});
}

TEST_CASE("messages of no lane wait for nobody", "[send_queue]") {
  SendQueue queue(-1, true);
  queue.push(large(1, 0));
  queue.push(small(2, 0));
  CHECK(numbers(stream_of(drained(queue))) == std::vector<std::uint32_t>{2, 1});
}

TEST_CASE("once a lane's large message is out, its next message goes straight to the socket",
          "[send_queue]") {
  SocketPair sockets;
  SendQueue queue(sockets.near.get(), true);
  queue.push(large(1, 7, 2));
  CHECK(numbers(stream_of(drained(queue))) == std::vector<std::uint32_t>{1});
  CHECK(queue.push(small(2, 7)) == Pushed::kDone);
  CHECK(numbers(stream_of(received(sockets.far.get()))) == std::vector<std::uint32_t>{2});
}

// --- ticks
// -------------------------------------------------------------------------------------------------------

TEST_CASE("a tick on an idle queue is four zero bytes on the socket", "[send_queue]") {
  SocketPair sockets;
  SendQueue queue(sockets.near.get(), true);
  CHECK(queue.push_tick() == Pushed::kDone);
  CHECK(received(sockets.far.get()) == Bytes(4, 0));
  CHECK(queue.bytes_sent() == 4);
}

TEST_CASE("a tick waits for the writer where only the writer can write", "[send_queue]") {
  SendQueue queue(-1, true);
  CHECK(queue.push_tick() == Pushed::kWake);
  CHECK(drained(queue) == Bytes(4, 0));
}

TEST_CASE("with traffic waiting there is no tick", "[send_queue]") {
  SendQueue queue(-1, true);
  queue.push(message_of(kTuple, kPayload));
  CHECK(queue.push_tick() == Pushed::kDone);
  CHECK(drained(queue) == kWholeFrame);
}

// --- bounds and the end
// ------------------------------------------------------------------------------------------

TEST_CASE("over the budget messages are refused, and taken again once bytes have left",
          "[send_queue]") {
  // Memory nobody writes to is never really there.
  const auto huge = [] {
    dist::Message message(dist::kMaxQueuedBytes / 2 + 1024);
    message.bytes.append(kTuple);
    message.end_control();
    message.bytes.commit(dist::kMaxQueuedBytes / 2 + 512);
    return message;
  };
  SendQueue queue(-1, false);
  CHECK(queue.push(huge()) == Pushed::kWake);
  CHECK(queue.push(huge()) == Pushed::kDone);
  CHECK(queue.push(message_of(kTuple)) == Pushed::kOverBudget);
  std::vector<dist::Message> messages;
  messages.push_back(message_of(kTuple));
  CHECK(queue.push_all(messages) == Pushed::kOverBudget);
  SendQueue::Batch batch;
  REQUIRE(queue.take(batch));
  CHECK(queue.push(message_of(kTuple)) == Pushed::kDone);
}

TEST_CASE("messages behind a large one of their lane count for the budget, once", "[send_queue]") {
  SendQueue queue(-1, true);
  constexpr std::size_t kFragments = dist::kMaxQueuedBytes / 4 / kFragment + 1;
  const auto huge = [] {
    dist::Message message(kFragments * kFragment);
    message.bytes.append(kTuple);
    message.end_control();
    message.bytes.commit(kFragments * kFragment - kTuple.size());
    message.lane = 7;
    return message;
  };
  for (int i = 0; i < 4; ++i) REQUIRE(queue.push(huge()) != Pushed::kOverBudget);
  CHECK(queue.push(message_of(kTuple)) == Pushed::kOverBudget);
  // The first of the four leaves; the three behind it are no more than they were.
  SendQueue::Batch batch;
  for (std::size_t sent = 0; sent < kFragments; sent += batch.parts.size() / 2)
    REQUIRE(queue.take(batch));
  CHECK(queue.push(huge()) != Pushed::kOverBudget);
  CHECK(queue.push(message_of(kTuple)) == Pushed::kOverBudget);
}

TEST_CASE("a closed queue drops what waited and takes nothing more", "[send_queue]") {
  SocketPair sockets;
  SendQueue queue(sockets.near.get(), true);
  queue.push(large(1, 7));
  queue.push(small(2, 7));
  queue.push(small(3));
  queue.close();
  CHECK(queue.idle());
  CHECK(taken(queue).empty());
  CHECK(queue.push(message_of(kTuple)) == Pushed::kClosed);
  std::vector<dist::Message> messages;
  messages.push_back(message_of(kTuple));
  CHECK(queue.push_all(messages) == Pushed::kClosed);
  CHECK(queue.push_tick() == Pushed::kClosed);
  CHECK(received(sockets.far.get()).empty());
}

TEST_CASE("a batch the writer holds stays whole when the queue closes", "[send_queue]") {
  SendQueue queue(-1, true);
  queue.push(small(1));
  queue.push(large(2, 7, 2));
  SendQueue::Batch batch;
  REQUIRE(queue.take(batch));
  queue.close();
  const Bytes all = bytes_of(batch);
  CHECK(
      numbered(
          stream_of(Bytes(all.begin(), all.begin() + 4 + etf::read_u32(all.data()))).messages.at(0))
          .number == 1);
  CHECK(all.size() == batch.bytes);
}

// --- many threads
// ------------------------------------------------------------------------------------------------

namespace {

// The link's writer: sleeps until a push asks for it, then writes until nothing waits.
class Writer {
 public:
  Writer(SendQueue& queue, int descriptor)
      : thread_([this, &queue, descriptor] { run(queue, descriptor); }) {}
  ~Writer() {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }
  void wake() {
    {
      const std::lock_guard lock(mutex_);
      ++woken_;
    }
    changed_.notify_one();
  }

 private:
  void run(SendQueue& queue, int descriptor) {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return ended_ || woken_ > 0; });
      if (woken_ == 0) return;
      --woken_;
      lock.unlock();
      SendQueue::Batch batch;
      while (queue.take(batch)) write_all(descriptor, bytes_of(batch));
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  int woken_ = 0;
  bool ended_ = false;
  std::thread thread_;
};

std::size_t random_size(std::mt19937& random) {
  return random() % 40 == 0 ? kFragment + random() % (4 * kFragment) : 12 + random() % 300;
}

}  // namespace

TEST_CASE("each lane of each of many threads arrives in order and undamaged",
          "[send_queue][threads]") {
  constexpr std::uint32_t kThreads = 4;
  constexpr std::uint32_t kLanes = 2;
  constexpr std::uint32_t kMessages = 1500;
  SocketPair sockets(16 * 1024);
  SendQueue queue(sockets.near.get(), true);
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::uint32_t> next;
  std::size_t arrived = 0;
  std::size_t out_of_order = 0;
  std::string damage;
  std::thread reader([&] {
    try {
      Stream stream;
      std::array<std::uint8_t, 65536> room{};
      while (arrived < std::size_t{kThreads} * kMessages) {
        if (!readable(sockets.far.get())) throw std::runtime_error("nothing more came");
        const ssize_t count = ::recv(sockets.far.get(), room.data(), room.size(), 0);
        if (count <= 0) throw std::runtime_error("the stream ended");
        stream.append({room.data(), static_cast<std::size_t>(count)});
        for (const Bytes& message : stream.messages) {
          const Numbered what = numbered(message);
          std::uint32_t& expected = next[{what.sender, what.lane}];
          out_of_order += what.number != expected;
          expected = what.number + 1;
          ++arrived;
        }
        stream.messages.clear();
      }
    } catch (const std::exception& error) {
      damage = error.what();
    }
  });

  {
    Writer writer(queue, sockets.near.get());
    std::vector<std::thread> threads;
    for (std::uint32_t sender = 0; sender < kThreads; ++sender) {
      threads.emplace_back([&, sender] {
        std::mt19937 random(sender);
        std::array<std::uint32_t, kLanes> count{};
        std::vector<dist::Message> together;
        for (std::uint32_t i = 0; i < kMessages; ++i) {
          const std::uint32_t which = random() % kLanes;
          together.push_back(numbered_message(
              {sender, sender * kLanes + which + 1, count[which]++, random_size(random)}));
          if (random() % 3 == 0 && i + 1 < kMessages) continue;  // gather a few
          const Pushed pushed =
              together.size() == 1 ? queue.push(std::move(together[0])) : queue.push_all(together);
          together.clear();
          if (pushed == Pushed::kWake) writer.wake();
        }
      });
    }
    for (auto& thread : threads) thread.join();
    reader.join();
  }
  CHECK(damage.empty());
  CHECK(arrived == std::size_t{kThreads} * kMessages);
  CHECK(out_of_order == 0);
  CHECK(queue.idle());
}

TEST_CASE("closing in the middle of many pushes ends them all", "[send_queue][threads]") {
  SocketPair sockets;
  SendQueue queue(sockets.near.get(), true);
  std::vector<std::thread> threads;
  for (std::uint32_t sender = 0; sender < 3; ++sender) {
    threads.emplace_back([&, sender] {
      std::mt19937 random(sender);
      SendQueue::Batch batch;
      for (std::uint32_t i = 0;
           queue.push(numbered_message({sender, 1, i, random_size(random)})) != Pushed::kClosed;
           ++i) {
        if (sender == 0) queue.take(batch);
        if (sender == 0) received(sockets.far.get());
      }
    });
  }
  REQUIRE(eventually([&] { return queue.bytes_sent() > 100'000; }));
  queue.close();
  for (auto& thread : threads) thread.join();
  CHECK(queue.idle());
}
