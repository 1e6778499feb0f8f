// sink_node: counts frames and does nothing else: what one link can carry at most, for the streams
// to be measured against. One peer at a time, a blocking recv into 1 MB, lengths parsed, no frame
// looked into.
//
// A burst ends when nothing came for a quarter of a second; then one line tells of it:
//
//   messages=1000000 bytes=98000000 seconds=4.321
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <stdexcept>
#include <vector>

#include "cnode/dist/epmd_protocol.hpp"
#include "cnode/dist/handshake.hpp"
#include "cnode/etf/reader.hpp"
#include "tests/bench/options.hpp"

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kQuietMs = 250;
constexpr std::size_t kReadSize = 1 << 20;

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {
    if (fd < 0) throw std::runtime_error("no socket");
  }
  ~Descriptor() { ::close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  operator int() const { return fd_; }  // NOLINT: it stands for the number

 private:
  int fd_;
};

sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

bool read_exactly(int fd, std::uint8_t* at, std::size_t size) {
  while (size > 0) {
    const ssize_t count = ::recv(fd, at, size, 0);
    if (count <= 0) return false;
    at += count;
    size -= static_cast<std::size_t>(count);
  }
  return true;
}

bool write_all(int fd, const std::uint8_t* at, std::size_t size) {
  return ::send(fd, at, size, MSG_NOSIGNAL) ==
         static_cast<ssize_t>(size);  // packets far below a socket's buffer
}

// Registered for as long as `epmd` stays open. The creation.
std::uint32_t register_name(int epmd, const bench::Options& options, std::uint16_t port) {
  const sockaddr_in address = loopback(options.epmd_port);
  if (::connect(epmd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    throw std::runtime_error("no epmd at port " + std::to_string(options.epmd_port));
  }
  const auto request =
      dist::encode_alive_request(options.name.substr(0, options.name.find('@')), port);
  if (!request || !write_all(epmd, request->data(), request->size()))
    throw std::runtime_error("cannot register");
  std::vector<std::uint8_t> received;
  for (;;) {
    received.emplace_back();
    if (!read_exactly(epmd, &received.back(), 1))
      throw std::runtime_error("epmd closed the connection");
    const auto reply = dist::parse_alive_reply({received.data(), received.size()});
    if (!reply) continue;
    if (reply->result != 0) throw std::runtime_error("the name is taken");
    return reply->creation;
  }
}

bool shake_hands(int fd, const bench::Options& options, std::uint32_t creation) {
  dist::HandshakeConfig config;
  config.name = options.name;
  config.creation = creation;
  config.cookie = [&](std::string_view) { return options.cookie; };
  dist::Handshake handshake(dist::Handshake::Role::kAcceptor, config);
  std::array<std::uint8_t, dist::kMaxHandshakePacket> packet{};
  for (;;) {
    if (!read_exactly(fd, packet.data(), 2)) return false;
    const std::size_t length = etf::read_u16(packet.data());
    if (length > packet.size() || !read_exactly(fd, packet.data(), length)) return false;
    auto step = handshake.on_packet({packet.data(), length});
    if (step && step->next == dist::Handshake::Step::Next::kNeedDecision)
      step = handshake.decide(dist::Decision::kOk);
    if (!step) return false;
    for (const auto& one : step->send) {
      std::vector<std::uint8_t> framed{static_cast<std::uint8_t>(one.size() >> 8),
                                       static_cast<std::uint8_t>(one.size())};
      framed.insert(framed.end(), one.begin(), one.end());
      if (!write_all(fd, framed.data(), framed.size())) return false;
    }
    if (step->next == dist::Handshake::Step::Next::kDone) return true;
  }
}

struct Burst {
  std::uint64_t messages = 0;
  std::uint64_t bytes = 0;
  Clock::time_point first;
  Clock::time_point last;

  void report() {
    const double seconds = std::chrono::duration<double>(last - first).count();
    std::printf("messages=%" PRIu64 " bytes=%" PRIu64 " seconds=%.6f\n", messages, bytes, seconds);
    std::fflush(stdout);
    *this = {};
  }
};

// Until the peer goes.
void count(int fd) {
  std::vector<std::uint8_t> buffer(kReadSize);
  std::size_t held = 0;
  std::size_t skip = 0;  // bytes of a frame whose beginning was counted
  Burst burst;
  for (int quiet = 0;;) {
    pollfd wait{fd, POLLIN, 0};
    // Looked at only when there is nothing: a busy link goes from recv to recv.
    ssize_t got = ::recv(fd, buffer.data() + held, buffer.size() - held, MSG_DONTWAIT);
    if (got < 0) {
      const int ready = ::poll(&wait, 1, kQuietMs);
      if (ready == 0) {
        if (burst.messages > 0) burst.report();
        constexpr std::array<std::uint8_t, 4> kTick{};
        if (++quiet % 40 == 0 && !write_all(fd, kTick.data(), kTick.size())) return;
      }
      continue;
    }
    if (got == 0) return;
    burst.last = Clock::now();
    if (burst.messages == 0) burst.first = burst.last;
    burst.bytes += static_cast<std::uint64_t>(got);
    held += static_cast<std::size_t>(got);
    std::size_t at = 0;
    while (at < held) {
      const std::size_t dropped = std::min(skip, held - at);
      at += dropped;
      skip -= dropped;
      if (held - at < 4) break;
      skip = etf::read_u32(buffer.data() + at);
      at += 4;
      if (skip > 0) ++burst.messages;
    }
    std::copy(buffer.begin() + static_cast<std::ptrdiff_t>(at),
              buffer.begin() + static_cast<std::ptrdiff_t>(held), buffer.begin());
    held -= at;
  }
}

int run(const bench::Options& options) {
  const Descriptor listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = loopback(0);
  socklen_t size = sizeof address;
  if (::bind(listener, reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
      ::listen(listener, 8) != 0 ||
      ::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throw std::runtime_error("cannot listen");
  }
  const Descriptor epmd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const std::uint32_t creation = register_name(epmd, options, ntohs(address.sin_port));
  for (;;) {
    const Descriptor peer(::accept(listener, nullptr, nullptr));
    const int one = 1;
    ::setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (shake_hands(peer, options, creation)) count(peer);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    signal(SIGPIPE, SIG_IGN);  // NOLINT: no handler, so nothing to be unsafe
    return run(bench::read_options(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "sink_node: %s\n", error.what());
    return 1;
  }
}
