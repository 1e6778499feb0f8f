#include <string>
#include <utility>
#include <vector>

#include "cnode/dist/digest.hpp"
#include "cnode/dist/handshake.hpp"
#include "cnode/etf/reader.hpp"
#include "tests/cpp/catch.hpp"

using base::ErrorCode;
using dist::Decision;
using dist::Handshake;
using dist::HandshakeConfig;
using Bytes = std::vector<std::uint8_t>;
using Next = Handshake::Step::Next;
using Role = Handshake::Role;

namespace {

// What a BEAM of OTP 25 says it can do.
constexpr std::uint64_t kBeam25 = 0xd07df7fbc;

HandshakeConfig config(std::string name, std::uint32_t creation, std::string cookie = "secret",
                       std::uint64_t flags = dist::kOurFlags) {
  return {std::move(name), creation, flags,
          [cookie = std::move(cookie)](std::string_view) { return cookie; }};
}

Handshake acceptor(std::string cookie = "secret") {
  return {Role::kAcceptor, config("py@host", 0x65000001, std::move(cookie))};
}

Handshake initiator(std::string cookie = "secret", std::uint64_t flags = dist::kOurFlags) {
  return {Role::kInitiator, config("py@host", 0x65000001, std::move(cookie), flags), "beam@host"};
}

class Packet {
 public:
  explicit Packet(std::string_view text) { add(text); }
  Packet& add(std::string_view text) {
    bytes_.insert(bytes_.end(), text.begin(), text.end());
    return *this;
  }
  Packet& add(const dist::Digest& digest) {
    bytes_.insert(bytes_.end(), digest.begin(), digest.end());
    return *this;
  }
  Packet& number(std::uint64_t value, int size) {
    for (int i = size - 1; i >= 0; --i)
      bytes_.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
    return *this;
  }
  operator const Bytes&() const { return bytes_; }  // NOLINT(google-explicit-constructor)
  const Bytes& bytes() const { return bytes_; }

 private:
  Bytes bytes_;
};

Packet name_packet(std::string_view name, std::uint64_t flags = kBeam25,
                   std::uint32_t creation = 77) {
  return Packet("N").number(flags, 8).number(creation, 4).number(name.size(), 2).add(name);
}

Packet challenge_packet(std::string_view name, std::uint32_t challenge,
                        std::uint64_t flags = kBeam25) {
  return Packet("N")
      .number(flags, 8)
      .number(challenge, 4)
      .number(77, 4)
      .number(name.size(), 2)
      .add(name);
}

Bytes bytes_of(std::string_view text) { return Packet(text); }

// An acceptor that has said yes to beam@host, and the challenge it sent.
std::pair<Handshake, std::uint32_t> challenging_acceptor() {
  Handshake handshake = acceptor();
  REQUIRE(handshake.on_packet(name_packet("beam@host").bytes()).ok());
  auto step = handshake.decide(Decision::kOk);
  REQUIRE(step.ok());
  REQUIRE(step->send.size() == 2);
  const std::uint32_t challenge = etf::read_u32(step->send[1].data() + 9);
  return {std::move(handshake), challenge};
}

// An initiator in front of whom beam@host just accepted, and what it answered to challenge 42.
std::pair<Handshake, Bytes> challenged_initiator() {
  Handshake handshake = initiator();
  handshake.start();
  REQUIRE(handshake.on_packet(bytes_of("sok")).ok());
  auto step = handshake.on_packet(challenge_packet("beam@host", 42).bytes());
  REQUIRE(step.ok());
  REQUIRE(step->send.size() == 1);
  return {std::move(handshake), step->send[0]};
}

std::string refusal_of(const Handshake& handshake) {
  return {handshake.refusal().begin(), handshake.refusal().end()};
}

}  // namespace

TEST_CASE("two nodes with one cookie shake hands over memory", "[dist][handshake]") {
  Handshake left(Role::kInitiator, config("a@host", 1001), "b@host");
  Handshake right(Role::kAcceptor, config("b@host", 2002));

  auto name = left.start();
  REQUIRE(name.send.size() == 1);
  REQUIRE(right.on_packet(name.send[0])->next == Next::kNeedDecision);
  CHECK(right.peer().name == "a@host");
  auto accepted = right.decide(Decision::kOk);
  REQUIRE(accepted->send.size() == 2);
  REQUIRE(left.on_packet(accepted->send[0])->next == Next::kContinue);
  auto reply = left.on_packet(accepted->send[1]);
  REQUIRE(reply->send.size() == 1);
  auto ack = right.on_packet(reply->send[0]);
  REQUIRE(ack.ok());
  CHECK(ack->next == Next::kDone);
  REQUIRE(ack->send.size() == 1);
  auto done = left.on_packet(ack->send[0]);
  REQUIRE(done.ok());
  CHECK(done->next == Next::kDone);

  CHECK(left.peer().name == "b@host");
  CHECK(left.peer().creation == 2002);
  CHECK(left.peer().flags == dist::kOurFlags);
  CHECK(left.peer().our_name == "a@host");
  CHECK(left.peer().our_creation == 1001);
  CHECK(right.peer().creation == 1001);
  CHECK(right.peer().flags == dist::kOurFlags);
  CHECK_FALSE(left.peer().simultaneous);
  CHECK_FALSE(left.peer().replaces_link);
}

TEST_CASE("an initiator's packets are byte for byte those of the protocol", "[dist][handshake]") {
  Handshake handshake(Role::kInitiator, config("py@host", 0x01020304, "secret", 0x0d07fd5fbc),
                      "beam@host");
  auto name = handshake.start();
  REQUIRE(name.send.size() == 1);
  CHECK(name.send[0] == Bytes{'N', 0, 0, 0, 0x0d, 0x07, 0xfd, 0x5f, 0xbc, 1,   2,
                              3,   4, 0, 7, 'p',  'y',  '@',  'h',  'o',  's', 't'});
  REQUIRE(handshake.on_packet(bytes_of("sok")).ok());
  auto reply = handshake.on_packet(challenge_packet("beam@host", 42).bytes());
  REQUIRE(reply.ok());
  const Bytes& bytes = reply->send.at(0);
  const std::uint32_t challenge = etf::read_u32(bytes.data() + 1);
  CHECK(bytes == Packet("r").number(challenge, 4).add(dist::digest("secret", 42)).bytes());
  CHECK(handshake.on_packet(Packet("a").add(dist::digest("secret", challenge)).bytes())->next ==
        Next::kDone);
}

TEST_CASE("an acceptor's packets are byte for byte those of the protocol", "[dist][handshake]") {
  Handshake handshake = acceptor();
  REQUIRE(handshake.on_packet(name_packet("beam@host").bytes())->next == Next::kNeedDecision);
  auto step = handshake.decide(Decision::kOk);
  REQUIRE(step->send.size() == 2);
  CHECK(step->send[0] == bytes_of("sok"));
  const std::uint32_t challenge = etf::read_u32(step->send[1].data() + 9);
  CHECK(step->send[1] == Packet("N")
                             .number(dist::kOurFlags, 8)
                             .number(challenge, 4)
                             .number(0x65000001, 4)
                             .number(7, 2)
                             .add("py@host")
                             .bytes());
  auto ack =
      handshake.on_packet(Packet("r").number(7, 4).add(dist::digest("secret", challenge)).bytes());
  REQUIRE(ack.ok());
  CHECK(ack->next == Next::kDone);
  CHECK(ack->send.at(0) == Packet("a").add(dist::digest("secret", 7)).bytes());
}

TEST_CASE("a link may use what both sides can do, and the peer's offer is kept",
          "[dist][handshake]") {
  Handshake handshake = acceptor();
  REQUIRE(handshake.on_packet(name_packet("beam@host").bytes()).ok());
  CHECK(handshake.peer().offered == kBeam25);
  CHECK(handshake.peer().flags == (kBeam25 & dist::kOurFlags));
  CHECK((handshake.peer().flags & dist::kDistHdrAtomCache) == 0);
  CHECK((handshake.peer().flags & dist::kAltactSig) == 0);
  CHECK((handshake.peer().flags & dist::kFragments) != 0);
  CHECK(handshake.peer().creation == 77);
}

TEST_CASE("our flags are hidden, without atom cache and without native records",
          "[dist][handshake]") {
  CHECK((dist::kOurFlags & (dist::kPublished | dist::kDistHdrAtomCache | dist::kNativeRecords)) ==
        0);
  CHECK(dist::missing_mandatory(dist::kOurFlags).empty());
  CHECK((dist::kOurFlags & dist::kDistMonitor) != 0);
  CHECK((dist::kOurFlags & dist::kDistMonitorName) != 0);
  CHECK(dist::kMandatory25Digest == 1u << 26);
}

TEST_CASE("the digest of mandatory flags stands for each of them", "[dist][handshake]") {
  const std::uint64_t brief = dist::kMandatory25Digest | dist::kV4Nc | dist::kUnlinkId;
  CHECK(dist::missing_mandatory(brief).empty());
  Handshake handshake = acceptor();
  REQUIRE(handshake.on_packet(name_packet("beam@host", brief).bytes()).ok());
  CHECK((handshake.peer().flags & dist::kMandatory25) == dist::kMandatory25);
}

TEST_CASE("what follows the name in its packet is left to later versions", "[dist][handshake]") {
  Handshake handshake = acceptor();
  CHECK(handshake.on_packet(name_packet("beam@host").add("more").bytes())->next ==
        Next::kNeedDecision);
  CHECK(handshake.peer().name == "beam@host");

  Handshake other = initiator();
  other.start();
  REQUIRE(other.on_packet(bytes_of("sok")).ok());
  CHECK(other.on_packet(challenge_packet("beam@host", 42).add("more").bytes()).ok());
}

TEST_CASE("a wrong cookie is refused by the acceptor", "[dist][handshake]") {
  auto [handshake, challenge] = challenging_acceptor();
  auto result =
      handshake.on_packet(Packet("r").number(7, 4).add(dist::digest("wrong", challenge)).bytes());
  REQUIRE_FALSE(result.ok());
  CHECK(result.error().code == ErrorCode::kRefused);
  CHECK(result.error().detail == "handshake with beam@host: the cookie does not match");
}

TEST_CASE("a wrong cookie is refused by the initiator", "[dist][handshake]") {
  auto [handshake, reply] = challenged_initiator();
  const std::uint32_t challenge = etf::read_u32(reply.data() + 1);
  auto result = handshake.on_packet(Packet("a").add(dist::digest("wrong", challenge)).bytes());
  REQUIRE_FALSE(result.ok());
  CHECK(result.error().code == ErrorCode::kRefused);
}

TEST_CASE("no single bit of a proof can be wrong", "[dist][handshake]") {
  for (std::size_t bit = 0; bit < 128; ++bit) {
    auto [handshake, challenge] = challenging_acceptor();
    dist::Digest digest = dist::digest("secret", challenge);
    digest[bit / 8] = static_cast<std::uint8_t>(digest[bit / 8] ^ (1u << (bit % 8)));
    CHECK_FALSE(handshake.on_packet(Packet("r").number(7, 4).add(digest).bytes()).ok());
  }
}

TEST_CASE("challenges are not repeated", "[dist][handshake]") {
  const std::uint32_t first = challenging_acceptor().second;
  const std::uint32_t second = challenging_acceptor().second;
  const std::uint32_t third = challenging_acceptor().second;
  CHECK_FALSE((first == second && second == third));
}

TEST_CASE("each cookie is asked for by the peer's name", "[dist][handshake]") {
  std::vector<std::string> asked;
  HandshakeConfig mine = config("py@host", 1001);
  mine.cookie = [&asked](std::string_view peer) {
    asked.emplace_back(peer);
    return std::string("secret");
  };
  Handshake handshake(Role::kAcceptor, mine);
  REQUIRE(handshake.on_packet(name_packet("beam@host").bytes()).ok());
  auto step = handshake.decide(Decision::kOk);
  const std::uint32_t challenge = etf::read_u32(step->send.at(1).data() + 9);
  REQUIRE(
      handshake.on_packet(Packet("r").number(7, 4).add(dist::digest("secret", challenge)).bytes())
          .ok());
  CHECK(asked == std::vector<std::string>{"beam@host"});
}

TEST_CASE("the acceptor says no in the protocol's words and is then closed", "[dist][handshake]") {
  const auto [decision, word] = GENERATE(table<Decision, std::string>(
      {{Decision::kNok, "snok"}, {Decision::kNotAllowed, "snot_allowed"}}));
  Handshake handshake = acceptor();
  REQUIRE(handshake.on_packet(name_packet("beam@host").bytes()).ok());
  auto step = handshake.decide(decision);
  REQUIRE(step.ok());
  CHECK(step->next == Next::kClose);
  CHECK(step->send.at(0) == bytes_of(word));
  CHECK_FALSE(handshake.on_packet(bytes_of("strue")).ok());
}

TEST_CASE("the acceptor tells an initiator whose attempt wins a simultaneous connect",
          "[dist][handshake]") {
  Handshake handshake = acceptor();
  REQUIRE(handshake.on_packet(name_packet("beam@host").bytes()).ok());
  auto step = handshake.decide(Decision::kOkSimultaneous);
  REQUIRE(step->send.size() == 2);
  CHECK(step->send[0] == bytes_of("sok_simultaneous"));
  CHECK(handshake.peer().simultaneous);
}

TEST_CASE("an acceptor with an old link asks, and goes on when told true", "[dist][handshake]") {
  Handshake handshake = acceptor();
  REQUIRE(handshake.on_packet(name_packet("beam@host").bytes()).ok());
  auto asked = handshake.decide(Decision::kAlive);
  REQUIRE(asked->send.size() == 1);
  CHECK(asked->send[0] == bytes_of("salive"));
  auto step = handshake.on_packet(bytes_of("strue"));
  REQUIRE(step.ok());
  REQUIRE(step->send.size() == 1);
  CHECK(step->send[0][0] == 'N');
  CHECK(handshake.peer().replaces_link);
  const std::uint32_t challenge = etf::read_u32(step->send[0].data() + 9);
  CHECK(
      handshake.on_packet(Packet("r").number(7, 4).add(dist::digest("secret", challenge)).bytes())
          ->next == Next::kDone);
}

TEST_CASE("an acceptor with an old link stops when told false or anything else",
          "[dist][handshake]") {
  const std::string answer = GENERATE("sfalse", "smaybe", "s", "rtrue");
  Handshake handshake = acceptor();
  REQUIRE(handshake.on_packet(name_packet("beam@host").bytes()).ok());
  REQUIRE(handshake.decide(Decision::kAlive).ok());
  CHECK_FALSE(handshake.on_packet(bytes_of(answer)).ok());
}

TEST_CASE("an initiator whose last link lingers answers true", "[dist][handshake]") {
  Handshake handshake = initiator();
  handshake.start();
  auto step = handshake.on_packet(bytes_of("salive"));
  REQUIRE(step.ok());
  REQUIRE(step->send.size() == 1);
  CHECK(step->send[0] == bytes_of("strue"));
  CHECK(handshake.peer().replaces_link);
  CHECK(handshake.on_packet(challenge_packet("beam@host", 42).bytes()).ok());
}

TEST_CASE("an initiator goes on after ok_simultaneous", "[dist][handshake]") {
  Handshake handshake = initiator();
  handshake.start();
  REQUIRE(handshake.on_packet(bytes_of("sok_simultaneous")).ok());
  CHECK(handshake.peer().simultaneous);
  CHECK(handshake.on_packet(challenge_packet("beam@host", 42).bytes()).ok());
}

TEST_CASE("an initiator that is turned down says why", "[dist][handshake]") {
  const auto [status, detail] = GENERATE(table<std::string, std::string>({
      {"snok", "handshake with beam@host: the peer is dialling us itself and keeps that attempt"},
      {"snot_allowed", "handshake with beam@host: the peer does not allow our name or our flags"},
      {"sbad\x1b[31m", "handshake with beam@host: an unknown status: 'bad?[31m'"},
      {"s", "handshake with beam@host: an unknown status: ''"},
  }));
  Handshake handshake = initiator();
  handshake.start();
  auto result = handshake.on_packet(bytes_of(status));
  REQUIRE_FALSE(result.ok());
  CHECK(result.error().detail == detail);
}

TEST_CASE("an initiator without a name takes the one it is given", "[dist][handshake]") {
  Handshake handshake(Role::kInitiator,
                      config("host", 0, "secret", dist::kOurFlags | dist::kNameMe), "beam@host");
  auto start = handshake.start();
  CHECK(start.send.at(0) == Packet("N")
                                .number(dist::kOurFlags | dist::kNameMe, 8)
                                .number(0, 4)
                                .number(4, 2)
                                .add("host")
                                .bytes());
  REQUIRE(handshake
              .on_packet(Packet("snamed:").number(8, 2).add("1G6X@hos").number(0xABCDEF, 4).bytes())
              .ok());
  CHECK(handshake.peer().name_assigned);
  CHECK(handshake.peer().our_name == "1G6X@hos");
  CHECK(handshake.peer().our_creation == 0xABCDEF);
  CHECK(handshake.on_packet(challenge_packet("beam@host", 42).bytes()).ok());
}

TEST_CASE("a given name is checked at every cut, and names nobody asked for are refused",
          "[dist][handshake]") {
  const Packet named = Packet("snamed:").number(8, 2).add("1G6X@hos").number(0xABCDEF, 4);
  const HandshakeConfig nameless = config("host", 0, "secret", dist::kOurFlags | dist::kNameMe);
  for (std::size_t size = 1; size < named.bytes().size(); ++size) {
    Handshake handshake(Role::kInitiator, nameless, "beam@host");
    handshake.start();
    CHECK_FALSE(handshake.on_packet(etf::Bytes(named.bytes()).first(size)).ok());
  }
  Handshake bad(Role::kInitiator, nameless, "beam@host");
  bad.start();
  CHECK_FALSE(
      bad.on_packet(Packet("snamed:").number(8, 2).add("1G6X@ho@").number(1, 4).bytes()).ok());

  Handshake unnamed(Role::kInitiator, nameless, "beam@host");
  unnamed.start();
  CHECK(unnamed.on_packet(bytes_of("sok")).error().detail ==
        "handshake with beam@host: the peer gives no names");

  Handshake named_already = initiator();
  named_already.start();
  CHECK_FALSE(named_already.on_packet(named.bytes()).ok());
}

TEST_CASE("a peer that asks us for a name is told no", "[dist][handshake]") {
  Handshake handshake = acceptor();
  auto result = handshake.on_packet(name_packet("host", kBeam25 | dist::kNameMe).bytes());
  REQUIRE_FALSE(result.ok());
  CHECK(result.error().detail == "the peer asks for a name, and we give none");
  CHECK(refusal_of(handshake) == "snot_allowed");
}

TEST_CASE("a node from before OTP 25 is told no, and the log says what it lacks",
          "[dist][handshake]") {
  Handshake handshake = acceptor();
  auto result =
      handshake.on_packet(name_packet("old@host", kBeam25 & ~(dist::kMandatory25Digest |
                                                              dist::kBigCreation | dist::kV4Nc))
                              .bytes());
  REQUIRE_FALSE(result.ok());
  CHECK(result.error().code == ErrorCode::kUnsupported);
  CHECK(result.error().detail ==
        "handshake with old@host: the peer lacks BIG_CREATION, V4_NC (a node before OTP 25?)");
  CHECK(refusal_of(handshake) == "snot_allowed");

  Handshake dialling = initiator();
  dialling.start();
  REQUIRE(dialling.on_packet(bytes_of("sok")).ok());
  CHECK(dialling.on_packet(challenge_packet("beam@host", 42, 0).bytes()).error().code ==
        ErrorCode::kUnsupported);
}

TEST_CASE("the packets of protocol version 5 are named as such", "[dist][handshake]") {
  Handshake handshake = acceptor();
  auto result =
      handshake.on_packet(Packet("n").number(5, 2).number(0x7fbc, 4).add("old@host").bytes());
  REQUIRE_FALSE(result.ok());
  CHECK(result.error().detail == "the peer speaks protocol version 5 (before OTP 23), we need 6");

  Handshake dialling = initiator();
  dialling.start();
  REQUIRE(dialling.on_packet(bytes_of("sok")).ok());
  CHECK(dialling.on_packet(Packet("n").number(5, 2).number(0, 8).add("beam@host").bytes())
            .error()
            .code == ErrorCode::kUnsupported);
}

TEST_CASE("another node than the one dialled is refused", "[dist][handshake]") {
  Handshake handshake = initiator();
  handshake.start();
  REQUIRE(handshake.on_packet(bytes_of("sok")).ok());
  CHECK(handshake.on_packet(challenge_packet("other@host", 42).bytes()).error().detail ==
        "handshake with beam@host: another node answers: 'other@host'");
}

TEST_CASE("a peer with our own name is refused", "[dist][handshake]") {
  Handshake handshake = acceptor();
  CHECK(handshake.on_packet(name_packet("py@host").bytes()).error().code == ErrorCode::kRefused);
  CHECK(refusal_of(handshake) == "snot_allowed");
}

TEST_CASE("a name is one @ between two texts, in UTF-8, without blanks, of 255 bytes at most",
          "[dist][handshake]") {
  for (const char* name :
       {"a@b", "beam@host.example.org", "py-1_x@127.0.0.1", "n\xc3\xb6\x64@h", "a@::1"}) {
    CHECK(dist::is_node_name(name));
  }
  for (const char* name : {"", "@", "a", "a@", "@b", "a@b@c", "a@@b", "a b@c", "a\n@c", "a@\x7f",
                           "\xc3@h", "a@\xff"}) {
    CHECK_FALSE(dist::is_node_name(name));
    Handshake handshake = acceptor();
    CHECK_FALSE(handshake.on_packet(name_packet(name).bytes()).ok());
  }
  CHECK(dist::is_node_name("a@" + std::string(253, 'h')));
  CHECK_FALSE(dist::is_node_name("a@" + std::string(254, 'h')));
  CHECK_FALSE(dist::is_node_name(std::string("a@h\0", 4)));
}

TEST_CASE("every packet cut anywhere is an error and never a step on", "[dist][handshake]") {
  const Packet name = name_packet("beam@host");
  for (std::size_t size = 0; size < name.bytes().size(); ++size) {
    Handshake handshake = acceptor();
    CHECK_FALSE(handshake.on_packet(etf::Bytes(name.bytes()).first(size)).ok());
  }
  const Packet challenge = challenge_packet("beam@host", 42);
  for (std::size_t size = 0; size < challenge.bytes().size(); ++size) {
    Handshake handshake = initiator();
    handshake.start();
    REQUIRE(handshake.on_packet(bytes_of("sok")).ok());
    CHECK_FALSE(handshake.on_packet(etf::Bytes(challenge.bytes()).first(size)).ok());
  }
  for (std::size_t size = 0; size < 21; ++size) {
    auto [handshake, number] = challenging_acceptor();
    const Packet reply = Packet("r").number(7, 4).add(dist::digest("secret", number));
    CHECK_FALSE(handshake.on_packet(etf::Bytes(reply.bytes()).first(size)).ok());
  }
  for (std::size_t size = 0; size < 17; ++size) {
    auto [handshake, reply] = challenged_initiator();
    const Packet ack = Packet("a").add(dist::digest("secret", etf::read_u32(reply.data() + 1)));
    CHECK_FALSE(handshake.on_packet(etf::Bytes(ack.bytes()).first(size)).ok());
  }
}

TEST_CASE("proofs with bytes behind them are refused", "[dist][handshake]") {
  auto [accepting, number] = challenging_acceptor();
  CHECK_FALSE(
      accepting
          .on_packet(Packet("r").number(7, 4).add(dist::digest("secret", number)).add("x").bytes())
          .ok());
  auto [dialling, reply] = challenged_initiator();
  CHECK_FALSE(dialling
                  .on_packet(Packet("a")
                                 .add(dist::digest("secret", etf::read_u32(reply.data() + 1)))
                                 .add("x")
                                 .bytes())
                  .ok());
}

TEST_CASE("a packet of another kind than is due ends the handshake at every stage",
          "[dist][handshake]") {
  for (int tag = 0; tag < 256; ++tag) {
    Bytes other(64, 'x');
    other[0] = static_cast<std::uint8_t>(tag);
    auto [accepting, number] = challenging_acceptor();
    CHECK_FALSE(accepting.on_packet(other).ok());
    auto [dialling, reply] = challenged_initiator();
    CHECK_FALSE(dialling.on_packet(other).ok());
    Handshake fresh = acceptor();
    CHECK_FALSE(fresh.on_packet(other).ok());
    Handshake waiting = initiator();
    waiting.start();
    CHECK_FALSE(waiting.on_packet(other).ok());
  }
}

TEST_CASE("a packet over 1 KiB is refused whatever it says", "[dist][handshake]") {
  Handshake handshake = acceptor();
  CHECK(handshake.on_packet(name_packet("beam@host").add(std::string(1024, 'x')).bytes())
            .error()
            .code == ErrorCode::kTooLarge);
}

TEST_CASE("nothing is taken before a decision, after an error or after the end",
          "[dist][handshake]") {
  Handshake undecided = acceptor();
  REQUIRE(undecided.on_packet(name_packet("beam@host").bytes()).ok());
  CHECK_FALSE(undecided.on_packet(bytes_of("strue")).ok());

  Handshake failed = acceptor();
  REQUIRE_FALSE(failed.on_packet(bytes_of("x")).ok());
  CHECK_FALSE(failed.on_packet(name_packet("beam@host").bytes()).ok());

  auto [done, number] = challenging_acceptor();
  const Packet reply = Packet("r").number(7, 4).add(dist::digest("secret", number));
  REQUIRE(done.on_packet(reply.bytes()).ok());
  CHECK_FALSE(done.on_packet(reply.bytes()).ok());

  Handshake unstarted = initiator();
  CHECK_FALSE(unstarted.on_packet(bytes_of("sok")).ok());
}

TEST_CASE("of two attempts at once that of the greater name is kept, and both sides agree",
          "[dist][handshake]") {
  CHECK(dist::simultaneous_winner("b@host", "a@host"));
  CHECK_FALSE(dist::simultaneous_winner("a@host", "b@host"));
  CHECK(dist::simultaneous_winner("ab@host", "a@host"));
  CHECK(dist::simultaneous_winner("\xc3\xa9@host",
                                  "z@host"));  // by code point, as Erlang orders atoms
  CHECK_FALSE(dist::simultaneous_winner("a@host", "a@host"));
}
