#include <fcntl.h>

#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>

#include <atomic>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "cnode/dist/connection.hpp"
#include "cnode/dist/transport.hpp"
#include "tests/cpp/catch.hpp"
#include "tests/cpp/dist_support.hpp"

using namespace dist_support;
using asio::ip::tcp;
using dist::Connection;
using dist::TcpTransport;

namespace {

struct Received {
  Bytes frame;
  std::size_t whole_size;
  bool operator==(const Received&) const = default;
};

struct Handler : dist::LinkHandler {
  void on_frame(dist::Link&, etf::Bytes frame, std::size_t whole_size) override {
    frames.push_back({bytes_of(frame), whole_size});
  }
  void on_link_closed(dist::Link&, const std::string& why) override {
    ++closed;
    reason = why;
  }
  std::vector<Received> frames;
  std::atomic<int> closed{0};
  std::string reason;
};

dist::PeerInfo peer_with(std::uint64_t flags) {
  dist::PeerInfo peer;
  peer.name = "peer@127.0.0.1";
  peer.flags = flags;
  return peer;
}

// A connection on an io_context that the test runs by itself, and the plain socket at its other
// end.
struct LoopbackLink {
  explicit LoopbackLink(dist::LinkLimits limits = {}, etf::Bytes early = {}) {
    tcp::acceptor acceptor(reactor, tcp::endpoint(asio::ip::address_v4::loopback(), 0));
    tcp::socket other(reactor);
    other.connect(acceptor.local_endpoint());
    tcp::socket mine = acceptor.accept();
    dist::configure(mine);
    far = Descriptor(other.release());
    const int flags = ::fcntl(far.get(), F_GETFL);
    ::fcntl(far.get(), F_SETFL, flags & ~O_NONBLOCK);
    link = std::make_shared<Connection<TcpTransport>>(1, peer_with(dist::kFragments),
                                                      std::move(mine), handler, limits);
    link->start(early);
    reactor.poll();
  }

  // Turns the reactor until `condition` holds; false when the deadline passes.
  template <class Condition>
  bool turn_until(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + kDeadline;
    while (!condition()) {
      if (std::chrono::steady_clock::now() > end) return false;
      reactor.restart();
      reactor.run_one_for(10ms);
    }
    return true;
  }
  // Sends bytes and waits until the link has read them, so that the next ones come in another read.
  void feed(etf::Bytes bytes) {
    const std::uint64_t target = link->bytes_received() + bytes.size();
    REQUIRE(write_all(far.get(), bytes));
    REQUIRE(turn_until([&] { return link->bytes_received() == target; }));
  }

  asio::io_context reactor;
  Handler handler;
  Descriptor far;
  std::shared_ptr<Connection<TcpTransport>> link;
};

Bytes pattern(std::size_t size, std::uint8_t from) {
  Bytes bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::uint8_t>(from + i);
  return bytes;
}

constexpr std::size_t kLimit = 100'000;
constexpr std::size_t kKept = 64 * 1024;

dist::LinkLimits limited() {
  dist::LinkLimits limits;
  limits.max_frame = kLimit;
  return limits;
}

dist::LinkLimits ticking(std::chrono::milliseconds ticktime) {
  dist::LinkLimits limits;
  limits.ticktime = ticktime;
  return limits;
}

}  // namespace

// --- frames in
// ---------------------------------------------------------------------------------------------------

TEST_CASE("frames cut in two at any offset come out whole and in order", "[link]") {
  const std::vector<Bytes> bodies{pattern(1, 1), pattern(3, 2), pattern(40, 3), pattern(5, 4)};
  Bytes stream(4, 0);  // a tick, which nobody hears of
  std::vector<Received> expected;
  for (const Bytes& body : bodies) {
    stream = joined(std::move(stream), framed(body));
    expected.push_back({body, body.size()});
  }
  LoopbackLink over;
  for (std::size_t cut = 1; cut < stream.size(); ++cut) {
    CAPTURE(cut);
    over.handler.frames.clear();
    over.feed(etf::Bytes(stream).first(cut));
    over.feed(etf::Bytes(stream).subspan(cut));
    REQUIRE(over.handler.frames == expected);
  }
}

TEST_CASE("frames that come byte by byte come out whole", "[link]") {
  LoopbackLink over;
  const Bytes stream = joined(framed(pattern(9, 1)), framed(pattern(2, 7)));
  for (const std::uint8_t& byte : stream) over.feed({&byte, 1});
  CHECK(over.handler.frames == std::vector<Received>{{pattern(9, 1), 9}, {pattern(2, 7), 2}});
}

TEST_CASE("what came behind the last handshake packet is read before the socket", "[link]") {
  const Bytes early = joined(framed(pattern(4, 1)), Bytes{0, 0, 0, 2, 9});
  LoopbackLink over({}, early);
  CHECK(over.handler.frames == std::vector<Received>{{pattern(4, 1), 4}});
  over.feed(Bytes{8});
  CHECK(over.handler.frames.back() == Received{{9, 8}, 2});
}

TEST_CASE("a frame of many reads comes out whole, and so does the next", "[link]") {
  LoopbackLink over;
  const Bytes big = pattern(3'000'000, 5);
  const Bytes stream = joined(framed(big), framed(pattern(3, 1)));
  std::thread writer([&] { write_all(over.far.get(), stream); });
  const bool came = over.turn_until([&] { return over.handler.frames.size() == 2; });
  writer.join();
  REQUIRE(came);
  CHECK(over.handler.frames[0].frame == big);
  CHECK(over.handler.frames[1] == Received{pattern(3, 1), 3});
}

TEST_CASE("a frame of exactly the limit is whole, one byte more only its beginning", "[link]") {
  LoopbackLink over(limited());
  const Bytes fits = pattern(kLimit, 1);
  const Bytes over_it = pattern(kLimit + 1, 2);
  over.feed(framed(fits));
  over.feed(framed(over_it));
  REQUIRE(over.handler.frames.size() == 2);
  CHECK(over.handler.frames[0] == Received{fits, kLimit});
  CHECK(over.handler.frames[1] ==
        Received{Bytes(over_it.begin(), over_it.begin() + kKept), kLimit + 1});
}

TEST_CASE("a frame over the limit is skipped wherever it is cut, and the next one is whole",
          "[link]") {
  const Bytes huge = pattern(300'000, 3);
  const Bytes stream = joined(framed(huge), framed(pattern(7, 1)));
  const std::vector<Received> expected{{Bytes(huge.begin(), huge.begin() + kKept), huge.size()},
                                       {pattern(7, 1), 7}};
  LoopbackLink over(limited());
  for (const std::size_t cut :
       {std::size_t{2}, std::size_t{4}, std::size_t{5}, 4 + kKept - 1, 4 + kKept, 4 + kKept + 1,
        std::size_t{200'000}, 4 + huge.size() - 1, 4 + huge.size(), 4 + huge.size() + 1,
        4 + huge.size() + 4, stream.size() - 1}) {
    CAPTURE(cut);
    over.handler.frames.clear();
    over.feed(etf::Bytes(stream).first(cut));
    over.feed(etf::Bytes(stream).subspan(cut));
    REQUIRE(over.handler.frames == expected);
  }
}

TEST_CASE("the link survives a frame that claims four gigabytes, and holds only its beginning",
          "[link]") {
  LoopbackLink over(limited());
  over.feed(Bytes{0xFF, 0xFF, 0xFF, 0xFF});
  over.feed(pattern(200'000, 1));
  REQUIRE(over.handler.frames.size() == 1);
  CHECK(over.handler.frames[0].whole_size == 0xFFFFFFFFu);
  CHECK(over.handler.frames[0].frame == pattern(kKept, 1));
  CHECK_FALSE(over.link->closed());
}

TEST_CASE("a limit below what is kept of a long frame keeps no more than the frame has", "[link]") {
  dist::LinkLimits limits;
  limits.max_frame = 10;
  LoopbackLink over(limits);
  over.feed(joined(framed(pattern(11, 1)), framed(pattern(10, 2))));
  REQUIRE(over.handler.frames.size() == 2);
  CHECK(over.handler.frames[0].frame == pattern(11, 1));
  CHECK(over.handler.frames[1] == Received{pattern(10, 2), 10});
}

// --- out
// ---------------------------------------------------------------------------------------------------------

TEST_CASE("a message sent on an idle link is at the peer before the reactor turns", "[link]") {
  LoopbackLink over;
  over.link->send(message_of({104, 1, 97, 5}, {97, 7}));
  CHECK(read_frame(over.far.get()) == Bytes{131, 68, 0, 104, 1, 97, 5, 97, 7});
  CHECK(over.link->flushed());
}

TEST_CASE("a large message arrives whole through a peer that reads slowly", "[link]") {
  LoopbackLink over;
  over.link->send(numbered_message({1, 1, 1, 5'000'000}));
  Stream stream;
  std::array<std::uint8_t, 20'000> room{};
  while (stream.messages.empty()) {
    REQUIRE(over.turn_until([&] { return readable(over.far.get(), 0ms); }));
    const ssize_t count = ::recv(over.far.get(), room.data(), room.size(), 0);
    REQUIRE(count > 0);
    stream.append({room.data(), static_cast<std::size_t>(count)});
  }
  CHECK(numbered(stream.messages[0]).size == 5'000'000);
  CHECK(over.turn_until([&] { return over.link->flushed(); }));
}

// --- ticks and silence
// -------------------------------------------------------------------------------------------

TEST_CASE("an idle link ticks", "[link]") {
  LoopbackLink over(ticking(200ms));
  for (int tick = 0; tick < 3; ++tick) {
    // The peer is alive, or the link would end.
    REQUIRE(write_all(over.far.get(), Bytes(4, 0)));
    REQUIRE(over.turn_until([&] { return over.link->closed() || readable(over.far.get(), 0ms); }));
    CHECK(read_exactly(over.far.get(), 4) == Bytes(4, 0));
  }
  CHECK(over.handler.closed == 0);
}

TEST_CASE("a silent peer is given up after one and a quarter tick times, not before", "[link]") {
  const auto begin = std::chrono::steady_clock::now();
  LoopbackLink over(ticking(200ms));
  REQUIRE(over.turn_until([&] { return over.handler.closed > 0; }));
  const auto passed = std::chrono::steady_clock::now() - begin;
  CHECK(passed > 250ms);
  CHECK(over.handler.reason == "nothing heard for 0 s");
  CHECK(over.link->closed());
}

TEST_CASE("silence counts from the peer's last word, whenever that was", "[link]") {
  LoopbackLink over(ticking(2000ms));
  over.reactor.run_for(100ms);  // so that the end falls between two of our own ticks
  over.feed(Bytes(4, 0));
  const auto last = std::chrono::steady_clock::now();
  REQUIRE(over.turn_until([&] { return over.handler.closed > 0; }));
  const auto passed = std::chrono::steady_clock::now() - last;
  CHECK(passed > 2400ms);
  CHECK(passed < 2800ms);
}

TEST_CASE("a peer that ticks is kept for many tick times", "[link]") {
  LoopbackLink over(ticking(400ms));
  const auto end = std::chrono::steady_clock::now() + 1500ms;
  while (std::chrono::steady_clock::now() < end) {
    over.feed(Bytes(4, 0));
    over.reactor.restart();
    over.reactor.run_for(20ms);
  }
  CHECK(over.handler.closed == 0);
}

// --- the end
// -----------------------------------------------------------------------------------------------------

TEST_CASE("a peer that closes ends the link, and what is sent afterwards is dropped", "[link]") {
  LoopbackLink over;
  over.far.reset();
  REQUIRE(over.turn_until([&] { return over.handler.closed > 0; }));
  CHECK(over.handler.reason == "closed by the peer");
  over.link->send(message_of({104, 1, 97, 5}));
  over.link->close("again");
  over.reactor.restart();
  over.reactor.run_for(20ms);
  CHECK(over.handler.closed == 1);
  CHECK(over.link->bytes_sent() == 0);
}

TEST_CASE("a link that was closed for a reason tells it once", "[link]") {
  LoopbackLink over;
  over.link->close("enough");
  over.link->close("too much");
  REQUIRE(over.turn_until([&] { return over.handler.closed > 0; }));
  over.reactor.restart();
  over.reactor.run_for(20ms);
  CHECK(over.handler.reason == "enough");
  CHECK(over.handler.closed == 1);
  CHECK(read_exactly(over.far.get(), 1).empty());
}

TEST_CASE("closing a link ends its read and its timer, and it goes away", "[link]") {
  LoopbackLink over;
  over.link->close("enough");
  const std::weak_ptr<dist::Link> gone = over.link;
  over.link.reset();
  REQUIRE(over.turn_until([&] { return gone.expired(); }));
}

TEST_CASE("a peer that stops reading does not stop the link from reading", "[link]") {
  LoopbackLink over;
  for (std::uint32_t i = 0; i < 200; ++i) over.link->send(numbered_message({1, 1, i, 100'000}));
  over.feed(framed(pattern(5, 1)));
  CHECK(over.handler.frames.size() == 1);
  CHECK_FALSE(over.link->flushed());
}

// --- many threads
// ------------------------------------------------------------------------------------------------

namespace {

// The same link with its reactor on a thread.
struct RunningLink : LoopbackLink {
  RunningLink() : work(asio::make_work_guard(reactor)), thread([this] { reactor.run(); }) {}
  ~RunningLink() {
    work.reset();
    link->close("the test is over");
    thread.join();
  }
  asio::executor_work_guard<asio::io_context::executor_type> work;
  std::thread thread;
};

}  // namespace

TEST_CASE("what many threads send on one link arrives in each one's order", "[link][threads]") {
  constexpr std::uint32_t kThreads = 4;
  constexpr std::uint32_t kMessages = 1000;
  RunningLink over;
  std::vector<std::thread> threads;
  for (std::uint32_t sender = 0; sender < kThreads; ++sender) {
    threads.emplace_back([&, sender] {
      std::mt19937 random(sender);
      std::vector<dist::Message> together;
      for (std::uint32_t i = 0; i < kMessages; ++i) {
        const std::size_t size =
            random() % 50 == 0 ? 100'000 + random() % 200'000 : 12 + random() % 500;
        together.push_back(numbered_message({sender, sender + 1, i, size}));
        if (random() % 4 == 0 && i + 1 < kMessages) continue;
        if (together.size() > 1)
          over.link->send_all(together);
        else
          over.link->send(std::move(together[0]));
        together.clear();
      }
    });
  }
  Stream stream;
  std::map<std::uint32_t, std::uint32_t> next;
  std::size_t arrived = 0;
  bool in_order = true;
  std::vector<std::uint8_t> room(65536);
  while (arrived < std::size_t{kThreads} * kMessages) {
    if (!readable(over.far.get())) break;
    const ssize_t count = ::recv(over.far.get(), room.data(), room.size(), 0);
    if (count <= 0) break;
    stream.append({room.data(), static_cast<std::size_t>(count)});
    for (const Bytes& message : stream.messages) {
      const Numbered what = numbered(message);
      in_order = in_order && what.number == next[what.sender]++;
      ++arrived;
    }
    stream.messages.clear();
  }
  for (auto& thread : threads) thread.join();
  CHECK(arrived == std::size_t{kThreads} * kMessages);
  CHECK(in_order);
  CHECK(eventually([&] { return over.link->flushed(); }));
}

TEST_CASE(
    "closing from another thread while many send ends the link once and the stream between frames "
    "or earlier",
    "[link][threads]") {
  for (int round = 0; round < 10; ++round) {
    RunningLink over;
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (std::uint32_t sender = 0; sender < 3; ++sender) {
      threads.emplace_back([&, sender] {
        for (std::uint32_t i = 0; !stop; ++i) {
          over.link->send(
              numbered_message({sender, sender + 1, i, i % 20 == 0 ? std::size_t{100'000} : 100}));
          if (i % 64 == 0) std::this_thread::yield();
          if (over.link->closed()) return;
        }
      });
    }
    std::thread closer([&] {
      eventually([&] { return over.link->bytes_sent() > 500'000; });
      over.link->close("enough");
    });
    Stream stream;
    std::vector<std::uint8_t> room(65536);
    ssize_t count = 0;
    while (readable(over.far.get()) &&
           (count = ::recv(over.far.get(), room.data(), room.size(), 0)) > 0) {
      stream.append({room.data(), static_cast<std::size_t>(count)});
    }
    stop = true;
    closer.join();
    for (auto& thread : threads) thread.join();
    CHECK(eventually([&] { return over.handler.closed > 0; }));
    std::map<std::uint32_t, std::uint32_t> next;
    bool in_order = true;
    for (const Bytes& message : stream.messages) {
      const Numbered what = numbered(message);
      in_order = in_order && what.number == next[what.sender]++;
    }
    CHECK(in_order);
    CHECK(over.handler.closed == 1);
    CHECK(over.handler.reason == "enough");
  }
}
