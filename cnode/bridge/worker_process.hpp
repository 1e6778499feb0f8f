// WorkerProcess: what runs in a worker process: the same threads, loop and invoker as in a node
// without such processes, with frames in place of links.
//
//   socket ── call, cancel, look ──▶ reactor ──▶ WorkerPool, AsyncLoop ──▶ Invoker
//   socket ◀── result, over, task ── Results ◀──────────────────────────────┘
//
// It has no cookie, no listener and no links, and ends when its socket does.
#pragma once

#include <asio/io_context.hpp>

#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "cnode/bridge/answers.hpp"
#include "cnode/bridge/async_loop.hpp"
#include "cnode/bridge/front.hpp"
#include "cnode/bridge/invoker.hpp"
#include "cnode/bridge/worker_pool.hpp"
#include "cnode/bridge/worker_socket.hpp"

namespace bridge {

class WorkerProcess final : public Results, public Front {
 public:
  struct Options {
    WorkerPool::Options pool;
    Invoker::Options invoker;
  };
  struct Hooks {
    std::function<void()> told_to_stop;  // reactor
    std::function<void()> lost;          // reactor: the node is gone
  };

  // Under the GIL, with the erlang package importable. Throws py::Error.
  WorkerProcess(asio::io_context& reactor, std::shared_ptr<WorkerSocket> socket, Options options,
                Hooks hooks);
  WorkerProcess(const WorkerProcess&) = delete;
  WorkerProcess& operator=(const WorkerProcess&) = delete;

  // Without the GIL. start() says hello; stop() lets running calls end.
  void start();
  void stop();

  // Results
  void add(const Call& call, bool ok, etf::Bytes value) override;
  void distrust(const Call& call) override;
  void flush() override { socket_->flush(); }
  bool dirty() const override { return socket_->dirty(); }

  // Front
  term::Codec& codec() override { return codec_; }
  AsyncLoop& loop() override { return *loop_; }
  void ask(const QuestionPtr& question, AskKind kind, std::uint64_t call, std::uint64_t thread,
           etf::Bytes fields) override;
  void forget(const QuestionPtr& question) override;

 private:
  struct Task;

  bool on_answer(const FrameReader::Frame& frame);

  bool on_frame(const FrameReader::Frame& frame);
  bool on_call(const FrameReader::Frame& frame);
  void look(std::uint64_t id, const std::string& module, const std::string& function);
  void give_back();
  void forget(etf::Bytes pid);
  void say(FromWorker kind, std::uint64_t number);
  void say_over(const Call& call);
  bool leave(std::uint64_t number);
  CallPtr find(std::uint64_t number);

  asio::io_context& reactor_;
  const std::shared_ptr<WorkerSocket> socket_;
  const Options options_;
  const Hooks hooks_;
  py::Ref native_;
  py::Ref served_variable_;
  term::Codec& codec_;
  dist::Node* no_node_ = nullptr;
  Answers answers_;
  CallMetrics metrics_;  // the node's own are what is shown
  std::unique_ptr<Invoker> invoker_;
  std::unique_ptr<AsyncLoop> loop_;
  std::unique_ptr<WorkerPool> pool_;

  std::mutex mutex_;
  std::unordered_map<std::uint64_t, std::weak_ptr<Call>> calls_;  // that the node waits for
  std::unordered_map<std::uint64_t, QuestionPtr> questions_;
  std::uint64_t next_question_ = 1;
};

}  // namespace bridge
