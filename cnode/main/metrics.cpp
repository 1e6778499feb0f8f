#include "cnode/main/metrics.hpp"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string_view>

#include "cnode/bridge/runtime.hpp"

namespace node_main {
namespace {

class Exposition {
 public:
  void counter(std::string_view name, std::string_view help, double value) {
    head(name, help, "counter");
    sample(name, {}, value);
  }
  void gauge(std::string_view name, std::string_view help, double value,
             std::string_view labels = {}) {
    head(name, help, "gauge");
    sample(name, labels, value);
  }
  void head(std::string_view name, std::string_view help, std::string_view type) {
    text_.append("# HELP ").append(name).append(" ").append(help).append("\n# TYPE ");
    text_.append(name).append(" ").append(type).append("\n");
  }
  void sample(std::string_view name, std::string_view labels, double value) {
    char number[32];
    std::snprintf(number, sizeof(number), "%.17g", value);
    text_.append(name).append(labels).append(" ").append(number).append("\n");
  }
  std::string take() { return std::move(text_); }

 private:
  std::string text_;
};

double open_descriptors() {
  DIR* directory = opendir("/proc/self/fd");
  if (directory == nullptr) return 0;
  int count = -3;                                 // ".", ".." and this one
  while (readdir(directory) != nullptr) ++count;  // NOLINT(concurrency-mt-unsafe): its own stream
  closedir(directory);
  return count;
}

double resident_bytes() {
  std::ifstream file("/proc/self/statm");
  double size = 0, resident = 0;
  file >> size >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

double processor_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace

std::string metrics_of(bridge::Runtime& runtime, const char* version, bool draining) {
  Exposition out;
  const auto number = [](auto value) { return static_cast<double>(value); };
  bridge::WorkerPool& pool = runtime.pool();
  const dist::NodeCounters& counters = runtime.node().counters();
  out.gauge("sidewinder_build_info", "Constant 1, with the version.", 1,
            "{version=\"" + std::string(version) + "\"}");
  out.gauge("sidewinder_epmd_registered", "1 while the node is registered, or needs no epmd.",
            runtime.node().registered() ? 1 : 0);
  out.gauge("sidewinder_draining", "1 once the node was told to stop.", draining ? 1 : 0);
  out.gauge("sidewinder_peers", "Links that are up.", number(runtime.node().peers().size()));
  out.counter("sidewinder_links_opened_total", "Links that came up.",
              number(counters.links_opened.load()));
  out.counter("sidewinder_links_closed_total", "Links that ended.",
              number(counters.links_closed.load()));
  out.counter("sidewinder_handshake_failures_total", "Handshakes that led to no link.",
              number(counters.handshakes_failed.load()));
  out.counter("sidewinder_decode_rejects_total", "Frames and messages that were not accepted.",
              number(counters.frames_rejected.load()));
  out.counter("sidewinder_calls_completed_total", "Calls that workers took from the queue.",
              number(pool.completed()));
  out.counter("sidewinder_calls_refused_total", "Calls refused because the queue was full.",
              number(pool.refused()));
  out.gauge("sidewinder_queue_depth", "Calls that wait for a worker.", number(pool.waiting()));
  out.gauge("sidewinder_inflight", "Calls that run on a worker.", number(pool.busy()));
  out.gauge("sidewinder_tasks", "Coroutines that run for a caller.",
            number(runtime.loop().tasks()));
  out.gauge("sidewinder_worker_threads", "Threads of workers, with those that wait for Erlang.",
            number(pool.threads()));
  out.gauge("sidewinder_workers_blocked", "Workers that wait for an answer from Erlang.",
            number(pool.blocked()));
  out.counter("sidewinder_python_worker_restarts_total",
              "Workers replaced because a cancelled call did not end.", number(pool.replaced()));
  out.gauge("sidewinder_processes", "Python processes.", number(runtime.processes().size()));
  out.gauge("sidewinder_channels", "Open channels.", number(runtime.channels().open()));
  out.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", resident_bytes());
  out.counter("process_cpu_seconds_total", "User and system CPU time spent in seconds.",
              processor_seconds());
  out.gauge("process_open_fds", "Number of open file descriptors.", open_descriptors());
  return out.take();
}

}  // namespace node_main
