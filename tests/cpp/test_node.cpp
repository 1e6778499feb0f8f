// The node's signals: what a peer says, what it hears, and what the delegate is told.
#include <functional>
#include <string>
#include <vector>

#include "tests/cpp/catch.hpp"
#include "tests/cpp/node_support.hpp"

using namespace node_support;
using dist::Op;

namespace {

template <class Append>
Bytes control(Append append) {
  return Peer::control(append);
}

Bytes monitor_p(const Peer& peer, const Bytes& process, const Bytes& ref) {
  return control([&](etf::Writer& out) { dist::append_monitor_p(out, peer.pid(), process, ref); });
}
Bytes demonitor_p(const Peer& peer, const Bytes& process, const Bytes& ref) {
  return control(
      [&](etf::Writer& out) { dist::append_demonitor_p(out, peer.pid(), process, ref); });
}
Bytes down(const Peer& peer, const Bytes& process, const Bytes& ref) {
  return control([&](etf::Writer& out) {
    dist::append_payload_monitor_p_exit(out, process, peer.pid(), ref);
  });
}
Bytes link_to(const Bytes& from, const Bytes& to) {
  return control([&](etf::Writer& out) { dist::append_link(out, from, to); });
}
Bytes exit_of(const Bytes& from, const Bytes& to) {
  return control([&](etf::Writer& out) { dist::append_payload_exit(out, from, to); });
}
Bytes pid_of_earlier_node(const TestNode& node, dist::ProcessId id) {
  etf::Buffer bytes;
  etf::Writer(bytes).pid(
      {node.name(), static_cast<std::uint32_t>(id), 0, node.node->creation() ^ 1});
  return bytes_of(bytes);
}
Bytes spawn_request(const Peer& peer, const Bytes& ref, const Bytes& options,
                    std::uint32_t arity = 1) {
  return control([&](etf::Writer& out) {
    dist::append_spawn_request(out, ref, peer.pid(), peer.pid(), "math", "sqrt", arity, options);
  });
}
Bytes spawn_reply(const Peer& peer, const Bytes& ref, std::uint64_t flags, const Bytes& result) {
  return control(
      [&](etf::Writer& out) { dist::append_spawn_reply(out, ref, peer.pid(), flags, result); });
}
Bytes options_of(const std::vector<std::string>& words) {
  return control([&](etf::Writer& out) {
    out.list(static_cast<std::uint32_t>(words.size()));
    for (const auto& word : words) out.atom(word);
    if (!words.empty()) out.nil();
  });
}
const Bytes kNil{106};
const Bytes kArguments{107, 0, 1, 16};  // [16]
const Bytes kReason{104, 2, 119, 3, 'w', 'h', 'y', 97, 9};

etf::PidView view_of(const Bytes& pid) {
  etf::Reader in(pid);
  return *in.pid();
}

// The node's process `id`, on the reactor.
dist::Process& process(TestNode& node, dist::ProcessId id) {
  return *node.node->processes().find(id);
}

constexpr std::uint64_t without(std::uint64_t flags) { return dist::kOurFlags & ~flags; }

}  // namespace

// --- ping
// --------------------------------------------------------------------------------------------------------

TEST_CASE("a ping is answered to its alias in the newest form both sides know", "[node]") {
  struct Form {
    std::uint64_t flags;
    Op op;
  };
  const Form form = GENERATE(
      Form{dist::kOurFlags, Op::kAltactSigSend}, Form{without(dist::kAltactSig), Op::kAliasSend},
      Form{without(dist::kAltactSig | dist::kAlias), Op::kSendSender},
      Form{without(dist::kAltactSig | dist::kAlias | dist::kSendSender), Op::kSend});
  TestNode node;
  Peer peer(node, {.flags = form.flags});
  const Bytes tag = control([&](etf::Writer& out) { out.list(1).atom("alias").raw(peer.ref(5)); });
  peer.send(
      control([&](etf::Writer& out) { dist::append_reg_send(out, peer.pid(), "net_kernel"); }),
      peer.ping(tag));
  const Signal answer = peer.receive();
  CHECK(answer.control.op == form.op);
  CHECK(answer.payload == Peer::pong(tag));
  const bool to_alias = answer.control.to.kind == dist::Party::Kind::kAlias;
  CHECK(bytes_of(to_alias ? answer.control.to.alias.raw : answer.control.to.pid.raw) ==
        (to_alias ? peer.ref(5) : peer.pid()));
}

TEST_CASE("a ping without an alias is answered to the process", "[node]") {
  TestNode node;
  Peer peer(node);
  peer.send(
      control([&](etf::Writer& out) { dist::append_reg_send(out, peer.pid(), "net_kernel"); }),
      peer.ping(peer.ref(5)));
  const Signal answer = peer.receive();
  CHECK(answer.control_bytes == control([&](etf::Writer& out) {
          dist::append_send_sender(out, node.pid_of("net_kernel"), peer.pid());
        }));
  CHECK(answer.payload == Peer::pong(peer.ref(5)));
}

TEST_CASE("net_kernel passes over what is no ping", "[node]") {
  TestNode node;
  Peer peer(node);
  const Bytes to =
      control([&](etf::Writer& out) { dist::append_reg_send(out, peer.pid(), "net_kernel"); });
  peer.send(to, atom("hello"));
  peer.send(to, control([&](etf::Writer& out) { out.tuple(2).atom("$gen_cast").atom("x"); }));
  peer.send(
      to, control([&](etf::Writer& out) {
        out.tuple(3).atom("$gen_call").tuple(2).raw(peer.pid()).raw(peer.ref(1)).atom("other");
      }));
  CHECK(peer.barrier().empty());
}

// --- messages
// ----------------------------------------------------------------------------------------------------

TEST_CASE("messages reach processes by pid and by name, with the sender where it is told",
          "[node]") {
  TestNode node;
  const auto id = node.create("echo");
  Peer peer(node);
  peer.send(control([&](etf::Writer& out) {
              dist::append_send_sender(out, peer.pid(), node.pid_of(id));
            }),
            {97, 1});
  peer.send(control([&](etf::Writer& out) { dist::append_send(out, node.pid_of(id)); }), {97, 2});
  peer.send(control([&](etf::Writer& out) { dist::append_reg_send(out, peer.pid(), "echo"); }),
            {97, 3});
  for (const auto& [bytes, from] : std::vector<std::pair<Bytes, Bytes>>{
           {{97, 1}, peer.pid()}, {{97, 2}, {}}, {{97, 3}, peer.pid()}}) {
    const Event event = node.recorder.next("message");
    CHECK(event.process == id);
    CHECK(event.bytes == bytes);
    CHECK(event.from == from);
    CHECK(event.detail == "echo");
  }
}

TEST_CASE("messages in the altact form reach pids, names and aliases", "[node]") {
  TestNode node;
  const auto id = node.create("echo");
  Peer peer(node);
  peer.send(control([&](etf::Writer& out) {
              dist::append_altact_send(out, 0, peer.pid(), node.pid_of(id));
            }),
            {97, 1});
  peer.send(control([&](etf::Writer& out) {
              dist::append_altact_send(out, dist::kAltactName, peer.pid(), atom("echo"));
            }),
            {97, 2});
  peer.send(control([&](etf::Writer& out) {
              dist::append_altact_send(out, dist::kAltactAlias, peer.pid(), peer.ref(4));
            }),
            {97, 3});
  CHECK(node.recorder.next("message").bytes == Bytes{97, 1});
  CHECK(node.recorder.next("message").bytes == Bytes{97, 2});
  const Event alias = node.recorder.next("alias");
  CHECK(alias.bytes == Bytes{97, 3});
  CHECK(alias.from == peer.ref(4));
}

TEST_CASE("a message to nobody is dropped and harms nothing", "[node]") {
  TestNode node;
  const auto id = node.create();
  const Bytes gone = node.pid_of(id);
  node.exit(id, atom("normal"));
  Peer peer(node);
  peer.send(control([&](etf::Writer& out) { dist::append_send(out, gone); }), {97, 1});
  peer.send(control([&](etf::Writer& out) { dist::append_reg_send(out, peer.pid(), "nobody"); }),
            {97, 2});
  CHECK(peer.barrier().empty());
  CHECK(node.recorder.count("message") == 0);
}

TEST_CASE("a fragmented message arrives whole, whatever comes between its fragments", "[node]") {
  TestNode node;
  node.create("echo");
  Peer peer(node);
  const Bytes to =
      control([&](etf::Writer& out) { dist::append_reg_send(out, peer.pid(), "echo"); });
  const Bytes message = control([&](etf::Writer& out) { out.binary(Bytes(1000, 7)); });
  const Bytes all = joined(to, message);
  const auto fragment = [&](std::uint8_t kind, std::uint8_t sequence, std::uint8_t number,
                            const Bytes& part) {
    Bytes body{131, kind, 0, 0, 0, 0, 0, 0, 0, sequence, 0, 0, 0, 0, 0, 0, 0, number};
    if (kind == 69) body.push_back(0);
    peer.send_raw(framed(joined(std::move(body), part)));
  };
  const auto part = [&](std::size_t from, std::size_t to_offset) {
    return Bytes(all.begin() + static_cast<std::ptrdiff_t>(from),
                 all.begin() + static_cast<std::ptrdiff_t>(to_offset));
  };
  fragment(69, 1, 3, part(0, 300));
  fragment(69, 2, 2, part(0, 500));
  peer.send(to, {97, 5});
  fragment(70, 1, 2, part(300, 600));
  fragment(70, 2, 1, part(500, all.size()));
  fragment(70, 1, 1, part(600, all.size()));
  CHECK(node.recorder.next("message").bytes == Bytes{97, 5});
  CHECK(node.recorder.next("message").bytes == message);
  CHECK(node.recorder.next("message").bytes == message);
}

TEST_CASE(
    "a message over the limit is told with its beginning, whole or in fragments, and the link "
    "lives",
    "[node]") {
  auto config = config_of("node@127.0.0.1");
  config.max_message = 100'000;
  TestNode node(config);
  node.create("echo");
  Peer peer(node);
  const Bytes to =
      control([&](etf::Writer& out) { dist::append_reg_send(out, peer.pid(), "echo"); });
  const Bytes message =
      control([&](etf::Writer& out) { out.tuple(2).atom("first").binary(Bytes(400'000, 7)); });
  const Bytes beginning(message.begin(), message.begin() + 5000);

  peer.send(to, message);
  const Event whole = node.recorder.next("too large");
  REQUIRE(whole.bytes.size() >= beginning.size());
  CHECK(Bytes(whole.bytes.begin(), whole.bytes.begin() + 5000) == beginning);
  CHECK(whole.from == peer.pid());

  const Bytes all = joined(to, message);
  const std::size_t pieces = (all.size() + 65535) / 65536;
  for (std::size_t i = 0; i < pieces; ++i) {
    Bytes body{
        131, static_cast<std::uint8_t>(i == 0 ? 69 : 70), 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0,
        0,   static_cast<std::uint8_t>(pieces - i)};
    if (i == 0) body.push_back(0);
    const auto from = all.begin() + static_cast<std::ptrdiff_t>(i * 65536);
    const auto end =
        all.begin() + static_cast<std::ptrdiff_t>(std::min(all.size(), (i + 1) * 65536));
    peer.send_raw(framed(joined(std::move(body), Bytes(from, end))));
  }
  const Event cut = node.recorder.next("too large");
  REQUIRE(cut.bytes.size() >= beginning.size());
  CHECK(Bytes(cut.bytes.begin(), cut.bytes.begin() + 5000) == beginning);
  CHECK(peer.barrier().empty());
  CHECK(node.recorder.count("message") == 0);
}

TEST_CASE("without fragments everything goes in pass-through frames", "[node]") {
  TestNode node;
  const auto id = node.create("echo");
  Peer peer(node, {.flags = without(dist::kFragments)});
  peer.send(control([&](etf::Writer& out) { dist::append_reg_send(out, peer.pid(), "echo"); }),
            {97, 3});
  CHECK(node.recorder.next("message").bytes == Bytes{97, 3});
  peer.send(monitor_p(peer, atom("echo"), peer.ref(1)));
  peer.barrier();
  node.exit(id, kReason);
  const Signal signal = peer.receive();
  CHECK(signal.control_bytes == down(peer, atom("echo"), peer.ref(1)));
  CHECK(signal.payload == kReason);
}

// --- monitors from peers
// -----------------------------------------------------------------------------------------

TEST_CASE("a monitor of what does not exist is answered with noproc at once", "[node]") {
  TestNode node;
  const auto id = node.create();
  const Bytes alive = node.pid_of(id);
  Peer peer(node);
  Bytes target;
  SECTION("a name") { target = atom("nobody"); }
  SECTION("a name beyond ASCII") { target = atom("niemand-\xC3\xBC"); }
  SECTION("a pid that ended") {
    target = alive;
    node.exit(id, atom("normal"));
  }
  SECTION("a pid of an earlier node of this name") { target = pid_of_earlier_node(node, id); }
  peer.send(monitor_p(peer, target, peer.ref(1)));
  const Signal signal = peer.receive();
  CHECK(signal.control_bytes == down(peer, target, peer.ref(1)));
  CHECK(signal.payload == atom("noproc"));
}

TEST_CASE("a peer without exit payloads gets the reason inside the tuple", "[node]") {
  TestNode node;
  const auto id = node.create("echo");
  Peer peer(node, {.flags = without(dist::kExitPayload)});
  peer.send(monitor_p(peer, atom("nobody"), peer.ref(1)));
  CHECK(peer.receive().control_bytes == control([&](etf::Writer& out) {
          dist::append_monitor_p_exit(out, atom("nobody"), peer.pid(), peer.ref(1), atom("noproc"));
        }));
  const Bytes pid = node.pid_of(id);
  peer.send(link_to(peer.pid(), pid));
  peer.barrier();
  node.exit(id, kReason);
  CHECK(peer.receive().control_bytes ==
        control([&](etf::Writer& out) { dist::append_exit(out, pid, peer.pid(), kReason); }));
}

TEST_CASE("each of many watchers hears the true reason once, as it named the process", "[node]") {
  TestNode node;
  const auto id = node.create("echo");
  const Bytes pid = node.pid_of(id);
  Peer one(node);
  Peer other(node, {.name = "other@127.0.0.1"});
  one.send(monitor_p(one, pid, one.ref(1)));
  one.send(monitor_p(one, atom("echo"), one.ref(2)));
  other.send(monitor_p(other, pid, other.ref(1)));
  CHECK(one.barrier().empty());
  CHECK(other.barrier().empty());

  node.exit(id, kReason);
  auto heard = one.barrier();
  REQUIRE(heard.size() == 2);
  const std::size_t by_pid = heard[0].control.from.kind == dist::Party::Kind::kPid ? 0 : 1;
  CHECK(heard[by_pid].control_bytes == down(one, pid, one.ref(1)));
  CHECK(heard[1 - by_pid].control_bytes == down(one, atom("echo"), one.ref(2)));
  CHECK(heard[0].payload == kReason);
  CHECK(heard[1].payload == kReason);
  const auto other_heard = other.barrier();
  REQUIRE(other_heard.size() == 1);
  CHECK(other_heard[0].control_bytes == down(other, pid, other.ref(1)));
}

TEST_CASE("a DOWN names the process as the monitor did, though the name was given up since",
          "[node]") {
  TestNode node;
  const auto id = node.create("echo");
  Peer peer(node);
  peer.send(monitor_p(peer, atom("echo"), peer.ref(1)));
  peer.barrier();
  node.run([&] { node.node->processes().unregister_name("echo"); });
  node.exit(id, kReason);
  CHECK(peer.receive().control_bytes == down(peer, atom("echo"), peer.ref(1)));
}

TEST_CASE("who demonitors hears nothing, and the delegate is told", "[node]") {
  TestNode node;
  const auto id = node.create("echo");
  Peer peer(node);
  peer.send(monitor_p(peer, atom("echo"), peer.ref(1)));
  peer.send(monitor_p(peer, atom("echo"), peer.ref(2)));
  peer.send(demonitor_p(peer, atom("echo"), peer.ref(1)));
  CHECK(node.recorder.next("demonitor").process == id);
  node.exit(id, kReason);
  const auto heard = peer.barrier();
  REQUIRE(heard.size() == 1);
  CHECK(heard[0].control_bytes == down(peer, atom("echo"), peer.ref(2)));
}

TEST_CASE("a demonitor through another link of the same reference takes nothing away", "[node]") {
  TestNode node;
  const auto id = node.create("echo");
  Peer one(node);
  Peer other(node, {.name = "other@127.0.0.1"});
  one.send(monitor_p(one, atom("echo"), one.ref(1)));
  one.barrier();
  other.send(demonitor_p(other, atom("echo"), one.ref(1)));
  other.barrier();
  node.exit(id, kReason);
  CHECK(one.receive().control_bytes == down(one, atom("echo"), one.ref(1)));
}

// --- links from peers
// --------------------------------------------------------------------------------------------

TEST_CASE("a link to what does not exist is answered with an exit for noproc", "[node]") {
  TestNode node;
  const auto id = node.create();
  const Bytes pid = node.pid_of(id);
  node.exit(id, atom("normal"));
  Peer peer(node);
  peer.send(link_to(peer.pid(), pid));
  const Signal signal = peer.receive();
  CHECK(signal.control_bytes == exit_of(pid, peer.pid()));
  CHECK(signal.payload == atom("noproc"));
}

TEST_CASE("linked processes of a peer hear the reason once each", "[node]") {
  TestNode node;
  const auto id = node.create();
  const Bytes pid = node.pid_of(id);
  Peer peer(node);
  peer.send(link_to(peer.pid(1), pid));
  peer.send(link_to(peer.pid(1), pid));
  peer.send(link_to(peer.pid(2), pid));
  peer.barrier();
  node.exit(id, kReason);
  const auto heard = peer.barrier();
  REQUIRE(heard.size() == 2);
  const std::size_t first = heard[0].control_bytes == exit_of(pid, peer.pid(1)) ? 0 : 1;
  CHECK(heard[first].control_bytes == exit_of(pid, peer.pid(1)));
  CHECK(heard[1 - first].control_bytes == exit_of(pid, peer.pid(2)));
  CHECK(heard[0].payload == kReason);
}

TEST_CASE("an unlink is acknowledged, and the exit after it is not told", "[node]") {
  TestNode node;
  const auto id = node.create();
  const Bytes pid = node.pid_of(id);
  Peer peer(node);
  peer.send(link_to(peer.pid(), pid));
  peer.send(control([&](etf::Writer& out) { dist::append_unlink_id(out, 4711, peer.pid(), pid); }));
  const Signal ack = peer.receive();
  CHECK(ack.control_bytes ==
        control([&](etf::Writer& out) { dist::append_unlink_id_ack(out, 4711, pid, peer.pid()); }));
  node.exit(id, kReason);
  CHECK(peer.barrier().empty());
}

TEST_CASE("an unlink from a process that is gone is acknowledged too", "[node]") {
  TestNode node;
  const auto id = node.create();
  const Bytes pid = node.pid_of(id);
  node.exit(id, atom("normal"));
  Peer peer(node);
  const std::uint64_t large = 0xFFFFFFFFFFFFFFFFu;
  peer.send(
      control([&](etf::Writer& out) { dist::append_unlink_id(out, large, peer.pid(), pid); }));
  CHECK(peer.receive().control_bytes == control([&](etf::Writer& out) {
          dist::append_unlink_id_ack(out, large, pid, peer.pid());
        }));
}

TEST_CASE("the exit of a linked process is told to the delegate once, of others never", "[node]") {
  TestNode node;
  const auto id = node.create();
  const Bytes pid = node.pid_of(id);
  Peer peer(node);
  peer.send(exit_of(peer.pid(2), pid), kReason);  // not linked
  peer.send(link_to(peer.pid(), pid));
  peer.send(exit_of(peer.pid(), pid), kReason);
  peer.send(exit_of(peer.pid(), pid), kReason);  // no longer linked
  peer.barrier();
  const Event event = node.recorder.next("exit");
  CHECK(event.process == id);
  CHECK(event.from == peer.pid());
  CHECK(event.bytes == kReason);
  CHECK(node.recorder.count("exit") == 0);
  node.exit(id, atom("normal"));
  CHECK(peer.barrier().empty());  // the link went with the exit
}

TEST_CASE("exit signals reach a process in all their forms, linked or not", "[node]") {
  TestNode node;
  const Bytes pid = node.pid_of(node.create());
  Peer peer(node);
  peer.send(control([&](etf::Writer& out) { dist::append_exit2(out, peer.pid(), pid, kReason); }));
  peer.send(control([&](etf::Writer& out) { dist::append_payload_exit2(out, peer.pid(), pid); }),
            kReason);
  peer.send(control([&](etf::Writer& out) {
              dist::append_altact_send(out, dist::kAltactExit, peer.pid(), pid);
            }),
            kReason);
  for (int i = 0; i < 3; ++i) {
    const Event event = node.recorder.next("exit signal");
    CHECK(event.from == peer.pid());
    CHECK(event.bytes == kReason);
  }
}

// --- the node's own monitors and links
// ---------------------------------------------------------------------------

namespace {

etf::Ref own_monitor(TestNode& node, dist::ProcessId owner, const std::string& where,
                     const Bytes& target) {
  etf::Ref ref;
  node.run([&] {
    ref = node.node->make_ref();
    node.node->monitor(process(node, owner), where, target, ref);
  });
  return ref;
}
Bytes encoded(const etf::Ref& ref) {
  return control([&](etf::Writer& out) { out.reference(ref); });
}

}  // namespace

TEST_CASE("a monitor of a peer's process is told to the peer, and its DOWN comes back once",
          "[node]") {
  TestNode node;
  const auto id = node.create();
  const Bytes pid = node.pid_of(id);
  Peer peer(node);
  node.recorder.next("up");
  const etf::Ref ref = own_monitor(node, id, "peer@127.0.0.1", peer.pid());
  CHECK(peer.receive().control_bytes == control([&](etf::Writer& out) {
          dist::append_monitor_p(out, pid, peer.pid(), encoded(ref));
        }));
  const Bytes told = control([&](etf::Writer& out) {
    dist::append_payload_monitor_p_exit(out, peer.pid(), pid, encoded(ref));
  });
  peer.send(told, kReason);
  peer.send(told, kReason);
  peer.barrier();
  const Event event = node.recorder.next("DOWN");
  CHECK(event.process == id);
  CHECK(event.from == peer.pid());
  CHECK(event.bytes == kReason);
  CHECK(node.recorder.count("DOWN") == 0);
}

TEST_CASE("a DOWN with the reason inside the tuple counts, and one by name", "[node]") {
  TestNode node;
  const auto id = node.create();
  const Bytes pid = node.pid_of(id);
  Peer peer(node);
  node.recorder.next("up");
  const etf::Ref ref = own_monitor(node, id, "peer@127.0.0.1", atom("server"));
  CHECK(peer.receive().control_bytes == control([&](etf::Writer& out) {
          dist::append_monitor_p(out, pid, atom("server"), encoded(ref));
        }));
  peer.send(control([&](etf::Writer& out) {
    dist::append_monitor_p_exit(out, atom("server"), pid, encoded(ref), kReason);
  }));
  const Event event = node.recorder.next("DOWN");
  CHECK(event.from == atom("server"));
  CHECK(event.bytes == kReason);
}

TEST_CASE("a DOWN from a peer that was never asked is passed over", "[node]") {
  TestNode node;
  const auto id = node.create();
  const Bytes pid = node.pid_of(id);
  Peer peer(node);
  Peer other(node, {.name = "other@127.0.0.1"});
  node.recorder.next("up");
  node.recorder.next("up");
  const etf::Ref ref = own_monitor(node, id, "peer@127.0.0.1", peer.pid());
  other.send(control([&](etf::Writer& out) {
               dist::append_payload_monitor_p_exit(out, other.pid(), pid, encoded(ref));
             }),
             kReason);
  other.barrier();
  CHECK(node.recorder.count("DOWN") == 0);
}

TEST_CASE("a demonitor is told to the peer, and a DOWN that crosses it is passed over", "[node]") {
  TestNode node;
  const auto id = node.create();
  const Bytes pid = node.pid_of(id);
  Peer peer(node);
  node.recorder.next("up");
  const etf::Ref ref = own_monitor(node, id, "peer@127.0.0.1", peer.pid());
  peer.receive();
  node.run([&] {
    const Bytes raw = encoded(ref);
    etf::Reader in(raw);
    node.node->demonitor(process(node, id), dist::RefKey::of(0, *in.reference()));
  });
  CHECK(peer.receive().control_bytes == control([&](etf::Writer& out) {
          dist::append_demonitor_p(out, pid, peer.pid(), encoded(ref));
        }));
  peer.send(control([&](etf::Writer& out) {
              dist::append_payload_monitor_p_exit(out, peer.pid(), pid, encoded(ref));
            }),
            kReason);
  peer.barrier();
  CHECK(node.recorder.count("DOWN") == 0);
}

TEST_CASE("a process that ends gives up its monitors", "[node]") {
  TestNode node;
  const auto id = node.create();
  const Bytes pid = node.pid_of(id);
  Peer peer(node);
  node.recorder.next("up");
  const etf::Ref ref = own_monitor(node, id, "peer@127.0.0.1", peer.pid());
  peer.receive();
  node.exit(id, atom("normal"));
  CHECK(peer.receive().control_bytes == control([&](etf::Writer& out) {
          dist::append_demonitor_p(out, pid, peer.pid(), encoded(ref));
        }));
}

TEST_CASE("monitors and links to a node that is not connected end with noconnection at once",
          "[node]") {
  TestNode node;
  const auto id = node.create();
  etf::Buffer away;
  etf::Writer(away).pid({"away@127.0.0.1", 5, 0, 9});
  own_monitor(node, id, "away@127.0.0.1", bytes_of(away));
  CHECK(node.recorder.next("DOWN").bytes == atom("noconnection"));
  node.run([&] { node.node->link(process(node, id), "away@127.0.0.1", view_of(bytes_of(away))); });
  const Event event = node.recorder.next("exit");
  CHECK(event.bytes == atom("noconnection"));
  CHECK(event.from == bytes_of(away));
}

TEST_CASE("a lost link ends its monitors and links with noconnection, and no others", "[node]") {
  TestNode node;
  const auto id = node.create();
  const Bytes pid = node.pid_of(id);
  Peer peer(node);
  Peer other(node, {.name = "other@127.0.0.1"});
  node.recorder.next("up");
  node.recorder.next("up");
  own_monitor(node, id, "peer@127.0.0.1", peer.pid(2));
  own_monitor(node, id, "other@127.0.0.1", other.pid(2));
  peer.send(link_to(peer.pid(), pid));
  other.send(link_to(other.pid(), pid));
  peer.send(monitor_p(peer, pid, peer.ref(1)));
  peer.barrier();
  other.barrier();

  peer.close();
  const Event down_event = node.recorder.next("DOWN");
  CHECK(down_event.peer == "peer@127.0.0.1");
  CHECK(down_event.bytes == atom("noconnection"));
  const Event exit_event = node.recorder.next("exit");
  CHECK(exit_event.from == peer.pid());
  CHECK(exit_event.bytes == atom("noconnection"));
  CHECK(node.recorder.next("down").peer == "peer@127.0.0.1");
  other.barrier();
  CHECK(node.recorder.count("DOWN") == 0);
  CHECK(node.recorder.count("exit") == 0);
  node.run([&] {
    CHECK(process(node, id).watchers.empty());
    CHECK(process(node, id).links.size() == 1);
    CHECK(process(node, id).monitors.size() == 1);
  });
}

TEST_CASE("a link to a peer's process is told once, and its exit comes back", "[node]") {
  TestNode node;
  const auto id = node.create();
  const Bytes pid = node.pid_of(id);
  Peer peer(node);
  node.recorder.next("up");
  node.run([&] {
    node.node->link(process(node, id), "peer@127.0.0.1", view_of(peer.pid()));
    node.node->link(process(node, id), "peer@127.0.0.1", view_of(peer.pid()));
  });
  const auto heard = peer.barrier();
  REQUIRE(heard.size() == 1);
  CHECK(heard[0].control_bytes == link_to(pid, peer.pid()));
  peer.send(exit_of(peer.pid(), pid), kReason);
  const Event event = node.recorder.next("exit");
  CHECK(event.from == peer.pid());
  CHECK(event.bytes == kReason);
}

TEST_CASE("after an unlink the peer's exit no longer counts, acknowledged or not", "[node]") {
  TestNode node;
  const auto id = node.create();
  const Bytes pid = node.pid_of(id);
  Peer peer(node);
  node.recorder.next("up");
  node.run([&] {
    node.node->link(process(node, id), "peer@127.0.0.1", view_of(peer.pid()));
    node.node->unlink(process(node, id), view_of(peer.pid()));
  });
  peer.receive();
  const Signal unlink = peer.receive();
  REQUIRE(unlink.control.op == Op::kUnlinkId);
  CHECK(unlink.control.id != 0);
  CHECK(bytes_of(unlink.control.from.pid.raw) == pid);
  SECTION("the exit crosses the unlink") {}
  SECTION("the exit follows the acknowledgement") {
    peer.send(control([&](etf::Writer& out) {
      dist::append_unlink_id_ack(out, unlink.control.id, peer.pid(), pid);
    }));
  }
  peer.send(exit_of(peer.pid(), pid), kReason);
  peer.barrier();
  CHECK(node.recorder.count("exit") == 0);
}

TEST_CASE("a process that ends before its unlink was acknowledged tells the other nothing",
          "[node]") {
  TestNode node;
  const auto id = node.create();
  Peer peer(node);
  node.recorder.next("up");
  node.run([&] {
    node.node->link(process(node, id), "peer@127.0.0.1", view_of(peer.pid()));
    node.node->unlink(process(node, id), view_of(peer.pid()));
  });
  node.exit(id, kReason);
  const auto heard = peer.barrier();
  REQUIRE(heard.size() == 2);
  CHECK(heard[0].control.op == Op::kLink);
  CHECK(heard[1].control.op == Op::kUnlinkId);
}

TEST_CASE("a link made again while its unlink is under way holds", "[node]") {
  TestNode node;
  const auto id = node.create();
  const Bytes pid = node.pid_of(id);
  Peer peer(node);
  node.recorder.next("up");
  node.run([&] {
    node.node->link(process(node, id), "peer@127.0.0.1", view_of(peer.pid()));
    node.node->unlink(process(node, id), view_of(peer.pid()));
    node.node->link(process(node, id), "peer@127.0.0.1", view_of(peer.pid()));
  });
  peer.receive();
  const Signal unlink = peer.receive();
  CHECK(peer.receive().control_bytes == link_to(pid, peer.pid()));
  peer.send(control([&](etf::Writer& out) {
    dist::append_unlink_id_ack(out, unlink.control.id, peer.pid(), pid);
  }));
  peer.send(exit_of(peer.pid(), pid), kReason);
  CHECK(node.recorder.next("exit").bytes == kReason);
}

TEST_CASE("a link the peer makes while our unlink is under way holds", "[node]") {
  TestNode node;
  const auto id = node.create();
  const Bytes pid = node.pid_of(id);
  Peer peer(node);
  node.recorder.next("up");
  node.run([&] {
    node.node->link(process(node, id), "peer@127.0.0.1", view_of(peer.pid()));
    node.node->unlink(process(node, id), view_of(peer.pid()));
  });
  peer.receive();
  const Signal unlink = peer.receive();
  // The peer acknowledges, then links by itself: only the acknowledgement of this very unlink ends
  // the old link.
  peer.send(control([&](etf::Writer& out) {
    dist::append_unlink_id_ack(out, unlink.control.id, peer.pid(), pid);
  }));
  peer.send(link_to(peer.pid(), pid));
  peer.barrier();
  node.exit(id, kReason);
  const Signal signal = peer.receive();
  CHECK(signal.control_bytes == exit_of(pid, peer.pid()));
}

// --- inside the node
// ---------------------------------------------------------------------------------------------

TEST_CASE("processes of the node watch each other as peers do", "[node]") {
  TestNode node;
  const auto owner = node.create();
  const auto watched = node.create("watched");
  const Bytes pid = node.pid_of(watched);
  own_monitor(node, owner, node.name(), pid);
  own_monitor(node, owner, node.name(), atom("watched"));
  const etf::Ref third = own_monitor(node, owner, node.name(), pid);
  node.run([&] {
    const Bytes raw = encoded(third);
    etf::Reader in(raw);
    node.node->demonitor(process(node, owner), dist::RefKey::of(0, *in.reference()));
  });
  node.exit(watched, kReason);
  CHECK(node.recorder.next("DOWN").bytes == kReason);
  CHECK(node.recorder.next("DOWN").bytes == kReason);
  CHECK(node.recorder.count("DOWN") == 0);
  own_monitor(node, owner, node.name(), pid);
  CHECK(node.recorder.next("DOWN").bytes == atom("noproc"));
}

TEST_CASE("linked processes of the node end together, round in a circle too", "[node]") {
  TestNode node;
  const std::vector<dist::ProcessId> ids{node.create(), node.create(), node.create()};
  std::vector<Bytes> pids;
  for (const auto id : ids) pids.push_back(node.pid_of(id));
  node.run([&] {
    node.recorder.exit_hook = [&](dist::Process& ended) {
      node.node->exit_process(ended.id, kReason);
    };
    for (std::size_t i = 0; i < ids.size(); ++i) {
      node.node->link(process(node, ids[i]), node.name(), view_of(pids[(i + 1) % ids.size()]));
    }
  });
  node.exit(ids[0], kReason);
  node.run([&] {
    for (const auto id : ids) CHECK(node.node->processes().find(id) == nullptr);
  });
  CHECK(node.recorder.count("exit") == 2);
}

TEST_CASE("unlinked processes of the node do not end together, and a link to a dead one is noproc",
          "[node]") {
  TestNode node;
  const auto one = node.create();
  const auto other = node.create();
  const Bytes pid = node.pid_of(other);
  node.run([&] {
    node.node->link(process(node, one), node.name(), view_of(pid));
    node.node->unlink(process(node, one), view_of(pid));
  });
  node.exit(other, kReason);
  CHECK(node.recorder.count("exit") == 0);
  node.run([&] { node.node->link(process(node, one), node.name(), view_of(pid)); });
  CHECK(node.recorder.next("exit").bytes == atom("noproc"));
}

// --- spawn
// -------------------------------------------------------------------------------------------------------

TEST_CASE("a spawn request that is refused is answered with the reason and spawns nothing",
          "[node]") {
  TestNode node(config_of("node@127.0.0.1"),
                [](Recorder& recorder) { recorder.refusal = "undef"; });
  Peer peer(node);
  peer.send(spawn_request(peer, peer.ref(1), options_of({"monitor"})), kArguments);
  CHECK(peer.receive().control_bytes == spawn_reply(peer, peer.ref(1), 0, atom("undef")));
  CHECK(node.recorder.count("spawn") == 0);
  node.run([&] { CHECK(node.node->processes().size() == 1); });
}

TEST_CASE(
    "an accepted spawn request gives a pid, and with monitor and link both are told of the end",
    "[node]") {
  TestNode node;
  Peer peer(node);
  peer.send(spawn_request(peer, peer.ref(1), options_of({"link", "monitor"})), kArguments);
  const Event event = node.recorder.next("spawn");
  CHECK(event.detail == "math:sqrt/1");
  CHECK(event.bytes == kArguments);
  CHECK(event.from == peer.pid());
  const Bytes pid = node.pid_of(event.process);
  CHECK(peer.receive().control_bytes ==
        spawn_reply(peer, peer.ref(1), dist::kSpawnedWithLink | dist::kSpawnedWithMonitor, pid));
  node.exit(event.process, kReason);
  const auto heard = peer.barrier();
  REQUIRE(heard.size() == 2);
  CHECK(heard[0].control_bytes == down(peer, pid, peer.ref(1)));
  CHECK(heard[1].control_bytes == exit_of(pid, peer.pid()));
  CHECK(heard[0].payload == kReason);
  CHECK(heard[1].payload == kReason);
}

TEST_CASE("a spawned process nobody watches ends unheard", "[node]") {
  TestNode node;
  Peer peer(node);
  peer.send(spawn_request(peer, peer.ref(1), kNil), kArguments);
  const Event event = node.recorder.next("spawn");
  CHECK(peer.receive().control_bytes ==
        spawn_reply(peer, peer.ref(1), 0, node.pid_of(event.process)));
  node.exit(event.process, kReason);
  CHECK(peer.barrier().empty());
}

TEST_CASE("spawn options that are none are answered with badopt", "[node]") {
  TestNode node;
  Peer peer(node);
  const Bytes options = control([&](etf::Writer& out) { out.list(1).integer(5).nil(); });
  peer.send(spawn_request(peer, peer.ref(1), options), kArguments);
  CHECK(peer.receive().control_bytes == spawn_reply(peer, peer.ref(1), 0, atom("badopt")));
}

// --- what is not understood
// --------------------------------------------------------------------------------------

TEST_CASE("control messages of unknown numbers are counted and passed over", "[node]") {
  TestNode node;
  Peer peer(node);
  peer.send({104, 2, 97, 99, 97, 1});
  peer.send({104, 3, 97, 200, 97, 1, 97, 2}, {97, 5});
  peer.send(control([&](etf::Writer& out) {
    dist::append_group_leader(out, peer.pid(), node.pid_of("net_kernel"));
  }));
  CHECK(peer.barrier().empty());
  CHECK(node.node->counters().unknown_controls == 2);
  CHECK(node.node->counters().frames_rejected.load() == 0);
}

TEST_CASE("a link whose stream cannot be trusted any more is closed, and no other", "[node]") {
  TestNode node;
  Peer other(node, {.name = "other@127.0.0.1"});
  Peer peer(node);
  SECTION("a frame of no known kind") { peer.send_raw(framed({1, 2, 3})); }
  SECTION("a control message that is no tuple") { peer.send({97, 1}); }
  SECTION("a control message cut short") { peer.send_raw(framed({131, 68, 0, 104, 3, 97})); }
  SECTION("a message cut short") {
    peer.send_raw(framed(joined({131, 68, 0}, control([&](etf::Writer& out) {
                                  dist::append_payload_exit2(out, peer.pid(),
                                                             node.pid_of("net_kernel"));
                                }))));
  }
  SECTION("a fragment out of order") {
    peer.send_raw(framed({131, 70, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 1, 2, 3}));
  }
  CHECK(peer.closed());
  CHECK(node.recorder.next("down").peer == "peer@127.0.0.1");
  CHECK(node.node->counters().frames_rejected.load() == 1);
  CHECK(other.barrier().empty());
}
