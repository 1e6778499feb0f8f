// TcpTransport: what a connection runs over. TlsTransport (tls.hpp) has the same shape.
#pragma once

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <asio/ip/tcp.hpp>

#include <cstddef>

#include "cnode/base/fork.hpp"

namespace dist {

struct TcpTransport {
  using Stream = asio::ip::tcp::socket;
  // Bytes of the length in front of a handshake packet: 2 on plain TCP, 4 inside TLS.
  static constexpr std::size_t kHandshakeHeader = 2;
  static constexpr bool kGathers = true;  // one write takes many buffers

  static asio::ip::tcp::socket& socket(Stream& stream) { return stream; }
  // The descriptor a sender may write to from its own thread; -1 where the bytes have to be
  // encrypted first.
  static int direct_descriptor(Stream& stream) { return stream.native_handle(); }
  // Whether a read ended because the peer has closed.
  static bool ended(const asio::error_code& error) { return error == asio::error::eof; }
};

inline void configure(asio::ip::tcp::socket& socket) {
  asio::error_code ignored;
  base::close_in_children(socket.native_handle());
  socket.non_blocking(true, ignored);
  socket.set_option(asio::ip::tcp::no_delay(true), ignored);
  socket.set_option(asio::socket_base::keep_alive(true), ignored);
  // Small frames must not wait in the kernel behind megabytes of large ones.
  const int unsent = 128 * 1024;
  ::setsockopt(socket.native_handle(), IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
  const unsigned user_timeout_ms = 60'000;
  ::setsockopt(socket.native_handle(), IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout_ms,
               sizeof user_timeout_ms);
}

}  // namespace dist
