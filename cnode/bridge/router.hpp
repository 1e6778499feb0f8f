// Router: what an incoming signal means. The node's delegate; everything runs on the reactor and
// nothing needs Python.
//
//   message to py ──▶ Call ──▶ CallRunner          ping, monitors, links: answered by the node
//   spawn request ──▶ Call ──▶ CallRunner         message to a Python process ──▶ its mailbox
//   demonitor, {cancel, Id}, lost link ──▶ cancel what nobody waits for any more
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "cnode/bridge/allow_list.hpp"
#include "cnode/bridge/answers.hpp"
#include "cnode/bridge/call.hpp"
#include "cnode/bridge/call_runner.hpp"
#include "cnode/dist/node.hpp"

namespace bridge {

class Asker;
class Channels;
class Processes;

class Router final : public dist::NodeDelegate {
 public:
  struct Hooks {
    std::function<void(const CallPtr&)> cancel_task;  // tells the loop thread
    // The answer to {report, _}: what the node says of itself, with or without its functions.
    std::function<void(etf::Writer&, bool functions)> report;
  };

  Router(CallRunner& pool, Answers& answers, Processes& processes, Channels& channels, Asker& asker,
         CallMetrics& metrics, AllowList allow, Hooks hooks);

  // After the node exists: makes the process `py`.
  void attach(dist::Node& node);
  // The answer to {hello, _}, an encoded map.
  void set_hello(etf::Buffer map) { hello_ = std::move(map); }
  void drain();
  // When the last request came that was refused for it, or when that began.
  std::chrono::steady_clock::time_point last_refused() const { return last_refused_; }
  std::size_t in_flight();
  // Watches the process with this encoded pid; its namespace is freed when it ends.
  void watch_caller(const std::string& pid);
  // Whether a Python process hears {nodeup, Node} and {nodedown, Node}.
  void watch_nodes(dist::ProcessId process, bool on);

  // dist::NodeDelegate
  void on_link_up(const dist::LinkPtr& link) override;
  void on_link_down(dist::Link& link) override;
  void on_message(dist::Link& link, dist::Process& to, const etf::PidView* from,
                  dist::Incoming message) override;
  void on_too_large(dist::Link& link, const etf::PidView* from, etf::Bytes beginning) override;
  bool can_refuse(etf::Bytes first_fragment) const override;
  void on_no_memory(dist::Link& link, const etf::PidView* from, etf::Bytes beginning) override;
  void on_alias_message(dist::Link& link, const etf::RefView& alias, etf::Bytes message) override;
  std::optional<std::string_view> refuse_spawn(dist::Link& link,
                                               const dist::SpawnRequest& request) override;
  void on_spawn(dist::Link& link, const dist::SpawnRequest& request) override;
  void on_demonitor(const dist::RefKey& ref, dist::Process* watched) override;
  void on_exit(dist::Process& process, etf::Bytes from, etf::Bytes reason,
               dist::ExitKind kind) override;
  void on_down(dist::Process& owner, const dist::RefKey& ref, const dist::Monitor& monitor,
               etf::Bytes reason) override;
  void on_own_down(dist::Link& link, dist::Process& owner, const dist::RefKey& ref,
                   etf::Bytes reason) override;
  void on_spawn_refused(dist::Link& link, const dist::RefKey& ref,
                        std::string_view reason) override;

 private:
  void on_request(dist::Link& link, dist::Incoming message);
  void on_cast(dist::Link& link, dist::Incoming message);
  void on_channels(dist::Link& link, const etf::PidView& from, dist::Incoming message);
  void on_batch(dist::Link& link, const etf::PidView& from, dist::Incoming message);
  void on_results(dist::Link& link, dist::Incoming message);
  void on_io_request(dist::Link& link, etf::Bytes message);
  void tell_watchers(std::string_view what, const std::string& node);
  void refuse_item(const dist::LinkPtr& link, const etf::PidView& from, etf::Bytes item,
                   const std::string& why);
  void refuse_unread(dist::Link& link, const etf::PidView* from, etf::Bytes beginning,
                     std::string_view reason, CallMetrics::Refusal why);
  bool has_memory_for(dist::Link& link, const etf::PidView* from, const dist::Incoming& message);
  void note_draining(std::size_t calls);
  void refuse(const Call& call, std::string_view reason);
  void submit(CallPtr call);
  void remember(const CallPtr& call);
  void cancel(const CallPtr& call);
  void cancel_item(dist::Link& link, const etf::PidView& from, std::uint64_t id);
  void sweep();
  void answer_hello(const Call& call, etf::Bytes about);
  bool answer_report(const Call& call, etf::Bytes about);
  void tell_greeter(dist::Link& link, etf::Bytes pid, std::string_view event);

  CallRunner& pool_;
  Answers& answers_;
  Processes& processes_;
  Channels& channels_;
  Asker& asker_;
  CallMetrics& metrics_;
  const AllowList allow_;
  const Hooks hooks_;
  dist::Node* node_ = nullptr;
  dist::ProcessId py_ = 0;
  etf::Buffer hello_;
  bool draining_ = false;
  std::chrono::steady_clock::time_point last_refused_;
  // Calls somebody may still take back, by the reference or the id the asker knows them by.
  std::unordered_map<dist::RefKey, CallPtr, dist::KeyHash> in_flight_;
  std::size_t sweep_at_ = 512;
  std::unordered_map<dist::ProcessId, CallPtr> by_process_;
  std::vector<dist::ProcessId> node_watchers_;
  // Who said hello and wants events, by link: encoded pids.
  std::unordered_map<std::uint64_t, std::vector<dist::Raw8>> greeters_;
  std::size_t processes_sweep_at_ = 256;
};

}  // namespace bridge
