#include "cnode/base/file.hpp"

#include <sys/stat.h>

namespace base {

FileStamp FileStamp::of(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return {};
  return {info.st_dev, info.st_ino, info.st_ctim, info.st_size};
}

bool FileStamp::operator==(const FileStamp& other) const {
  return device == other.device && inode == other.inode && size == other.size &&
         changed.tv_sec == other.changed.tv_sec && changed.tv_nsec == other.changed.tv_nsec;
}

bool open_to_others(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return false;
  if ((info.st_mode & (S_IROTH | S_IWOTH | S_IWGRP)) != 0) return true;
  return (info.st_mode & S_IRGRP) != 0 && info.st_uid != 0;
}

}  // namespace base
