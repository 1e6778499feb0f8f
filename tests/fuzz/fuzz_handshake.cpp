// One side of a handshake against a peer that sends anything: [role and decision] then any number
// of [honest? length:8 packet]. An honest packet gets the right proof written into it, so that the
// last steps are reached too; without one the handshake must never end well.
#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "cnode/dist/digest.hpp"
#include "cnode/dist/handshake.hpp"
#include "cnode/etf/reader.hpp"

namespace {

using dist::Decision;
using dist::Handshake;
using Packet = std::vector<std::uint8_t>;
using Next = Handshake::Step::Next;

const std::string kCookie = "secret";

void require(bool holds) {
  if (!holds) std::abort();
}

Handshake make(std::uint8_t mode) {
  const bool acceptor = (mode & 1) != 0;
  const bool nameless = !acceptor && (mode & 2) != 0;
  dist::HandshakeConfig config;
  config.name = nameless ? "host" : "py@host";
  config.creation = nameless ? 0 : 1001;
  config.flags = nameless ? dist::kOurFlags | dist::kNameMe : dist::kOurFlags;
  config.cookie = [](std::string_view) { return kCookie; };
  return {acceptor ? Handshake::Role::kAcceptor : Handshake::Role::kInitiator, config,
          acceptor || (mode & 4) != 0 ? "" : "beam@host"};
}

// The challenge in what we sent last, for the peer's proof.
std::uint32_t challenge_in(const std::vector<Packet>& sent, std::uint32_t before) {
  std::uint32_t challenge = before;
  for (const Packet& packet : sent) {
    if (packet.size() >= 13 && packet[0] == 'N') challenge = etf::read_u32(packet.data() + 9);
    if (packet.size() >= 5 && packet[0] == 'r') challenge = etf::read_u32(packet.data() + 1);
  }
  return challenge;
}

bool prove(Packet& packet, std::uint32_t challenge) {
  const dist::Digest digest = dist::digest(kCookie, challenge);
  if (packet.size() == 21 && packet[0] == 'r') {
    std::copy(digest.begin(), digest.end(), packet.begin() + 5);
    return true;
  }
  if (packet.size() == 17 && packet[0] == 'a') {
    std::copy(digest.begin(), digest.end(), packet.begin() + 1);
    return true;
  }
  return false;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::uint8_t mode = data[0];
  static constexpr Decision kDecisions[] = {Decision::kOk, Decision::kOkSimultaneous,
                                            Decision::kNok, Decision::kNotAllowed,
                                            Decision::kAlive};
  Handshake handshake = make(mode);
  std::uint32_t challenge = challenge_in(handshake.start().send, 0);
  bool proven = false;
  etf::Bytes rest{data + 1, size - 1};
  while (rest.size() >= 2) {
    const bool honest = (rest[0] & 1) != 0;
    const std::size_t length = std::min<std::size_t>(rest[1], rest.size() - 2);
    Packet packet(rest.begin() + 2, rest.begin() + 2 + static_cast<std::ptrdiff_t>(length));
    rest = rest.subspan(2 + length);
    const bool has_proof = honest && prove(packet, challenge);
    proven = proven || has_proof;
    auto step = handshake.on_packet(packet);
    if (step && step->next == Next::kNeedDecision) {
      require(dist::is_node_name(handshake.peer().name));
      step = handshake.decide(kDecisions[(mode >> 3) % std::size(kDecisions)]);
    }
    if (!step) {
      require(!step.error().detail.empty());
      require(!handshake.on_packet(packet).ok());  // there is no way back
      break;
    }
    if (step->next == Next::kClose) break;
    if (step->next == Next::kDone) {
      require(proven);
      require(dist::missing_mandatory(handshake.peer().flags).empty());
      require(dist::is_node_name(handshake.peer().our_name));
      break;
    }
    challenge = challenge_in(step->send, challenge);
  }
  return 0;
}
