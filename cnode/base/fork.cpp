#include "cnode/base/fork.hpp"

#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <string_view>
#include <unordered_map>

namespace base {
namespace {

struct Sockets {
  std::mutex mutex;  // held while a process forks, so that the child finds it whole
  std::unordered_map<int, ino_t> inodes;  // a number may by now be that of another file
};

Sockets& sockets() {
  static auto* const all = new Sockets;  // forked children and late threads may ask until the end
  return *all;
}

std::atomic<bool> g_forked{false};

ino_t inode_of(int descriptor) {
  struct stat status {};
  return fstat(descriptor, &status) == 0 ? status.st_ino : 0;
}

void before_fork() { sockets().mutex.lock(); }
void in_parent() { sockets().mutex.unlock(); }
void in_child() {
  for (const auto& [descriptor, inode] : sockets().inodes) {
    if (inode_of(descriptor) == inode) close(descriptor);
  }
  sockets().inodes.clear();
  g_forked.store(true, std::memory_order_relaxed);
  sockets().mutex.unlock();
}

}  // namespace

void close_in_children(int socket) {
  static const int watching = pthread_atfork(before_fork, in_parent, in_child);
  static_cast<void>(watching);
  const ino_t inode = inode_of(socket);
  const std::lock_guard lock(sockets().mutex);
  sockets().inodes[socket] = inode;
}

void end_if_forked() {
  if (!g_forked.load(std::memory_order_relaxed)) return;
  // Not the log: another thread may have held its lock when the process was forked.
  constexpr std::string_view kWhy =
      "a forked child returned from what a peer called; the child ends here\n";
  const auto written = write(STDERR_FILENO, kWhy.data(), kWhy.size());
  static_cast<void>(written);
  _exit(1);
}

}  // namespace base
