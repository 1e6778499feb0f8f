// Channels: all channels of this node, and what peers say of them in {'$py_channel', [Item]}.
//
// Everything on the reactor but for what says "any thread".
#pragma once

#include <asio/steady_timer.hpp>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "cnode/bridge/call.hpp"
#include "cnode/bridge/channel.hpp"

namespace bridge {

class Channels {
 public:
  explicit Channels(Answers& answers) : answers_(answers) {}
  Channels(const Channels&) = delete;
  Channels& operator=(const Channels&) = delete;

  void attach(dist::Node& node) { node_ = &node; }
  // No new channels, and nothing more into those there are; what Python sends still goes out.
  void drain();
  bool has_outgoing() const;

  // Any thread. Also one that is closed, as long as something in it is left.
  ChannelPtr find(dist::ProcessId id) const;
  ChannelPtr find(const etf::PidView& pid) const;  // not one of an earlier incarnation of this node
  std::size_t open() const { return open_.load(std::memory_order_relaxed); }
  void close(const ChannelPtr& channel, std::string_view reason);  // an atom

  // A plain message to the channel's pid, outside the credit; over its hard bound the channel
  // closes.
  void deliver(const ChannelPtr& channel, const Payload& payload, etf::Bytes message);

  // {'$py_channel', [Item]}; the payload starts with the tuple. False when it cannot be understood.
  bool on_batch(dist::Link& link, const etf::PidView& from, const Payload& payload,
                etf::Bytes bytes);
  // True when the process is a channel.
  bool on_message(dist::ProcessId to, dist::Incoming message);
  // An exit signal, unless it is for no channel.
  bool on_exit(dist::ProcessId to, etf::Bytes reason);
  // A receiver, or the py_channel_link of a BEAM, that was monitored ended.
  bool on_down(dist::ProcessId owner, etf::Bytes pid);
  void on_link_down(std::uint64_t link);

 private:
  struct Item {
    std::string_view verb;
    etf::Reader in;
    std::uint32_t arity = 0;
  };
  struct Origin {
    dist::Link& link;
    const etf::PidView& from;
    OutboxPtr outbox;
    Channel::SenderKey key() const { return {link.id(), from}; }
  };

  bool on_item(const Origin& origin, const Payload& payload, Item item);
  void make(const Origin& origin, std::uint64_t id, std::string_view kind, std::uint64_t bound);
  void attach_sender(const Origin& origin, std::uint64_t id, const ChannelPtr& channel);
  Channel::PeerPtr peer_of(const Origin& origin);
  bool accept(const Origin& origin, const ChannelPtr& channel, const Payload& payload,
              std::uint64_t cost, etf::Reader& in);
  void receive(const Origin& origin, const ChannelPtr& channel, etf::Bytes tag, std::uint32_t most,
               Channel::Patience patience);
  void reply(const Origin& origin, const std::function<void(etf::Writer&)>& item);
  void close_with(const ChannelPtr& channel, etf::Bytes reason);
  void finish_close(const ChannelPtr& channel, etf::Bytes reason);
  static void tell_closed(Channel& channel, etf::Bytes reason);
  std::vector<ChannelPtr> all() const;
  void retire(const ChannelPtr& channel);
  void sweep();

  Answers& answers_;
  dist::Node* node_ = nullptr;
  dist::ProcessId watcher_ = 0;  // the process that monitors the BEAMs' py_channel_links
  bool draining_ = false;
  std::unordered_map<std::string, Channel::PeerPtr> peers_;  // by pid
  std::atomic<std::size_t> open_{0};

  mutable std::mutex mutex_;
  std::unordered_map<dist::ProcessId, ChannelPtr> channels_;
  // Closed with something left in them: kept for a while for whoever still consumes it.
  struct Closed {
    ChannelPtr channel;
    std::chrono::steady_clock::time_point since;
  };
  std::vector<Closed> closed_;
};

}  // namespace bridge
