#include <string>
#include <string_view>

#include "catch.hpp"
#include "cnode/web/proxy_header.hpp"

using web::ProxyHeader;
using web::read_proxy_header;
using State = ProxyHeader::State;

namespace {

const std::string kSignature("\r\n\r\n\0\r\nQUIT\n", 12);

std::string binary(char version, char family, const std::string& body) {
  std::string bytes = kSignature + version + family;
  bytes += static_cast<char>(body.size() >> 8U);
  bytes += static_cast<char>(body.size() & 0xffU);
  return bytes + body;
}

}  // namespace

TEST_CASE("a header of version 1 says who the client is", "[web]") {
  const auto four = read_proxy_header("PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\nGET");
  CHECK(four.state == State::kDone);
  CHECK(four.used == 45);
  CHECK(four.known);
  CHECK(four.client == "192.0.2.1");
  CHECK(four.client_port == 56324);
  CHECK(four.server == "198.51.100.2");
  CHECK(four.server_port == 443);
  const auto six = read_proxy_header("PROXY TCP6 2001:db8::1 ::1 1 65535\r\n");
  CHECK(six.client == "2001:db8::1");
  CHECK(six.server_port == 65535);
  const auto unknown = read_proxy_header("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n");
  CHECK(unknown.state == State::kDone);
  CHECK_FALSE(unknown.known);
}

TEST_CASE("a header of version 2 says who the client is", "[web]") {
  const std::string body = std::string("\xc0\x00\x02\x01\xc6\x33\x64\x02\xdc\x04\x01\xbb", 12);
  const auto four =
      read_proxy_header(binary('\x21', '\x11', body + std::string("\x04\x00\x01x", 4)) + "GET");
  CHECK(four.state == State::kDone);
  CHECK(four.used == 16 + 12 + 4);
  CHECK(four.client == "192.0.2.1");
  CHECK(four.client_port == 56324);
  CHECK(four.server_port == 443);
  const auto local = read_proxy_header(binary('\x20', '\x00', ""));
  CHECK(local.state == State::kDone);
  CHECK_FALSE(local.known);
  const auto six = read_proxy_header(
      binary('\x21', '\x21', std::string(31, '\0') + "\x01" + std::string(4, '\0')));
  CHECK(six.client == "::");
  CHECK(six.server == "::1");
  CHECK_FALSE(read_proxy_header(binary('\x21', '\x31', std::string(216, 'a'))).known);
}

TEST_CASE("a header that has not come whole is waited for, wherever it is cut", "[web]") {
  const std::string text = "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n";
  for (std::size_t size = 0; size < text.size(); ++size)
    CHECK(read_proxy_header(text.substr(0, size)).state == State::kMore);
  const std::string bytes = binary('\x21', '\x11', std::string(12, '\1'));
  for (std::size_t size = 0; size < bytes.size(); ++size)
    CHECK(read_proxy_header(bytes.substr(0, size)).state == State::kMore);
}

TEST_CASE("what is no header of the protocol is refused", "[web]") {
  for (const std::string& bad :
       {std::string("GET / HTTP/1.1\r\n"), std::string("PROXY TCP5 1.1.1.1 1.1.1.1 1 1\r\n"),
        std::string("PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n"),
        std::string("PROXY TCP4 1.1.1.1 1.1.1.1 1 1 1\r\n"),
        std::string("PROXY TCP4 1.1.1.256 1.1.1.1 1 1\r\n"),
        std::string("PROXY TCP4 ::1 ::1 1 1\r\n"),
        std::string("PROXY TCP4 1.1.1.1 1.1.1.1 65536 1\r\n"),
        std::string("PROXY TCP4 1.1.1.1 1.1.1.1 01 1\r\n"),
        std::string("PROXY TCP4 1.1.1.1 1.1.1.1 -1 1\r\n"), "PROXY " + std::string(200, 'a'),
        binary('\x11', '\x11', std::string(12, '\0')),
        binary('\x22', '\x11', std::string(12, '\0')),
        binary('\x21', '\x11', std::string(11, '\0'))})
    CHECK(read_proxy_header(bad).state == State::kBad);
}
