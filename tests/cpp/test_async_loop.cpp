#include "tests/cpp/interpreter.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cnode/bridge/async_loop.hpp"
#include "tests/cpp/catch.hpp"

using namespace dist_support;
using bridge::AsyncLoop;
using bridge::Call;
using bridge::CallPtr;
using interpreter::Gate;

namespace {

// A loop, and what its tasks came to: the value's text, or the exception's class.
class Loop {
 public:
  Loop() {
    interpreter::start();
    AsyncLoop::Hooks hooks;
    hooks.finish = [this](const Call& call, PyObject* value, PyObject* exception) {
      std::string text;
      if (value != nullptr)
        text = py::text_of(py::check(PyObject_Str(value)).get());
      else
        text = Py_TYPE(exception)->tp_name;
      const std::lock_guard lock(mutex_);
      outcomes_[call.id] = text;
      changed_.notify_all();
    };
    hooks.look_for_async = [this] { ++looks; };
    hooks.run = [this](const CallPtr& call) {
      ran_on_loop = loop->is_loop_thread() && PyGILState_Check() == 1;
      loop->start_task(call, coroutine("give(7)"));
    };
    hooks.flush = [this] {
      ++flushes;
      flushed_under_gil = flushed_under_gil || PyGILState_Check() == 1;
    };
    loop = std::make_unique<AsyncLoop>(std::move(hooks));
  }

  CallPtr call() {
    auto made = std::make_shared<Call>();
    made->id = next_id_++;
    return made;
  }
  // Starts the coroutine that `expression` makes; `prelude` defines what it needs.
  CallPtr start(const std::string& expression, const std::string& prelude = {}) {
    const CallPtr made = call();
    const py::GilGuard gil;
    loop->start_task(made, coroutine(expression, prelude));
    return made;
  }
  static py::Ref coroutine(const std::string& expression, const std::string& prelude = {}) {
    const py::Ref globals = py::check(PyDict_New());
    py::check_status(PyDict_SetItemString(globals.get(), "__builtins__", PyEval_GetBuiltins()));
    const std::string code =
        "import asyncio\n"
        "async def give(value): return value\n"
        "async def fail(): raise ValueError('no')\n" +
        prelude;
    py::check(PyRun_String(code.c_str(), Py_file_input, globals.get(), globals.get()));
    return py::check(PyRun_String(expression.c_str(), Py_eval_input, globals.get(), globals.get()));
  }
  // Returns when every task that was started has taken its first step.
  void settle() {
    Gate begun;
    loop->post([&] { loop->post([&] { begun.open(); }); });
    REQUIRE(begun.wait());
  }
  std::string outcome(const CallPtr& call) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, kDeadline, [&] { return outcomes_.contains(call->id); }))
      return "none in time";
    return outcomes_[call->id];
  }
  std::size_t outcomes() {
    const std::lock_guard lock(mutex_);
    return outcomes_.size();
  }

  std::atomic<bool> ran_on_loop{false};
  std::atomic<int> looks{0};
  std::atomic<int> flushes{0};
  std::atomic<bool> flushed_under_gil{false};
  std::unique_ptr<AsyncLoop> loop;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint64_t, std::string> outcomes_;
  std::atomic<std::uint64_t> next_id_{0};
};

// A loop that runs.
struct Running : Loop {
  Running() { loop->start(); }
};

}  // namespace

TEST_CASE("a loop starts and stops, and stopping again does nothing", "[async_loop]") {
  Running over;
  Gate ran;
  over.loop->post([&] { ran.open(); });
  CHECK(ran.wait());
  over.loop->stop();
  over.loop->stop();
}

TEST_CASE("a loop that never started can be destroyed", "[async_loop]") { const Loop over; }

TEST_CASE("a coroutine's value or exception is what its call came to", "[async_loop]") {
  Running over;
  CHECK(over.outcome(over.start("give(42)")) == "42");
  CHECK(over.outcome(over.start("fail()")) == "ValueError");
  CHECK(over.outcome(over.start("asyncio.sleep(0.01, 'slept')")) == "slept");
  CHECK(eventually([&] { return over.loop->tasks() == 0; }));
}

TEST_CASE("a call that is handed over is run on the loop's thread and counts from then on",
          "[async_loop]") {
  Running over;
  Gate held, let_go;
  over.loop->post([&] {
    held.open();
    let_go.wait();
  });
  REQUIRE(held.wait());
  const CallPtr call = over.call();
  over.loop->hand_over(call);
  CHECK(over.loop->tasks() == 1);
  let_go.open();
  CHECK(over.outcome(call) == "7");
  CHECK(over.ran_on_loop);
  CHECK(eventually([&] { return over.loop->tasks() == 0; }));
}

TEST_CASE("calls that were handed over to a loop that has ended are no longer counted",
          "[async_loop]") {
  Running over;
  over.loop->stop();
  over.loop->hand_over(over.call());
  CHECK(over.loop->tasks() == 0);
  CHECK(over.outcomes() == 0);
}

TEST_CASE("work posted from any thread runs on the loop's thread, under the GIL and in order",
          "[async_loop]") {
  Running over;
  std::vector<int> ran;
  std::set<std::thread::id> threads;
  bool held = true;
  Gate done;
  for (int i = 0; i < 100; ++i) {
    over.loop->post([&, i] {
      ran.push_back(i);
      threads.insert(std::this_thread::get_id());
      held = held && PyGILState_Check() == 1;
      if (i == 99) done.open();
    });
  }
  REQUIRE(done.wait());
  CHECK(std::is_sorted(ran.begin(), ran.end()));
  CHECK(ran.size() == 100);
  CHECK(threads.size() == 1);
  CHECK_FALSE(threads.contains(std::this_thread::get_id()));
  CHECK(held);
}

TEST_CASE("a task may be started from the loop's own thread", "[async_loop]") {
  Running over;
  const CallPtr call = over.call();
  over.loop->post([&] { over.loop->start_task(call, Loop::coroutine("give('own')")); });
  CHECK(over.outcome(call) == "own");
}

TEST_CASE("a cancelled task ends with CancelledError, wherever it waits", "[async_loop]") {
  Running over;
  const CallPtr call = over.start("asyncio.sleep(1000)");
  SECTION("before its first step") {}
  SECTION("in the middle") { over.settle(); }
  call->cancelled = true;
  over.loop->cancel(call);
  CHECK(over.outcome(call) == "CancelledError");
  CHECK(eventually([&] { return over.loop->tasks() == 0; }));
}

TEST_CASE("a call cancelled before its task began never begins", "[async_loop]") {
  Running over;
  Gate hold;
  over.loop->post([&] { hold.wait_without_gil(); });
  const CallPtr call =
      over.start("mark()", "async def mark():\n  import sys\n  sys.began_after_all = True\n");
  call->cancelled = true;
  over.loop->cancel(call);
  hold.open();
  CHECK(over.outcome(call) == "CancelledError");
  CHECK(interpreter::run("import sys; assert not hasattr(sys, 'began_after_all')") == "");
}

TEST_CASE("cancelling what has ended does nothing", "[async_loop]") {
  Running over;
  const CallPtr call = over.start("give(1)");
  REQUIRE(over.outcome(call) == "1");
  over.loop->cancel(call);
  CHECK(over.outcome(over.start("give(2)")) == "2");
  CHECK(over.outcomes() == 2);
}

TEST_CASE("a task that shrugs a cancellation off goes on to its end", "[async_loop]") {
  Running over;
  const CallPtr call = over.start("stubborn()",
                                  "async def stubborn():\n"
                                  "  try: await asyncio.sleep(1000)\n"
                                  "  except asyncio.CancelledError: pass\n"
                                  "  return 'done anyway'\n");
  over.settle();
  over.loop->cancel(call);
  CHECK(over.outcome(call) == "done anyway");
}

TEST_CASE("tasks that sleep do not hold each other up", "[async_loop]") {
  Running over;
  const auto begin = std::chrono::steady_clock::now();
  std::vector<CallPtr> calls;
  for (int i = 0; i < 500; ++i) calls.push_back(over.start("asyncio.sleep(0.2, 1)"));
  for (const auto& call : calls) CHECK(over.outcome(call) == "1");
  CHECK(std::chrono::steady_clock::now() - begin < 50s);  // one after the other: 100 s
  CHECK(eventually([&] { return over.loop->tasks() == 0; }));
}

TEST_CASE("answers are flushed after they are given, without the GIL", "[async_loop]") {
  Running over;
  const int before = over.flushes;
  over.outcome(over.start("give(1)"));
  CHECK(eventually([&] { return over.flushes > before; }));
  CHECK_FALSE(over.flushed_under_gil);
}

TEST_CASE("the loop looks for async calls when it is told to", "[async_loop]") {
  Running over;
  over.loop->look_for_async();
  CHECK(eventually([&] { return over.looks == 1; }));
}

TEST_CASE("what has ended is freed", "[async_loop]") {
  Running over;
  const CallPtr call = over.start("give(1)");
  over.outcome(call);
  CHECK(eventually([&] { return call.use_count() == 1; }));
  const py::GilGuard gil;
  CHECK(call->task == nullptr);
}

TEST_CASE("stopping cancels what still runs, lets it clean up, and each call learns of it",
          "[async_loop]") {
  Running over;
  const CallPtr call = over.start("careful()",
                                  "async def careful():\n"
                                  "  import sys\n"
                                  "  try: await asyncio.sleep(1000)\n"
                                  "  finally:\n"
                                  "    await asyncio.sleep(0)\n"
                                  "    sys.cleaned_up = True\n");
  over.settle();
  over.loop->stop();
  CHECK(interpreter::run("import sys; sys.cleaned_up") == "");
  CHECK(over.outcome(call) == "CancelledError");
  CHECK(over.loop->tasks() == 0);
}

TEST_CASE("a task that will not end does not keep the loop from stopping", "[async_loop]") {
  Running over;
  over.start("stubborn()",
             "async def stubborn():\n"
             "  while True:\n"
             "    try: await asyncio.sleep(1000)\n"
             "    except asyncio.CancelledError: pass\n");
  over.settle();
  const auto begin = std::chrono::steady_clock::now();
  over.loop->stop();
  CHECK(std::chrono::steady_clock::now() - begin < 10s);
}

TEST_CASE("what is started or posted after the stop is dropped", "[async_loop]") {
  Running over;
  over.loop->stop();
  bool ran = false;
  over.loop->post([&] { ran = true; });
  const CallPtr call = over.start("give(1)");
  over.loop->cancel(call);
  over.loop->look_for_async();
  CHECK(over.loop->tasks() == 0);
  CHECK(call.use_count() == 1);
  CHECK_FALSE(ran);
}

TEST_CASE("a loop that cannot be made is an error that says why", "[async_loop]") {
  Loop over;
  REQUIRE(interpreter::run("from erlang_loop import _loop\n"
                           "_loop.kept = _loop.node_loop\n"
                           "def refuse(): raise OSError('no descriptors left')\n"
                           "_loop.node_loop = refuse\n") == "");
  CHECK_THROWS_WITH(over.loop->start(), ContainsSubstring("OSError: no descriptors left"));
  CHECK(interpreter::run("from erlang_loop import _loop; _loop.node_loop = _loop.kept") == "");
}

TEST_CASE("tasks started and cancelled from many threads all come to something",
          "[async_loop][threads]") {
  constexpr int kThreads = 4;
  constexpr int kTasks = 150;
  Running over;
  std::vector<std::thread> threads;
  std::vector<std::vector<CallPtr>> calls(kThreads);
  for (std::size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      for (int task = 0; task < kTasks; ++task) {
        calls[i].push_back(
            over.start(task % 3 == 0 ? "asyncio.sleep(1000)" : "asyncio.sleep(0.001, 1)"));
        if (task % 3 != 0) continue;
        calls[i].back()->cancelled = true;
        over.loop->cancel(calls[i].back());
      }
    });
  }
  for (auto& thread : threads) thread.join();
  std::size_t cancelled = 0;
  std::size_t ended = 0;
  for (const auto& some : calls) {
    for (const auto& call : some) {
      const std::string outcome = over.outcome(call);
      cancelled += outcome == "CancelledError";
      ended += outcome == "1";
    }
  }
  CHECK(cancelled == kThreads * kTasks / 3);
  CHECK(ended == kThreads * kTasks * 2 / 3);
  CHECK(eventually([&] { return over.loop->tasks() == 0; }));
}
