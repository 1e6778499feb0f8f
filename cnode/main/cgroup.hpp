// Cgroup: the memory that the control groups of this process leave it, versions 1 and 2.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

namespace node_main {

class Cgroup {
 public:
  // `root` is "/" but in tests. Looks the groups up; nothing is kept open.
  explicit Cgroup(std::string root = "/");

  // The smallest limit of the group and those above it; nothing where there is none.
  std::optional<std::size_t> limit() const { return limit_; }
  // What the group with that limit uses, without file pages that the kernel can drop.
  std::optional<std::size_t> in_use() const;

 private:
  void consider(const std::string& directory, const char* limit_file);

  std::string root_;
  bool version_2_ = false;
  std::optional<std::size_t> limit_;
  std::string directory_;  // of the group with the smallest limit
};

}  // namespace node_main
