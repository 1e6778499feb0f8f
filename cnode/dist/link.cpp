#include "cnode/dist/link.hpp"

namespace dist {

Link::Link(std::uint64_t id, PeerInfo peer, int descriptor)
    : queue_(descriptor, (peer.flags & kFragments) != 0), id_(id), peer_(std::move(peer)) {}

void Link::send(Message message) {
  switch (queue_.push(std::move(message))) {
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
  if (!closed()) request_close(std::move(reason));
}

}  // namespace dist
