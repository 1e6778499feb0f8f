#include "cnode/web/proxy_header.hpp"

#include <arpa/inet.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <optional>

namespace web {
namespace {

constexpr std::string_view kSignature{"\r\n\r\n\0\r\nQUIT\n", 12};
constexpr std::size_t kMaxText = 107;  // the longest line of version 1, with its end
constexpr std::size_t kHead = 16;

ProxyHeader bad() {
  ProxyHeader header;
  header.state = ProxyHeader::State::kBad;
  return header;
}

std::optional<std::uint16_t> port_of(std::string_view text) {
  unsigned port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  const bool padded = text.size() > 1 && text.front() == '0';
  if (error != std::errc{} || end != text.data() + text.size() || port > 65535 || padded)
    return std::nullopt;
  return static_cast<std::uint16_t>(port);
}

bool is_address(int family, const std::string& text) {
  std::array<unsigned char, sizeof(in6_addr)> room{};
  return inet_pton(family, text.c_str(), room.data()) == 1;
}

ProxyHeader read_text(std::string_view bytes) {
  const std::size_t end = bytes.substr(0, kMaxText).find("\r\n");
  if (end == std::string_view::npos) return bytes.size() >= kMaxText ? bad() : ProxyHeader{};
  ProxyHeader header;
  header.state = ProxyHeader::State::kDone;
  header.used = end + 2;
  std::string_view line = bytes.substr(0, end);
  if (line == "PROXY UNKNOWN" || line.starts_with("PROXY UNKNOWN ")) return header;
  std::array<std::string_view, 6> words;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::size_t space = line.find(' ');
    if ((space == std::string_view::npos) != (i + 1 == words.size())) return bad();
    words.at(i) = line.substr(0, space);
    if (space != std::string_view::npos) line.remove_prefix(space + 1);
  }
  const auto& [proxy, family, client, server, client_port, server_port] = words;
  if (proxy != "PROXY" || (family != "TCP4" && family != "TCP6")) return bad();
  const int kind = family == "TCP4" ? AF_INET : AF_INET6;
  header.client = client;
  header.server = server;
  const auto from = port_of(client_port), to = port_of(server_port);
  if (!from || !to || !is_address(kind, header.client) || !is_address(kind, header.server))
    return bad();
  header.client_port = *from;
  header.server_port = *to;
  header.known = true;
  return header;
}

std::string address_at(int family, const char* place) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  inet_ntop(family, place, text.data(), text.size());
  return text.data();
}

std::uint16_t number_at(const char* place) {
  std::uint16_t number = 0;
  std::memcpy(&number, place, sizeof number);
  return ntohs(number);
}

ProxyHeader read_binary(std::string_view bytes) {
  if (bytes.size() < kHead) return {};
  const auto version = static_cast<unsigned char>(bytes[12]);
  const auto family = static_cast<unsigned char>(bytes[13]) >> 4U;
  const std::size_t length = number_at(bytes.data() + 14);
  if (version != 0x20 && version != 0x21) return bad();
  if (bytes.size() < kHead + length) return {};
  ProxyHeader header;
  header.state = ProxyHeader::State::kDone;
  header.used = kHead + length;
  if (version == 0x20) return header;  // LOCAL: the proxy speaks for itself
  const char* place = bytes.data() + kHead;
  const std::size_t size = family == 1 ? 4 : family == 2 ? 16 : 0;
  if (size == 0) return header;  // UNSPEC, or a Unix socket
  if (length < 2 * size + 4) return bad();
  const int kind = family == 1 ? AF_INET : AF_INET6;
  header.client = address_at(kind, place);
  header.server = address_at(kind, place + size);
  header.client_port = number_at(place + 2 * size);
  header.server_port = number_at(place + 2 * size + 2);
  header.known = true;
  return header;
}

}  // namespace

ProxyHeader read_proxy_header(std::string_view bytes) {
  const std::size_t common = std::min(bytes.size(), kSignature.size());
  if (bytes.substr(0, common) == kSignature.substr(0, common))
    return common < kSignature.size() ? ProxyHeader{} : read_binary(bytes);
  constexpr std::string_view text = "PROXY ";
  const std::size_t begun = std::min(bytes.size(), text.size());
  if (bytes.substr(0, begun) != text.substr(0, begun)) return bad();
  return begun < text.size() ? ProxyHeader{} : read_text(bytes);
}

}  // namespace web
