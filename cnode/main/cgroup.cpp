#include "cnode/main/cgroup.hpp"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <sstream>
#include <string_view>
#include <utility>

namespace node_main {
namespace {

// Version 1 says "no limit" with a number close to the largest.
constexpr std::size_t kNoLimit = std::size_t{1} << 60;

std::optional<std::size_t> number_in(std::string_view text) {
  std::size_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end == text.data()) return std::nullopt;  // "max"
  return value;
}

std::optional<std::size_t> number_of(const std::string& path) {
  std::string text;
  std::ifstream file(path);
  if (!std::getline(file, text)) return std::nullopt;
  return number_in(text);
}

// `name value` in a file of such lines.
std::optional<std::size_t> line_of(const std::string& path, std::string_view name) {
  std::ifstream file(path);
  std::string text;
  while (std::getline(file, text)) {
    const std::string_view line = text;
    if (line.size() > name.size() && line.substr(0, name.size()) == name &&
        line[name.size()] == ' ')
      return number_in(line.substr(name.size() + 1));
  }
  return std::nullopt;
}

bool has_word(const std::string& list, std::string_view word) {
  std::istringstream in(list);
  std::string one;
  while (std::getline(in, one, ','))
    if (one == word) return true;
  return false;
}

}  // namespace

Cgroup::Cgroup(std::string root) : root_(std::move(root)) {
  if (root_.empty() || root_.back() != '/') root_ += '/';
  // hierarchy:controllers:path
  std::ifstream file(root_ + "proc/self/cgroup");
  std::string line, path_1, path_2;
  bool known_1 = false, known_2 = false;
  while (std::getline(file, line)) {
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (controllers.empty()) {
      known_2 = true;
      path_2 = line.substr(second + 1);
    } else if (has_word(controllers, "memory")) {
      known_1 = true;
      path_1 = line.substr(second + 1);
    }
  }
  if (!known_1 && !known_2) return;
  version_2_ = !known_1;
  const std::string base = root_ + (version_2_ ? "sys/fs/cgroup" : "sys/fs/cgroup/memory");
  const char* limit_file = version_2_ ? "/memory.max" : "/memory.limit_in_bytes";
  // In a container the path may be that of the host, of which only the end, or nothing, is mounted.
  std::string path = version_2_ ? path_2 : path_1;
  while (!path.empty() && path.back() == '/') path.pop_back();
  for (;;) {
    consider(base + path, limit_file);
    if (path.empty()) break;
    path.resize(std::min(path.rfind('/'), path.size() - 1));
  }
}

void Cgroup::consider(const std::string& directory, const char* limit_file) {
  const auto limit = number_of(directory + limit_file);
  if (!limit || *limit >= kNoLimit || (limit_ && *limit_ <= *limit)) return;
  limit_ = limit;
  directory_ = directory;
}

std::optional<std::size_t> Cgroup::in_use() const {
  if (!limit_) return std::nullopt;
  const auto used =
      number_of(directory_ + (version_2_ ? "/memory.current" : "/memory.usage_in_bytes"));
  if (!used) return std::nullopt;
  const auto pages =
      line_of(directory_ + "/memory.stat", version_2_ ? "inactive_file" : "total_inactive_file");
  return *used - std::min(*used, pages.value_or(0));
}

}  // namespace node_main
