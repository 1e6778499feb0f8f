// The settings of the program: one table makes the flags, the environment variables, the keys of
// the file, --print-config and the tables of docs/configuration.md.
//
// A flag wins over its environment variable (SIDEWINDER_ and the flag's name in capitals), that
// over the file of --config, that over the default.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cnode/base/log.hpp"
#include "cnode/bridge/runtime.hpp"
#include "cnode/main/settings_file.hpp"

namespace node_main {

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

// What the web server serves, where and how; by the names of erlang_web.Options.
struct WebConfig {
  std::vector<std::pair<std::string, std::string>> mounts;  // prefix, MODULE:ATTRIBUTE
  std::vector<std::string> bind;
  std::vector<std::pair<const char*, std::string>> texts;
  std::vector<std::pair<const char*, bool>> switches;
  std::vector<std::pair<const char*, std::uint64_t>> numbers;
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
  std::string admin;
  std::optional<WebConfig> web;  // where there is something to serve
  bool distributed = true;       // a program that only serves is no node
  std::chrono::milliseconds drain{20'000};
  bool print = false;
  bool check = false;
  std::vector<std::string> warnings;  // for the log, once there is one
  bool stop_on_stdin_eof = false;
  bool capture = true;  // Python's output goes to the log
};

struct Exit {
  int code;
};

// Reads command line and environment. Throws ConfigError; Exit after --help or --version, or a
// command line that cannot be read (all of which have been printed).
Config read_config(int argc, char** argv);

// What a worker process has to know, as a term; and the settings in such a term.
std::string worker_settings(const Config& config);
Config worker_config(etf::Bytes term);

// The settings in force, a line each, with where they came from. The cookie is not among them.
std::string describe(const Config& config);

// Throws ConfigError for a file or folder that a setting names and that is not there.
void check_files(const Config& config);

// The table of all settings for the documentation, in Markdown.
std::string reference();

// The same as a JSON schema of the file of settings, from which the chart has its values.
std::string schema();

// Takes the cookies out of the environment, for Python code and whoever reads /proc shall not have
// them. Before there is another thread.
void forget_secrets();

}  // namespace node_main
