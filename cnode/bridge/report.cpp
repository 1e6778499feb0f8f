#include "cnode/bridge/report.hpp"

#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <string>

#include "cnode/bridge/runtime.hpp"

namespace bridge {
namespace {

using Clock = std::chrono::steady_clock;

std::uint64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  std::uint64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

std::uint64_t processor_ms() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto ms = [](const timeval& time) {
    return static_cast<std::uint64_t>(time.tv_sec) * 1000 +
           static_cast<std::uint64_t>(time.tv_usec) / 1000;
  };
  return ms(usage.ru_utime) + ms(usage.ru_stime);
}

std::string platform() {
  utsname name{};
  if (uname(&name) != 0) return "unknown";
  return std::string(name.sysname) + " " + name.release + " " + name.machine;
}

std::int64_t now_us() {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now().time_since_epoch())
      .count();
}

// How often, and how long altogether in microseconds.
void write_times(etf::Writer& out, std::string_view name, const Histogram& times) {
  std::uint64_t count = 0;
  for (std::size_t i = 0; i <= Histogram::kBounds.size(); ++i) count += times.count(i);
  out.atom(name).tuple(2).unsigned_integer(count);
  out.unsigned_integer(static_cast<std::uint64_t>(times.sum() * 1e6));
}

// {Name, Ok, Error, Cancelled, Refused, TotalUs, LongestUs}
void write_function(etf::Writer& out, const CallMetrics::Function& function) {
  out.tuple(7).binary(function.name);
  for (const auto& count : function.results)
    out.unsigned_integer(count.load(std::memory_order_relaxed));
  out.unsigned_integer(function.run_ns.load(std::memory_order_relaxed) / 1000);
  out.unsigned_integer(function.longest_ns.load(std::memory_order_relaxed) / 1000);
}

void write_functions(etf::Writer& out, const CallMetrics& calls) {
  const std::size_t count = calls.functions();
  out.atom("functions").list(static_cast<std::uint32_t>(count + 1));
  for (std::size_t i = 0; i < count; ++i) write_function(out, calls.function(i));
  write_function(out, calls.other());
  out.nil();
}

}  // namespace

struct Report::Probe {
  std::atomic<std::int64_t> asked{0};  // when; 0: none is under way
  std::atomic<std::int64_t> took{-1};  // the last one; -1: there was none
};

Report::Report(Runtime& runtime) : runtime_(runtime), probe_(std::make_shared<Probe>()) {}

// Microseconds that a job waited for the loop, or has waited until now; `undefined` the first time.
void Report::write_lag(etf::Writer& out) {
  out.atom("loop_lag");
  const std::int64_t asked = probe_->asked.load(std::memory_order_acquire);
  const std::int64_t lag =
      asked != 0 ? now_us() - asked : probe_->took.load(std::memory_order_acquire);
  if (asked == 0) {
    probe_->asked.store(now_us(), std::memory_order_release);
    runtime_.loop().post([probe = probe_] {
      probe->took.store(now_us() - probe->asked.load(std::memory_order_acquire),
                        std::memory_order_release);
      probe->asked.store(0, std::memory_order_release);
    });
  }
  if (lag < 0)
    out.atom("undefined");
  else
    out.integer(lag);
}

void Report::write(etf::Writer& out, bool functions) {
  const CallRunner& pool = runtime_.runner();
  const ProcessPool* processes = runtime_.worker_processes();
  const CallMetrics& calls = runtime_.metrics();
  const auto uptime =
      std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - started_);
  const auto peers = runtime_.node().peers();
  const auto& budget = runtime_.budget();

  out.map(functions ? 23 : 22);
  out.atom("platform").binary(platform());
  out.atom("uptime").integer(uptime.count());
  out.atom("memory").unsigned_integer(resident_bytes());
  out.atom("cpu").unsigned_integer(processor_ms());
  out.atom("threads").unsigned_integer(pool.threads());
  out.atom("busy").unsigned_integer(pool.busy());
  out.atom("blocked").unsigned_integer(pool.blocked());
  out.atom("replaced").unsigned_integer(pool.replaced());
  out.atom("queue").unsigned_integer(pool.waiting());
  out.atom("calls").unsigned_integer(pool.completed());
  out.atom("refused").unsigned_integer(pool.refused());
  out.atom("tasks").unsigned_integer(runtime_.loop().tasks() +
                                     (processes != nullptr ? processes->tasks() : 0));
  out.atom("worker_processes").unsigned_integer(processes != nullptr ? processes->alive() : 0);
  out.atom("processes").unsigned_integer(runtime_.processes().size());
  out.atom("channels").unsigned_integer(runtime_.channels().open());
  out.atom("in_flight_bytes").unsigned_integer(budget ? budget->used() : 0);
  out.atom("links").list(static_cast<std::uint32_t>(peers.size()));
  for (const auto& peer : peers) out.atom(peer);
  if (!peers.empty()) out.nil();
  write_lag(out);
  write_times(out, "queue_time", calls.queue());
  write_times(out, "run_time", calls.run());
  write_times(out, "encode_time", calls.encode());
  write_times(out, "gil_time", runtime_.pool().gil_wait());
  if (functions) write_functions(out, calls);
}

}  // namespace bridge
