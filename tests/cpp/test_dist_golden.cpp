#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "cnode/dist/control.hpp"
#include "cnode/dist/frame.hpp"
#include "tests/cpp/catch.hpp"

using dist::Control;
using dist::Frame;
using dist::Op;
using Bytes = std::vector<std::uint8_t>;

namespace {

// A line of tests/data/frames.txt: what a BEAM did, and the frame it sent for it.
struct Recorded {
  std::string what;
  bool has_header;
  std::uint64_t opcode;
  Bytes bytes;
};

Bytes unhex(const std::string& text) {
  Bytes bytes;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
    bytes.push_back(static_cast<std::uint8_t>(std::stoi(text.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

std::vector<Recorded> recorded() {
  std::ifstream file(SIDEWINDER_SOURCE_DIR "/tests/data/frames.txt");
  std::vector<Recorded> frames;
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    std::string what;
    std::string framing;
    std::string opcode;
    std::string hex;
    std::getline(fields, what, '|');
    std::getline(fields, framing, '|');
    std::getline(fields, opcode, '|');
    std::getline(fields, hex, '|');
    frames.push_back({what, framing == "header", std::stoull(opcode), unhex(hex)});
  }
  return frames;
}

// The control tuple of a frame that has one. The views live as long as the frame.
Control control_of(const Recorded& recorded) {
  auto frame = dist::parse_frame(recorded.bytes, recorded.has_header);
  REQUIRE(frame.ok());
  etf::Reader reader(frame->body);
  if (!recorded.has_header) REQUIRE(reader.version().ok());
  auto control = dist::parse_control(reader);
  REQUIRE(control.ok());
  return *control;
}

Control control_of(const std::vector<Recorded>& all, const std::string& what, Op op) {
  for (const Recorded& each : all) {
    if (each.what == what && each.opcode == static_cast<std::uint64_t>(op)) return control_of(each);
  }
  FAIL("no such frame: " << what);
  return {};
}

}  // namespace

TEST_CASE("every frame a BEAM sent is read as what it was, and to its end", "[dist][golden]") {
  const std::vector<Recorded> all = recorded();
  REQUIRE(all.size() > 50);
  for (const Recorded& each : all) {
    INFO(each.what << ", " << (each.has_header ? "header" : "pass-through") << ", " << each.opcode);
    auto frame = dist::parse_frame(each.bytes, each.has_header);
    REQUIRE(frame.ok());
    if (frame->kind == Frame::Kind::kFragment) continue;
    etf::Reader reader(frame->body);
    if (!each.has_header) REQUIRE(reader.version().ok());
    auto control = dist::parse_control(reader);
    REQUIRE(control.ok());
    CHECK(control->op != Op::kUnknown);
    CHECK(control->opcode == each.opcode);
    if (frame->kind == Frame::Kind::kFirstFragment || !control->has_payload) continue;
    if (!each.has_header) REQUIRE(reader.version().ok());
    CHECK(reader.term().ok());
    CHECK(reader.at_end());
  }
}

TEST_CASE("every frame a BEAM sent is refused when it is cut inside its control tuple",
          "[dist][golden]") {
  for (const Recorded& each : recorded()) {
    auto frame = dist::parse_frame(each.bytes, each.has_header);
    REQUIRE(frame.ok());
    if (frame->kind == Frame::Kind::kFragment) continue;
    etf::Reader whole(frame->body);
    if (!each.has_header) REQUIRE(whole.version().ok());
    const etf::Bytes terms = whole.rest();
    etf::Reader reader(terms);
    REQUIRE(dist::parse_control(reader).ok());
    for (std::size_t size = 0; size < reader.offset(); ++size) {
      const Bytes cut(terms.begin(), terms.begin() + static_cast<std::ptrdiff_t>(size));
      etf::Reader cut_reader(cut);
      CHECK_FALSE(dist::parse_control(cut_reader).ok());
    }
  }
}

TEST_CASE("what a BEAM sends for OTP's operations has the parts we act on", "[dist][golden]") {
  const std::vector<Recorded> all = recorded();

  CHECK(control_of(all, "send to a name", Op::kRegSend).to.name == "server");
  CHECK(control_of(all, "monitor a name", Op::kMonitorP).to.name == "server");
  CHECK(control_of(all, "monitor a pid", Op::kMonitorP).to.pid.node == "header@127.0.0.1");
  CHECK(control_of(all, "link and unlink", Op::kUnlinkId).id != 0);
  CHECK_FALSE(control_of(all, "send to a pid, traced", Op::kSendSenderTt).token.empty());
  CHECK_FALSE(control_of(all, "exit signal", Op::kExit2).reason.empty());
  CHECK(control_of(all, "down of a missing name", Op::kPayloadMonitorPExit).from.name == "nobody");
  CHECK(control_of(all, "send to an alias", Op::kAliasSend).to.alias.node == "header@127.0.0.1");

  const Control erpc = control_of(all, "erpc", Op::kSpawnRequest);
  CHECK(erpc.module == "erpc");
  CHECK(erpc.function == "execute_call");
  CHECK(erpc.arity == 4);
  auto options = dist::parse_spawn_options(erpc.options);
  REQUIRE(options.ok());
  CHECK(options->monitor);

  const Control linked = control_of(all, "spawn_link", Op::kSpawnRequest);
  auto linked_options = dist::parse_spawn_options(linked.options);
  REQUIRE(linked_options.ok());
  CHECK(linked_options->link);

  const Control spawned = control_of(all, "reply to a spawn request, and its end", Op::kSpawnReply);
  CHECK(spawned.flags == dist::kSpawnedWithMonitor);
  CHECK(spawned.spawned.kind == dist::Party::Kind::kPid);
  CHECK(control_of(all, "refusal of a spawn request", Op::kSpawnReply).spawned.name == "badopt");
}

TEST_CASE("a BEAM's fragments count down to 1 in one sequence", "[dist][golden]") {
  std::vector<Frame> fragments;
  const std::vector<Recorded> all = recorded();
  for (const Recorded& each : all) {
    if (each.what == "large message" && each.has_header) {
      auto frame = dist::parse_frame(each.bytes, true);
      REQUIRE(frame.ok());
      fragments.push_back(*frame);
    }
  }
  REQUIRE(fragments.size() == 3);
  CHECK(fragments[0].kind == Frame::Kind::kFirstFragment);
  for (std::size_t i = 0; i < fragments.size(); ++i) {
    CHECK(fragments[i].sequence == fragments[0].sequence);
    CHECK(fragments[i].fragment == fragments.size() - i);
  }
}
