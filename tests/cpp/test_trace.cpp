#include <string>
#include <thread>

#include "cnode/base/trace.hpp"
#include "tests/cpp/catch.hpp"

using base::LogTrace;
using base::TraceContext;

namespace {

const std::string kTrace = "0af7651916cd43dd8448eb211c80319c";
const std::string kSpan = "b7ad6b7169203331";
const std::string kParent = "00-" + kTrace + "-" + kSpan + "-01";

bool accepted(const std::string& parent) { return TraceContext::of(parent).has_value(); }

}  // namespace

TEST_CASE("a traceparent says which trace and which span", "[trace]") {
  const auto trace = TraceContext::of(kParent, "a=b,c=d");
  REQUIRE(trace);
  CHECK(trace->parent() == kParent);
  CHECK(trace->state() == "a=b,c=d");
  CHECK(trace->trace_id() == kTrace);
  CHECK(trace->span_id() == kSpan);
}

TEST_CASE("a later version may say more, within bounds", "[trace]") {
  const std::string later = "cc" + kParent.substr(2);
  CHECK(accepted(later));
  CHECK(accepted(later + "-what-the-future-brings"));
  CHECK_FALSE(accepted(later + "what"));
  CHECK_FALSE(accepted(later + "-with space"));
  CHECK_FALSE(accepted(later + "-\n"));
  CHECK(accepted(later + "-" + std::string(256 - 56, 'x')));
  CHECK_FALSE(accepted(later + "-" + std::string(256 - 55, 'x')));
}

TEST_CASE("what is no traceparent is none", "[trace]") {
  CHECK_FALSE(accepted(""));
  CHECK_FALSE(accepted(kParent + "-more"));  // version 00 is what it is
  CHECK_FALSE(accepted(kParent + " "));
  CHECK_FALSE(accepted("ff" + kParent.substr(2)));
  CHECK_FALSE(accepted("00-" + std::string(32, '0') + "-" + kSpan + "-01"));
  CHECK_FALSE(accepted("00-" + kTrace + "-" + std::string(16, '0') + "-01"));
  CHECK_FALSE(accepted("00-" + kTrace + "_" + kSpan + "-01"));
  for (std::size_t i = 0; i < kParent.size(); ++i) {
    CHECK_FALSE(accepted(kParent.substr(0, i)));
    for (const char c : {'G', 'A', '"', '\n', '\0', '\xFF'}) {
      std::string changed = kParent;
      changed[i] = c;
      CHECK_FALSE(accepted(changed));
    }
  }
}

TEST_CASE("a tracestate that is none is left out, and the rest goes on", "[trace]") {
  for (const std::string& state : {std::string("a=\n"), std::string("a=\xC3\xBC"),
                                   std::string(513, 'x'), std::string(1, '\0')}) {
    const auto trace = TraceContext::of(kParent, state);
    REQUIRE(trace);
    CHECK(trace->state().empty());
  }
  CHECK(TraceContext::of(kParent, std::string(512, 'x'))->state().size() == 512);
}

TEST_CASE("ids for the log are a thread's own and nest", "[trace]") {
  CHECK(LogTrace::trace_id().empty());
  {
    const auto trace = TraceContext::of(kParent);
    const LogTrace outer(&*trace);
    CHECK(LogTrace::trace_id() == kTrace);
    CHECK(LogTrace::span_id() == kSpan);
    std::string other = "not looked at";
    std::thread([&] { other = LogTrace::trace_id(); }).join();
    CHECK(other.empty());
    {
      const LogTrace inner("t", "s");
      CHECK(LogTrace::trace_id() == "t");
      const LogTrace none(nullptr);
      CHECK(LogTrace::trace_id().empty());
    }
    CHECK(LogTrace::span_id() == kSpan);
  }
  CHECK(LogTrace::trace_id().empty());
}
