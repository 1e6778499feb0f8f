// Processes: Python code with a pid. Each has a mailbox; the loop thread hands its messages to a
// Python callable.
//
//   reactor ── message, DOWN, EXIT ──▶ mailbox ── first one knocks ──▶ loop thread: callable([m1,
//   m2, …])
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "cnode/dist/node.hpp"
#include "cnode/mailbox/mailbox.hpp"
#include "cnode/py/ref.hpp"

namespace bridge {

struct PyProcess {
  dist::ProcessId id = 0;
  etf::Pid pid;
  mailbox::Mailbox<etf::Buffer> mailbox;
  std::atomic<bool> trap_exit{false};
  PyObject* deliver = nullptr;  // owned; under the GIL
  PyObject* begin = nullptr;    // owned, or null; called once with the pid, on the loop thread
  PyObject* stop = nullptr;     // owned; called with the exit reason when a signal ends the process
  bool ended = false;           // under the GIL
};
using PyProcessPtr = std::shared_ptr<PyProcess>;

class Processes {
 public:
  // Something for the loop thread to look at: messages, or with `ended` the encoded reason it was
  // ended for.
  struct Hooks {
    std::function<void(PyProcessPtr)> wake;
    std::function<void(PyProcessPtr, etf::Buffer reason)> ended;
  };
  explicit Processes(Hooks hooks) : hooks_(std::move(hooks)) {}

  void add(PyProcessPtr process);
  void remove(dist::ProcessId id);
  PyProcessPtr find(dist::ProcessId id) const;
  std::size_t size() const;

  // Reactor. False when the mailbox is full.
  bool deliver(dist::ProcessId id, etf::Bytes message);
  bool deliver(const PyProcessPtr& process, etf::Buffer message);
  void end(const PyProcessPtr& process, etf::Bytes reason) { hooks_.ended(process, copy(reason)); }

  static etf::Buffer copy(etf::Bytes bytes) {
    etf::Buffer buffer(bytes.size());
    buffer.append(bytes);
    return buffer;
  }

 private:
  const Hooks hooks_;
  mutable std::mutex mutex_;
  std::unordered_map<dist::ProcessId, PyProcessPtr> processes_;
};

}  // namespace bridge
