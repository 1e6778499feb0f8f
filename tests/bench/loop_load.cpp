// loop_load: the clients of the loop's benchmarks. One thread, one epoll set, so many connections,
// each of which asks again as soon as it is answered.
//
//   loop_load KIND WHERE CONNECTIONS SIZE SECONDS PID
//
//   KIND   tcp, unix, udp, tls: an echo of SIZE bytes     http: GET /, keep-alive
//          churn: connect, echo, close, over TCP          hold: TCP connections that do nothing
//   WHERE  a port of 127.0.0.1, or the path of a Unix socket
//   PID    the process that answers; its processor time is taken over exactly the counted window
//
// Prints one line: count=N seconds=S cpu=NANOSECONDS switches=N lost=N
// `switches` are voluntary context switches of the process that answers, `lost` are datagrams that
// had to be sent again.
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr std::size_t kReadSize = 256 * 1024;
constexpr auto kTick = std::chrono::milliseconds(20);  // when nothing comes, we look around
constexpr auto kPatience = std::chrono::seconds(10);
constexpr std::int64_t kFew = 50;  // a window with fewer answers is made longer
constexpr std::string_view kRequest = "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n";

enum class Kind { kTcp, kUnix, kUdp, kTls, kHttp, kChurn, kHold };

const std::map<std::string_view, Kind> kKinds = {
    {"tcp", Kind::kTcp},   {"unix", Kind::kUnix},   {"udp", Kind::kUdp},  {"tls", Kind::kTls},
    {"http", Kind::kHttp}, {"churn", Kind::kChurn}, {"hold", Kind::kHold}};

struct Options {
  Kind kind = Kind::kTcp;
  std::string where;
  std::size_t connections = 1;
  std::string message;
  std::size_t answer = 0;  // bytes that come back for a message
  Seconds seconds{1};
  pid_t pid = 0;
};

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

// ------------------------------------------------------------------------------------------------
// Sockets

class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {
    if (fd < 0) fail("no descriptor");
  }
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

template <auto release>
struct Releases {
  template <class T>
  void operator()(T* thing) const {
    release(thing);
  }
};
using Tls = std::unique_ptr<SSL, Releases<SSL_free>>;
using TlsContext = std::unique_ptr<SSL_CTX, Releases<SSL_CTX_free>>;

sockaddr_in inet_address(std::uint32_t host, std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(host);
  address.sin_port = htons(port);
  return address;
}

template <class Address>
void connect_to(const Fd& fd, const Address& address) {
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    fail("connect");
}

// Closed connections stay behind in TIME_WAIT: one source address has too few ports.
void bind_to_one_of_many(const Fd& fd) {
  static std::uint32_t turn = static_cast<std::uint32_t>(::getpid());
  const int one = 1;
  ::setsockopt(fd.get(), IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
  const auto source = inet_address(INADDR_LOOPBACK + 1 + ++turn % 60'000, 0);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&source), sizeof source) != 0)
    fail("bind");
}

// A connection whose operations still block.
Fd connected(const Options& options) {
  const bool local = options.kind == Kind::kUnix;
  const int type = options.kind == Kind::kUdp ? SOCK_DGRAM : SOCK_STREAM;
  Fd fd(::socket(local ? AF_UNIX : AF_INET, type | SOCK_CLOEXEC, 0));
  if (local) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    options.where.copy(address.sun_path, sizeof address.sun_path - 1);
    connect_to(fd, address);
    return fd;
  }
  if (options.kind == Kind::kChurn) bind_to_one_of_many(fd);
  const int one = 1;
  if (type == SOCK_STREAM) ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  connect_to(fd,
             inet_address(INADDR_LOOPBACK, static_cast<std::uint16_t>(std::stoul(options.where))));
  return fd;
}

// The size of one HTTP answer. All are of one size: only the digits of the date change.
std::size_t size_of_answer(const Options& options) {
  const Fd fd = connected(options);
  if (::send(fd.get(), kRequest.data(), kRequest.size(), MSG_NOSIGNAL) < 0) fail("send");
  std::string text(64 * 1024, '\0');
  for (std::size_t size = 0;;) {
    const ssize_t got = ::recv(fd.get(), text.data() + size, text.size() - size, 0);
    if (got <= 0) throw std::runtime_error("no HTTP answer");
    size += static_cast<std::size_t>(got);
    const std::string_view seen(text.data(), size);
    const auto end = seen.find("\r\n\r\n");
    if (end == seen.npos) continue;
    constexpr std::string_view kLength = "content-length: ";
    const auto field = seen.find(kLength);
    if (!seen.starts_with("HTTP/1.1 200") || field > end)
      throw std::runtime_error("not the HTTP answer wanted");
    std::size_t length = 0;
    std::from_chars(seen.data() + field + kLength.size(), seen.data() + end, length);
    return end + 4 + length;
  }
}

class Client {
 public:
  Client(const Options& options, SSL_CTX* context) : options_(options), fd_(connected(options)) {
    if (options.kind == Kind::kTls) {
      tls_.reset(SSL_new(context));
      if (SSL_set_fd(tls_.get(), fd()) != 1 || SSL_connect(tls_.get()) != 1)
        throw std::runtime_error("no TLS handshake");
    }
    if (::fcntl(fd(), F_SETFL, O_NONBLOCK) != 0) fail("fcntl");
  }

  int fd() const { return fd_.get(); }
  bool blocked() const { return to_send_ > 0; }
  Clock::time_point asked_at() const { return asked_at_; }

  void ask(Clock::time_point now) {
    asked_at_ = now;
    to_send_ = options_.message.size();
    to_receive_ = options_.answer;
    write();
  }

  // Sends what the kernel takes.
  void write() {
    while (to_send_ > 0) {
      const char* from = options_.message.data() + (options_.message.size() - to_send_);
      const std::size_t sent = put(from, to_send_);
      if (sent == 0) return;
      to_send_ -= sent;
    }
  }

  // Reads what there is; true when that makes the answer whole.
  bool read(std::span<char> buffer) {
    for (;;) {
      const std::size_t got = get(buffer.data(), buffer.size());
      if (got == 0) return false;
      if (got > to_receive_) {
        if (options_.kind == Kind::kUdp) continue;  // the answer to what seemed lost
        throw std::runtime_error("more came back than there should");
      }
      to_receive_ -= got;
      if (to_receive_ == 0) return true;
    }
  }

 private:
  std::size_t put(const char* from, std::size_t size) {
    if (tls_ != nullptr) return judged(SSL_write(tls_.get(), from, static_cast<int>(size)));
    return judged(::send(fd(), from, size, MSG_NOSIGNAL), "send");
  }

  std::size_t get(char* to, std::size_t size) {
    if (tls_ != nullptr) return judged(SSL_read(tls_.get(), to, static_cast<int>(size)));
    const ssize_t got = ::recv(fd(), to, size, 0);
    if (got == 0) throw std::runtime_error("the server closed a connection");
    return judged(got, "recv");
  }

  static std::size_t judged(ssize_t done, const char* what) {
    if (done < 0 && errno != EAGAIN) fail(what);
    return done < 0 ? 0 : static_cast<std::size_t>(done);
  }

  std::size_t judged(int done) {
    if (done > 0) return static_cast<std::size_t>(done);
    const int why = SSL_get_error(tls_.get(), done);
    if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE)
      throw std::runtime_error("TLS failed");
    return 0;
  }

  const Options& options_;
  Fd fd_;
  Tls tls_;
  std::size_t to_send_ = 0;
  std::size_t to_receive_ = 0;
  Clock::time_point asked_at_;
};

// ------------------------------------------------------------------------------------------------
// The process that answers

struct Spent {
  std::int64_t cpu = 0;  // nanoseconds
  std::int64_t switches = 0;
};

class Observed {
 public:
  explicit Observed(pid_t pid) : tasks_("/proc/" + std::to_string(pid) + "/task") {
    if (::clock_getcpuclockid(pid, &clock_) != 0) throw std::runtime_error("no such process");
  }

  Spent spent() const {
    timespec time{};
    if (::clock_gettime(clock_, &time) != 0) fail("the process that answers ended");
    return {time.tv_sec * std::int64_t{1'000'000'000} + time.tv_nsec, switches()};
  }

 private:
  std::int64_t switches() const {
    constexpr std::string_view kName = "voluntary_ctxt_switches:";
    std::int64_t sum = 0;
    for (const auto& task : std::filesystem::directory_iterator(tasks_)) {
      std::ifstream status(task.path() / "status");
      for (std::string line; std::getline(status, line);) {
        if (line.starts_with(kName)) sum += std::stoll(line.substr(kName.size()));
      }
    }
    return sum;
  }

  std::filesystem::path tasks_;
  clockid_t clock_{};
};

// ------------------------------------------------------------------------------------------------
// All connections

class Load {
 public:
  explicit Load(const Options& options)
      : options_(options), context_(SSL_CTX_new(TLS_client_method())), poll_(::epoll_create1(0)) {
    SSL_CTX_set_mode(context_.get(), SSL_MODE_ENABLE_PARTIAL_WRITE);
    for (std::size_t at = 0; at < options.connections; ++at) {
      clients_.push_back(std::make_unique<Client>(options, context_.get()));
      watch(EPOLL_CTL_ADD, at);
    }
  }

  void start() {
    if (options_.kind == Kind::kHold) return;
    for (std::size_t at = 0; at < clients_.size(); ++at) {
      clients_[at]->ask(Clock::now());
      if (clients_[at]->blocked()) watch(EPOLL_CTL_MOD, at);
    }
  }

  void run_until(Clock::time_point end) {
    if (options_.kind == Kind::kHold) return std::this_thread::sleep_until(end);
    std::vector<epoll_event> events(clients_.size());
    for (auto now = Clock::now(); now < end; now = Clock::now()) {
      const int ready = ::epoll_wait(poll_.get(), events.data(), static_cast<int>(events.size()),
                                     static_cast<int>(kTick.count()));
      if (ready < 0 && errno != EINTR) fail("epoll_wait");
      for (int at = 0; at < ready; ++at) serve(events[static_cast<std::size_t>(at)], now);
      if (now - last_look_ >= kTick) look_around(now);
    }
  }

  std::int64_t count() const { return count_; }
  std::int64_t lost() const { return lost_; }

 private:
  void watch(int operation, std::size_t at) {
    const std::uint32_t what = clients_[at]->blocked() ? EPOLLIN | EPOLLOUT : EPOLLIN;
    epoll_event event{.events = what, .data = {.u64 = at}};
    if (::epoll_ctl(poll_.get(), operation, clients_[at]->fd(), &event) != 0) fail("epoll_ctl");
  }

  void serve(const epoll_event& event, Clock::time_point now) {
    const std::size_t at = event.data.u64;
    Client& client = *clients_[at];
    const bool was_blocked = client.blocked();
    if (was_blocked) client.write();
    if (client.read(buffer_)) {
      ++count_;
      if (options_.kind == Kind::kChurn) return replace(at, now);
      client.ask(now);
    }
    if (client.blocked() != was_blocked) watch(EPOLL_CTL_MOD, at);
  }

  void replace(std::size_t at, Clock::time_point now) {
    clients_[at] = std::make_unique<Client>(options_, context_.get());
    clients_[at]->ask(now);
    watch(EPOLL_CTL_ADD, at);
  }

  // The kernel may drop datagrams, and nothing else; whoever else is not answered never will be.
  void look_around(Clock::time_point now) {
    last_look_ = now;
    for (auto& client : clients_) {
      if (options_.kind == Kind::kUdp && now - client->asked_at() > kTick) {
        client->ask(now);
        ++lost_;
      } else if (now - client->asked_at() > kPatience) {
        throw std::runtime_error("no answer in time");
      }
    }
  }

  const Options& options_;
  TlsContext context_;
  Fd poll_;
  std::vector<std::unique_ptr<Client>> clients_;
  alignas(4096) std::array<char, kReadSize> buffer_;
  std::int64_t count_ = 0;
  std::int64_t lost_ = 0;
  Clock::time_point last_look_ = Clock::now();
};

Options read_options(int argc, char** argv) {
  if (argc != 7)
    throw std::runtime_error("usage: loop_load KIND WHERE CONNECTIONS SIZE SECONDS PID");
  const auto kind = kKinds.find(argv[1]);
  if (kind == kKinds.end()) throw std::runtime_error("no such kind of load");
  Options options{.kind = kind->second, .where = argv[2], .message = {}};
  options.connections = std::stoul(argv[3]);
  options.message.assign(std::stoul(argv[4]), 'x');
  options.answer = options.message.size();
  if (options.kind == Kind::kHttp) {
    options.message = kRequest;
    options.answer = size_of_answer(options);
  }
  options.seconds = Seconds(std::stod(argv[5]));
  options.pid = static_cast<pid_t>(std::stol(argv[6]));
  return options;
}

void run(const Options& options) {
  const Observed observed(options.pid);
  const auto load_owner = std::make_unique<Load>(options);
  Load& load = *load_owner;
  load.start();
  const auto length = std::chrono::duration_cast<Clock::duration>(options.seconds);
  load.run_until(Clock::now() + length / 4);  // warms caches up, fills send buffers

  const std::int64_t counted = load.count();
  const Spent before = observed.spent();
  const auto began = Clock::now();
  load.run_until(began + length);
  while (options.kind != Kind::kHold && load.count() - counted < kFew)
    load.run_until(Clock::now() + length);
  const Spent after = observed.spent();
  const double seconds = Seconds(Clock::now() - began).count();

  std::printf("count=%" PRId64 " seconds=%.6f cpu=%" PRId64 " switches=%" PRId64 " lost=%" PRId64
              "\n",
              load.count() - counted, seconds, after.cpu - before.cpu,
              after.switches - before.switches, load.lost());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(read_options(argc, argv));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "loop_load: %s\n", error.what());
    return 1;
  }
}
