// How nodes find each other: both roles of the handshake, its deadlines and bounds, and who wins
// when two links meet.
#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <vector>

#include "cnode/dist/digest.hpp"
#include "tests/cpp/catch.hpp"
#include "tests/cpp/node_support.hpp"

using namespace node_support;

namespace {

using Role = dist::Handshake::Role;

// The packet a node called `name` opens with.
Bytes name_packet(const std::string& name) {
  dist::HandshakeConfig config;
  config.name = name;
  config.creation = Peer::kCreation;
  config.cookie = [](std::string_view) { return std::string(kCookie); };
  return dist::Handshake(Role::kInitiator, config).start().send.at(0);
}

// Whether the other side has closed, or does so in time; what it sends before is passed over.
bool closed_by_peer(int socket) {
  std::array<std::uint8_t, 256> room{};
  for (;;) {
    if (!readable(socket)) return false;
    if (::recv(socket, room.data(), room.size(), 0) <= 0) return true;
  }
}

std::string failure_of(const TestNode& node, PeerOptions options) {
  try {
    Peer peer(node, std::move(options));
    return "no failure";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

dist::NodeConfig dialling(const std::string& name, const std::string& peer, std::uint16_t port) {
  auto config = config_of(name);
  config.peers.push_back({peer, port});
  return config;
}

bool linked(const TestNode& node, const std::string& peer) {
  return node.node->peers() == std::vector<std::string>{peer};
}

}  // namespace

// --- two nodes
// ---------------------------------------------------------------------------------------------------

TEST_CASE("two nodes with one cookie link up, and both tell their delegates", "[node]") {
  TestNode acceptor(config_of("b@127.0.0.1"));
  TestNode dialler(dialling("a@127.0.0.1", "b@127.0.0.1", acceptor.port()));
  CHECK(acceptor.recorder.next("up").peer == "a@127.0.0.1");
  CHECK(dialler.recorder.next("up").peer == "b@127.0.0.1");
  CHECK(acceptor.node->ready());
  CHECK(dialler.node->peers() == std::vector<std::string>{"b@127.0.0.1"});
}

TEST_CASE("processes of two nodes watch each other through their link", "[node]") {
  TestNode acceptor(config_of("b@127.0.0.1"));
  TestNode dialler(dialling("a@127.0.0.1", "b@127.0.0.1", acceptor.port()));
  acceptor.recorder.next("up");
  dialler.recorder.next("up");
  const auto owner = dialler.create();
  const auto watched = acceptor.create("server");
  const Bytes pid = acceptor.pid_of(watched);
  dialler.run([&] {
    auto& process = *dialler.node->processes().find(owner);
    // In this order: the answer to the last tells that all have arrived.
    etf::Reader in(pid);
    dialler.node->link(process, "b@127.0.0.1", *in.pid());
    dialler.node->monitor(process, "b@127.0.0.1", atom("server"), dialler.node->make_ref());
    dialler.node->monitor(process, "b@127.0.0.1", atom("nobody"), dialler.node->make_ref());
  });
  CHECK(dialler.recorder.next("DOWN").bytes == atom("noproc"));
  acceptor.exit(watched, atom("reason"));
  CHECK(dialler.recorder.next("DOWN").bytes == atom("reason"));
  const Event event = dialler.recorder.next("exit");
  CHECK(event.bytes == atom("reason"));
  CHECK(event.from == pid);
}

TEST_CASE("nodes with different cookies never link", "[node]") {
  TestNode acceptor(config_of("b@127.0.0.1"));
  auto config = dialling("a@127.0.0.1", "b@127.0.0.1", acceptor.port());
  config.cookie = "another cookie";
  TestNode dialler(config);
  CHECK(eventually([&] {
    return acceptor.node->counters().handshakes_failed.load() > 1 &&
           dialler.node->counters().handshakes_failed.load() > 1;
  }));
  CHECK(acceptor.recorder.count("up") == 0);
  CHECK(dialler.recorder.count("up") == 0);
}

TEST_CASE("a dialler waits for a node that is not there yet, and comes back when it was lost",
          "[node]") {
  const std::uint16_t port = free_port();
  auto config = config_of("b@127.0.0.1");
  config.first_port = port;
  TestNode dialler(dialling("a@127.0.0.1", "b@127.0.0.1", port));
  {
    TestNode acceptor(config);
    CHECK(dialler.recorder.next("up").peer == "b@127.0.0.1");
    acceptor.run([&] {
      acceptor.node->stop_accepting();
      acceptor.node->close_links("the test says so");
    });
    CHECK(dialler.recorder.next("down").peer == "b@127.0.0.1");
  }
  TestNode again(config);
  CHECK(dialler.recorder.next("up").peer == "b@127.0.0.1");
}

TEST_CASE("two nodes that dial each other at once end up with one link that works", "[node]") {
  for (int round = 0; round < 5; ++round) {
    const std::uint16_t port_a = free_port();
    const std::uint16_t port_b = free_port();
    auto config_a = dialling("a@127.0.0.1", "b@127.0.0.1", port_b);
    config_a.first_port = port_a;
    auto config_b = dialling("b@127.0.0.1", "a@127.0.0.1", port_a);
    config_b.first_port = port_b;
    TestNode a(config_a);
    TestNode b(config_b);
    const auto one_link = [](const TestNode& node) {
      const auto& counters = node.node->counters();
      return counters.links_opened - counters.links_closed == 1;
    };
    REQUIRE(eventually([&] {
      return linked(a, "b@127.0.0.1") && linked(b, "a@127.0.0.1") && one_link(a) && one_link(b);
    }));
    const auto owner = a.create();
    b.create("server");
    REQUIRE(eventually([&] {
      a.run([&] {
        a.node->monitor(*a.node->processes().find(owner), "b@127.0.0.1", atom("nobody"),
                        a.node->make_ref());
      });
      return a.recorder.next("DOWN").bytes == atom("noproc");
    }));
  }
}

// --- the handshake with a raw peer
// -------------------------------------------------------------------------------

TEST_CASE("a peer with another cookie is turned away before it is linked", "[node]") {
  TestNode node;
  CHECK(failure_of(node, {.cookie = "wrong"}) == "the node closed the connection");
  CHECK(eventually([&] { return node.node->counters().handshakes_failed.load() == 1; }));
  CHECK(node.recorder.count("up") == 0);
  CHECK(node.node->peers().empty());
}

TEST_CASE("a node that dials does not link to an acceptor with another cookie", "[node]") {
  Listener listener;
  TestNode node(dialling("node@127.0.0.1", "peer@127.0.0.1", listener.port()));
  CHECK_THROWS_AS(Peer(listener.accept(), {.cookie = "wrong"}, Role::kAcceptor),
                  std::runtime_error);
  CHECK(eventually([&] { return node.node->counters().handshakes_failed.load() > 0; }));
  CHECK(node.recorder.count("up") == 0);
}

TEST_CASE("a node that dials links to the peer that answers, and to no other", "[node]") {
  Listener listener;
  TestNode node(dialling("node@127.0.0.1", "peer@127.0.0.1", listener.port()));
  CHECK_THROWS_AS(Peer(listener.accept(), {.name = "other@127.0.0.1"}, Role::kAcceptor),
                  std::runtime_error);
  Peer peer(listener.accept(), {}, Role::kAcceptor);
  CHECK(node.recorder.next("up").peer == "peer@127.0.0.1");
  CHECK(peer.barrier().empty());
}

TEST_CASE("a peer that lacks what we need, or has our name, is told so", "[node]") {
  TestNode node;
  const std::string refused = "the peer does not allow our name or our flags";
  CHECK(failure_of(node, {.flags = dist::kOurFlags & ~dist::kUnlinkId}).find(refused) !=
        std::string::npos);
  CHECK(failure_of(node, {.name = "node@127.0.0.1"}).find(refused) != std::string::npos);
  CHECK(eventually([&] { return node.node->counters().handshakes_failed.load() == 2; }));
}

TEST_CASE("one peer more than the bound is not allowed, and may come when another has gone",
          "[node]") {
  auto config = config_of("node@127.0.0.1");
  config.max_links = 1;
  TestNode node(config);
  Peer first(node);
  first.barrier();
  CHECK(failure_of(node, {.name = "other@127.0.0.1"}).find("does not allow") != std::string::npos);
  first.close();
  node.recorder.next("down");
  Peer other(node, {.name = "other@127.0.0.1"});
  CHECK(other.barrier().empty());
}

TEST_CASE("a peer that comes again while its old link stands takes its place", "[node]") {
  TestNode node;
  const auto id = node.create();
  Peer old(node);
  node.recorder.next("up");
  old.send(
      Peer::control([&](etf::Writer& out) { dist::append_link(out, old.pid(), node.pid_of(id)); }));
  old.barrier();
  Peer again(node);
  CHECK(again.info().replaces_link);
  CHECK(node.recorder.next("up").peer == "peer@127.0.0.1");
  CHECK(node.recorder.count("down") == 1);  // the old link's end was told first
  CHECK(node.recorder.next("down").peer == "peer@127.0.0.1");
  CHECK(node.recorder.next("exit").bytes == atom("noconnection"));
  CHECK(old.closed());
  CHECK(again.barrier().empty());
  CHECK(linked(node, "peer@127.0.0.1"));
  CHECK(node.recorder.count("down") == 0);
}

TEST_CASE(
    "a second peer of the same name that keeps the old link is turned away, and the old one lives",
    "[node]") {
  TestNode node;
  Peer peer(node);
  peer.barrier();
  const Descriptor second = connect_to(node.port());
  send_packet(second.get(), name_packet("peer@127.0.0.1"));
  CHECK(text_of(read_packet(second.get())) == "salive");
  send_packet(second.get(), as_bytes("sfalse"));
  CHECK(closed_by_peer(second.get()));
  CHECK(peer.barrier().empty());
  CHECK(node.recorder.count("down") == 0);
}

TEST_CASE("of two dials at once the one of the greater name is kept", "[node]") {
  Listener listener;
  SECTION("ours: the peer is told so, and our dial goes on") {
    TestNode node(dialling("node@127.0.0.1", "a@127.0.0.1", listener.port()));
    Descriptor dialled = listener.accept();
    const Bytes opening = read_packet(dialled.get());
    REQUIRE(opening.size() > 15);
    const Descriptor dialling_socket = connect_to(node.port());
    send_packet(dialling_socket.get(), name_packet("a@127.0.0.1"));
    CHECK(text_of(read_packet(dialling_socket.get())) == "snok");
    CHECK(closed_by_peer(dialling_socket.get()));
    send_packet(dialled.get(), as_bytes("sok_simultaneous"));
    CHECK(read_exactly(dialled.get(), 0).empty());
    CHECK_FALSE(readable(dialled.get(), 0ms));
    CHECK(node.recorder.count("up") == 0);
  }
  SECTION("theirs: our dial is given up and the peer's becomes the link") {
    TestNode node(dialling("node@127.0.0.1", "z@127.0.0.1", listener.port()));
    Descriptor dialled = listener.accept();
    REQUIRE(read_packet(dialled.get()).size() > 15);
    Peer peer(node, {.name = "z@127.0.0.1"});
    CHECK(peer.info().simultaneous);
    CHECK(closed_by_peer(dialled.get()));
    CHECK(node.recorder.next("up").peer == "z@127.0.0.1");
    CHECK(peer.barrier().empty());
    CHECK(linked(node, "z@127.0.0.1"));
  }
}

TEST_CASE("a node with only a host is given name and creation by the peer it dials", "[node]") {
  Listener listener;
  auto config = dialling("127.0.0.1", "peer@127.0.0.1", listener.port());
  config.listens = false;
  TestNode node(config);
  CHECK(node.name().empty());
  const Descriptor socket = listener.accept();
  const Bytes opening = read_packet(socket.get());
  REQUIRE(opening.size() > 15);
  CHECK((etf::read_u64(opening.data() + 1) & dist::kNameMe) != 0);
  CHECK(Bytes(opening.begin() + 15, opening.end()) == as_bytes("127.0.0.1"));

  const std::string given = "gift@127.0.0.1";
  Bytes status = as_bytes("snamed:");
  status.resize(status.size() + 2);
  etf::write_u16(status.data() + 7, static_cast<std::uint16_t>(given.size()));
  status = joined(joined(std::move(status), as_bytes(given)), {0, 0, 1, 5});
  send_packet(socket.get(), status);
  Bytes challenge(19);
  challenge[0] = 'N';
  etf::write_u64(challenge.data() + 1, dist::kOurFlags);
  etf::write_u32(challenge.data() + 9, 1234);
  etf::write_u32(challenge.data() + 13, Peer::kCreation);
  etf::write_u16(challenge.data() + 17, 14);
  send_packet(socket.get(), joined(challenge, as_bytes("peer@127.0.0.1")));
  const Bytes reply = read_packet(socket.get());
  REQUIRE(reply.size() == 21);
  const auto expected = dist::digest(kCookie, 1234);
  CHECK(Bytes(reply.begin() + 5, reply.end()) == Bytes(expected.begin(), expected.end()));
  const auto proof = dist::digest(kCookie, etf::read_u32(reply.data() + 1));
  send_packet(socket.get(), joined({'a'}, Bytes(proof.begin(), proof.end())));

  CHECK(node.recorder.next("up").peer == "peer@127.0.0.1");
  CHECK(node.name() == given);
  CHECK(node.node->creation() == 0x105);
  const Bytes pid = node.pid_of("net_kernel");
  etf::Reader in(pid);
  const auto view = in.pid();
  REQUIRE(view.ok());
  CHECK(view->node == given);
  CHECK(view->creation == 0x105);
}

// --- deadlines and bounds
// ----------------------------------------------------------------------------------------

TEST_CASE("a handshake step that takes too long ends the connection", "[node]") {
  auto config = config_of("node@127.0.0.1");
  config.handshake_step = 200ms;
  TestNode node(config);
  const auto begin = std::chrono::steady_clock::now();
  const Descriptor socket = connect_to(node.port());
  SECTION("nothing is sent") {}
  SECTION("the first packet is never finished, however busily it trickles") {
    for (int i = 0; i < 100 && !readable(socket.get(), 20ms); ++i)
      write_all(socket.get(), Bytes{3});
  }
  SECTION("the name is sent and nothing more") {
    send_packet(socket.get(), name_packet("peer@127.0.0.1"));
  }
  CHECK(closed_by_peer(socket.get()));
  CHECK(std::chrono::steady_clock::now() - begin >= 190ms);
  CHECK(eventually([&] { return node.node->counters().handshakes_failed.load() == 1; }));
}

TEST_CASE("a dialled peer that never answers is given up after the step's time, and dialled again",
          "[node]") {
  Listener listener;
  auto config = dialling("node@127.0.0.1", "peer@127.0.0.1", listener.port());
  config.handshake_step = 200ms;
  TestNode node(config);
  const Descriptor silent = listener.accept();
  CHECK(closed_by_peer(silent.get()));
  Peer peer(listener.accept(), {}, Role::kAcceptor);
  CHECK(node.recorder.next("up").peer == "peer@127.0.0.1");
}

TEST_CASE("a handshake packet over the limit ends the connection unread", "[node]") {
  TestNode node;
  const Descriptor socket = connect_to(node.port());
  write_all(socket.get(), Bytes{0x04, 0x01});
  CHECK(closed_by_peer(socket.get()));
  CHECK(eventually([&] { return node.node->counters().handshakes_failed.load() == 1; }));
}

TEST_CASE("what is no handshake ends the connection", "[node]") {
  TestNode node;
  const Descriptor socket = connect_to(node.port());
  write_all(socket.get(), as_bytes(std::string("GET / HTTP/1.1\r\nHost: node\r\n\r\n") +
                                   std::string(20'000, 'x')));
  CHECK(closed_by_peer(socket.get()));
}

TEST_CASE("one half-open connection more than the bound ends the oldest, and the others may go on",
          "[node]") {
  auto config = config_of("node@127.0.0.1");
  config.max_pending = 3;
  TestNode node(config);
  std::vector<Descriptor> half_open;
  for (int i = 0; i < 3; ++i) {
    half_open.push_back(connect_to(node.port()));
    // The challenge says that the node counts this one.
    send_packet(half_open.back().get(), name_packet("half" + std::to_string(i) + "@127.0.0.1"));
    CHECK(text_of(read_packet(half_open.back().get())) == "sok");
    CHECK(read_packet(half_open.back().get()).at(0) == 'N');
  }
  Peer peer(node);
  CHECK(closed_by_peer(half_open[0].get()));
  CHECK_FALSE(readable(half_open[1].get(), 0ms));
  CHECK_FALSE(readable(half_open[2].get(), 0ms));
  CHECK(peer.barrier().empty());
}

// --- listening and stopping
// --------------------------------------------------------------------------------------

TEST_CASE("a node takes the first free port of its range, and says when there is none", "[node]") {
  auto config = config_of("node@127.0.0.1");
  config.listen = {"127.0.0.1"};
  Listener taken;
  config.first_port = taken.port();
  CHECK_THROWS_WITH(TestNode(config), ContainsSubstring("listen:") &&
                                          ContainsSubstring(std::to_string(taken.port())));
  config.last_port = static_cast<std::uint16_t>(std::min(taken.port() + 50, 65'535));
  TestNode node(config);
  CHECK(node.port() > taken.port());
  CHECK(node.port() <= config.last_port);
  CHECK(Peer(node).barrier().empty());
}

TEST_CASE("a host of several addresses is listened on at those this machine has", "[node]") {
  TestNode node(
      config_of("node@localhost"));  // which often has an IPv6 address where there is no IPv6
  CHECK(Peer(node).barrier().empty());
}

TEST_CASE("an address this machine does not have is named", "[node]") {
  auto config = config_of("node@127.0.0.1");
  config.listen = {"192.0.2.1"};
  CHECK_THROWS_WITH(TestNode(config),
                    ContainsSubstring("listen:") && ContainsSubstring("192.0.2.1"));
}

TEST_CASE("a node that stops takes no more peers and tells those it has by closing", "[node]") {
  TestNode node;
  Peer peer(node);
  peer.barrier();
  const Descriptor half_open = connect_to(node.port());
  send_packet(half_open.get(), name_packet("half@127.0.0.1"));
  CHECK(text_of(read_packet(half_open.get())) == "sok");
  node.run([&] { node.node->stop_accepting(); });
  CHECK(closed_by_peer(half_open.get()));
  CHECK_THROWS_AS(Peer(node, {.name = "late@127.0.0.1"}), std::runtime_error);
  CHECK(peer.barrier().empty());
  node.run([&] { node.node->close_links("the node stops"); });
  CHECK(peer.closed());
  CHECK(node.recorder.next("down").peer == "peer@127.0.0.1");
}

TEST_CASE("references of one node differ from each other", "[node]") {
  TestNode node;
  std::set<etf::Ref> refs;
  for (int i = 0; i < 300'000; ++i) refs.insert(node.node->make_ref());
  CHECK(refs.size() == 300'000);
  CHECK(refs.begin()->words[0] <= 0x3FFFF);
  CHECK(refs.rbegin()->words[0] <= 0x3FFFF);
}
