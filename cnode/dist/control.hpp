// Control tuples: what a frame is about. The message, exit reason or argument list, if any, follows
// as the next term.
//
// parse_control() reads one tuple into views of the frame's bytes. The append functions write one;
// they take identifiers as they stood on the wire, so that a peer gets back the bytes it sent. In
// pass-through framing the caller puts the version byte before the tuple and before the payload.
#pragma once

#include <cstdint>
#include <string_view>

#include "cnode/base/result.hpp"
#include "cnode/etf/reader.hpp"
#include "cnode/etf/writer.hpp"

namespace dist {

enum class Op : std::uint8_t {
  kUnknown = 0,
  kLink = 1,
  kSend = 2,
  kExit = 3,
  kUnlink = 4,  // from before UNLINK_ID; nobody we accept sends it
  kNodeLink = 5,
  kRegSend = 6,
  kGroupLeader = 7,
  kExit2 = 8,
  kSendTt = 12,
  kExitTt = 13,
  kRegSendTt = 16,
  kExit2Tt = 18,
  kMonitorP = 19,
  kDemonitorP = 20,
  kMonitorPExit = 21,
  kSendSender = 22,
  kSendSenderTt = 23,
  kPayloadExit = 24,
  kPayloadExitTt = 25,
  kPayloadExit2 = 26,
  kPayloadExit2Tt = 27,
  kPayloadMonitorPExit = 28,
  kSpawnRequest = 29,
  kSpawnRequestTt = 30,
  kSpawnReply = 31,
  kSpawnReplyTt = 32,
  kAliasSend = 33,
  kAliasSendTt = 34,
  kUnlinkId = 35,
  kUnlinkIdAck = 36,
  kAltactSigSend = 37,
};

std::string_view to_string(Op op);

// Flags of kAltactSigSend.
inline constexpr std::uint64_t kAltactPriority = 1;
inline constexpr std::uint64_t kAltactToken = 2;
inline constexpr std::uint64_t kAltactAlias = 4;
inline constexpr std::uint64_t kAltactName = 8;
inline constexpr std::uint64_t kAltactExit = 16;

// Flags of kSpawnReply.
inline constexpr std::uint64_t kSpawnedWithLink = 1;
inline constexpr std::uint64_t kSpawnedWithMonitor = 2;

// One side of a signal.
struct Party {
  enum class Kind : std::uint8_t { kNone, kPid, kName, kAlias };
  Kind kind = Kind::kNone;
  etf::PidView pid;    // kPid
  etf::AtomView name;  // kName; of a SPAWN_REPLY that failed: why
  etf::RefView alias;  // kAlias
};

struct Control {
  Op op = Op::kUnknown;
  std::uint64_t opcode = 0;  // as sent
  bool has_payload = false;  // a term follows the tuple
  Party from;                // a pid, or a name in MONITOR_P_EXIT; none in SEND and SPAWN_REPLY
  Party to;
  std::uint64_t id = 0;     // UNLINK_ID, UNLINK_ID_ACK
  std::uint64_t flags = 0;  // ALTACT_SIG_SEND, SPAWN_REPLY
  etf::RefView ref;         // the monitor, or the spawn request
  etf::Bytes reason;        // an exit reason inside the tuple, one checked term
  etf::Bytes token;         // a sequential trace token, one checked term
  // SPAWN_REQUEST only
  etf::PidView group_leader;
  etf::AtomView module;
  etf::AtomView function;
  std::uint32_t arity = 0;
  etf::Bytes options;  // a list, checked
  // SPAWN_REPLY only: the new pid, or the reason there is none
  Party spawned;
};

// Reads the tuple at the cursor, which then stands at the payload or the end. A number nobody
// defined is kUnknown, with has_payload telling whether bytes are left; a tuple that does not fit
// its number is an error, and so are a payload that is missing and bytes left where none may be.
base::Result<Control> parse_control(etf::Reader& in);

// What a SPAWN_REQUEST's options ask for; those that only matter to a BEAM's scheduler are passed
// over.
struct SpawnOptions {
  bool link = false;
  bool monitor = false;
};
base::Result<SpawnOptions> parse_spawn_options(etf::Bytes options);

// A pid, an atom or a reference as bytes of the external format, without version byte.
using Raw = etf::Bytes;

// A message follows each of these.
void append_send(etf::Writer& out, Raw to_pid);
void append_send_sender(etf::Writer& out, Raw from_pid, Raw to_pid);
void append_reg_send(etf::Writer& out, Raw from_pid, std::string_view to_name);
void append_alias_send(etf::Writer& out, Raw from_pid, Raw alias);
// `to` is a pid, a name or an alias, as `flags` say; kAltactToken is not offered.
void append_altact_send(etf::Writer& out, std::uint64_t flags, Raw from_pid, Raw to);

void append_link(etf::Writer& out, Raw from_pid, Raw to_pid);
void append_unlink_id(etf::Writer& out, std::uint64_t id, Raw from_pid, Raw to_pid);
void append_unlink_id_ack(etf::Writer& out, std::uint64_t id, Raw from_pid, Raw to_pid);
void append_group_leader(etf::Writer& out, Raw leader_pid, Raw to_pid);

// The reason stands in the tuple, or follows as payload where EXIT_PAYLOAD is negotiated.
void append_exit(etf::Writer& out, Raw from_pid, Raw to_pid, Raw reason);
void append_payload_exit(etf::Writer& out, Raw from_pid, Raw to_pid);
void append_exit2(etf::Writer& out, Raw from_pid, Raw to_pid, Raw reason);
void append_payload_exit2(etf::Writer& out, Raw from_pid, Raw to_pid);

// The watched process is a pid or an atom.
void append_monitor_p(etf::Writer& out, Raw from_pid, Raw to_process, Raw ref);
void append_demonitor_p(etf::Writer& out, Raw from_pid, Raw to_process, Raw ref);
void append_monitor_p_exit(etf::Writer& out, Raw from_process, Raw to_pid, Raw ref, Raw reason);
void append_payload_monitor_p_exit(etf::Writer& out, Raw from_process, Raw to_pid, Raw ref);

// The list of arguments follows; `options` is a list.
void append_spawn_request(etf::Writer& out, Raw request, Raw from_pid, Raw leader_pid,
                          std::string_view module, std::string_view function, std::uint32_t arity,
                          Raw options);
// `result` is the new pid, or an atom that says why there is none.
void append_spawn_reply(etf::Writer& out, Raw request, Raw to_pid, std::uint64_t flags, Raw result);

}  // namespace dist
