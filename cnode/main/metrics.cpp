#include "cnode/main/metrics.hpp"

#include "cnode/py/python.hpp"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <initializer_list>
#include <string_view>
#include <utility>

#include "cnode/bridge/runtime.hpp"

namespace node_main {
namespace {

using Labels = std::initializer_list<std::pair<std::string_view, std::string_view>>;

// One family of samples after the other; each is begun by counter(), gauge() or histogram().
class Exposition {
 public:
  // With a value: a family of one sample without labels.
  void counter(std::string_view name, std::string_view help) { begin(name, help, "counter"); }
  void counter(std::string_view name, std::string_view help, double value) {
    counter(name, help);
    sample({}, value);
  }
  void gauge(std::string_view name, std::string_view help) { begin(name, help, "gauge"); }
  void gauge(std::string_view name, std::string_view help, double value) {
    gauge(name, help);
    sample({}, value);
  }
  void histogram(std::string_view name, std::string_view help) { begin(name, help, "histogram"); }

  void sample(Labels labels, double value) { line("", labels, {}, value); }
  void sample(const bridge::Histogram& times, Labels labels) {
    std::uint64_t count = 0;
    for (std::size_t i = 0; i < bridge::Histogram::kBounds.size(); ++i) {
      count += times.count(i);
      char bound[32];
      std::snprintf(bound, sizeof(bound), "%g",
                    static_cast<double>(bridge::Histogram::kBounds[i]) / 1e9);
      line("_bucket", labels, bound, static_cast<double>(count));
    }
    count += times.count(bridge::Histogram::kBounds.size());
    line("_bucket", labels, "+Inf", static_cast<double>(count));
    line("_sum", labels, {}, times.sum());
    line("_count", labels, {}, static_cast<double>(count));
  }
  std::string take() { return std::move(text_); }

 private:
  void begin(std::string_view name, std::string_view help, std::string_view type) {
    name_ = "sidewinder_";
    if (name.rfind("process_", 0) == 0) name_.clear();
    name_ += name;
    text_.append("# HELP ").append(name_).append(" ").append(help).append("\n# TYPE ");
    text_.append(name_).append(" ").append(type).append("\n");
  }
  void line(std::string_view suffix, Labels labels, std::string_view bound, double value) {
    text_.append(name_).append(suffix);
    char before = '{';
    for (const auto& [label, text] : labels) {
      text_.append(1, before).append(label).append("=\"").append(escaped(text)).append("\"");
      before = ',';
    }
    if (!bound.empty()) {
      text_.append(1, before).append("le=\"").append(bound).append("\"");
      before = ',';
    }
    if (before == ',') text_ += '}';
    char number[32];
    std::snprintf(number, sizeof(number), "%.17g", value);
    text_.append(" ").append(number).append("\n");
  }
  static std::string escaped(std::string_view text) {
    std::string out;
    for (const char c : text) {
      if (c == '\n') {
        out += "\\n";
        continue;
      }
      if (c == '"' || c == '\\') out += '\\';
      out += c;
    }
    return out;
  }

  std::string name_;
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

double resident_bytes(const std::string& process = "self") {
  std::ifstream file("/proc/" + process + "/statm");
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

double number(std::uint64_t value) { return static_cast<double>(value); }

void write_node(Exposition& out, dist::Node& node) {
  const dist::NodeCounters& counters = node.counters();
  const dist::Traffic traffic = node.traffic();
  const auto known = node.known_peers();
  const auto up =
      std::count_if(known.begin(), known.end(), [](const auto& one) { return one.second; });
  out.gauge("epmd_registered", "1 while the node is registered, or needs no epmd.",
            node.registered() ? 1 : 0);
  out.gauge("peers", "Links that are up, and connections that are not links yet.");
  out.sample({{"state", "up"}}, static_cast<double>(up));
  out.sample({{"state", "connecting"}}, number(node.connecting()));
  out.gauge("peer_up", "1 for a peer that is linked, 0 for one that is to be dialled and is not.");
  for (const auto& [peer, linked] : known) out.sample({{"peer", peer}}, linked ? 1 : 0);
  out.counter("links_opened_total", "Links that came up.", number(counters.links_opened.load()));
  out.counter("links_closed_total", "Links that ended.", number(counters.links_closed.load()));
  out.counter("bytes_total", "Bytes of all links.");
  out.sample({{"dir", "in"}}, number(traffic.bytes_in));
  out.sample({{"dir", "out"}}, number(traffic.bytes_out));
  out.counter("ticks_total", "Ticks, which links send that have nothing else to send.");
  out.sample({{"dir", "in"}}, number(traffic.ticks_in));
  out.sample({{"dir", "out"}}, number(traffic.ticks_out));
  const auto failures = [&](const dist::FailureCounter& counter) {
    for (std::size_t i = 0; i < base::kErrorCodes; ++i) {
      const auto code = static_cast<base::ErrorCode>(i);
      std::string reason(base::to_string(code));
      std::replace(reason.begin(), reason.end(), ' ', '_');
      out.sample({{"reason", reason}}, number(counter.load(code)));
    }
  };
  out.counter("handshake_failures_total", "Handshakes that led to no link.");
  failures(counters.handshakes_failed);
  out.counter("decode_rejects_total", "Frames and messages that were not accepted.");
  failures(counters.frames_rejected);
}

void write_calls(Exposition& out, const bridge::CallMetrics& calls) {
  out.counter("calls_total", "Calls that were answered or run to their end.");
  const auto results = [&](const bridge::CallMetrics::Function& function) {
    for (std::size_t i = 0; i < function.results.size(); ++i) {
      const std::uint64_t count = function.results[i].load(std::memory_order_relaxed);
      if (count == 0) continue;  // four lines for each of them would be mostly zeros
      out.sample({{"fn", function.name}, {"result", bridge::CallMetrics::kResults[i]}},
                 number(count));
    }
  };
  const std::size_t functions = calls.functions();
  for (std::size_t i = 0; i < functions; ++i) results(calls.function(i));
  results(calls.other());
  out.counter("calls_refused_total", "Calls that were refused before anybody looked at them.");
  for (std::size_t i = 0; i < bridge::CallMetrics::kRefusals.size(); ++i) {
    const auto why = static_cast<bridge::CallMetrics::Refusal>(i);
    out.sample({{"reason", bridge::CallMetrics::kRefusals[i]}}, number(calls.refusals(why)));
  }
  out.histogram("call_seconds", "How long calls waited, ran, and took to be encoded and sent.");
  out.sample(calls.queue(), {{"phase", "queue"}});
  out.sample(calls.run(), {{"phase", "run"}});
  out.sample(calls.encode(), {{"phase", "encode"}});
}

void write_worker_processes(Exposition& out, const bridge::ProcessPool& processes) {
  out.gauge("worker_processes", "Worker processes that take calls.", number(processes.alive()));
  out.counter("worker_process_deaths_total",
              "Worker processes that ended unasked, by signal; exit: by themselves.");
  for (const auto& [signal, count] : processes.deaths())
    out.sample({{"signal", signal}}, number(count));
  double bytes = 0;
  for (const pid_t process : processes.pids()) bytes += resident_bytes(std::to_string(process));
  out.gauge("worker_process_resident_bytes", "Resident memory of all worker processes.", bytes);
}

void write_workers(Exposition& out, bridge::Runtime& runtime) {
  const bridge::CallRunner& pool = runtime.runner();
  const bridge::ProcessPool* processes = runtime.worker_processes();
  const std::size_t tasks = processes != nullptr ? processes->tasks() : 0;
  out.gauge("queue_depth", "Calls that wait for a worker.", number(pool.waiting()));
  out.gauge("inflight", "Calls that run on a worker.", number(pool.busy()));
  if (const auto& budget = runtime.budget()) {
    out.gauge("inflight_bytes", "Bytes of calls that are not answered yet.",
              number(budget->used()));
    out.gauge("max_inflight_bytes", "How many there may be.", number(budget->limit()));
  }
  out.gauge("tasks", "Coroutines that run for a caller.", number(runtime.loop().tasks() + tasks));
  out.gauge("worker_threads", "Threads of workers, with those that wait for Erlang.",
            number(pool.threads()));
  out.gauge("workers_blocked", "Workers that wait for an answer from Erlang.",
            number(pool.blocked()));
  out.counter("python_worker_restarts_total",
              "Workers replaced because a cancelled call did not end.", number(pool.replaced()));
  out.histogram("gil_wait_seconds", "How long workers waited for the GIL, once for each batch.");
  out.sample(runtime.pool().gil_wait(), {});
  if (processes != nullptr) write_worker_processes(out, *processes);
  out.gauge("processes", "Python processes.", number(runtime.processes().size()));
  out.gauge("channels", "Open channels.", number(runtime.channels().open()));
}

void write_web(Exposition& out, const WebServer::Counters& web) {
  out.gauge("web_connections", "Connections to the web server.", number(web.connections));
  out.gauge("web_requests", "HTTP requests that are being answered.", number(web.requests));
  out.gauge("web_websockets", "WebSockets that are open.", number(web.websockets));
  out.counter("web_requests_total", "HTTP requests that reached an application.",
              number(web.requests_total));
  out.counter("web_refused_total", "HTTP requests the web server refused itself.",
              number(web.refused_total));
  out.counter("web_bytes_total", "Bytes of the web server's connections.");
  out.sample({{"dir", "in"}}, number(web.bytes_in_total));
  out.sample({{"dir", "out"}}, number(web.bytes_out_total));
}

}  // namespace

std::string metrics_of(bridge::Runtime& runtime, const ProgramState& program) {
  Exposition out;
  std::string python = Py_GetVersion();
  python.resize(std::min(python.find(' '), python.size()));
  out.gauge("build_info", "Constant 1, with the version and Python's.");
  out.sample({{"version", program.version}, {"python", python}}, 1);
  out.gauge("draining", "1 once the node was told to stop.", program.draining ? 1 : 0);
  if (program.certificate_expiry) {
    out.gauge("cert_expiry_seconds", "When the node's certificate ends, in seconds since 1970.",
              static_cast<double>(*program.certificate_expiry));
  }
  write_node(out, runtime.node());
  write_calls(out, runtime.metrics());
  write_workers(out, runtime);
  if (program.web) write_web(out, *program.web);
  out.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", resident_bytes());
  out.counter("process_cpu_seconds_total", "User and system CPU time spent in seconds.",
              processor_seconds());
  out.gauge("process_open_fds", "Number of open file descriptors.", open_descriptors());
  return out.take();
}

}  // namespace node_main
