// Call: one piece of work a peer asked for, from its frame to its answer.
//
//   reactor: Router makes it ──▶ CallQueue ──▶ worker or loop thread: runs it ──▶ Outbox / exit of
//   its process
//
// Its bytes are copied once, out of the link's read buffer; everything else points into them. Made
// on the reactor, run on a Python thread; what both touch is atomic or guarded by the WorkerPool's
// lock, and said so.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "cnode/base/memory_budget.hpp"
#include "cnode/base/trace.hpp"
#include "cnode/bridge/call_metrics.hpp"
#include "cnode/dist/link.hpp"
#include "cnode/dist/process_table.hpp"
#include "cnode/etf/reader.hpp"
#include "cnode/etf/writer.hpp"

namespace bridge {

// The bytes of one incoming message; the items of a batch share them.
using Payload = std::shared_ptr<const etf::Buffer>;

// Counted as long as somebody has it.
inline Payload keep_charged(etf::Buffer bytes, base::Charge charge) {
  struct Held {
    etf::Buffer bytes;
    base::Charge charge;
  };
  auto held = std::make_shared<const Held>(Held{std::move(bytes), std::move(charge)});
  return {held, &held->bytes};
}

class Outbox;

// For whom a coroutine works: what erlang.call goes by, in it and in the tasks it starts, until the
// call is over.
struct Served {
  std::string node;
  dist::Raw8 process;  // empty where it is not told
  std::atomic<bool> over{false};
};

struct Call {
  enum class Kind : std::uint8_t {
    kRequest,    // '$gen_call' to py: reply to From
    kCast,       // '$gen_cast' to py
    kBatchItem,  // an item of a '$py_batch'
    kSpawn,      // a Python function as a process
    kErpc,       // erpc:execute_call: the answer is the exit reason
    kErpcCast,
    kFreeNamespace,  // its process ended
    kJob,            // a Python callable of the node's own
  };

  Kind kind = Kind::kRequest;
  dist::LinkPtr link;
  std::shared_ptr<Outbox> outbox;  // of the link; looked up when it is not set
  mutable Payload payload;         // given up once it is over; then the views below are void
  etf::Bytes
      request;  // kRequest, kCast, kBatchItem: the term; kSpawn, kErpc, kErpcCast: the arguments
  // Who asked, as far as the kind knows.
  etf::PidView from;
  etf::Bytes tag;               // kRequest
  std::uint64_t id = 0;         // kBatchItem
  dist::ProcessId process = 0;  // kSpawn, kErpc
  std::string_view module;      // kSpawn, kErpc, kErpcCast
  std::string_view function;
  etf::Bytes result_tag;  // kErpc: Res
  dist::RefKey key;       // under which the Router knows it
  std::string caller;     // kFreeNamespace: the pid
  // Under which the node and its worker processes know it; 0 where there are none.
  std::uint64_t number = 0;
  std::string_view peer;  // in a worker process, which has no link: whose call it is

  std::shared_ptr<Served> served;  // of one that runs as a task
  void* job = nullptr;             // kJob, owned, under the GIL: PyObject*
  void* job_done = nullptr;        // likewise: called on the loop thread with (value, exception)

  std::shared_ptr<const base::TraceContext> trace;     // once it is parsed, under the GIL
  CallMetrics::Clock::time_point received{};           // by the reactor
  CallMetrics::Clock::time_point taken{};              // by a worker or the loop thread
  CallMetrics::Function* function_counts = nullptr;    // once the function is known; under the GIL
  mutable std::optional<CallMetrics::Result> outcome;  // once it was counted; likewise

  std::atomic<bool> cancelled{false};
  mutable std::atomic<bool> done{false};  // answered, or nobody to answer
  void* task =
      nullptr;  // under the GIL: the asyncio.Task it runs as, owned by the loop while it runs
};

using CallPtr = std::shared_ptr<Call>;

}  // namespace bridge
