#include <algorithm>
#include <string>
#include <vector>

#include "cnode/dist/epmd_protocol.hpp"
#include "tests/cpp/catch.hpp"

using base::ErrorCode;
using Bytes = std::vector<std::uint8_t>;

namespace {

// PORT2_RESP for "py" on port 41000: version 6 to 5, a normal node, no extra field.
const Bytes kPortReply{119, 0, 0xA0, 0x28, 77, 0, 0, 6, 0, 5, 0, 2, 'p', 'y', 0, 0};

Bytes with(Bytes bytes, std::size_t at, std::uint8_t value) {
  bytes[at] = value;
  return bytes;
}

template <class Parse>
void check_every_cut_asks_for_more(const Bytes& whole, Parse parse) {
  for (std::size_t size = 0; size < whole.size(); ++size) {
    auto result = parse(etf::Bytes(whole).first(size));
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().code == ErrorCode::kTruncated);
  }
}

}  // namespace

TEST_CASE("a registration says hidden node, version 6 only, and its own length", "[dist][epmd]") {
  auto request = dist::encode_alive_request("py", 41000);
  REQUIRE(request.ok());
  CHECK(*request == Bytes{0, 15, 120, 0xA0, 0x28, 72, 0, 0, 6, 0, 6, 0, 2, 'p', 'y', 0, 0});
}

TEST_CASE("a question for a port is the name and its length", "[dist][epmd]") {
  auto request = dist::encode_port_request("beam");
  REQUIRE(request.ok());
  CHECK(*request == Bytes{0, 5, 122, 'b', 'e', 'a', 'm'});
}

TEST_CASE("names epmd cannot hold are refused before they are sent", "[dist][epmd]") {
  CHECK_FALSE(dist::encode_alive_request("", 1).ok());
  CHECK_FALSE(dist::encode_port_request("").ok());
  CHECK(dist::encode_alive_request(std::string(256, 'x'), 1).error().code == ErrorCode::kTooLarge);
  CHECK(dist::encode_port_request(std::string(256, 'x')).error().code == ErrorCode::kTooLarge);
  CHECK(dist::encode_alive_request(std::string(255, 'x'), 1).ok());
}

TEST_CASE("a registration brings a creation of 32 bits, or of 16 from an old epmd",
          "[dist][epmd]") {
  auto reply = dist::parse_alive_reply(Bytes{118, 0, 0x65, 0, 0, 7});
  REQUIRE(reply.ok());
  CHECK(reply->result == 0);
  CHECK(reply->creation == 0x65000007u);

  auto old_reply = dist::parse_alive_reply(Bytes{121, 0, 0, 3});
  REQUIRE(old_reply.ok());
  CHECK(old_reply->creation == 3);
}

TEST_CASE("a taken name is an answer, whether or not a creation follows it", "[dist][epmd]") {
  for (const Bytes& bytes : {Bytes{118, 1, 0, 0, 0, 99}, Bytes{118, 1}, Bytes{121, 1, 0, 99}}) {
    auto reply = dist::parse_alive_reply(bytes);
    REQUIRE(reply.ok());
    CHECK(reply->result == 1);
    CHECK(reply->creation == 0);
  }
}

TEST_CASE("a registration's reply cut anywhere asks for more", "[dist][epmd]") {
  check_every_cut_asks_for_more(Bytes{118, 0, 1, 2, 3, 4}, dist::parse_alive_reply);
  check_every_cut_asks_for_more(Bytes{121, 0, 1, 2}, dist::parse_alive_reply);
}

TEST_CASE("epmd tells a node's port, versions and name", "[dist][epmd]") {
  auto reply = dist::parse_port_reply(kPortReply);
  REQUIRE(reply.ok());
  CHECK(reply->result == 0);
  CHECK(reply->port == 41000);
  CHECK(reply->node_type == 77);
  CHECK(reply->highest_version == 6);
  CHECK(reply->lowest_version == 5);
  CHECK(reply->name == "py");
}

TEST_CASE("an unknown node is an answer of two bytes", "[dist][epmd]") {
  auto reply = dist::parse_port_reply(Bytes{119, 1});
  REQUIRE(reply.ok());
  CHECK(reply->result == 1);
}

TEST_CASE("a port reply cut anywhere asks for more", "[dist][epmd]") {
  check_every_cut_asks_for_more(kPortReply, dist::parse_port_reply);
}

TEST_CASE("what is no reply of epmd is an error and not a wish for more", "[dist][epmd]") {
  CHECK(dist::parse_alive_reply(with(kPortReply, 0, 99)).error().code == ErrorCode::kUnknownTag);
  CHECK(dist::parse_port_reply(with(kPortReply, 0, 118)).error().code == ErrorCode::kUnknownTag);
  CHECK(dist::parse_port_reply(with(kPortReply, 10, 0xFF)).error().code == ErrorCode::kTooLarge);
  CHECK(dist::parse_port_reply(with(kPortReply, 14, 0xFF)).error().code == ErrorCode::kTooLarge);
  CHECK(dist::parse_port_reply(with(kPortReply, 12, 0xFF)).error().code == ErrorCode::kMalformed);
  CHECK(dist::parse_port_reply(with(with(kPortReply, 2, 0), 3, 0)).error().code ==
        ErrorCode::kMalformed);
}
