// Files that change under a running program, and those that only their owner may read.
#pragma once

#include <sys/types.h>

#include <ctime>
#include <string>

namespace base {

// What a path leads to at present. A mounted Secret is changed by a symbolic link that points
// elsewhere, which this shows as well.
struct FileStamp {
  dev_t device = 0;
  ino_t inode = 0;
  timespec changed{};
  off_t size = 0;

  static FileStamp of(const std::string& path);  // all zeros if nothing can be found there
  bool operator==(const FileStamp& other) const;
  bool operator!=(const FileStamp& other) const { return !(*this == other); }
  bool found() const { return inode != 0; }
};

// Whether others than its owner can read or change the file. Root's own that our group may read is
// fine: the way Kubernetes mounts a Secret.
bool open_to_others(const std::string& path);

}  // namespace base
