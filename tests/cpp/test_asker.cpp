// What a node asks of its peers, against raw ones that answer as they like.
#include "tests/cpp/program.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cnode/bridge/asker.hpp"
#include "tests/cpp/catch.hpp"

using namespace node_support;
using bridge::Asker;
using bridge::Question;
using bridge::QuestionPtr;
using program::encoded;
using program::Program;
using Kind = bridge::Question::Kind;
using Told = bridge::Question::Told;

namespace {

constexpr const char* kPeer = "peer@127.0.0.1";
constexpr const char* kOther = "other@127.0.0.1";
constexpr std::uint32_t kCoordinator = 50;  // the number of its pid
constexpr std::uint32_t kServer = 60;       // of a process that is asked

class Waiter final : public mailbox::Waiter {
 public:
  void wake() override {
    const std::lock_guard lock(mutex_);
    ++woken_;
    changed_.notify_all();
  }
  bool wait() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kDeadline, [&] { return woken_ > 0; });
  }
  int woken() {
    const std::lock_guard lock(mutex_);
    return woken_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int woken_ = 0;
};

// A question and who waits for its answer.
struct Asked {
  std::shared_ptr<Waiter> waiter = std::make_shared<Waiter>();
  QuestionPtr question = std::make_shared<Question>();

  // What it was told in time.
  Told wait() {
    waiter->wait();
    return question->told.load();
  }
  Told told() const { return question->told.load(); }
  Bytes answer() const { return bytes_of(question->bytes); }
  std::uint64_t id() const { return question->id; }
  Bytes ref() const {
    return encoded([&](etf::Writer& out) { out.reference(question->ref); });
  }
};

Bytes word(std::string_view text) { return atom(text); }
Bytes number(std::uint64_t value) {
  return encoded([&](etf::Writer& out) { out.unsigned_integer(value); });
}

// {call, Id, 0, <<"f">>, []}
Bytes item_of(const Asked& asked) {
  return encoded([&](etf::Writer& out) {
    out.tuple(5).atom("call").unsigned_integer(asked.id()).integer(0).binary("f").list(0);
  });
}
Bytes cancel_of(const Asked& asked) {
  return encoded(
      [&](etf::Writer& out) { out.tuple(2).atom("cancel").unsigned_integer(asked.id()); });
}
etf::Buffer buffer_of(const Bytes& bytes) {
  etf::Buffer buffer;
  buffer.append(bytes);
  return buffer;
}

// A node, and what its Python code would do with its asker.
class Node : public Program {
 public:
  Asker& asker() { return runtime->asker(); }
  void flush() { runtime->answers().flush(); }

  Asked make(Kind kind) {
    Asked asked;
    asked.question->kind = kind;
    asked.question->id = asker().next_id();
    asked.question->waiter = asked.waiter;
    if (kind != Kind::kCall) asked.question->ref = runtime->node().make_ref();
    return asked;
  }
  // Not flushed.
  Asked call(std::string_view node = kPeer) {
    Asked asked = make(Kind::kCall);
    asker().call(asked.question, node, buffer_of(item_of(asked)));
    return asked;
  }
  // As a thread asks that waits for each answer; `last` is what it asked before.
  Asked call_from_thread(const Asked* last = nullptr) {
    Asked asked = make(Kind::kCall);
    asked.question->from_thread = true;
    asker().call(asked.question, kPeer, buffer_of(item_of(asked)));
    if (asker().may_flush(last != nullptr && last->question->expected_back)) flush();
    return asked;
  }
  Asked request(const Asker::Target& target, const Bytes& message) {
    Asked asked = make(Kind::kRequest);
    asker().request(asked.question, target, buffer_of(message));
    return asked;
  }
  Asked spawn(const Bytes& arguments, std::string_view node = kPeer) {
    Asked asked = make(Kind::kRemote);
    asker().spawn(asked.question, node, arguments);
    return asked;
  }
  Bytes py_pid() {
    Bytes pid;
    run([&] { pid = bytes_of(dist::view(runtime->node().processes().find("py")->pid)); });
    return pid;
  }
};

Asker::Target server_of(const Peer& peer) {
  const Bytes raw = peer.pid(kServer);
  etf::Reader in(raw);
  const etf::PidView pid = *in.pid();
  Asker::Target target;
  target.node = pid.node.utf8();
  target.pid = etf::Pid{target.node, pid.id, pid.serial, pid.creation};
  return target;
}
Asker::Target named(const std::string& name, const std::string& node) {
  Asker::Target target;
  target.node = node;
  target.name = name;
  return target;
}

// --- what peers say

void send_to_py(Peer& peer, const Bytes& message) {
  peer.send(encoded([&](etf::Writer& out) { dist::append_reg_send(out, peer.pid(), "py"); }),
            message);
}
Bytes coordinator_message(const Bytes& pid) {
  return encoded([&](etf::Writer& out) { out.tuple(2).atom("$py_callback").raw(pid); });
}
Bytes list_of(const std::vector<Bytes>& items) {
  return encoded([&](etf::Writer& out) {
    out.list(static_cast<std::uint32_t>(items.size()));
    for (const Bytes& item : items) out.raw(item);
    if (!items.empty()) out.nil();
  });
}
Bytes result(std::uint64_t id, const Bytes& value) {
  return encoded([&](etf::Writer& out) { out.tuple(2).unsigned_integer(id).raw(value); });
}
void send_results(Peer& peer, const std::vector<Bytes>& results) {
  send_to_py(peer, encoded([&](etf::Writer& out) {
               out.tuple(2).atom("$py_results").raw(list_of(results));
             }));
}
void send_down(Peer& peer, const Bytes& process, const Bytes& py, const Bytes& ref,
               const Bytes& reason) {
  peer.send(encoded([&](etf::Writer& out) {
              dist::append_payload_monitor_p_exit(out, process, py, ref);
            }),
            reason);
}
// {[alias | Ref], Reply} to the alias, as gen:reply sends it.
void send_to_alias(Peer& peer, const Bytes& ref, const Bytes& reply) {
  peer.send(
      encoded([&](etf::Writer& out) { dist::append_alias_send(out, peer.pid(), ref); }),
      encoded([&](etf::Writer& out) { out.tuple(2).list(1).atom("alias").raw(ref).raw(reply); }));
}

// --- what peers hear

std::vector<dist::Op> ops_of(const std::vector<Signal>& signals) {
  std::vector<dist::Op> ops;
  for (const Signal& signal : signals) ops.push_back(signal.control.op);
  return ops;
}
// The items of a '$py_calls'; throws when it is something else.
std::vector<Bytes> calls_in(const Signal& signal) {
  etf::Reader in(signal.payload);
  auto arity = in.tuple();
  auto label = in.atom();
  auto count = in.list();
  if (!arity || !label || !(*label == "$py_calls") || !count) throw std::runtime_error("not calls");
  std::vector<Bytes> items;
  for (std::uint32_t i = 0; i < *count; ++i) items.push_back(bytes_of(*in.term()));
  if (!in.nil().ok() || !in.at_end()) throw std::runtime_error("calls that do not end");
  return items;
}
// The id of {call, Id, …}; 0 for other items.
std::uint64_t id_of(const Bytes& item) {
  etf::Reader in(item);
  if (!in.tuple()) return 0;
  auto verb = in.atom();
  auto id = in.unsigned_integer();
  return verb && *verb == "call" && id ? *id : 0;
}
Bytes monitor_of(const Bytes& py, const Bytes& process, const Bytes& ref) {
  return encoded([&](etf::Writer& out) { dist::append_monitor_p(out, py, process, ref); });
}
Bytes demonitor_of(const Bytes& py, const Bytes& process, const Bytes& ref) {
  return encoded([&](etf::Writer& out) { dist::append_demonitor_p(out, py, process, ref); });
}
Bytes greeting_of(const Bytes& py) {
  return encoded([&](etf::Writer& out) { out.tuple(2).atom("$py_hello").raw(py); });
}

// Makes its coordinator known; returns the reference by which the node watches it.
Bytes introduce(Peer& peer, std::uint32_t coordinator = kCoordinator) {
  send_to_py(peer, coordinator_message(peer.pid(coordinator)));
  const std::vector<Signal> heard = peer.barrier();
  if (ops_of(heard) != std::vector<dist::Op>{dist::Op::kMonitorP})
    throw std::runtime_error("no monitor");
  return bytes_of(heard[0].control.ref.raw);
}
// The monitor of py_callback and the greeting that a call without coordinator brings about; returns
// the monitor's reference.
Bytes looked_for(Peer& peer, const Bytes& py) {
  const Signal monitor = peer.receive();
  const Bytes ref = bytes_of(monitor.control.ref.raw);
  if (monitor.control_bytes != monitor_of(py, word("py_callback"), ref))
    throw std::runtime_error("py_callback is not watched");
  if (peer.receive().payload != greeting_of(py)) throw std::runtime_error("no greeting");
  return ref;
}

}  // namespace

// --- the coordinator
// ---------------------------------------------------------------------------------------------

TEST_CASE("a link that comes up is greeted with the pid of py", "[asker]") {
  Node node;
  Peer peer = node.connect_new();
  const Signal greeting = peer.receive();
  const Bytes py = node.py_pid();
  CHECK(greeting.control_bytes ==
        encoded([&](etf::Writer& out) { dist::append_reg_send(out, py, "py_callback"); }));
  CHECK(greeting.payload == greeting_of(py));
  CHECK(peer.barrier().empty());
}

TEST_CASE("a coordinator is watched, once, and not after another has taken its place", "[asker]") {
  Node node;
  Peer peer = node.connect();
  const Bytes py = node.py_pid();
  send_to_py(peer, coordinator_message(peer.pid(50)));
  const Signal monitor = peer.receive();
  const Bytes ref = bytes_of(monitor.control.ref.raw);
  CHECK(monitor.control_bytes == monitor_of(py, peer.pid(50), ref));
  send_to_py(peer, coordinator_message(peer.pid(50)));
  CHECK(peer.barrier().empty());

  send_to_py(peer, coordinator_message(peer.pid(51)));
  CHECK(peer.receive().control_bytes == demonitor_of(py, peer.pid(50), ref));
  const Signal second = peer.receive();
  CHECK(second.control_bytes == monitor_of(py, peer.pid(51), bytes_of(second.control.ref.raw)));
  CHECK(peer.barrier().empty());
  const Asked asked = node.call();
  node.flush();
  const Signal calls = peer.receive();
  CHECK(bytes_of(calls.control.to.pid.raw) == peer.pid(51));
  CHECK(calls_in(calls) == std::vector<Bytes>{item_of(asked)});
}

TEST_CASE("a coordinator that introduces itself just as a call asks for it stays the one watched",
          "[asker]") {
  Node node;
  Peer peer = node.connect();
  const Bytes py = node.py_pid();
  Asked asked;
  node.run([&] {
    asked = node.call();  // which leaves the asking to the reactor, and this is the reactor
    const auto link = node.runtime->node().link_to(kPeer);
    CHECK(node.asker().on_coordinator(*link, coordinator_message(peer.pid(kCoordinator))));
  });
  const Signal monitor = peer.receive();
  CHECK(monitor.control_bytes ==
        monitor_of(py, peer.pid(kCoordinator), bytes_of(monitor.control.ref.raw)));
  CHECK(calls_in(peer.receive()) == std::vector<Bytes>{item_of(asked)});
  CHECK(peer.barrier().empty());
}

TEST_CASE("calls that stand open at a coordinator end when another takes its place", "[asker]") {
  Node node;
  Peer peer = node.connect();
  introduce(peer, 50);
  Asked asked = node.call();
  node.flush();
  REQUIRE(calls_in(peer.receive()).size() == 1);
  send_to_py(peer, coordinator_message(peer.pid(51)));
  CHECK(asked.wait() == Told::kDown);
  CHECK(node.asker().open() == 0);
}

TEST_CASE("a coordinator of another node, and what is no pid, are ignored", "[asker]") {
  Node node;
  Peer peer = node.connect();
  const Peer other = node.connect(kOther);
  const Bytes what = GENERATE_REF(other.pid(kCoordinator), number(5), word("none"),
                                  encoded([&](etf::Writer& out) { out.list(1).raw(peer.pid()); }));
  send_to_py(peer, coordinator_message(what));
  CHECK(peer.barrier().empty());
  CHECK(node.asker().first_peer().empty());
  CHECK_FALSE(node.asker().tell_coordinator(kPeer, word("anything")));
}

TEST_CASE("the first peer is the one whose coordinator is known for longest", "[asker]") {
  Node node;
  Peer first = node.connect();
  auto second = std::make_unique<Peer>(node.connect(kOther));
  CHECK(node.asker().first_peer().empty());
  const Bytes watched_by = introduce(*second);
  CHECK(node.asker().first_peer() == kOther);
  introduce(first);
  CHECK(node.asker().first_peer() == kOther);
  SECTION("until its link is lost") { second.reset(); }
  SECTION("until its coordinator ends") {
    send_down(*second, second->pid(kCoordinator), node.py_pid(), watched_by, word("killed"));
  }
  CHECK(eventually([&] { return node.asker().first_peer() == kPeer; }));
}

TEST_CASE("an item that nobody waits for goes to a coordinator that is known, or not at all",
          "[asker]") {
  Node node;
  Peer peer = node.connect();
  CHECK_FALSE(node.asker().tell_coordinator(kPeer, word("early")));
  CHECK_FALSE(node.asker().tell_coordinator("nobody@127.0.0.1", word("early")));
  introduce(peer);
  CHECK(node.asker().tell_coordinator(kPeer, word("said")));
  const Signal calls = peer.receive();
  CHECK(bytes_of(calls.control.to.pid.raw) == peer.pid(kCoordinator));
  CHECK(calls_in(calls) == std::vector<Bytes>{word("said")});
}

// --- calls
// -------------------------------------------------------------------------------------------------------

TEST_CASE("calls wait for the coordinator, ask for it once, and go out in order", "[asker]") {
  Node node;
  Peer peer = node.connect();
  const Bytes py = node.py_pid();
  std::vector<Asked> asked;
  for (int i = 0; i < 5; ++i) asked.push_back(node.call());
  const Bytes ref = looked_for(peer, py);
  CHECK(peer.barrier().empty());
  node.asker().forget(asked[2].question);

  send_to_py(peer, coordinator_message(peer.pid(kCoordinator)));
  CHECK(peer.receive().control_bytes == demonitor_of(py, word("py_callback"), ref));
  CHECK(peer.receive().control.op == dist::Op::kMonitorP);
  const Signal calls = peer.receive();
  CHECK(bytes_of(calls.control.from.pid.raw) == py);
  CHECK(bytes_of(calls.control.to.pid.raw) == peer.pid(kCoordinator));
  CHECK(calls_in(calls) == std::vector<Bytes>{item_of(asked[0]), item_of(asked[1]),
                                              item_of(asked[3]), item_of(asked[4])});
  CHECK(peer.barrier().empty());
  CHECK(node.asker().open() == 4);
}

TEST_CASE("calls to a known coordinator go out at a flush, all in one message", "[asker]") {
  Node node;
  Peer peer = node.connect();
  introduce(peer);
  std::vector<Bytes> items;
  for (int i = 0; i < 20; ++i) items.push_back(item_of(node.call()));
  CHECK(peer.barrier().empty());
  node.flush();
  CHECK(calls_in(peer.receive()) == items);
  const Asked later = node.call();
  node.flush();
  CHECK(calls_in(peer.receive()) == std::vector<Bytes>{item_of(later)});
}

TEST_CASE("a call to a node that is not linked has no connection", "[asker]") {
  Node node;
  const Peer peer = node.connect();
  Asked asked = node.call("nobody@127.0.0.1");
  CHECK(asked.wait() == Told::kNoConnection);
  CHECK(node.asker().open() == 0);
}

TEST_CASE("an answer reaches the question with its id and no other, once", "[asker]") {
  Node node;
  Peer peer = node.connect();
  introduce(peer);
  std::vector<Asked> asked;
  for (int i = 0; i < 4; ++i) asked.push_back(node.call());
  send_results(peer, {result(asked[2].id(), word("third")), result(987'654'321, word("nobody")),
                      result(asked[0].id(), word("first")), result(asked[0].id(), word("again"))});
  CHECK(asked[2].wait() == Told::kAnswer);
  CHECK(asked[2].answer() == word("third"));
  CHECK(asked[0].wait() == Told::kAnswer);
  send_results(peer, {result(asked[0].id(), word("late"))});
  peer.barrier();
  CHECK(asked[0].answer() == word("first"));
  CHECK(asked[0].waiter->woken() == 1);
  CHECK(asked[1].told() == Told::kNothing);
  CHECK(asked[3].waiter->woken() == 0);
  CHECK(node.asker().open() == 2);
}

TEST_CASE("an answer comes over the link its question went by, or is none", "[asker]") {
  Node node;
  Peer peer = node.connect();
  Peer other = node.connect(kOther);
  introduce(peer);
  introduce(other);
  Asked asked = node.call();
  Asked request = node.request(server_of(peer), word("question"));
  Asked spawned = node.spawn(list_of({word("arguments")}));
  const Bytes py = node.py_pid();
  send_results(other, {result(asked.id(), word("forged"))});
  send_to_alias(other, request.ref(), word("forged"));
  send_down(other, peer.pid(kServer), py, request.ref(), word("forged"));
  send_down(other, peer.pid(kServer), py, spawned.ref(), word("forged"));
  other.send(encoded([&](etf::Writer& out) {
    dist::append_spawn_reply(out, spawned.ref(), py, 0, word("forged"));
  }));
  other.barrier();
  CHECK(asked.told() == Told::kNothing);
  CHECK(request.told() == Told::kNothing);
  CHECK(spawned.told() == Told::kNothing);

  send_results(peer, {result(asked.id(), word("honest"))});
  send_to_alias(peer, request.ref(), word("honest"));
  send_down(peer, peer.pid(1), py, spawned.ref(), word("honest"));
  CHECK(asked.wait() == Told::kAnswer);
  CHECK(asked.answer() == word("honest"));
  CHECK(request.wait() == Told::kAnswer);
  CHECK(request.answer() == word("honest"));
  CHECK(spawned.wait() == Told::kAnswer);
  CHECK(spawned.answer() == word("honest"));
}

TEST_CASE("the id of a request is no id of a call", "[asker]") {
  Node node;
  Peer peer = node.connect();
  introduce(peer);
  const Asked request = node.request(server_of(peer), word("question"));
  send_results(peer, {result(request.id(), word("answer"))});
  peer.barrier();
  CHECK(request.told() == Told::kNothing);
  CHECK(node.asker().open() == 1);
}

TEST_CASE("calls to a peer that does not run the application fail, and the next one asks anew",
          "[asker]") {
  Node node;
  Peer peer = node.connect();
  const Bytes py = node.py_pid();
  for (int round = 0; round < 3; ++round) {
    Asked first = node.call();
    Asked second = node.call();
    const Bytes ref = looked_for(peer, py);
    send_down(peer, word("py_callback"), py, ref, word("noproc"));
    CHECK(first.wait() == Told::kDown);
    CHECK(first.answer() == word("noproc"));
    CHECK(second.wait() == Told::kDown);
    CHECK(peer.barrier().empty());
  }
  CHECK(node.asker().open() == 0);
  const Asked last = node.call();
  looked_for(peer, py);
  send_to_py(peer, coordinator_message(peer.pid(kCoordinator)));
  CHECK(peer.receive().control.op == dist::Op::kDemonitorP);
  CHECK(peer.receive().control.op == dist::Op::kMonitorP);
  CHECK(calls_in(peer.receive()) == std::vector<Bytes>{item_of(last)});
}

TEST_CASE("the end of the coordinator ends the calls that stand open there, and nothing else",
          "[asker]") {
  Node node;
  Peer peer = node.connect();
  Peer other = node.connect(kOther);
  const Bytes ref = introduce(peer);
  introduce(other);
  const Bytes py = node.py_pid();
  Asked first = node.call();
  Asked second = node.call();
  const Asked elsewhere = node.call(kOther);
  const Asked request = node.request(server_of(peer), word("question"));
  node.flush();
  send_down(peer, peer.pid(kCoordinator), py, ref, word("killed"));
  CHECK(first.wait() == Told::kDown);
  CHECK(first.answer() == word("killed"));
  CHECK(second.wait() == Told::kDown);
  peer.barrier();
  CHECK(elsewhere.told() == Told::kNothing);
  CHECK(request.told() == Told::kNothing);
  CHECK(node.asker().open() == 2);

  const Asked next = node.call();
  looked_for(peer, py);
  send_to_py(peer, coordinator_message(peer.pid(51)));
  CHECK(peer.receive().control.op == dist::Op::kDemonitorP);
  CHECK(peer.receive().control.op == dist::Op::kMonitorP);
  const Signal calls = peer.receive();
  CHECK(bytes_of(calls.control.to.pid.raw) == peer.pid(51));
  CHECK(calls_in(calls) == std::vector<Bytes>{item_of(next)});
  // The end of the one before is not that of this one.
  send_down(peer, peer.pid(kCoordinator), py, ref, word("killed"));
  peer.barrier();
  CHECK(next.told() == Told::kNothing);
}

TEST_CASE("the loss of the link answers all that went over it", "[asker]") {
  Node node;
  auto peer = std::make_unique<Peer>(node.connect());
  Peer other = node.connect(kOther);
  introduce(other);
  std::vector<Asked> asked;
  SECTION("that waits for a coordinator") { asked = {node.call(), node.call()}; }
  SECTION("that was sent") {
    introduce(*peer);
    asked = {node.call(), node.request(server_of(*peer), word("question")),
             node.spawn(list_of({word("arguments")}))};
    node.flush();
    peer->barrier();
  }
  const Asked elsewhere = node.call(kOther);
  peer.reset();
  for (Asked& one : asked) {
    CHECK(one.wait() == Told::kNoConnection);
    CHECK(one.waiter->woken() == 1);
  }
  CHECK(elsewhere.told() == Told::kNothing);
  CHECK(node.asker().open() == 1);
  Asked late = node.call();
  CHECK(late.wait() == Told::kNoConnection);
  // Somebody who comes again under the same name is asked anew.
  Peer again = node.connect();
  const Asked next = node.call();
  looked_for(again, node.py_pid());
  CHECK(next.told() == Told::kNothing);
}

TEST_CASE("a node that stops leaves nobody waiting, now or later", "[asker]") {
  Node node;
  Peer peer = node.connect();
  const Peer other = node.connect(kOther);
  introduce(peer);
  std::vector<Asked> asked{node.call(), node.call(kOther),
                           node.request(server_of(peer), word("question")),
                           node.spawn(list_of({word("arguments")}))};
  node.asker().close();
  asked.push_back(node.call());
  asked.push_back(node.request(server_of(peer), word("question")));
  asked.push_back(node.request(named("py", "node@127.0.0.1"), word("question")));
  asked.push_back(node.spawn(list_of({word("arguments")})));
  for (Asked& one : asked) {
    CHECK(one.wait() == Told::kNoConnection);
    CHECK(one.waiter->woken() == 1);
  }
  CHECK(node.asker().open() == 0);
}

TEST_CASE("a question that is forgotten is cancelled, and its late answer dropped", "[asker]") {
  Node node;
  Peer peer = node.connect();
  introduce(peer);
  const Asked asked = node.call();
  node.flush();
  CHECK(calls_in(peer.receive()) == std::vector<Bytes>{item_of(asked)});
  node.asker().forget(asked.question);
  CHECK(calls_in(peer.receive()) == std::vector<Bytes>{cancel_of(asked)});
  node.asker().forget(asked.question);
  send_results(peer, {result(asked.id(), word("late"))});
  CHECK(peer.barrier().empty());
  CHECK(asked.told() == Told::kNothing);
  CHECK(asked.waiter->woken() == 0);
  CHECK(node.asker().open() == 0);
}

TEST_CASE("forgetting a question that was answered says nothing to anybody", "[asker]") {
  Node node;
  Peer peer = node.connect();
  introduce(peer);
  Asked asked = node.call();
  node.flush();
  peer.receive();
  send_results(peer, {result(asked.id(), word("answer"))});
  CHECK(asked.wait() == Told::kAnswer);
  node.asker().forget(asked.question);
  CHECK(peer.barrier().empty());
}

TEST_CASE(
    "of threads that were answered together the last to ask again sends for all, or a timer "
    "does",
    "[asker]") {
  Node node;
  Peer peer = node.connect();
  introduce(peer);
  Asked first = node.call_from_thread();
  CHECK(calls_in(peer.receive()) == std::vector<Bytes>{item_of(first)});
  Asked second = node.call_from_thread();
  CHECK(calls_in(peer.receive()) == std::vector<Bytes>{item_of(second)});
  send_results(peer, {result(first.id(), word("one")), result(second.id(), word("two"))});
  CHECK(first.wait() == Told::kAnswer);
  CHECK(second.wait() == Told::kAnswer);
  CHECK(first.question->expected_back);
  CHECK(second.question->expected_back);
  SECTION("one of them stays away") {
    const Asked again = node.call_from_thread(&first);
    CHECK(calls_in(peer.receive()) == std::vector<Bytes>{item_of(again)});
  }
  SECTION("somebody else asks meanwhile") {
    const Asked third = node.call_from_thread();
    CHECK(calls_in(peer.receive()) == std::vector<Bytes>{item_of(third)});
  }
  SECTION("both come back") {
    const std::vector<Bytes> again{item_of(node.call_from_thread(&first)),
                                   item_of(node.call_from_thread(&second))};
    std::vector<Bytes> came;
    while (came.size() < 2)
      for (const Bytes& item : calls_in(peer.receive())) came.push_back(item);
    CHECK(came == again);
  }
}

TEST_CASE("a thread that was answered by itself is not counted on", "[asker]") {
  Node node;
  Peer peer = node.connect();
  introduce(peer);
  Asked thread = node.call_from_thread();
  Asked coroutine = node.call();
  node.flush();
  send_results(peer, {result(thread.id(), word("one")), result(coroutine.id(), word("two"))});
  CHECK(thread.wait() == Told::kAnswer);
  CHECK(coroutine.wait() == Told::kAnswer);
  CHECK_FALSE(thread.question->expected_back);
  CHECK_FALSE(coroutine.question->expected_back);
  CHECK(node.asker().may_flush(false));
}

// --- results that are none
// ---------------------------------------------------------------------------------------

TEST_CASE("results that cannot be understood close the link, and those before them count",
          "[asker]") {
  Node node;
  Peer peer = node.connect();
  introduce(peer);
  Asked before = node.call();
  Asked behind = node.call();
  const Bytes good = result(before.id(), word("answer"));
  const Bytes bad = GENERATE_COPY(
      number(5), Bytes{104, 0}, encoded([](etf::Writer& out) { out.tuple(1).integer(1); }),
      encoded([](etf::Writer& out) { out.tuple(3).integer(1).integer(2).integer(3); }),
      encoded([](etf::Writer& out) { out.tuple(2).atom("id").atom("ok"); }),
      encoded([](etf::Writer& out) { out.tuple(2).integer(-1).atom("ok"); }),
      Bytes{104, 2, 110, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 106},  // an id of 72 bits
      Bytes{104, 2, 97, 1, 109, 0xFF, 0xFF, 0xFF, 0xFF});        // a binary that is cut
  send_results(peer, {good, bad, result(behind.id(), word("answer"))});
  CHECK(peer.closed());
  CHECK(before.wait() == Told::kAnswer);
  CHECK(before.answer() == word("answer"));
  CHECK(behind.wait() == Told::kNoConnection);
}

TEST_CASE("results that are no list close the link", "[asker]") {
  Node node;
  Peer peer = node.connect();
  const Bytes bad = GENERATE_COPY(number(5), Bytes{107, 0, 2, 1, 2}, Bytes{104, 0},
                                  Bytes{108, 0xFF, 0xFF, 0xFF, 0xFF}, Bytes{});
  send_to_py(peer,
             joined(encoded([](etf::Writer& out) { out.tuple(2).atom("$py_results"); }), bad));
  CHECK(peer.closed());
}

TEST_CASE("a result nested too deep is its question's trouble alone", "[asker]") {
  Node node;
  Peer peer = node.connect();
  introduce(peer);
  Asked deep = node.call();
  Asked flat = node.call();
  node.flush();
  peer.receive();
  Bytes nested;
  for (int i = 0; i < 5000; ++i) nested = joined(std::move(nested), {108, 0, 0, 0, 1});
  nested.resize(nested.size() + 5001, 106);
  send_results(peer, {result(deep.id(), nested), result(flat.id(), word("answer"))});
  CHECK(deep.wait() == Told::kAnswer);
  CHECK(deep.answer() == nested);
  CHECK(flat.wait() == Told::kAnswer);
  CHECK(flat.answer() == word("answer"));
  CHECK(peer.barrier().empty());
}

// --- requests
// ----------------------------------------------------------------------------------------------------

TEST_CASE("a request watches its process, then asks it; the reply ends the watch", "[asker]") {
  Node node;
  Peer peer = node.connect();
  const Bytes py = node.py_pid();
  Asked asked = node.request(server_of(peer), word("question"));
  CHECK(peer.receive().control_bytes == monitor_of(py, peer.pid(kServer), asked.ref()));
  const Signal message = peer.receive();
  CHECK(message.control.op == dist::Op::kSendSender);
  CHECK(bytes_of(message.control.to.pid.raw) == peer.pid(kServer));
  CHECK(message.payload == word("question"));

  SECTION("to the alias") { send_to_alias(peer, asked.ref(), word("reply")); }
  SECTION("to py, as who knows no aliases does") {
    send_to_py(
        peer, encoded([&](etf::Writer& out) { out.tuple(2).raw(asked.ref()).raw(word("reply")); }));
  }
  SECTION("to py, under the alias's tag") {
    send_to_py(peer, encoded([&](etf::Writer& out) {
                 out.tuple(2).list(1).atom("alias").raw(asked.ref()).raw(word("reply"));
               }));
  }
  CHECK(asked.wait() == Told::kAnswer);
  CHECK(asked.answer() == word("reply"));
  CHECK(peer.receive().control_bytes == demonitor_of(py, peer.pid(kServer), asked.ref()));

  send_to_alias(peer, asked.ref(), word("late"));
  send_down(peer, peer.pid(kServer), py, asked.ref(), word("late"));
  CHECK(peer.barrier().empty());
  CHECK(asked.answer() == word("reply"));
  CHECK(asked.waiter->woken() == 1);
  CHECK(node.asker().open() == 0);
}

TEST_CASE("a request goes to a name", "[asker]") {
  Node node;
  Peer peer = node.connect();
  const Bytes py = node.py_pid();
  Asked asked = node.request(named("a_server", kPeer), word("question"));
  CHECK(peer.receive().control_bytes == monitor_of(py, word("a_server"), asked.ref()));
  const Signal message = peer.receive();
  CHECK(message.control_bytes ==
        encoded([&](etf::Writer& out) { dist::append_reg_send(out, py, "a_server"); }));
  CHECK(message.payload == word("question"));
  send_to_alias(peer, asked.ref(), word("reply"));
  CHECK(asked.wait() == Told::kAnswer);
  CHECK(peer.receive().control_bytes == demonitor_of(py, word("a_server"), asked.ref()));
}

TEST_CASE("the end of who was asked answers with the reason, and a reply then comes too late",
          "[asker]") {
  Node node;
  Peer peer = node.connect();
  Asked asked = node.request(server_of(peer), word("question"));
  send_down(peer, peer.pid(kServer), node.py_pid(), asked.ref(), word("noproc"));
  CHECK(asked.wait() == Told::kDown);
  CHECK(asked.answer() == word("noproc"));
  send_to_alias(peer, asked.ref(), word("late"));
  CHECK(ops_of(peer.barrier()) ==
        std::vector<dist::Op>{dist::Op::kMonitorP, dist::Op::kSendSender});
  CHECK(asked.answer() == word("noproc"));
  CHECK(asked.waiter->woken() == 1);
}

TEST_CASE("a request that is forgotten is no longer watched, and its late reply dropped",
          "[asker]") {
  Node node;
  Peer peer = node.connect();
  const Asked asked = node.request(server_of(peer), word("question"));
  node.asker().forget(asked.question);
  CHECK(peer.receive().control.op == dist::Op::kMonitorP);
  CHECK(peer.receive().control.op == dist::Op::kSendSender);
  CHECK(peer.receive().control_bytes ==
        demonitor_of(node.py_pid(), peer.pid(kServer), asked.ref()));
  send_to_alias(peer, asked.ref(), word("late"));
  CHECK(peer.barrier().empty());
  CHECK(asked.told() == Told::kNothing);
  CHECK(asked.waiter->woken() == 0);
}

TEST_CASE("a reply under a reference of an earlier node of this name is nobody's", "[asker]") {
  Node node;
  Peer peer = node.connect();
  const Asked asked = node.request(server_of(peer), word("question"));
  etf::Ref old = asked.question->ref;
  old.creation ^= 1;
  send_to_alias(peer, encoded([&](etf::Writer& out) { out.reference(old); }), word("late"));
  peer.barrier();
  CHECK(asked.told() == Told::kNothing);
}

TEST_CASE("a thread's address takes the replies to its requests", "[asker]") {
  Node node;
  Peer peer = node.connect();
  const std::string address = node.asker().make_address();
  REQUIRE_FALSE(address.empty());
  Asked asked = node.request(server_of(peer), word("question"));
  Asked other = node.request(server_of(peer), word("question"));
  const auto send = [&](const Bytes& message) {
    peer.send(encoded([&](etf::Writer& out) { dist::append_send(out, dist::view(address)); }),
              message);
  };
  send(encoded([&](etf::Writer& out) { out.tuple(2).raw(peer.ref(5)).raw(word("no reply")); }));
  send(word("nothing"));
  send(encoded([&](etf::Writer& out) { out.tuple(2).raw(asked.ref()).raw(word("reply")); }));
  CHECK(asked.wait() == Told::kAnswer);
  CHECK(asked.answer() == word("reply"));
  CHECK(other.told() == Told::kNothing);
  CHECK(node.asker().open() == 1);
}

TEST_CASE("a thread that has ended is gone where it asked, and its address with it", "[asker]") {
  Node node;
  Peer peer = node.connect();
  Peer other = node.connect(kOther);
  introduce(peer);
  const Asked asked = node.call();
  const Asked elsewhere = node.call(kOther);
  node.flush();
  CHECK(calls_in(peer.receive()) == std::vector<Bytes>{item_of(asked)});
  const std::string address = node.asker().make_address();
  peer.send(encoded([&](etf::Writer& out) {
    dist::append_monitor_p(out, peer.pid(), dist::view(address), peer.ref(1));
  }));
  CHECK(peer.barrier().empty());

  const std::uint64_t number = node.asker().next_thread();
  CHECK(node.asker().threads() == 1);
  node.asker().thread_ended(number, address,
                            {asked.question->link, elsewhere.question->link, 987'654});
  CHECK(node.asker().threads() == 0);
  CHECK(calls_in(peer.receive()) == std::vector<Bytes>{encoded([&](etf::Writer& out) {
          out.tuple(2).atom("gone").unsigned_integer(number);
        })});
  const Signal down = peer.receive();
  CHECK(bytes_of(down.control.ref.raw) == peer.ref(1));
  CHECK(down.payload == word("normal"));
  // To the other peer, which has no coordinator, nothing is said.
  CHECK(ops_of(other.barrier()) == std::vector<dist::Op>{dist::Op::kMonitorP, dist::Op::kRegSend});
}

// --- requests to this node's own processes

TEST_CASE("a process of the node itself is asked without a link, and watched all the same",
          "[asker]") {
  Node node;
  const Peer peer = node.connect();  // a node without peers does not know its own pid
  const auto server = std::make_shared<bridge::PyProcess>();
  Bytes server_pid;
  node.run([&] {
    const dist::Process& process = node.runtime->node().create_process("server");
    server->id = process.id;
    server_pid = bytes_of(dist::view(process.pid));
  });
  node.runtime->processes().add(server);
  Asked asked = node.request(named("server", "node@127.0.0.1"), word("question"));
  std::optional<etf::Buffer> message;
  REQUIRE(eventually([&] {
    message = server->mailbox.take();
    return message.has_value();
  }));
  CHECK(bytes_of(*message) == word("question"));
  SECTION("it answers") {
    const Bytes reply =
        encoded([&](etf::Writer& out) { out.tuple(2).raw(asked.ref()).raw(word("reply")); });
    node.run([&] { CHECK(node.asker().on_reply(0, reply)); });
    CHECK(asked.wait() == Told::kAnswer);
    CHECK(asked.answer() == word("reply"));
  }
  SECTION("it ends") {
    node.run([&] { node.runtime->node().exit_process(server->id, word("broken")); });
    CHECK(asked.wait() == Told::kDown);
    CHECK(asked.answer() == word("broken"));
  }
  CHECK(node.asker().open() == 0);
  node.run([] {});  // what the answer left to do
  node.run([&] { CHECK(node.runtime->node().processes().find("py")->monitors.size() == 0); });
}

TEST_CASE("a name that nobody has at the node itself is no process", "[asker]") {
  Node node;
  const Peer peer = node.connect();
  Asked asked = node.request(named("nobody", "node@127.0.0.1"), word("question"));
  CHECK(asked.wait() == Told::kDown);
  CHECK(asked.answer() == word("noproc"));
  CHECK(node.asker().open() == 0);
}

TEST_CASE("a request to a node that is not linked has no connection", "[asker]") {
  Node node;
  const Peer peer = node.connect();
  Asked request = node.request(named("server", "nobody@127.0.0.1"), word("question"));
  Asked spawned = node.spawn(list_of({}), "nobody@127.0.0.1");
  CHECK(request.wait() == Told::kNoConnection);
  CHECK(spawned.wait() == Told::kNoConnection);
  CHECK(node.asker().open() == 0);
}

// --- functions of a peer
// -----------------------------------------------------------------------------------------

TEST_CASE("a function of a peer is spawned under erpc with a monitor; its exit reason answers",
          "[asker]") {
  Node node;
  Peer peer = node.connect();
  const Bytes py = node.py_pid();
  const Bytes arguments = list_of({word("a"), word("b")});
  Asked asked = node.spawn(arguments);
  const Signal spawn = peer.receive();
  CHECK(spawn.control_bytes == encoded([&](etf::Writer& out) {
          dist::append_spawn_request(out, asked.ref(), py, py, "erpc", "execute_call", 4,
                                     list_of({word("monitor")}));
        }));
  CHECK(spawn.payload == arguments);
  peer.send(encoded([&](etf::Writer& out) {
    dist::append_spawn_reply(out, asked.ref(), py, dist::kSpawnedWithMonitor, peer.pid(7));
  }));
  peer.barrier();
  CHECK(asked.told() == Told::kNothing);
  send_down(peer, peer.pid(7), py, asked.ref(), word("reason"));
  CHECK(asked.wait() == Told::kAnswer);
  CHECK(asked.answer() == word("reason"));
  send_down(peer, peer.pid(7), py, asked.ref(), word("again"));
  CHECK(peer.barrier().empty());
  CHECK(asked.waiter->woken() == 1);
  CHECK(node.asker().open() == 0);
}

TEST_CASE("a peer that spawns nothing says why", "[asker]") {
  Node node;
  Peer peer = node.connect();
  Asked asked = node.spawn(list_of({}));
  peer.send(encoded([&](etf::Writer& out) {
    dist::append_spawn_reply(out, asked.ref(), node.py_pid(), 0, word("system_limit"));
  }));
  CHECK(asked.wait() == Told::kRefused);
  CHECK(asked.answer() == word("system_limit"));
  CHECK(node.asker().open() == 0);
}

TEST_CASE("a function that is forgotten answers nobody", "[asker]") {
  Node node;
  Peer peer = node.connect();
  const Asked asked = node.spawn(list_of({}));
  node.asker().forget(asked.question);
  send_down(peer, peer.pid(7), node.py_pid(), asked.ref(), word("late"));
  peer.send(encoded([&](etf::Writer& out) {
    dist::append_spawn_reply(out, asked.ref(), node.py_pid(), 0, word("late"));
  }));
  CHECK(ops_of(peer.barrier()) == std::vector<dist::Op>{dist::Op::kSpawnRequest});
  CHECK(asked.told() == Told::kNothing);
  CHECK(asked.waiter->woken() == 0);
}

// --- what a function of a peer writes
// ----------------------------------------------------------------------------

TEST_CASE("what a function of a peer writes is taken, and other requests of its are refused",
          "[asker]") {
  Node node;
  Peer peer = node.connect();
  const auto io_request = [&](const Bytes& from, const Bytes& request) {
    send_to_py(peer, encoded([&](etf::Writer& out) {
                 out.tuple(4).atom("io_request").raw(from).raw(peer.ref(9)).raw(request);
               }));
  };
  const auto io_reply = [&](const Bytes& reply) {
    return encoded(
        [&](etf::Writer& out) { out.tuple(3).atom("io_reply").raw(peer.ref(9)).raw(reply); });
  };
  io_request(peer.pid(7), encoded([](etf::Writer& out) {
               out.tuple(3).atom("put_chars").atom("unicode").binary("hello");
             }));
  const Signal written = peer.receive();
  CHECK(bytes_of(written.control.to.pid.raw) == peer.pid(7));
  CHECK(written.payload == io_reply(word("ok")));
  const Bytes refused =
      io_reply(encoded([](etf::Writer& out) { out.tuple(2).atom("error").atom("enotsup"); }));
  io_request(peer.pid(7), word("getopts"));
  CHECK(peer.receive().payload == refused);
  io_request(peer.pid(7), encoded([](etf::Writer& out) { out.tuple(1).atom("get_line"); }));
  CHECK(peer.receive().payload == refused);

  const Peer other = node.connect(kOther);
  io_request(other.pid(7), word("getopts"));
  io_request(number(5), word("getopts"));
  CHECK(peer.barrier().empty());
}

// --- many threads
// ------------------------------------------------------------------------------------------------

TEST_CASE(
    "two threads ask thousands of questions that are answered in any order, and each gets "
    "its own",
    "[asker][threads]") {
  constexpr int kThreads = 2;
  constexpr int kRounds = 100;
  constexpr int kAtOnce = 30;
  Node node;
  Peer peer = node.connect();
  introduce(peer);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < kRounds; ++round) {
        std::vector<Asked> asked;
        for (int n = 0; n < kAtOnce; ++n) {
          const int kind = (n + i) % 3;
          if (kind == 0) asked.push_back(node.call());
          if (kind == 1) asked.push_back(node.call_from_thread());
          if (kind == 2) asked.push_back(node.request(named("server", kPeer), word("question")));
        }
        node.flush();
        node.asker().forget(asked.back().question);
        asked.pop_back();
        for (Asked& one : asked) {
          const bool is_call = one.question->kind == Kind::kCall;
          const Bytes due = is_call ? number(one.id() * 2) : one.ref();
          wrong += one.wait() != Told::kAnswer || one.answer() != due || one.waiter->woken() != 1;
        }
      }
    });
  }
  std::string failure;
  std::thread answering([&] {
    try {
      std::mt19937 random(3);
      std::vector<std::function<void()>> due;
      for (;;) {
        const Signal signal = peer.receive();
        if (signal.control.op == dist::Op::kMonitorP) {
          due.push_back(
              [&peer, ref = bytes_of(signal.control.ref.raw)] { send_to_alias(peer, ref, ref); });
        } else if (signal.control.op == dist::Op::kSendSender) {
          std::vector<Bytes> results;
          for (const Bytes& item : calls_in(signal)) {
            if (item == word("stop")) return;
            if (const std::uint64_t id = id_of(item)) results.push_back(result(id, number(id * 2)));
          }
          std::shuffle(results.begin(), results.end(), random);
          due.push_back([&peer, results] { send_results(peer, results); });
        }
        if (readable(peer.socket(), 0ms)) continue;
        std::shuffle(due.begin(), due.end(), random);
        for (const auto& send : due) send();
        due.clear();
      }
    } catch (const std::exception& error) {
      failure = error.what();
    }
  });
  for (auto& thread : threads) thread.join();
  node.asker().tell_coordinator(kPeer, word("stop"));
  answering.join();
  CHECK(failure == "");
  CHECK(wrong == 0);
  CHECK(node.asker().open() == 0);
}

TEST_CASE("while peers come and go, each question is told once, and none is left",
          "[asker][threads]") {
  constexpr int kThreads = 2;
  constexpr int kVisits = 30;
  Node node;
  const Peer witness = node.connect(kOther);
  std::atomic<bool> over{false};
  std::atomic<int> wrong{0};
  std::atomic<int> answered{0};
  std::atomic<int> lost{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      while (!over) {
        std::vector<Asked> asked;
        for (int n = 0; n < 5; ++n) asked.push_back(node.call());
        asked.push_back(node.request(named("server", kPeer), word("question")));
        asked.push_back(node.spawn(list_of({})));
        node.flush();
        for (Asked& one : asked) {
          const Told told = one.wait();
          ++(told == Told::kAnswer ? answered : lost);
          wrong += one.waiter->woken() != 1;
        }
      }
    });
  }
  std::string failure;
  try {
    const Bytes py = node.py_pid();
    for (int visit = 0; visit < kVisits; ++visit) {
      Peer peer = node.connect_new();
      send_to_py(peer, coordinator_message(peer.pid(kCoordinator)));
      // Answers a while, the longer the later it came, and goes without a word.
      for (int signals = 0; signals < 5 * visit; ++signals) {
        const Signal signal = peer.receive();
        const Bytes ref = bytes_of(signal.control.ref.raw);
        if (signal.control.op == dist::Op::kMonitorP) send_to_alias(peer, ref, word("reply"));
        if (signal.control.op == dist::Op::kSpawnRequest)
          send_down(peer, peer.pid(7), py, ref, word("reply"));
        if (signal.control.op != dist::Op::kSendSender || signal.payload == word("question"))
          continue;
        std::vector<Bytes> results;
        for (const Bytes& item : calls_in(signal)) results.push_back(result(id_of(item), item));
        send_results(peer, results);
      }
    }
  } catch (const std::exception& error) {
    failure = error.what();
  }
  over = true;
  for (auto& thread : threads) thread.join();
  CHECK(failure == "");
  CHECK(wrong == 0);
  CHECK(answered > 0);
  CHECK(lost > 0);
  CHECK(node.asker().open() == 0);
}

TEST_CASE("threads that have a mailbox and end leave no address behind", "[asker][threads]") {
  constexpr int kThreads = 8;
  Node node;
  Peer peer = node.connect();
  introduce(peer);
  std::size_t before = 0;
  node.run([&] { before = node.runtime->node().processes().size(); });
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      auto& mailbox = bridge::ThreadMailbox::mine(node.runtime->asker_pointer());
      mailbox.address();
      const Asked asked = node.call();
      mailbox.used(asked.question->link);
      node.flush();
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(node.asker().threads() == 0);
  int gone = 0;
  int calls = 0;
  while (gone < kThreads || calls < kThreads) {
    for (const Bytes& item : calls_in(peer.receive())) ++(id_of(item) != 0 ? calls : gone);
  }
  CHECK(gone == kThreads);
  CHECK(calls == kThreads);
  std::size_t after = 0;
  node.run([&] { after = node.runtime->node().processes().size(); });
  CHECK(after == before);
}
