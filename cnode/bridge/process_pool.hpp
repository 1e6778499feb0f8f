// ProcessPool: worker processes, and the one bounded queue they are served from.
//
//   Router ── push ──▶ [ c1 c2 c3 … ] ── frames ──▶ process 1..N ── WorkerPool, asyncio loop ──┐
//                                 links ◀── Answers ◀── frames ◀── results ────────────────────┘
//
// A call leaves the queue when a process has a thread for it, so it waits only while all of them
// are busy; which process is no matter, but for eval and exec: a caller's namespace lives in one.
// A process that answers quickly is given some calls more than it has threads, the more the longer
// it does, so that their frames travel together; it gives back what it has not begun as soon as it
// is stuck. Coroutines need no
// thread: when everybody is busy the processes are asked which of the waiting calls are such, and
// take those at once.
//
// A process that ends takes with it the calls it was given, which are answered {worker_died, Why},
// and nothing else. No call is given out twice, except one that was given back unbegun. A process
// with a cancelled call that sits in native code gets no more calls, and is killed once its other
// calls have ended; another takes its place at once.
//
// Everything runs on the reactor. Nothing of what a process sends is believed: a frame that makes
// no sense costs it its life, and a result is a well-formed term before it goes to a peer.
#pragma once

#include <sys/types.h>

#include <asio/io_context.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/steady_timer.hpp>

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "cnode/bridge/answers.hpp"
#include "cnode/bridge/call_runner.hpp"
#include "cnode/bridge/front.hpp"
#include "cnode/bridge/worker_socket.hpp"
#include "cnode/mailbox/mailbox.hpp"

namespace bridge {

class ProcessPool final : public CallRunner {
 public:
  struct Options {
    std::size_t processes = 1;
    std::size_t workers = 8;  // threads of each
    mailbox::Limits queue;
    std::chrono::milliseconds grace{5'000};
    bool eval = true;      // callers have namespaces
    std::string settings;  // a term, for the processes
    // What they run, with the argument below at its end; their end of the socket is descriptor 3.
    std::vector<std::string> command{"/proc/self/exe"};
  };
  struct Hooks {
    std::function<void(std::string pid)> watch;  // a caller has a namespace from now on
    // A question of a process's; false: it makes no sense. `caller` is its thread's number.
    std::function<bool(const QuestionPtr&, AskKind, std::uint64_t caller, FrameFields)> serve;
    std::function<std::uint64_t()> new_caller;
    std::function<void(std::uint64_t caller, const std::vector<std::uint64_t>& links)> caller_gone;
    std::function<void(const QuestionPtr&)> forget;
  };
  static constexpr const char* kArgument = "--worker-process";
  static constexpr int kDescriptor = 3;

  ProcessPool(asio::io_context& reactor, Options options, Answers& answers, CallMetrics& metrics,
              Hooks hooks);
  ~ProcessPool() override;
  ProcessPool(const ProcessPool&) = delete;
  ProcessPool& operator=(const ProcessPool&) = delete;

  void start();  // any thread: they are started on the reactor
  void stop();   // another thread: tells them to end, and waits for it, up to the grace period

  bool push(CallPtr call) override;
  std::size_t push_all(std::vector<CallPtr>& calls) override;
  bool full() const override;
  void cancel(const CallPtr& call) override;
  void push_internal(CallPtr call) override;

  std::size_t waiting() const override { return queue_.size() + held_; }
  std::size_t busy() const override;
  std::size_t workers() const override { return options_.processes * options_.workers; }
  std::size_t threads() const override;
  std::size_t blocked() const override;
  std::uint64_t replaced() const override { return replaced_; }
  std::uint64_t refused() const override { return refused_; }
  std::uint64_t completed() const override { return taken_; }

  std::size_t tasks() const;  // coroutines that run
  std::size_t alive() const;  // processes that take calls
  std::vector<pid_t> pids() const;
  // How often processes ended unasked, by signal; "exit" where there was none.
  const std::map<std::string, std::uint64_t>& deaths() const { return deaths_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Given {
    CallPtr call;
    bool task = false;       // runs as a coroutine
    std::size_t asking = 0;  // threads of its that wait for an answer of Erlang's
    bool distrusted = false;
    Clock::time_point cancelled_at{};
  };
  struct Asked {
    QuestionPtr question;
    std::uint64_t call = 0;  // whose thread waits; 0: none
  };
  struct Child {
    Child(asio::io_context& reactor, pid_t process, int descriptor)
        : pid(process), end(reactor, descriptor) {}
    const pid_t pid;
    std::uint64_t id = 0;                // unlike the pid, of no other ever
    asio::posix::stream_descriptor end;  // readable once it has ended
    std::shared_ptr<WorkerSocket> socket;
    bool ready = false;
    bool retiring = false;  // gets no more calls
    std::map<std::uint64_t, Given> given;
    std::size_t tasks = 0;
    std::size_t waiting = 0;  // calls that are no tasks, and have a thread that waits for Erlang
    std::map<std::uint64_t, Asked> asked;
    std::map<std::uint64_t, std::uint64_t> threads;  // of its that ask: their numbers here
    std::set<std::uint64_t> links;                   // that their questions went over
    std::size_t callers = 0;                         // whose namespaces it has
    std::deque<CallPtr> own;  // of callers whose namespaces it has, while it has no room
    Clock::time_point last_result{};
    std::size_t ahead = 0;  // calls it may have beyond its threads: as it is quick
    bool asked_back = false;
    Clock::time_point pinged{};  // and has not answered

    std::size_t load() const { return given.size() - tasks - waiting; }
  };
  struct Look {
    std::vector<CallPtr> calls;
    std::size_t answers_left = 0;
  };

  bool has_room(std::size_t bytes) const;
  void enqueue(CallPtr call);
  void dispatch();
  bool place(CallPtr call);
  Child* choose(bool ahead);
  Child* choose_for_namespace();
  bool may_take(const Child& child, std::size_t ahead) const;
  bool quick(const Child& child) const;
  void moved(Child& child);
  void give(Child& child, CallPtr call, bool on_loop);
  void take_from_queue(std::size_t index);
  bool drop_if_cancelled(const CallPtr& call);
  void send(Child& child, etf::Buffer frame);

  void arm_sentinel();
  void sentinel();
  void look_for_async();
  void arm_wedged();
  void look_for_wedged();
  void retire(Child& child);

  void start_later(std::chrono::milliseconds delay);
  void start_child();
  bool on_frame(Child& child, const FrameReader::Frame& frame);
  bool on_result(Child& child, etf::Bytes body);
  bool on_over(Child& child, etf::Bytes body);
  bool on_ask(Child& child, etf::Bytes body);
  bool on_forget(Child& child, etf::Bytes body);
  void on_answered(std::uint64_t process, std::uint64_t id);
  void stop_waiting(Child& child, const Asked& asked);
  void take_out(Child& child, std::map<std::uint64_t, Given>::iterator given);
  void count(Call& call, bool known, CallMetrics::Result result);
  bool on_given_back(Child& child, etf::Bytes body);
  bool on_looked(Child& child, etf::Bytes body);
  void on_turn();
  void wait_for_end(Child& child);
  void on_end(Child& child);
  void lose_calls(Child& child, etf::Bytes reason);
  void finish_stop();

  asio::io_context& reactor_;
  const Options options_;
  Answers& answers_;
  CallMetrics& metrics_;
  const Hooks hooks_;

  std::deque<CallPtr> queue_;
  std::size_t queue_bytes_ = 0;
  std::size_t held_ = 0;    // in the children's own queues
  std::size_t looked_ = 0;  // so many at the front of the queue were asked about
  std::uint64_t next_number_ = 1;
  std::list<Child> children_;
  std::unordered_map<std::string, Child*> namespaces_;  // by caller
  std::unordered_map<std::uint64_t, Look> looks_;
  std::uint64_t next_look_ = 1;
  std::uint64_t next_child_ = 1;

  std::chrono::milliseconds backoff_;
  bool stopping_ = false;
  std::function<void()> stopped_;
  asio::steady_timer sentinel_, wedged_, stop_timer_;
  bool sentinel_armed_ = false;
  bool wedged_armed_ = false;
  std::uint64_t results_ = 0;
  std::uint64_t results_before_ = 0;
  int stuck_looks_ = 0;

  std::uint64_t taken_ = 0;
  std::uint64_t refused_ = 0;
  std::uint64_t replaced_ = 0;
  std::map<std::string, std::uint64_t> deaths_;
  std::atomic<bool> running_{false};  // the reactor has started them
};

}  // namespace bridge
