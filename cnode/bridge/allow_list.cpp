#include "cnode/bridge/allow_list.hpp"

#include <algorithm>
#include <array>

#include "cnode/bridge/lookup.hpp"

namespace bridge {
namespace {

std::vector<std::string> segments_of(std::string_view name) {
  std::vector<std::string> segments;
  std::size_t from = 0;
  for (;;) {
    const std::size_t dot = name.find('.', from);
    segments.emplace_back(name.substr(from, dot - from));
    if (dot == std::string_view::npos) return segments;
    from = dot + 1;
  }
}

bool segment_matches(const std::string& pattern, const std::string& segment) {
  if (pattern == segment) return true;
  return (pattern == "*" || pattern == "**") && !segment.empty() && segment.front() != '_';
}

bool matches(const std::vector<std::string>& pattern, const std::vector<std::string>& name) {
  const bool open_ended = pattern.back() == "**";
  if (name.size() < pattern.size() || (!open_ended && name.size() != pattern.size())) return false;
  for (std::size_t i = 0; i < name.size(); ++i) {
    const std::string& part = i < pattern.size() ? pattern[i] : pattern.back();
    if (!segment_matches(part, name[i])) return false;
  }
  return true;
}

constexpr std::array<std::string_view, 4> kEntryModules{"erlang._streams", "erlang._objects",
                                                        "erlang._contexts", "erlang._batch"};

}  // namespace

bool is_entry(std::string_view module, std::string_view function) {
  const bool plain =
      !function.empty() && function.front() != '_' && function.find('.') == std::string_view::npos;
  return plain &&
         std::find(kEntryModules.begin(), kEntryModules.end(), module) != kEntryModules.end();
}

AllowList::AllowList(std::vector<std::string> patterns) {
  for (const auto& pattern : patterns) patterns_.push_back(segments_of(pattern));
}

bool AllowList::allows(std::string_view module, std::string_view function) const {
  if (open() || is_entry(module, function)) return true;
  std::string name(module);
  name += '.';
  name += function;
  const auto segments = segments_of(name);
  for (const auto& pattern : patterns_) {
    if (matches(pattern, segments)) return true;
  }
  return false;
}

}  // namespace bridge
