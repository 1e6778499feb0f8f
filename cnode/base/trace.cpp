#include "cnode/base/trace.hpp"

#include <algorithm>

namespace base {
namespace {

thread_local std::string_view t_trace_id;
thread_local std::string_view t_span_id;

bool is_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool is_zero(std::string_view text) {
  return text.find_first_not_of('0') == std::string_view::npos;
}

// version-traceid-parentid-flags; later versions may say more behind that.
bool is_parent(std::string_view text) {
  constexpr std::size_t kLength = 55;
  if (text.size() < kLength || text.size() > TraceContext::kMaxParent) return false;
  const std::string_view version = text.substr(0, 2), trace = text.substr(3, 32),
                         span = text.substr(36, 16), flags = text.substr(53, 2);
  if (text[2] != '-' || text[35] != '-' || text[52] != '-') return false;
  if (!is_hex(version) || !is_hex(trace) || !is_hex(span) || !is_hex(flags)) return false;
  if (version == "ff" || is_zero(trace) || is_zero(span)) return false;
  if (text.size() == kLength) return true;
  const std::string_view rest = text.substr(kLength + 1);
  return version != "00" && text[kLength] == '-' &&
         std::all_of(rest.begin(), rest.end(), [](char c) { return c > ' ' && c <= '~'; });
}

bool is_state(std::string_view text) {
  return text.size() <= TraceContext::kMaxState &&
         std::all_of(text.begin(), text.end(),
                     [](char c) { return c == '\t' || (c >= ' ' && c <= '~'); });
}

}  // namespace

std::optional<TraceContext> TraceContext::of(std::string_view parent, std::string_view state) {
  if (!is_parent(parent)) return std::nullopt;
  return TraceContext(parent, is_state(state) ? state : std::string_view());
}

LogTrace::LogTrace(std::string_view trace_id, std::string_view span_id)
    : trace_before_(t_trace_id), span_before_(t_span_id) {
  t_trace_id = trace_id;
  t_span_id = span_id;
}

LogTrace::LogTrace(const TraceContext* trace)
    : LogTrace(trace == nullptr ? std::string_view() : trace->trace_id(),
               trace == nullptr ? std::string_view() : trace->span_id()) {}

LogTrace::~LogTrace() {
  t_trace_id = trace_before_;
  t_span_id = span_before_;
}

std::string_view LogTrace::trace_id() { return t_trace_id; }
std::string_view LogTrace::span_id() { return t_span_id; }

}  // namespace base
