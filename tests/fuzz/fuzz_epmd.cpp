// A reply that is read as it arrives: what can be told from its beginning stays true when more
// comes.
#include <algorithm>
#include <cstdlib>
#include <vector>

#include "cnode/dist/epmd_protocol.hpp"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

bool same(const dist::AliveReply& left, const dist::AliveReply& right) {
  return left.result == right.result && left.creation == right.creation;
}

bool same(const dist::PortReply& left, const dist::PortReply& right) {
  return left.result == right.result && left.port == right.port && left.name == right.name &&
         left.node_type == right.node_type && left.highest_version == right.highest_version &&
         left.lowest_version == right.lowest_version;
}

template <class Parse>
void check(etf::Bytes all, Parse parse) {
  auto whole = parse(all);
  for (std::size_t size = 0; size < all.size(); ++size) {
    const std::vector<std::uint8_t> begin(all.begin(),
                                          all.begin() + static_cast<std::ptrdiff_t>(size));
    auto part = parse(begin);
    if (part) {
      require(whole.ok());
      require(same(*part, *whole));
    } else if (part.error().code != base::ErrorCode::kTruncated) {
      require(!whole.ok());
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const etf::Bytes all{data, std::min<std::size_t>(size, 512)};
  check(all, dist::parse_alive_reply);
  check(all, dist::parse_port_reply);
  // As an epmd: what was understood can be told to others, and is what they asked for.
  if (auto request = dist::parse_epmd_request(all)) {
    const bool named = request->kind == dist::EpmdRequest::Kind::kAlive ||
                       request->kind == dist::EpmdRequest::Kind::kPort;
    require(named == !request->alive.name.empty());
    if (request->kind == dist::EpmdRequest::Kind::kAlive) {
      const auto reply = dist::encode_port_reply(&request->alive);
      auto told = dist::parse_port_reply(reply);
      require(told.ok() && told->name == request->alive.name && told->port == request->alive.port);
    }
  }
  return 0;
}
