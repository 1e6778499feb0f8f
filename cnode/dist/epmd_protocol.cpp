#include "cnode/dist/epmd_protocol.hpp"

#include <algorithm>

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
constexpr std::uint8_t kNamesRequest = 110;
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

namespace {

std::string_view text_of(etf::Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// A name that may stand in a list of lines.
base::Status check_printable(std::string_view name) {
  if (auto status = check_alive(name); !status) return status;
  const auto strange = [](char c) { return static_cast<unsigned char>(c) <= 0x20 || c == 0x7f; };
  if (!etf::is_utf8(name) || std::any_of(name.begin(), name.end(), strange))
    return Error{ErrorCode::kMalformed, 0, "a name that is no node's"};
  return base::Done{};
}

Result<AliveRequest> parse_alive_request(etf::Bytes body) {
  // port:16 type:8 protocol:8 highest:16 lowest:16 length:16 name length:16 extra
  constexpr std::size_t kFixed = 8;
  if (body.size() < kFixed) return Error{ErrorCode::kTruncated, 0, "a registration is cut"};
  AliveRequest request;
  request.port = etf::read_u16(body.data());
  request.node_type = body[2];
  request.protocol = body[3];
  request.highest_version = etf::read_u16(body.data() + 4);
  request.lowest_version = etf::read_u16(body.data() + 6);
  std::size_t offset = kFixed;
  auto name = take_sized(body, offset);
  if (!name) return name.error();
  auto extra = take_sized(body, offset);
  if (!extra) return extra.error();
  request.name = text_of(*name);
  if (auto status = check_printable(request.name); !status) return status.error();
  if (request.port == 0) return Error{ErrorCode::kMalformed, 0, "a registration for port 0"};
  if (extra->size() > kMaxEpmdExtra)
    return Error{ErrorCode::kTooLarge, 0, "a registration with too much of its own"};
  request.extra.assign(extra->begin(), extra->end());
  return request;
}

}  // namespace

Result<EpmdRequest> parse_epmd_request(etf::Bytes request) {
  if (request.empty()) return Error{ErrorCode::kTruncated, 0, "an empty request"};
  EpmdRequest parsed;
  const etf::Bytes body = request.subspan(1);
  switch (request[0]) {
    case kAliveRequest: {
      auto alive = parse_alive_request(body);
      if (!alive) return alive.error();
      parsed.kind = EpmdRequest::Kind::kAlive;
      parsed.alive = std::move(*alive);
      return parsed;
    }
    case kPortRequest:
      parsed.kind = EpmdRequest::Kind::kPort;
      parsed.alive.name = text_of(body);
      if (auto status = check_printable(parsed.alive.name); !status) return status.error();
      return parsed;
    case kNamesRequest:
      parsed.kind = EpmdRequest::Kind::kNames;
      return parsed;
    default:
      return parsed;
  }
}

std::vector<std::uint8_t> encode_alive_reply(const AliveRequest& request,
                                             std::optional<std::uint32_t> creation) {
  const bool long_creation = request.highest_version >= kDistributionVersion;
  std::vector<std::uint8_t> out{long_creation ? kAliveLongReply : kAliveReply,
                                static_cast<std::uint8_t>(creation ? 0 : 1)};
  const std::uint32_t value = creation.value_or(0);
  if (long_creation) append_u16(out, value >> 16);
  append_u16(out, value & 0xFFFF);
  return out;
}

std::vector<std::uint8_t> encode_port_reply(const AliveRequest* node) {
  if (node == nullptr) return {kPortReply, 1};
  std::vector<std::uint8_t> out{kPortReply, 0};
  append_u16(out, node->port);
  out.push_back(node->node_type);
  out.push_back(node->protocol);
  append_u16(out, node->highest_version);
  append_u16(out, node->lowest_version);
  append_u16(out, node->name.size());
  out.insert(out.end(), node->name.begin(), node->name.end());
  append_u16(out, node->extra.size());
  out.insert(out.end(), node->extra.begin(), node->extra.end());
  return out;
}

std::vector<std::uint8_t> encode_names_reply(std::uint16_t epmd_port,
                                             const std::vector<const AliveRequest*>& nodes) {
  std::vector<std::uint8_t> out;
  append_u16(out, 0);
  append_u16(out, epmd_port);
  for (const auto* node : nodes) {
    const std::string line = "name " + node->name + " at port " + std::to_string(node->port) + "\n";
    out.insert(out.end(), line.begin(), line.end());
  }
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
