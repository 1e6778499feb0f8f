// Handshake: how two nodes learn each other's names and prove that they share a cookie (protocol
// version 6).
//
//   initiator                                acceptor
//     'N' flags, creation, name ────────────▶   kNeedDecision: decide()
//     ◀─────────── 's' ok | ok_simultaneous | nok | not_allowed | alive | named:
//     's' true ─────────────────────────────▶   only after alive
//     ◀─────────── 'N' flags, challenge, creation, name
//     'r' challenge, digest ────────────────▶   kDone
//   kDone ◀─────── 'a' digest
//
// No socket and no clock: packets in, packets and decisions out. The caller puts the length in
// front (two bytes on TCP, four inside TLS), refuses packets over kMaxHandshakePacket unread and
// keeps the time.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "cnode/base/result.hpp"
#include "cnode/dist/flags.hpp"
#include "cnode/etf/values.hpp"

namespace dist {

inline constexpr std::size_t kMaxHandshakePacket = 1024;
inline constexpr std::size_t kMaxNodeName = 255;  // bytes

struct HandshakeConfig {
  std::string name;  // name@host; only a host where the peer shall name us (initiator with kNameMe
                     // in flags)
  std::uint32_t creation = 0;
  std::uint64_t flags = kOurFlags;
  std::function<std::string(std::string_view peer)> cookie;
};

struct PeerInfo {
  std::string name;
  std::uint64_t flags = 0;    // what both sides can do
  std::uint64_t offered = 0;  // all the peer said it can do
  std::uint32_t creation = 0;
  bool simultaneous = false;  // initiator: the peer was dialling us too, and gives way
  bool replaces_link =
      false;  // either role: went through `alive`, an older link of this name gives way
  bool name_assigned = false;  // initiator: our name is the peer's gift
  std::string our_name;
  std::uint32_t our_creation = 0;
};

// What the acceptor answers to a name, after looking for a link to that node.
enum class Decision {
  kOk,
  kOkSimultaneous,  // we were dialling it too, and its attempt wins
  kNok,             // we were dialling it too, and our attempt wins
  kNotAllowed,
  kAlive,  // there is a link of that name: the peer says whether it may go
};

class Handshake {
 public:
  enum class Role { kInitiator, kAcceptor };

  struct Step {
    enum class Next {
      kContinue,      // send, then wait for the next packet
      kNeedDecision,  // peer().name is known: call decide()
      kDone,          // send, then frames follow
      kClose,         // send, then close: decide() said no
    };
    std::vector<std::vector<std::uint8_t>> send;  // packets without their length
    Next next = Next::kContinue;
  };

  // `expected_peer`: whom an initiator dials; empty for an acceptor, or to take whoever answers.
  Handshake(Role role, HandshakeConfig config, std::string expected_peer = {});

  Step start();  // the initiator's name packet; nothing for an acceptor
  // An error means: close. Its detail is the line for the log. refusal() may be sent first.
  base::Result<Step> on_packet(etf::Bytes packet);
  base::Result<Step> decide(Decision decision);

  // After an error: a last packet that tells the peer why, or nothing.
  const std::vector<std::uint8_t>& refusal() const { return refusal_; }
  const PeerInfo& peer() const { return peer_; }
  Role role() const { return role_; }
  const std::string& expected_peer() const { return expected_peer_; }

 private:
  enum class State {
    kStart,
    kName,
    kDecision,
    kStatus,
    kStatusReply,
    kChallenge,
    kChallengeReply,
    kAck,
    kDone,
    kFailed
  };

  base::Error fail(base::ErrorCode code, std::string detail);
  base::Error refuse(base::ErrorCode code,
                     std::string detail);  // fail, and tell the peer `not_allowed`
  base::Result<Step> on_name(etf::Bytes packet);
  base::Result<Step> on_status(etf::Bytes packet);
  base::Result<Step> on_named(std::string_view rest);
  base::Result<Step> on_status_reply(etf::Bytes packet);
  base::Result<Step> on_challenge(etf::Bytes packet);
  base::Result<Step> on_challenge_reply(etf::Bytes packet);
  base::Result<Step> on_ack(etf::Bytes packet);
  base::Status take_flags(std::uint64_t flags);
  std::vector<std::uint8_t> challenge_packet();

  Role role_;
  HandshakeConfig config_;
  std::string expected_peer_;
  State state_ = State::kStart;
  std::uint32_t challenge_ = 0;  // ours
  std::vector<std::uint8_t> refusal_;
  PeerInfo peer_;
};

// Whether `name` can be a node's name: one '@' with something on both sides, UTF-8 without control
// characters, at most kMaxNodeName bytes.
bool is_node_name(std::string_view name);

// Two nodes dial each other at once: whether our attempt is the one that is kept.
bool simultaneous_winner(std::string_view our_name, std::string_view peer_name);

}  // namespace dist
