// The parts of the event loop below Python, and a whole loop under threads in an interpreter of its
// own.
#include "cnode/py/python.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "cnode/loop/inbox.hpp"
#include "cnode/loop/loop.hpp"
#include "cnode/loop/poller.hpp"
#include "cnode/loop/ready_queue.hpp"
#include "cnode/loop/timer_heap.hpp"
#include "tests/cpp/catch.hpp"
#include "tests/cpp/interpreter.hpp"

using namespace std::chrono_literals;

namespace {

using Clock = std::chrono::steady_clock;

std::unique_ptr<loop::Poller> poller_named(const std::string& name) {
  if (name == "asio") return std::make_unique<loop::AsioPoller>();
  return std::make_unique<loop::EpollPoller>();
}

struct Pair {
  Pair() { REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends.data()) == 0); }
  ~Pair() {
    close(ends[0]);
    close(ends[1]);
  }
  std::array<int, 2> ends{};
};

std::vector<std::uint64_t> tags(loop::Poller::Events events) {
  std::vector<std::uint64_t> found;
  for (const auto& event : events) found.push_back(event.data.u64);
  return found;
}

// A loop of the module's Python class, made and closed under the GIL.
class PythonLoop {
 public:
  explicit PythonLoop(const char* driver) {
    interpreter::start();
    const py::GilGuard gil;
    py::Ref module = py::import("erlang_loop");
    py::Ref type = py::attribute(module.get(), "ErlangEventLoop");
    py::Ref options = py::check(Py_BuildValue("{s:s}", "driver", driver));
    py::Ref nothing = py::check(PyTuple_New(0));
    object_ = py::check(PyObject_Call(type.get(), nothing.get(), options.get()));
    loop = loop::loop_of(object_.get());
    REQUIRE(loop != nullptr);
  }
  ~PythonLoop() {
    const py::GilGuard gil;
    close();
    object_.reset();
  }
  void close() { py::check(PyObject_CallMethod(object_.get(), "close", nullptr)); }
  void run() {
    const py::GilGuard gil;
    py::check(PyObject_CallMethod(object_.get(), "run_forever", nullptr));
  }

  loop::Loop* loop = nullptr;

 private:
  py::Ref object_;
};

}  // namespace

TEST_CASE("a wait ends at its limit and not before it", "[loop]") {
  for (const char* name : {"epoll", "asio"}) {
    CAPTURE(name);
    auto poller = poller_named(name);
    for (const auto limit : {1ms, 5ms, 20ms}) {
      bool interrupted = true;
      const auto began = Clock::now();
      CHECK(poller->wait(limit, interrupted).empty());
      CHECK(Clock::now() - began >= limit);
      CHECK_FALSE(interrupted);
    }
  }
}

TEST_CASE("a wait without a limit ends when another thread wakes it, each time",
          "[loop][threads]") {
  for (const char* name : {"epoll", "asio"}) {
    CAPTURE(name);
    auto poller = poller_named(name);
    for (int round = 0; round < 100; ++round) {
      std::thread other([&] { poller->wake(); });
      bool interrupted = false;
      std::vector<std::uint64_t> found;
      while (found.empty()) found = tags(poller->wait(std::nullopt, interrupted));
      CHECK(found == std::vector<std::uint64_t>{loop::Poller::kWakeTag});
      poller->woken();
      other.join();
      CHECK(poller->poll().empty());
    }
  }
}

TEST_CASE("a descriptor is reported as long as there is something, and not after it was removed",
          "[loop]") {
  for (const char* name : {"epoll", "asio"}) {
    CAPTURE(name);
    auto poller = poller_named(name);
    const Pair pair;
    REQUIRE(poller->add(pair.ends[0], EPOLLIN, 7) == 0);
    CHECK(poller->poll().empty());
    REQUIRE(write(pair.ends[1], "x", 1) == 1);
    bool interrupted = false;
    for (int i = 0; i < 3; ++i)
      CHECK(tags(poller->wait(1s, interrupted)) == std::vector<std::uint64_t>{7});
    poller->remove(pair.ends[0]);
    CHECK(poller->wait(1ms, interrupted).empty());
  }
}

TEST_CASE("a descriptor that was closed and opened again can be changed and added", "[loop]") {
  loop::EpollPoller poller;
  int number = -1;
  {
    const Pair pair;
    number = pair.ends[0];
    REQUIRE(poller.add(number, EPOLLIN, 1) == 0);
  }
  const Pair again;
  REQUIRE(again.ends[0] == number);  // the lowest free number
  CHECK(poller.change(number, EPOLLOUT, 2) == 0);
  CHECK(tags(poller.poll()) == std::vector<std::uint64_t>{2});
  CHECK(poller.add(number, EPOLLOUT, 3) == 0);
  CHECK(tags(poller.poll()) == std::vector<std::uint64_t>{3});
  CHECK(poller.add(-1, EPOLLIN, 4) == EBADF);
}

TEST_CASE("timers come by time, those of one time as they were set, cancelled ones never",
          "[loop]") {
  std::mt19937 random(7);
  loop::TimerHeap heap;
  std::vector<std::unique_ptr<loop::Timer>> timers;
  for (int i = 0; i < 3000; ++i) {
    auto timer = std::make_unique<loop::Timer>();
    timer->when = static_cast<double>(random() % 100);
    timer->cancelled = false;
    timer->count = static_cast<std::uint32_t>(i);
    heap.push(*timer);
    timers.push_back(std::move(timer));
    if (random() % 2 != 0) continue;
    loop::Timer& victim = *timers[random() % timers.size()];
    if (victim.cancelled) continue;
    victim.cancelled = true;
    heap.cancelled(victim);
    std::vector<loop::Timer*> gone;
    if (heap.wants_cleaning()) heap.clean(gone);
    for (const loop::Timer* each : gone) CHECK(each->cancelled);
  }
  std::vector<const loop::Timer*> expected;
  for (const auto& timer : timers)
    if (!timer->cancelled) expected.push_back(timer.get());
  std::stable_sort(expected.begin(), expected.end(),
                   [](const auto* a, const auto* b) { return a->when < b->when; });
  std::vector<const loop::Timer*> found;
  while (!heap.empty()) {
    const loop::Timer& top = heap.pop();
    CHECK(top.index == loop::Timer::kNowhere);
    if (!top.cancelled) found.push_back(&top);
  }
  CHECK(found == expected);
}

TEST_CASE("a heap of cancelled timers is cleaned before it is large", "[loop]") {
  loop::TimerHeap heap;
  std::vector<std::unique_ptr<loop::Timer>> timers;
  std::size_t largest = 0;
  for (int i = 0; i < 10000; ++i) {
    auto timer = std::make_unique<loop::Timer>();
    timer->when = 10000.0 - i;  // each at the top: none leaves as the newest
    timer->cancelled = true;
    heap.push(*timer);
    heap.cancelled(*timer);
    timers.push_back(std::move(timer));
    std::vector<loop::Timer*> gone;
    if (heap.wants_cleaning()) heap.clean(gone);
    largest = std::max(largest, heap.size());
  }
  CHECK(largest <= 201);
}

TEST_CASE("the ready queue keeps its order while it grows around its end", "[loop]") {
  loop::ReadyQueue queue;
  std::array<char, 1> place{};
  const auto job = [](loop::Loop&, PyObject*) { return 0; };
  std::uintptr_t next = 0;
  std::uintptr_t expected = 0;
  const auto mark = [&](std::uintptr_t i) {
    return loop::Ready{reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(&place) + i), job};
  };
  for (int round = 0; round < 50; ++round) {
    for (int i = 0; i < round * 3; ++i) queue.push(mark(next++));
    for (int i = 0; i < round * 2; ++i) CHECK(queue.pop().what == mark(expected++).what);
  }
  while (!queue.empty()) CHECK(queue.pop().what == mark(expected++).what);
  CHECK(expected == next);
}

TEST_CASE("work that many threads post all runs, in the order of each thread", "[loop][threads]") {
  constexpr int kThreads = 4;
  constexpr int kPosts = 2000;
  for (const char* driver : {"epoll", "asio"}) {
    CAPTURE(driver);
    PythonLoop python(driver);
    std::array<int, kThreads> next{};
    int wrong = 0;
    int done = 0;
    std::vector<std::thread> threads;
    for (std::size_t thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back([&, thread, inbox = python.loop->share_inbox()] {
        for (int i = 0; i < kPosts; ++i) {
          inbox->post([&, thread, i] {
            if (next[thread]++ != i) ++wrong;
            if (++done == kThreads * kPosts) python.loop->stopping = true;
          });
          if (i % 100 == 0) std::this_thread::sleep_for(100us);  // lets the loop park
        }
      });
    }
    python.run();
    for (auto& thread : threads) thread.join();
    CHECK(wrong == 0);
    CHECK(done == kThreads * kPosts);
  }
}

TEST_CASE("work posted to a closed loop is dropped, and its owner is told", "[loop]") {
  PythonLoop python("epoll");
  auto inbox = python.loop->share_inbox();
  bool ran = false;
  auto token = std::make_shared<int>();
  CHECK(inbox->post([&, token] { ran = true; }));
  CHECK(token.use_count() == 2);
  {
    const py::GilGuard gil;
    python.close();
  }
  CHECK(token.use_count() == 1);
  CHECK_FALSE(inbox->post([&, token] { ran = true; }));
  CHECK(token.use_count() == 1);
  CHECK_FALSE(ran);
}

TEST_CASE("connections, resets, cancellations and calls from threads leave nothing behind",
          "[loop][threads]") {
  interpreter::start();
  CHECK(interpreter::run(R"(
import asyncio, gc, os, random, socket, struct, threading, time
import erlang_loop

SECONDS = float(os.environ.get('LOOP_STRESS_SECONDS', '2'))

class Echo(asyncio.Protocol):
    def connection_made(self, transport): self.transport = transport
    def data_received(self, data): self.transport.write(data)

async def client(port, until, counts):
    rng = random.Random(id(counts))
    while time.monotonic() < until:
        reader, writer = await asyncio.open_connection('127.0.0.1', port)
        size = rng.choice((1, 100, 10_000, 300_000))
        writer.write(b'x' * size)
        how = rng.randrange(3)
        if how == 0:
            assert await reader.readexactly(size) == b'x' * size
            counts['echoed'] += 1
        elif how == 1:
            sock = writer.get_extra_info('socket')
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            writer.transport.abort()
            counts['reset'] += 1
        else:
            task = asyncio.create_task(reader.readexactly(size * 2))
            await asyncio.sleep(rng.random() / 500)
            task.cancel()
            try: await task
            except (asyncio.CancelledError, ConnectionError): counts['cancelled'] += 1
        writer.close()
        try: await writer.wait_closed()
        except ConnectionError: pass

async def main(counts):
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, '127.0.0.1', 0)
    port = server.sockets[0].getsockname()[1]
    until = time.monotonic() + SECONDS
    def knock():
        while time.monotonic() < until:
            loop.call_soon_threadsafe(counts.__setitem__, 'knocks', counts['knocks'] + 1)
            time.sleep(0.0005)
    threads = [threading.Thread(target=knock) for _ in range(3)]
    for thread in threads: thread.start()
    await asyncio.gather(*(client(port, until, counts) for _ in range(8)))
    for thread in threads: await asyncio.to_thread(thread.join)
    server.close()
    await server.wait_closed()

for driver in ('epoll', 'asio'):
    before = erlang_loop.debug_counters()
    descriptors = len(os.listdir('/proc/self/fd'))
    counts = dict(echoed=0, reset=0, cancelled=0, knocks=0)
    with asyncio.Runner(loop_factory=lambda: erlang_loop.ErlangEventLoop(driver=driver)) as runner:
        runner.run(main(counts))
    del runner
    gc.collect()
    assert min(counts.values()) > 0, counts
    assert erlang_loop.debug_counters() == before, (before, erlang_loop.debug_counters())
    assert len(os.listdir('/proc/self/fd')) == descriptors
)") == "");
}
