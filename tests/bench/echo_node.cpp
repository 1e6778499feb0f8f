// echo_node: the baseline that every call is measured against. A node on the project's own link
// layer, with one process `echo` and one hop to a worker thread, but no Python.
//
//   reactor ── copy, mutex, condition variable ──▶ worker ── Link::send, one frame a message ──▶
//   peer
//
//   {'$gen_call', {Pid, Tag}, Request}   answered with {Tag, Request}
//   {stream, Pid, Count, Size}           Count binaries of Size bytes go to Pid
//   {Pid, Term}                          Term goes to Pid
//   anything else                        is dropped
//
// It is as quick as this can be made with one frame a message: only the push that finds the queue
// empty wakes the worker, who takes all there is and writes from its own thread, as the node does.
#include <signal.h>

#include <asio/io_context.hpp>
#include <asio/signal_set.hpp>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "cnode/base/log.hpp"
#include "cnode/dist/node.hpp"
#include "tests/bench/options.hpp"

namespace {

struct Job {
  dist::LinkPtr link;
  etf::Buffer storage;
  etf::Bytes message;  // in there
};

class Echo final : public dist::NodeDelegate {
 public:
  void attach(dist::Node& node) {
    const auto& process = node.create_process("echo", true);
    const etf::Bytes pid = dist::view(process.pid);
    pid_.assign(pid.begin(), pid.end());
    worker_ = std::thread([this] { run(); });
  }

  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    if (worker_.joinable()) worker_.join();
  }

  void on_message(dist::Link& link, dist::Process&, const etf::PidView*,
                  dist::Incoming message) override {
    Job job{link.shared_from_this(), {}, message.bytes};
    if (message.whole != nullptr) {
      job.storage = std::move(*message.whole);
    } else {
      job.storage.append(message.bytes);
      job.message = job.storage.bytes();
    }
    bool first = false;
    {
      const std::lock_guard lock(mutex_);
      first = jobs_.empty();
      jobs_.push_back(std::move(job));
    }
    if (first) wake_.notify_one();
  }

  void on_link_up(const dist::LinkPtr&) override {}
  void on_link_down(dist::Link&) override {}
  void on_too_large(dist::Link&, const etf::PidView*, etf::Bytes) override {}
  void on_alias_message(dist::Link&, const etf::RefView&, etf::Bytes) override {}
  std::optional<std::string_view> refuse_spawn(dist::Link&, const dist::SpawnRequest&) override {
    return "notsup";
  }
  void on_spawn(dist::Link&, const dist::SpawnRequest&) override {}
  void on_demonitor(const dist::RefKey&, dist::Process*) override {}
  void on_exit(dist::Process&, etf::Bytes, etf::Bytes, dist::ExitKind) override {}
  void on_down(dist::Process&, const dist::RefKey&, const dist::Monitor&, etf::Bytes) override {}

 private:
  etf::Bytes pid() const { return {pid_.data(), pid_.size()}; }

  void run() {
    std::vector<Job> taken;
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
        if (stopping_) return;
        taken.swap(jobs_);
      }
      for (const auto& job : taken) answer(*job.link, job.message);
      taken.clear();
    }
  }

  void answer(dist::Link& link, etf::Bytes message) {
    etf::Reader in(message);
    auto arity = in.tuple();
    if (!arity) return;
    if (*arity == 3) return answer_call(link, in);
    if (*arity == 4) return stream(link, in);
    auto to = in.pid();
    if (to) link.send(to_pid(link, *to, in.rest()));
  }

  void answer_call(dist::Link& link, etf::Reader& in) {
    auto label = in.atom();
    auto from = in.tuple();
    auto caller = in.pid();
    auto tag = in.term();
    if (!label || !from || !caller || !tag) return;
    dist::Message reply = dist::begin_gen_reply(link, pid(), *caller, *tag);
    reply.bytes.append(in.rest());
    link.send(std::move(reply));
  }

  void stream(dist::Link& link, etf::Reader& in) {
    auto label = in.atom();
    auto to = in.pid();
    auto count = in.unsigned_integer();
    auto size = in.unsigned_integer();
    if (!label || !to || !count || !size) return;
    etf::Buffer term;
    const std::vector<std::uint8_t> bytes(*size, 'x');
    etf::Writer(term).binary(etf::Bytes{bytes.data(), bytes.size()});
    for (std::uint64_t i = 0; i < *count && !link.closed(); ++i)
      link.send(to_pid(link, *to, term.bytes()));
  }

  dist::Message to_pid(const dist::Link& link, const etf::PidView& to, etf::Bytes term) const {
    dist::Message message;
    etf::Writer out(message.bytes);
    if (link.has(dist::kSendSender)) {
      dist::append_send_sender(out, pid(), to.raw);
    } else {
      dist::append_send(out, to.raw);
    }
    message.end_control();
    message.lane = dist::lane_of(to);
    message.bytes.append(term);
    return message;
  }

  std::vector<std::uint8_t> pid_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Job> jobs_;  // no bound: who measures keeps at most a window of calls under way
  bool stopping_ = false;
  std::thread worker_;
};

int run(const bench::Options& options) {
  asio::io_context reactor(1);
  auto work = asio::make_work_guard(reactor);
  dist::NodeConfig config;
  config.name = options.name;
  config.cookie = options.cookie;
  config.epmd.port = options.epmd_port;
  Echo echo;
  dist::Node node(reactor, config, echo);
  int code = 0;
  node.start([&](const std::string& why) {
    std::fprintf(stderr, "echo_node: %s\n", why.c_str());
    code = 1;
    reactor.stop();
  });
  echo.attach(node);
  asio::signal_set signals(reactor, SIGTERM, SIGINT);
  signals.async_wait([&](asio::error_code, int) { reactor.stop(); });
  reactor.run();
  echo.stop();
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    signal(SIGPIPE, SIG_IGN);  // NOLINT: no handler, so nothing to be unsafe
    base::configure_logging("warning", base::LogFormat::kText, "echo");
    return run(bench::read_options(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "echo_node: %s\n", error.what());
    return 1;
  }
}
