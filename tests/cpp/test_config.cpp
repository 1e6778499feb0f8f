#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cnode/main/config.hpp"
#include "tests/cpp/catch.hpp"

using node_main::Config;
using node_main::ConfigError;
using namespace std::chrono_literals;

namespace {

// A directory that goes away with its files.
class Directory {
 public:
  Directory() {
    std::string pattern = std::string(getenv("TMPDIR") != nullptr ? getenv("TMPDIR") : "/tmp") +
                          "/config-test-XXXXXX";
    REQUIRE(mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~Directory() {
    for (const auto& file : files_) unlink(file.c_str());
    rmdir(path_.c_str());
  }
  std::string file(const std::string& name, const std::string& text, mode_t mode) {
    const std::string path = path_ + "/" + name;
    std::ofstream(path, std::ios::binary) << text;
    REQUIRE(chmod(path.c_str(), mode) == 0);
    files_.push_back(path);
    return path;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::vector<std::string> files_;
};

// Sets environment variables for as long as it lives.
class Environment {
 public:
  Environment(std::initializer_list<std::pair<std::string, std::string>> variables) {
    for (const auto& [name, value] : variables) {
      const char* before = getenv(name.c_str());
      before_[name] = before != nullptr ? std::optional<std::string>(before) : std::nullopt;
      setenv(name.c_str(), value.c_str(), 1);
    }
  }
  ~Environment() {
    for (const auto& [name, value] : before_) {
      if (value)
        setenv(name.c_str(), value->c_str(), 1);
      else
        unsetenv(name.c_str());
    }
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  std::map<std::string, std::optional<std::string>> before_;
};

Config read(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "sidewinder");
  std::vector<char*> argv;
  for (auto& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  return node_main::read_config(static_cast<int>(arguments.size()), argv.data());
}

struct Fixture {
  Fixture()
      : cookie(directory.file("cookie", "secret\n", 0400)),
        isolated{{"ERL_EPMD_PORT", ""}, {"ERL_EPMD_ADDRESS", ""}} {}

  // A whole command line, but for what the test is about.
  Config with(std::vector<std::string> more) {
    std::vector<std::string> arguments{"--name", "n@127.0.0.1", "--cookie-file", cookie};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return read(std::move(arguments));
  }
  std::string error_with(const std::vector<std::string>& more) {
    try {
      with(more);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "no error";
  }
  std::string error_of(const std::vector<std::string>& arguments) {
    try {
      read(arguments);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "no error";
  }
  // The cookie of a file with this text and mode, or what is wrong with it.
  std::string cookie_of(const std::string& text, mode_t mode = 0400) {
    const std::string path = directory.file("other", text, mode);
    std::string result;
    try {
      result = read({"--name", "n@127.0.0.1", "--cookie-file", path}).runtime.node.cookie;
    } catch (const ConfigError& error) {
      result = error.what();
    }
    unlink(path.c_str());
    return result;
  }

  Directory directory;
  std::string cookie;
  Environment isolated;
};

int exit_code_of(const std::vector<std::string>& arguments) {
  try {
    read(arguments);
  } catch (const node_main::Exit& exit) {
    return exit.code;
  }
  return -1;
}

}  // namespace

// --- where a value comes from
// ------------------------------------------------------------------------------------

TEST_CASE_METHOD(Fixture, "without more than name and cookie everything has its default",
                 "[config]") {
  const Config config = with({});
  CHECK(config.runtime.node.name == "n@127.0.0.1");
  CHECK(config.runtime.node.cookie == "secret");
  CHECK(config.runtime.node.use_epmd);
  CHECK(config.runtime.node.first_port == 0);
  CHECK(config.runtime.node.last_port == 0);
  CHECK(config.runtime.node.epmd.port == 4369);
  CHECK(config.runtime.node.epmd.host == "127.0.0.1");
  CHECK(config.runtime.node.ticktime == 60s);
  CHECK(config.runtime.node.max_message == std::size_t{256} << 20);
  CHECK(config.runtime.node.listen.empty());
  CHECK(config.runtime.node.peers.empty());
  CHECK(config.runtime.pool.workers == 8);
  CHECK(config.runtime.pool.max_workers == 1000);
  CHECK(config.runtime.home.empty());
  CHECK(config.capture);
  CHECK(config.runtime.pool.queue.items == 100'000);
  CHECK(config.runtime.pool.grace == 5s);
  CHECK(config.runtime.invoker.allow.open());
  CHECK(config.runtime.invoker.eval);
  CHECK(config.runtime.invoker.binary == term::BinaryPolicy::kAuto);
  CHECK(config.none_atom == "none");
  CHECK(config.drain == 20s);
  CHECK(config.log_level == "info");
  CHECK(config.log_format == base::LogFormat::kText);
  CHECK_FALSE(config.print);
  CHECK_FALSE(config.stop_on_stdin_eof);
}

TEST_CASE_METHOD(Fixture, "a flag wins over the environment, and that over the default",
                 "[config]") {
  CHECK(with({}).values.at("workers").origin == "default");
  const Environment environment{{"SIDEWINDER_WORKERS", "3"}, {"SIDEWINDER_LOG_FORMAT", "json"}};
  const Config from_environment = with({});
  CHECK(from_environment.runtime.pool.workers == 3);
  CHECK(from_environment.values.at("workers").origin == "SIDEWINDER_WORKERS");
  CHECK(from_environment.log_format == base::LogFormat::kJson);
  const Config from_flag = with({"--workers", "5"});
  CHECK(from_flag.runtime.pool.workers == 5);
  CHECK(from_flag.values.at("workers").origin == "flag");
  CHECK(from_flag.values.at("log-format").origin == "SIDEWINDER_LOG_FORMAT");
}

TEST_CASE_METHOD(Fixture, "every setting can come from the environment", "[config]") {
  for (const auto& setting : node_main::settings()) {
    std::string variable = "SIDEWINDER_";
    for (const char c : std::string(setting.name))
      variable += c == '-' ? '_' : static_cast<char>(std::toupper(c));
    std::string value = setting.fallback;
    if (value.empty()) value = "x";
    const std::string name = setting.name;
    if (name == "name") value = "m@127.0.0.1";
    if (name == "peer" || name == "home") value = "p@127.0.0.1";
    if (name == "sname") continue;  // not beside a name
    if (name == "cookie-file") value = cookie;
    const Environment environment{{variable, value}};
    std::vector<std::string> arguments;
    if (name != "name") arguments.insert(arguments.end(), {"--name", "n@127.0.0.1"});
    if (name != "cookie-file") arguments.insert(arguments.end(), {"--cookie-file", cookie});
    CAPTURE(variable);
    const Config config = read(arguments);
    CHECK(config.values.at(name).values == std::vector<std::string>{value});
    CHECK(config.values.at(name).origin == variable);
  }
}

TEST_CASE_METHOD(Fixture, "an empty variable counts as none", "[config]") {
  const Environment environment{{"SIDEWINDER_WORKERS", ""}};
  CHECK(with({}).values.at("workers").origin == "default");
}

TEST_CASE_METHOD(Fixture,
                 "lists take each flag, or the parts between commas in the environment, not both",
                 "[config]") {
  const Environment environment(
      {{"SIDEWINDER_IMPORT", "one,two,,three"}, {"SIDEWINDER_ALLOW", "math.sqrt"}});
  CHECK(with({}).imports == std::vector<std::string>{"one", "two", "three"});
  CHECK(with({"--import", "four", "--import", "five"}).imports ==
        std::vector<std::string>{"four", "five"});
  const Config config = with({});
  CHECK(config.runtime.invoker.allow.allows("math", "sqrt"));
  CHECK_FALSE(config.runtime.invoker.allow.allows("math", "pow"));
}

TEST_CASE_METHOD(Fixture, "of a flag that is given twice the last counts", "[config]") {
  CHECK(with({"--workers", "2", "--workers", "4"}).runtime.pool.workers == 4);
}

TEST_CASE_METHOD(Fixture, "the settings in force are shown with their origin, and no cookie",
                 "[config]") {
  const Environment environment{{"SIDEWINDER_QUEUE", "7"}};
  const std::string text =
      node_main::describe(with({"--workers", "5", "--path", "a", "--path", "b"}));
  CHECK(text.find("workers = 5  (flag)\n") != std::string::npos);
  CHECK(text.find("queue = 7  (SIDEWINDER_QUEUE)\n") != std::string::npos);
  CHECK(text.find("ticktime = 60  (default)\n") != std::string::npos);
  CHECK(text.find("path = a,b  (flag)\n") != std::string::npos);
  CHECK(text.find("secret") == std::string::npos);
  CHECK(with({"--print-config"}).print);
}

TEST_CASE_METHOD(Fixture, "what each flag says arrives where it belongs", "[config]") {
  const Config config =
      with({"--workers",       "1",         "--listen",      "127.0.0.1", "--listen",   "::1",
            "--dist-port",     "9100-9105", "--epmd",        "off",       "--eval",     "off",
            "--none",          "nil",       "--binary",      "bytes",     "--ticktime", "8",
            "--queue",         "10",        "--max-message", "3",         "--grace-ms", "300",
            "--drain-timeout", "0",         "--log-level",   "debug",     "--venv",     "v",
            "--path",          "p"});
  CHECK(config.runtime.pool.workers == 1);
  CHECK(config.runtime.node.listen == std::vector<std::string>{"127.0.0.1", "::1"});
  CHECK(config.runtime.node.first_port == 9100);
  CHECK(config.runtime.node.last_port == 9105);
  CHECK_FALSE(config.runtime.node.use_epmd);
  CHECK_FALSE(config.runtime.invoker.eval);
  CHECK(config.none_atom == "nil");
  CHECK(config.runtime.invoker.binary == term::BinaryPolicy::kBytes);
  CHECK(config.runtime.node.ticktime == 8s);
  CHECK(config.runtime.pool.queue.items == 10);
  CHECK(config.runtime.node.max_message == std::size_t{3} << 20);
  CHECK(config.runtime.pool.grace == 300ms);
  CHECK(config.drain == 0s);
  CHECK(config.log_level == "debug");
  CHECK(config.venv == "v");
  CHECK(config.paths == std::vector<std::string>{"p"});
}

TEST_CASE_METHOD(Fixture, "Erlang's own variables for epmd are honoured", "[config]") {
  const Environment environment{{"ERL_EPMD_PORT", "4711"}, {"ERL_EPMD_ADDRESS", "::1,127.0.0.1"}};
  const Config config = with({});
  CHECK(config.runtime.node.epmd.port == 4711);
  CHECK(config.runtime.node.epmd.host == "::1");
  const Environment wrong{{"ERL_EPMD_PORT", "many"}};
  CHECK(error_with({}) == "ERL_EPMD_PORT: 'many' is no port");
}

// --- the command line itself
// -------------------------------------------------------------------------------------

TEST_CASE_METHOD(Fixture, "help and version end with 0, a command line that cannot be read with 2",
                 "[config]") {
  CHECK(exit_code_of({"--help"}) == 0);
  CHECK(exit_code_of({"--version"}) == 0);
  CHECK(exit_code_of({"--no-such-flag"}) == 2);
  CHECK(exit_code_of({"--workers"}) == 2);
  CHECK(exit_code_of({"stray"}) == 2);
}

// --- each bad setting
// --------------------------------------------------------------------------------------------

TEST_CASE_METHOD(Fixture, "each bad setting is named with its value", "[config]") {
  CHECK(error_with({"--workers", "0"}) == "workers: '0' is no number from 1 to 1024");
  CHECK(error_with({"--workers", "1025"}) == "workers: '1025' is no number from 1 to 1024");
  CHECK(error_with({"--workers", "4x"}) == "workers: '4x' is no number from 1 to 1024");
  CHECK(error_with({"--workers=-1"}) == "workers: '-1' is no number from 1 to 1024");
  CHECK(error_with({"--workers", "99999999999999999999"}).find("workers: ") == 0);
  CHECK(error_with({"--queue", "0"}).find("queue: '0'") == 0);
  CHECK(error_with({"--ticktime", "0"}).find("ticktime: '0'") == 0);
  CHECK(error_with({"--max-message", "1025"}).find("max-message: '1025'") == 0);
  CHECK(error_with({"--grace-ms", "1"}).find("grace-ms: '1'") == 0);
  CHECK(error_with({"--drain-timeout", "soon"}).find("drain-timeout: 'soon'") == 0);
  CHECK(error_with({"--log-format", "xml"}) == "log-format: 'xml' is neither text nor json");
  CHECK(error_with({"--epmd", "maybe"}) == "epmd: 'maybe' is neither on nor off");
  CHECK(error_with({"--eval", "maybe"}) == "eval: 'maybe' is neither on nor off");
  CHECK(error_with({"--binary", "text"}) == "binary: 'text' is not auto, str or bytes");
}

TEST_CASE_METHOD(Fixture, "a bad value in the environment is named as the setting", "[config]") {
  const Environment environment{{"SIDEWINDER_QUEUE", "many"}};
  CHECK(error_with({}) == "queue: 'many' is no number from 1 to 100000000");
}

TEST_CASE_METHOD(Fixture, "ports are one number or a range that rises", "[config]") {
  CHECK(with({"--dist-port", "9100"}).runtime.node.last_port == 9100);
  CHECK(with({"--dist-port", "65535"}).runtime.node.first_port == 65535);
  for (const char* wrong : {"x", "9100-", "-9100", "9105-9100", "65536", "9100-65536", "9100 ",
                            "9100-9105-9110", "1,2"}) {
    CAPTURE(wrong);
    CHECK(error_with({std::string("--dist-port=") + wrong}) ==
          std::string("dist-port: '") + wrong + "' is neither a port nor FIRST-LAST");
  }
}

TEST_CASE_METHOD(Fixture, "without epmd a node needs a fixed port or a peer", "[config]") {
  CHECK(error_with({"--epmd", "off"}) ==
        "dist-port: without epmd a node needs a fixed port or a --peer");
  CHECK(error_with({"--epmd", "off", "--dist-port", "9100"}) == "no error");
  CHECK(error_with({"--epmd", "off", "--peer", "p@127.0.0.1:9100"}) == "no error");
}

TEST_CASE_METHOD(Fixture, "peers are names, with a port where epmd shall not be asked",
                 "[config]") {
  const auto peers = with({"--peer", "a@127.0.0.1", "--peer", "b@host.example:9100", "--peer",
                           "c@[::1]:9101", "--peer", "d@::1"})
                         .runtime.node.peers;
  REQUIRE(peers.size() == 4);
  CHECK(peers[0].name == "a@127.0.0.1");
  CHECK(peers[0].port == 0);
  CHECK(peers[1].name == "b@host.example");
  CHECK(peers[1].port == 9100);
  CHECK(peers[2].name == "c@::1");
  CHECK(peers[2].port == 9101);
  CHECK(peers[3].name == "d@::1");
  CHECK(peers[3].port == 0);
  CHECK(error_with({"--peer", "nobody"}) == "peer: 'nobody' is not NAME@HOST or NAME@HOST:PORT");
  CHECK(error_with({"--peer", "@host"}) == "peer: '@host' is not NAME@HOST or NAME@HOST:PORT");
  for (const char* wrong : {"a@host:0", "a@host:65536", "a@host:x", "a@host:", "a@host:1x"}) {
    CAPTURE(wrong);
    CHECK(error_with({"--peer", wrong}) == std::string("peer: '") + wrong + "' has no valid port");
  }
}

// --- names
// -------------------------------------------------------------------------------------------------------

TEST_CASE_METHOD(Fixture, "a node has a long name or a short one, and one of them", "[config]") {
  const auto error = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--cookie-file", cookie});
    return error_of(arguments);
  };
  CHECK(error({}) == "name: a node needs --name NAME@HOST or --sname NAME");
  CHECK(error({"--name", "a@h.b", "--sname", "a"}) == "name: give --name or --sname, not both");
  CHECK(error({"--name", "a@short"}) ==
        "name: the host of a long name has a dot; use --sname for 'a@short'");
  CHECK(error({"--sname", "a@host.example"}) ==
        "sname: the host of a short name has no dots; use --name for 'a@host.example'");
  CHECK(error({"--name", "a@b@c.d"}) == "name: 'a@b@c.d' is no node name");
  CHECK(error({"--name", "@c.d"}) == "name: '@c.d' is no node name");
  CHECK(error({"--sname", "a b@c"}) == "sname: 'a b@c' is no node name");
  CHECK(error({"--name", std::string(250, 'a') + "@127.0.0.1"}).find("is no node name") !=
        std::string::npos);
  CHECK(error({"--name", "undefined"}) == "name: a node that a peer shall name needs a --peer");
  CHECK(error({"--sname", "undefined"}) == "name: a node that a peer shall name needs a --peer");
}

TEST_CASE_METHOD(Fixture, "a short name takes this host's, up to its first dot", "[config]") {
  std::array<char, 256> host{};
  REQUIRE(gethostname(host.data(), host.size() - 1) == 0);
  const std::string full = host.data();
  const auto name = [&](const std::string& sname) {
    return read({"--sname", sname, "--cookie-file", cookie}).runtime.node.name;
  };
  CHECK(name("a") == "a@" + full.substr(0, full.find('.')));
  CHECK(name("a@other") == "a@other");
  CHECK(read({"--sname", "undefined", "--peer", "p@h:1", "--cookie-file", cookie})
            .runtime.node.name == full.substr(0, full.find('.')));
}

TEST_CASE_METHOD(Fixture, "a name with an IPv6 address as host is a long name", "[config]") {
  CHECK(read({"--name", "a@::1", "--cookie-file", cookie}).runtime.node.name == "a@::1");
}

// --- the cookie
// --------------------------------------------------------------------------------------------------

TEST_CASE_METHOD(Fixture, "a cookie file's line ends are not part of the cookie", "[config]") {
  CHECK(cookie_of("abc") == "abc");
  CHECK(cookie_of("abc\n") == "abc");
  CHECK(cookie_of("abc\r\n") == "abc");
  CHECK(cookie_of("abc \n\n") == "abc");
  CHECK(cookie_of(std::string(255, 'x')) == std::string(255, 'x'));
}

TEST_CASE_METHOD(Fixture, "a cookie file that others can read is refused", "[config]") {
  CHECK(cookie_of("abc", 0600) == "abc");
  for (const mode_t mode : {0404, 0644, 0606, 0420, 0460}) {
    CAPTURE(mode);
    CHECK(cookie_of("abc", mode).find("can be read by others; make it 0400") != std::string::npos);
  }
}

TEST_CASE_METHOD(Fixture, "a cookie file without a cookie is refused", "[config]") {
  CHECK(cookie_of("").find("cookie-file: ") == 0);
  CHECK(cookie_of("\n \n").find("cookie-file: ") == 0);
  CHECK(cookie_of("\n \n").find("is empty") != std::string::npos);
  CHECK(cookie_of(std::string(256, 'x')) == "cookie-file: a cookie has at most 255 bytes");
  const std::string missing = directory.path() + "/missing";
  CHECK(error_of({"--name", "n@127.0.0.1", "--cookie-file", missing}) ==
        "cookie-file: cannot read '" + missing + "'");
}

TEST_CASE_METHOD(Fixture, "without a flag the cookie is that of the home directory", "[config]") {
  const std::string path = directory.file(".erlang.cookie", "at home", 0400);
  const Environment environment{{"HOME", directory.path()}};
  CHECK(read({"--name", "n@127.0.0.1"}).runtime.node.cookie == "at home");
}

TEST_CASE_METHOD(Fixture, "the end of standard input ends the node only where that was asked for",
                 "[config]") {
  const Environment environment{{"SIDEWINDER_STOP_ON_STDIN_EOF", "1"}};
  CHECK(with({}).stop_on_stdin_eof);
  const Environment zero{{"SIDEWINDER_STOP_ON_STDIN_EOF", "0"}};
  CHECK_FALSE(with({}).stop_on_stdin_eof);
}
