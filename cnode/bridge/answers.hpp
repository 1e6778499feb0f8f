// Answers: brings what a call came to back to whoever asked.
//
//   Reply (encode here) ──▶ Outbox of the link            '$gen_call', '$py_batch'
//                      ├──▶ exit of the call's process    spawn, erpc
//                      └──▶ Results                       in a worker process: the bare value
#pragma once

#include <asio/io_context.hpp>

#include <atomic>
#include <functional>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cnode/bridge/call.hpp"
#include "cnode/bridge/outbox.hpp"
#include "cnode/dist/node.hpp"

namespace bridge {

// Where a worker process puts what its calls came to; the node does the rest. Any thread.
class Results {
 public:
  virtual ~Results() = default;
  virtual void add(const Call& call, bool ok, etf::Bytes value) = 0;
  // What the call's caller sent is not to be trusted; before its result.
  virtual void distrust(const Call& call) = 0;
  virtual void flush() = 0;
  virtual bool dirty() const = 0;
};

class Answers {
 public:
  Answers(asio::io_context& reactor, dist::Node*& node) : reactor_(reactor), node_(node) {}
  Answers(const Answers&) = delete;
  Answers& operator=(const Answers&) = delete;

  // Before anything is answered.
  void send_to(Results& results) { results_ = &results; }
  Results* results() const { return results_; }

  // Reactor thread.
  void link_up(const dist::LinkPtr& link, etf::Bytes py_pid);
  void link_down(std::uint64_t link);

  // Any thread.
  OutboxPtr outbox(std::uint64_t link) const;
  void flush();
  bool dirty() const {
    if (results_ != nullptr) return results_->dirty();
    return dirty_count_.load(std::memory_order_relaxed) > 0;
  }
  // Empty before the first link, the same ever after.
  etf::Bytes py_pid() const {
    if (!py_pid_known_.load(std::memory_order_acquire)) return {};
    return {py_pid_.data(), py_pid_.size()};
  }
  // Something was added to it, and will be flushed with the rest.
  void touched(const OutboxPtr& outbox);
  void exit_process(dist::ProcessId process, etf::Buffer reason);
  void post(std::function<void(dist::Node&)> work);  // to the reactor

  // {error, Reason} or its like in the call's own form; Reason an atom. Any thread, no Python.
  void refuse(const Call& call, std::string_view reason);
  // The same with a value or a reason that is already encoded.
  void finish(const Call& call, bool ok, etf::Bytes value);

 private:
  friend class Reply;

  asio::io_context& reactor_;
  dist::Node*& node_;
  Results* results_ = nullptr;
  std::vector<std::uint8_t> py_pid_;  // written once, before py_pid_known_
  std::atomic<bool> py_pid_known_{false};
  mutable std::mutex mutex_;
  std::unordered_map<std::uint64_t, OutboxPtr> outboxes_;
  std::vector<OutboxPtr> dirty_;
  std::atomic<std::size_t> dirty_count_{0};
  std::mutex exits_mutex_;
  std::vector<std::pair<dist::ProcessId, etf::Buffer>> exits_;
};

// One answer while it is written: the caller appends to out() what finish() then sends. What
// surrounds it (addresses, tags, ids) is already there.
class Reply {
 public:
  Reply(const Call& call, Answers& answers);

  bool wanted() const { return wanted_; }
  etf::Writer& out() { return writer_; }
  // {ok, … / {Res, return, …; nothing for a spawned process, whose value is dropped. The value
  // follows.
  void begin_ok();
  void begin_error();  // {error, … / {Res, error, …; the reason follows
  void restart();      // forgets what was begun
  // Sends. `ok` says which of the two was begun.
  void finish(bool ok);

 private:
  const Call& call_;
  Answers& answers_;
  dist::Message message_;
  etf::Writer writer_;
  std::size_t mark_ = 0;
  bool wanted_ = true;
};

}  // namespace bridge
