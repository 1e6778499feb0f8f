// A frame's body. What parses is written again from its parts and must parse to the same parts.
#include <algorithm>
#include <cstdlib>

#include "cnode/dist/control.hpp"

namespace {

using dist::Control;
using dist::Op;
using dist::Party;
using etf::Bytes;

void require(bool holds) {
  if (!holds) std::abort();
}

bool same(Bytes left, Bytes right) { return std::ranges::equal(left, right); }

bool same(const Party& left, const Party& right) {
  return left.kind == right.kind && same(left.pid.raw, right.pid.raw) &&
         same(left.alias.raw, right.alias.raw) && left.name.utf8() == right.name.utf8();
}

bool same(const Control& left, const Control& right) {
  return left.op == right.op && same(left.from, right.from) && same(left.to, right.to) &&
         left.id == right.id && left.flags == right.flags && same(left.ref.raw, right.ref.raw) &&
         same(left.reason, right.reason) && same(left.options, right.options) &&
         same(left.group_leader.raw, right.group_leader.raw) &&
         left.module.utf8() == right.module.utf8() &&
         left.function.utf8() == right.function.utf8() && left.arity == right.arity &&
         same(left.spawned, right.spawned);
}

// A pid, name or alias as a term of its own.
Bytes raw(const Party& party, etf::Buffer& room) {
  if (party.kind == Party::Kind::kPid) return party.pid.raw;
  if (party.kind == Party::Kind::kAlias) return party.alias.raw;
  etf::Writer(room).atom(party.name.utf8());
  return room.bytes();
}

// False for the kinds nothing writes.
bool write(const Control& in, etf::Writer& out) {
  etf::Buffer from_room;
  etf::Buffer to_room;
  etf::Buffer spawned_room;
  const Bytes from = in.from.kind == Party::Kind::kNone ? Bytes{} : raw(in.from, from_room);
  const Bytes to = in.to.kind == Party::Kind::kNone ? Bytes{} : raw(in.to, to_room);
  switch (in.op) {
    case Op::kSend:
      return dist::append_send(out, to), true;
    case Op::kSendSender:
      return dist::append_send_sender(out, from, to), true;
    case Op::kRegSend:
      return dist::append_reg_send(out, from, in.to.name.utf8()), true;
    case Op::kAliasSend:
      return dist::append_alias_send(out, from, to), true;
    case Op::kAltactSigSend:
      if (!in.token.empty()) return false;
      return dist::append_altact_send(out, in.flags, from, to), true;
    case Op::kLink:
      return dist::append_link(out, from, to), true;
    case Op::kUnlinkId:
      return dist::append_unlink_id(out, in.id, from, to), true;
    case Op::kUnlinkIdAck:
      return dist::append_unlink_id_ack(out, in.id, from, to), true;
    case Op::kGroupLeader:
      return dist::append_group_leader(out, from, to), true;
    case Op::kExit:
      return dist::append_exit(out, from, to, in.reason), true;
    case Op::kPayloadExit:
      return dist::append_payload_exit(out, from, to), true;
    case Op::kExit2:
      return dist::append_exit2(out, from, to, in.reason), true;
    case Op::kPayloadExit2:
      return dist::append_payload_exit2(out, from, to), true;
    case Op::kMonitorP:
      return dist::append_monitor_p(out, from, to, in.ref.raw), true;
    case Op::kDemonitorP:
      return dist::append_demonitor_p(out, from, to, in.ref.raw), true;
    case Op::kMonitorPExit:
      return dist::append_monitor_p_exit(out, from, to, in.ref.raw, in.reason), true;
    case Op::kPayloadMonitorPExit:
      return dist::append_payload_monitor_p_exit(out, from, to, in.ref.raw), true;
    case Op::kSpawnRequest:
      return dist::append_spawn_request(out, in.ref.raw, from, in.group_leader.raw,
                                        in.module.utf8(), in.function.utf8(), in.arity, in.options),
             true;
    case Op::kSpawnReply:
      return dist::append_spawn_reply(out, in.ref.raw, to, in.flags, raw(in.spawned, spawned_room)),
             true;
    default:
      return false;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  etf::Reader reader({data, size});
  auto control = dist::parse_control(reader);
  if (!control) return 0;
  require(reader.offset() <= size);
  require(control->has_payload == !reader.at_end());
  require(!dist::to_string(control->op).empty());
  if (control->op == Op::kSpawnRequest) (void)dist::parse_spawn_options(control->options).ok();

  etf::Buffer bytes;
  etf::Writer writer(bytes);
  if (!write(*control, writer)) return 0;
  bytes.append(reader.rest());
  etf::Reader again(bytes.bytes());
  auto second = dist::parse_control(again);
  require(second.ok());
  require(same(*control, *second));
  return 0;
}
