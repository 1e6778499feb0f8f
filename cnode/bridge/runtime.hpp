// Runtime: one running node, its parts in the order they are built. Torn down in reverse.
#pragma once

#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cnode/bridge/answers.hpp"
#include "cnode/bridge/asker.hpp"
#include "cnode/bridge/async_loop.hpp"
#include "cnode/bridge/channels.hpp"
#include "cnode/bridge/front_desk.hpp"
#include "cnode/bridge/invoker.hpp"
#include "cnode/bridge/process_pool.hpp"
#include "cnode/bridge/processes.hpp"
#include "cnode/bridge/report.hpp"
#include "cnode/bridge/router.hpp"
#include "cnode/bridge/worker_pool.hpp"
#include "cnode/dist/node.hpp"

namespace bridge {

struct RuntimeConfig {
  dist::NodeConfig node;
  WorkerPool::Options pool;
  Invoker::Options invoker;
  std::string home;  // the peer that calls go to when no other is being served; may be empty
  std::string version;
  std::size_t processes = 0;    // that run the calls; 0: this one does
  std::string worker_settings;  // a term, for them
  std::vector<std::string> worker_command{"/proc/self/exe"};
};

class Runtime {
 public:
  // Under the GIL, with the erlang package importable. Throws py::Error.
  Runtime(asio::io_context& reactor, RuntimeConfig config);
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  // Without the GIL, before the reactor runs. Throws std::runtime_error naming the setting at
  // fault.
  void start(std::function<void(std::string)> fatal);
  // Reactor: refuses new work, waits until what was accepted is answered and requests have ceased
  // to come, or the time is up, closes the links, then calls `done`.
  void drain(std::chrono::milliseconds limit, std::function<void()> done);
  // Without the GIL, after the reactor has stopped.
  void stop();

  dist::Node& node() { return *node_; }
  term::Codec& codec() { return codec_; }
  Answers& answers() { return *answers_; }
  Processes& processes() { return *processes_; }
  Channels& channels() { return *channels_; }
  Asker& asker() { return *asker_; }
  const std::shared_ptr<Asker>& asker_pointer() { return asker_; }
  Router& router() { return *router_; }
  const std::shared_ptr<base::MemoryBudget>& budget() const { return config_.node.budget; }
  const std::string& home() const { return config_.home; }
  AsyncLoop& loop() { return *loop_; }
  WorkerPool& pool() { return *pool_; }
  CallMetrics& metrics() { return metrics_; }
  // What runs the calls: the pool, or the worker processes.
  CallRunner& runner() { return *runner_; }
  ProcessPool* worker_processes() { return process_pool_.get(); }
  asio::io_context& reactor() { return reactor_; }

  // The one of this program, for the functions Python calls; nullptr outside a node.
  static Runtime* current();

 private:
  using Clock = std::chrono::steady_clock;
  void wait_for_idle(Clock::time_point until, Clock::time_point quiet_until);
  bool is_quiet(Clock::time_point until) const;
  void hand_over(const PyProcessPtr& process);
  void run_job(const CallPtr& call);
  etf::Buffer hello() const;

  asio::io_context& reactor_;
  RuntimeConfig config_;
  py::Ref native_;
  py::Ref served_variable_;
  term::Codec& codec_;
  dist::Node* node_pointer_ = nullptr;
  CallMetrics metrics_;
  std::unique_ptr<Answers> answers_;
  std::unique_ptr<Invoker> invoker_;
  std::unique_ptr<AsyncLoop> loop_;
  std::unique_ptr<WorkerPool> pool_;
  std::unique_ptr<ProcessPool> process_pool_;  // null where the pool runs the calls
  CallRunner* runner_ = nullptr;
  std::unique_ptr<FrontDesk> desk_;  // for the processes
  std::unique_ptr<Processes> processes_;
  std::unique_ptr<Channels> channels_;
  std::shared_ptr<Asker> asker_;  // threads that ask may outlive us
  std::unique_ptr<Report> report_;
  std::unique_ptr<Router> router_;
  std::unique_ptr<dist::Node> node_;
  asio::steady_timer drain_timer_;
  std::function<void()> drained_;
  std::string python_version_;
};

}  // namespace bridge
