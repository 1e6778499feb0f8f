// What the tests of nodes share: a reactor on a thread of its own, a node whose delegate writes
// down what it hears, and a raw peer that shakes hands and then shows every signal as it stood on
// the wire.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#include <asio/post.hpp>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cnode/base/log.hpp"
#include "cnode/dist/control.hpp"
#include "cnode/dist/handshake.hpp"
#include "cnode/dist/node.hpp"
#include "tests/cpp/dist_support.hpp"

namespace node_support {

using namespace dist_support;

class Reactor {
 public:
  Reactor() : work_(asio::make_work_guard(context_)), thread_([this] { context_.run(); }) {}
  ~Reactor() { stop(); }
  asio::io_context& context() { return context_; }

  // Runs `what` on the reactor and waits for it.
  void run(std::function<void()> what) {
    std::promise<void> done;
    asio::post(context_, [&] {
      try {
        what();
        done.set_value();
      } catch (...) {
        done.set_exception(std::current_exception());
      }
    });
    done.get_future().get();
  }
  void stop() {
    context_.stop();
    if (thread_.joinable()) thread_.join();
  }

 private:
  asio::io_context context_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::thread thread_;
};

struct Event {
  std::string kind;
  std::string peer;  // of the link, where there is one
  dist::ProcessId process = 0;
  Bytes from;   // a pid, or nothing
  Bytes bytes;  // message, arguments or reason
  std::string detail;
};

class Recorder : public dist::NodeDelegate {
 public:
  // The next event of this kind; throws when none comes in time.
  Event next(const std::string& kind) {
    std::unique_lock lock(mutex_);
    std::deque<Event>::iterator found;
    const bool came = changed_.wait_for(lock, kDeadline, [&] {
      found = std::find_if(events_.begin(), events_.end(),
                           [&](const Event& event) { return event.kind == kind; });
      return found != events_.end();
    });
    if (!came) throw std::runtime_error("no event '" + kind + "' in time");
    Event event = std::move(*found);
    events_.erase(found);
    return event;
  }
  std::size_t count(const std::string& kind) {
    const std::lock_guard lock(mutex_);
    return static_cast<std::size_t>(std::count_if(
        events_.begin(), events_.end(), [&](const Event& event) { return event.kind == kind; }));
  }

  // Reactor thread; set before there are links.
  std::optional<std::string_view> refusal;
  std::function<void(dist::Process&)> exit_hook;

  void on_link_up(const dist::LinkPtr& link) override {
    add({"up", link->peer().name, 0, {}, {}, {}});
  }
  void on_link_down(dist::Link& link) override { add({"down", link.peer().name, 0, {}, {}, {}}); }
  void on_message(dist::Link& link, dist::Process& to, const etf::PidView* from,
                  dist::Incoming message) override {
    add({"message", link.peer().name, to.id, from != nullptr ? bytes_of(from->raw) : Bytes{},
         bytes_of(message.bytes), to.name});
  }
  void on_too_large(dist::Link& link, const etf::PidView* from, etf::Bytes beginning) override {
    add({"too large",
         link.peer().name,
         0,
         from != nullptr ? bytes_of(from->raw) : Bytes{},
         bytes_of(beginning),
         {}});
  }
  void on_alias_message(dist::Link& link, const etf::RefView& alias, etf::Bytes message) override {
    add({"alias", link.peer().name, 0, bytes_of(alias.raw), bytes_of(message), {}});
  }
  std::optional<std::string_view> refuse_spawn(dist::Link&, const dist::SpawnRequest&) override {
    return refusal;
  }
  void on_spawn(dist::Link& link, const dist::SpawnRequest& request) override {
    add({"spawn", link.peer().name, request.process, bytes_of(request.from.raw),
         bytes_of(request.arguments),
         std::string(request.module) + ":" + std::string(request.function) + "/" +
             std::to_string(request.arity)});
  }
  void on_demonitor(const dist::RefKey&, dist::Process* watched) override {
    add({"demonitor", {}, watched != nullptr ? watched->id : 0, {}, {}, {}});
  }
  void on_exit(dist::Process& process, etf::Bytes from, etf::Bytes reason,
               dist::ExitKind kind) override {
    add({kind == dist::ExitKind::kLink ? "exit" : "exit signal",
         {},
         process.id,
         bytes_of(from),
         bytes_of(reason),
         {}});
    if (exit_hook) exit_hook(process);
  }
  void on_down(dist::Process& owner, const dist::RefKey&, const dist::Monitor& monitor,
               etf::Bytes reason) override {
    add({"DOWN",
         monitor.node,
         owner.id,
         bytes_of(dist::view(monitor.target)),
         bytes_of(reason),
         {}});
  }

 private:
  void add(Event event) {
    const std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Event> events_;
};

inline constexpr const char* kCookie = "a cookie";

inline dist::NodeConfig config_of(const std::string& name) {
  dist::NodeConfig config;
  config.name = name;
  config.cookie = kCookie;
  config.epmd_use = dist::EpmdUse::kNone;
  return config;
}

// A port nobody listens on just now.
inline std::uint16_t free_port() {
  const Descriptor socket(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throw std::runtime_error("no free port");
  }
  return ntohs(address.sin_port);
}

// A running node. What must happen on its reactor goes through run().
class TestNode {
 public:
  explicit TestNode(dist::NodeConfig config = config_of("node@127.0.0.1"),
                    const std::function<void(Recorder&)>& prepare = {}) {
    static const bool quiet = [] {
      spdlog::set_level(spdlog::level::off);
      return true;
    }();
    (void)quiet;
    if (prepare) prepare(recorder);
    reactor_.run([&] {
      node = std::make_unique<dist::Node>(reactor_.context(), std::move(config), recorder);
      node->start([this](const std::string& why) { fatal.set_value(why); });
    });
  }
  ~TestNode() { reactor_.stop(); }

  void run(std::function<void()> what) { reactor_.run(std::move(what)); }
  std::uint16_t port() const { return node->port(); }
  std::string name() const { return node->name(); }

  dist::ProcessId create(const std::string& process_name = {}) {
    dist::ProcessId id = 0;
    run([&] { id = node->create_process(process_name).id; });
    return id;
  }
  Bytes pid_of(dist::ProcessId id) {
    Bytes pid;
    run([&] { pid = bytes_of(dist::view(node->processes().find(id)->pid)); });
    return pid;
  }
  Bytes pid_of(const std::string& process_name) {
    Bytes pid;
    run([&] { pid = bytes_of(dist::view(node->processes().find(process_name)->pid)); });
    return pid;
  }
  void exit(dist::ProcessId id, const Bytes& reason) {
    run([&] { node->exit_process(id, reason); });
  }

 private:
  Reactor reactor_;  // goes last: what the node left behind in it must not outlive its services

 public:
  Recorder recorder;
  std::promise<std::string> fatal;
  std::unique_ptr<dist::Node> node;
};

// A signal as it came in. The control's views point into the bytes, so it moves and does not copy.
struct Signal {
  std::unique_ptr<Bytes> bytes;
  Bytes control_bytes;
  dist::Control control;
  Bytes payload;
};

inline Descriptor connect_to(std::uint16_t port) {
  Descriptor socket(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    throw std::runtime_error("cannot connect to the node");
  }
  const int on = 1;
  ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return socket;
}

// A listening socket of the test, for nodes that dial.
class Listener {
 public:
  Listener() : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (::bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), size) != 0 ||
        ::listen(socket_.get(), 8) != 0 ||
        ::getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
      throw std::runtime_error("cannot listen");
    }
    port_ = ntohs(address.sin_port);
  }
  std::uint16_t port() const { return port_; }
  Descriptor accept() {
    if (!readable(socket_.get())) throw std::runtime_error("nobody connects");
    return Descriptor(::accept(socket_.get(), nullptr, nullptr));
  }

 private:
  Descriptor socket_;
  std::uint16_t port_ = 0;
};

// Handshake packets on a raw socket.
inline void send_packet(int socket, const Bytes& packet) {
  Bytes bytes(2);
  etf::write_u16(bytes.data(), static_cast<std::uint16_t>(packet.size()));
  write_all(socket, joined(std::move(bytes), packet));
}
inline Bytes read_packet(int socket) {
  const Bytes head = read_exactly(socket, 2);
  return head.size() < 2 ? Bytes{} : read_exactly(socket, etf::read_u16(head.data()));
}
inline std::string text_of(const Bytes& bytes) { return {bytes.begin(), bytes.end()}; }
inline Bytes as_bytes(std::string_view text) { return {text.begin(), text.end()}; }

struct PeerOptions {
  std::string name = "peer@127.0.0.1";
  std::string cookie = kCookie;
  std::uint64_t flags = dist::kOurFlags;
};

class Peer {
 public:
  using Options = PeerOptions;
  static constexpr std::uint32_t kCreation = 77;

  // Connects and shakes hands; throws std::runtime_error with the reason when it fails.
  explicit Peer(const TestNode& node, Options options = {})
      : Peer(connect_to(node.port()), std::move(options)) {}
  Peer(Descriptor connected, Options options,
       dist::Handshake::Role role = dist::Handshake::Role::kInitiator)
      : socket_(std::move(connected)), options_(std::move(options)) {
    shake_hands(role);
    pid_ = pid(1);
  }

  const dist::PeerInfo& info() const { return info_; }
  int socket() const { return socket_.get(); }
  void close() { socket_.reset(); }

  // Identifiers of this peer, encoded.
  Bytes pid(std::uint32_t id) const {
    etf::Buffer bytes;
    etf::Writer(bytes).pid({options_.name, id, 0, kCreation});
    return bytes_of(bytes);
  }
  Bytes pid() const { return pid_; }
  Bytes ref(std::uint32_t number) const {
    etf::Buffer bytes;
    etf::Writer(bytes).reference({options_.name, kCreation, 3, {number, 2, 3}});
    return bytes_of(bytes);
  }

  void send(const Bytes& control, const Bytes& payload = {}) {
    Bytes body;
    if (fragments()) {
      body = joined({131, 68, 0}, joined(control, payload));
    } else {
      body = joined({112, 131}, control);
      if (!payload.empty()) body = joined(joined(std::move(body), {131}), payload);
    }
    send_raw(framed(body));
  }
  void send_raw(const Bytes& bytes) { write_all(socket_.get(), bytes); }

  // The next signal, fragments put together and ticks passed over; throws when the link ends first.
  Signal receive() {
    for (;;) {
      auto frame = read_frame(socket_.get());
      if (!frame) throw std::runtime_error("the link was closed");
      if (frame->empty()) continue;
      auto parsed = dist::parse_frame(*frame, fragments());
      if (!parsed) throw std::runtime_error(parsed.error().message());
      auto bytes = std::make_unique<Bytes>(bytes_of(parsed->body));
      if (parsed->kind == dist::Frame::Kind::kFirstFragment ||
          parsed->kind == dist::Frame::Kind::kFragment) {
        auto whole = parsed->kind == dist::Frame::Kind::kFirstFragment
                         ? assembler_.on_first(parsed->sequence, parsed->fragment, parsed->body)
                         : assembler_.on_next(parsed->sequence, parsed->fragment, parsed->body);
        if (!whole) throw std::runtime_error(whole.error().message());
        if (!*whole) continue;
        *bytes = bytes_of((*whole)->bytes);
      }
      return parse(std::move(bytes));
    }
  }
  // Whether the node closes the link; what it still sends is passed over.
  bool closed() {
    while (read_frame(socket_.get())) {
    }
    return true;
  }

  // A ping and its answer: everything the node did before is then on this side. Whatever else comes
  // first is returned.
  std::vector<Signal> barrier() {
    const Bytes tag = ref(0xFFFF);
    send(control([&](etf::Writer& out) { dist::append_reg_send(out, pid_, "net_kernel"); }),
         ping(tag));
    std::vector<Signal> others;
    for (;;) {
      Signal signal = receive();
      const bool answer = !signal.payload.empty() && signal.payload == pong(tag);
      if (answer) return others;
      others.push_back(std::move(signal));
    }
  }

  template <class Append>
  static Bytes control(Append append) {
    etf::Buffer bytes;
    etf::Writer out(bytes);
    append(out);
    return bytes_of(bytes);
  }

  // {'$gen_call', {Pid, Tag}, {is_auth, Node}} and {Tag, yes}.
  Bytes ping(const Bytes& tag) const {
    return control([&](etf::Writer& out) {
      out.tuple(3)
          .atom("$gen_call")
          .tuple(2)
          .raw(pid_)
          .raw(tag)
          .tuple(2)
          .atom("is_auth")
          .atom(options_.name);
    });
  }
  static Bytes pong(const Bytes& tag) {
    return control([&](etf::Writer& out) { out.tuple(2).raw(tag).atom("yes"); });
  }

 private:
  bool fragments() const { return (info_.flags & dist::kFragments) != 0; }

  Signal parse(std::unique_ptr<Bytes> bytes) const {
    Signal signal;
    signal.bytes = std::move(bytes);
    etf::Reader in(*signal.bytes);
    if (!fragments() && !in.version()) throw std::runtime_error("no version byte");
    const std::size_t begin = in.offset();
    auto control = dist::parse_control(in);
    if (!control) throw std::runtime_error(control.error().message());
    signal.control = *control;
    signal.control_bytes = Bytes(signal.bytes->begin() + static_cast<std::ptrdiff_t>(begin),
                                 signal.bytes->begin() + static_cast<std::ptrdiff_t>(in.offset()));
    if (control->has_payload && !fragments() && !in.version())
      throw std::runtime_error("no version byte");
    signal.payload = bytes_of(in.rest());
    return signal;
  }

  void shake_hands(dist::Handshake::Role role) {
    dist::HandshakeConfig config;
    config.name = options_.name;
    config.creation = kCreation;
    config.flags = options_.flags;
    config.cookie = [this](std::string_view) { return options_.cookie; };
    dist::Handshake handshake(role, std::move(config));
    auto step = handshake.start();
    using Next = dist::Handshake::Step::Next;
    for (;;) {
      for (const auto& packet : step.send) send_packet(socket_.get(), packet);
      if (step.next == Next::kDone) break;
      if (step.next == Next::kNeedDecision) {
        auto decided = handshake.decide(dist::Decision::kOk);
        if (!decided) throw std::runtime_error(decided.error().detail);
        step = std::move(*decided);
        continue;
      }
      const Bytes packet = read_packet(socket_.get());
      if (packet.empty()) throw std::runtime_error("the node closed the connection");
      auto next = handshake.on_packet(packet);
      if (!next) throw std::runtime_error(next.error().detail);
      step = std::move(*next);
    }
    info_ = handshake.peer();
  }

  Descriptor socket_;
  Options options_;
  dist::PeerInfo info_;
  dist::Assembler assembler_;
  Bytes pid_;
};

inline Bytes atom(std::string_view text) {
  const etf::Buffer bytes = dist::encode_atom(text);
  return bytes_of(bytes);
}

}  // namespace node_support
