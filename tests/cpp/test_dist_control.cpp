#include <functional>
#include <string>
#include <vector>

#include "cnode/dist/control.hpp"
#include "tests/cpp/catch.hpp"

using base::ErrorCode;
using dist::Control;
using dist::Op;
using dist::Party;
using Bytes = std::vector<std::uint8_t>;

namespace {

Bytes term(const std::function<void(etf::Writer&)>& write) {
  etf::Buffer buffer;
  etf::Writer writer(buffer);
  write(writer);
  return {buffer.data(), buffer.data() + buffer.size()};
}

Bytes atom(std::string_view name) {
  return term([&](etf::Writer& out) { out.atom(name); });
}
Bytes number(std::int64_t value) {
  return term([&](etf::Writer& out) { out.integer(value); });
}

const Bytes kFrom = term([](etf::Writer& out) { out.pid({"beam@host", 100, 1, 77}); });
const Bytes kTo = term([](etf::Writer& out) { out.pid({"py@host", 7, 0, 1700000}); });
const Bytes kRef = term([](etf::Writer& out) { out.reference({"beam@host", 77, 3, {1, 2, 3}}); });
const Bytes kAlias = term([](etf::Writer& out) {
  out.reference({"beam@host", 77, 5, {9, 8, 7, 6, 5}});
});
const Bytes kName = atom("server");
const Bytes kEmpty = atom("");
const Bytes kReason = term([](etf::Writer& out) { out.tuple(2).atom("badarg").nil(); });
const Bytes kToken = term([](etf::Writer& out) { out.tuple(2).integer(1).atom("label"); });
const Bytes kMfa =
    term([](etf::Writer& out) { out.tuple(3).atom("math").atom("sqrt").integer(1); });
const Bytes kOptions = term([](etf::Writer& out) { out.list(1).atom("monitor").nil(); });
const Bytes kMessage = term([](etf::Writer& out) { out.tuple(2).atom("call").binary("x"); });

// {Op, Elements...}
Bytes tuple(std::uint8_t op, const std::vector<Bytes>& elements) {
  Bytes bytes{104, static_cast<std::uint8_t>(elements.size() + 1), 97, op};
  for (const Bytes& element : elements) bytes.insert(bytes.end(), element.begin(), element.end());
  return bytes;
}

Bytes operator+(Bytes left, const Bytes& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

struct Example {
  Op op;
  std::vector<Bytes> elements;
  bool has_payload;
};

// One of every kind there is.
const std::vector<Example> kExamples{
    {Op::kLink, {kFrom, kTo}, false},
    {Op::kSend, {kEmpty, kTo}, true},
    {Op::kExit, {kFrom, kTo, kReason}, false},
    {Op::kUnlink, {kFrom, kTo}, false},
    {Op::kNodeLink, {}, false},
    {Op::kRegSend, {kFrom, kEmpty, kName}, true},
    {Op::kGroupLeader, {kFrom, kTo}, false},
    {Op::kExit2, {kFrom, kTo, kReason}, false},
    {Op::kSendTt, {kEmpty, kTo, kToken}, true},
    {Op::kExitTt, {kFrom, kTo, kToken, kReason}, false},
    {Op::kRegSendTt, {kFrom, kEmpty, kName, kToken}, true},
    {Op::kExit2Tt, {kFrom, kTo, kToken, kReason}, false},
    {Op::kMonitorP, {kFrom, kTo, kRef}, false},
    {Op::kMonitorP, {kFrom, kName, kRef}, false},
    {Op::kDemonitorP, {kFrom, kTo, kRef}, false},
    {Op::kDemonitorP, {kFrom, kName, kRef}, false},
    {Op::kMonitorPExit, {kFrom, kTo, kRef, kReason}, false},
    {Op::kMonitorPExit, {kName, kTo, kRef, kReason}, false},
    {Op::kSendSender, {kFrom, kTo}, true},
    {Op::kSendSenderTt, {kFrom, kTo, kToken}, true},
    {Op::kPayloadExit, {kFrom, kTo}, true},
    {Op::kPayloadExitTt, {kFrom, kTo, kToken}, true},
    {Op::kPayloadExit2, {kFrom, kTo}, true},
    {Op::kPayloadExit2Tt, {kFrom, kTo, kToken}, true},
    {Op::kPayloadMonitorPExit, {kFrom, kTo, kRef}, true},
    {Op::kPayloadMonitorPExit, {kName, kTo, kRef}, true},
    {Op::kSpawnRequest, {kRef, kFrom, kFrom, kMfa, kOptions}, true},
    {Op::kSpawnRequestTt, {kRef, kFrom, kFrom, kMfa, kOptions, kToken}, true},
    {Op::kSpawnReply, {kRef, kTo, number(2), kFrom}, false},
    {Op::kSpawnReply, {kRef, kTo, number(0), kName}, false},
    {Op::kSpawnReplyTt, {kRef, kTo, number(2), kFrom, kToken}, false},
    {Op::kAliasSend, {kFrom, kAlias}, true},
    {Op::kAliasSendTt, {kFrom, kAlias, kToken}, true},
    {Op::kUnlinkId, {number(5), kFrom, kTo}, false},
    {Op::kUnlinkIdAck, {number(5), kFrom, kTo}, false},
    {Op::kAltactSigSend, {number(0), kFrom, kTo}, true},
    {Op::kAltactSigSend, {number(4), kFrom, kAlias}, true},
    {Op::kAltactSigSend, {number(8), kFrom, kName}, true},
    {Op::kAltactSigSend, {number(2 + 16), kFrom, kTo, kToken}, true},
};

Bytes bytes_of(const Example& example) {
  const Bytes control = tuple(static_cast<std::uint8_t>(example.op), example.elements);
  return example.has_payload ? control + kMessage : control;
}

base::Result<Control> parse(const Bytes& bytes) {
  etf::Reader reader(bytes);
  return dist::parse_control(reader);
}

Bytes copy(etf::Bytes bytes) { return {bytes.begin(), bytes.end()}; }

Control parsed(const Bytes& bytes) {
  auto control = parse(bytes);
  REQUIRE(control.ok());
  return *control;
}

Bytes written(const std::function<void(etf::Writer&)>& write) { return term(write); }

}  // namespace

TEST_CASE("every kind of control message is read, up to its payload", "[dist][control]") {
  for (const Example& example : kExamples) {
    const Bytes bytes = bytes_of(example);
    etf::Reader reader(bytes);
    auto control = dist::parse_control(reader);
    INFO(dist::to_string(example.op));
    REQUIRE(control.ok());
    CHECK(control->op == example.op);
    CHECK(control->opcode == static_cast<std::uint8_t>(example.op));
    CHECK(control->has_payload == example.has_payload);
    CHECK(copy(reader.rest()) == (example.has_payload ? kMessage : Bytes{}));
  }
}

TEST_CASE("the places of every kind are filled with what stands there", "[dist][control]") {
  for (const Example& example : kExamples) {
    const Bytes bytes = bytes_of(example);
    const Control control = parsed(bytes);
    INFO(dist::to_string(example.op));
    const auto contains = [&](const Bytes& wanted) {
      return std::find(example.elements.begin(), example.elements.end(), wanted) !=
             example.elements.end();
    };
    CHECK((control.from.kind == Party::Kind::kPid && copy(control.from.pid.raw) == kFrom) ==
          (contains(kFrom) && example.op != Op::kSpawnReply && example.op != Op::kSpawnReplyTt));
    CHECK((control.to.kind == Party::Kind::kPid && copy(control.to.pid.raw) == kTo) ==
          contains(kTo));
    CHECK((control.to.kind == Party::Kind::kAlias && copy(control.to.alias.raw) == kAlias) ==
          contains(kAlias));
    CHECK((copy(control.ref.raw) == kRef) == contains(kRef));
    CHECK((copy(control.reason) == kReason) == contains(kReason));
    CHECK((copy(control.token) == kToken) == contains(kToken));
    CHECK((copy(control.options) == kOptions) == contains(kOptions));
  }
}

TEST_CASE("names stand where names may stand", "[dist][control]") {
  CHECK(parsed(tuple(6, {kFrom, kEmpty, kName}) + kMessage).to.name == "server");
  CHECK(parsed(tuple(6, {kFrom, kEmpty, kName}) + kMessage).to.kind == Party::Kind::kName);
  CHECK(parsed(tuple(19, {kFrom, kName, kRef})).to.name == "server");
  CHECK(parsed(tuple(21, {kName, kTo, kRef, kReason})).from.name == "server");
  CHECK(parsed(tuple(37, {number(8), kFrom, kName}) + kMessage).to.name == "server");
}

TEST_CASE("a spawn request tells module, function, arity and group leader", "[dist][control]") {
  const Bytes bytes = tuple(29, {kRef, kFrom, kTo, kMfa, kOptions}) + kMessage;
  const Control control = parsed(bytes);
  CHECK(control.module == "math");
  CHECK(control.function == "sqrt");
  CHECK(control.arity == 1);
  CHECK(copy(control.group_leader.raw) == kTo);
  CHECK(copy(control.from.pid.raw) == kFrom);
}

TEST_CASE("a spawn request for no function there can be is an error", "[dist][control]") {
  const Bytes wide = term([](etf::Writer& out) { out.tuple(3).atom("m").atom("f").integer(256); });
  const Bytes pair = term([](etf::Writer& out) { out.tuple(2).atom("m").atom("f"); });
  for (const Bytes& mfa : {wide, pair}) {
    CHECK_FALSE(parse(tuple(29, {kRef, kFrom, kTo, mfa, kOptions}) + kMessage).ok());
  }
}

TEST_CASE("a spawn reply tells the new pid and what it is tied to, or why there is none",
          "[dist][control]") {
  const Bytes yes = tuple(31, {kRef, kTo, number(3), kFrom});
  const Control spawned = parsed(yes);
  CHECK(spawned.flags == (dist::kSpawnedWithLink | dist::kSpawnedWithMonitor));
  CHECK(spawned.spawned.kind == Party::Kind::kPid);
  CHECK(spawned.spawned.pid.id == 100);
  const Bytes no = tuple(31, {kRef, kTo, number(0), atom("notsup")});
  const Control refused = parsed(no);
  CHECK(refused.spawned.kind == Party::Kind::kName);
  CHECK(refused.spawned.name == "notsup");
}

TEST_CASE("unlink ids are 1 to 2^64 - 1", "[dist][control]") {
  CHECK(parsed(tuple(35, {number(1), kFrom, kTo})).id == 1);
  const Bytes most = term([](etf::Writer& out) { out.unsigned_integer(UINT64_MAX); });
  CHECK(parsed(tuple(36, {most, kFrom, kTo})).id == UINT64_MAX);
  CHECK(parse(tuple(35, {number(0), kFrom, kTo})).error().code == ErrorCode::kMalformed);
  CHECK_FALSE(parse(tuple(35, {number(-1), kFrom, kTo})).ok());
}

TEST_CASE("an alternative signal may carry more than we know", "[dist][control]") {
  const Bytes longer = tuple(37, {number(2), kFrom, kTo, kToken, kReason, kReason}) + kMessage;
  const Control control = parsed(longer);
  CHECK(copy(control.token) == kToken);
  CHECK(control.has_payload);

  const Bytes huge_flags{110, 9, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1};  // 2^64 + 4
  const Bytes wide = tuple(37, {huge_flags, kFrom, kAlias}) + kMessage;
  CHECK(parsed(wide).flags == dist::kAltactAlias);
}

TEST_CASE("an alternative signal whose flags and places disagree is an error", "[dist][control]") {
  for (const Bytes& bytes : {
           tuple(37, {number(2), kFrom, kTo}) + kMessage,      // a token announced, none there
           tuple(37, {number(4), kFrom, kTo}) + kMessage,      // an alias announced, a pid there
           tuple(37, {number(8), kFrom, kTo}) + kMessage,      // a name announced, a pid there
           tuple(37, {number(0), kFrom, kAlias}) + kMessage,   // a pid announced, an alias there
           tuple(37, {number(12), kFrom, kAlias}) + kMessage,  // both a name and an alias
           tuple(37, {number(-1), kFrom, kTo}) + kMessage,
           tuple(37, {kName, kFrom, kTo}) + kMessage,
           tuple(37, {Bytes{110, 9, 1, 4, 0, 0, 0, 0, 0, 0, 0, 1}, kFrom, kAlias}) + kMessage,
           tuple(37, {number(0), kFrom}) + kMessage,
       }) {
    CHECK_FALSE(parse(bytes).ok());
  }
}

TEST_CASE("every message cut anywhere is an error, unless only its payload is cut",
          "[dist][control]") {
  for (const Example& example : kExamples) {
    const Bytes control = tuple(static_cast<std::uint8_t>(example.op), example.elements);
    INFO(dist::to_string(example.op));
    for (std::size_t size = 0; size < control.size(); ++size) {
      CHECK_FALSE(
          parse(Bytes(control.begin(), control.begin() + static_cast<std::ptrdiff_t>(size))).ok());
    }
    CHECK(parse(control).ok() == !example.has_payload);
    CHECK(parse(control + kMessage).ok() == example.has_payload);
  }
}

TEST_CASE("every message with one byte changed is read or refused, within its bytes",
          "[dist][control]") {
  for (const Example& example : kExamples) {
    const Bytes whole = bytes_of(example);
    for (std::size_t at = 0; at < whole.size(); ++at) {
      for (int value = 0; value < 256; ++value) {
        Bytes changed = whole;
        changed[at] = static_cast<std::uint8_t>(value);
        // An exact allocation, so that a sanitizer sees a step past the end.
        const std::vector<std::uint8_t> exact(changed.begin(), changed.end());
        etf::Reader reader(exact);
        auto control = dist::parse_control(reader);
        if (control) CHECK(reader.offset() <= exact.size());
      }
    }
  }
}

TEST_CASE("a tuple one element short or long is an error", "[dist][control]") {
  for (const Example& example : kExamples) {
    const auto op = static_cast<std::uint8_t>(example.op);
    INFO(dist::to_string(example.op));
    if (!example.elements.empty()) {
      auto fewer = example.elements;
      fewer.pop_back();
      CHECK_FALSE(parse(tuple(op, fewer) + kMessage).ok());
      CHECK_FALSE(parse(tuple(op, fewer)).ok());
    }
    if (example.op == Op::kAltactSigSend) continue;
    auto more = example.elements;
    more.push_back(kReason);
    CHECK_FALSE(parse(tuple(op, more) + kMessage).ok());
    CHECK_FALSE(parse(tuple(op, more)).ok());
  }
}

TEST_CASE("an identifier of the wrong kind is an error in every place", "[dist][control]") {
  for (const Example& example : kExamples) {
    for (std::size_t at = 0; at < example.elements.size(); ++at) {
      const Bytes& element = example.elements[at];
      if (element == kReason || element == kToken) continue;  // any term may stand there
      auto elements = example.elements;
      elements[at] = term([](etf::Writer& out) { out.binary("wrong"); });
      INFO(dist::to_string(example.op) << ", element " << at + 2);
      CHECK_FALSE(parse(tuple(static_cast<std::uint8_t>(example.op), elements) + kMessage).ok());
      CHECK_FALSE(parse(tuple(static_cast<std::uint8_t>(example.op), elements)).ok());
    }
  }
}

TEST_CASE("numbers nobody defined are unknown and tell whether a payload follows",
          "[dist][control]") {
  for (const int op : {0, 9, 10, 11, 14, 15, 17, 38, 99, 255}) {
    const Bytes bytes = tuple(static_cast<std::uint8_t>(op), {kFrom, kTo});
    const Control control = parsed(bytes);
    CHECK(control.op == Op::kUnknown);
    CHECK(control.opcode == static_cast<std::uint64_t>(op));
    CHECK_FALSE(control.has_payload);
    const Bytes longer = bytes + kMessage;
    CHECK(parsed(longer).has_payload);
  }
  const Bytes large = Bytes{104, 2} + number(1'000'000'007) + kName;
  CHECK(parsed(large).opcode == 1'000'000'007);
}

TEST_CASE("what is no tuple with a number in front is an error", "[dist][control]") {
  CHECK_FALSE(parse({}).ok());
  CHECK_FALSE(parse(Bytes{104, 0}).ok());
  CHECK_FALSE(parse(kName).ok());
  CHECK_FALSE(parse(Bytes{104, 2} + kName + kName).ok());
  CHECK_FALSE(parse(Bytes{104, 2} + number(-3) + kName).ok());
  CHECK_FALSE(parse(Bytes{105, 255, 255, 255, 255, 97, 2}).ok());
}

TEST_CASE("an error names the control message", "[dist][control]") {
  CHECK(parse(tuple(6, {kFrom, kEmpty})).error().detail ==
        "control message REG_SEND: a tuple of 3");
  CHECK(parse(tuple(2, {kEmpty, kTo})).error().detail ==
        "control message SEND without its payload");
  CHECK(parse(tuple(1, {kFrom, kTo}) + kMessage).error().detail ==
        "control message LINK with bytes behind it");
}

TEST_CASE("spawn options tell link and monitor", "[dist][control]") {
  const Bytes none{106};
  auto defaults = dist::parse_spawn_options(none);
  REQUIRE(defaults.ok());
  CHECK_FALSE(defaults->link);
  CHECK_FALSE(defaults->monitor);

  const Bytes erpc = term([](etf::Writer& out) {
    out.list(2).tuple(2).atom("reply").atom("error_only").atom("monitor").nil();
  });
  auto options = dist::parse_spawn_options(erpc);
  REQUIRE(options.ok());
  CHECK(options->monitor);

  const Bytes many = term([](etf::Writer& out) {
    out.list(4).atom("link").tuple(2).atom("priority").atom("high");
    out.tuple(2).atom("reply").atom("no").tuple(2).atom("monitor").nil().nil();
  });
  auto all = dist::parse_spawn_options(many);
  REQUIRE(all.ok());
  CHECK(all->link);
  CHECK(all->monitor);
}

TEST_CASE("spawn options that are no proper list of options are an error", "[dist][control]") {
  for (const Bytes& bytes : {
           term([](etf::Writer& out) { out.list(1).integer(1).nil(); }),
           term([](etf::Writer& out) { out.list(1).atom("link").atom("tail"); }),
           term([](etf::Writer& out) { out.list(1).tuple(3).atom("a").atom("b").atom("c").nil(); }),
           term([](etf::Writer& out) { out.list(1).tuple(2).integer(1).atom("b").nil(); }),
           kName,
       }) {
    CHECK_FALSE(dist::parse_spawn_options(bytes).ok());
  }
}

TEST_CASE("each append function writes the tuple of the protocol", "[dist][control]") {
  using etf::Writer;
  CHECK(written([](Writer& out) { dist::append_send(out, kTo); }) == tuple(2, {kEmpty, kTo}));
  CHECK(written([](Writer& out) { dist::append_send_sender(out, kFrom, kTo); }) ==
        tuple(22, {kFrom, kTo}));
  CHECK(written([](Writer& out) { dist::append_reg_send(out, kFrom, "server"); }) ==
        tuple(6, {kFrom, kEmpty, kName}));
  CHECK(written([](Writer& out) { dist::append_alias_send(out, kFrom, kAlias); }) ==
        tuple(33, {kFrom, kAlias}));
  CHECK(written([](Writer& out) {
          dist::append_altact_send(out, dist::kAltactAlias, kFrom, kAlias);
        }) == tuple(37, {number(4), kFrom, kAlias}));
  CHECK(written([](Writer& out) { dist::append_link(out, kFrom, kTo); }) == tuple(1, {kFrom, kTo}));
  CHECK(written([](Writer& out) { dist::append_unlink_id(out, 5, kFrom, kTo); }) ==
        tuple(35, {number(5), kFrom, kTo}));
  CHECK(written([](Writer& out) { dist::append_unlink_id_ack(out, 5, kFrom, kTo); }) ==
        tuple(36, {number(5), kFrom, kTo}));
  CHECK(written([](Writer& out) { dist::append_group_leader(out, kFrom, kTo); }) ==
        tuple(7, {kFrom, kTo}));
  CHECK(written([](Writer& out) { dist::append_exit(out, kFrom, kTo, kReason); }) ==
        tuple(3, {kFrom, kTo, kReason}));
  CHECK(written([](Writer& out) { dist::append_payload_exit(out, kFrom, kTo); }) ==
        tuple(24, {kFrom, kTo}));
  CHECK(written([](Writer& out) { dist::append_exit2(out, kFrom, kTo, kReason); }) ==
        tuple(8, {kFrom, kTo, kReason}));
  CHECK(written([](Writer& out) { dist::append_payload_exit2(out, kFrom, kTo); }) ==
        tuple(26, {kFrom, kTo}));
  CHECK(written([](Writer& out) { dist::append_monitor_p(out, kFrom, kName, kRef); }) ==
        tuple(19, {kFrom, kName, kRef}));
  CHECK(written([](Writer& out) { dist::append_demonitor_p(out, kFrom, kTo, kRef); }) ==
        tuple(20, {kFrom, kTo, kRef}));
  CHECK(written([](Writer& out) { dist::append_monitor_p_exit(out, kName, kTo, kRef, kReason); }) ==
        tuple(21, {kName, kTo, kRef, kReason}));
  CHECK(written([](Writer& out) { dist::append_payload_monitor_p_exit(out, kFrom, kTo, kRef); }) ==
        tuple(28, {kFrom, kTo, kRef}));
  CHECK(written([](Writer& out) {
          dist::append_spawn_request(out, kRef, kFrom, kTo, "math", "sqrt", 1, kOptions);
        }) == tuple(29, {kRef, kFrom, kTo, kMfa, kOptions}));
  CHECK(written([](Writer& out) { dist::append_spawn_reply(out, kRef, kTo, 2, kFrom); }) ==
        tuple(31, {kRef, kTo, number(2), kFrom}));
}

TEST_CASE("a SEND is these bytes", "[dist][control]") {
  const Bytes pid{88, 119, 3, 'a', '@', 'h', 0, 0, 0, 38, 0, 0, 0, 0, 0, 0, 0, 9};
  CHECK(written([&](etf::Writer& out) { dist::append_send(out, pid); }) ==
        Bytes{104, 3, 97, 2, 119, 0} + pid);
}
