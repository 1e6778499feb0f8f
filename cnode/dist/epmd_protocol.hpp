// What is said to epmd and by it, as bytes; the sockets are elsewhere.
//
//   node -> epmd   ALIVE2_REQ         epmd -> node   ALIVE2_X_RESP | ALIVE2_RESP; the socket stays
//   node -> epmd   PORT_PLEASE2_REQ   epmd -> node   PORT2_RESP, then epmd closes
//   any  -> epmd   NAMES_REQ          epmd -> any    its port and lines of text, then epmd closes
//
// A parser gets everything received so far: kTruncated says "read more", any other error "give up".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cnode/base/result.hpp"
#include "cnode/etf/values.hpp"

namespace dist {

inline constexpr std::uint16_t kEpmdPort = 4369;
inline constexpr std::uint16_t kDistributionVersion = 6;
inline constexpr std::uint8_t kHiddenNode = 72;
inline constexpr std::size_t kMaxEpmdReply = 1024;  // no reply we ask for is longer

// What epmd answered to a registration.
struct AliveReply {
  std::uint8_t result = 0;     // 0: registered; otherwise the name is taken
  std::uint32_t creation = 0;  // 0 when refused
};

// What epmd knows of a node.
struct PortReply {
  std::uint8_t result = 0;  // 0: found
  std::uint16_t port = 0;
  std::uint8_t node_type = 0;
  std::uint16_t highest_version = 0;
  std::uint16_t lowest_version = 0;
  std::string name;
};

// `alive` is the node name's part before the '@'. Both requests include their two-byte length.
base::Result<std::vector<std::uint8_t>> encode_alive_request(std::string_view alive,
                                                             std::uint16_t port);
base::Result<std::vector<std::uint8_t>> encode_port_request(std::string_view alive);

// What a node tells epmd of itself.
struct AliveRequest {
  std::string name;
  std::uint16_t port = 0;
  std::uint8_t node_type = kHiddenNode;
  std::uint8_t protocol = 0;
  std::uint16_t highest_version = kDistributionVersion;
  std::uint16_t lowest_version = kDistributionVersion;
  std::vector<std::uint8_t> extra;  // at most kMaxEpmdExtra bytes
};
inline constexpr std::size_t kMaxEpmdExtra = 512;

// A request as an epmd gets it, without its length; at most kMaxEpmdRequest bytes.
inline constexpr std::size_t kMaxEpmdRequest = 1024;
struct EpmdRequest {
  enum class Kind { kAlive, kPort, kNames, kOther };  // others: dumps, and orders to end
  Kind kind = Kind::kOther;
  AliveRequest alive;  // kPort: only its name
};
base::Result<EpmdRequest> parse_epmd_request(etf::Bytes request);

// Empty `creation`: the name is taken.
std::vector<std::uint8_t> encode_alive_reply(const AliveRequest& request,
                                             std::optional<std::uint32_t> creation);
// nullptr: there is no such node.
std::vector<std::uint8_t> encode_port_reply(const AliveRequest* node);
std::vector<std::uint8_t> encode_names_reply(std::uint16_t epmd_port,
                                             const std::vector<const AliveRequest*>& nodes);

base::Result<AliveReply> parse_alive_reply(etf::Bytes received);
base::Result<PortReply> parse_port_reply(etf::Bytes received);

}  // namespace dist
