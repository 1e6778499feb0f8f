// The epmd client against an epmd of the test's own, on loopback.
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>

#include <atomic>
#include <string>

#include "cnode/dist/epmd.hpp"
#include "tests/cpp/catch.hpp"
#include "tests/cpp/node_support.hpp"

using namespace node_support;

namespace {

// ALIVE2_REQ of a hidden node of protocol 6, without its length.
Bytes alive_request(std::uint16_t port, const std::string& alive) {
  Bytes bytes{120,
              static_cast<std::uint8_t>(port >> 8),
              static_cast<std::uint8_t>(port),
              72,
              0,
              0,
              6,
              0,
              6,
              0,
              static_cast<std::uint8_t>(alive.size())};
  return joined(joined(std::move(bytes), as_bytes(alive)), {0, 0});
}

const Bytes kRegistered{118, 0, 0, 0, 0, 9};  // ALIVE2_X_RESP
const Bytes kRegisteredOld{121, 0, 0, 3};     // ALIVE2_RESP
const Bytes kTaken{118, 1, 0, 0, 0, 0};

// A client that registers "node" on port 4711 with whoever listens at `port`.
class Client {
 public:
  explicit Client(std::uint16_t port)
      : client(reactor_.context().get_executor(), {"127.0.0.1", port}) {
    spdlog::set_level(spdlog::level::off);
    asio::co_spawn(reactor_.context(), client.keep_registered("node", 4711, [this] { ++refused; }),
                   asio::detached);
  }
  void stop() {
    reactor_.run([&] { client.stop(); });
  }
  ~Client() { reactor_.stop(); }

 private:
  Reactor reactor_;

 public:
  dist::EpmdClient client;
  std::atomic<int> refused{0};
};

// The port the client finds for "server", or the error it ends with.
std::string looked_up(Listener& epmd, const std::function<void(int)>& answer) {
  Reactor reactor;
  std::promise<std::string> promise;
  auto look = [&]() -> asio::awaitable<void> {
    auto found = co_await dist::EpmdClient::look_up("127.0.0.1", epmd.port(), "server");
    promise.set_value(found ? std::to_string(*found) : "error: " + found.error().message());
  };
  asio::co_spawn(reactor.context(), look(), asio::detached);
  {
    const Descriptor socket = epmd.accept();
    CHECK(read_packet(socket.get()) == joined({122}, as_bytes("server")));
    answer(socket.get());
  }
  auto result = promise.get_future();
  REQUIRE(result.wait_for(kDeadline) == std::future_status::ready);
  return result.get();
}

}  // namespace

TEST_CASE("a node registers with its name and port, and stays so while epmd does",
          "[epmd_client]") {
  Listener epmd;
  Client client(epmd.port());
  const Descriptor socket = epmd.accept();
  CHECK(read_packet(socket.get()) == alive_request(4711, "node"));
  CHECK_FALSE(client.client.registered());
  SECTION("answered as by epmd since OTP 23") { write_all(socket.get(), kRegistered); }
  SECTION("answered as by older ones") { write_all(socket.get(), kRegisteredOld); }
  SECTION("answered byte by byte") {
    for (const std::uint8_t byte : kRegistered) {
      write_all(socket.get(), Bytes{byte});
      ::usleep(2000);
    }
  }
  CHECK(eventually([&] { return client.client.registered(); }));
  CHECK_FALSE(readable(socket.get(), 50ms));  // neither more bytes nor the end
  client.stop();
  CHECK(read_exactly(socket.get(), 1).empty());
  CHECK(client.refused == 0);
}

TEST_CASE("a node that was dropped by epmd registers again", "[epmd_client]") {
  Listener epmd;
  Client client(epmd.port());
  {
    const Descriptor socket = epmd.accept();
    read_packet(socket.get());
    write_all(socket.get(), kRegistered);
    REQUIRE(eventually([&] { return client.client.registered(); }));
  }
  REQUIRE(eventually([&] { return !client.client.registered(); }));
  const Descriptor again = epmd.accept();
  CHECK(read_packet(again.get()) == alive_request(4711, "node"));
  write_all(again.get(), kRegistered);
  CHECK(eventually([&] { return client.client.registered(); }));
}

TEST_CASE("what is no answer of epmd is no registration, and the node tries again",
          "[epmd_client]") {
  Listener epmd;
  Client client(epmd.port());
  Bytes answer;
  SECTION("garbage") { answer = as_bytes("HTTP/1.1 400 Bad Request\r\n\r\n"); }
  SECTION("an answer cut short") { answer = {118, 0}; }
  SECTION("nothing"){} {
    const Descriptor socket = epmd.accept();
    read_packet(socket.get());
    write_all(socket.get(), answer);
  }
  const Descriptor again = epmd.accept();
  CHECK_FALSE(client.client.registered());
  CHECK(read_packet(again.get()) == alive_request(4711, "node"));
  write_all(again.get(), kRegistered);
  CHECK(eventually([&] { return client.client.registered(); }));
}

TEST_CASE("a name that another holds for five seconds is told once, and no longer asked for",
          "[epmd_client]") {
  Listener epmd;
  Client client(epmd.port());
  const auto begin = std::chrono::steady_clock::now();
  int attempts = 0;
  while (client.refused == 0 && std::chrono::steady_clock::now() - begin < kDeadline) {
    const Descriptor socket = epmd.accept();
    read_packet(socket.get());
    write_all(socket.get(), kTaken);
    ++attempts;
    eventually([&] {
      return client.refused > 0 || readable(socket.get(), 0ms);
    });  // told, or closed to try again
  }
  CHECK(client.refused == 1);
  CHECK(attempts > 2);
  CHECK(std::chrono::steady_clock::now() - begin >= 5s);
  CHECK_FALSE(client.client.registered());
}

TEST_CASE("a node that stops before epmd answers leaves at once", "[epmd_client]") {
  Listener epmd;
  Client client(epmd.port());
  const Descriptor socket = epmd.accept();
  read_packet(socket.get());
  client.stop();
  CHECK(read_exactly(socket.get(), 1).empty());
  CHECK_FALSE(client.client.registered());
}

TEST_CASE("a peer's port is asked for by its name", "[epmd_client]") {
  Listener epmd;
  const Bytes found = joined(Bytes{119, 0, 0x12, 0x34, 77, 0, 0, 6, 0, 5, 0, 6},
                             joined(as_bytes("server"), {0, 0}));
  SECTION("answered at once") {
    CHECK(looked_up(epmd, [&](int socket) { write_all(socket, found); }) == std::to_string(0x1234));
  }
  SECTION("answered byte by byte") {
    CHECK(looked_up(epmd, [&](int socket) {
            for (const std::uint8_t byte : found) write_all(socket, Bytes{byte});
          }) == std::to_string(0x1234));
  }
  SECTION("unknown to epmd") {
    CHECK(looked_up(epmd, [](int socket) {
            write_all(socket, Bytes{119, 1});
          }).find("does not know server") != std::string::npos);
  }
  SECTION("cut short") {
    CHECK(looked_up(epmd, [&](int socket) {
            write_all(socket, Bytes(found.begin(), found.begin() + 9));
          }).find("error") == 0);
  }
  SECTION("answered with garbage") {
    CHECK(looked_up(epmd, [](int socket) {
            write_all(socket, as_bytes("HTTP/1.1 200 OK\r\n\r\n"));
          }).find("error") == 0);
  }
  SECTION("not answered") {
    CHECK(looked_up(epmd, [](int) {}).find("error") == 0);
  }
}

TEST_CASE("an epmd that is not there is an error, not a wait", "[epmd_client]") {
  Reactor reactor;
  std::promise<std::string> promise;
  const std::uint16_t nobody = free_port();
  auto look = [&]() -> asio::awaitable<void> {
    auto found = co_await dist::EpmdClient::look_up("127.0.0.1", nobody, "server");
    promise.set_value(found ? "found" : found.error().message());
  };
  asio::co_spawn(reactor.context(), look(), asio::detached);
  auto result = promise.get_future();
  REQUIRE(result.wait_for(kDeadline) == std::future_status::ready);
  CHECK(result.get().find(std::to_string(nobody)) != std::string::npos);
}

TEST_CASE("a node finds the peer it dials through epmd, and is registered itself",
          "[epmd_client]") {
  Listener epmd;
  Listener peer_socket;
  auto config = config_of("node@127.0.0.1");
  config.epmd_use = dist::EpmdUse::kExternal;
  config.epmd.port = epmd.port();
  config.peers.push_back({"peer@127.0.0.1", 0});
  TestNode node(config);
  Descriptor registration;
  for (int i = 0; i < 2; ++i) {
    Descriptor socket = epmd.accept();
    const Bytes request = read_packet(socket.get());
    REQUIRE_FALSE(request.empty());
    if (request[0] == 120) {
      CHECK(request == alive_request(node.port(), "node"));
      write_all(socket.get(), kRegistered);
      registration = std::move(socket);
    } else {
      CHECK(request == joined({122}, as_bytes("peer")));
      Bytes found{119, 0, 0, 0, 77, 0, 0, 6, 0, 5, 0, 4};
      etf::write_u16(found.data() + 2, peer_socket.port());
      write_all(socket.get(), joined(joined(std::move(found), as_bytes("peer")), {0, 0}));
    }
  }
  Peer peer(peer_socket.accept(), {}, dist::Handshake::Role::kAcceptor);
  CHECK(node.recorder.next("up").peer == "peer@127.0.0.1");
  CHECK(eventually([&] { return node.node->registered(); }));
  node.run([&] { node.node->stop_accepting(); });
  CHECK(read_exactly(registration.get(), 1).empty());
}
