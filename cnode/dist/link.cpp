#include "cnode/dist/link.hpp"

#include "cnode/base/fork.hpp"

namespace dist {

Link::Link(std::uint64_t id, PeerInfo peer, int descriptor)
    : queue_(descriptor, (peer.flags & kFragments) != 0), id_(id), peer_(std::move(peer)) {}

void Link::send(Message message) {
  base::end_if_forked();
  after(queue_.push(std::move(message)));
}

void Link::send_all(std::vector<Message>& messages) {
  base::end_if_forked();
  after(queue_.push_all(messages));
  messages.clear();
}

void Link::after(SendQueue::Pushed pushed) {
  switch (pushed) {
    case SendQueue::Pushed::kDone:
    case SendQueue::Pushed::kClosed:
      return;
    case SendQueue::Pushed::kWake:
      return wake_writer();
    case SendQueue::Pushed::kOverBudget:
      return close("the peer has stopped reading");
  }
}

void Link::close(std::string reason) {
  if (closed() || closing_.exchange(true, std::memory_order_acq_rel)) return;
  request_close(std::move(reason));
}

}  // namespace dist
