#include "cnode/bridge/processes.hpp"

namespace bridge {

void Processes::add(PyProcessPtr process) {
  const std::lock_guard lock(mutex_);
  processes_[process->id] = std::move(process);
}

void Processes::remove(dist::ProcessId id) {
  const std::lock_guard lock(mutex_);
  processes_.erase(id);
}

PyProcessPtr Processes::find(dist::ProcessId id) const {
  const std::lock_guard lock(mutex_);
  auto found = processes_.find(id);
  return found == processes_.end() ? nullptr : found->second;
}

std::size_t Processes::size() const {
  const std::lock_guard lock(mutex_);
  return processes_.size();
}

bool Processes::deliver(dist::ProcessId id, etf::Bytes message) {
  auto process = find(id);
  return !process || deliver(process, copy(message));
}

bool Processes::deliver(const PyProcessPtr& process, etf::Buffer message) {
  const std::size_t size = message.size();
  switch (process->mailbox.push(std::move(message), size)) {
    case mailbox::Pushed::kFirst:
      hooks_.wake(process);
      return true;
    case mailbox::Pushed::kFull:
      return false;
    case mailbox::Pushed::kQueued:
    case mailbox::Pushed::kClosed:
      return true;
  }
  return true;
}

}  // namespace bridge
