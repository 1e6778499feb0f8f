// FrontDesk: does for worker processes what only a node can: asks and tells other processes.
//
//   ProcessPool ── kAsk ──▶ serve ──▶ Asker ──▶ links           reactor
//               ◀── the question's waiter is woken ◀──┘
//
// Terms pass as bytes; they are looked through, and not decoded.
#pragma once

#include <cstdint>

#include "cnode/bridge/asker.hpp"
#include "cnode/bridge/front.hpp"
#include "cnode/bridge/worker_frames.hpp"

namespace bridge {

class Runtime;

class FrontDesk {
 public:
  explicit FrontDesk(Runtime& runtime) : runtime_(runtime) {}

  // Reactor. What was asked, for a thread that the Asker knows as `caller` (0: a coroutine). The
  // question may be answered on return. False when the fields make no sense.
  bool serve(const QuestionPtr& question, AskKind kind, std::uint64_t caller, FrameFields fields);

 private:
  bool call(const QuestionPtr& question, std::uint64_t caller, FrameFields& fields);
  bool request(const QuestionPtr& question, FrameFields& fields);
  bool remote(const QuestionPtr& question, FrameFields& fields);
  bool send(const QuestionPtr& question, FrameFields& fields);
  bool log(FrameFields& fields);
  bool info(const QuestionPtr& question, FrameFields& fields);
  std::string peer_for(std::string_view node) const;

  Runtime& runtime_;
};

}  // namespace bridge
