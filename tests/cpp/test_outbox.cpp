#include <string>
#include <thread>
#include <vector>

#include "cnode/bridge/outbox.hpp"
#include "cnode/dist/control.hpp"
#include "cnode/dist/node.hpp"
#include "tests/cpp/catch.hpp"
#include "tests/cpp/dist_support.hpp"

using namespace dist_support;
using bridge::Outbox;
using Added = bridge::Outbox::Added;

namespace {

// A link without a socket: what is sent is put together again at once, message by message.
class FakeLink final : public dist::Link {
 public:
  explicit FakeLink(std::uint64_t flags) : Link(1, peer_with(flags), -1) {}
  Stream stream;

 private:
  static dist::PeerInfo peer_with(std::uint64_t flags) {
    dist::PeerInfo peer;
    peer.name = "peer@127.0.0.1";
    peer.flags = flags;
    return peer;
  }
  void wake_writer() override {
    dist::SendQueue::Batch batch;
    while (queue_.take(batch)) {
      for (const iovec& part : batch.parts)
        stream.append({static_cast<const std::uint8_t*>(part.iov_base), part.iov_len});
    }
  }
  void request_close(std::string) override {}
};

template <class Append>
Bytes term(Append append) {
  etf::Buffer bytes;
  etf::Writer out(bytes);
  append(out);
  return bytes_of(bytes);
}

Bytes pid(std::uint32_t id) {
  return term([&](etf::Writer& out) { out.pid({"peer@127.0.0.1", id, 0, 9}); });
}
const Bytes kOurPid = term([](etf::Writer& out) { out.pid({"node@127.0.0.1", 1, 0, 5}); });

// {Id, {ok, Id}}
Bytes reply(std::int64_t id) {
  return term([&](etf::Writer& out) { out.tuple(2).integer(id).tuple(2).atom("ok").integer(id); });
}
Bytes large_reply(std::int64_t id) {
  const Bytes body(dist::kFragmentSize, 7);
  return term([&](etf::Writer& out) { out.tuple(2).integer(id).binary(etf::Bytes(body)); });
}

// {Label, [Item, ...]} from us to the process `to`, control tuple included.
Bytes batch(std::string_view label, const Bytes& to, const std::vector<Bytes>& items) {
  return term([&](etf::Writer& out) {
    dist::append_send_sender(out, kOurPid, to);
    out.tuple(2).atom(label).list(static_cast<std::uint32_t>(items.size()));
    for (const Bytes& one : items) out.raw(one);
    out.nil();
  });
}
Bytes batch(const Bytes& to, const std::vector<Bytes>& replies) {
  return batch("$py_replies", to, replies);
}
Bytes call_batch(const Bytes& to, const std::vector<Bytes>& items) {
  return batch("$py_calls", to, items);
}

struct Box {
  explicit Box(std::uint64_t flags = dist::kOurFlags)
      : link(std::make_shared<FakeLink>(flags)), outbox(link, kOurPid) {}

  Added add_reply(const Bytes& to, const Bytes& bytes) {
    etf::Reader in(to);
    return outbox.add_reply(*in.pid(), bytes);
  }
  Added add_call(const Bytes& to, const Bytes& bytes) {
    etf::Reader in(to);
    return outbox.add_call(*in.pid(), bytes);
  }
  const std::vector<Bytes>& sent() const { return link->stream.messages; }

  std::shared_ptr<FakeLink> link;
  Outbox outbox;
};

}  // namespace

TEST_CASE("nothing is sent before a flush, and nothing by a flush of nothing", "[outbox]") {
  Box box;
  box.outbox.flush();
  CHECK(box.add_reply(pid(1), reply(1)) == Added::kMore);
  CHECK(box.sent().empty());
  box.outbox.flush();
  box.outbox.flush();
  CHECK(box.sent() == std::vector<Bytes>{batch(pid(1), {reply(1)})});
}

TEST_CASE("replies to one process leave in one message, in order", "[outbox]") {
  Box box;
  std::vector<Bytes> replies;
  for (int i = 0; i < 100; ++i) {
    replies.push_back(reply(i));
    CHECK(box.add_reply(pid(1), replies.back()) == Added::kMore);
  }
  box.outbox.flush();
  CHECK(box.sent() == std::vector<Bytes>{batch(pid(1), replies)});
}

TEST_CASE("replies to different processes leave in messages of their own", "[outbox]") {
  Box box;
  box.add_reply(pid(1), reply(1));
  box.add_reply(pid(2), reply(2));
  box.add_reply(pid(1), reply(3));
  box.outbox.flush();
  CHECK(box.sent() == std::vector<Bytes>{batch(pid(1), {reply(1)}), batch(pid(2), {reply(2)}),
                                         batch(pid(1), {reply(3)})});
}

TEST_CASE("a batch begins anew after each flush", "[outbox]") {
  Box box;
  box.add_reply(pid(1), reply(1));
  box.outbox.flush();
  box.add_reply(pid(1), reply(2));
  box.outbox.flush();
  CHECK(box.sent() == std::vector<Bytes>{batch(pid(1), {reply(1)}), batch(pid(1), {reply(2)})});
}

TEST_CASE("a peer that takes no sender gets none", "[outbox]") {
  Box box(dist::kOurFlags & ~dist::kSendSender);
  box.add_reply(pid(1), reply(1));
  box.outbox.flush();
  REQUIRE(box.sent().size() == 1);
  CHECK(box.sent()[0] == term([&](etf::Writer& out) {
          dist::append_send(out, pid(1));
          out.tuple(2).atom("$py_replies").list(1).raw(reply(1)).nil();
        }));
}

TEST_CASE("a message to the process of the open batch leaves behind what was batched before it",
          "[outbox]") {
  Box box;
  const Bytes to = pid(1);
  etf::Reader in(to);
  const std::uint64_t lane = dist::lane_of(*in.pid());
  box.add_reply(to, reply(1));
  box.outbox.add(message_of({104, 1, 97, 5}, {97, 7}, lane));
  box.add_reply(to, reply(2));
  box.outbox.flush();
  CHECK(box.sent() ==
        std::vector<Bytes>{batch(to, {reply(1)}), {104, 1, 97, 5, 97, 7}, batch(to, {reply(2)})});
}

TEST_CASE("a full outbox says so: by replies, by messages and by bytes", "[outbox]") {
  Box box;
  SECTION("replies") {
    for (int i = 0; i < 255; ++i) CHECK(box.add_reply(pid(1), reply(i)) == Added::kMore);
    CHECK(box.add_reply(pid(1), reply(255)) == Added::kFlushNow);
  }
  SECTION("messages") {
    for (int i = 0; i < 31; ++i) CHECK(box.outbox.add(message_of({104, 1, 97, 5})) == Added::kMore);
    CHECK(box.outbox.add(message_of({104, 1, 97, 5})) == Added::kFlushNow);
  }
  SECTION("bytes of messages") {
    CHECK(box.outbox.add(message_of({104, 1, 97, 5}, Bytes(60 * 1024, 1))) == Added::kMore);
    CHECK(box.outbox.add(message_of({104, 1, 97, 5}, Bytes(5 * 1024, 1))) == Added::kFlushNow);
  }
  SECTION("bytes of replies") {
    const Bytes body(12'000, 1);
    const auto middling =
        term([&](etf::Writer& out) { out.tuple(2).integer(1).binary(etf::Bytes(body)); });
    CHECK(box.add_reply(pid(1), middling) == Added::kMore);
    CHECK(box.add_reply(pid(1), middling) == Added::kMore);
    CHECK(box.add_reply(pid(1), middling) == Added::kFlushNow);
  }
}

TEST_CASE("a large reply leaves alone, and small ones to the same process pass it", "[outbox]") {
  Box box;
  box.add_reply(pid(1), reply(1));
  CHECK(box.add_reply(pid(1), large_reply(2)) == Added::kFlushNow);
  box.add_reply(pid(1), reply(3));
  box.outbox.flush();
  CHECK(box.sent() == std::vector<Bytes>{batch(pid(1), {reply(1)}), batch(pid(1), {reply(3)}),
                                         batch(pid(1), {large_reply(2)})});
}

TEST_CASE("large replies do not wait for each other", "[outbox]") {
  Box box;
  const Bytes huge_body(20 * dist::kFragmentSize, 3);
  const Bytes huge =
      term([&](etf::Writer& out) { out.tuple(2).integer(1).binary(etf::Bytes(huge_body)); });
  box.add_reply(pid(1), huge);
  box.add_reply(pid(1), large_reply(2));
  box.outbox.flush();
  CHECK(box.sent() == std::vector<Bytes>{batch(pid(1), {large_reply(2)}), batch(pid(1), {huge})});
}

// --- calls beside replies
// ----------------------------------------------------------------------------------------

TEST_CASE("replies and calls do not mix, whoever they are for", "[outbox]") {
  Box box;
  const std::uint32_t to_calls = GENERATE(1u, 2u);
  for (int i = 0; i < 3; ++i) {
    CHECK(box.add_reply(pid(1), reply(i)) == Added::kMore);
    CHECK(box.add_call(pid(to_calls), reply(10 + i)) == Added::kMore);
  }
  box.outbox.flush();
  CHECK(box.sent() ==
        std::vector<Bytes>{batch(pid(1), {reply(0), reply(1), reply(2)}),
                           call_batch(pid(to_calls), {reply(10), reply(11), reply(12)})});
}

TEST_CASE("a batch that is closed leaves the other kind open", "[outbox]") {
  Box box;
  box.add_reply(pid(1), reply(1));
  box.add_call(pid(2), reply(11));
  SECTION("calls to another process") {
    box.add_call(pid(3), reply(12));
    box.add_reply(pid(1), reply(2));
    box.outbox.flush();
    CHECK(box.sent() == std::vector<Bytes>{call_batch(pid(2), {reply(11)}),
                                           batch(pid(1), {reply(1), reply(2)}),
                                           call_batch(pid(3), {reply(12)})});
  }
  SECTION("replies to another process") {
    box.add_reply(pid(3), reply(2));
    box.add_call(pid(2), reply(12));
    box.outbox.flush();
    CHECK(box.sent() == std::vector<Bytes>{batch(pid(1), {reply(1)}), batch(pid(3), {reply(2)}),
                                           call_batch(pid(2), {reply(11), reply(12)})});
  }
  SECTION("a large call") {
    CHECK(box.add_call(pid(2), large_reply(12)) == Added::kFlushNow);
    box.add_reply(pid(1), reply(2));
    box.outbox.flush();
    CHECK(box.sent() == std::vector<Bytes>{call_batch(pid(2), {reply(11)}),
                                           batch(pid(1), {reply(1), reply(2)}),
                                           call_batch(pid(2), {large_reply(12)})});
  }
}

TEST_CASE("a message leaves behind the batches of both kinds that go to its process, and no other",
          "[outbox]") {
  Box box;
  const Bytes to = pid(1);
  etf::Reader in(to);
  const std::uint64_t lane = dist::lane_of(*in.pid());
  const Bytes message{104, 1, 97, 5, 97, 7};
  SECTION("both go to it") {
    box.add_reply(to, reply(1));
    box.add_call(to, reply(11));
    box.outbox.add(message_of({104, 1, 97, 5}, {97, 7}, lane));
    box.add_reply(to, reply(2));
    box.add_call(to, reply(12));
    box.outbox.flush();
    CHECK(box.sent() == std::vector<Bytes>{batch(to, {reply(1)}), call_batch(to, {reply(11)}),
                                           message, batch(to, {reply(2)}),
                                           call_batch(to, {reply(12)})});
  }
  SECTION("only the calls do") {
    box.add_reply(pid(2), reply(1));
    box.add_call(to, reply(11));
    box.outbox.add(message_of({104, 1, 97, 5}, {97, 7}, lane));
    box.add_reply(pid(2), reply(2));
    box.add_call(to, reply(12));
    box.outbox.flush();
    CHECK(box.sent() == std::vector<Bytes>{call_batch(to, {reply(11)}), message,
                                           batch(pid(2), {reply(1), reply(2)}),
                                           call_batch(to, {reply(12)})});
  }
}

TEST_CASE("each kind counts for itself towards a full batch", "[outbox]") {
  Box box;
  for (int i = 0; i < 255; ++i) {
    CHECK(box.add_reply(pid(1), reply(i)) == Added::kMore);
    CHECK(box.add_call(pid(1), reply(i)) == Added::kMore);
  }
  CHECK(box.add_call(pid(1), reply(255)) == Added::kFlushNow);
  CHECK(box.add_reply(pid(1), reply(255)) == Added::kFlushNow);
}

TEST_CASE("an outbox is listed for flushing by the first who asks, until it is unlisted",
          "[outbox]") {
  Box box;
  CHECK(box.outbox.list());
  CHECK_FALSE(box.outbox.list());
  box.outbox.unlist();
  CHECK(box.outbox.list());
}

TEST_CASE("replies added by many threads all leave, each thread's in order", "[outbox][threads]") {
  constexpr int kThreads = 4;
  constexpr int kReplies = 2000;
  Box box;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      const Bytes to = pid(static_cast<std::uint32_t>(i % 2));
      for (int number = 0; number < kReplies; ++number) {
        if (box.add_reply(to, reply(i * kReplies + number)) == Added::kFlushNow || number % 37 == 0)
          box.outbox.flush();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  box.outbox.flush();

  std::vector<int> next(kThreads, 0);
  bool in_order = true;
  for (const Bytes& message : box.sent()) {
    etf::Reader in(message);
    REQUIRE(in.term().ok());
    REQUIRE(in.tuple().ok());
    REQUIRE(in.atom().ok());
    const auto count = in.list();
    REQUIRE(count.ok());
    for (std::uint32_t i = 0; i < *count; ++i) {
      REQUIRE(in.tuple().ok());
      const auto id = static_cast<int>(*in.integer());
      in_order = in_order && id % kReplies == next[static_cast<std::size_t>(id / kReplies)]++;
      REQUIRE(in.term().ok());
    }
    REQUIRE(in.nil().ok());
    REQUIRE(in.at_end());
  }
  CHECK(in_order);
  CHECK(next == std::vector<int>(kThreads, kReplies));
}
