// Items for channels, {'$py_channel', [Item]}, against a node without sockets. The four bytes
// "CREA" become the node's creation, so that seeds can name its channels. What comes to be in a
// channel is taken out and must lie inside what was sent.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "cnode/bridge/channels.hpp"

namespace {

using etf::Bytes;

void require(bool holds) {
  if (!holds) std::abort();
}

class SilentLink final : public dist::Link {
 public:
  SilentLink() : Link(1, peer(), -1) {}

 private:
  static dist::PeerInfo peer() {
    dist::PeerInfo info;
    info.name = "beam@host";
    info.flags = dist::kSendSender | dist::kFragments;
    return info;
  }
  void wake_writer() override {
    dist::SendQueue::Batch batch;
    while (queue_.take(batch)) {
    }
  }
  void request_close(std::string) override {}
};

class NoDelegate final : public dist::NodeDelegate {
 public:
  void on_link_up(const dist::LinkPtr&) override {}
  void on_link_down(dist::Link&) override {}
  void on_message(dist::Link&, dist::Process&, const etf::PidView*, dist::Incoming) override {}
  void on_too_large(dist::Link&, const etf::PidView*, Bytes) override {}
  void on_alias_message(dist::Link&, const etf::RefView&, Bytes) override {}
  std::optional<std::string_view> refuse_spawn(dist::Link&, const dist::SpawnRequest&) override {
    return std::nullopt;
  }
  void on_spawn(dist::Link&, const dist::SpawnRequest&) override {}
  void on_demonitor(const dist::RefKey&, dist::Process*) override {}
  void on_exit(dist::Process&, Bytes, Bytes, dist::ExitKind) override {}
  void on_down(dist::Process&, const dist::RefKey&, const dist::Monitor&, Bytes) override {}
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  asio::io_context reactor;
  NoDelegate delegate;
  dist::NodeConfig config;
  config.name = "py@host";
  dist::Node node(reactor, config, delegate);
  dist::Node* here = &node;
  bridge::Answers answers(reactor, here);
  bridge::Channels channels(answers);
  channels.attach(node);
  const auto link = std::make_shared<SilentLink>();
  answers.link_up(link, dist::view(node.create_process().pid));

  etf::Buffer from_bytes;
  etf::Writer(from_bytes).pid({"beam@host", 100, 0, 77});
  etf::Reader from_reader(from_bytes.bytes());
  const etf::PidView from = *from_reader.pid();

  std::vector<std::uint8_t> input(data, data + size);
  for (std::size_t i = 0; i + 4 <= input.size(); ++i) {
    if (std::memcmp(input.data() + i, "CREA", 4) == 0)
      etf::write_u32(input.data() + i, node.creation());
  }
  // As many messages as there are terms one behind the other.
  etf::Reader in({input.data(), input.size()});
  std::vector<bridge::ChannelPtr> known;
  while (in.remaining() > 0) {
    const Bytes rest = in.rest();
    const auto whole = in.term();
    const auto payload = std::make_shared<etf::Buffer>();
    payload->append(whole ? *whole : rest);
    if (!channels.on_batch(*link, from, payload, payload->bytes()) || !whole) break;
    for (dist::ProcessId id = 1; id < 40; ++id) {
      const auto channel = channels.find(id);
      if (!channel) continue;
      known.push_back(channel);
      while (auto batch = channel->in().take(1)) {
        const mailbox::Slice& slice = batch->slices[batch->next];
        require(slice.offset + std::size_t{slice.size} <= batch->bytes->size());
        channel->in().hand_out(slice.cost);
        channel->consumed(batch->sender, slice.cost);
      }
      require(channel->in().bytes() == 0);
    }
  }
  channels.on_link_down(link->id());
  answers.link_down(link->id());
  return 0;
}
