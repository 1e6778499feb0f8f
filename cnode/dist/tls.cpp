#include "cnode/dist/tls.hpp"

#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <ctime>
#include <functional>
#include <stdexcept>
#include <utility>

#include "cnode/base/log.hpp"

namespace dist {
namespace {

using asio::ip::tcp;

bool is_address(const std::string& host) {
  std::array<unsigned char, sizeof(in6_addr)> room{};
  return inet_pton(AF_INET, host.c_str(), room.data()) == 1 ||
         inet_pton(AF_INET6, host.c_str(), room.data()) == 1;
}

std::int64_t end_of(const X509* certificate) {
  std::tm end{};
  if (certificate == nullptr || ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &end) != 1)
    return 0;
  return timegm(&end);
}

}  // namespace

Tls::Tls(TlsFiles files)
    : files_(std::move(files)), stamps_(stamps()), loaded_(load()), expires_(loaded_.expires) {}

Tls::Stamps Tls::stamps() const {
  return {base::FileStamp::of(files_.certificate), base::FileStamp::of(files_.key),
          base::FileStamp::of(files_.authorities)};
}

Tls::Loaded Tls::load() const {
  const auto file = [](const char* setting, const std::string& path,
                       const std::function<void(asio::error_code&)>& use) {
    asio::error_code error;
    if (!base::FileStamp::of(path).found())
      throw std::runtime_error(std::string(setting) + ": cannot read '" + path + "'");
    use(error);
    if (error)
      throw std::runtime_error(std::string(setting) + ": '" + path + "': " + error.message());
  };
  asio::ssl::context context(asio::ssl::context::tls);
  SSL_CTX* native = context.native_handle();
  SSL_CTX_set_min_proto_version(native, TLS1_2_VERSION);
  // A resumed session would outlive the authority that vouched for its certificate.
  SSL_CTX_set_session_cache_mode(native, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_options(native, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_num_tickets(native, 0);
  context.set_verify_mode(asio::ssl::verify_peer | asio::ssl::verify_fail_if_no_peer_cert);
  // Without this a key with a passphrase asks for it on the terminal.
  context.set_password_callback(
      [](std::size_t, asio::ssl::context::password_purpose) { return std::string(); });
  file("tls-cert", files_.certificate, [&](asio::error_code& error) {
    context.use_certificate_chain_file(files_.certificate, error);
  });
  if (base::open_to_others(files_.key))
    throw std::runtime_error("tls-key: '" + files_.key + "' can be read by others; make it 0400");
  file("tls-key", files_.key, [&](asio::error_code& error) {
    context.use_private_key_file(files_.key, asio::ssl::context::pem, error);
  });
  file("tls-ca", files_.authorities,
       [&](asio::error_code& error) { context.load_verify_file(files_.authorities, error); });
  const std::int64_t expires = end_of(SSL_CTX_get0_certificate(native));
  return {std::move(context), expires};
}

asio::ssl::context& Tls::current() {
  const Stamps now = stamps();
  if (now == stamps_) return loaded_.context;
  stamps_ = now;  // whatever is wrong with them is told once
  try {
    loaded_ = load();
    expires_.store(loaded_.expires, std::memory_order_relaxed);
    spdlog::info("certificates were read anew: new links use them");
  } catch (const std::exception& error) {
    spdlog::warn("{}; the certificates stay as they were", error.what());
  }
  return loaded_.context;
}

Tls::Stream Tls::accept(tcp::socket socket) { return {std::move(socket), current()}; }

Tls::Stream Tls::connect(tcp::socket socket, const std::string& host) {
  Stream stream(std::move(socket), current());
  if (!is_address(host)) SSL_set_tlsext_host_name(stream.native_handle(), host.c_str());
  return stream;
}

bool Tls::vouches_for(Stream& stream, std::string_view node) const {
  if (!files_.check_host) return true;
  const std::string host(node.substr(node.find('@') + 1));
  const std::unique_ptr<X509, decltype(&X509_free)> certificate(
      SSL_get1_peer_certificate(stream.native_handle()), &X509_free);
  if (!certificate || host.empty()) return false;
  if (is_address(host) && X509_check_ip_asc(certificate.get(), host.c_str(), 0) == 1) return true;
  // An address written as a name, too: OTP's own check knows no other.
  return X509_check_host(certificate.get(), host.data(), host.size(), 0, nullptr) == 1;
}

std::string Tls::reason(Stream& stream, asio::error_code error) {
  const long verified = SSL_get_verify_result(stream.native_handle());
  if (verified != X509_V_OK)
    return std::string("its certificate is refused: ") + X509_verify_cert_error_string(verified);
  return error.message();
}

}  // namespace dist
