// Front: what Python code in a worker process sees of its node, which asks Erlang on its behalf.
//
//   Python thread or coroutine ── Question ──▶ Front ── kAsk ──▶ the node's FrontDesk ──▶ Asker,
//   links
//                              ◀── wakes its waiter ◀── kAnswer ◀──┘
#pragma once

#include <cstdint>

#include "cnode/bridge/asker.hpp"
#include "cnode/bridge/async_loop.hpp"
#include "cnode/term/codec.hpp"

namespace bridge {

// kAsk: id:64 kind:8 call:64 thread:64, then
enum class AskKind : std::uint8_t {
  kCall = 1,  // name node traceparent tracestate (each size:16), then the list of arguments
  kRequest,   // name node pid (likewise; a name or a pid), then the request
  kRemote,    // node module function, then the list of arguments
  kSend,      // as kRequest; of id 0 nobody waits for the outcome
  kLog,       // node, then an item for its coordinator; nobody waits
  kInfo,      // what argument
};

class Front {
 public:
  // The one of this program; nullptr in a node itself. Under the GIL.
  static Front* current();

  virtual ~Front();
  virtual term::Codec& codec() = 0;
  virtual AsyncLoop& loop() = 0;
  // Any thread, without the GIL. `fields` is what follows the thread; a thread that is 0 does not
  // wait.
  virtual void ask(const QuestionPtr& question, AskKind kind, std::uint64_t call,
                   std::uint64_t thread, etf::Bytes fields) = 0;
  virtual void forget(const QuestionPtr& question) = 0;

 protected:
  Front();
};

}  // namespace bridge
