#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "cnode/base/memory_budget.hpp"
#include "cnode/dist/fragments.hpp"
#include "cnode/main/cgroup.hpp"
#include "tests/cpp/catch.hpp"

using base::Charge;
using base::MemoryBudget;
using node_main::Cgroup;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

// A file system of its own, as far as control groups are concerned.
class Root {
 public:
  Root() {
    std::string path = (std::filesystem::temp_directory_path() / "cgroup.XXXXXX").string();
    REQUIRE(mkdtemp(path.data()) != nullptr);
    path_ = path;
  }
  ~Root() { std::filesystem::remove_all(path_); }
  Root(const Root&) = delete;
  Root& operator=(const Root&) = delete;

  void write(const std::string& file, const std::string& text) const {
    const auto path = path_ / file;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  Cgroup group() const { return Cgroup(path_.string()); }

 private:
  std::filesystem::path path_;
};

}  // namespace

TEST_CASE("without a limit there is none", "[memory][cgroup]") {
  const Root root;
  CHECK_FALSE(root.group().limit());
  CHECK_FALSE(root.group().in_use());
  root.write("proc/self/cgroup", "nonsense\n:\n0::/app\n");
  CHECK_FALSE(root.group().limit());
  root.write("sys/fs/cgroup/app/memory.max", "max\n");
  CHECK_FALSE(root.group().limit());
  CHECK_FALSE(root.group().in_use());
}

TEST_CASE("version 2: the smallest limit on the way up counts", "[memory][cgroup]") {
  const Root root;
  root.write("proc/self/cgroup", "0::/pods/app/main\n");
  root.write("sys/fs/cgroup/pods/app/main/memory.max", "max\n");
  root.write("sys/fs/cgroup/pods/app/memory.max", "1000\n");
  root.write("sys/fs/cgroup/pods/app/memory.current", "700\n");
  root.write("sys/fs/cgroup/pods/app/memory.stat", "anon 1\ninactive_file 200\nactive_file 3\n");
  root.write("sys/fs/cgroup/pods/memory.max", "5000\n");
  CHECK(root.group().limit() == 1000u);
  CHECK(root.group().in_use() == 500u);
}

TEST_CASE("version 1: likewise, and its largest number is no limit", "[memory][cgroup]") {
  const Root root;
  root.write("proc/self/cgroup", "7:pids:/x\n4:cpu,memory:/app\n0::/\n");
  root.write("sys/fs/cgroup/memory/app/memory.limit_in_bytes", "9223372036854771712\n");
  CHECK_FALSE(root.group().limit());
  root.write("sys/fs/cgroup/memory/app/memory.limit_in_bytes", "800\n");
  root.write("sys/fs/cgroup/memory/app/memory.usage_in_bytes", "300\n");
  root.write("sys/fs/cgroup/memory/app/memory.stat", "inactive_file 1\ntotal_inactive_file 50\n");
  CHECK(root.group().limit() == 800u);
  CHECK(root.group().in_use() == 250u);
}

TEST_CASE("in a container the group's own directory is the root", "[memory][cgroup]") {
  const Root root;
  root.write("proc/self/cgroup", "4:memory:/docker/0123456789abcdef\n");
  root.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "4096\n");
  root.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "4000\n");
  CHECK(root.group().limit() == 4096u);
  CHECK(root.group().in_use() == 4000u);
}

TEST_CASE("a charge counts as long as it lives, at its peer and in all", "[memory]") {
  const auto whole = std::make_shared<MemoryBudget>(10 * kMiB);
  const auto peer = std::make_shared<MemoryBudget>(4 * kMiB, whole);
  const auto other = std::make_shared<MemoryBudget>(4 * kMiB, whole);
  {
    Charge first(peer, kMiB);
    Charge second = std::move(first);
    second.grow(5);
    const Charge third(other, 7);
    CHECK(peer->used() == kMiB + 5);
    CHECK(other->used() == 7);
    CHECK(whole->used() == kMiB + 12);
    second = Charge();
    CHECK(peer->used() == 0);
  }
  CHECK(whole->used() == 0);
  Charge nothing;
  nothing.grow(5);
  CHECK(nothing.bytes() == 0);
}

TEST_CASE("one peer has a share, and all have the whole", "[memory]") {
  const auto whole = std::make_shared<MemoryBudget>(10 * kMiB);
  const auto peer = std::make_shared<MemoryBudget>(4 * kMiB, whole);
  const auto other = std::make_shared<MemoryBudget>(4 * kMiB, whole);
  CHECK(peer->admits(8 * kMiB));  // alone
  CHECK_FALSE(peer->admits(11 * kMiB));
  const Charge some(peer, 3 * kMiB);
  CHECK(peer->admits(kMiB));
  CHECK_FALSE(peer->admits(kMiB + 1));
  CHECK(peer->admits(5 * kMiB, 3 * kMiB));  // the rest of that very message
  CHECK(other->admits(7 * kMiB));
  CHECK_FALSE(other->admits(8 * kMiB));
}

TEST_CASE("what memory is left is asked only when much is in flight", "[memory]") {
  std::optional<std::size_t> left = 3 * kMiB;
  int asked = 0;
  MemoryBudget whole(100 * kMiB, [&] {
    ++asked;
    return left;
  });
  CHECK(whole.admits(kMiB));
  CHECK(asked == 0);
  CHECK(whole.admits(3 * kMiB));
  CHECK(asked == 1);
  CHECK_FALSE(whole.admits(3 * kMiB + 1));
  left = std::nullopt;  // not asked again so soon
  CHECK_FALSE(whole.admits(4 * kMiB));
  CHECK(asked == 1);
  std::this_thread::sleep_for(MemoryBudget::kLookEvery);
  CHECK(whole.admits(4 * kMiB));
  CHECK(asked == 2);
}

TEST_CASE("what came since the last look counts against what was left", "[memory]") {
  const auto whole = std::make_shared<MemoryBudget>(
      100 * kMiB, [] { return std::optional<std::size_t>(4 * kMiB); });
  CHECK(whole->admits(4 * kMiB));
  const Charge some(whole, 3 * kMiB);
  CHECK(whole->admits(kMiB));
  CHECK_FALSE(whole->admits(2 * kMiB));
}

TEST_CASE("without any memory left small calls are served", "[memory]") {
  MemoryBudget whole(100 * kMiB, [] { return std::optional<std::size_t>(0); });
  CHECK(whole.admits(kMiB));
  CHECK_FALSE(whole.admits(kMiB + 1));
}

TEST_CASE("a request in fragments is dropped when there is no room for it, and others are not",
          "[memory][fragments]") {
  // A control tuple {2, '', ''} and the first byte of a message.
  const std::vector<std::uint8_t> request{104, 3, 97, 2, 119, 0, 119, 0, 1};
  const std::vector<std::uint8_t> other{104, 3, 97, 2, 119, 0, 119, 0, 2};
  const std::vector<std::uint8_t> more(kMiB, 9);
  dist::FragmentLimits limits;
  const auto whole = std::make_shared<MemoryBudget>(3 * kMiB);
  limits.budget = std::make_shared<MemoryBudget>(3 * kMiB, whole);
  limits.counts = [](etf::Bytes first) { return first[8] == 1; };
  dist::Assembler assembler(limits);
  const auto send = [&](std::uint64_t sequence, const std::vector<std::uint8_t>& first) {
    auto outcome = assembler.on_first(sequence, 5, first);
    for (std::uint64_t left = 4; left > 0; --left)
      outcome = assembler.on_next(sequence, left, more);
    REQUIRE(outcome.ok());
    REQUIRE(outcome->has_value());
    return std::move(**outcome);
  };
  {
    const dist::Assembled refused = send(1, request);
    CHECK(refused.no_memory);
    CHECK(refused.bytes.size() < 3 * kMiB);
    CHECK(refused.bytes.bytes()[8] == 1);
    CHECK(whole->used() == 0);
    const dist::Assembled taken = send(2, other);
    CHECK_FALSE(taken.no_memory);
    CHECK_FALSE(taken.too_large);
    CHECK(taken.bytes.size() == other.size() + 4 * kMiB);
    CHECK(whole->used() == 0);
  }
  REQUIRE(assembler.on_first(3, 3, request).ok());
  REQUIRE(assembler.on_next(3, 2, more).ok());
  CHECK(whole->used() == request.size() + kMiB);
  auto fits = assembler.on_next(3, 1, more);
  REQUIRE((fits.ok() && fits->has_value()));
  CHECK_FALSE((*fits)->no_memory);
  CHECK((*fits)->charge.bytes() == request.size() + 2 * kMiB);
  fits = std::optional<dist::Assembled>();
  CHECK(whole->used() == 0);
}
