#include "cnode/py/python.hpp"

#include "cnode/main/worker.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <asio/io_context.hpp>

#include <cerrno>
#include <cstdio>
#include <future>
#include <thread>

#include "cnode/base/fork.hpp"
#include "cnode/base/log.hpp"
#include "cnode/bridge/process_pool.hpp"
#include "cnode/bridge/worker_process.hpp"
#include "cnode/main/config.hpp"
#include "cnode/main/interpreter.hpp"

namespace node_main {
namespace {

constexpr std::size_t kLargest = (std::size_t{1} << 30) + (std::size_t{1} << 20);

void nothing(int) {}

// Not ignored, which programs that Python code starts would inherit, but caught; and what it forks
// has the signals' own meaning back.
void outlive_signals() {
  struct sigaction action {};
  action.sa_handler = nothing;
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaction(signal, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);  // NOLINT: no handler, so nothing to be unsafe
  pthread_atfork(nullptr, nullptr, [] {
    for (const int which : {SIGTERM, SIGINT, SIGHUP}) signal(which, SIG_DFL);  // NOLINT
  });
}

// The first frame. Nothing is sent behind it before we have said hello.
Config read_settings() {
  bridge::FrameReader reader(1u << 20);
  for (;;) {
    auto frame = reader.next();
    if (!frame) throw ConfigError("worker process: " + frame.error().message());
    if (*frame) {
      if ((*frame)->kind != static_cast<std::uint8_t>(bridge::ToWorker::kSettings))
        throw ConfigError("worker process: no settings");
      return worker_config((*frame)->body);
    }
    const auto room = reader.room();
    const ssize_t count = read(bridge::ProcessPool::kDescriptor, room.data(), room.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0)
      throw ConfigError("worker process: only a node can start one, with --processes");
    reader.filled(static_cast<std::size_t>(count));
  }
}

}  // namespace

int run_worker_process(Python python) {
  constexpr int descriptor = bridge::ProcessPool::kDescriptor;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  prctl(PR_SET_NAME, "sidewinder");
  outlive_signals();
  const Config config = read_settings();
  fcntl(descriptor, F_SETFD, FD_CLOEXEC);
  base::close_in_children(descriptor);
  base::configure_logging(config.log_level, config.log_format, config.runtime.node.name);

  asio::io_context reactor(1);
  const auto socket = std::make_shared<bridge::WorkerSocket>(reactor, descriptor, kLargest);
  try {
    if (python == Python::kRunning)
      join_interpreter(config);
    else
      start_interpreter(config);
  } catch (const ConfigError& error) {
    spdlog::error("worker process: {}", error.what());
    return 1;
  }
  std::promise<void> told;
  bool stopping = false;
  bridge::WorkerProcess::Hooks hooks;
  hooks.told_to_stop = [&] {
    if (!std::exchange(stopping, true)) told.set_value();
  };
  hooks.lost = [] { _exit(0); };
  auto worker = std::make_unique<bridge::WorkerProcess>(
      reactor, socket, bridge::WorkerProcess::Options{config.runtime.pool, config.runtime.invoker},
      std::move(hooks));
  PyThreadState* main_thread = PyEval_SaveThread();
  worker->start();
  auto end = told.get_future();
  auto work = asio::make_work_guard(reactor);
  std::thread thread([&] { reactor.run(); });
  end.wait();
  worker->stop();
  work.reset();
  reactor.stop();
  thread.join();
  PyEval_RestoreThread(main_thread);
  worker.reset();
  if (python == Python::kOurs && Py_FinalizeEx() < 0) spdlog::warn("python did not end cleanly");
  return 0;
}

}  // namespace node_main
