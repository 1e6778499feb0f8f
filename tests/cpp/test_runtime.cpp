// A whole node in this process, with Python, against raw peers.
#include "tests/cpp/program.hpp"

#include <future>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/cpp/catch.hpp"

using namespace node_support;
using program::encoded;
using program::Program;

namespace {

// {call, Module, Function, [Argument]}, with the id of a batch's item where there is one.
Bytes call_of(const std::string& module, const std::string& function, double argument,
              std::int64_t id = -1) {
  return encoded([&](etf::Writer& out) {
    out.tuple(id < 0 ? 4 : 5).atom("call");
    if (id >= 0) out.integer(id);
    out.atom(module).atom(function).list(1).real(argument).nil();
  });
}

void send_call(Peer& peer, std::uint32_t number, const Bytes& request) {
  peer.send(
      encoded([&](etf::Writer& out) { dist::append_reg_send(out, peer.pid(), "py"); }),
      encoded([&](etf::Writer& out) {
        out.tuple(3).atom("$gen_call").tuple(2).raw(peer.pid()).raw(peer.ref(number)).raw(request);
      }));
}
void send_batch(Peer& peer, const std::vector<Bytes>& items) {
  peer.send(encoded([&](etf::Writer& out) { dist::append_reg_send(out, peer.pid(), "py"); }),
            encoded([&](etf::Writer& out) {
              out.tuple(2).atom("$py_batch").list(static_cast<std::uint32_t>(items.size()));
              for (const Bytes& item : items) out.raw(item);
              out.nil();
            }));
}

Bytes ok(double value) {
  return encoded([&](etf::Writer& out) { out.tuple(2).atom("ok").real(value); });
}
Bytes error(const std::string& reason) {
  return encoded([&](etf::Writer& out) { out.tuple(2).atom("error").atom(reason); });
}
Bytes answer(const Peer& peer, std::uint32_t number, const Bytes& result) {
  return encoded([&](etf::Writer& out) { out.tuple(2).raw(peer.ref(number)).raw(result); });
}

// What '$py_replies' brought, by id, until `count` of them are here.
std::map<std::int64_t, Bytes> replies(Peer& peer, std::size_t count) {
  std::map<std::int64_t, Bytes> all;
  while (all.size() < count) {
    const Signal signal = peer.receive();
    if (signal.control.op == dist::Op::kMonitorP) continue;  // of the batch's sender
    etf::Reader in(signal.payload);
    if (!in.tuple()) throw std::runtime_error("not a reply");
    if (auto label = in.atom(); !label || !(*label == "$py_replies"))
      throw std::runtime_error("not a reply");
    const auto length = in.list();
    for (std::uint32_t i = 0; length && i < *length; ++i) {
      if (!in.tuple()) throw std::runtime_error("not a reply");
      const std::int64_t id = *in.integer();
      all[id] = bytes_of(*in.term());
    }
  }
  return all;
}

}  // namespace

TEST_CASE("a call runs in Python and is answered with its tag", "[runtime]") {
  Program program;
  Peer peer = program.connect();
  send_call(peer, 1, call_of("math", "sqrt", 16.0));
  CHECK(peer.receive().payload == answer(peer, 1, ok(4.0)));
}

TEST_CASE("a batch's calls are all answered under their ids", "[runtime]") {
  Program program;
  Peer peer = program.connect();
  std::vector<Bytes> items;
  for (int i = 0; i < 500; ++i) items.push_back(call_of("math", "sqrt", i * i, i));
  send_batch(peer, items);
  const auto came = replies(peer, 500);
  for (int i = 0; i < 500; ++i) CHECK(came.at(i) == ok(i));
}

TEST_CASE("a cancelled call of a batch is answered so, on a worker and on the loop", "[runtime]") {
  Program program;
  Peer peer = program.connect();
  const Bytes loop_code = encoded([&](etf::Writer& out) {
    out.tuple(5)
        .atom("eval")
        .integer(2)
        .raw(peer.pid())
        .binary("sum(1 for i in iter(int, 1))")
        .map(0);
  });
  send_batch(peer, {call_of("asyncio", "sleep", 1000.0, 1), loop_code});
  peer.barrier();
  const auto cancel = [](std::int64_t id) {
    return encoded([&](etf::Writer& out) { out.tuple(2).atom("cancel").integer(id); });
  };
  send_batch(peer, {cancel(1), cancel(2)});
  const auto came = replies(peer, 2);
  CHECK(came.at(1) == error("cancelled"));
  CHECK(came.at(2) == error("cancelled"));
}

TEST_CASE("a peer that is lost takes its calls along", "[runtime]") {
  Program program;
  Peer other = program.connect("other@127.0.0.1");
  {
    Peer peer = program.connect();
    send_batch(peer,
               {call_of("asyncio", "sleep", 1000.0, 1), call_of("asyncio", "sleep", 1000.0, 2)});
    peer.barrier();
    REQUIRE(eventually([&] { return program.runtime->loop().tasks() == 2; }));
  }
  CHECK(eventually([&] { return program.runtime->loop().tasks() == 0; }));
  send_call(other, 1, call_of("math", "sqrt", 16.0));
  CHECK(other.receive().payload == answer(other, 1, ok(4.0)));
}

TEST_CASE("draining finishes what was accepted, refuses what is new, and then closes",
          "[runtime]") {
  Program program;
  Peer peer = program.connect();
  send_call(peer, 1, call_of("time", "sleep", 0.5));
  peer.barrier();
  std::promise<void> drained;
  program.run([&] { program.runtime->drain(20s, [&] { drained.set_value(); }); });
  send_call(peer, 2, call_of("math", "sqrt", 16.0));
  send_batch(peer, {call_of("math", "sqrt", 16.0, 3)});
  CHECK(peer.receive().payload == answer(peer, 2, error("draining")));
  CHECK(replies(peer, 1).at(3) == error("draining"));
  const Signal finished = peer.receive();
  CHECK(finished.payload ==
        answer(peer, 1, encoded([](etf::Writer& out) { out.tuple(2).atom("ok").atom("none"); })));
  CHECK(peer.closed());
  CHECK(drained.get_future().wait_for(kDeadline) == std::future_status::ready);
}

TEST_CASE(
    "a drain whose time is up cancels what still runs, and the node stops without waiting for it",
    "[runtime]") {
  const auto begin = std::chrono::steady_clock::now();
  {
    Program program(2);
    Peer peer = program.connect();
    const Bytes endless = encoded([&](etf::Writer& out) {
      out.tuple(5)
          .atom("eval")
          .integer(1)
          .raw(peer.pid())
          .binary("sum(1 for i in iter(int, 1))")
          .map(0);
    });
    send_batch(peer, {endless, call_of("asyncio", "sleep", 1000.0, 2)});
    peer.barrier();
    REQUIRE(eventually([&] { return program.runtime->pool().busy() == 1; }));
    std::promise<void> drained;
    program.run([&] { program.runtime->drain(100ms, [&] { drained.set_value(); }); });
    CHECK(drained.get_future().wait_for(kDeadline) == std::future_status::ready);
    CHECK(peer.closed());
    program.runtime->stop();
    CHECK(program.runtime->pool().busy() == 0);
    CHECK(program.runtime->loop().tasks() == 0);
  }
  CHECK(std::chrono::steady_clock::now() - begin < 20s);
}

TEST_CASE("many peers call, cancel, come and go, and each gets its own answers",
          "[runtime][threads]") {
  constexpr int kPeers = 4;
  constexpr int kRounds = 30;
  Program program;
  std::vector<std::string> failures(kPeers);
  std::vector<std::thread> threads;
  for (int which = 0; which < kPeers; ++which) {
    threads.emplace_back([&, which] {
      auto& failure = failures[static_cast<std::size_t>(which)];
      try {
        const std::string name = "peer" + std::to_string(which) + "@127.0.0.1";
        auto peer = std::make_unique<Peer>(program.connect(name));
        for (int round = 0; round < kRounds; ++round) {
          if (round % 10 == 9) {
            // Goes with calls under way, and comes again.
            send_batch(*peer,
                       {call_of("asyncio", "sleep", 50.0, 1), call_of("time", "sleep", 0.01, 2)});
            peer = std::make_unique<Peer>(program.connect(name));
          }
          std::vector<Bytes> items;
          const int base = which * 100'000 + round * 100;
          for (int i = 0; i < 20; ++i)
            items.push_back(call_of("math", "sqrt", (base + i) * 1.0 * (base + i), base + i));
          items.push_back(call_of("asyncio", "sleep", 0.001, base + 20));
          items.push_back(call_of("asyncio", "sleep", 100.0, base + 21));
          items.push_back(
              encoded([&](etf::Writer& out) { out.tuple(2).atom("cancel").integer(base + 21); }));
          send_batch(*peer, items);
          const auto came = replies(*peer, 22);
          for (int i = 0; i < 20; ++i) {
            if (came.at(base + i) != ok(base + i)) failure = "a wrong value";
          }
          if (came.at(base + 21) != error("cancelled")) failure = "not cancelled";
          send_call(*peer, 7, call_of("math", "sqrt", 9.0));
          if (peer->receive().payload != answer(*peer, 7, ok(3.0))) failure = "a wrong answer";
        }
      } catch (const std::exception& problem) {
        failure = problem.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& failure : failures) CHECK(failure.empty());
  CHECK(eventually([&] { return program.runtime->loop().tasks() == 0; }));
}
