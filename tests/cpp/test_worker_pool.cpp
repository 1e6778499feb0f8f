#include "tests/cpp/interpreter.hpp"

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cnode/bridge/worker_pool.hpp"
#include "tests/cpp/catch.hpp"
#include "tests/cpp/node_support.hpp"

using namespace node_support;
using bridge::Call;
using bridge::CallPtr;
using bridge::WorkerPool;
using interpreter::Gate;

namespace {

constexpr const char* kLongLoop =
    "import time\n"
    "end = time.monotonic() + 20\n"
    "while time.monotonic() < end: pass\n";

WorkerPool::Options options_of(std::size_t workers) {
  WorkerPool::Options options;
  options.workers = workers;
  return options;
}

// What a call does that has asked Erlang something, until the answer, the gate, is there. False
// when it may not wait. Under the GIL before and after.
bool wait_for_answer(Gate& gate) {
  const py::GilRelease released;
  const WorkerPool::Waiting waiting;
  if (waiting.refused()) return false;
  gate.wait();
  return true;
}

// A pool on a reactor of its own. What a call does is a function of the test's, which runs under
// the GIL.
class Pool {
 public:
  explicit Pool(WorkerPool::Options options) {
    interpreter::start();
    spdlog::set_level(spdlog::level::off);
    WorkerPool::Hooks hooks;
    hooks.run = [this](const CallPtr& call) { job(call->id)(); };
    hooks.flush = [this] {
      unflushed = false;
      ++flushes;
    };
    hooks.has_unflushed = [this] { return unflushed.load(); };
    hooks.look_for_async = [this] { ++looks; };
    hooks.interruption = [] { return PyExc_TimeoutError; };
    pool = std::make_unique<WorkerPool>(reactor.context(), options, std::move(hooks));
    pool->start();
  }
  ~Pool() {
    pool->stop();
    reactor.stop();
  }

  CallPtr call(std::function<void()> what, etf::Bytes request = {}) {
    auto made = std::make_shared<Call>();
    made->request = request;
    const std::lock_guard lock(mutex_);
    made->id = jobs_.size();
    jobs_.push_back(std::move(what));
    return made;
  }
  bool push(const CallPtr& one) {
    bool taken = false;
    reactor.run([&] { taken = pool->push(one); });
    return taken;
  }
  bool push(std::function<void()> what) { return push(call(std::move(what))); }
  std::size_t push_all(std::vector<CallPtr> calls) {
    std::size_t taken = 0;
    reactor.run([&] { taken = pool->push_all(calls); });
    return taken;
  }
  void cancel(const CallPtr& one) {
    reactor.run([&] { pool->cancel(one); });
  }
  // Occupies a worker until `gate` opens; returns once it does.
  CallPtr occupy(Gate& gate) {
    auto started = std::make_shared<Gate>();
    auto made = call([&gate, started] {
      started->open();
      gate.wait_without_gil();
    });
    REQUIRE(push(made));
    REQUIRE(started->wait());
    return made;
  }
  // Has a worker wait for Erlang until `gate` opens; returns once it does.
  CallPtr block(Gate& gate) {
    const std::size_t before = pool->blocked();
    auto made = call([&gate] { wait_for_answer(gate); });
    REQUIRE(push(made));
    REQUIRE(eventually([&] { return pool->blocked() == before + 1; }));
    return made;
  }
  bool idle() { return pool->busy() == 0 && pool->waiting() == 0 && pool->blocked() == 0; }

  Reactor reactor;
  std::atomic<bool> unflushed{false};
  std::atomic<int> flushes{0};
  std::atomic<int> looks{0};
  std::unique_ptr<WorkerPool> pool;

 private:
  std::function<void()> job(std::uint64_t id) {
    const std::lock_guard lock(mutex_);
    return jobs_.at(id);
  }
  std::mutex mutex_;
  std::deque<std::function<void()>> jobs_;
};

}  // namespace

// --- running
// -----------------------------------------------------------------------------------------------------

TEST_CASE("a call runs once, under the GIL, and the answers are flushed afterwards",
          "[worker_pool]") {
  Pool over(options_of(2));
  std::atomic<int> runs{0};
  std::atomic<bool> held{false};
  REQUIRE(over.push([&] {
    held = PyGILState_Check() == 1;
    over.unflushed = true;
    ++runs;
  }));
  CHECK(eventually([&] { return runs == 1 && !over.unflushed; }));
  CHECK(held);
  CHECK(over.pool->completed() == 1);
  CHECK(eventually([&] { return over.pool->busy() == 0; }));
}

TEST_CASE("a slow call does not hold up a quick one while a worker is free", "[worker_pool]") {
  Pool over(options_of(2));
  Gate end;
  Gate quick;
  SECTION("pushed later") {
    over.occupy(end);
    CHECK(over.push([&] { quick.open(); }));
  }
  SECTION("pushed together, behind it") {
    CHECK(over.push_all(
              {over.call([&] { end.wait_without_gil(); }), over.call([&] { quick.open(); })}) == 2);
  }
  SECTION("behind a burst of quick ones with the slow one in the middle") {
    std::vector<CallPtr> calls;
    for (int i = 0; i < 20; ++i) calls.push_back(over.call([] {}));
    calls.push_back(over.call([&] { end.wait_without_gil(); }));
    for (int i = 0; i < 20; ++i) calls.push_back(over.call([] {}));
    calls.push_back(over.call([&] { quick.open(); }));
    CHECK(over.push_all(calls) == 42);
  }
  CHECK(quick.wait());
  end.open();
}

TEST_CASE("as many slow calls run at once as there are workers, and the next when one ends",
          "[worker_pool]") {
  Pool over(options_of(3));
  Gate all_started;
  Gate end;
  std::atomic<int> started{0};
  std::vector<CallPtr> calls;
  for (int i = 0; i < 4; ++i) {
    calls.push_back(over.call([&] {
      if (++started == 3) all_started.open();
      end.wait_without_gil();
    }));
  }
  REQUIRE(over.push_all(calls) == 4);
  CHECK(all_started.wait());
  CHECK(over.pool->busy() == 3);
  CHECK(over.pool->waiting() == 1);
  end.open();
  CHECK(eventually([&] { return started == 4 && over.pool->busy() == 0; }));
}

TEST_CASE("an answer is flushed though the worker is already in its next call, holding the GIL",
          "[worker_pool]") {
  Pool over(options_of(2));
  Gate first_runs;
  std::atomic<bool> pushed{false};
  std::atomic<bool> flushed_meanwhile{false};
  const auto spin = [](auto condition) {  // keeps the GIL
    const auto end = std::chrono::steady_clock::now() + 5s;
    while (!condition() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  };
  REQUIRE(
      eventually([&] { return over.flushes == 2; }));  // both workers are about to wait for calls
  ::usleep(20'000);
  REQUIRE(over.push([&] {
    first_runs.open();
    spin([&] { return pushed.load(); });
    over.unflushed = true;
  }));
  REQUIRE(first_runs.wait());
  ::usleep(5'000);  // long enough in one call for another worker to be called
  REQUIRE(over.push([&] {
    spin([&] { return !over.unflushed; });
    flushed_meanwhile = !over.unflushed;
  }));
  pushed = true;
  CHECK(eventually([&] { return over.pool->completed() == 2 && over.pool->busy() == 0; }));
  CHECK(flushed_meanwhile);
}

TEST_CASE("when every worker is busy and calls wait, the loop thread is asked to look",
          "[worker_pool]") {
  Pool over(options_of(1));
  Gate end;
  over.occupy(end);
  over.looks = 0;  // a worker may have taken its time to start
  REQUIRE(over.push([] {}));
  CHECK(eventually([&] { return over.looks > 0; }));
  end.open();
}

TEST_CASE("an idle pool does nothing", "[worker_pool]") {
  Pool over(options_of(2));
  REQUIRE(over.push([] {}));
  REQUIRE(eventually([&] { return over.pool->busy() == 0 && over.flushes > 0; }));
  ::usleep(20'000);
  const int flushes = over.flushes;
  const int looks = over.looks;  // before there was a worker
  ::usleep(100'000);
  CHECK(over.flushes == flushes);
  CHECK(over.looks == looks);
}

// --- bounds
// ------------------------------------------------------------------------------------------------------

TEST_CASE("one call more than the queue holds is refused and counted", "[worker_pool]") {
  auto options = options_of(1);
  options.queue.items = 2;
  Pool over(options);
  Gate end;
  over.occupy(end);
  CHECK(over.push([] {}));
  CHECK_FALSE(over.pool->full());
  CHECK(over.push([] {}));
  CHECK(over.pool->full());
  CHECK_FALSE(over.push([] {}));
  CHECK(over.pool->refused() == 1);
  end.open();
  CHECK(eventually([&] { return over.pool->completed() == 3; }));
  CHECK(over.push([] {}));
}

TEST_CASE("of calls pushed together as many are taken as fit, from the front", "[worker_pool]") {
  auto options = options_of(1);
  options.queue.items = 2;
  Pool over(options);
  Gate end;
  over.occupy(end);
  std::mutex mutex;
  std::vector<int> ran;
  std::vector<CallPtr> calls;
  for (int i = 0; i < 5; ++i) {
    calls.push_back(over.call([&, i] {
      const std::lock_guard lock(mutex);
      ran.push_back(i);
    }));
  }
  CHECK(over.push_all(calls) == 2);
  CHECK(over.pool->refused() == 3);
  end.open();
  CHECK(eventually([&] { return over.pool->completed() == 3 && over.pool->busy() == 0; }));
  const std::lock_guard lock(mutex);
  CHECK(ran == std::vector<int>{0, 1});
}

TEST_CASE("bytes over the bound are refused, but for the first call in the queue",
          "[worker_pool]") {
  auto options = options_of(1);
  options.queue.bytes = 100;
  Pool over(options);
  Gate end;
  over.occupy(end);
  const Bytes large(150);
  const Bytes little(1);
  CHECK(over.push(over.call([] {}, large)));
  CHECK_FALSE(over.push(over.call([] {}, little)));
  end.open();
  CHECK(eventually([&] { return over.pool->completed() == 2; }));
  CHECK(over.push(over.call([] {}, little)));
}

TEST_CASE("the node's own work goes ahead of the queue and beyond its bound", "[worker_pool]") {
  auto options = options_of(1);
  options.queue.items = 1;
  Pool over(options);
  Gate end;
  over.occupy(end);
  std::mutex mutex;
  std::vector<std::string> ran;
  const auto note = [&](const std::string& what) {
    return [&, what] {
      const std::lock_guard lock(mutex);
      ran.push_back(what);
    };
  };
  CHECK(over.push(note("call")));
  over.pool->push_internal(over.call(note("own")));
  end.open();
  CHECK(eventually([&] { return over.pool->completed() == 3 && over.pool->busy() == 0; }));
  const std::lock_guard lock(mutex);
  CHECK(ran == std::vector<std::string>{"own", "call"});
}

TEST_CASE("the node's own work wakes an idle pool", "[worker_pool]") {
  Pool over(options_of(1));
  REQUIRE(eventually([&] { return over.flushes > 0; }));
  Gate ran;
  over.pool->push_internal(over.call([&] { ran.open(); }));
  CHECK(ran.wait());
}

// --- the loop thread
// ---------------------------------------------------------------------------------------------

TEST_CASE("the loop thread takes what it likes, sees each call once, and leaves the rest in order",
          "[worker_pool]") {
  Pool over(options_of(1));
  Gate end;
  over.occupy(end);
  std::mutex mutex;
  std::vector<std::uint64_t> ran;
  std::vector<CallPtr> calls;
  for (std::uint64_t i = 0; i < 5; ++i) {
    calls.push_back(over.call([&, i] {
      const std::lock_guard lock(mutex);
      ran.push_back(i);
    }));
  }
  REQUIRE(over.push_all(calls) == 5);
  std::vector<std::uint64_t> seen;
  const auto wanted = [&](const CallPtr& call) {
    seen.push_back(call->id);
    return call == calls[1] || call == calls[3];
  };
  CHECK(over.pool->take_for_loop(wanted) == calls[1]);
  CHECK(over.pool->take_for_loop(wanted) == calls[3]);
  CHECK(over.pool->take_for_loop(wanted) == nullptr);
  CHECK(over.pool->take_for_loop(wanted) == nullptr);
  CHECK(seen == std::vector<std::uint64_t>{calls[0]->id, calls[1]->id, calls[2]->id, calls[3]->id,
                                           calls[4]->id});
  CHECK(over.pool->waiting() == 3);

  const CallPtr later = over.call([] {});
  REQUIRE(over.push(later));
  over.pool->push_internal(over.call([] {}));  // not for the loop thread
  CHECK(over.pool->take_for_loop([&](const CallPtr& call) { return call == later; }) == later);
  end.open();
  CHECK(eventually([&] { return over.pool->completed() == 8 && over.pool->busy() == 0; }));
  const std::lock_guard lock(mutex);
  CHECK(ran == std::vector<std::uint64_t>{0, 2, 4});
}

// --- interrupting
// ------------------------------------------------------------------------------------------------

TEST_CASE("a cancelled call that loops in Python gets an exception, and the next call none",
          "[worker_pool]") {
  Pool over(options_of(1));
  Gate started;
  std::string first = "not run";
  std::string second = "not run";
  const CallPtr looping = over.call([&] {
    started.open();
    first = interpreter::run(kLongLoop);
  });
  REQUIRE(over.push(looping));
  REQUIRE(started.wait());
  over.cancel(looping);
  REQUIRE(eventually([&] { return over.pool->busy() == 0; }, 10s));
  Gate done;
  REQUIRE(over.push([&] {
    second = interpreter::run("for i in range(1000): pass\n");
    done.open();
  }));
  REQUIRE(done.wait());
  CHECK(first == "TimeoutError");
  CHECK(second.empty());
  CHECK(over.pool->replaced() == 0);
}

TEST_CASE("cancelling a call that waits interrupts nobody", "[worker_pool]") {
  Pool over(options_of(1));
  Gate started;
  Gate cancelled;
  std::string outcome = "not run";
  REQUIRE(over.push([&] {
    started.open();
    cancelled.wait_without_gil();
    outcome = interpreter::run("for i in range(10000): pass\n");
  }));
  REQUIRE(started.wait());
  const CallPtr waiting = over.call([] {});
  REQUIRE(over.push(waiting));
  over.cancel(waiting);
  cancelled.open();
  REQUIRE(eventually([&] { return over.pool->completed() == 2 && over.pool->busy() == 0; }));
  CHECK(outcome.empty());
}

TEST_CASE("a call that has left the user's code is not interrupted any more", "[worker_pool]") {
  Pool over(options_of(1));
  Gate left;
  Gate cancelled;
  Gate done;
  std::string outcome = "not run";
  const CallPtr call = over.call([&] {
    WorkerPool::leave_user_code();
    left.open();
    cancelled.wait_without_gil();
    outcome = interpreter::run("for i in range(100000): pass\n");
    done.open();
  });
  REQUIRE(over.push(call));
  REQUIRE(left.wait());
  CHECK(over.pool->busy() == 0);
  over.cancel(call);
  ::usleep(20'000);  // time for a mistaken interruption
  cancelled.open();
  REQUIRE(done.wait());
  CHECK(outcome.empty());
}

TEST_CASE("an exception that was set and not yet raised dies with its call", "[worker_pool]") {
  Pool over(options_of(1));
  Gate started;
  std::atomic<bool> cancelled{false};
  std::string next = "not run";
  const CallPtr native = over.call([&] {
    started.open();
    // Native code that gives the GIL up: the exception is set meanwhile, and no bytecode runs that
    // could raise it.
    const py::GilRelease released;
    eventually([&] { return cancelled.load(); });
    ::usleep(20'000);
  });
  Gate done;
  REQUIRE(over.push(native));
  REQUIRE(started.wait());
  REQUIRE(over.push([&] {
    next = interpreter::run("for i in range(1000): pass\n");
    done.open();
  }));
  over.cancel(native);
  cancelled = true;
  REQUIRE(done.wait());
  CHECK(next.empty());
}

TEST_CASE("cancelling calls as they end never hits the next one", "[worker_pool][threads]") {
  Pool over(options_of(1));
  std::atomic<int> struck{0};
  std::atomic<int> ran{0};
  constexpr int kRounds = 200;
  for (int i = 0; i < kRounds; ++i) {
    const CallPtr victim = over.call([] { interpreter::run("for i in range(300): pass\n"); });
    const CallPtr innocent = over.call([&] {
      struck += !interpreter::run("for i in range(300): pass\n").empty();
      ++ran;
    });
    REQUIRE(over.push_all({victim, innocent}) == 2);
    over.cancel(victim);
  }
  CHECK(eventually([&] { return ran == kRounds; }));
  CHECK(struck == 0);
}

TEST_CASE("a worker wedged in native code is replaced after the grace period, not before",
          "[worker_pool]") {
  auto options = options_of(1);
  options.grace = 150ms;
  Pool over(options);
  Gate end;
  const CallPtr wedged = over.occupy(end);
  Gate quick;
  REQUIRE(over.push([&] { quick.open(); }));
  const auto begin = std::chrono::steady_clock::now();
  over.cancel(wedged);
  CHECK(quick.wait());
  CHECK(std::chrono::steady_clock::now() - begin >= 150ms);
  CHECK(over.pool->replaced() == 1);
  CHECK(eventually([&] { return over.pool->busy() == 0; }));
  // The wedged thread comes back, ends, and takes no more calls; its replacement does.
  end.open();
  Gate again;
  REQUIRE(over.push([&] { again.open(); }));
  CHECK(again.wait());
}

TEST_CASE("a cancelled call that ends within the grace period costs no worker", "[worker_pool]") {
  auto options = options_of(1);
  options.grace = 300ms;
  Pool over(options);
  Gate end;
  const CallPtr slow = over.occupy(end);
  over.cancel(slow);
  ::usleep(50'000);
  end.open();
  REQUIRE(eventually([&] { return over.pool->busy() == 0; }));
  ::usleep(450'000);
  CHECK(over.pool->replaced() == 0);
}

TEST_CASE("a worker in a long call that nobody cancelled is left alone", "[worker_pool]") {
  auto options = options_of(2);
  options.grace = 50ms;
  Pool over(options);
  Gate end_slow;
  over.occupy(end_slow);
  Gate end_cancelled;
  over.cancel(over.occupy(end_cancelled));
  CHECK(eventually([&] { return over.pool->replaced() == 1; }));
  ::usleep(200'000);
  CHECK(over.pool->replaced() == 1);
  CHECK(over.pool->busy() == 1);
  end_slow.open();
  end_cancelled.open();
}

// --- stopping
// ----------------------------------------------------------------------------------------------------

TEST_CASE("stopping waits for what runs and for what was accepted, and takes nothing more",
          "[worker_pool]") {
  Pool over(options_of(1));
  Gate end;
  over.occupy(end);
  std::atomic<int> ran{0};
  REQUIRE(over.push([&] { ++ran; }));
  REQUIRE(over.push([&] { ++ran; }));
  std::thread opener([&] {
    eventually([&] { return over.pool->full(); });  // it is stopping
    CHECK_FALSE(over.push([&] { ++ran; }));
    end.open();
  });
  over.pool->stop();
  opener.join();
  CHECK(ran == 2);
}

TEST_CASE("stopping an idle pool ends its threads at once", "[worker_pool]") {
  const auto begin = std::chrono::steady_clock::now();
  { const Pool over(options_of(8)); }
  CHECK(std::chrono::steady_clock::now() - begin < 4s);  // the grace period is 5 s
}

TEST_CASE("a call cancelled while the pool stops is interrupted all the same", "[worker_pool]") {
  Pool over(options_of(1));
  Gate started;
  std::string outcome = "not run";
  const CallPtr looping = over.call([&] {
    started.open();
    outcome = interpreter::run(kLongLoop);
  });
  REQUIRE(over.push(looping));
  REQUIRE(started.wait());
  std::thread canceller([&] {
    eventually([&] { return over.pool->full(); });  // it is stopping
    over.cancel(looping);
  });
  over.pool->stop();
  canceller.join();
  CHECK(outcome == "TimeoutError");
}

TEST_CASE("stopping gives a wedged worker the grace period and no more", "[worker_pool]") {
  static Gate end;
  static Gate ended;
  auto options = options_of(1);
  options.grace = 100ms;
  // Its thread outlives the test, and so must the pool.
  static Pool& over = *new Pool(options);
  Gate started;
  REQUIRE(over.push([&] {
    started.open();
    end.wait_without_gil();
    ended.open();
  }));
  REQUIRE(started.wait());
  const auto begin = std::chrono::steady_clock::now();
  over.pool->stop();
  CHECK(std::chrono::steady_clock::now() - begin < 10s);
  end.open();
  CHECK(ended.wait());
}

// --- waiting for Erlang
// ------------------------------------------------------------------------------------------

TEST_CASE("a worker that waits is replaced, and what is queued runs meanwhile", "[worker_pool]") {
  Gate answer;
  Gate quick;
  Gate queued;
  Gate started;
  Pool over(options_of(1));
  SECTION("what comes while it waits") {
    over.block(answer);
    CHECK(over.push([&] { quick.open(); }));
  }
  SECTION("what came before it waits") {
    REQUIRE(over.push([&] {
      started.open();
      queued.wait_without_gil();
      wait_for_answer(answer);
    }));
    REQUIRE(started.wait());
    CHECK(over.push([&] { quick.open(); }));
    queued.open();
  }
  CHECK(quick.wait());
  CHECK(over.pool->blocked() == 1);
  CHECK(over.pool->threads() == 2);
  answer.open();
  CHECK(eventually([&] { return over.idle(); }));
  CHECK(over.pool->completed() == 2);
}

TEST_CASE("a worker that waits stands for none: as many others work as there are workers",
          "[worker_pool]") {
  Gate answer;
  Gate end;
  std::atomic<int> started{0};
  Pool over(options_of(2));
  for (int i = 0; i < 3; ++i) over.block(answer);
  std::vector<CallPtr> slow;
  for (int i = 0; i < 3; ++i) {
    slow.push_back(over.call([&] {
      ++started;
      end.wait_without_gil();
    }));
  }
  REQUIRE(over.push_all(slow) == 3);
  CHECK(eventually([&] { return started == 2; }));
  CHECK(over.pool->waiting() == 1);
  CHECK(over.pool->threads() == 5);
  CHECK(over.pool->blocked() == 3);
  end.open();
  CHECK(eventually([&] { return started == 3; }));
  answer.open();
  CHECK(eventually([&] { return over.idle(); }));
}

TEST_CASE("no more workers wait than leave one at work; the last is refused and goes on",
          "[worker_pool]") {
  Gate answer;
  std::atomic<int> refused{0};
  std::atomic<int> answered{0};
  auto options = options_of(1);
  options.max_workers = 3;
  Pool over(options);
  std::vector<CallPtr> calls;
  for (int i = 0; i < 10; ++i)
    calls.push_back(over.call([&] { ++(wait_for_answer(answer) ? answered : refused); }));
  REQUIRE(over.push_all(calls) == 10);
  CHECK(eventually([&] { return refused == 8 && over.pool->blocked() == 2; }));
  CHECK(over.pool->threads() == 3);
  Gate quick;
  CHECK(over.push([&] { quick.open(); }));
  CHECK(quick.wait());
  CHECK(over.pool->threads() == 3);
  answer.open();
  CHECK(eventually([&] { return over.idle(); }));
  CHECK(answered == 2);
}

TEST_CASE("of two workers one may wait, and the other not", "[worker_pool]") {
  Gate answer;
  Gate quick;
  std::atomic<int> refused{0};
  auto options = options_of(1);
  options.max_workers = 2;
  Pool over(options);
  over.block(answer);
  REQUIRE(over.push([&] { refused += !wait_for_answer(answer); }));
  REQUIRE(over.push([&] { quick.open(); }));
  CHECK(quick.wait());
  CHECK(refused == 1);
  CHECK(over.pool->threads() == 2);
  answer.open();
  CHECK(eventually([&] { return over.idle(); }));
}

TEST_CASE("workers beyond those that are wanted end when they were idle, and the others stay",
          "[worker_pool]") {
  constexpr auto kIdle = 50ms;
  Gate answer;
  Gate end;
  std::atomic<int> started{0};
  auto options = options_of(3);
  options.surplus_idle = kIdle;
  Pool over(options);
  // So many that all of them are idle together afterwards.
  for (int i = 0; i < 8; ++i) over.block(answer);
  std::vector<CallPtr> slow;
  for (int i = 0; i < 3; ++i) {
    slow.push_back(over.call([&] {
      ++started;
      end.wait_without_gil();
    }));
  }
  REQUIRE(over.push_all(slow) == 3);
  REQUIRE(eventually([&] { return started == 3; }));
  CHECK(over.pool->threads() == 11);
  answer.open();
  end.open();
  CHECK(eventually([&] { return over.pool->threads() <= 3; }));
  std::this_thread::sleep_for(3 * kIdle);  // in which no more may end
  CHECK(over.pool->threads() == 3);
  CHECK(over.idle());

  Gate again;
  started = 0;
  std::vector<CallPtr> more;
  for (int i = 0; i < 3; ++i) {
    more.push_back(over.call([&] {
      if (++started == 3) again.open();
      again.wait_without_gil();
    }));
  }
  REQUIRE(over.push_all(more) == 3);
  CHECK(again.wait());
  CHECK(over.pool->threads() == 3);
  CHECK(eventually([&] { return over.idle(); }));
}

TEST_CASE("workers beyond those that are wanted end though calls keep coming", "[worker_pool]") {
  Gate answer;
  Gate end;
  std::atomic<int> started{0};
  auto options = options_of(2);
  options.surplus_idle = 50ms;
  Pool over(options);
  for (int i = 0; i < 2; ++i) over.block(answer);
  std::vector<CallPtr> slow;
  for (int i = 0; i < 2; ++i) {
    slow.push_back(over.call([&] {
      ++started;
      end.wait_without_gil();
    }));
  }
  REQUIRE(over.push_all(slow) == 2);
  REQUIRE(eventually([&] { return started == 2; }));
  REQUIRE(over.pool->threads() == 4);
  // These become idle while no worker is too many, the others after them.
  end.open();
  REQUIRE(eventually([&] { return over.pool->busy() == 2; }));
  answer.open();
  REQUIRE(eventually([&] { return over.idle(); }));
  CHECK(eventually([&] {
    Gate quick;
    REQUIRE(over.push([&] { quick.open(); }));
    REQUIRE(quick.wait());
    return over.pool->threads() == 2;
  }));
}

TEST_CASE("waiting in a thread that is no worker does nothing", "[worker_pool]") {
  auto options = options_of(1);
  options.max_workers = 1;
  Pool over(options);
  const WorkerPool::Waiting here;
  const WorkerPool::Waiting again;
  CHECK_FALSE(here.refused());
  CHECK_FALSE(again.refused());
  CHECK(over.pool->blocked() == 0);
  Gate quick;
  CHECK(over.push([&] { quick.open(); }));
  CHECK(quick.wait());
  CHECK(over.pool->threads() == 1);
}

TEST_CASE(
    "a worker that waits and does not end when it is cancelled is replaced once, and missed "
    "by none of the counts",
    "[worker_pool]") {
  Gate answer;
  std::atomic<bool> over_at_last{false};
  auto options = options_of(1);
  options.grace = 100ms;
  options.surplus_idle = 50ms;
  Pool over(options);
  const CallPtr wedged = over.call([&] {
    wait_for_answer(answer);
    over_at_last = true;
  });
  REQUIRE(over.push(wedged));
  REQUIRE(eventually([&] { return over.pool->blocked() == 1; }));
  Gate quick;
  REQUIRE(over.push([&] { quick.open(); }));
  REQUIRE(quick.wait());  // by the one that took its place, which then stays
  over.cancel(wedged);
  CHECK(eventually([&] { return over.pool->replaced() == 1; }));
  CHECK(over.pool->blocked() == 0);
  CHECK(over.pool->busy() == 0);
  CHECK(eventually([&] { return over.pool->threads() == 1; }));

  answer.open();
  REQUIRE(eventually([&] { return over_at_last.load(); }));
  Gate second;
  over.block(second);  // what the counts say decides whether there is anybody else
  Gate last;
  CHECK(over.push([&] { last.open(); }));
  CHECK(last.wait());
  CHECK(over.pool->blocked() == 1);
  CHECK(over.pool->threads() == 2);
  CHECK(over.pool->replaced() == 1);
  second.open();
  CHECK(eventually([&] { return over.idle() && over.pool->threads() == 1; }));
}

TEST_CASE("a worker that was given up on and waits afterwards counts as none", "[worker_pool]") {
  Gate end;
  Gate answer;
  std::atomic<bool> waits{false};
  auto options = options_of(1);
  options.grace = 100ms;
  options.max_workers = 2;
  Pool over(options);
  const CallPtr wedged = over.call([&] {
    end.wait_without_gil();
    waits = true;
    wait_for_answer(answer);
    waits = false;
  });
  REQUIRE(over.push(wedged));
  REQUIRE(eventually([&] { return over.pool->busy() == 1; }));
  over.cancel(wedged);
  REQUIRE(eventually([&] { return over.pool->replaced() == 1; }));
  end.open();
  REQUIRE(eventually([&] { return waits.load(); }));
  CHECK(over.pool->blocked() == 0);
  Gate second;
  over.block(second);  // the one of two that may wait
  CHECK(over.pool->blocked() == 1);
  answer.open();
  CHECK(eventually([&] { return !waits; }));
  second.open();
  CHECK(eventually([&] { return over.idle(); }));
}

TEST_CASE("stopping waits for those that wait", "[worker_pool]") {
  Gate answer;
  std::atomic<bool> went_on{false};
  Pool over(options_of(1));
  REQUIRE(over.push([&] { went_on = wait_for_answer(answer); }));
  REQUIRE(eventually([&] { return over.pool->blocked() == 1; }));
  std::thread opener([&] {
    eventually([&] { return over.pool->full(); });  // it is stopping
    answer.open();
  });
  over.pool->stop();
  opener.join();
  CHECK(went_on);
}

TEST_CASE("jobs take their turn among the calls, and the bounds are not for them",
          "[worker_pool]") {
  Gate end;
  std::mutex mutex;
  std::vector<std::string> ran;
  auto options = options_of(1);
  options.queue.items = 2;
  Pool over(options);
  over.occupy(end);
  const auto note = [&](const std::string& what) {
    return over.call([&, what] {
      const std::lock_guard lock(mutex);
      ran.push_back(what);
    });
  };
  CHECK(over.push(note("first call")));
  over.pool->push_job(note("first job"));
  over.pool->push_job(note("second job"));
  CHECK_FALSE(over.push(note("refused")));
  over.pool->push_internal(note("own"));
  end.open();
  CHECK(eventually([&] { return over.pool->completed() == 5 && over.idle(); }));
  const std::lock_guard lock(mutex);
  CHECK(ran == std::vector<std::string>{"own", "first call", "first job", "second job"});
}

TEST_CASE("a job wakes an idle pool, and one whose only worker is in a slow call",
          "[worker_pool]") {
  Gate end;
  Gate ran;
  Pool over(options_of(2));
  SECTION("idle") {
    REQUIRE(eventually([&] { return over.flushes == 2; }));
  }
  SECTION("in a slow call") { over.occupy(end); }
  over.pool->push_job(over.call([&] { ran.open(); }));
  CHECK(ran.wait());
  end.open();
  CHECK(eventually([&] { return over.idle(); }));
}

TEST_CASE(
    "jobs that wait for jobs that wait, from many threads: all are run, by as few threads as "
    "are allowed",
    "[worker_pool][threads]") {
  constexpr int kPushers = 3;
  constexpr int kEach = 60;
  constexpr int kDepth = 4;
  std::atomic<int> ran{0};
  std::atomic<int> refused{0};
  std::atomic<std::size_t> most{0};
  auto options = options_of(2);
  options.max_workers = 6;
  options.surplus_idle = 5ms;
  Pool over(options);
  // Asks for the next one and waits for it, as a function does that calls back through Erlang.
  std::function<void(int, const std::shared_ptr<Gate>&)> run =
      [&](int depth, const std::shared_ptr<Gate>& done) {
        std::size_t seen = most;
        const std::size_t threads = over.pool->threads();
        while (threads > seen && !most.compare_exchange_weak(seen, threads)) {
        }
        if (depth < kDepth) {
          auto next = std::make_shared<Gate>();
          {
            const py::GilRelease released;
            over.pool->push_job(over.call([&run, depth, next] { run(depth + 1, next); }));
          }
          refused += !wait_for_answer(*next);
        }
        ++ran;
        done->open();
      };
  std::vector<std::thread> pushers;
  for (int i = 0; i < kPushers; ++i) {
    pushers.emplace_back([&] {
      for (int number = 0; number < kEach; ++number) {
        auto done = std::make_shared<Gate>();
        over.pool->push_job(over.call([&run, done] { run(1, done); }));
        done->wait();
      }
    });
  }
  for (auto& pusher : pushers) pusher.join();
  CHECK(eventually([&] { return ran == kPushers * kEach * kDepth && over.idle(); }));
  CHECK(over.pool->completed() == kPushers * kEach * kDepth);
  CHECK(refused > 0);
  CHECK(most > 2);
  CHECK(most <= 6);
  CHECK(over.pool->blocked() == 0);
  CHECK(eventually([&] { return over.pool->threads() == 2; }));
}

// --- many threads
// ------------------------------------------------------------------------------------------------

TEST_CASE("thousands of calls in bursts, some cancelled, run once each", "[worker_pool][threads]") {
  constexpr int kCalls = 4000;
  Pool over(options_of(4));
  std::vector<std::atomic<int>> ran(kCalls);
  std::atomic<int> done{0};
  std::mt19937 random(5);
  std::vector<CallPtr> calls;
  for (int i = 0; i < kCalls; ++i) {
    calls.push_back(over.call([&, i, slow = random() % 200 == 0] {
      ++ran[static_cast<std::size_t>(i)];
      if (slow) {
        const py::GilRelease released;
        ::usleep(2000);
      }
      WorkerPool::leave_user_code();
      over.unflushed = true;
      ++done;
    }));
  }
  std::thread watcher([&] {
    while (done < kCalls) {
      over.pool->waiting();
      over.pool->take_for_loop([](const CallPtr&) { return false; });
      ::usleep(500);
    }
  });
  for (std::size_t at = 0; at < calls.size();) {
    const std::size_t size = std::min<std::size_t>(1 + random() % 50, calls.size() - at);
    const std::vector<CallPtr> burst(calls.begin() + static_cast<std::ptrdiff_t>(at),
                                     calls.begin() + static_cast<std::ptrdiff_t>(at + size));
    REQUIRE(over.push_all(burst) == size);
    over.cancel(burst[random() % size]);
    at += size;
  }
  const bool finished = eventually([&] { return done == kCalls; });
  done = kCalls;
  watcher.join();
  CHECK(finished);
  bool once = true;
  for (const auto& count : ran) once = once && count == 1;
  CHECK(once);
  CHECK(over.pool->completed() == kCalls);
  CHECK(eventually([&] { return !over.unflushed; }));
}
