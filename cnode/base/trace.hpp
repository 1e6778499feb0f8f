// Trace context (W3C): the traceparent that came with a call, and what the log says of it.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace base {

class TraceContext {
 public:
  static constexpr std::size_t kMaxParent = 256;  // bytes
  static constexpr std::size_t kMaxState = 512;

  // Nothing for what is no traceparent: the call goes on without. A tracestate that is none is
  // left out.
  static std::optional<TraceContext> of(std::string_view parent, std::string_view state = {});

  const std::string& parent() const { return parent_; }
  const std::string& state() const { return state_; }
  std::string_view trace_id() const { return std::string_view(parent_).substr(3, 32); }
  std::string_view span_id() const { return std::string_view(parent_).substr(36, 16); }

 private:
  TraceContext(std::string_view parent, std::string_view state) : parent_(parent), state_(state) {}

  std::string parent_;
  std::string state_;
};

// While it lives, lines that this thread logs carry these ids. They nest. The texts must outlive
// it.
class LogTrace {
 public:
  LogTrace(std::string_view trace_id, std::string_view span_id);
  explicit LogTrace(const TraceContext* trace);  // nullptr: none
  ~LogTrace();
  LogTrace(const LogTrace&) = delete;
  LogTrace& operator=(const LogTrace&) = delete;

  // Of this thread; empty where there are none.
  static std::string_view trace_id();
  static std::string_view span_id();

 private:
  std::string_view trace_before_, span_before_;
};

}  // namespace base
