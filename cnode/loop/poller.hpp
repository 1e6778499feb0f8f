// Poller: the wait of a loop: one level-triggered epoll set with an eventfd in it.
//
//   EpollPoller   waits in the epoll set itself
//   AsioPoller    waits in an io_context that watches the epoll set, so that other work of the
//   io_context runs meanwhile
//
// Both hand out the same events; what differs is only where the thread sleeps.
#pragma once

#include <sys/epoll.h>
#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

namespace loop {

class Poller {
 public:
  static constexpr int kBatch = 256;                     // events taken in one turn
  static constexpr std::uint64_t kWakeTag = UINT64_MAX;  // the eventfd's
  using Events = std::span<const epoll_event>;
  using Nanoseconds = std::chrono::nanoseconds;

  // Throws std::system_error when there are no descriptors left.
  Poller();
  virtual ~Poller();
  Poller(const Poller&) = delete;
  Poller& operator=(const Poller&) = delete;

  // The epoll set's descriptor: readable when there are events or somebody woke the loop.
  int descriptor() const { return epoll_; }

  // Zero or an errno. A change of a descriptor that was closed and opened again adds it anew.
  int add(int fd, std::uint32_t events, std::uint64_t tag);
  int change(int fd, std::uint32_t events, std::uint64_t tag);
  void remove(int fd);

  // What is ready now. Never waits, so the GIL may stay held.
  Events poll();
  // What is ready after waiting for at most `limit`, for ever if there is none. Without the GIL.
  // `interrupted` tells that a signal ended the wait.
  virtual Events wait(std::optional<Nanoseconds> limit, bool& interrupted) = 0;
  virtual const char* name() const = 0;

  // Any thread, with or without the GIL.
  void wake();
  void woken();  // empties the eventfd

 protected:
  Events wait_here(std::optional<Nanoseconds> limit, bool& interrupted);

 private:
  int epoll_ = -1;
  int wake_ = -1;
  pid_t process_;            // whose set this is: a child after fork() must not change it
  bool nanoseconds_ = true;  // the kernel has epoll_pwait2
  epoll_event events_[kBatch];
};

class EpollPoller final : public Poller {
 public:
  Events wait(std::optional<Nanoseconds> limit, bool& interrupted) override {
    return wait_here(limit, interrupted);
  }
  const char* name() const override { return "epoll"; }
};

class AsioPoller final : public Poller {
 public:
  AsioPoller();
  ~AsioPoller() override;
  Events wait(std::optional<Nanoseconds> limit, bool& interrupted) override;
  const char* name() const override { return "asio"; }

 private:
  struct Reactor;
  std::unique_ptr<Reactor> reactor_;
};

}  // namespace loop
