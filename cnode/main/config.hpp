// The settings of the program: one table makes the flags, the environment variables and
// --print-config.
//
// A flag wins over its environment variable (SIDEWINDER_ and the flag's name in capitals), that
// over the default.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "cnode/base/log.hpp"
#include "cnode/bridge/runtime.hpp"

namespace node_main {

// Says which setting is wrong, in one line.
class ConfigError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Setting {
  const char* name;      // as in --name
  const char* fallback;  // shown as the default; empty when there is none
  const char* help;
  enum class Kind { kText, kList, kSwitch } kind = Kind::kText;
};

const std::vector<Setting>& settings();

struct Value {
  std::vector<std::string> values;
  std::string origin = "default";
};

struct Config {
  std::map<std::string, Value> values;

  bridge::RuntimeConfig runtime;
  std::vector<std::string> imports;
  std::vector<std::string> paths;
  std::string venv;
  std::string log_level;
  base::LogFormat log_format = base::LogFormat::kText;
  std::string none_atom;
  std::chrono::milliseconds drain{20'000};
  bool print = false;
  bool stop_on_stdin_eof = false;
  bool capture = true;  // Python's output goes to the log
};

struct Exit {
  int code;
};

// Reads command line and environment. Throws ConfigError; Exit after --help or --version, or a
// command line that cannot be read (all of which have been printed).
Config read_config(int argc, char** argv);

// The settings in force, a line each, with where they came from. The cookie is not among them.
std::string describe(const Config& config);

}  // namespace node_main
