#include <unistd.h>

#include <cstdio>
#include <string>

#include "cnode/base/log.hpp"
#include "cnode/base/trace.hpp"
#include "tests/cpp/catch.hpp"

using base::json_escape;

namespace {

const std::string kReplacement = "\xEF\xBF\xBD";

// What is written to standard error while `body` runs.
template <class Body>
std::string standard_error_of(Body body) {
  FILE* file = std::tmpfile();
  REQUIRE(file != nullptr);
  std::fflush(stderr);
  const int kept = dup(STDERR_FILENO);
  dup2(fileno(file), STDERR_FILENO);
  body();
  std::fflush(stderr);
  dup2(kept, STDERR_FILENO);
  close(kept);
  std::rewind(file);
  std::string text;
  for (int c = 0; (c = std::fgetc(file)) != EOF;) text += static_cast<char>(c);
  std::fclose(file);
  return text;
}

}  // namespace

TEST_CASE("plain text and well-formed UTF-8 stay as they are", "[log]") {
  CHECK(json_escape("") == "");
  CHECK(json_escape("hello, world") == "hello, world");
  CHECK(json_escape("\xC3\xBC \xE2\x82\xAC \xF0\x9F\x90\x8D") ==
        "\xC3\xBC \xE2\x82\xAC \xF0\x9F\x90\x8D");
}

TEST_CASE("quotes, backslashes and control characters are escaped", "[log]") {
  CHECK(json_escape("say \"hi\"\\") == "say \\\"hi\\\"\\\\");
  CHECK(json_escape("a\nb\tc\r") == "a\\u000ab\\u0009c\\u000d");
  CHECK(json_escape(std::string_view("\0\x1f", 2)) == "\\u0000\\u001f");
}

TEST_CASE("each byte that is not UTF-8 becomes a replacement character", "[log]") {
  CHECK(json_escape("\xFF") == kReplacement);
  CHECK(json_escape("a\x80z") == "a" + kReplacement + "z");
  CHECK(json_escape("\xC0\xAF") == kReplacement + kReplacement);                     // overlong
  CHECK(json_escape("\xE0\x80\x80") == kReplacement + kReplacement + kReplacement);  // overlong
  CHECK(json_escape("\xED\xA0\x80") == kReplacement + kReplacement + kReplacement);  // a surrogate
  CHECK(json_escape("\xF4\x90\x80\x80").substr(0, 3) ==
        kReplacement);  // beyond the last code point
  CHECK(json_escape("\xF5\x80\x80\x80").substr(0, 3) == kReplacement);
}

TEST_CASE("a sequence that the text cuts short is replaced, and what follows it is kept", "[log]") {
  CHECK(json_escape("\xE2\x82") == kReplacement + kReplacement);
  CHECK(json_escape("\xF0\x9F\x90") == kReplacement + kReplacement + kReplacement);
  CHECK(json_escape("\xC3\"") == kReplacement + "\\\"");
  CHECK(json_escape("\xE2\x82\n") == kReplacement + kReplacement + "\\u000a");
}

TEST_CASE("a level that does not exist is an error that names it", "[log]") {
  CHECK_THROWS_WITH(base::configure_logging("loud", base::LogFormat::kText, "n@h"),
                    ContainsSubstring("'loud'"));
}

TEST_CASE("a JSON line is one object with time, level, node and the escaped message", "[log]") {
  const std::string text = standard_error_of([] {
    base::configure_logging("info", base::LogFormat::kJson, "n\"@h");
    spdlog::debug("not this");
    spdlog::warn("two\n\"lines\"");
  });
  REQUIRE(text.find("{\"ts\":\"2") == 0);
  REQUIRE(text.size() > 31);
  CHECK(text.substr(text.find("Z\"")) ==
        "Z\",\"level\":\"warning\",\"node\":\"n\\\"@h\",\"msg\":\"two\\u000a\\\"lines\\\"\"}\n");
}

TEST_CASE("a text line has time, level and message", "[log]") {
  const std::string text = standard_error_of([] {
    base::configure_logging("error", base::LogFormat::kText, "n@h");
    spdlog::warn("not this");
    spdlog::error("this");
  });
  REQUIRE(text.size() > 20);
  CHECK(text.substr(text.find(' ')) == " error this\n");
}

TEST_CASE("a line that is logged in a trace has its ids, in either form", "[log]") {
  const auto lines = [](base::LogFormat format) {
    return standard_error_of([&] {
      base::configure_logging("info", format, "n@h");
      const base::LogTrace trace("t\"1", "s\n1");
      spdlog::info("a \"b\"\n\xFF");
    });
  };
  const std::string json = lines(base::LogFormat::kJson);
  CHECK(json.substr(json.find("\"msg\"")) ==
        "\"msg\":\"a \\\"b\\\"\\u000a" + kReplacement +
            "\",\"trace_id\":\"t\\\"1\",\"span_id\":\"s\\u000a1\"}\n");
  const std::string text = lines(base::LogFormat::kText);
  CHECK(text.substr(text.find(" a ")) == " a \"b\"\n\xFF trace_id=t\"1 span_id=s\n1\n");
}

TEST_CASE("with the level off nothing is written", "[log]") {
  CHECK(standard_error_of([] {
          base::configure_logging("off", base::LogFormat::kText, "n@h");
          spdlog::critical("not this");
        }).empty());
}
