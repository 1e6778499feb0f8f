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
#include <string>
#include <string_view>

#include "cnode/dist/link.hpp"
#include "cnode/dist/process_table.hpp"
#include "cnode/etf/reader.hpp"
#include "cnode/etf/writer.hpp"

namespace bridge {

// The bytes of one incoming message; the items of a batch share them.
using Payload = std::shared_ptr<const etf::Buffer>;

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
  Payload payload;
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

  std::shared_ptr<Served> served;  // of one that runs as a task
  void* job = nullptr;             // kJob, owned, under the GIL: PyObject*
  void* job_done = nullptr;        // likewise: called on the loop thread with (value, exception)

  std::atomic<bool> cancelled{false};
  mutable std::atomic<bool> done{false};  // answered, or nobody to answer
  void* task =
      nullptr;  // under the GIL: the asyncio.Task it runs as, owned by the loop while it runs
};

using CallPtr = std::shared_ptr<Call>;

}  // namespace bridge
