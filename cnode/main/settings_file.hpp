// A file of settings: TOML, or JSON where its name ends with .json. Keys are the flags' names, with
// "_" as good as "-"; values are texts, numbers, booleans, or lists of these.
#pragma once

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace node_main {

// Says which setting is wrong, in one line.
class ConfigError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct FileValue {
  std::vector<std::string> values;
  bool is_list = false;
  std::string origin;  // FILE:LINE; FILE alone for JSON
};

// By flag name. Throws ConfigError with file and, for TOML, line.
std::map<std::string, FileValue> read_settings_file(const std::string& path);

}  // namespace node_main
