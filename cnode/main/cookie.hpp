// Cookie: where the cluster's secret comes from, and what it is at present.
//
// One that comes from a file is read anew when the file has changed (a Secret is changed by a
// symbolic link that points elsewhere), so that new handshakes use the new one.
#pragma once

#include <string>

#include "cnode/base/file.hpp"

namespace node_main {

class Cookie {
 public:
  static Cookie of_file(std::string path);  // ConfigError if there is none to be had
  static Cookie of_text(const std::string& text, const char* setting);

  // The cookie that counts now. What can no longer be read stays as it was, and is logged once.
  // For one thread at a time.
  const std::string& current();

 private:
  static std::string read(const std::string& path);

  std::string path_;  // empty if it did not come from a file
  std::string text_;
  base::FileStamp stamp_;
};

}  // namespace node_main
