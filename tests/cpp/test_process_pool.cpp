// The node's side of worker processes, with shell scripts in their place: what a process may do to
// the node by what it says, and by how it ends.
#include <signal.h>
#include <sys/stat.h>

#include <asio/io_context.hpp>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include "catch.hpp"
#include "cnode/bridge/process_pool.hpp"

using bridge::Call;
using bridge::ProcessPool;
using namespace std::chrono_literals;

namespace {

constexpr const char* kHello = R"(printf '\000\000\000\001\001' >&3)";

struct Fixture {
  explicit Fixture(const std::string& script) : answers(reactor, no_node) {
    char name[] = "/tmp/test_process_pool_XXXXXX";
    directory = mkdtemp(name);
    const std::string program = directory + "/process";
    std::ofstream(program) << "#!/bin/sh\n" << script << "\n";
    chmod(program.c_str(), 0700);
    ProcessPool::Options options;
    options.grace = 100ms;
    options.queue = {10, 1 << 20};
    options.workers = 1;
    options.command = {program};
    ProcessPool::Hooks hooks;
    hooks.watch = [](const std::string&) {};
    hooks.serve = [](const auto&, auto, auto, auto) { return false; };
    hooks.new_caller = [] { return 1; };
    hooks.caller_gone = [](auto, const auto&) {};
    hooks.forget = [](const auto&) {};
    pool.emplace(reactor, std::move(options), answers, metrics, std::move(hooks));
    pool->start();
  }
  ~Fixture() {
    pool.reset();
    std::filesystem::remove_all(directory);
  }

  bool until(const std::function<bool()>& done, std::chrono::milliseconds limit = 10s) {
    const auto end = std::chrono::steady_clock::now() + limit;
    while (!done()) {
      if (std::chrono::steady_clock::now() > end) return false;
      reactor.restart();
      reactor.run_for(5ms);
    }
    return true;
  }
  bridge::CallPtr call() {
    auto call = std::make_shared<Call>();
    call->kind = Call::Kind::kErpc;
    call->module = "math";
    call->function = "sqrt";
    return call;
  }
  std::uint64_t deaths(const char* how) const {
    auto found = pool->deaths().find(how);
    return found == pool->deaths().end() ? 0 : found->second;
  }

  asio::io_context reactor{1};
  dist::Node* no_node = nullptr;
  bridge::Answers answers;
  bridge::CallMetrics metrics;
  std::optional<ProcessPool> pool;
  std::string directory;
};

}  // namespace

TEST_CASE("a process that sends what is no frame is killed and replaced", "[process_pool]") {
  const std::string rubbish = GENERATE(
      std::string(R"(printf '\377\377\377\377\001' >&3)"),
      std::string(R"(printf '\000\000\000\000\000' >&3)"),
      std::string(R"(printf '\000\000\000\001\143' >&3)"),
      // A result of a call that it was not given, and hello twice.
      std::string(R"(printf '\000\000\000\014\002\000\000\000\000\000\000\000\001\000zz' >&3)"),
      std::string(kHello) + "; " + kHello,
      // A question that nobody could hear the answer of.
      std::string(R"(printf '\000\000\000\033\010\000\000\000\000\000\000\000\000\001)") +
          R"(\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000' >&3)");
  Fixture fixture(rubbish + "; exec sleep 30");
  CHECK(fixture.until([&] { return fixture.deaths("sigkill") >= 2; }));
}

TEST_CASE("a result that is no term costs its process, and goes to nobody", "[process_pool]") {
  Fixture fixture(std::string(kHello) + "; sleep 0.3; " +
                  R"(printf '\000\000\000\014\002\000\000\000\000\000\000\000\001\000zz' >&3)" +
                  "; exec sleep 30");
  const auto call = fixture.call();
  REQUIRE(fixture.pool->push(call));
  CHECK(fixture.until([&] { return call->done.load(); }));
  CHECK(fixture.deaths("sigkill") == 1);
}

TEST_CASE("a process that cannot live is tried again, less and less often", "[process_pool]") {
  Fixture fixture("exit 7");
  const auto begin = std::chrono::steady_clock::now();
  CHECK(fixture.until([&] { return fixture.deaths("exit") >= 4; }));
  CHECK(std::chrono::steady_clock::now() - begin >= 700ms);  // 0.1, 0.2 and 0.4 s
}

TEST_CASE("a call that waits outlives the processes that do not", "[process_pool]") {
  Fixture fixture("test -e \"$0.again\" || { touch \"$0.again\"; exit 1; }; " +
                  std::string(kHello) + "; sleep 0.3; " +
                  R"(printf '\000\000\000\013\002\000\000\000\000\000\000\000\001\000j' >&3)" +
                  "; exec sleep 30");
  const auto call = fixture.call();
  REQUIRE(fixture.pool->push(call));
  CHECK(fixture.until([&] { return call->done.load(); }));
}

TEST_CASE("a process that reads nothing is given no more than its share", "[process_pool]") {
  Fixture fixture(std::string(kHello) + "; exec sleep 30");
  REQUIRE(fixture.until([&] { return fixture.pool->alive() == 1; }));
  std::size_t taken = 0;
  while (taken < 100 && fixture.pool->push(fixture.call())) ++taken;
  CHECK(taken == 11);  // one for its thread, and the queue
  CHECK(fixture.pool->refused() == 1);
  CHECK(fixture.pool->busy() == 1);
}

TEST_CASE("a program that is not there is no process, and no crash", "[process_pool]") {
  Fixture fixture("");
  std::filesystem::remove_all(fixture.directory);
  fixture.until([&] { return false; }, 300ms);
  CHECK(fixture.pool->alive() == 0);
  CHECK(fixture.pool->push(fixture.call()));
}
