// DatagramRoom: where a loop's datagram transports receive a few datagrams with one system call.
//
// What the kernel does not write to costs address space alone.
#pragma once

#include <sys/socket.h>

#include <cstddef>
#include <memory>

namespace loop {

struct DatagramRoom {
  static constexpr unsigned kMessages = 16;
  static constexpr std::size_t kSlot = 64 * 1024;  // no UDP datagram is larger
  using Owner = std::unique_ptr<DatagramRoom>;

  mmsghdr messages[kMessages];
  iovec pieces[kMessages];
  sockaddr_storage addresses[kMessages];
  std::unique_ptr<char[]> bytes{new char[kMessages * kSlot]};

  char* slot(unsigned i) { return bytes.get() + i * kSlot; }

  // For `count` messages at most.
  void prepare(unsigned count) {
    for (unsigned i = 0; i < count; ++i) {
      pieces[i] = {slot(i), kSlot};
      messages[i].msg_hdr = {&addresses[i], sizeof addresses[i], &pieces[i], 1, nullptr, 0, 0};
    }
  }
};

}  // namespace loop
