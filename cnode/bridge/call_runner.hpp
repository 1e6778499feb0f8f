// CallRunner: what the Router hands calls to: the threads of this process, or worker processes.
//
//   Router ── push ──▶ WorkerPool ──▶ threads
//                 └──▶ ProcessPool ──▶ processes, each with a WorkerPool of its own
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cnode/bridge/call.hpp"

namespace bridge {

class CallRunner {
 public:
  virtual ~CallRunner() = default;

  // Reactor.
  virtual bool push(CallPtr call) = 0;                            // false: the queue is full
  virtual std::size_t push_all(std::vector<CallPtr>& calls) = 0;  // how many, from the front
  virtual bool full() const = 0;
  virtual void cancel(const CallPtr& call) = 0;  // it is marked; what runs is to be interrupted
  // Work the node owes itself, ahead of the queue and outside its bounds.
  virtual void push_internal(CallPtr call) = 0;

  virtual std::size_t waiting() const = 0;  // in the queue
  virtual std::size_t busy() const = 0;     // being run
  virtual std::size_t workers() const = 0;
  virtual std::size_t threads() const = 0;     // of workers, with those that wait
  virtual std::size_t blocked() const = 0;     // workers that wait for an answer from Erlang
  virtual std::uint64_t replaced() const = 0;  // that sat in native code when they were to end
  virtual std::uint64_t refused() const = 0;
  virtual std::uint64_t completed() const = 0;  // calls that left the queue
};

}  // namespace bridge
