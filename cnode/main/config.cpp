#include "cnode/main/config.hpp"

#include <netdb.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "cnode/dist/handshake.hpp"
#include "cnode/dist/tls.hpp"
#include "cnode/main/admin.hpp"
#include "cnode/main/cgroup.hpp"
#include "cnode/main/cookie.hpp"

#ifndef SIDEWINDER_VERSION
#define SIDEWINDER_VERSION "0"
#endif

namespace node_main {
namespace {

using Kind = Setting::Kind;

// Read before any other thread exists.
const char* environment(const char* name) {
  return std::getenv(name);  // NOLINT(concurrency-mt-unsafe)
}

std::string host_name() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) return "localhost";
  return name.data();
}

std::string full_host_name() {
  addrinfo hints{};
  hints.ai_flags = AI_CANONNAME;
  addrinfo* found = nullptr;
  std::string name = host_name();
  if (getaddrinfo(name.c_str(), nullptr, &hints, &found) != 0) return name;
  std::string full = found->ai_canonname != nullptr ? found->ai_canonname : name;
  freeaddrinfo(found);
  return full;
}

const std::string& one(const Config& config, std::string_view name) {
  static const std::string empty;
  const auto& values = config.values.at(std::string(name)).values;
  return values.empty() ? empty : values.back();
}

std::uint64_t number(const Config& config, const std::string& name, std::uint64_t low,
                     std::uint64_t high) {
  const std::string& text = one(config, name);
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < low || value > high) {
    throw ConfigError(name + ": '" + text + "' is no number from " + std::to_string(low) + " to " +
                      std::to_string(high));
  }
  return value;
}

bool on_or_off(const Config& config, const std::string& name) {
  const std::string& text = one(config, name);
  if (text == "on" || text == "true" || text == "1") return true;
  if (text == "off" || text == "false" || text == "0") return false;
  throw ConfigError(name + ": '" + text + "' is neither on nor off");
}

std::string home_path(const std::string& path) {
  if (path.rfind("~/", 0) != 0) return path;
  const char* home = environment("HOME");
  return std::string(home != nullptr ? home : "") + path.substr(1);
}

std::string credentials_cookie() {
  const char* directory = environment("CREDENTIALS_DIRECTORY");
  if (directory == nullptr || *directory == '\0') return {};
  const std::string path = std::string(directory) + "/cookie";
  return access(path.c_str(), F_OK) == 0 ? path : std::string();
}

// A file that was named, a variable, systemd's credential, a release's variable, the home
// directory's file: the first there is.
Cookie find_cookie(Config& config) {
  Value& file = config.values.at("cookie-file");
  if (file.origin != "default") return Cookie::of_file(home_path(one(config, "cookie-file")));
  const auto variable = [&](const char* name) {
    const char* text = environment(name);
    if (text == nullptr || *text == '\0') return false;
    file = {{"(not shown)"}, name};
    config.warnings.push_back(std::string("the cookie comes from ") + name +
                              ", where other programs may see it; better is a file");
    return true;
  };
  if (variable("SIDEWINDER_COOKIE"))
    return Cookie::of_text(environment("SIDEWINDER_COOKIE"), "SIDEWINDER_COOKIE");
  if (const std::string path = credentials_cookie(); !path.empty()) {
    file = {{path}, "CREDENTIALS_DIRECTORY"};
    return Cookie::of_file(path);
  }
  if (variable("RELEASE_COOKIE"))
    return Cookie::of_text(environment("RELEASE_COOKIE"), "RELEASE_COOKIE");
  return Cookie::of_file(home_path(one(config, "cookie-file")));
}

// What {name} stands for in names and addresses; ConfigError if it stands for nothing here.
std::string pod_value(const std::string& setting, const std::string& name) {
  const auto variable = [&](const char* which) -> std::string {
    const char* text = environment(which);
    if (text == nullptr || *text == '\0')
      throw ConfigError(setting + ": {" + name + "} needs the variable " + which);
    return text;
  };
  if (name == "hostname") return host_name();
  if (name == "fqdn") return full_host_name();
  if (name == "pod_ip") return variable("POD_IP");
  if (name == "pod_name") return variable("POD_NAME");
  if (name == "pod_namespace") return variable("POD_NAMESPACE");
  if (name == "pod_ip_dashed") {
    std::string address = variable("POD_IP");
    for (char& c : address) c = c == '.' || c == ':' ? '-' : c;
    return address;
  }
  throw ConfigError(setting + ": {" + name +
                    "} is none of hostname, fqdn, pod_ip, pod_ip_dashed, pod_name, pod_namespace");
}

std::string filled_in(const std::string& setting, const std::string& text) {
  std::string result;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text[at] == '{' ? text.find('}', at) : std::string::npos;
    if (end == std::string::npos) {
      result += text[at++];
    } else {
      result += pod_value(setting, text.substr(at + 1, end - at - 1));
      at = end + 1;
    }
  }
  return result;
}

void fill_in(Config& config) {
  for (const char* setting : {"name", "sname", "listen", "peer", "home", "admin", "bind"}) {
    for (std::string& value : config.values.at(setting).values) value = filled_in(setting, value);
  }
}

std::string node_name(const Config& config) {
  const std::string& name = one(config, "name");
  const std::string& sname = one(config, "sname");
  if (!name.empty() && !sname.empty()) throw ConfigError("name: give --name or --sname, not both");
  if (name.empty() && sname.empty())
    throw ConfigError("name: a node needs --name NAME@HOST or --sname NAME");
  if (!sname.empty()) {
    std::string host = host_name().substr(0, host_name().find('.'));
    if (sname == "undefined") return host;  // the first peer we dial names us
    std::string full = sname.find('@') == std::string::npos ? sname + "@" + host : sname;
    if (full.substr(full.find('@')).find('.') != std::string::npos) {
      throw ConfigError("sname: the host of a short name has no dots; use --name for '" + full +
                        "'");
    }
    if (!dist::is_node_name(full)) throw ConfigError("sname: '" + full + "' is no node name");
    return full;
  }
  if (name == "undefined") return full_host_name();
  std::string full = name.find('@') == std::string::npos ? name + "@" + full_host_name() : name;
  if (!dist::is_node_name(full)) throw ConfigError("name: '" + full + "' is no node name");
  if (full.substr(full.find('@')).find_first_of(".:") == std::string::npos) {
    throw ConfigError("name: the host of a long name has a dot; use --sname for '" + full + "'");
  }
  return full;
}

std::optional<std::uint32_t> whole_number(std::string_view text) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// BASE+ for a node: py12@host listens on the base plus 12, py@host on the base itself.
std::uint16_t computed_port(const std::string& setting, const std::string& text,
                            const std::string& node) {
  const auto base = whole_number(std::string_view(text).substr(0, text.size() - 1));
  if (!base) throw ConfigError(setting + ": '" + text + "' is no port and a +");
  const std::string alive = node.substr(0, node.find('@'));
  std::size_t digits = alive.size();
  while (digits > 0 && alive[digits - 1] >= '0' && alive[digits - 1] <= '9') --digits;
  const auto number = digits == alive.size() ? 0 : whole_number(alive.substr(digits));
  const std::uint64_t port = std::uint64_t{*base} + number.value_or(65'536);
  if (port == 0 || port > 65'535)
    throw ConfigError(setting + ": '" + text + "' makes no port for " + node);
  return static_cast<std::uint16_t>(port);
}

void read_ports(Config& config) {
  Value& setting = config.values.at("dist-port");
  const char* variable = environment("ERL_DIST_PORT");
  if (setting.origin == "default" && variable != nullptr && *variable != '\0')
    setting = {{variable}, "ERL_DIST_PORT"};
  auto& node = config.runtime.node;
  const std::string& text = one(config, "dist-port");
  if (!text.empty() && text.back() == '+') {
    node.first_port = node.last_port = computed_port("dist-port", text, node.name);
    return;
  }
  const std::size_t dash = text.find('-');
  const auto first = whole_number(std::string_view(text).substr(0, dash));
  const auto last = dash == std::string::npos ? first : whole_number(text.substr(dash + 1));
  if (!first || !last || *first > *last || *last > 65'535) {
    throw ConfigError("dist-port: '" + text + "' is no port, FIRST-LAST or BASE+");
  }
  node.first_port = static_cast<std::uint16_t>(*first);
  node.last_port = static_cast<std::uint16_t>(*last);
}

// Where a peer listens that was named without a port; 0: epmd knows.
std::uint16_t port_of_peer(const Config& config, const std::string& peer) {
  const std::string& text = one(config, "peer-port");
  if (text.empty()) return 0;
  if (text.back() == '+') return computed_port("peer-port", text, peer);
  return static_cast<std::uint16_t>(number(config, "peer-port", 1, 65'535));
}

dist::EpmdUse read_epmd(const Config& config) {
  const std::string& text = one(config, "epmd");
  if (text == "auto") return dist::EpmdUse::kAuto;
  if (text == "builtin") return dist::EpmdUse::kBuiltIn;
  if (text == "on" || text == "true" || text == "1") return dist::EpmdUse::kExternal;
  if (text == "off" || text == "false" || text == "0") return dist::EpmdUse::kNone;
  throw ConfigError("epmd: '" + text + "' is not on, auto, builtin or off");
}

// ERL_EPMD_PORT and ERL_EPMD_ADDRESS, as epmd itself takes them.
void read_epmd_address(Config& config) {
  auto& node = config.runtime.node;
  if (const char* port = environment("ERL_EPMD_PORT"); port != nullptr && *port != '\0') {
    const auto value = whole_number(port);
    if (!value || *value == 0 || *value > 65'535)
      throw ConfigError(std::string("ERL_EPMD_PORT: '") + port + "' is no port");
    node.epmd.port = static_cast<std::uint16_t>(*value);
  }
  const char* addresses = environment("ERL_EPMD_ADDRESS");
  if (addresses == nullptr || *addresses == '\0') return;
  std::stringstream parts(addresses);
  for (std::string part; std::getline(parts, part, ',');) {
    if (!part.empty()) node.epmd_addresses.push_back(part);
  }
  if (!node.epmd_addresses.empty()) node.epmd.host = node.epmd_addresses.front();
}

void read_peers(Config& config) {
  for (const auto& text : config.values.at("peer").values) {
    dist::PeerAddress peer;
    const std::size_t at = text.find('@');
    const std::size_t colon = text.rfind(':');
    peer.name = text;
    // name@host:port; an IPv6 address as host has colons of its own and needs brackets before a
    // port.
    const bool bracket = at != std::string::npos && at + 1 < text.size() && text[at + 1] == '[';
    const bool has_port = colon != std::string::npos && at != std::string::npos && colon > at &&
                          (bracket ? text[colon - 1] == ']' : text.find(':') == colon);
    if (has_port) {
      peer.name = text.substr(0, colon);
      const auto [end, error] =
          std::from_chars(text.data() + colon + 1, text.data() + text.size(), peer.port);
      if (error != std::errc{} || end != text.data() + text.size() || peer.port == 0) {
        throw ConfigError("peer: '" + text + "' has no valid port");
      }
    }
    if (bracket)
      peer.name.erase(std::remove_if(peer.name.begin(), peer.name.end(),
                                     [](char c) { return c == '[' || c == ']'; }),
                      peer.name.end());
    if (!dist::is_node_name(peer.name))
      throw ConfigError("peer: '" + text + "' is not NAME@HOST or NAME@HOST:PORT");
    if (peer.port == 0) peer.port = port_of_peer(config, peer.name);
    config.runtime.node.peers.push_back(std::move(peer));
  }
}

void read_tls(Config& config) {
  dist::TlsFiles files;
  files.certificate = home_path(one(config, "tls-cert"));
  files.key = home_path(one(config, "tls-key"));
  files.authorities = home_path(one(config, "tls-ca"));
  files.check_host = on_or_off(config, "tls-check-host");
  if (files.certificate.empty() && files.key.empty() && files.authorities.empty()) return;
  for (const char* needed : {"tls-cert", "tls-key", "tls-ca"}) {
    if (one(config, needed).empty())
      throw ConfigError(std::string(needed) +
                        ": TLS takes all of --tls-cert, --tls-key and --tls-ca");
  }
  try {
    config.runtime.node.tls = std::make_shared<dist::Tls>(std::move(files));
  } catch (const std::runtime_error& error) {
    throw ConfigError(error.what());
  }
}

std::string variable_of(const Setting& setting) {
  std::string variable = "SIDEWINDER_";
  for (const char* c = setting.name; *c != '\0'; ++c)
    variable += *c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(*c)));
  return variable;
}

// What the file says that the flag or SIDEWINDER_CONFIG names; nothing if neither does.
std::map<std::string, FileValue> read_file(const CLI::Option& option,
                                           const std::vector<std::string>& given) {
  std::string path;
  if (option.count() > 0) {
    path = given.back();
  } else if (const char* text = environment("SIDEWINDER_CONFIG"); text != nullptr) {
    path = text;
  }
  if (path.empty()) return {};
  auto file = read_settings_file(path);
  for (const auto& entry : file) {
    const std::string& name = entry.first;
    const auto known = [&](const Setting& setting) { return setting.name == name; };
    if (name == "config" || std::none_of(settings().begin(), settings().end(), known))
      throw ConfigError("config: " + entry.second.origin + ": there is no setting " + name);
  }
  return file;
}

// `sidewinder serve MODULE:ATTRIBUTE`: another way to say some of the settings, which all may stand
// behind it.
class ServeCommand {
 public:
  explicit ServeCommand(CLI::App& app)
      : command_(*app.add_subcommand("serve", "serve a web application over HTTP")) {
    command_.fallthrough();
    command_.footer("Every setting of sidewinder --help may follow, such as --bind and --mount.");
    command_.add_option("application", application_,
                        "MODULE:ATTRIBUTE, or MODULE:FACTORY() [the setting serve]");
    auto* asgi = command_.add_flag("--asgi", asgi_, "the same as --interface asgi");
    command_.add_flag("--wsgi", wsgi_, "the same as --interface wsgi")->excludes(asgi);
  }

  bool given() const { return command_.parsed(); }
  // The value it has for a setting; nothing if it says nothing of it.
  std::optional<std::string> value_of(std::string_view setting) const {
    if (setting == "serve" && !application_.empty()) return application_;
    if (setting == "interface" && asgi_) return "asgi";
    if (setting == "interface" && wsgi_) return "wsgi";
    return std::nullopt;
  }

 private:
  CLI::App& command_;
  std::string application_;
  bool asgi_ = false;
  bool wsgi_ = false;
};

// Whether the command line says `serve`.
bool read_values(Config& config, int argc, char** argv) {
  CLI::App app("Sidewinder: Python as a node of an Erlang cluster", "sidewinder");
  app.set_version_flag("--version", std::string("sidewinder ") + SIDEWINDER_VERSION);
  app.add_flag("--print-config", config.print,
               "print the settings in force and where each came from, then exit");
  app.add_flag("--check-config", config.check,
               "the same, and look whether the files and folders they name are there");
  app.add_flag_callback(
      "--print-reference",
      [] {
        std::fputs(reference().c_str(), stdout);
        throw Exit{0};
      },
      "print the table of all settings, then exit");
  app.add_flag_callback(
      "--print-schema",
      [] {
        std::fputs(schema().c_str(), stdout);
        throw Exit{0};
      },
      "print the JSON schema of the file of settings, then exit");
  std::map<std::string, std::vector<std::string>> given;
  std::map<std::string, CLI::Option*> options;
  for (const auto& setting : settings()) {
    std::string help = setting.help;
    if (*setting.fallback != '\0') help += std::string(" [") + setting.fallback + "]";
    auto* option = app.add_option(std::string("--") + setting.name, given[setting.name], help);
    option->type_name(setting.kind == Kind::kSwitch ? "on|off" : "TEXT");
    option->expected(1);
    option->allow_extra_args(false);
    option->multi_option_policy(setting.kind == Kind::kList ? CLI::MultiOptionPolicy::TakeAll
                                                            : CLI::MultiOptionPolicy::TakeLast);
    options[setting.name] = option;
  }
  const ServeCommand serve(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    throw Exit{code == 0 ? 0 : 2};
  }
  std::map<std::string, FileValue> file = read_file(*options["config"], given["config"]);
  for (const auto& setting : settings()) {
    Value value;
    const std::string variable = variable_of(setting);
    const auto in_file = file.find(setting.name);
    if (const auto said = serve.value_of(setting.name)) {
      value = {{*said}, "serve"};
    } else if (options[setting.name]->count() > 0) {
      value = {given[setting.name], "flag"};
    } else if (const char* text = environment(variable.c_str()); text != nullptr && *text != '\0') {
      value.origin = variable;
      if (setting.kind != Kind::kList) {
        value.values = {text};
      } else {
        std::stringstream parts(text);
        for (std::string part; std::getline(parts, part, ',');) {
          if (!part.empty()) value.values.push_back(part);
        }
      }
    } else if (in_file != file.end()) {
      if (in_file->second.is_list && setting.kind != Kind::kList)
        throw ConfigError("config: " + in_file->second.origin + ": " + setting.name +
                          " takes one value, not a list");
      value = {std::move(in_file->second.values), in_file->second.origin};
    } else if (*setting.fallback != '\0') {
      value.values = {setting.fallback};
    }
    config.values[setting.name] = std::move(value);
  }
  return serve.given();
}

std::string one_of(const Config& config, const std::string& name,
                   std::initializer_list<const char*> choices) {
  const std::string& text = one(config, name);
  std::string told;
  for (const char* choice : choices) {
    if (text == choice) return text;
    told += (told.empty() ? "" : ", ") + std::string(choice);
  }
  throw ConfigError(name + ": '" + text + "' is none of " + told);
}

// Nothing if there is nothing to serve.
std::optional<WebConfig> read_web(const Config& config) {
  WebConfig web;
  if (const std::string& application = one(config, "serve"); !application.empty())
    web.mounts.emplace_back("", application);
  for (const auto& mount : config.values.at("mount").values) {
    const std::size_t equals = mount.find('=');
    if (equals == std::string::npos || equals == 0 || mount.front() != '/')
      throw ConfigError("mount: '" + mount + "' is not /PREFIX=MODULE:ATTRIBUTE");
    web.mounts.emplace_back(mount.substr(0, equals), mount.substr(equals + 1));
  }
  web.bind = config.values.at("bind").values;
  web.texts = {{"interface", one_of(config, "interface", {"auto", "asgi", "wsgi"})},
               {"lifespan", one_of(config, "lifespan", {"auto", "on", "off"})},
               {"tls_cert", home_path(one(config, "web-tls-cert"))},
               {"tls_key", home_path(one(config, "web-tls-key"))}};
  const std::string& header = one(config, "web-server-header");
  web.texts.emplace_back("server_header", header == "none" ? "" : header);
  web.switches = {{"access_log", on_or_off(config, "access-log")},
                  {"proxy_protocol", on_or_off(config, "proxy-protocol")},
                  {"compress", on_or_off(config, "web-compress")}};
  constexpr std::uint64_t kGibibyte = 1 << 30;
  const auto limit = [&](const char* name, const char* setting, std::uint64_t low,
                         std::uint64_t high) {
    web.numbers.emplace_back(name, number(config, setting, low, high));
  };
  limit("backlog", "web-backlog", 1, 65'535);
  limit("max_line", "web-max-line", 16, kGibibyte);
  limit("max_head", "web-max-head", 16, kGibibyte);
  limit("max_headers", "web-max-headers", 1, 65'535);
  limit("max_body", "web-max-body", 0, std::uint64_t{1} << 62);
  limit("max_message", "web-max-message", 1, kGibibyte);
  limit("head_seconds", "web-head-timeout", 1, 86'400);
  limit("idle_seconds", "web-idle-timeout", 1, 86'400);
  limit("body_seconds", "web-body-timeout", 1, 86'400);
  limit("ping_seconds", "web-ping", 0, 86'400);
  limit("wsgi_threads", "wsgi-threads", 1, 1'024);
  if (web.mounts.empty()) return std::nullopt;
  return web;
}

// What the interpreter and those who call into it go by: in the node and in its worker processes.
void read_python(Config& config) {
  config.log_level = one(config, "log-level");
  const std::string& level = config.log_level;
  if (spdlog::level::from_str(level) == spdlog::level::off && level != "off") {
    throw ConfigError("log-level: '" + level +
                      "' is not trace, debug, info, warning, error, critical or off");
  }
  const std::string& format = one(config, "log-format");
  if (format != "text" && format != "json")
    throw ConfigError("log-format: '" + format + "' is neither text nor json");
  config.log_format = format == "json" ? base::LogFormat::kJson : base::LogFormat::kText;

  config.imports = config.values.at("import").values;
  config.paths = config.values.at("path").values;
  config.venv = one(config, "venv");
  config.runtime.pool.workers = number(config, "workers", 1, 1024);
  config.runtime.pool.max_workers = number(config, "max-workers", 2, 10'000);
  if (config.runtime.pool.max_workers <= config.runtime.pool.workers)
    throw ConfigError("max-workers: must be more than workers");
  config.runtime.pool.queue.items = number(config, "queue", 1, 100'000'000);
  config.runtime.pool.grace = std::chrono::milliseconds(number(config, "grace-ms", 10, 86'400'000));
  config.runtime.invoker.allow = bridge::AllowList(config.values.at("allow").values);
  config.runtime.invoker.eval = on_or_off(config, "eval");
  const std::string& binary = one(config, "binary");
  if (binary == "auto")
    config.runtime.invoker.binary = term::BinaryPolicy::kAuto;
  else if (binary == "str")
    config.runtime.invoker.binary = term::BinaryPolicy::kStr;
  else if (binary == "bytes")
    config.runtime.invoker.binary = term::BinaryPolicy::kBytes;
  else
    throw ConfigError("binary: '" + binary + "' is not auto, str or bytes");
  config.none_atom = one(config, "none");
  config.capture = on_or_off(config, "capture");
}

}  // namespace

const std::vector<Setting>& settings() {
  static const std::vector<Setting> table{
      {"name", "",
       "node name with a full host name or address: NAME@HOST; may contain {hostname}, {fqdn}, "
       "{pod_ip}, {pod_ip_dashed}, {pod_name}, {pod_namespace}, as may listen, peer, home, admin "
       "and bind; "
       "'undefined': the first peer we dial names us"},
      {"sname", "", "node name with a short host name: NAME or NAME@HOST; 'undefined' as above"},
      {"config", "", "file of these settings, TOML, or JSON if it ends with .json"},
      {"cookie-file", "~/.erlang.cookie",
       "file with the cookie; readable by its owner alone, or root's and readable by our group; "
       "read anew when it changes"},
      {"import", "", "module to import before the node joins; may be repeated", Kind::kList},
      {"path", "", "directory to look for modules in; may be repeated", Kind::kList},
      {"venv", "", "virtual environment to run in"},
      {"workers", "8", "threads for synchronous Python code"},
      {"processes", "0",
       "worker processes that run the calls, each with its own interpreter and as many threads as "
       "workers says; 0: the node's own process runs them"},
      {"max-workers", "1000",
       "the same with those that wait for an answer from Erlang, each of which another replaces"},
      {"home", "",
       "peer that erlang.call goes to where no peer is being served [the first that runs the "
       "application]"},
      {"listen", "",
       "address to listen on; may be repeated; none: only dial [what the name's host resolves to]",
       Kind::kList},
      {"dist-port", "0",
       "port to listen on, FIRST-LAST, or BASE+: the base plus the number at the end of the name "
       "before the @; 0: any; ERL_DIST_PORT stands in for it"},
      {"epmd", "on",
       "on: register with epmd and wait for it; auto: be the epmd where none answers; builtin: be "
       "it; off: neither, for a fixed --dist-port or a --peer"},
      {"peer-port", "",
       "where peers listen whose port is not given: PORT, or BASE+ as above [epmd knows]"},
      {"tls-cert", "",
       "PEM file of this node's certificate, with those between it and the authority's; with it "
       "all "
       "links are inside TLS, as a BEAM's with -proto_dist inet_tls; this file and the next two "
       "are "
       "read anew when they change"},
      {"tls-key", "", "PEM file of the key of that certificate, closed to others"},
      {"tls-ca", "", "PEM file of the authorities that may have signed a peer's certificate"},
      {"tls-check-host", "on",
       "whether a peer's certificate has to be for the host in its node name", Kind::kSwitch},
      {"peer", "",
       "node to connect to and stay connected with: NAME@HOST or NAME@HOST:PORT; may be repeated",
       Kind::kList},
      {"allow", "",
       "what peers may call: 'module.function', 'module.*', 'package.**'; may be repeated "
       "[everything]",
       Kind::kList},
      {"eval", "on", "whether peers may use eval and exec", Kind::kSwitch},
      {"none", "none", "the atom that None is sent as"},
      {"binary", "auto", "what a binary becomes: auto (str if it is UTF-8), str or bytes"},
      {"ticktime", "60", "net_ticktime of the cluster, in seconds"},
      {"queue", "100000", "calls that may wait for a worker"},
      {"max-message", "256", "largest message to take, in MiB, whole or in fragments"},
      {"max-inflight", "auto",
       "calls that are not answered yet may take so many MiB, those of one peer a quarter of it; "
       "auto: 1024, or a quarter of the control group's memory if that is less"},
      {"grace-ms", "5000",
       "how long a cancelled call may sit in native code before its worker is replaced"},
      {"drain-timeout", "20",
       "seconds accepted calls may take to end once the node is told to stop"},
      {"capture", "on",
       "Python's print, sys.stderr and logging go to the log, a line each; off: they go where "
       "Python sends them",
       Kind::kSwitch},
      {"admin", "",
       "address and port of /livez, /readyz, /startupz and /metrics: ADDRESS:PORT, or PORT on the "
       "loopback [off]"},
      {"serve", "",
       "web application to serve over HTTP, ASGI or WSGI: MODULE:ATTRIBUTE, or MODULE:FACTORY(); "
       "sidewinder serve says the same; without a name the program is no node then"},
      {"mount", "",
       "application for the paths below a prefix: /PREFIX=MODULE:ATTRIBUTE; may be repeated",
       Kind::kList},
      {"bind", "127.0.0.1:8000",
       "where the web server listens: HOST:PORT, [ADDRESS]:PORT, :PORT for all addresses, or "
       "unix:PATH; may be repeated",
       Kind::kList},
      {"interface", "auto", "what the applications are: auto, asgi or wsgi"},
      {"lifespan", "auto",
       "auto: applications are told of start and end if they understand it; on: they have to; off: "
       "they are not told"},
      {"access-log", "off",
       "a line of the log for each request, in the common log format, with the seconds it took",
       Kind::kSwitch},
      {"proxy-protocol", "off",
       "on: every web connection begins with a PROXY header, version 1 or 2, which says who the "
       "client is",
       Kind::kSwitch},
      {"web-tls-cert", "",
       "PEM file of the web server's certificate, with those between it and the authority's; with "
       "it it speaks HTTPS; this file and the key's are read anew when they change"},
      {"web-tls-key", "", "PEM file of the key of that certificate"},
      {"web-server-header", "sidewinder", "the Server header of answers; none: there is none"},
      {"web-backlog", "2048", "web connections that may wait to be accepted"},
      {"web-max-line", "8192",
       "longest first line of a request: method, target and version, in bytes; beyond it: 414"},
      {"web-max-head", "65536",
       "longest head of a request, in bytes; a longer one is answered with 431"},
      {"web-max-headers", "128", "most headers of a request; more are answered with 431"},
      {"web-max-body", "0",
       "largest body of a request, in bytes; a larger one is answered with 413; 0: no bound, as "
       "bodies are streamed"},
      {"web-max-message", "16777216",
       "largest WebSocket message, in bytes; a larger one ends the connection with 1009"},
      {"web-head-timeout", "10",
       "seconds a client has to send the head of a request, after which it is answered with 408"},
      {"web-idle-timeout", "5", "seconds a connection may wait for its next request"},
      {"web-body-timeout", "30",
       "seconds without a byte after which a client is cut off that should send its body or read "
       "its answer"},
      {"web-ping", "20",
       "seconds between pings to a WebSocket, which is closed if it says nothing for as long "
       "again; 0: no pings"},
      {"web-compress", "on", "whether WebSockets may use permessage-deflate", Kind::kSwitch},
      {"wsgi-threads", "8", "threads for WSGI applications, one for each request that is running"},
      {"log-level", "info", "trace, debug, info, warning, error, critical or off"},
      {"log-format", "text", "text or json"},
  };
  return table;
}

namespace {

// The bounds of what is in flight. With a control group nothing is let in that would take the
// process beyond four fifths of its memory.
void read_memory(Config& config) {
  constexpr std::size_t kMost = std::size_t{1} << 30;
  const Cgroup group;
  const auto memory = group.limit();
  std::size_t limit = kMost;
  if (one(config, "max-inflight") != "auto") {
    limit = number(config, "max-inflight", 1, 1 << 20) << 20;
  } else if (memory) {
    limit = std::clamp(*memory / 4, base::MemoryBudget::kAlways, kMost);
  }
  base::MemoryBudget::Left left;
  if (memory) {
    left = [group, ceiling = *memory / 5 * 4]() -> std::optional<std::size_t> {
      const auto used = group.in_use();
      if (!used) return std::nullopt;
      return ceiling - std::min(ceiling, *used);
    };
  }
  auto& node = config.runtime.node;
  node.budget = std::make_shared<base::MemoryBudget>(limit, std::move(left));
  node.peer_budget = std::max(limit / 4, base::MemoryBudget::kAlways);
}

}  // namespace

namespace {

// A program that only serves has the name that a BEAM without distribution has.
constexpr const char* kNoNode = "nonode@nohost";

void read_node(Config& config) {
  auto& node = config.runtime.node;
  node.name = node_name(config);
  auto cookie = std::make_shared<Cookie>(find_cookie(config));
  node.cookie = cookie->current();
  node.current_cookie = [cookie] { return cookie->current(); };
  node.listen = config.values.at("listen").values;
  read_ports(config);
  node.epmd_use = read_epmd(config);
  read_peers(config);
  read_tls(config);
  const bool named_by_peer = node.name.find('@') == std::string::npos;
  if (named_by_peer && node.peers.empty())
    throw ConfigError("name: a node that a peer shall name needs a --peer");
  if (node.listen == std::vector<std::string>{"none"}) {
    if (node.peers.empty()) throw ConfigError("listen: a node that only dials needs a --peer");
    node.listens = false;
    node.epmd_use = dist::EpmdUse::kNone;
  }
  if (node.epmd_use == dist::EpmdUse::kNone && node.first_port == 0 && node.peers.empty()) {
    throw ConfigError("dist-port: without epmd a node needs a fixed port or a --peer");
  }
  read_epmd_address(config);
}

void read_no_node(Config& config) {
  if (!config.values.at("peer").values.empty())
    throw ConfigError("peer: a program without a name connects to nobody; give --name or --sname");
  auto& node = config.runtime.node;
  node.name = kNoNode;
  node.listens = false;
  node.epmd_use = dist::EpmdUse::kNone;
  node.current_cookie = [] { return std::string(); };
}

}  // namespace

Config read_config(int argc, char** argv) {
  Config config;
  const bool serve = read_values(config, argc, argv);
  fill_in(config);
  auto& node = config.runtime.node;
  config.runtime.version = SIDEWINDER_VERSION;
  read_python(config);
  config.web = read_web(config);
  if (serve && !config.web)
    throw ConfigError("serve: an application is needed: sidewinder serve MODULE:ATTRIBUTE");
  // Where those who serve look for their application; what --path says comes first.
  if (config.web) config.paths.push_back(std::filesystem::current_path().string());
  config.distributed = !config.web || !one(config, "name").empty() || !one(config, "sname").empty();
  if (config.distributed)
    read_node(config);
  else
    read_no_node(config);
  node.max_message = number(config, "max-message", 1, 1024) << 20;
  read_memory(config);
  node.ticktime = std::chrono::seconds(number(config, "ticktime", 1, 86'400));

  config.runtime.home = one(config, "home");
  if (!config.runtime.home.empty() && !dist::is_node_name(config.runtime.home))
    throw ConfigError("home: '" + config.runtime.home + "' is no node name");
  config.admin = one(config, "admin");
  if (!config.admin.empty()) Admin::address_of(config.admin);  // so that a bad one is told at once
  config.runtime.processes = number(config, "processes", 0, 256);
  if (config.runtime.processes > 0) config.runtime.worker_settings = worker_settings(config);
  config.drain = std::chrono::seconds(number(config, "drain-timeout", 0, 86'400));
  if (const char* eof = environment("SIDEWINDER_STOP_ON_STDIN_EOF"); eof != nullptr) {
    config.stop_on_stdin_eof = std::string(eof) == "1";
  }
  return config;
}

namespace {

// Nothing of the node's own: not its cookie, nor where to find it.
constexpr std::array<const char*, 14> kForWorkers{
    "import", "path", "venv", "workers", "max-workers", "queue",     "grace-ms",
    "allow",  "eval", "none", "binary",  "capture",     "log-level", "log-format"};

}  // namespace

// [{Name, [Value, …]}, …]
std::string worker_settings(const Config& config) {
  etf::Buffer term;
  etf::Writer out(term);
  out.list(kForWorkers.size() + 1);
  for (const std::string name : kForWorkers) {
    auto values = config.values.at(name).values;
    // They start later, and Python code may go elsewhere meanwhile.
    if (name == "path" || name == "venv") {
      for (auto& value : values) value = std::filesystem::absolute(value).string();
    }
    out.tuple(2).binary(name).list(static_cast<std::uint32_t>(values.size()));
    for (const auto& value : values) out.binary(std::string_view(value));
    if (!values.empty()) out.nil();
  }
  out.tuple(2).binary(std::string_view("name")).list(1);
  out.binary(std::string_view(config.runtime.node.name)).nil().nil();
  return dist::keep(term.bytes());
}

Config worker_config(etf::Bytes term) {
  const auto wrong = [] { return ConfigError("worker process: settings that are none"); };
  const auto text = [](etf::Bytes bytes) {
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  };
  Config config;
  for (const auto& setting : settings()) config.values[setting.name] = Value{};
  etf::Reader in(term);
  auto count = in.list();
  if (!count) throw wrong();
  for (std::uint32_t i = 0; i < *count; ++i) {
    if (auto arity = in.tuple(); !arity || *arity != 2) throw wrong();
    auto name = in.binary();
    auto values = in.list();
    if (!name || !values) throw wrong();
    Value& value = config.values[text(*name)];
    for (std::uint32_t j = 0; j < *values; ++j) {
      auto one = in.binary();
      if (!one) throw wrong();
      value.values.push_back(text(*one));
    }
    if (*values == 0) continue;
    if (auto end = in.nil(); !end) throw wrong();
  }
  if (auto end = in.nil(); *count != 0 && !end) throw wrong();
  config.runtime.node.name = one(config, "name");
  read_python(config);
  return config;
}

void check_files(const Config& config) {
  const auto check = [](const char* setting, const std::string& path) {
    struct stat info {};
    if (stat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode))
      throw ConfigError(std::string(setting) + ": '" + path + "' is no folder");
  };
  const auto check_file = [](const char* setting, const std::string& path) {
    if (!path.empty() && access(path.c_str(), R_OK) != 0)
      throw ConfigError(std::string(setting) + ": cannot read '" + path + "'");
  };
  if (config.web) {
    for (const char* setting : {"web-tls-cert", "web-tls-key"})
      check_file(setting, home_path(one(config, setting)));
  }
  if (!config.venv.empty()) check("venv", config.venv);
  for (const auto& path : config.paths) check("path", path);
}

std::string reference() {
  std::string text = "| flag and key | variable | default | meaning |\n| --- | --- | --- | --- |\n";
  for (const auto& setting : settings()) {
    const std::string name = setting.name;
    const std::string fallback = setting.fallback;
    text += "| `" + name + "` | `" + variable_of(setting) + "` | " +
            (fallback.empty() ? "" : "`" + fallback + "`") + " | " + setting.help + " |\n";
  }
  return text;
}

std::string schema() {
  using Json = nlohmann::ordered_json;
  const Json scalar{"string", "integer"};
  Json properties = Json::object();
  for (const auto& setting : settings()) {
    const std::string fallback = setting.fallback;
    const bool counts = !fallback.empty() &&
                        fallback.find_first_not_of("0123456789") == std::string::npos &&
                        std::string_view(setting.name) != "dist-port";
    Json property{{"description", setting.help}};
    if (setting.kind == Kind::kList) {
      property["type"] = "array";
      property["items"] = Json{{"type", scalar}};
      property["default"] = Json::array();
    } else if (setting.kind == Kind::kSwitch) {
      property["type"] = "boolean";
      property["default"] = fallback == "on";
    } else if (counts) {
      property["type"] = "integer";
      property["default"] = std::stoull(fallback);
    } else {
      property["type"] = scalar;
      property["default"] = fallback;
    }
    if (std::string_view(setting.name) != "config") properties[setting.name] = std::move(property);
  }
  const Json all{{"$schema", "http://json-schema.org/draft-07/schema#"},
                 {"title", "The settings of a Sidewinder node"},
                 {"type", "object"},
                 {"additionalProperties", false},
                 {"properties", std::move(properties)}};
  return all.dump(2) + "\n";
}

void forget_secrets() {
  for (const char* name : {"SIDEWINDER_COOKIE", "RELEASE_COOKIE"}) {
    const char* text = environment(name);
    if (text == nullptr) continue;
    // The environment a process was started with stays readable where it lies.
    volatile char* place = const_cast<char*>(text);
    for (std::size_t i = std::strlen(text); i > 0; --i) place[i - 1] = '\0';
    unsetenv(name);  // NOLINT(concurrency-mt-unsafe)
  }
}

std::string describe(const Config& config) {
  std::string text;
  for (const auto& setting : settings()) {
    const Value& value = config.values.at(setting.name);
    std::string joined;
    for (const auto& part : value.values) joined += (joined.empty() ? "" : ",") + part;
    text += std::string(setting.name) + " = " + joined + "  (" + value.origin + ")\n";
  }
  return text;
}

}  // namespace node_main
