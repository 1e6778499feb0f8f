// echo_floor: what an echo costs without any event loop or Python, the floor below every echo row.
// One thread, one epoll set, one system call to read and one to write.
//
//   echo_floor tcp | echo_floor unix PATH | echo_floor udp      prints where it listens
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

int main(int argc, char** argv) {
  const std::string_view kind = argc > 1 ? argv[1] : "";
  const int family = kind == "unix" ? AF_UNIX : AF_INET;
  const int listener = ::socket(family, kind == "udp" ? SOCK_DGRAM : SOCK_STREAM, 0);
  sockaddr_in inet{};
  inet.sin_family = AF_INET;
  inet.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  sockaddr_un local{};
  local.sun_family = AF_UNIX;
  if (argc > 2) std::string_view(argv[2]).copy(local.sun_path, sizeof local.sun_path - 1);
  auto* address =
      family == AF_UNIX ? reinterpret_cast<sockaddr*>(&local) : reinterpret_cast<sockaddr*>(&inet);
  socklen_t length = family == AF_UNIX ? sizeof local : sizeof inet;
  if (::bind(listener, address, length) != 0) return std::perror("echo_floor"), 1;
  if (kind != "udp") ::listen(listener, 1024);
  ::getsockname(listener, address, &length);
  std::printf("at %s\n",
              family == AF_UNIX ? argv[2] : std::to_string(ntohs(inet.sin_port)).c_str());
  std::fflush(stdout);

  const int poll = ::epoll_create1(0);
  const auto watch = [poll](int fd) {
    epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
    ::epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
  };
  watch(listener);
  // Just behind the start of a page, where malloc would put it, the kernel's copying takes twice as
  // long on some processors.
  alignas(4096) static std::array<char, 256 * 1024> buffer;
  std::vector<epoll_event> events(256);
  for (;;) {
    const int ready = ::epoll_wait(poll, events.data(), static_cast<int>(events.size()), -1);
    for (int at = 0; at < ready; ++at) {
      const int fd = events[static_cast<std::size_t>(at)].data.fd;
      if (fd == listener && kind != "udp") {
        const int peer = ::accept(listener, nullptr, nullptr);
        const int one = 1;
        if (family == AF_INET) ::setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        watch(peer);
        continue;
      }
      sockaddr_in from{};
      socklen_t size = sizeof from;
      auto* who = reinterpret_cast<sockaddr*>(&from);
      const bool datagram = kind == "udp";
      const ssize_t got = datagram ? ::recvfrom(fd, buffer.data(), buffer.size(), 0, who, &size)
                                   : ::recv(fd, buffer.data(), buffer.size(), 0);
      if (got <= 0 && !datagram) {
        ::close(fd);
      } else if (got > 0) {  // a socket that blocks: a long answer waits for its reader here
        ::sendto(fd, buffer.data(), static_cast<std::size_t>(got), MSG_NOSIGNAL,
                 datagram ? who : nullptr, datagram ? size : 0);
      }
    }
  }
}
