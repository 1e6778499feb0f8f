// The port mapper inside the node, spoken to by our own client and by hand.
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>

#include <string>
#include <vector>

#include "cnode/dist/epmd.hpp"
#include "cnode/dist/epmd_server.hpp"
#include "tests/cpp/catch.hpp"
#include "tests/cpp/node_support.hpp"

using namespace node_support;

namespace {

dist::EpmdServer::Limits quick() {
  dist::EpmdServer::Limits limits;
  limits.request = std::chrono::milliseconds(200);
  limits.clients = 4;
  return limits;
}

class Server {
 public:
  Server() : server_(reactor_.context().get_executor(), quick()) {
    spdlog::set_level(spdlog::level::off);
    reactor_.run([&] {
      const auto status = server_.start({}, 0);
      if (!status) throw std::runtime_error(status.error().detail);
      if (!server_.add_own("self", 4000)) throw std::runtime_error("taken");
    });
  }
  ~Server() { reactor_.stop(); }
  std::uint16_t port() const { return server_.port(); }
  void run(std::function<void()> what) { reactor_.run(std::move(what)); }
  dist::EpmdServer& server() { return server_; }

  // What it answers until it closes, or falls silent for a while after an answer.
  Bytes ask(const Bytes& request) const {
    const Descriptor socket = connect_to(port());
    send_packet(socket.get(), request);
    return until_closed(socket.get());
  }
  static Bytes until_closed(int socket) {
    Bytes all;
    std::array<std::uint8_t, 256> room{};
    for (;;) {
      if (!readable(socket)) return all;
      const auto count = ::recv(socket, room.data(), room.size(), 0);
      if (count <= 0) return all;
      all.insert(all.end(), room.begin(), room.begin() + count);
    }
  }
  std::string names() const {
    const Bytes answer = ask({'n'});
    return answer.size() < 4 ? "" : std::string(answer.begin() + 4, answer.end());
  }

 private:
  Reactor reactor_;
  dist::EpmdServer server_;
};

Bytes alive(const std::string& name, std::uint8_t version = 6) {
  Bytes bytes{120, 0x10, 0x68, 77, 0, 0, version, 0, 5, 0, static_cast<std::uint8_t>(name.size())};
  return joined(joined(std::move(bytes), as_bytes(name)), {0, 0});
}

}  // namespace

TEST_CASE("a node is known for as long as its connection stands", "[epmd_server]") {
  Server server;
  {
    const Descriptor node = connect_to(server.port());
    send_packet(node.get(), alive("beam"));
    const Bytes answer = read_exactly(node.get(), 6);
    CHECK(Bytes(answer.begin(), answer.begin() + 2) == Bytes{118, 0});
    CHECK(server.names() == "name beam at port 4200\nname self at port 4000\n");
  }
  CHECK(eventually([&] { return server.names() == "name self at port 4000\n"; }));
}

TEST_CASE("a node's port is told with what it registered, and an unknown one is unknown",
          "[epmd_server]") {
  Server server;
  CHECK(server.ask(joined({122}, as_bytes("self"))) ==
        Bytes{119, 0, 0x0F, 0xA0, 72, 0, 0, 6, 0, 6, 0, 4, 's', 'e', 'l', 'f', 0, 0});
  CHECK(server.ask(joined({122}, as_bytes("nobody"))) == Bytes{119, 1});
}

TEST_CASE("a name that is taken is refused, in the form of the asker's version", "[epmd_server]") {
  Server server;
  CHECK(server.ask(alive("self")) == Bytes{118, 1, 0, 0, 0, 0});
  CHECK(server.ask(alive("self", 5)) == Bytes{121, 1, 0, 0});
}

TEST_CASE("requests that are none are closed without an answer, and so are orders",
          "[epmd_server]") {
  Server server;
  Bytes zero = alive("x");
  zero[1] = zero[2] = 0;  // port 0
  Bytes cut = alive("name");
  cut.resize(12);
  for (const Bytes& request :
       {Bytes{}, Bytes(1025, 'x'), Bytes{'k'}, Bytes{'s', 'x'}, Bytes{'d'}, Bytes{122},
        Bytes{122, 'a', '\n', 'b'}, Bytes{122, 0xff, 0xfe}, alive(""), alive("a b"), zero, cut}) {
    CAPTURE(request);
    CHECK(server.ask(request).empty());
  }
  CHECK(server.names() == "name self at port 4000\n");
}

TEST_CASE("who says nothing is ended after its time, and more than the bound are not served",
          "[epmd_server]") {
  Server server;
  std::vector<Descriptor> silent;
  for (int i = 0; i < 4; ++i) silent.push_back(connect_to(server.port()));
  CHECK(eventually([&] { return server.names() == "name self at port 4000\n"; }));
  for (const auto& socket : silent) CHECK(Server::until_closed(socket.get()).empty());
}

TEST_CASE("a port that is taken is an error, and nothing is served", "[epmd_server]") {
  Listener taken;
  Reactor reactor;
  dist::EpmdServer server(reactor.context().get_executor());
  reactor.run([&] { CHECK_FALSE(server.start({}, taken.port()).ok()); });
  CHECK_FALSE(server.serving());
}

TEST_CASE("of nodes that find no epmd the first is it, and the others register with it",
          "[epmd_server]") {
  const std::uint16_t port = free_port();
  const auto config = [&](const std::string& name) {
    auto made = config_of(name);
    made.epmd_use = dist::EpmdUse::kAuto;
    made.epmd.port = port;
    return made;
  };
  TestNode first(config("first@127.0.0.1"));
  CHECK(eventually([&] { return first.node->registered(); }));
  TestNode second(config("second@127.0.0.1"));
  CHECK(eventually([&] { return second.node->registered(); }));
  auto dialling = config_of("third@127.0.0.1");
  dialling.epmd.port = port;
  dialling.peers = {{"first@127.0.0.1", 0}, {"second@127.0.0.1", 0}};
  TestNode third(dialling);
  CHECK(eventually([&] { return third.node->peers().size() == 2; }));
}
