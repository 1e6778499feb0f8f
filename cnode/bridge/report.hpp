// Report: what a node says of itself to whoever asks {report, _}: one map, written by the reactor
// without the GIL, so that a node whose Python does not answer can still be looked at.
//
//   {report, summary | functions} ──▶ Router ──▶ write() ──▶ the map
//                                                   └── probe ──▶ loop thread: the time it took
//
// How late the loop is costs one job on it for each question, and none while nobody asks.
#pragma once

#include <chrono>
#include <memory>

#include "cnode/etf/writer.hpp"

namespace bridge {

class Runtime;

class Report {
 public:
  explicit Report(Runtime& runtime);

  // Reactor thread.
  void write(etf::Writer& out, bool functions);

 private:
  struct Probe;
  void write_lag(etf::Writer& out);

  Runtime& runtime_;
  const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  const std::shared_ptr<Probe> probe_;  // a job on the loop may outlive us
};

}  // namespace bridge
