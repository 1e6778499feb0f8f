#include <numeric>
#include <random>
#include <vector>

#include "cnode/dist/fragments.hpp"
#include "cnode/dist/frame.hpp"
#include "tests/cpp/catch.hpp"

using base::ErrorCode;
using dist::Assembler;
using dist::FragmentLimits;
using Bytes = std::vector<std::uint8_t>;
using std::chrono::seconds;

namespace {

// A control tuple {2, '', ''}: its insides do not matter here.
const Bytes kControl{104, 3, 97, 2, 119, 0, 119, 0};

Bytes message(std::size_t size, std::uint8_t start = 0) {
  Bytes bytes(size);
  std::iota(bytes.begin(), bytes.end(), start);
  return bytes;
}

Bytes joined(Bytes left, const Bytes& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

Bytes bytes_of(const etf::Buffer& buffer) { return {buffer.data(), buffer.data() + buffer.size()}; }

bool is_pending(const Assembler::Outcome& outcome) { return outcome.ok() && !outcome->has_value(); }

}  // namespace

TEST_CASE("a message in one fragment is whole at once", "[dist][fragments]") {
  Assembler assembler;
  auto whole = assembler.on_first(7, 1, kControl);
  REQUIRE(whole.ok());
  REQUIRE(whole->has_value());
  CHECK(bytes_of((*whole)->bytes) == kControl);
  CHECK_FALSE((*whole)->too_large);
  CHECK(assembler.open() == 0);
  CHECK(assembler.held() == 0);
}

TEST_CASE("many sequences interleaved come out whole, each with its own bytes",
          "[dist][fragments]") {
  struct Sender {
    Bytes all;
    std::size_t sent;
    std::uint64_t left;
  };
  std::mt19937 random(1);
  std::vector<Sender> senders;
  for (std::size_t i = 0; i < 50; ++i) {
    const std::size_t size = 1 + random() % 500;
    const Bytes all = joined(kControl, message(size, static_cast<std::uint8_t>(i)));
    senders.push_back({all, 0, dist::fragment_count(kControl.size(), size, 16)});
  }

  Assembler assembler;
  std::size_t complete = 0;
  while (complete < senders.size()) {
    const std::size_t i = random() % senders.size();
    Sender& sender = senders[i];
    if (sender.left == 0) continue;
    const std::size_t size = std::min<std::size_t>(16, sender.all.size() - sender.sent);
    const auto piece = etf::Bytes(sender.all).subspan(sender.sent, size);
    auto outcome = sender.sent == 0 ? assembler.on_first(i, sender.left, piece)
                                    : assembler.on_next(i, sender.left, piece);
    REQUIRE(outcome.ok());
    sender.sent += size;
    --sender.left;
    REQUIRE(outcome->has_value() == (sender.left == 0));
    if (sender.left > 0) continue;
    CHECK(bytes_of((*outcome)->bytes) == sender.all);
    ++complete;
  }
  CHECK(assembler.open() == 0);
  CHECK(assembler.held() == 0);
}

TEST_CASE("a sequence may be used again once its message is whole", "[dist][fragments]") {
  Assembler assembler;
  REQUIRE(assembler.on_first(7, 1, kControl).ok());
  CHECK(is_pending(assembler.on_first(7, 2, kControl)));
}

TEST_CASE("a fragment without a first, out of order or twice first is an error",
          "[dist][fragments]") {
  Assembler assembler;
  CHECK(assembler.on_next(7, 1, kControl).error().code == ErrorCode::kMalformed);
  CHECK(assembler.on_first(7, 0, kControl).error().code == ErrorCode::kMalformed);
  REQUIRE(is_pending(assembler.on_first(7, 4, kControl)));
  CHECK(assembler.on_next(7, 4, kControl).error().code == ErrorCode::kMalformed);
  CHECK(assembler.on_next(7, 2, kControl).error().code == ErrorCode::kMalformed);
  CHECK(assembler.on_next(8, 3, kControl).error().code == ErrorCode::kMalformed);
  CHECK(assembler.on_first(7, 4, kControl).error().code == ErrorCode::kMalformed);
}

TEST_CASE("a message over its limit leaves its control tuple, marked, and the next one passes",
          "[dist][fragments]") {
  Assembler assembler({.message = 100, .beginning = 0});
  REQUIRE(is_pending(assembler.on_first(7, 4, joined(kControl, message(40)))));
  REQUIRE(is_pending(assembler.on_next(7, 3, message(60))));
  CHECK(assembler.held() == kControl.size());
  REQUIRE(is_pending(assembler.on_next(7, 2, message(1000))));
  CHECK(assembler.held() == kControl.size());
  auto end = assembler.on_next(7, 1, message(1000));
  REQUIRE(end.ok());
  REQUIRE(end->has_value());
  CHECK((*end)->too_large);
  CHECK(bytes_of((*end)->bytes) == kControl);
  CHECK(assembler.held() == 0);

  auto next = assembler.on_first(7, 1, kControl);
  REQUIRE(next.ok());
  CHECK_FALSE((*next)->too_large);
}

TEST_CASE("of a message over its limit the beginning is kept beside the control tuple",
          "[dist][fragments]") {
  Assembler assembler({.message = 100, .beginning = 7});
  REQUIRE(is_pending(assembler.on_first(7, 2, joined(kControl, message(40)))));
  auto end = assembler.on_next(7, 1, message(1000));
  REQUIRE(end.ok());
  CHECK((*end)->too_large);
  CHECK(bytes_of((*end)->bytes) == joined(kControl, message(7)));
}

TEST_CASE("a message of exactly its limit is whole, and one byte more is too large",
          "[dist][fragments]") {
  Assembler assembler({.message = 100});
  const std::size_t room = 100 - kControl.size();
  REQUIRE(is_pending(assembler.on_first(7, 2, kControl)));
  CHECK_FALSE((*assembler.on_next(7, 1, message(room)))->too_large);
  REQUIRE(is_pending(assembler.on_first(7, 2, kControl)));
  CHECK((*assembler.on_next(7, 1, message(room + 1)))->too_large);
}

TEST_CASE("the beginning of a message over its limit is kept, to see who asked",
          "[dist][fragments]") {
  Assembler assembler({.message = 100, .beginning = 10});
  REQUIRE(is_pending(assembler.on_first(7, 3, joined(kControl, message(40)))));
  REQUIRE(is_pending(assembler.on_next(7, 2, message(1000))));
  CHECK(assembler.held() == kControl.size() + 10);
  auto end = assembler.on_next(7, 1, message(1000));
  REQUIRE(end.ok());
  CHECK((*end)->too_large);
  CHECK(bytes_of((*end)->bytes) == joined(kControl, message(10)));
  CHECK(assembler.held() == 0);

  auto short_one = assembler.on_first(8, 2, joined(kControl, message(3)));
  REQUIRE(is_pending(short_one));
  CHECK(bytes_of((*assembler.on_next(8, 1, message(1000)))->bytes) == joined(kControl, message(3)));
}

TEST_CASE("a first fragment over the limit by itself still yields its control tuple",
          "[dist][fragments]") {
  Assembler assembler({.message = 20, .beginning = 0});
  auto whole = assembler.on_first(7, 1, joined(kControl, message(50)));
  REQUIRE(whole.ok());
  CHECK((*whole)->too_large);
  CHECK(bytes_of((*whole)->bytes) == kControl);
}

TEST_CASE("a control tuple over its own limit is dropped too", "[dist][fragments]") {
  Assembler assembler({.message = 20, .control = 4});
  auto whole = assembler.on_first(7, 1, joined(kControl, message(50)));
  REQUIRE(whole.ok());
  CHECK((*whole)->too_large);
  CHECK((*whole)->bytes.empty());
}

TEST_CASE("a message over its limit that does not begin with a term is an error",
          "[dist][fragments]") {
  Assembler assembler({.message = 20});
  CHECK(assembler.on_first(7, 2, Bytes(50, 0xFF)).error().code == ErrorCode::kUnknownTag);
}

TEST_CASE("what all sequences hold together is bounded, and each refused one still gets its answer",
          "[dist][fragments]") {
  const FragmentLimits limits{
      .message = 1000, .total = 2000, .sequences = 100, .control = 100, .beginning = 0};
  Assembler assembler(limits);
  std::size_t refused = 0;
  for (std::uint64_t i = 0; i < 10; ++i) {
    REQUIRE(is_pending(assembler.on_first(i, 2, joined(kControl, message(400)))));
    CHECK(assembler.held() <= limits.total + limits.total / 8);
  }
  for (std::uint64_t i = 0; i < 10; ++i) {
    auto end = assembler.on_next(i, 1, message(10));
    REQUIRE(end.ok());
    REQUIRE(end->has_value());
    if ((*end)->too_large) {
      ++refused;
      CHECK(bytes_of((*end)->bytes) == kControl);
    }
  }
  CHECK(refused == 6);
  CHECK(assembler.held() == 0);
}

TEST_CASE("one unfinished sequence more than allowed is an error", "[dist][fragments]") {
  Assembler assembler({.sequences = 3});
  for (std::uint64_t i = 0; i < 3; ++i) REQUIRE(is_pending(assembler.on_first(i, 2, kControl)));
  CHECK(assembler.on_first(3, 2, kControl).error().code == ErrorCode::kTooLarge);
}

TEST_CASE("an announced number of fragments costs no memory", "[dist][fragments]") {
  Assembler assembler;
  REQUIRE(is_pending(assembler.on_first(7, UINT64_MAX, kControl)));
  CHECK(assembler.held() == kControl.size());
}

TEST_CASE("addresses are set aside within the bounds and given back with their sequence",
          "[dist][fragments]") {
  constexpr std::size_t kMegabyte = std::size_t{1} << 20;
  Assembler assembler({.message = 8 * kMegabyte, .total = 20 * kMegabyte});
  const Assembler::Clock::time_point begin{};
  for (std::uint64_t i = 0; i < 10; ++i)
    REQUIRE(is_pending(assembler.on_first(i, std::uint64_t{1} << (20 + i), kControl, begin)));
  CHECK(assembler.reserved() == 16 * kMegabyte);
  CHECK(assembler.held() == 10 * kControl.size());
  CHECK(assembler.drop_idle(begin + seconds(1)) == 10);
  CHECK(assembler.reserved() == 0);
  REQUIRE(is_pending(assembler.on_first(77, 16, kControl, begin)));
  CHECK(assembler.reserved() == kMegabyte);
  for (std::uint64_t left = 15; left > 0; --left) {
    const auto whole = assembler.on_next(77, left, message(10), begin);
    CHECK(whole->has_value() == (left == 1));
  }
  CHECK(assembler.reserved() == 0);
}

TEST_CASE("an idle sequence is freed, its late rest is dropped, and its sender may begin anew",
          "[dist][fragments]") {
  Assembler assembler;
  const Assembler::Clock::time_point start{seconds(1000)};
  REQUIRE(is_pending(assembler.on_first(7, 3, kControl, start)));
  REQUIRE(is_pending(assembler.on_first(8, 3, kControl, start)));
  REQUIRE(is_pending(assembler.on_next(8, 2, kControl, start + seconds(50))));

  CHECK(assembler.drop_idle(start + seconds(30)) == 1);
  CHECK(assembler.held() == 2 * kControl.size());
  CHECK(assembler.drop_idle(start + seconds(30)) == 0);

  CHECK(is_pending(assembler.on_next(7, 2, kControl, start + seconds(60))));
  CHECK(is_pending(assembler.on_next(7, 1, kControl, start + seconds(61))));
  CHECK(assembler.open() == 1);
  REQUIRE(is_pending(assembler.on_first(9, 2, kControl, start)));
  CHECK(assembler.drop_idle(start + seconds(1)) == 1);
  CHECK(is_pending(assembler.on_first(9, 2, kControl, start + seconds(62))));
  CHECK((*assembler.on_next(9, 1, kControl, start + seconds(63)))->bytes.size() ==
        2 * kControl.size());
}

TEST_CASE("forgotten sequences make room for new ones", "[dist][fragments]") {
  Assembler assembler({.sequences = 2});
  const Assembler::Clock::time_point start{seconds(1000)};
  REQUIRE(is_pending(assembler.on_first(1, 2, kControl, start)));
  REQUIRE(is_pending(assembler.on_first(2, 2, kControl, start)));
  REQUIRE(assembler.drop_idle(start + seconds(1)) == 2);
  CHECK(is_pending(assembler.on_first(3, 2, kControl, start)));
  CHECK(assembler.open() == 1);
}
