#include <string>
#include <string_view>
#include <vector>

#include "catch.hpp"
#include "cnode/web/request_parser.hpp"

using web::RequestParser;
using State = RequestParser::State;

namespace {

struct Heard final : RequestParser::Sink {
  std::string text;
  bool go_on = true;

  bool on_head(const RequestParser::Head& head) override {
    text += std::string(head.method) + " " + std::string(head.target) + " 1." +
            std::to_string(head.minor) + (head.keep_alive ? " keep" : " close") +
            (head.upgrade ? " upgrade" : "") + (head.has_body ? " body" : "") +
            (head.expects_continue ? " continue" : "") + "\n";
    for (const auto& [name, value] : head.headers)
      text += std::string(name) + "=" + std::string(value) + "\n";
    return go_on;
  }
  bool on_body(std::string_view bytes) override {
    text += bytes;
    return true;
  }
  bool on_end() override {
    text += "\n.\n";
    return true;
  }
};

struct Result {
  std::string heard;
  RequestParser::Outcome last;
  std::string rest;  // behind the last request
};

// Feeds `bytes` cut at every `step`; goes on behind each request.
Result parse(std::string_view bytes, std::size_t step = 1 << 20,
             const RequestParser::Limits& limits = {}) {
  Heard heard;
  RequestParser parser(limits, heard);
  Result result;
  while (!bytes.empty()) {
    std::string_view piece = bytes.substr(0, step);
    bytes.remove_prefix(piece.size());
    while (!piece.empty()) {
      result.last = parser.feed(piece);
      piece.remove_prefix(std::min(result.last.used, piece.size()));
      if (result.last.state == State::kEnded) {
        result.rest = std::string(piece) + std::string(bytes);
        parser.next();
        continue;
      }
      if (result.last.state != State::kMore) {
        result.heard = heard.text;
        return result;
      }
    }
  }
  result.heard = heard.text;
  return result;
}

int refused(std::string_view bytes, const RequestParser::Limits& limits = {}) {
  int status = -1;
  for (const std::size_t step : {std::size_t{1} << 20U, std::size_t{1}, std::size_t{7}}) {
    const Result result = parse(bytes, step, limits);
    const int here = result.last.state == State::kRefused ? result.last.status : 0;
    if (status >= 0) CHECK(here == status);  // however it is cut
    status = here;
  }
  return status;
}

}  // namespace

TEST_CASE("a request comes out the same wherever its bytes are cut", "[web]") {
  const std::string bytes =
      "POST /a%20b?x=1 HTTP/1.1\r\nHost: h\r\nX-Empty:\r\nX-Two:  a b \t\r\nX-TWO: c\r\n"
      "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;ext=\"v\"\r\n world\r\n0\r\nTrailer: "
      "t\r\n\r\n";
  const std::string expected =
      "POST /a%20b?x=1 1.1 keep body\nhost=h\nx-empty=\nx-two=a b\nx-two=c\n"
      "transfer-encoding=chunked\nhello world\n.\n";
  for (std::size_t step = 1; step <= bytes.size(); ++step) {
    const Result result = parse(bytes, step);
    CHECK(result.heard == expected);
    CHECK(result.last.state == State::kEnded);
    CHECK(result.last.status == 0);
  }
}

TEST_CASE("requests that follow each other are told one by one", "[web]") {
  const std::string one = "GET /1 HTTP/1.1\r\nHost: h\r\n\r\n";
  const std::string two =
      "POST /2 HTTP/1.0\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nabc";
  Heard heard;
  RequestParser parser({}, heard);
  const auto first = parser.feed(one + two + "GET");
  CHECK(first.state == State::kEnded);
  CHECK(first.used == one.size());
  CHECK(heard.text == "GET /1 1.1 keep\nhost=h\n\n.\n");
  CHECK_FALSE(parser.in_request());
  parser.next();
  const auto second = parser.feed(two + "GET");
  CHECK(second.state == State::kEnded);
  CHECK(second.used == two.size());
  parser.next();
  CHECK(parser.feed("GET").state == State::kMore);
  CHECK(parser.in_head());
  CHECK(heard.text.ends_with(
      "POST /2 1.0 keep body\ncontent-length=3\nconnection=keep-alive\nabc\n.\n"));
}

TEST_CASE("what asks for a switch of protocols is a request like others, and says so", "[web]") {
  const Result result = parse(
      "GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x80");
  CHECK(result.heard.starts_with("GET /ws 1.1 keep upgrade\n"));
  Heard heard;
  RequestParser parser({}, heard);
  const std::string bytes =
      "POST /h2 HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: "
      "2\r\n\r\nok";
  CHECK(parser.feed(bytes).state == State::kEnded);
  CHECK(heard.text.ends_with("content-length=2\nok\n.\n"));
}

TEST_CASE("what two readers could understand in two ways is refused", "[web]") {
  const std::string get = "GET / HTTP/1.1\r\nHost: h\r\n";
  const std::string post = "POST / HTTP/1.1\r\nHost: h\r\n";
  CHECK(refused(post + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n") == 400);
  CHECK(refused(post + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n") == 400);
  CHECK(refused(post + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd") == 400);
  CHECK(refused(post + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc") == 400);
  CHECK(refused(post + "Content-Length: 3, 3\r\n\r\nabc") == 400);
  CHECK(refused(post + "Content-Length: +3\r\n\r\nabc") == 400);
  CHECK(refused(post + "Content-Length: -1\r\n\r\n") == 400);
  CHECK(refused(post + "Content-Length: 0x3\r\n\r\nabc") == 400);
  CHECK(refused(post + "Content-Length: 3 3\r\n\r\nabc") == 400);
  CHECK(refused(post + "Content-Length:\r\n\r\nabc") == 400);
  CHECK(refused(post + "Content-Length: 99999999999999999999\r\n\r\n") == 400);
  CHECK(refused(post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n") != 0);
  CHECK(refused(post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n") == 501);
  CHECK(refused(post + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n") != 0);
  CHECK(refused(post +
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n") != 0);
  CHECK(refused(post + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n") == 400);
  CHECK(refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n") == 400);
  const std::string chunked = post + "Transfer-Encoding: chunked\r\n\r\n";
  CHECK(refused(chunked + "+3\r\nabc\r\n0\r\n\r\n") == 400);
  CHECK(refused(chunked + "0x3\r\nabc\r\n0\r\n\r\n") == 400);
  CHECK(refused(chunked + "3 \r\nabc\r\n0\r\n\r\n") == 400);
  CHECK(refused(chunked + "\r\nabc\r\n0\r\n\r\n") == 400);
  CHECK(refused(chunked + "3\nabc\r\n0\r\n\r\n") == 400);
  CHECK(refused(chunked + "3\r\nabcd\r\n0\r\n\r\n") == 400);
  CHECK(refused(chunked + "3\r\nabc0\r\n\r\n") == 400);
  CHECK(refused(chunked + "ffffffffffffffff1\r\nabc") == 400);
  CHECK(refused(get + "X: a\r\n folded\r\n\r\n") == 400);
  CHECK(refused(get + "X: a\r\n\tfolded\r\n\r\n") == 400);
  CHECK(refused(get + "X : a\r\n\r\n") == 400);
  CHECK(refused(get + " X: a\r\n\r\n") == 400);
  CHECK(refused(get + "X\r\n\r\n") == 400);
  CHECK(refused(get + ": a\r\n\r\n") == 400);
  CHECK(refused(get + "X: a\nY: b\r\n\r\n") == 400);
  CHECK(refused(get + "X: a\rY: b\r\n\r\n") == 400);
  CHECK(refused(get + std::string("X: a\0b\r\n\r\n", 10)) == 400);
  CHECK(refused(get + "X: a\r\n\n") == 400);
  CHECK(refused("GET / HTTP/1.1\nHost: h\n\n") == 400);
  CHECK(refused("GET / HTTP/1.1 \r\nHost: h\r\n\r\n") == 400);
  CHECK(refused("GET  / HTTP/1.1\r\nHost: h\r\n\r\n") == 400);
  CHECK(refused("GET /  HTTP/1.1\r\nHost: h\r\n\r\n") == 400);
  CHECK(refused("GET  HTTP/1.1\r\nHost: h\r\n\r\n") == 400);
  CHECK(refused("G\xc3\xa9T / HTTP/1.1\r\nHost: h\r\n\r\n") == 400);
  CHECK(refused("GET /\x01 HTTP/1.1\r\nHost: h\r\n\r\n") == 400);
}

TEST_CASE("a request of HTTP/1.1 names exactly one host", "[web]") {
  CHECK(refused("GET / HTTP/1.1\r\n\r\n") == 400);
  CHECK(refused("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n") == 400);
  CHECK(refused("GET / HTTP/1.0\r\n\r\n") == 0);
  CHECK(refused("GET / HTTP/2.0\r\nHost: h\r\n\r\n") == 505);
}

TEST_CASE("a request beyond a limit is refused with the status that says which", "[web]") {
  RequestParser::Limits limits;
  limits.line = 100;
  limits.head = 1000;
  limits.headers = 4;
  limits.body = 10;
  const auto get = [](const std::string& target, const std::string& more) {
    return "GET " + target + " HTTP/1.1\r\nHost: h\r\n" + more + "\r\n";
  };
  // 13 bytes of the line are not the target's.
  CHECK(refused(get("/" + std::string(86, 'a'), ""), limits) == 0);
  CHECK(refused(get("/" + std::string(87, 'a'), ""), limits) == 414);
  CHECK(refused("\r\n\r\n" + get("/" + std::string(86, 'a'), ""), limits) == 0);
  CHECK(refused("OPTIONS /" + std::string(86, 'a') + " HTTP/1.1\r\nHost: h\r\n\r\n", limits) ==
        414);
  CHECK(refused(get("/", "A: 1\r\nB: 2\r\nC: 3\r\n"), limits) == 0);
  CHECK(refused(get("/", "A: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\n"), limits) == 431);
  CHECK(refused(get("/", "A: " + std::string(1000, 'a') + "\r\n"), limits) == 431);
  CHECK(refused(get("/", std::string(1001, 'a') + ": 1\r\n"), limits) == 431);
  const std::string post = "POST / HTTP/1.1\r\nHost: h\r\n";
  CHECK(refused(post + "Content-Length: 10\r\n\r\n0123456789", limits) == 0);
  CHECK(refused(post + "Content-Length: 11\r\n\r\n", limits) == 413);
  const std::string chunked = post + "Transfer-Encoding: chunked\r\n\r\n";
  CHECK(refused(chunked + "a\r\n0123456789\r\n0\r\n\r\n", limits) == 0);
  CHECK(refused(chunked + "b\r\n0123456789a\r\n0\r\n\r\n", limits) == 413);
  CHECK(refused(chunked + "9\r\n012345678\r\n2\r\n", limits) == 413);  // before it comes
  CHECK(refused(chunked + "9\r\n012345678\r\n7fffffffffffffff\r\n", limits) == 413);
}

TEST_CASE("the limit of a line is each request's own", "[web]") {
  RequestParser::Limits limits;
  limits.line = 40;
  const std::string one = "GET /" + std::string(26, 'a') + " HTTP/1.1\r\nHost: h\r\n\r\n";
  CHECK(refused(one + one + one, limits) == 0);
  CHECK(refused(one + "GET /" + std::string(27, 'a') + " HTTP/1.1\r\n", limits) == 414);
  CHECK(refused(one + "GET  / HTTP/1.1\r\nHost: h\r\n\r\n", limits) == 400);
}

TEST_CASE("a length that fits no signed number of 64 bits is refused before a body comes",
          "[web]") {
  const std::string post = "POST / HTTP/1.1\r\nHost: h\r\n";
  const std::string chunked = post + "Transfer-Encoding: chunked\r\n\r\n";
  CHECK(refused(post + "Content-Length: 9223372036854775807\r\n\r\n") == 0);
  CHECK(refused(post + "Content-Length: 9223372036854775808\r\n\r\n") == 400);
  CHECK(refused(post + "Content-Length: 18446744073709551615\r\n\r\n") == 400);
  CHECK(refused(chunked + "7fffffffffffffff\r\n") == 0);
  CHECK(refused(chunked + "8000000000000000\r\n") == 400);
  CHECK(refused(chunked + "ffffffffffffffff\r\n") == 400);
}

TEST_CASE("what nobody keeps is bounded, too: spaces, chunk extensions and trailers", "[web]") {
  RequestParser::Limits limits;
  limits.line = 100;
  limits.head = 1000;
  Heard heard;
  RequestParser spaces(limits, heard);
  RequestParser::Outcome outcome = spaces.feed("GET / HTTP/1.1\r\nHost:");
  for (int i = 0; i < 100 && outcome.state == State::kMore; ++i)
    outcome = spaces.feed(std::string(100, ' '));
  CHECK(outcome.status == 431);
  const std::string chunked = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
  CHECK(refused(chunked + "1;" + std::string(20'000, 'a') + "\r\n") == 431);
  CHECK(refused(chunked + "0\r\nX: " + std::string(20'000, 'a') + "\r\n") == 431);
}

TEST_CASE("a sink that says no stops the parser", "[web]") {
  Heard heard;
  heard.go_on = false;
  RequestParser parser({}, heard);
  CHECK(parser.feed("GET / HTTP/1.1\r\nHost: h\r\n\r\n").state == State::kStopped);
}
