#include "cnode/main/service_manager.hpp"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace node_main {
namespace {

using namespace std::chrono_literals;

std::string taken(const char* name) {
  const char* text = std::getenv(name);  // NOLINT(concurrency-mt-unsafe)
  std::string value = text != nullptr ? text : "";
  unsetenv(name);  // NOLINT(concurrency-mt-unsafe)
  return value;
}

template <typename Number>
Number number_in(const std::string& text) {
  Number value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() ? value : 0;
}

}  // namespace

ServiceManager::ServiceManager(asio::io_context& reactor) : timer_(reactor) {
  path_ = taken("NOTIFY_SOCKET");
  const auto watchdog = number_in<std::int64_t>(taken("WATCHDOG_USEC"));
  const std::string process = taken("WATCHDOG_PID");
  if (watchdog > 0 && (process.empty() || number_in<pid_t>(process) == getpid()))
    watchdog_ = std::chrono::microseconds(watchdog);
  if (path_.size() < 2 || path_.size() >= sizeof(sockaddr_un::sun_path)) return;
  socket_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

ServiceManager::~ServiceManager() {
  if (socket_ >= 0) close(socket_);
}

void ServiceManager::start(std::function<bool()> ready) {
  if (socket_ < 0) return;
  ready_ = std::move(ready);
  look();
}

void ServiceManager::look() {
  if (ready_()) {
    say("READY=1\nSTATUS=serving");
    return feed();
  }
  timer_.expires_after(100ms);
  timer_.async_wait([this](asio::error_code error) {
    if (!error) look();
  });
}

// Twice as often as it must be.
void ServiceManager::feed() {
  if (watchdog_ == 0us) return;
  say("WATCHDOG=1");
  timer_.expires_after(watchdog_ / 2);
  timer_.async_wait([this](asio::error_code error) {
    if (!error) feed();
  });
}

void ServiceManager::stopping() { say("STOPPING=1\nSTATUS=draining"); }

void ServiceManager::say(const std::string& text) const {
  if (socket_ < 0) return;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path_.data(), path_.size());
  if (path_.front() == '@') address.sun_path[0] = '\0';  // the abstract namespace
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path_.size());
  // What a service manager does not take it does not want to know.
  [[maybe_unused]] const ssize_t sent = sendto(socket_, text.data(), text.size(), MSG_NOSIGNAL,
                                               reinterpret_cast<sockaddr*>(&address), size);
}

}  // namespace node_main
