// Node: this process as a member of the cluster.
//
//   listener, dialers ──▶ handshake ──▶ Connection ── frames ──▶ signals ──▶ ProcessTable,
//   NodeDelegate
//                                                    ◀── DOWN, EXIT, noproc, spawn replies, unlink
//                                                    acks
//
// Everything runs on the reactor thread but for what says "any thread". Whatever the protocol alone
// can answer is answered here: ticks, ping, monitors and links of what does not exist, refused
// spawns. What needs more goes to the delegate.
#pragma once

#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>

#include <array>
#include <atomic>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "cnode/dist/connection.hpp"
#include "cnode/dist/control.hpp"
#include "cnode/dist/epmd.hpp"
#include "cnode/dist/epmd_server.hpp"
#include "cnode/dist/fragments.hpp"
#include "cnode/dist/link.hpp"
#include "cnode/dist/process_table.hpp"
#include "cnode/dist/transport.hpp"

namespace dist {

class Tls;

struct PeerAddress {
  std::string name;        // name@host
  std::uint16_t port = 0;  // 0: ask epmd at its host
};

enum class EpmdUse {
  kNone,
  kExternal,  // one is there, or will be: waited for
  kAuto,      // the same, but where none answers we are it
  kBuiltIn,   // we are it
};

struct NodeConfig {
  std::string name;  // name@host, or only a host for a node that the first peer it dials shall name
  std::string cookie;
  // Where the cookie may change while the node runs: asked at every handshake, on the reactor.
  std::function<std::string()> current_cookie;
  std::vector<std::string>
      listen;                    // addresses; none: whatever the host part of the name resolves to
  std::uint16_t first_port = 0;  // 0: any
  std::uint16_t last_port = 0;
  EpmdUse epmd_use = EpmdUse::kExternal;
  bool listens = true;  // false: only dials
  EpmdAddress epmd;
  std::vector<std::string>
      epmd_addresses;  // what a built-in one listens on beside the loopback; none: as the node
  std::vector<PeerAddress> peers;
  std::shared_ptr<Tls> tls;  // nullptr: plain TCP
  std::chrono::milliseconds ticktime{60'000};
  std::chrono::milliseconds handshake_step{7'000};
  std::size_t max_pending = 64;  // half-open peers; one more ends the oldest
  std::size_t max_links = 1024;
  std::size_t max_message = etf::kMaxMessage;
  std::shared_ptr<base::MemoryBudget> budget;  // of all peers; nullptr: nobody counts
  std::size_t peer_budget = std::size_t{256} << 20;
};

struct SpawnRequest {
  ProcessId process = 0;
  etf::PidView from;
  etf::RefView request;
  std::string_view module;
  std::string_view function;
  std::uint32_t arity = 0;
  bool monitor = false;
  bool link = false;
  etf::Bytes arguments;  // a list
};

// A message as it came in. The bytes hold only for the call; a large one stands in a buffer of its
// own, which may be taken over instead of copied (its bytes stay where they are).
struct Incoming {
  etf::Bytes bytes;
  etf::Buffer* whole = nullptr;
  base::Charge* charge = nullptr;  // with `whole`, where it is counted; may be taken over likewise
  bool no_memory = false;          // what was dropped was not too large by itself
};

enum class ExitKind {
  kLink,    // a linked process ended
  kSignal,  // exit(Pid, Reason)
};

class NodeDelegate {
 public:
  virtual ~NodeDelegate() = default;
  virtual void on_link_up(const LinkPtr& link) = 0;
  virtual void on_link_down(Link& link) = 0;
  // `from` is nullptr where the sender is not told.
  virtual void on_message(Link& link, Process& to, const etf::PidView* from, Incoming message) = 0;
  // A message over the limit; of its bytes only the beginning is here.
  virtual void on_too_large(Link& link, const etf::PidView* from, etf::Bytes beginning) = 0;
  // Whether a message that begins like this (a control tuple, and what follows it) can be refused
  // when there is no memory for it, and the refusal of one.
  virtual bool can_refuse(etf::Bytes /*first_fragment*/) const { return false; }
  virtual void on_no_memory(Link&, const etf::PidView* /*from*/, etf::Bytes /*beginning*/) {}
  virtual void on_alias_message(Link& link, const etf::RefView& alias, etf::Bytes message) = 0;
  // Why a process may not be spawned, as an atom's text; nothing when it may.
  virtual std::optional<std::string_view> refuse_spawn(Link& link, const SpawnRequest& request) = 0;
  virtual void on_spawn(Link& link, const SpawnRequest& request) = 0;
  // The one who watched (or whose spawn request this was) does so no longer.
  virtual void on_demonitor(const RefKey& ref, Process* watched) = 0;
  virtual void on_exit(Process& process, etf::Bytes from, etf::Bytes reason, ExitKind kind) = 0;
  // A process that `owner` monitored ended.
  virtual void on_down(Process& owner, const RefKey& ref, const Monitor& monitor,
                       etf::Bytes reason) = 0;
  // The same for a monitor that the delegate sent by itself, as it did the spawn request below.
  virtual void on_own_down(Link&, Process& /*owner*/, const RefKey&, etf::Bytes /*reason*/) {}
  virtual void on_spawn_refused(Link&, const RefKey&, std::string_view /*reason*/) {}
};

// How often something went wrong, by the reason.
class FailureCounter {
 public:
  void add(base::ErrorCode why) { ++counts_[static_cast<std::size_t>(why)]; }
  std::uint64_t load(base::ErrorCode why) const { return counts_[static_cast<std::size_t>(why)]; }
  std::uint64_t load() const {
    std::uint64_t sum = 0;
    for (const auto& count : counts_) sum += count;
    return sum;
  }

 private:
  std::array<std::atomic<std::uint64_t>, base::kErrorCodes> counts_{};
};

struct NodeCounters {
  FailureCounter handshakes_failed;
  FailureCounter frames_rejected;
  std::atomic<std::uint64_t> unknown_controls{0};
  std::atomic<std::uint64_t> links_opened{0};
  std::atomic<std::uint64_t> links_closed{0};
};

// Of all links there have been.
struct Traffic {
  std::uint64_t bytes_in = 0;
  std::uint64_t bytes_out = 0;
  std::uint64_t ticks_in = 0;
  std::uint64_t ticks_out = 0;

  void add(const Link& link) {
    bytes_in += link.bytes_received();
    bytes_out += link.bytes_sent();
    ticks_in += link.ticks_received();
    ticks_out += link.ticks_sent();
  }
};

class Node final : private LinkHandler {
 public:
  Node(asio::io_context& reactor, NodeConfig config, NodeDelegate& delegate);
  ~Node() override;
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  // Binds, listens, registers, dials. Throws std::runtime_error naming the setting at fault.
  // `fatal` is called once when the node can never become what it was told to be (its name belongs
  // to another).
  void start(std::function<void(std::string)> fatal);
  void stop_accepting();  // leaves epmd, takes no new links
  void close_links(
      const std::string&);  // what was queued before is written first as far as the peers read

  // Any thread.
  std::string name() const;
  std::uint32_t creation() const { return creation_; }
  std::uint16_t port() const { return port_; }
  bool registered() const;
  bool ready() const;  // listening and registered, or linked
  // When our certificate ends, in seconds since 1970; nothing without TLS.
  std::optional<std::int64_t> certificate_end() const;
  LinkPtr link_to(std::string_view node) const;
  std::vector<std::string> peers() const;
  etf::Ref make_ref();
  const NodeCounters& counters() const { return counters_; }

  // Reactor thread.
  ProcessTable& processes() { return table_; }
  Process& create_process(std::string name = {}, bool system = false);
  void exit_process(ProcessId id, etf::Bytes reason);
  RefKey monitor(Process& owner, const std::string& node, etf::Bytes target, etf::Ref ref);
  void demonitor(Process& owner, const RefKey& ref);
  void link(Process& process, const std::string& node, const etf::PidView& target);
  void unlink(Process& process, const etf::PidView& target);
  // exit(Pid, Reason). False when there is no link to its node.
  bool exit_signal(etf::Bytes from, const std::string& node, const etf::PidView& target,
                   etf::Bytes reason);
  LinkPtr find_link(std::uint64_t id) const;
  bool links_flushed() const;
  Traffic traffic() const;
  std::size_t connecting() const { return pending_.size() + dialing_.size(); }
  std::map<std::string, bool> known_peers() const;  // linked, or to be dialled: whether it is up

 private:
  using Socket = asio::ip::tcp::socket;
  struct Pending {
    Socket* socket = nullptr;
    std::string address;
  };

  // Joining.
  void bind();
  void join_epmd();
  base::Status serve_epmd();
  asio::awaitable<void> accept_loop(asio::ip::tcp::acceptor& acceptor);
  asio::awaitable<void> accept_peer(Socket socket);
  asio::awaitable<void> dial_loop(PeerAddress peer);
  asio::awaitable<base::Status> dial(PeerAddress peer);
  template <class Transport>
  bool vouched(typename Transport::Stream& stream, std::string_view peer) const;
  template <class Transport>
  asio::awaitable<base::Status> secure(typename Transport::Stream& stream, Handshake& handshake);
  template <class Transport>
  asio::awaitable<base::Result<PeerInfo>> shake_hands(typename Transport::Stream& stream,
                                                      Handshake& handshake);
  template <class Transport>
  asio::awaitable<void> admit(typename Transport::Stream stream);
  template <class Transport>
  asio::awaitable<base::Status> introduce(typename Transport::Stream stream, std::string peer);
  Decision decide(const PeerInfo& peer);
  template <class Transport>
  void open_link(typename Transport::Stream stream, PeerInfo peer);
  HandshakeConfig handshake_config() const;
  void set_identity(std::string name, std::uint32_t creation);

  // Signals.
  void on_frame(Link& link, etf::Bytes frame, std::size_t whole_size) override;
  void on_link_closed(Link& link, const std::string& reason) override;
  void on_signal(Link& link, Incoming control_and_message, bool pass_through, bool too_large);
  void on_signal(Link& link, const Control& control, Incoming message, bool too_large);
  void on_net_kernel(Link& link, etf::Bytes message);
  void deliver(Link& link, Process* to, const Control& control, Incoming message, bool too_large);
  void on_monitor(Link& link, const Control& control);
  void on_demonitor(Link& link, const Control& control);
  void on_link(Link& link, const Control& control);
  void on_unlink(Link& link, const Control& control);
  void on_unlink_ack(Link& link, const Control& control);
  void on_exit(Link& link, const Control& control, etf::Bytes reason);
  void on_down(Link& link, const Control& control, etf::Bytes reason);
  void on_spawn(Link& link, const Control& control, etf::Bytes arguments);
  void drop_idle_fragments();
  void reject(Link& link, const base::Error& error, std::string_view what);

  Process* target(const Party& to);
  void send_down(Link& link, etf::Bytes process, etf::Bytes to, etf::Bytes ref, etf::Bytes reason);
  void send_exit(Link& link, etf::Bytes from, etf::Bytes to, etf::Bytes reason);
  void drop_peer(std::uint64_t link);

  asio::io_context& reactor_;
  NodeConfig config_;
  NodeDelegate& delegate_;
  std::function<void(std::string)> fatal_;
  std::atomic<std::uint32_t> creation_;
  std::atomic<std::uint64_t> next_ref_{1};
  ProcessTable table_;
  std::vector<asio::ip::tcp::acceptor> acceptors_;
  std::atomic<std::uint16_t> port_{0};
  std::unique_ptr<EpmdClient> epmd_;
  std::unique_ptr<EpmdServer> epmd_server_;
  std::list<Pending> pending_;
  std::map<std::string, Socket*> dialing_;  // until the handshake is through
  std::uint64_t next_link_ = 1;
  std::unordered_map<std::uint64_t, LinkPtr> links_;
  std::unordered_map<std::uint64_t, Assembler> assemblers_;
  Assembler::Clock::time_point next_fragment_sweep_{};
  bool stopping_ = false;
  NodeCounters counters_;
  Traffic past_;  // of the links that are gone

  mutable std::mutex names_mutex_;  // guards what other threads ask for
  std::string name_;
  std::map<std::string, LinkPtr, std::less<>> links_by_name_;
};

// Bytes of an atom, and a message about to be sent to a pid of a peer (lane set).
etf::Buffer encode_atom(std::string_view text);
std::uint64_t lane_of(const etf::PidView& pid);

// The reply to a '$gen_call' from `to` with `tag`: its control tuple, up to and including {Tag, so
// that exactly the reply term is still to be written. Uses the alias in the tag where there is one
// and the peer can.
Message begin_gen_reply(const Link& link, etf::Bytes our_pid, const etf::PidView& to,
                        etf::Bytes tag);

}  // namespace dist
