#include "cnode/dist/control.hpp"

#include <array>

namespace dist {

using base::Error;
using base::ErrorCode;
using base::Result;
using base::Status;
using etf::Bytes;
using etf::Reader;
using etf::Writer;

namespace {

// What stands at one place of a control tuple.
enum class Field : std::uint8_t {
  kEnd,
  kSkipAtom,  // the empty atom where a cookie once stood
  kFromPid,
  kFromProcess,  // a pid or an atom
  kToPid,
  kToProcess,
  kToName,
  kToAlias,
  kRef,
  kId,  // 1 to 2^64 - 1
  kFlags,
  kReason,
  kToken,
  kLeader,
  kMfa,
  kOptions,
  kSpawned,  // a pid, or an atom that says why there is none
};

enum class Payload : std::uint8_t { kNone, kOne };

struct Shape {
  std::string_view name;  // empty: nobody defined this number
  Payload payload = Payload::kNone;
  std::array<Field, 6> fields{};

  constexpr std::uint32_t arity() const {
    std::uint32_t count = 1;
    for (const Field field : fields) count += field == Field::kEnd ? 0 : 1;
    return count;
  }
};

constexpr std::size_t kOps = 38;

constexpr std::array<Shape, kOps> shapes() {
  using enum Field;
  constexpr Payload none = Payload::kNone;
  constexpr Payload one = Payload::kOne;
  std::array<Shape, kOps> table{};
  const auto set = [&table](Op op, Shape shape) { table[static_cast<std::size_t>(op)] = shape; };
  set(Op::kLink, {"LINK", none, {kFromPid, kToPid}});
  set(Op::kSend, {"SEND", one, {kSkipAtom, kToPid}});
  set(Op::kExit, {"EXIT", none, {kFromPid, kToPid, kReason}});
  set(Op::kUnlink, {"UNLINK", none, {kFromPid, kToPid}});
  set(Op::kNodeLink, {"NODE_LINK", none, {}});
  set(Op::kRegSend, {"REG_SEND", one, {kFromPid, kSkipAtom, kToName}});
  set(Op::kGroupLeader, {"GROUP_LEADER", none, {kFromPid, kToPid}});
  set(Op::kExit2, {"EXIT2", none, {kFromPid, kToPid, kReason}});
  set(Op::kSendTt, {"SEND_TT", one, {kSkipAtom, kToPid, kToken}});
  set(Op::kExitTt, {"EXIT_TT", none, {kFromPid, kToPid, kToken, kReason}});
  set(Op::kRegSendTt, {"REG_SEND_TT", one, {kFromPid, kSkipAtom, kToName, kToken}});
  set(Op::kExit2Tt, {"EXIT2_TT", none, {kFromPid, kToPid, kToken, kReason}});
  set(Op::kMonitorP, {"MONITOR_P", none, {kFromPid, kToProcess, kRef}});
  set(Op::kDemonitorP, {"DEMONITOR_P", none, {kFromPid, kToProcess, kRef}});
  set(Op::kMonitorPExit, {"MONITOR_P_EXIT", none, {kFromProcess, kToPid, kRef, kReason}});
  set(Op::kSendSender, {"SEND_SENDER", one, {kFromPid, kToPid}});
  set(Op::kSendSenderTt, {"SEND_SENDER_TT", one, {kFromPid, kToPid, kToken}});
  set(Op::kPayloadExit, {"PAYLOAD_EXIT", one, {kFromPid, kToPid}});
  set(Op::kPayloadExitTt, {"PAYLOAD_EXIT_TT", one, {kFromPid, kToPid, kToken}});
  set(Op::kPayloadExit2, {"PAYLOAD_EXIT2", one, {kFromPid, kToPid}});
  set(Op::kPayloadExit2Tt, {"PAYLOAD_EXIT2_TT", one, {kFromPid, kToPid, kToken}});
  set(Op::kPayloadMonitorPExit, {"PAYLOAD_MONITOR_P_EXIT", one, {kFromProcess, kToPid, kRef}});
  set(Op::kSpawnRequest, {"SPAWN_REQUEST", one, {kRef, kFromPid, kLeader, kMfa, kOptions}});
  set(Op::kSpawnRequestTt,
      {"SPAWN_REQUEST_TT", one, {kRef, kFromPid, kLeader, kMfa, kOptions, kToken}});
  set(Op::kSpawnReply, {"SPAWN_REPLY", none, {kRef, kToPid, kFlags, kSpawned}});
  set(Op::kSpawnReplyTt, {"SPAWN_REPLY_TT", none, {kRef, kToPid, kFlags, kSpawned, kToken}});
  set(Op::kAliasSend, {"ALIAS_SEND", one, {kFromPid, kToAlias}});
  set(Op::kAliasSendTt, {"ALIAS_SEND_TT", one, {kFromPid, kToAlias, kToken}});
  set(Op::kUnlinkId, {"UNLINK_ID", none, {kId, kFromPid, kToPid}});
  set(Op::kUnlinkIdAck, {"UNLINK_ID_ACK", none, {kId, kFromPid, kToPid}});
  set(Op::kAltactSigSend,
      {"ALTACT_SIG_SEND", one, {kFlags, kFromPid}});  // the rest depends on the flags
  return table;
}

constexpr std::array<Shape, kOps> kShapes = shapes();

// Moves a value out of `result` into `out`, or passes the error on.
template <class T>
Status keep(Result<T>&& result, T& out) {
  if (!result) return result.error();
  out = std::move(*result);
  return base::Done{};
}

bool is_pid_tag(std::uint8_t tag) { return tag == etf::kNewPid || tag == etf::kPid; }

Status take_pid(Reader& in, Party& party) {
  party.kind = Party::Kind::kPid;
  return keep(in.pid(), party.pid);
}

Status take_name(Reader& in, Party& party) {
  party.kind = Party::Kind::kName;
  return keep(in.atom(), party.name);
}

Status take_alias(Reader& in, Party& party) {
  party.kind = Party::Kind::kAlias;
  return keep(in.reference(), party.alias);
}

Status take_process(Reader& in, Party& party) {
  auto tag = in.peek();
  if (!tag) return tag.error();
  return is_pid_tag(*tag) ? take_pid(in, party) : take_name(in, party);
}

Status take_id(Reader& in, std::uint64_t& id) {
  const std::size_t at = in.offset();
  if (auto status = keep(in.unsigned_integer(), id); !status) return status;
  if (id == 0) return Error{ErrorCode::kMalformed, at, "an unlink id of 0"};
  return base::Done{};
}

// Flags may grow beyond 64 bits one day; only the low ones mean anything today.
Status take_flags(Reader& in, std::uint64_t& flags) {
  const std::size_t at = in.offset();
  if (auto small = in.unsigned_integer()) {
    flags = *small;
    return base::Done{};
  }
  auto big = in.term();
  if (!big) return big.error();
  const std::size_t header = (*big)[0] == etf::kSmallBig ? 3 : (*big)[0] == etf::kLargeBig ? 6 : 0;
  if (header == 0 || (*big)[header - 1] != 0)
    return Error{ErrorCode::kWrongType, at, "flags are no natural number"};
  flags = 0;
  for (std::size_t i = 0; i < 8 && header + i < big->size(); ++i) {
    flags |= std::uint64_t{(*big)[header + i]} << (8 * i);
  }
  return base::Done{};
}

Status take_mfa(Reader& in, Control& out) {
  const std::size_t at = in.offset();
  auto arity = in.tuple();
  if (!arity) return arity.error();
  if (*arity != 3) return Error{ErrorCode::kWrongType, at, "module, function and arity are three"};
  if (auto status = keep(in.atom(), out.module); !status) return status;
  if (auto status = keep(in.atom(), out.function); !status) return status;
  const std::size_t count_at = in.offset();
  auto count = in.unsigned_integer();
  if (!count) return count.error();
  if (*count > 255)
    return Error{ErrorCode::kMalformed, count_at, "a function takes at most 255 arguments"};
  out.arity = static_cast<std::uint32_t>(*count);
  return base::Done{};
}

Status take_options(Reader& in, Bytes& out) {
  auto tag = in.peek();
  if (!tag) return tag.error();
  if (*tag != etf::kList && *tag != etf::kNil)
    return Error{ErrorCode::kWrongType, in.offset(), "options are a list"};
  return keep(in.term(), out);
}

Status take_field(Field field, Reader& in, Control& out) {
  switch (field) {
    case Field::kEnd:
      return base::Done{};
    case Field::kSkipAtom: {
      etf::AtomView ignored;
      return keep(in.atom(), ignored);
    }
    case Field::kFromPid:
      return take_pid(in, out.from);
    case Field::kFromProcess:
      return take_process(in, out.from);
    case Field::kToPid:
      return take_pid(in, out.to);
    case Field::kToProcess:
      return take_process(in, out.to);
    case Field::kToName:
      return take_name(in, out.to);
    case Field::kToAlias:
      return take_alias(in, out.to);
    case Field::kRef:
      return keep(in.reference(), out.ref);
    case Field::kId:
      return take_id(in, out.id);
    case Field::kFlags:
      return take_flags(in, out.flags);
    case Field::kReason:
      return keep(in.term(), out.reason);
    case Field::kToken:
      return keep(in.term(), out.token);
    case Field::kLeader:
      return keep(in.pid(), out.group_leader);
    case Field::kMfa:
      return take_mfa(in, out);
    case Field::kOptions:
      return take_options(in, out.options);
    case Field::kSpawned:
      return take_process(in, out.spawned);
  }
  return base::Done{};
}

Status skip_terms(Reader& in, std::uint32_t count) {
  for (; count > 0; --count) {
    if (auto term = in.term(); !term) return term.error();
  }
  return base::Done{};
}

// {37, Flags, From, To [, Token], ...}: later versions may append more, which is passed over.
Status take_altact_rest(Reader& in, Control& out, std::uint32_t arity) {
  const bool has_token = (out.flags & kAltactToken) != 0;
  const bool has_name = (out.flags & kAltactName) != 0;
  const bool has_alias = (out.flags & kAltactAlias) != 0;
  if (has_name && has_alias)
    return Error{ErrorCode::kMalformed, in.offset(), "a receiver is a name or an alias"};
  if (has_token && arity < 5)
    return Error{ErrorCode::kMalformed, in.offset(), "a token is announced and missing"};
  auto status = has_alias  ? take_alias(in, out.to)
                : has_name ? take_name(in, out.to)
                           : take_pid(in, out.to);
  if (!status) return status;
  std::uint32_t left = arity - 4;
  if (has_token) {
    if (status = keep(in.term(), out.token); !status) return status;
    --left;
  }
  return skip_terms(in, left);
}

Status take_fields(const Shape& shape, Reader& in, Control& out, std::uint32_t arity) {
  const bool altact = out.op == Op::kAltactSigSend;
  if (altact ? arity < 4 : arity != shape.arity()) {
    return Error{ErrorCode::kMalformed, in.offset(), "a tuple of " + std::to_string(arity)};
  }
  for (const Field field : shape.fields) {
    if (field == Field::kEnd) break;
    if (auto status = take_field(field, in, out); !status) return status;
  }
  return altact ? take_altact_rest(in, out, arity) : Status(base::Done{});
}

Error named(Error error, std::string_view op) {
  error.detail = std::string("control message ") + std::string(op) +
                 (error.detail.empty() ? "" : ": ") + error.detail;
  return error;
}

// {Op, ...} up to the first identifier, written by hand: arity and number both fit a byte.
Writer& begin(Writer& out, std::uint8_t arity, Op op) {
  const std::array<std::uint8_t, 4> header{etf::kSmallTuple, arity, etf::kSmallInteger,
                                           static_cast<std::uint8_t>(op)};
  return out.raw(header);
}

constexpr std::array<std::uint8_t, 2> kEmptyAtom{etf::kSmallAtomUtf8, 0};

}  // namespace

std::string_view to_string(Op op) {
  const auto number = static_cast<std::size_t>(op);
  return number < kOps && !kShapes[number].name.empty() ? kShapes[number].name : "UNKNOWN";
}

Result<Control> parse_control(Reader& in) {
  Result<Control> result{Control{}};
  Control& out = *result;
  const std::size_t start = in.offset();
  auto arity = in.tuple();
  if (!arity) return named(arity.error(), "without a tuple");
  if (*arity == 0) return Error{ErrorCode::kMalformed, start, "control message without a number"};
  auto opcode = in.unsigned_integer();
  if (!opcode) return named(opcode.error(), "without a number");
  out.opcode = *opcode;
  const Shape& shape = kShapes[*opcode < kOps ? *opcode : 0];
  if (shape.name.empty()) {
    if (auto status = skip_terms(in, *arity - 1); !status)
      return named(status.error(), std::to_string(*opcode));
    out.has_payload = !in.at_end();
    return result;
  }
  out.op = static_cast<Op>(*opcode);
  if (auto status = take_fields(shape, in, out, *arity); !status)
    return named(status.error(), shape.name);
  out.has_payload = shape.payload == Payload::kOne;
  if (out.has_payload == in.at_end()) {
    return Error{ErrorCode::kMalformed, in.offset(),
                 std::string("control message ") + std::string(shape.name) +
                     (out.has_payload ? " without its payload" : " with bytes behind it")};
  }
  return result;
}

Result<SpawnOptions> parse_spawn_options(Bytes options) {
  Reader in(options);
  SpawnOptions out;
  auto count = in.list();
  if (!count) return count.error();
  for (std::uint32_t i = 0; i < *count; ++i) {
    const std::size_t at = in.offset();
    if (auto word = in.atom()) {
      if (*word == "link") out.link = true;
      if (*word == "monitor") out.monitor = true;
      continue;
    }
    auto whole = in.term();
    if (!whole) return whole.error();
    Reader option(*whole);
    auto arity = option.tuple();
    if (!arity || *arity != 2)
      return Error{ErrorCode::kWrongType, at, "a spawn option is an atom or a pair"};
    auto key = option.atom();
    if (!key) return Error{ErrorCode::kWrongType, at, "a spawn option's key is an atom"};
    if (*key == "monitor") out.monitor = true;
  }
  if (*count > 0) {
    if (auto tail = in.nil(); !tail) return tail.error();
  }
  return out;
}

void append_send(Writer& out, Raw to_pid) { begin(out, 3, Op::kSend).raw(kEmptyAtom).raw(to_pid); }

void append_send_sender(Writer& out, Raw from_pid, Raw to_pid) {
  begin(out, 3, Op::kSendSender).raw(from_pid).raw(to_pid);
}

void append_reg_send(Writer& out, Raw from_pid, std::string_view to_name) {
  begin(out, 4, Op::kRegSend).raw(from_pid).raw(kEmptyAtom).atom(to_name);
}

void append_alias_send(Writer& out, Raw from_pid, Raw alias) {
  begin(out, 3, Op::kAliasSend).raw(from_pid).raw(alias);
}

void append_altact_send(Writer& out, std::uint64_t flags, Raw from_pid, Raw to) {
  begin(out, 4, Op::kAltactSigSend).unsigned_integer(flags).raw(from_pid).raw(to);
}

void append_link(Writer& out, Raw from_pid, Raw to_pid) {
  begin(out, 3, Op::kLink).raw(from_pid).raw(to_pid);
}

void append_unlink_id(Writer& out, std::uint64_t id, Raw from_pid, Raw to_pid) {
  begin(out, 4, Op::kUnlinkId).unsigned_integer(id).raw(from_pid).raw(to_pid);
}

void append_unlink_id_ack(Writer& out, std::uint64_t id, Raw from_pid, Raw to_pid) {
  begin(out, 4, Op::kUnlinkIdAck).unsigned_integer(id).raw(from_pid).raw(to_pid);
}

void append_group_leader(Writer& out, Raw leader_pid, Raw to_pid) {
  begin(out, 3, Op::kGroupLeader).raw(leader_pid).raw(to_pid);
}

void append_exit(Writer& out, Raw from_pid, Raw to_pid, Raw reason) {
  begin(out, 4, Op::kExit).raw(from_pid).raw(to_pid).raw(reason);
}

void append_payload_exit(Writer& out, Raw from_pid, Raw to_pid) {
  begin(out, 3, Op::kPayloadExit).raw(from_pid).raw(to_pid);
}

void append_exit2(Writer& out, Raw from_pid, Raw to_pid, Raw reason) {
  begin(out, 4, Op::kExit2).raw(from_pid).raw(to_pid).raw(reason);
}

void append_payload_exit2(Writer& out, Raw from_pid, Raw to_pid) {
  begin(out, 3, Op::kPayloadExit2).raw(from_pid).raw(to_pid);
}

void append_monitor_p(Writer& out, Raw from_pid, Raw to_process, Raw ref) {
  begin(out, 4, Op::kMonitorP).raw(from_pid).raw(to_process).raw(ref);
}

void append_demonitor_p(Writer& out, Raw from_pid, Raw to_process, Raw ref) {
  begin(out, 4, Op::kDemonitorP).raw(from_pid).raw(to_process).raw(ref);
}

void append_monitor_p_exit(Writer& out, Raw from_process, Raw to_pid, Raw ref, Raw reason) {
  begin(out, 5, Op::kMonitorPExit).raw(from_process).raw(to_pid).raw(ref).raw(reason);
}

void append_payload_monitor_p_exit(Writer& out, Raw from_process, Raw to_pid, Raw ref) {
  begin(out, 4, Op::kPayloadMonitorPExit).raw(from_process).raw(to_pid).raw(ref);
}

void append_spawn_request(Writer& out, Raw request, Raw from_pid, Raw leader_pid,
                          std::string_view module, std::string_view function, std::uint32_t arity,
                          Raw options) {
  begin(out, 6, Op::kSpawnRequest).raw(request).raw(from_pid).raw(leader_pid);
  out.tuple(3).atom(module).atom(function).unsigned_integer(arity).raw(options);
}

void append_spawn_reply(Writer& out, Raw request, Raw to_pid, std::uint64_t flags, Raw result) {
  begin(out, 5, Op::kSpawnReply).raw(request).raw(to_pid).unsigned_integer(flags).raw(result);
}

}  // namespace dist
