// sidewinder: reads its settings, starts Python, joins the cluster, and leaves it in order.
//
//   main thread   settings, interpreter, then waits for the end
//   reactor       asio::io_context: everything in dist and the router; signals; never takes the GIL
//   loop thread   asyncio        worker threads 1..N   synchronous Python
//
// Exit codes: 0 told to stop and stopped in order; 1 a setting is wrong or cannot be had; 2 the
// command line cannot be read; 3 another node has our name; 4 stopped at once by a second signal.
#include "cnode/py/python.hpp"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <asio/io_context.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/post.hpp>
#include <asio/signal_set.hpp>
#include <cstdio>
#include <future>
#include <thread>

#include "cnode/base/log.hpp"
#include "cnode/bridge/runtime.hpp"
#include "cnode/main/admin.hpp"
#include "cnode/main/config.hpp"
#include "cnode/main/interpreter.hpp"
#include "cnode/main/metrics.hpp"
#include "cnode/main/service_manager.hpp"
#include "cnode/py/gil.hpp"

namespace {

using node_main::Config;

constexpr int kStopped = 0;
constexpr int kBadSetting = 1;
constexpr int kNameTaken = 3;
constexpr int kStoppedAtOnce = 4;

volatile sig_atomic_t g_child = 0;

void pass_on(int signal) {
  if (g_child > 0) kill(static_cast<pid_t>(g_child), signal);
}

// As the first process of a container nobody else reaps orphans and signals have no default action:
// a parent that does both stays in front of the node.
void become_init_if_first() {
  if (getpid() != 1) return;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  const pid_t child = fork();
  if (child <= 0) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return;
  }
  g_child = child;
  struct sigaction action {};
  action.sa_handler = pass_on;
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2})
    sigaction(signal, &action, nullptr);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  for (;;) {
    int status = 0;
    const pid_t ended = waitpid(-1, &status, 0);
    if (ended == child) _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    if (ended < 0 && errno == ECHILD) _exit(1);
  }
}

// Ends the node when its standard input does: whoever started it through a pipe is gone.
void watch_stdin(asio::posix::stream_descriptor& input, std::array<char, 256>& buffer,
                 std::function<void()> ended) {
  input.async_read_some(asio::buffer(buffer),
                        [&input, &buffer, ended](asio::error_code error, std::size_t) {
                          if (error == asio::error::operation_aborted) return;
                          if (error) return ended();
                          watch_stdin(input, buffer, ended);
                        });
}

int run(const Config& config) {
  asio::io_context reactor(1);
  auto work = asio::make_work_guard(reactor);
  std::promise<int> end;
  bool told = false;
  const auto finish = [&](int code) {
    if (std::exchange(told, true)) return;
    end.set_value(code);
  };

  node_main::ServiceManager manager(reactor);  // before Python copies the environment
  node_main::start_interpreter(config);
  std::unique_ptr<bridge::Runtime> runtime;
  try {
    runtime = std::make_unique<bridge::Runtime>(reactor, config.runtime);
  } catch (const py::Error& error) {
    const auto what = error.describe();
    throw node_main::ConfigError("python: " + what.type + ": " + what.message);
  }
  PyThreadState* main_thread = PyEval_SaveThread();

  asio::signal_set signals(reactor, SIGTERM, SIGINT);
  bool draining = false;
  const std::function<void()> drain = [&] {
    if (std::exchange(draining, true)) {
      spdlog::warn("told to stop a second time: stopping at once");
      return finish(kStoppedAtOnce);
    }
    spdlog::info("draining: new calls are refused, accepted ones have {} s",
                 std::chrono::duration_cast<std::chrono::seconds>(config.drain).count());
    manager.stopping();
    runtime->drain(config.drain, [&] { finish(kStopped); });
  };
  std::function<void()> wait_for_signal = [&] {
    signals.async_wait([&](asio::error_code error, int) {
      if (error) return;
      drain();
      wait_for_signal();
    });
  };
  wait_for_signal();
  signal(SIGPIPE, SIG_IGN);  // NOLINT: no handler, so nothing to be unsafe

  node_main::Admin::Hooks admin_hooks;
  admin_hooks.not_ready = [&] {
    std::vector<std::string> reasons;
    if (draining) reasons.emplace_back("draining");
    if (!runtime->node().ready()) reasons.emplace_back("not registered with epmd");
    return reasons;
  };
  admin_hooks.ask_python = [&](std::function<void()> answer) { runtime->loop().post(answer); };
  admin_hooks.metrics = [&] {
    return node_main::metrics_of(*runtime, config.runtime.version.c_str(), draining);
  };
  const auto admin = std::make_shared<node_main::Admin>(reactor, std::move(admin_hooks));

  std::array<char, 256> input_buffer{};
  std::unique_ptr<asio::posix::stream_descriptor> input;
  if (config.stop_on_stdin_eof) {
    input = std::make_unique<asio::posix::stream_descriptor>(reactor, dup(STDIN_FILENO));
    watch_stdin(*input, input_buffer, [&] {
      spdlog::info("standard input was closed");
      if (!draining) drain();
    });
  }

  std::string fatal;
  try {
    runtime->start([&](std::string why) {
      spdlog::error("{}", why);
      finish(kNameTaken);
    });
    if (!config.admin.empty()) {
      const std::uint16_t port = admin->start(node_main::Admin::address_of(config.admin));
      spdlog::info("admin: listening on port {}", port);
    }
    manager.start([&] { return runtime->node().ready(); });
  } catch (...) {
    runtime->stop();
    work.reset();
    PyEval_RestoreThread(main_thread);
    runtime.reset();
    throw;
  }
  if (config.runtime.invoker.allow.open()) {
    spdlog::warn("peers may call everything; restrict them with --allow");
  }
  auto ended = end.get_future();
  std::thread thread([&] { reactor.run(); });
  const int code = ended.get();

  if (code == kStoppedAtOnce) _exit(code);
  runtime->stop();
  reactor.stop();
  thread.join();
  const bool clean = runtime->pool().replaced() == 0;
  PyEval_RestoreThread(main_thread);
  runtime.reset();
  // With a thread stuck in native code the interpreter cannot be taken down.
  if (!clean) {
    fflush(nullptr);
    _exit(code);
  }
  if (Py_FinalizeEx() < 0) spdlog::warn("python did not end cleanly");
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Config config = node_main::read_config(argc, argv);
    node_main::forget_secrets();
    if (config.check) node_main::check_files(config);
    if (config.print || config.check) {
      std::fputs(node_main::describe(config).c_str(), stdout);
      return kStopped;
    }
    base::configure_logging(config.log_level, config.log_format, config.runtime.node.name);
    for (const auto& warning : config.warnings) spdlog::warn("{}", warning);
    become_init_if_first();
    return run(config);
  } catch (const node_main::Exit& exit) {
    return exit.code;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "sidewinder: %s\n", error.what());
    return kBadSetting;
  }
}
