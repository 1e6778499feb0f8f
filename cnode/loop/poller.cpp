#include "cnode/loop/poller.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <asio/io_context.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/steady_timer.hpp>
#include <cerrno>
#include <system_error>

namespace loop {

Poller::Poller() : process_(getpid()) {
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_ < 0) throw std::system_error(errno, std::generic_category(), "epoll_create1");
  wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake_ < 0) {
    const int error = errno;
    close(epoll_);
    throw std::system_error(error, std::generic_category(), "eventfd");
  }
  add(wake_, EPOLLIN, kWakeTag);
}

Poller::~Poller() {
  close(wake_);
  close(epoll_);
}

int Poller::add(int fd, std::uint32_t events, std::uint64_t tag) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = tag;
  if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) == 0) return 0;
  if (errno == EEXIST && epoll_ctl(epoll_, EPOLL_CTL_MOD, fd, &event) == 0) return 0;
  return errno;
}

int Poller::change(int fd, std::uint32_t events, std::uint64_t tag) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = tag;
  if (epoll_ctl(epoll_, EPOLL_CTL_MOD, fd, &event) == 0) return 0;
  if (errno == ENOENT && epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) == 0) return 0;
  return errno;
}

void Poller::remove(int fd) {
  if (getpid() != process_)
    return;  // the set is shared with the parent, which still wants its events
  epoll_event ignored{};
  epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, &ignored);
}

Poller::Events Poller::poll() {
  const int count = epoll_wait(epoll_, events_, kBatch, 0);
  return {events_, static_cast<std::size_t>(count < 0 ? 0 : count)};
}

Poller::Events Poller::wait_here(std::optional<Nanoseconds> limit, bool& interrupted) {
  int count = -1;
  interrupted = false;
  if (limit && nanoseconds_) {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(*limit);
    timespec time{};
    time.tv_sec = seconds.count();
    time.tv_nsec = (*limit - seconds).count();
    count = epoll_pwait2(epoll_, events_, kBatch, &time, nullptr);
    if (count < 0 && errno == ENOSYS) nanoseconds_ = false;
  }
  if (!limit || !nanoseconds_) {
    // Rounded up: a timer must not find itself too early and turn the loop once more.
    const int milliseconds = limit ? static_cast<int>((limit->count() + 999'999) / 1'000'000) : -1;
    count = epoll_wait(epoll_, events_, kBatch, milliseconds);
  }
  if (count < 0) interrupted = errno == EINTR;
  return {events_, static_cast<std::size_t>(count < 0 ? 0 : count)};
}

void Poller::wake() {
  const std::uint64_t one = 1;
  while (write(wake_, &one, sizeof one) < 0 && errno == EINTR) {
  }
}

void Poller::woken() {
  std::uint64_t count = 0;
  while (read(wake_, &count, sizeof count) < 0 && errno == EINTR) {
  }
}

struct AsioPoller::Reactor {
  asio::io_context context{1};
  asio::posix::stream_descriptor set{context};
  asio::steady_timer timer{context};
  bool watching = false;  // an async_wait for the set is on its way
  bool ready = false;
  bool late = false;
};

AsioPoller::AsioPoller() : reactor_(std::make_unique<Reactor>()) {
  reactor_->set.assign(descriptor());
}

AsioPoller::~AsioPoller() {
  reactor_->set.release();  // the descriptor is the base's
  reactor_->context.restart();
  reactor_->context.poll();  // the cancelled wait refers to the reactor
}

Poller::Events AsioPoller::wait(std::optional<Nanoseconds> limit, bool& interrupted) {
  Reactor& reactor = *reactor_;
  interrupted = false;
  reactor.ready = reactor.late = false;
  reactor.context.restart();
  if (!reactor.watching) {
    reactor.watching = true;
    reactor.set.async_wait(asio::posix::stream_descriptor::wait_read,
                           [&reactor](const asio::error_code&) {
                             reactor.watching = false;
                             reactor.ready = true;
                           });
  }
  if (limit) {
    reactor.timer.expires_after(*limit);
    reactor.timer.async_wait([&reactor](const asio::error_code& error) {
      if (!error) reactor.late = true;
    });
  }
  while (!reactor.ready && !reactor.late) reactor.context.run_one();
  if (limit && !reactor.late) {
    reactor.timer.cancel();
    reactor.context.poll();
  }
  return poll();
}

}  // namespace loop
