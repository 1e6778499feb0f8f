#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cnode/main/config.hpp"
#include "cnode/main/cookie.hpp"
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
        isolated{{"ERL_EPMD_PORT", ""},
                 {"ERL_EPMD_ADDRESS", ""},
                 {"CREDENTIALS_DIRECTORY", ""},
                 {"SIDEWINDER_COOKIE", ""},
                 {"RELEASE_COOKIE", ""}} {}

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
  CHECK(config.runtime.node.epmd_use == dist::EpmdUse::kExternal);
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
    // All three together, and files there have to be.
    if (name == "tls-cert" || name == "tls-key" || name == "tls-ca") continue;
    if (name == "peer-port") value = "4711";
    if (name == "cookie-file") value = cookie;
    if (name == "admin") value = "127.0.0.1:0";
    if (name == "serve") value = "shop:app";
    if (name == "mount") value = "/shop=shop:app";
    if (name == "config") value = directory.file("empty.toml", "", 0644);
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

TEST_CASE_METHOD(Fixture, "a worker process is told how to run Python, and nothing of the cookie",
                 "[config]") {
  const Config config = with({"--processes", "2", "--workers", "3", "--allow", "math.*", "--eval",
                              "off", "--import", "a", "--import", "b", "--path", "/x/y"});
  CHECK(config.runtime.processes == 2);
  const std::string& term = config.runtime.worker_settings;
  CHECK(term.find("secret") == std::string::npos);
  CHECK(term.find(cookie) == std::string::npos);
  const etf::Bytes bytes{reinterpret_cast<const std::uint8_t*>(term.data()), term.size()};
  const Config told = node_main::worker_config(bytes);
  CHECK(told.runtime.pool.workers == 3);
  CHECK(told.runtime.node.name == "n@127.0.0.1");
  CHECK(told.runtime.node.cookie.empty());
  CHECK_FALSE(told.runtime.invoker.eval);
  CHECK(told.runtime.invoker.allow.allows("math", "sqrt"));
  CHECK_FALSE(told.runtime.invoker.allow.allows("os", "getpid"));
  CHECK(told.imports == std::vector<std::string>{"a", "b"});
  CHECK(told.paths == std::vector<std::string>{"/x/y"});
  for (std::size_t size = 0; size < bytes.size(); ++size)
    CHECK_THROWS(node_main::worker_config(bytes.first(size)));
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
      with({"--workers",       "1",         "--listen",       "127.0.0.1", "--listen",   "::1",
            "--dist-port",     "9100-9105", "--epmd",         "off",       "--eval",     "off",
            "--none",          "nil",       "--binary",       "bytes",     "--ticktime", "8",
            "--queue",         "10",        "--max-message",  "3",         "--grace-ms", "300",
            "--drain-timeout", "0",         "--log-level",    "debug",     "--venv",     "v",
            "--path",          "p",         "--max-inflight", "12"});
  CHECK(config.runtime.pool.workers == 1);
  CHECK(config.runtime.node.listen == std::vector<std::string>{"127.0.0.1", "::1"});
  CHECK(config.runtime.node.first_port == 9100);
  CHECK(config.runtime.node.last_port == 9105);
  CHECK(config.runtime.node.epmd_use == dist::EpmdUse::kNone);
  CHECK_FALSE(config.runtime.invoker.eval);
  CHECK(config.none_atom == "nil");
  CHECK(config.runtime.invoker.binary == term::BinaryPolicy::kBytes);
  CHECK(config.runtime.node.ticktime == 8s);
  CHECK(config.runtime.pool.queue.items == 10);
  CHECK(config.runtime.node.max_message == std::size_t{3} << 20);
  CHECK(config.runtime.node.budget->limit() == std::size_t{12} << 20);
  CHECK(config.runtime.node.peer_budget == std::size_t{3} << 20);
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

// --- serving
// -------------------------------------------------------------------------------------

TEST_CASE_METHOD(Fixture, "without an application nothing is served", "[config]") {
  CHECK_FALSE(with({}).web);
  CHECK_FALSE(with({"--bind", "127.0.0.1:1", "--wsgi-threads", "3"}).web);
  CHECK(with({}).distributed);
}

TEST_CASE_METHOD(Fixture, "serve without a name is no node and needs no cookie", "[config]") {
  const Config config = read({"serve", "shop:app", "--cookie-file", "/nowhere"});
  REQUIRE(config.web);
  CHECK(config.web->mounts == std::vector<std::pair<std::string, std::string>>{{"", "shop:app"}});
  CHECK(config.values.at("serve").origin == "serve");
  CHECK_FALSE(config.distributed);
  CHECK_FALSE(config.runtime.node.listens);
  CHECK(config.runtime.node.epmd_use == dist::EpmdUse::kNone);
  CHECK(config.runtime.node.name == "nonode@nohost");
  CHECK(config.runtime.node.cookie.empty());
}

TEST_CASE_METHOD(Fixture, "a node with a name serves, too, whichever way it is told what",
                 "[config]") {
  for (const auto& way : {std::vector<std::string>{"--serve", "shop:app"},
                          std::vector<std::string>{"serve", "shop:app"}}) {
    const Config config = with(way);
    CHECK(config.web);
    CHECK(config.distributed);
    CHECK(config.runtime.node.name == "n@127.0.0.1");
    CHECK(config.runtime.node.cookie == "secret");
  }
}

TEST_CASE_METHOD(Fixture, "what stands behind serve wins over the environment", "[config]") {
  const Environment environment{{"SIDEWINDER_SERVE", "other:app"},
                                {"SIDEWINDER_INTERFACE", "asgi"},
                                {"SIDEWINDER_BIND", "127.0.0.1:1,unix:/x"}};
  const Config config = read({"serve", "shop:app", "--wsgi", "--mount", "/a=x:y", "--mount",
                              "/b=x:z()", "--web-body-timeout", "7", "--access-log", "on"});
  REQUIRE(config.web);
  CHECK(config.web->mounts == std::vector<std::pair<std::string, std::string>>{
                                  {"", "shop:app"}, {"/a", "x:y"}, {"/b", "x:z()"}});
  CHECK(config.web->bind == std::vector<std::string>{"127.0.0.1:1", "unix:/x"});
  const auto value = [](const auto& pairs, std::string_view name) {
    for (const auto& [key, found] : pairs)
      if (key == name) return found;
    throw std::out_of_range(std::string(name));
  };
  CHECK(value(config.web->texts, "interface") == "wsgi");
  CHECK(value(config.web->numbers, "body_seconds") == 7);
  CHECK(value(config.web->numbers, "max_head") == 65'536);
  CHECK(value(config.web->switches, "access_log"));
  CHECK_FALSE(value(config.web->switches, "proxy_protocol"));
  CHECK(read({"serve"}).web->mounts.front().second == "other:app");
}

TEST_CASE_METHOD(Fixture, "the working directory is looked in last of what is said to be",
                 "[config]") {
  const auto here = std::filesystem::current_path().string();
  CHECK(read({"serve", "shop:app", "--path", "/x"}).paths == std::vector<std::string>{"/x", here});
  CHECK(with({"--path", "/x"}).paths == std::vector<std::string>{"/x"});
}

TEST_CASE_METHOD(Fixture, "what cannot be served is one line that names the setting", "[config]") {
  CHECK(error_of({"serve"}) ==
        "serve: an application is needed: sidewinder serve MODULE:ATTRIBUTE");
  CHECK(error_with({"--mount", "shop:app"}) == "mount: 'shop:app' is not /PREFIX=MODULE:ATTRIBUTE");
  CHECK(error_with({"--mount", "=shop:app"}) ==
        "mount: '=shop:app' is not /PREFIX=MODULE:ATTRIBUTE");
  CHECK(error_with({"--interface", "fcgi"}) == "interface: 'fcgi' is none of auto, asgi, wsgi");
  CHECK(error_with({"--lifespan", "x"}) == "lifespan: 'x' is none of auto, on, off");
  CHECK(error_with({"--wsgi-threads", "0"}) == "wsgi-threads: '0' is no number from 1 to 1024");
  CHECK(error_of({"serve", "shop:app", "--peer", "p@127.0.0.1"}) ==
        "peer: a program without a name connects to nobody; give --name or --sname");
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
  CHECK(error_with({"--max-inflight", "0"}).find("max-inflight: '0' is no number from 1 to") == 0);
  CHECK(error_with({"--max-inflight", "lots"}).find("max-inflight: 'lots'") == 0);
  CHECK(error_with({"--grace-ms", "1"}).find("grace-ms: '1'") == 0);
  CHECK(error_with({"--drain-timeout", "soon"}).find("drain-timeout: 'soon'") == 0);
  CHECK(error_with({"--log-format", "xml"}) == "log-format: 'xml' is neither text nor json");
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
          std::string("dist-port: '") + wrong + "' is no port, FIRST-LAST or BASE+");
  }
}

TEST_CASE_METHOD(Fixture, "a port may be computed from the number at the end of a name",
                 "[config]") {
  const auto port = [&](const std::string& name, const std::string& text) {
    return read({"--name", name, "--cookie-file", cookie, "--dist-port", text})
        .runtime.node.first_port;
  };
  CHECK(port("py@127.0.0.1", "4370+") == 4370);
  CHECK(port("py12@127.0.0.1", "4370+") == 4382);
  CHECK(port("py-3@10.0.0.7", "4370+") == 4373);
  CHECK(error_with({"--dist-port", "65536+"}).rfind("dist-port: '65536+' makes no port", 0) == 0);
  CHECK(error_with({"--dist-port", "x+"}) == "dist-port: 'x+' is no port and a +");
  CHECK(error_with({"--dist-port", "+"}) == "dist-port: '+' is no port and a +");
}

TEST_CASE_METHOD(Fixture,
                 "where peers listen can be fixed or computed, a port of their own counts more",
                 "[config]") {
  const auto peers = [&](const std::string& text) {
    return with({"--peer", "a7@127.0.0.1", "--peer", "b@127.0.0.1:9", "--peer-port", text})
        .runtime.node.peers;
  };
  CHECK(peers("9100")[0].port == 9100);
  CHECK(peers("4370+")[0].port == 4377);
  CHECK(peers("4370+")[1].port == 9);
  CHECK(error_with({"--peer", "a@127.0.0.1", "--peer-port", "0"}) ==
        "peer-port: '0' is no number from 1 to 65535");
}

TEST_CASE_METHOD(Fixture, "ERL_DIST_PORT is the port to listen on where no setting says otherwise",
                 "[config]") {
  const Environment environment{{"ERL_DIST_PORT", "5210"}};
  const Config config = with({});
  CHECK(config.runtime.node.first_port == 5210);
  CHECK(config.values.at("dist-port").origin == "ERL_DIST_PORT");
  CHECK(with({"--dist-port", "9100"}).runtime.node.first_port == 9100);
}

TEST_CASE_METHOD(Fixture, "epmd is waited for, replaced where it is absent, built in or not used",
                 "[config]") {
  using dist::EpmdUse;
  CHECK(with({"--epmd", "on"}).runtime.node.epmd_use == EpmdUse::kExternal);
  CHECK(with({"--epmd", "auto"}).runtime.node.epmd_use == EpmdUse::kAuto);
  CHECK(with({"--epmd", "builtin"}).runtime.node.epmd_use == EpmdUse::kBuiltIn);
  CHECK(error_with({"--epmd", "maybe"}) == "epmd: 'maybe' is not on, auto, builtin or off");
}

TEST_CASE_METHOD(Fixture, "a node that listens nowhere needs a peer, and no epmd", "[config]") {
  CHECK(error_with({"--listen", "none"}) == "listen: a node that only dials needs a --peer");
  const auto node = with({"--listen", "none", "--peer", "p@127.0.0.1"}).runtime.node;
  CHECK_FALSE(node.listens);
  CHECK(node.epmd_use == dist::EpmdUse::kNone);
}

TEST_CASE_METHOD(Fixture, "TLS takes a certificate, its key and authorities, or nothing",
                 "[config]") {
  CHECK(with({}).runtime.node.tls == nullptr);
  CHECK(error_with({"--tls-key", "k"}) ==
        "tls-cert: TLS takes all of --tls-cert, --tls-key and --tls-ca");
  CHECK(error_with({"--tls-cert", "c", "--tls-ca", "a"}) ==
        "tls-key: TLS takes all of --tls-cert, --tls-key and --tls-ca");
  CHECK(error_with({"--tls-cert", "/none", "--tls-key", "/none", "--tls-ca", "/none"}) ==
        "tls-cert: cannot read '/none'");
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

// --- the file of settings

TEST_CASE_METHOD(Fixture, "a file gives settings below the environment and above the default",
                 "[config]") {
  const std::string path = directory.file("s.toml",
                                          "workers = 3\nqueue = 50\n# a comment\n"
                                          "import = [\"a\", \"b\"]\neval = false\n"
                                          "log-format = \"json\"\ndrain_timeout = 9\n",
                                          0644);
  const Environment environment{{"SIDEWINDER_QUEUE", "7"}};
  const Config config = with({"--config", path, "--log-format", "text"});
  CHECK(config.runtime.pool.workers == 3);
  CHECK(config.runtime.pool.queue.items == 7);
  CHECK(config.imports == std::vector<std::string>{"a", "b"});
  CHECK_FALSE(config.runtime.invoker.eval);
  CHECK(config.log_format == base::LogFormat::kText);
  CHECK(config.drain == 9s);
  const std::string text = node_main::describe(config);
  CHECK(text.find("workers = 3  (" + path + ":1)\n") != std::string::npos);
  CHECK(text.find("drain-timeout = 9  (" + path + ":7)\n") != std::string::npos);
  CHECK(text.find("import = a,b  (" + path + ":4)\n") != std::string::npos);
  CHECK(text.find("queue = 7  (SIDEWINDER_QUEUE)\n") != std::string::npos);
}

TEST_CASE_METHOD(Fixture, "a file of settings may be JSON, and a variable may name it",
                 "[config]") {
  const std::string path = directory.file(
      "s.json", R"({"workers": 3, "path": ["/x", "/y"], "eval": true, "none": "undefined"})", 0644);
  const Environment environment{{"SIDEWINDER_CONFIG", path}};
  const Config config = with({});
  CHECK(config.runtime.pool.workers == 3);
  CHECK(config.paths == std::vector<std::string>{"/x", "/y"});
  CHECK(config.none_atom == "undefined");
  CHECK(node_main::describe(config).find("workers = 3  (" + path + ")\n") != std::string::npos);
}

TEST_CASE_METHOD(Fixture, "what is wrong with a file of settings is told with its line",
                 "[config]") {
  const auto error = [&](const std::string& name, const std::string& text) {
    const std::string path = directory.file(name, text, 0644);
    std::string what = error_with({"--config", path});
    unlink(path.c_str());
    const std::size_t at = what.find(path);
    if (at != std::string::npos) what.replace(at, path.size(), "FILE");
    return what;
  };
  CHECK(error("a.toml", "workers = 3\nwokers = 4\n") ==
        "config: FILE:2: there is no setting wokers");
  CHECK(error("a.toml", "workers = [1, 2]\n") ==
        "config: FILE:1: workers takes one value, not a list");
  CHECK(error("a.toml", "[limits]\nworkers = 1\n") ==
        "config: FILE:1: limits is no text, number, boolean or list of these");
  CHECK(error("a.toml", "path = [[1]]\n") ==
        "config: FILE:1: path is no text, number, boolean or list of these");
  CHECK(error("a.toml", "max-message = 1\nmax_message = 2\n").find("max-message is there twice") !=
        std::string::npos);
  CHECK(error("a.toml", "workers = = 3\n").rfind("config: FILE:1: ", 0) == 0);
  CHECK(error("a.toml", "config = \"other\"\n") == "config: FILE:1: there is no setting config");
  CHECK(error("a.toml", "workers = 0\n") == "workers: '0' is no number from 1 to 1024");
  CHECK(error("a.toml", std::string(1 << 20, '#') + "##") ==
        "config: cannot read 'FILE' is larger than 1 MiB");
  CHECK(error("a.json", "{\"workers\": ").rfind("config: FILE: ", 0) == 0);
  CHECK(error("a.json", "[1]") == "config: FILE: no object");
  CHECK(error("a.json", R"({"workers": 1, "queue": 2, "workers": 1})") ==
        "config: FILE: workers is there twice");
  CHECK(error("a.json", R"({"max-message": 1, "max_message": 2})") ==
        "config: FILE: max-message is there twice");
  CHECK(error("a.json", "{\"wokers\": 1}") == "config: FILE: there is no setting wokers");
  CHECK(error("a.json", "{\"workers\": {}}") ==
        "config: FILE: workers is no text, number, boolean or list of these");
  CHECK(error_with({"--config", "/no/such"}) == "config: cannot read '/no/such'");
}

TEST_CASE_METHOD(Fixture, "the file's folders and the venv must be there for --check-config",
                 "[config]") {
  CHECK(with({"--check-config"}).check);
  CHECK_NOTHROW(node_main::check_files(with({"--path", directory.path()})));
  CHECK_THROWS_WITH(node_main::check_files(with({"--path", "/no/such"})),
                    "path: '/no/such' is no folder");
  CHECK_THROWS_WITH(node_main::check_files(with({"--venv", cookie})),
                    "venv: '" + cookie + "' is no folder");
}

TEST_CASE_METHOD(Fixture, "the reference names every setting once, with its variable", "[config]") {
  const std::string text = node_main::reference();
  for (const auto& setting : node_main::settings()) {
    const std::string row = std::string("\n| `") + setting.name + "` | `SIDEWINDER_";
    CHECK(text.find(row) != std::string::npos);
    CHECK(text.find(row) == text.rfind(row));
  }
}

// --- names of pods

TEST_CASE_METHOD(Fixture, "names and addresses are filled in from the pod's variables",
                 "[config]") {
  const Environment environment{{"POD_IP", "10.1.2.3"},
                                {"POD_NAME", "py-0"},
                                {"POD_NAMESPACE", "prod"},
                                {"SIDEWINDER_PEER", "app@{pod_ip}"}};
  const auto name = [&](const std::string& text) {
    return read({"--name", text, "--cookie-file", cookie}).runtime.node.name;
  };
  CHECK(name("py@{pod_ip}") == "py@10.1.2.3");
  CHECK(name("py@{pod_ip_dashed}.{pod_namespace}.pod.cluster.local") ==
        "py@10-1-2-3.prod.pod.cluster.local");
  CHECK(name("py@{pod_name}.workers.{pod_namespace}.svc") == "py@py-0.workers.prod.svc");
  const Config config = with({"--listen", "{pod_ip}", "--home", "app@{pod_ip}"});
  CHECK(config.runtime.node.listen == std::vector<std::string>{"10.1.2.3"});
  CHECK(config.runtime.node.peers.at(0).name == "app@10.1.2.3");
  CHECK(config.runtime.home == "app@10.1.2.3");
  CHECK(node_main::describe(config).find("listen = 10.1.2.3  (flag)\n") != std::string::npos);
}

TEST_CASE_METHOD(
    Fixture,
    "a name in braces that has no value here is an error that says which variable it needs",
    "[config]") {
  const Environment environment{{"POD_IP", ""}};
  CHECK(error_with({"--listen", "{pod_ip}"}) == "listen: {pod_ip} needs the variable POD_IP");
  CHECK(error_with({"--listen", "{pod}"}).rfind("listen: {pod} is none of hostname, ", 0) == 0);
}

// --- the cookie's places

TEST_CASE_METHOD(Fixture, "a cookie comes from the first of its places", "[config]") {
  const auto origin = [](const Config& config) {
    return std::pair{config.runtime.node.cookie, config.values.at("cookie-file").origin};
  };
  const auto found = [&] { return origin(read({"--name", "n@127.0.0.1"})); };
  using Found = std::pair<std::string, std::string>;
  directory.file(".erlang.cookie", "home", 0400);
  const Environment environment{{"HOME", directory.path()}};
  CHECK(found() == Found{"home", "default"});
  const Environment release{{"RELEASE_COOKIE", "release"}};
  CHECK(found() == Found{"release", "RELEASE_COOKIE"});
  const Environment credentials{{"CREDENTIALS_DIRECTORY", directory.path()}};
  CHECK(found() == Found{"secret", "CREDENTIALS_DIRECTORY"});
  const Environment own{{"SIDEWINDER_COOKIE", "own"}};
  CHECK(found() == Found{"own", "SIDEWINDER_COOKIE"});
  CHECK(origin(with({})) == Found{"secret", "flag"});
}

TEST_CASE_METHOD(Fixture, "a cookie from a variable is warned of, never shown, and then forgotten",
                 "[config]") {
  const Environment environment{{"SIDEWINDER_COOKIE", "hushhush"}};
  const char* place = getenv("SIDEWINDER_COOKIE");
  const Config config = read({"--name", "n@127.0.0.1"});
  CHECK(config.warnings.size() == 1);
  CHECK(config.warnings.at(0).find("SIDEWINDER_COOKIE") != std::string::npos);
  CHECK(config.warnings.at(0).find("hushhush") == std::string::npos);
  CHECK(node_main::describe(config).find("hushhush") == std::string::npos);
  CHECK(with({}).warnings.empty());
  node_main::forget_secrets();
  CHECK(std::string_view(place, 8) == std::string_view("\0\0\0\0\0\0\0\0", 8));
  CHECK(getenv("SIDEWINDER_COOKIE") == nullptr);
}

TEST_CASE_METHOD(Fixture, "a cookie file that changes is read anew, a bad one changes nothing",
                 "[config]") {
  const std::string path = directory.file("changing", "one", 0400);
  auto file = node_main::Cookie::of_file(path);
  CHECK(file.current() == "one");
  unlink(path.c_str());
  CHECK(file.current() == "one");
  directory.file("changing", "two\n", 0400);
  CHECK(file.current() == "two");
  unlink(path.c_str());
  directory.file("changing", "three", 0444);  // for all to read
  CHECK(file.current() == "two");
  unlink(path.c_str());
  directory.file("changing", "", 0400);
  CHECK(file.current() == "two");
  // As Kubernetes changes a Secret: another file behind a symbolic link.
  const std::string link = directory.path() + "/link";
  const std::string first = directory.file("first", "first", 0400);
  const std::string second = directory.file("second", "second", 0400);
  REQUIRE(symlink(first.c_str(), link.c_str()) == 0);
  auto linked = node_main::Cookie::of_file(link);
  CHECK(linked.current() == "first");
  unlink(link.c_str());
  REQUIRE(symlink(second.c_str(), link.c_str()) == 0);
  CHECK(linked.current() == "second");
  unlink(link.c_str());
}
