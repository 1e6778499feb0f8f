// Loop: the scheduler of an asyncio event loop: what runs next, what runs later, and the wait in
// between.
//
//   call_soon ───────▶ ready ──▶ one batch a turn
//   call_later ──▶ timers ─▲ ▲ ▲
//   descriptors ──▶ poller ──┘ └── inbox ◀── other threads
//
// The Python class erlang_loop.ErlangEventLoop inherits from this type and from asyncio's own loop
// of Unix: what happens once a connection or less often is asyncio's, in the version that runs;
// what happens once a callback or a packet is here. Everything is done under the GIL but for the
// wait and what inbox.hpp says.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "cnode/loop/datagram_room.hpp"
#include "cnode/loop/handle.hpp"
#include "cnode/loop/inbox.hpp"
#include "cnode/loop/poller.hpp"
#include "cnode/loop/ready_queue.hpp"
#include "cnode/loop/socket_budgets.hpp"
#include "cnode/loop/timer_heap.hpp"

namespace loop {

enum class Side { kRead, kWrite };
// Whether a watcher is told as long as its descriptor is ready, or once each time it becomes so.
enum class Trigger { kLevel, kEdge };

class Loop {
 public:
  static constexpr std::size_t kBufferSize = 256 * 1024;  // of one read
  static constexpr unsigned kFruitless = 4;
  static constexpr double kForever = 1e9;  // seconds: longer waits are waits without an end

  Loop(State& state, PyObject* object, std::unique_ptr<Poller> poller);
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  State& state() { return state_; }
  PyObject* object() const { return object_; }  // borrowed
  bool debug() const { return debug_; }
  std::uint64_t turn_number() const { return turn_; }
  // One buffer for the reads of all transports: what is in it counts until the next read.
  char* buffer();

  static double clock();  // seconds of the monotonic clock
  // The loop's own time: clock(), or what a program has put in its place to skip time.
  double now();
  void set_clock(PyObject* clock);  // null for clock()
  PyObject* own_clock() const { return own_clock_; }

  // Takes over the reference of the job's object.
  void push(Job job, PyObject* object) { ready_.push({object, job}); }
  void push(Handle& handle) { ready_.push({&handle, nullptr}); }

  // Calls the callback in its context; what it raises goes to the loop's exception handler. -1 with
  // an exception set for KeyboardInterrupt and SystemExit alone.
  int run_handle(Handle& handle);
  void timer_cancelled(Timer& timer);

  // Takes over the reference in `ready`; what was there before is given back to the caller. -1 with
  // OSError set. A descriptor is level-triggered unless both of its watchers want edges.
  int watch(int fd, Side side, Ready ready, Ready& before, Trigger trigger = Trigger::kLevel);
  // False if nobody watched. What was there goes to the caller.
  bool unwatch(int fd, Side side, Ready& before);
  // Who watches `fd`, without a reference.
  Ready watcher(int fd, Side side) const;
  bool edge_triggered(int fd) const;

  // The transport whose descriptor `fd` is: others may not watch it. Borrowed; null if there is
  // none.
  void own(int fd, PyObject* transport);
  void disown(int fd, PyObject* transport);
  PyObject* owner(int fd) const;

  bool in_batch() const { return in_batch_; }
  // Runs `job` at the end of this turn, after everything that is ready now. Takes over the
  // reference.
  void at_end_of_turn(Job job, PyObject* object) { endings_.push_back({object, job}); }

  int turn(bool may_wait);  // -1 with an exception set
  int run();                // until stop()
  // Called when the loop no longer runs: what waits is left to the garbage collector's eyes, and
  // others wake it.
  void settle();

  // How long the loop may sleep: seconds, 0 for not at all, negative for ever.
  double until_next();
  void close();

  int traverse(visitproc visit, void* arg);
  void clear();

  bool closed = false;
  bool stopping = false;
  unsigned long thread = 0;  // that runs the loop; 0 if none does
  double slow_callback = 0.1;

  void set_debug(bool debug) { debug_ = debug; }
  Poller& poller() { return *poller_; }
  Inbox& inbox() { return *inbox_; }
  std::shared_ptr<Inbox> share_inbox() { return inbox_; }
  std::size_t timers() const { return timers_.size(); }
  std::size_t ready() const { return ready_.size(); }
  // Greater than every descriptor that is watched.
  int descriptors() const { return static_cast<int>(watched_.size()); }
  SocketBudgets& budgets() { return budgets_; }
  // Taken while it is in use, so that who comes in between gets another.
  DatagramRoom::Owner take_datagram_room() {
    return datagram_room_ ? std::move(datagram_room_) : std::make_unique<DatagramRoom>();
  }
  void give_datagram_room(DatagramRoom::Owner room) { datagram_room_ = std::move(room); }

  int call_soon(PyObject* callback, PyObject* const* arguments, std::size_t count,
                PyObject* context, PyObject*& handle);
  int call_at(double when, PyObject* callback, PyObject* const* arguments, std::size_t count,
              PyObject* context, PyObject*& handle);

 private:
  struct Watched {
    Ready read, write;
    std::uint32_t events = 0;  // registered with the poller
    std::uint32_t generation = 0;
    Trigger read_trigger = Trigger::kLevel;
    Trigger write_trigger = Trigger::kLevel;
    PyObject* owner = nullptr;
    bool registered = false;
  };

  int take_events(Poller::Events events);
  void take_due_timers();
  int take_inbox();
  int run_ready(Ready ready);
  int run_in_debug(Handle& handle);
  int run_batch();
  int end_turn();
  int call(Handle& handle);
  int report(Handle& handle);
  bool make_room(int fd);
  int update(int fd, Watched& watched);
  void set_registered(Watched& watched, bool registered);
  void remember_source(Handle& handle);

  State& state_;
  Shared& shared_;
  PyObject* object_;
  std::unique_ptr<Poller> poller_;
  std::shared_ptr<Inbox> inbox_;
  ReadyQueue ready_;
  TimerHeap timers_;
  std::vector<Watched> watched_;  // by descriptor
  std::vector<Ready> endings_, ending_;
  std::vector<Inbox::Work> work_;
  std::vector<Timer*> cancelled_;
  struct Free {
    void operator()(char* block) const { std::free(block); }
  };
  std::unique_ptr<char, Free> buffer_;
  SocketBudgets budgets_;
  DatagramRoom::Owner datagram_room_;
  std::uint64_t turn_ = 0;
  PyObject* own_clock_ = nullptr;
  std::size_t watched_count_ = 0;  // descriptors registered with the poller
  unsigned fruitless_polls_ = 0;   // in a row, each before a wait
  bool in_batch_ = false;          // callbacks run, and end_turn() comes after them
  bool debug_ = false;
};

// The object of the type made by loop_exec(). Methods of that type get no other.
struct LoopObject {
  PyObject_HEAD Loop* loop;
};

// The loop of an object of the type made by loop_exec(), or null with TypeError set.
Loop* loop_of(PyObject* object);

int loop_exec(PyObject* module, State& state);
// Adds methods to the type of loops; their `self` is a LoopObject.
int add_loop_methods(State& state, PyMethodDef* methods);

// Tells apart what has to leave the loop. The exception stays set.
inline bool must_leave() {
  return PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) != 0 ||
         PyErr_ExceptionMatches(PyExc_SystemExit) != 0;
}

}  // namespace loop
