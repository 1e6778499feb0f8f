#include "cnode/dist/handshake.hpp"

#include <algorithm>
#include <cassert>
#include <utility>

#include "cnode/base/random.hpp"
#include "cnode/dist/digest.hpp"
#include "cnode/etf/reader.hpp"
#include "cnode/etf/writer.hpp"

namespace dist {

using base::Error;
using base::ErrorCode;
using base::Result;

namespace {

using Packet = std::vector<std::uint8_t>;
using Step = Handshake::Step;

constexpr std::size_t kNameFixed = 15;       // 'N' flags:64 creation:32 length:16
constexpr std::size_t kChallengeFixed = 19;  // 'N' flags:64 challenge:32 creation:32 length:16
constexpr std::size_t kReplySize = 21;       // 'r' challenge:32 digest
constexpr std::size_t kAckSize = 17;         // 'a' digest
constexpr std::uint32_t kMinCreation =
    4;  // smaller ones are taken for the two-bit creations of old

std::string_view text_of(etf::Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// A peer's text for the log: quoted, cut, and nothing in it that a terminal would obey.
std::string printable(std::string_view text) {
  static constexpr std::size_t kMost = 64;
  std::string out = "'";
  for (const char c : text.substr(0, kMost)) out += c < 0x20 || c > 0x7e ? '?' : c;
  return out + (text.size() > kMost ? "...'" : "'");
}

class PacketWriter {
 public:
  explicit PacketWriter(char tag) { out_.push_back(static_cast<std::uint8_t>(tag)); }
  PacketWriter& u16(std::size_t value) {
    etf::write_u16(grow(2), static_cast<std::uint16_t>(value));
    return *this;
  }
  PacketWriter& u32(std::uint32_t value) {
    etf::write_u32(grow(4), value);
    return *this;
  }
  PacketWriter& u64(std::uint64_t value) {
    etf::write_u64(grow(8), value);
    return *this;
  }
  PacketWriter& text(std::string_view text) {
    out_.insert(out_.end(), text.begin(), text.end());
    return *this;
  }
  PacketWriter& bytes(etf::Bytes bytes) {
    out_.insert(out_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  Packet take() { return std::move(out_); }

 private:
  std::uint8_t* grow(std::size_t size) {
    out_.resize(out_.size() + size);
    return out_.data() + (out_.size() - size);
  }
  Packet out_;
};

Packet status_packet(std::string_view status) { return PacketWriter('s').text(status).take(); }

Step send(Packet packet, Step::Next next) {
  Step step;
  step.send.push_back(std::move(packet));
  step.next = next;
  return step;
}

bool is_host(std::string_view host) {
  return !host.empty() && host.size() <= kMaxNodeName && host.find('@') == std::string_view::npos &&
         etf::is_utf8(host) && std::none_of(host.begin(), host.end(), [](char c) {
           return static_cast<unsigned char>(c) <= 0x20 || c == 0x7f;
         });
}

}  // namespace

bool is_node_name(std::string_view name) {
  const std::size_t at = name.find('@');
  return at != std::string_view::npos && name.size() <= kMaxNodeName &&
         is_host(name.substr(0, at)) && is_host(name.substr(at + 1));
}

bool simultaneous_winner(std::string_view our_name, std::string_view peer_name) {
  return our_name > peer_name;
}

Handshake::Handshake(Role role, HandshakeConfig config, std::string expected_peer)
    : role_(role), config_(std::move(config)), expected_peer_(std::move(expected_peer)) {
  assert(config_.cookie && "a handshake without a cookie proves nothing");
  assert((is_node_name(config_.name) ||
          (role == Role::kInitiator && (config_.flags & kNameMe) != 0)) &&
         "a node has a name, or dials to be given one");
  assert(config_.creation >= kMinCreation || (config_.flags & kNameMe) != 0);
  peer_.our_name = config_.name;
  peer_.our_creation = config_.creation;
  if (role_ == Role::kAcceptor) state_ = State::kName;
}

Step Handshake::start() {
  if (role_ == Role::kAcceptor) return {};
  assert(state_ == State::kStart && "a handshake starts once");
  state_ = State::kStatus;
  Packet packet = PacketWriter('N')
                      .u64(config_.flags)
                      .u32(config_.creation)
                      .u16(config_.name.size())
                      .text(config_.name)
                      .take();
  return send(std::move(packet), Step::Next::kContinue);
}

Result<Step> Handshake::on_packet(etf::Bytes packet) {
  if (packet.size() > kMaxHandshakePacket)
    return fail(ErrorCode::kTooLarge, "a handshake packet over the limit");
  if (packet.empty()) return fail(ErrorCode::kTruncated, "an empty handshake packet");
  switch (state_) {
    case State::kName:
      return on_name(packet);
    case State::kStatus:
      return on_status(packet);
    case State::kStatusReply:
      return on_status_reply(packet);
    case State::kChallenge:
      return on_challenge(packet);
    case State::kChallengeReply:
      return on_challenge_reply(packet);
    case State::kAck:
      return on_ack(packet);
    case State::kStart:
    case State::kDecision:
    case State::kDone:
    case State::kFailed:
      break;
  }
  return fail(ErrorCode::kMalformed, "a handshake packet out of turn");
}

Result<Step> Handshake::decide(Decision decision) {
  assert(state_ == State::kDecision && "decide() answers kNeedDecision");
  switch (decision) {
    case Decision::kOk:
    case Decision::kOkSimultaneous: {
      peer_.simultaneous = decision == Decision::kOkSimultaneous;
      state_ = State::kChallengeReply;
      Step step =
          send(status_packet(peer_.simultaneous ? "ok_simultaneous" : "ok"), Step::Next::kContinue);
      step.send.push_back(challenge_packet());
      return step;
    }
    case Decision::kAlive:
      state_ = State::kStatusReply;
      return send(status_packet("alive"), Step::Next::kContinue);
    case Decision::kNok:
    case Decision::kNotAllowed:
      break;
  }
  state_ = State::kFailed;
  return send(status_packet(decision == Decision::kNok ? "nok" : "not_allowed"),
              Step::Next::kClose);
}

Error Handshake::fail(ErrorCode code, std::string detail) {
  state_ = State::kFailed;
  std::string who = peer_.name.empty() ? expected_peer_ : peer_.name;
  if (!who.empty()) detail = "handshake with " + who + ": " + detail;
  return {code, 0, std::move(detail)};
}

Error Handshake::refuse(ErrorCode code, std::string detail) {
  refusal_ = status_packet("not_allowed");
  return fail(code, std::move(detail));
}

// Acceptor, first packet: 'N' flags:64 creation:32 length:16 name, and perhaps more to come in
// later versions.
Result<Step> Handshake::on_name(etf::Bytes packet) {
  if (packet[0] == 'n')
    return fail(ErrorCode::kUnsupported,
                "the peer speaks protocol version 5 (before OTP 23), we need 6");
  if (packet[0] != 'N') return fail(ErrorCode::kUnknownTag, "the first packet is not a name");
  if (packet.size() < kNameFixed) return fail(ErrorCode::kTruncated, "the name packet is cut");
  const std::uint64_t flags = etf::read_u64(packet.data() + 1);
  const std::size_t length = etf::read_u16(packet.data() + 13);
  if (packet.size() - kNameFixed < length)
    return fail(ErrorCode::kTruncated, "the name packet is cut");
  const std::string_view name = text_of(packet.subspan(kNameFixed, length));
  if ((flags & kNameMe) != 0)
    return refuse(ErrorCode::kUnsupported, "the peer asks for a name, and we give none");
  if (!is_node_name(name))
    return fail(ErrorCode::kMalformed, "not a node name: " + printable(name));
  peer_.name = name;
  peer_.creation = etf::read_u32(packet.data() + 9);
  if (name == config_.name) return refuse(ErrorCode::kRefused, "the peer has our own name");
  if (auto status = take_flags(flags); !status)
    return refuse(status.error().code, status.error().detail);
  state_ = State::kDecision;
  return Step{{}, Step::Next::kNeedDecision};
}

// Initiator, second packet: what the peer thinks of our name.
Result<Step> Handshake::on_status(etf::Bytes packet) {
  static constexpr std::string_view kNamed = "named:";
  if (packet[0] != 's') return fail(ErrorCode::kUnknownTag, "a status was due");
  const std::string_view status = text_of(packet.subspan(1));
  if (status.starts_with(kNamed)) return on_named(status.substr(kNamed.size()));
  const bool needs_name = (config_.flags & kNameMe) != 0;
  if (needs_name && (status == "ok" || status == "ok_simultaneous" || status == "alive")) {
    return fail(ErrorCode::kUnsupported, "the peer gives no names");
  }
  if (status == "ok" || status == "ok_simultaneous") {
    peer_.simultaneous = status == "ok_simultaneous";
    state_ = State::kChallenge;
    return Step{};
  }
  if (status == "alive") {
    // The peer still holds a link of our last incarnation: that one may go.
    peer_.replaces_link = true;
    state_ = State::kChallenge;
    return send(status_packet("true"), Step::Next::kContinue);
  }
  if (status == "nok")
    return fail(ErrorCode::kRefused, "the peer is dialling us itself and keeps that attempt");
  if (status == "not_allowed")
    return fail(ErrorCode::kRefused, "the peer does not allow our name or our flags");
  return fail(ErrorCode::kUnsupported, "an unknown status: " + printable(status));
}

// The rest of a status `named:`, length:16 name creation:32.
Result<Step> Handshake::on_named(std::string_view rest) {
  if ((config_.flags & kNameMe) == 0)
    return fail(ErrorCode::kMalformed, "the peer gives us a name we did not ask for");
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(rest.data());
  if (rest.size() < 2) return fail(ErrorCode::kTruncated, "the status packet is cut");
  const std::size_t length = etf::read_u16(bytes);
  if (rest.size() < 2 + length + 4) return fail(ErrorCode::kTruncated, "the status packet is cut");
  const std::string_view name = rest.substr(2, length);
  if (!is_node_name(name))
    return fail(ErrorCode::kMalformed, "the peer names us " + printable(name));
  peer_.our_name = name;
  peer_.our_creation = etf::read_u32(bytes + 2 + length);
  peer_.name_assigned = true;
  state_ = State::kChallenge;
  return Step{};
}

// Acceptor, after `alive`: whether the old link may go.
Result<Step> Handshake::on_status_reply(etf::Bytes packet) {
  if (packet[0] != 's') return fail(ErrorCode::kUnknownTag, "a status was due");
  const std::string_view status = text_of(packet.subspan(1));
  if (status == "false") return fail(ErrorCode::kRefused, "the peer keeps the link there is");
  if (status != "true")
    return fail(ErrorCode::kMalformed, "an unknown answer to `alive`: " + printable(status));
  peer_.replaces_link = true;
  state_ = State::kChallengeReply;
  return send(challenge_packet(), Step::Next::kContinue);
}

// Initiator: 'N' flags:64 challenge:32 creation:32 length:16 name.
Result<Step> Handshake::on_challenge(etf::Bytes packet) {
  if (packet[0] == 'n')
    return fail(ErrorCode::kUnsupported,
                "the peer speaks protocol version 5 (before OTP 23), we need 6");
  if (packet[0] != 'N') return fail(ErrorCode::kUnknownTag, "a challenge was due");
  if (packet.size() < kChallengeFixed) return fail(ErrorCode::kTruncated, "the challenge is cut");
  const std::uint32_t challenge = etf::read_u32(packet.data() + 9);
  const std::size_t length = etf::read_u16(packet.data() + 17);
  if (packet.size() - kChallengeFixed < length)
    return fail(ErrorCode::kTruncated, "the challenge is cut");
  const std::string_view name = text_of(packet.subspan(kChallengeFixed, length));
  if (!is_node_name(name))
    return fail(ErrorCode::kMalformed, "not a node name: " + printable(name));
  if (!expected_peer_.empty() && name != expected_peer_) {
    return fail(ErrorCode::kRefused, "another node answers: " + printable(name));
  }
  peer_.name = name;
  peer_.creation = etf::read_u32(packet.data() + 13);
  if (name == peer_.our_name) return fail(ErrorCode::kRefused, "the peer has our own name");
  if (auto status = take_flags(etf::read_u64(packet.data() + 1)); !status) {
    return fail(status.error().code, status.error().detail);
  }
  challenge_ = base::secure_random_u32();
  state_ = State::kAck;
  Packet reply =
      PacketWriter('r').u32(challenge_).bytes(digest(config_.cookie(peer_.name), challenge)).take();
  return send(std::move(reply), Step::Next::kContinue);
}

// Acceptor: 'r' challenge:32 digest:128, the peer's proof and its own challenge.
Result<Step> Handshake::on_challenge_reply(etf::Bytes packet) {
  if (packet[0] != 'r') return fail(ErrorCode::kUnknownTag, "the answer to our challenge was due");
  if (packet.size() != kReplySize)
    return fail(ErrorCode::kMalformed, "the answer to our challenge has a wrong size");
  const std::string cookie = config_.cookie(peer_.name);
  if (!constant_time_equal(packet.subspan(5), digest(cookie, challenge_))) {
    return fail(ErrorCode::kRefused, "the cookie does not match");
  }
  state_ = State::kDone;
  const std::uint32_t theirs = etf::read_u32(packet.data() + 1);
  return send(PacketWriter('a').bytes(digest(cookie, theirs)).take(), Step::Next::kDone);
}

// Initiator, last packet: 'a' digest:128.
Result<Step> Handshake::on_ack(etf::Bytes packet) {
  if (packet[0] != 'a') return fail(ErrorCode::kUnknownTag, "the peer's proof was due");
  if (packet.size() != kAckSize)
    return fail(ErrorCode::kMalformed, "the peer's proof has a wrong size");
  if (!constant_time_equal(packet.subspan(1), digest(config_.cookie(peer_.name), challenge_))) {
    return fail(ErrorCode::kRefused, "the cookie does not match");
  }
  state_ = State::kDone;
  return Step{{}, Step::Next::kDone};
}

base::Status Handshake::take_flags(std::uint64_t flags) {
  peer_.offered = expand(flags);
  peer_.flags = peer_.offered & expand(config_.flags);
  const std::string missing = missing_mandatory(flags);
  if (missing.empty()) return base::Done{};
  return Error{ErrorCode::kUnsupported, 0,
               "the peer lacks " + missing + " (a node before OTP 25?)"};
}

Packet Handshake::challenge_packet() {
  challenge_ = base::secure_random_u32();
  return PacketWriter('N')
      .u64(config_.flags)
      .u32(challenge_)
      .u32(config_.creation)
      .u16(config_.name.size())
      .text(config_.name)
      .take();
}

}  // namespace dist
