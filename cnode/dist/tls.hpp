// Tls: distribution inside TLS, as a BEAM with `-proto_dist inet_tls` speaks it. Both sides show a
// certificate and ask for the other's.
//
// Files are read anew before a handshake when they have changed; links that stand keep what they
// were opened with. A set of files that does not fit together (half of it is new) changes nothing.
#pragma once

#include <asio/ip/tcp.hpp>
#include <asio/ssl/context.hpp>
#include <asio/ssl/error.hpp>
#include <asio/ssl/stream.hpp>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "cnode/base/file.hpp"
#include "cnode/base/result.hpp"
#include "cnode/dist/transport.hpp"

namespace dist {

struct TlsFiles {
  std::string certificate;  // PEM: ours first, then those between it and the authority's
  std::string key;          // PEM, without a passphrase, closed to others
  std::string authorities;  // PEM: who may have signed a peer's
  bool check_host = true;   // a peer's certificate has to name the host part of its node name
};

class Tls {
 public:
  using Stream = asio::ssl::stream<asio::ip::tcp::socket>;

  explicit Tls(TlsFiles files);  // std::runtime_error naming the setting at fault

  // Reactor.
  Stream accept(asio::ip::tcp::socket socket);
  Stream connect(asio::ip::tcp::socket socket, const std::string& host);
  // Whether the certificate the peer has shown is for this node's host.
  bool vouches_for(Stream& stream, std::string_view node) const;

  // When our certificate ends, in seconds since 1970. Any thread.
  std::int64_t expires() const { return expires_.load(std::memory_order_relaxed); }

  // Why a handshake failed, in OpenSSL's words for it.
  static std::string reason(Stream& stream, asio::error_code error);

 private:
  struct Loaded {
    asio::ssl::context context;
    std::int64_t expires;
  };
  using Stamps = std::array<base::FileStamp, 3>;

  Loaded load() const;
  Stamps stamps() const;
  asio::ssl::context& current();

  const TlsFiles files_;
  Stamps stamps_;
  Loaded loaded_;
  std::atomic<std::int64_t> expires_;
};

struct TlsTransport {
  using Stream = Tls::Stream;
  static constexpr std::size_t kHandshakeHeader = 4;
  static constexpr bool kGathers = false;  // one buffer becomes one record

  static asio::ip::tcp::socket& socket(Stream& stream) { return stream.next_layer(); }
  static int direct_descriptor(Stream&) { return -1; }
  // A BEAM that dies says no goodbye inside TLS either.
  static bool ended(const asio::error_code& error) {
    return error == asio::error::eof || error == asio::ssl::error::stream_truncated;
  }
};

}  // namespace dist
