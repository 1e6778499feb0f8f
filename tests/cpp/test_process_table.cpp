#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "cnode/dist/process_table.hpp"
#include "cnode/etf/reader.hpp"
#include "cnode/etf/writer.hpp"
#include "tests/cpp/catch.hpp"

using dist::Process;
using dist::ProcessTable;

namespace {

constexpr std::uint32_t kCreation = 42;

ProcessTable table_of(const std::string& node = "node@127.0.0.1") {
  ProcessTable table;
  table.set_identity(node, kCreation);
  return table;
}

etf::PidView pid_of(const Process& process) {
  etf::Reader in(dist::view(process.pid));
  auto pid = in.pid();
  REQUIRE(pid.ok());
  REQUIRE(in.at_end());
  return *pid;
}

}  // namespace

TEST_CASE("a process is found by its number, its pid and its name", "[process_table]") {
  ProcessTable table = table_of();
  Process& process = table.create();
  REQUIRE(table.register_name(process, "echo"));
  CHECK(table.find(process.id) == &process);
  CHECK(table.find("echo") == &process);
  CHECK(table.find(pid_of(process)) == &process);
  CHECK(table.size() == 1);
}

TEST_CASE("a pid tells the node's name and creation, and each process has another",
          "[process_table]") {
  ProcessTable table = table_of();
  std::set<std::pair<std::uint32_t, std::uint32_t>> numbers;
  for (int i = 0; i < 1000; ++i) {
    const etf::PidView pid = pid_of(table.create());
    CHECK(pid.node == "node@127.0.0.1");
    CHECK(pid.creation == kCreation);
    numbers.insert({pid.id, pid.serial});
  }
  CHECK(numbers.size() == 1000);
  CHECK(table.size() == 1000);
}

TEST_CASE("a pid of an earlier incarnation of the node is nobody's", "[process_table]") {
  ProcessTable table = table_of();
  etf::PidView pid = pid_of(table.create());
  pid.creation ^= 1;
  CHECK(table.find(pid) == nullptr);
}

TEST_CASE("a pid with another serial is nobody's", "[process_table]") {
  ProcessTable table = table_of();
  etf::PidView pid = pid_of(table.create());
  pid.serial += 1;
  CHECK(table.find(pid) == nullptr);
}

TEST_CASE("processes made before the node had a name get pids with it", "[process_table]") {
  ProcessTable table;
  Process& process = table.create();
  table.set_identity("gift@127.0.0.1", 7);
  const etf::PidView pid = pid_of(process);
  CHECK(pid.node == "gift@127.0.0.1");
  CHECK(pid.creation == 7);
  CHECK(table.find(pid) == &process);
}

TEST_CASE("a removed process is found no more, and its name is free again", "[process_table]") {
  ProcessTable table = table_of();
  Process& process = table.create();
  const auto id = process.id;
  REQUIRE(table.register_name(process, "echo"));
  const auto removed = table.remove(id);
  REQUIRE(removed);
  CHECK(removed->name == "echo");
  CHECK(table.find(id) == nullptr);
  CHECK(table.find("echo") == nullptr);
  CHECK(table.find(pid_of(*removed)) == nullptr);
  CHECK(table.remove(id) == nullptr);
  CHECK(table.register_name(table.create(), "echo"));
}

TEST_CASE("the number of a removed process is not given to the next", "[process_table]") {
  ProcessTable table = table_of();
  const auto first = table.create().id;
  table.remove(first);
  CHECK(table.create().id != first);
}

TEST_CASE("a name belongs to one process, and a process has one name", "[process_table]") {
  ProcessTable table = table_of();
  Process& one = table.create();
  Process& other = table.create();
  CHECK(table.register_name(one, "echo"));
  CHECK_FALSE(table.register_name(other, "echo"));
  CHECK_FALSE(table.register_name(one, "second"));
  CHECK(table.find("echo") == &one);
  CHECK(table.find("second") == nullptr);
}

TEST_CASE("the empty name and 'undefined' are nobody's", "[process_table]") {
  ProcessTable table = table_of();
  Process& process = table.create();
  CHECK_FALSE(table.register_name(process, ""));
  CHECK_FALSE(table.register_name(process, "undefined"));
  CHECK(process.name.empty());
}

TEST_CASE("a name that is given up can be taken by another, and by the same process again",
          "[process_table]") {
  ProcessTable table = table_of();
  Process& one = table.create();
  Process& other = table.create();
  REQUIRE(table.register_name(one, "echo"));
  CHECK(table.unregister_name("echo"));
  CHECK_FALSE(table.unregister_name("echo"));
  CHECK(table.find("echo") == nullptr);
  CHECK(table.register_name(other, "echo"));
  CHECK(table.register_name(one, "second"));
  auto names = table.names();
  std::sort(names.begin(), names.end());
  CHECK(names == std::vector<std::string>{"echo", "second"});
}

TEST_CASE("keys of references and pids differ with every part and with the link",
          "[process_table]") {
  const etf::RefView ref{{"n", false}, 5, 3, {1, 2, 3}, {}};
  auto key = dist::RefKey::of(1, ref);
  CHECK(key == dist::RefKey::of(1, ref));
  CHECK_FALSE(key == dist::RefKey::of(2, ref));
  etf::RefView other = ref;
  other.words[2] = 4;
  CHECK_FALSE(key == dist::RefKey::of(1, other));
  other = ref;
  other.creation = 6;
  CHECK_FALSE(key == dist::RefKey::of(1, other));

  const etf::PidView pid{{"n", false}, 1, 2, 3, {}};
  CHECK(dist::PidKey::of(1, pid) == dist::PidKey::of(1, pid));
  CHECK_FALSE(dist::PidKey::of(1, pid) == dist::PidKey::of(2, pid));
  etf::PidView later = pid;
  later.creation = 4;
  CHECK_FALSE(dist::PidKey::of(1, pid) == dist::PidKey::of(1, later));
}

TEST_CASE("consecutive references and pids spread over a hash table", "[process_table]") {
  std::set<std::size_t> hashes;
  for (std::uint32_t i = 0; i < 10'000; ++i) {
    etf::RefView ref;
    ref.words = {i, 1, 2};
    hashes.insert(dist::KeyHash{}(dist::RefKey::of(1, ref)) % 65'536);
  }
  CHECK(hashes.size() > 8'000);  // random ones would fill about 9,280 of the slots
}
