#include "cnode/dist/epmd_protocol.hpp"

#include "cnode/etf/reader.hpp"

namespace dist {

using base::Error;
using base::ErrorCode;
using base::Result;

namespace {

constexpr std::uint8_t kAliveRequest = 120;
constexpr std::uint8_t kAliveReply = 121;
constexpr std::uint8_t kAliveLongReply = 118;
constexpr std::uint8_t kPortRequest = 122;
constexpr std::uint8_t kPortReply = 119;
constexpr std::size_t kMaxAliveName = 255;

void append_u16(std::vector<std::uint8_t>& out, std::size_t value) {
  out.push_back(static_cast<std::uint8_t>(value >> 8));
  out.push_back(static_cast<std::uint8_t>(value));
}

base::Status check_alive(std::string_view alive) {
  if (alive.empty())
    return Error{ErrorCode::kMalformed, 0, "a node name needs something before its '@'"};
  if (alive.size() > kMaxAliveName)
    return Error{ErrorCode::kTooLarge, 0, "the node name is too long for epmd"};
  return base::Done{};
}

Error truncated(etf::Bytes received) {
  return {ErrorCode::kTruncated, received.size(), "epmd's reply goes on"};
}

Error not_a_reply(std::uint8_t byte) {
  return {ErrorCode::kUnknownTag, 0, "epmd's reply starts with " + std::to_string(byte)};
}

// A run of bytes with a two-byte length in front, at `offset`, which then stands behind it.
Result<etf::Bytes> take_sized(etf::Bytes received, std::size_t& offset) {
  if (received.size() - offset < 2) return truncated(received);
  const std::size_t size = etf::read_u16(received.data() + offset);
  if (size > kMaxEpmdReply)
    return Error{ErrorCode::kTooLarge, offset, "epmd's reply is longer than any it should send"};
  if (received.size() - offset - 2 < size) return truncated(received);
  const etf::Bytes bytes = received.subspan(offset + 2, size);
  offset += 2 + size;
  return bytes;
}

}  // namespace

Result<std::vector<std::uint8_t>> encode_alive_request(std::string_view alive, std::uint16_t port) {
  if (auto status = check_alive(alive); !status) return status.error();
  std::vector<std::uint8_t> out;
  append_u16(out, 13 + alive.size());
  out.push_back(kAliveRequest);
  append_u16(out, port);
  out.push_back(kHiddenNode);
  out.push_back(0);  // TCP over IPv4 or IPv6: nobody tells them apart here
  append_u16(out, kDistributionVersion);
  append_u16(out, kDistributionVersion);
  append_u16(out, alive.size());
  out.insert(out.end(), alive.begin(), alive.end());
  append_u16(out, 0);  // no extra field
  return out;
}

Result<std::vector<std::uint8_t>> encode_port_request(std::string_view alive) {
  if (auto status = check_alive(alive); !status) return status.error();
  std::vector<std::uint8_t> out;
  append_u16(out, 1 + alive.size());
  out.push_back(kPortRequest);
  out.insert(out.end(), alive.begin(), alive.end());
  return out;
}

Result<AliveReply> parse_alive_reply(etf::Bytes received) {
  if (received.empty()) return truncated(received);
  const bool has_long_creation = received[0] == kAliveLongReply;
  if (!has_long_creation && received[0] != kAliveReply) return not_a_reply(received[0]);
  if (received.size() < 2) return truncated(received);
  AliveReply reply;
  reply.result = received[1];
  if (reply.result != 0) return reply;
  if (received.size() < (has_long_creation ? 6u : 4u)) return truncated(received);
  reply.creation =
      has_long_creation ? etf::read_u32(received.data() + 2) : etf::read_u16(received.data() + 2);
  return reply;
}

Result<PortReply> parse_port_reply(etf::Bytes received) {
  if (received.empty()) return truncated(received);
  if (received[0] != kPortReply) return not_a_reply(received[0]);
  if (received.size() < 2) return truncated(received);
  PortReply reply;
  reply.result = received[1];
  if (reply.result != 0) return reply;
  if (received.size() < 10) return truncated(received);
  reply.port = etf::read_u16(received.data() + 2);
  reply.node_type = received[4];
  reply.highest_version = etf::read_u16(received.data() + 6);
  reply.lowest_version = etf::read_u16(received.data() + 8);
  std::size_t offset = 10;
  auto name = take_sized(received, offset);
  if (!name) return name.error();
  auto extra = take_sized(received, offset);
  if (!extra) return extra.error();
  reply.name.assign(reinterpret_cast<const char*>(name->data()), name->size());
  if (!etf::is_utf8(reply.name))
    return Error{ErrorCode::kMalformed, 12, "epmd's reply has a name that is not UTF-8"};
  if (reply.port == 0) return Error{ErrorCode::kMalformed, 2, "epmd's reply has port 0"};
  return reply;
}

}  // namespace dist
