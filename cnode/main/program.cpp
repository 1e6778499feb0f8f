// The node: reads its settings, starts Python or finds it started, joins the cluster, and leaves it
// in order.
//
//   main thread   settings, interpreter, then waits for the end
//   reactor       asio::io_context: everything in dist and the router; signals; never takes the GIL
//   loop thread   asyncio        worker threads 1..N   synchronous Python
//
// With --processes it starts itself again as many times, as worker processes (worker.hpp).
//
// Exit codes: 0 told to stop and stopped in order; 1 a setting is wrong or cannot be had; 2 the
// command line cannot be read; 3 another node has our name; 4 stopped at once by a second signal.
#include "cnode/py/python.hpp"

#include "cnode/main/program.hpp"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <asio/io_context.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/post.hpp>
#include <asio/signal_set.hpp>
#include <cstdio>
#include <filesystem>
#include <future>
#include <iterator>
#include <thread>

#include "cnode/base/log.hpp"
#include "cnode/bridge/runtime.hpp"
#include "cnode/main/admin.hpp"
#include "cnode/main/config.hpp"
#include "cnode/main/interpreter.hpp"
#include "cnode/main/metrics.hpp"
#include "cnode/main/service_manager.hpp"
#include "cnode/main/web_server.hpp"
#include "cnode/main/worker.hpp"
#include "cnode/py/gil.hpp"

namespace node_main {
namespace {

constexpr int kStopped = 0;
constexpr int kBadSetting = 1;
constexpr int kNameTaken = 3;
constexpr int kStoppedAtOnce = 4;

volatile sig_atomic_t g_child = 0;

void pass_on(int signal) {
  if (g_child > 0) kill(static_cast<pid_t>(g_child), signal);
}

std::ptrdiff_t threads() {
  std::error_code ignored;
  return std::distance(std::filesystem::directory_iterator("/proc/self/task", ignored), {});
}

// As the first process of a container nobody else reaps orphans and signals have no default action:
// a parent that does both stays in front of the node.
void become_init_if_first(Python python) {
  if (getpid() != 1) return;
  if (python == Python::kRunning && threads() != 1) {
    return spdlog::warn("process 1 has threads already: nobody reaps orphans");
  }
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  if (python == Python::kRunning) PyOS_BeforeFork();
  const pid_t child = fork();
  if (child <= 0) {
    if (python == Python::kRunning) child == 0 ? PyOS_AfterFork_Child() : PyOS_AfterFork_Parent();
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

int run(const Config& config, Python python) {
  asio::io_context reactor(1);
  auto work = asio::make_work_guard(reactor);
  std::promise<int> end;
  bool told = false;
  const auto finish = [&](int code) {
    if (std::exchange(told, true)) return;
    end.set_value(code);
  };

  ServiceManager manager(reactor);  // before Python copies the environment
  if (python == Python::kRunning) {
    forget_environment();  // of which it has its copy already
    join_interpreter(config);
  } else {
    start_interpreter(config);
  }
  std::unique_ptr<bridge::Runtime> runtime;
  try {
    runtime = std::make_unique<bridge::Runtime>(reactor, config.runtime);
  } catch (const py::Error& error) {
    const auto what = error.describe();
    throw ConfigError("python: " + what.type + ": " + what.message);
  }
  std::string serve_failed;  // read once the reactor has ended
  std::unique_ptr<WebServer> web;
  if (config.web) {
    WebServer::Hooks hooks;
    hooks.failed = [&](std::string why) {
      serve_failed = std::move(why);
      finish(kBadSetting);
    };
    web = std::make_unique<WebServer>(reactor, *runtime, *config.web, std::move(hooks));
  }
  const auto ready = [&] {
    return (!config.distributed || runtime->node().ready()) && (!web || web->serving());
  };
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
    const auto until = std::chrono::steady_clock::now() + config.drain;
    const auto drain_node = [&, until] {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          until - std::chrono::steady_clock::now());
      runtime->drain(std::max(left, std::chrono::milliseconds(0)), [&] { finish(kStopped); });
    };
    // Requests that are running may want the node's peers, so these stay until they are answered.
    if (web)
      web->stop(config.drain, drain_node);
    else
      drain_node();
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

  Admin::Hooks admin_hooks;
  admin_hooks.not_ready = [&] {
    std::vector<std::string> reasons;
    if (draining) reasons.emplace_back("draining");
    if (config.distributed && !runtime->node().ready())
      reasons.emplace_back("not registered with epmd");
    if (web && !web->serving() && !draining) reasons.emplace_back("the web server does not serve");
    if (const auto* processes = runtime->worker_processes(); processes && processes->alive() == 0)
      reasons.emplace_back("no worker process is ready");
    return reasons;
  };
  admin_hooks.ask_python = [&](std::function<void()> answer) { runtime->loop().post(answer); };
  admin_hooks.metrics = [&] {
    ProgramState state{config.runtime.version, draining, runtime->node().certificate_end(), {}};
    if (web) state.web = web->counters();
    return metrics_of(*runtime, state);
  };
  const auto admin = std::make_shared<Admin>(reactor, std::move(admin_hooks));

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
      const std::uint16_t port = admin->start(Admin::address_of(config.admin));
      spdlog::info("admin: listening on port {}", port);
    }
    manager.start(ready);
  } catch (...) {
    runtime->stop();
    work.reset();
    PyEval_RestoreThread(main_thread);
    web.reset();
    runtime.reset();
    throw;
  }
  if (config.distributed && config.runtime.invoker.allow.open()) {
    spdlog::warn("peers may call everything; restrict them with --allow");
  }
  auto ended = end.get_future();
  std::thread thread([&] { reactor.run(); });
  if (web) web->start();
  const int code = ended.get();

  // A thread that never leaves an application's code cannot be waited for.
  if (code == kStoppedAtOnce || (web && web->blocked())) _exit(code);
  runtime->stop();
  reactor.stop();
  thread.join();
  const bool clean = runtime->pool().replaced() == 0 && (!web || web->clean());
  PyEval_RestoreThread(main_thread);
  web.reset();
  runtime.reset();
  if (!serve_failed.empty()) std::fprintf(stderr, "sidewinder: %s\n", serve_failed.c_str());
  // With a thread stuck in native code the interpreter cannot be taken down.
  if (!clean) {
    fflush(nullptr);
    _exit(code);
  }
  if (python == Python::kOurs && Py_FinalizeEx() < 0) spdlog::warn("python did not end cleanly");
  return code;
}

}  // namespace

int program(int argc, char** argv, Python python) {
  try {
    if (argc == 2 && std::string_view(argv[1]) == bridge::ProcessPool::kArgument)
      return run_worker_process(python);
    Config config = read_config(argc, argv);
    if (python == Python::kRunning)
      config.runtime.worker_command = {python_program(), "-m", "sidewinder"};
    forget_secrets();
    if (config.check) check_files(config);
    if (config.print || config.check) {
      std::fputs(describe(config).c_str(), stdout);
      return kStopped;
    }
    base::configure_logging(config.log_level, config.log_format, config.runtime.node.name);
    for (const auto& warning : config.warnings) spdlog::warn("{}", warning);
    become_init_if_first(python);
    return run(config, python);
  } catch (const Exit& exit) {
    return exit.code;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "sidewinder: %s\n", error.what());
    return kBadSetting;
  }
}

}  // namespace node_main
