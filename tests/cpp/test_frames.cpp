#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "catch.hpp"
#include "cnode/web/deflate.hpp"
#include "cnode/web/frames.hpp"

using web::choose_deflate;
using web::Deflater;
using web::DeflateTerms;
using web::Frames;
using web::Inflater;

namespace {

struct Heard final : Frames::Sink {
  std::vector<std::string> messages;
  std::vector<std::string> closes;

  void on_message(Frames::Kind kind, std::string_view bytes) override {
    messages.push_back((kind == Frames::Kind::kText ? "t:" : "b:") + std::string(bytes));
  }
  void on_close(std::uint16_t code, std::string_view reason) override {
    closes.push_back(std::to_string(code) + ":" + std::string(reason));
  }
};

// A client's frame.
std::string frame(int first, std::string payload, bool masked = true) {
  std::string bytes(1, static_cast<char>(first));
  const char mask_bit = masked ? '\x80' : '\0';
  if (payload.size() < 126) {
    bytes += static_cast<char>(mask_bit | static_cast<char>(payload.size()));
  } else if (payload.size() < 65536) {
    bytes += static_cast<char>(mask_bit | 126);
    bytes += static_cast<char>(payload.size() >> 8U);
    bytes += static_cast<char>(payload.size() & 0xffU);
  } else {
    bytes += static_cast<char>(mask_bit | 127);
    for (int shift = 56; shift >= 0; shift -= 8)
      bytes += static_cast<char>((payload.size() >> static_cast<unsigned>(shift)) & 0xffU);
  }
  if (!masked) return bytes + payload;
  const std::string mask = "\x11\x22\x33\x44";
  for (std::size_t i = 0; i < payload.size(); ++i)
    payload[i] = static_cast<char>(payload[i] ^ mask[i % 4]);
  return bytes + mask + payload;
}

std::string close_payload(int code, const std::string& reason = "") {
  return std::string{static_cast<char>(code >> 8), static_cast<char>(code & 0xff)} + reason;
}

// The code in the close frame that is the last of what was written.
int close_code(const std::string& output) {
  const auto at = output.rfind('\x88');
  if (at == std::string::npos) return 0;
  if (output.size() < at + 4) return 1005;
  return static_cast<unsigned char>(output[at + 2]) * 256 +
         static_cast<unsigned char>(output[at + 3]);
}

int failed_with(const std::string& bytes, std::size_t limit = 1 << 20) {
  Heard heard;
  Frames frames(heard, limit, {});
  frames.feed(bytes);
  return close_code(frames.output());
}

}  // namespace

TEST_CASE("messages come out the same wherever their frames are cut", "[web]") {
  const std::string bytes = frame(0x81, "hello") + frame(0x02, "ab") + frame(0x89, "ping") +
                            frame(0x80, "cd") + frame(0x81, "") +
                            frame(0x82, std::string(300, 'x'));
  for (std::size_t step = 1; step <= bytes.size(); ++step) {
    Heard heard;
    Frames frames(heard, 1 << 20, {});
    for (std::size_t at = 0; at < bytes.size(); at += step)
      frames.feed(std::string_view(bytes).substr(at, step));
    REQUIRE(heard.messages ==
            std::vector<std::string>{"t:hello", "b:abcd", "t:", "b:" + std::string(300, 'x')});
    CHECK(frames.output() == std::string("\x8a\x04ping", 6));
    CHECK(heard.closes.empty());
  }
}

TEST_CASE("what is sent is one frame, unmasked", "[web]") {
  Heard heard;
  Frames frames(heard, 100, {});
  CHECK(frames.send(Frames::Kind::kText, "hi"));
  CHECK(frames.send(Frames::Kind::kBinary, ""));
  frames.ping();
  CHECK(frames.output() == std::string("\x81\x02hi\x82\x00\x89\x00", 8));
}

TEST_CASE("a close is answered with its code, once, and ends it", "[web]") {
  Heard heard;
  Frames frames(heard, 100, {});
  frames.feed(frame(0x88, close_payload(3001, "bye")) + frame(0x81, "too late"));
  CHECK(heard.closes == std::vector<std::string>{"3001:bye"});
  CHECK(heard.messages.empty());
  CHECK(close_code(frames.output()) == 3001);
  CHECK(frames.finished());
  CHECK_FALSE(frames.send(Frames::Kind::kText, "nobody hears it"));
}

TEST_CASE("a close code that was registered after the standard is one, too", "[web]") {
  for (const int code : {1012, 1013, 1014}) {
    const std::string bytes = frame(0x88, close_payload(code, "later"));
    for (std::size_t step = 1; step <= bytes.size(); ++step) {
      Heard heard;
      Frames frames(heard, 100, {});
      for (std::size_t at = 0; at < bytes.size(); at += step)
        frames.feed(std::string_view(bytes).substr(at, step));
      CHECK(heard.closes == std::vector<std::string>{std::to_string(code) + ":later"});
      CHECK(frames.output() == "\x88\x07" + close_payload(code, "later"));
      CHECK(frames.finished());
    }
  }
}

TEST_CASE("a close without a code is answered without one", "[web]") {
  Heard heard;
  Frames frames(heard, 100, {});
  frames.feed(frame(0x88, ""));
  CHECK(heard.closes == std::vector<std::string>{"1005:"});
  CHECK(frames.output() == std::string("\x88\x00", 2));
  CHECK(frames.finished());
}

TEST_CASE("what is no frame behind our own close says nothing more", "[web]") {
  Heard heard;
  Frames frames(heard, 100, {});
  frames.close(1005, "");
  frames.feed(frame(0x09, "x"));
  CHECK(frames.output() == std::string("\x88\x00", 2));
  CHECK(frames.finished());
}

TEST_CASE("our close waits for the peer's", "[web]") {
  Heard heard;
  Frames frames(heard, 100, {});
  frames.close(1012, "restart");
  CHECK(frames.close_sent());
  CHECK_FALSE(frames.finished());
  frames.feed(frame(0x81, "on its way") + frame(0x88, close_payload(1012)));
  CHECK(heard.messages.empty());
  CHECK(frames.finished());
}

TEST_CASE("what the protocol forbids fails the connection with the code that says so", "[web]") {
  CHECK(failed_with(frame(0x81, "x", false)) == 1002);  // not masked
  CHECK(failed_with(frame(0xc1, "x")) == 1002);         // reserved bits
  CHECK(failed_with(frame(0xa1, "x")) == 1002);
  CHECK(failed_with(frame(0x83, "x")) == 1002);  // reserved opcodes
  CHECK(failed_with(frame(0x8b, "x")) == 1002);
  CHECK(failed_with(frame(0x80, "x")) == 1002);  // a continuation of nothing
  CHECK(failed_with(frame(0x01, "x") + frame(0x81, "y")) == 1002);
  CHECK(failed_with(frame(0x09, "x")) == 1002);  // a fragmented ping
  CHECK(failed_with(frame(0x89, std::string(126, 'x'))) == 1002);
  CHECK(failed_with(frame(0x88, "x")) == 1002);  // half a code
  CHECK(failed_with(frame(0x88, close_payload(1000, std::string(124, 'r')))) == 1002);
  CHECK(failed_with(std::string("\x82\xfe\x00\x01\x11\x22\x33\x44x", 9)) == 1002);  // a long length
  CHECK(failed_with(std::string("\x82\xff\x80\0\0\0\0\0\0\1\x11\x22\x33\x44x", 15)) == 1002);
  CHECK(failed_with(frame(0x89, "before") + frame(0x09, "x")) == 1002);
  CHECK(failed_with(frame(0x88, close_payload(1005))) == 1002);
  CHECK(failed_with(frame(0x88, close_payload(999))) == 1002);
  CHECK(failed_with(frame(0x88, close_payload(1015))) == 1002);
  CHECK(failed_with(frame(0x88, close_payload(1000, "\xff"))) == 1007);
  CHECK(failed_with(frame(0x88, close_payload(1000, "\xe2\x82"))) == 1007);
  CHECK(failed_with(frame(0x81, "\xc3\x28")) == 1007);
  CHECK(failed_with(frame(0x81, "\xe2\x82")) == 1007);  // cut within a character
  CHECK(failed_with(frame(0x82, std::string(101, 'x')), 100) == 1009);
  CHECK(failed_with(frame(0x02, std::string(60, 'x')) + frame(0x80, std::string(60, 'x')), 100) ==
        1009);
  CHECK(failed_with("\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x11\x22\x33\x44x") == 1009);
}

TEST_CASE("a failure is told once, and nothing is read after it", "[web]") {
  Heard heard;
  Frames frames(heard, 100, {});
  frames.feed(frame(0x81, "one") + frame(0x83, "") + frame(0x81, "two"));
  frames.feed(frame(0x81, "three"));
  CHECK(heard.messages == std::vector<std::string>{"t:one"});
  CHECK(heard.closes == std::vector<std::string>{"1002:"});
  CHECK(frames.finished());
}

TEST_CASE("compressed messages are taken and made as agreed", "[web]") {
  for (const bool takeover : {true, false}) {
    DeflateTerms terms;
    terms.client_takeover = terms.server_takeover = takeover;
    terms.client_bits = 12;
    DeflateTerms mirrored = terms;  // the client's side
    mirrored.server_bits = terms.client_bits;
    Deflater client(mirrored);
    Inflater client_in(DeflateTerms{12, terms.server_bits, takeover, takeover, false});
    Heard heard;
    Frames frames(heard, 1 << 20, terms);
    const std::string text = "the same words, again and again, the same words, again and again; " +
                             std::string(100, 'a');
    for (int i = 0; i < 3; ++i) {
      frames.feed(frame(0xc1, client.deflate(text)));
      REQUIRE(heard.messages.size() == static_cast<std::size_t>(i + 1));
      CHECK(heard.messages.back() == "t:" + text);
      CHECK(frames.send(Frames::Kind::kText, text));
      std::string out;
      std::swap(out, frames.output());
      REQUIRE(static_cast<unsigned char>(out[0]) == 0xc1);
      CHECK(out.size() < text.size());
      std::string inflated;
      CHECK(client_in.inflate(std::string_view(out).substr(2), 1 << 20, inflated) ==
            Inflater::Result::kDone);
      CHECK(inflated == text);
    }
    frames.feed(frame(0x81, "plain"));
    CHECK(heard.messages.back() == "t:plain");
  }
}

TEST_CASE("a compressed message that is broken or swells beyond the limit fails the connection",
          "[web]") {
  DeflateTerms terms;
  Heard heard;
  Frames broken(heard, 1 << 20, terms);
  broken.feed(frame(0xc1, "\xff\xff\xff\xff"));
  CHECK(close_code(broken.output()) == 1002);
  DeflateTerms mirrored;
  mirrored.server_bits = 15;
  Deflater client(mirrored);
  const std::string bomb = client.deflate(std::string(50 << 20U, '\0'));
  Frames frames(heard, 1 << 20, terms);
  frames.feed(frame(0xc2, bomb));
  CHECK(close_code(frames.output()) == 1009);
  CHECK(heard.messages.empty());
}

TEST_CASE("an offer of compression is taken if zlib can do it and it makes sense", "[web]") {
  CHECK(choose_deflate("permessage-deflate")->header() ==
        "permessage-deflate; server_max_window_bits=12");
  CHECK(choose_deflate("x-webkit-deflate-frame, permessage-deflate; client_max_window_bits")
            ->header() ==
        "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12");
  const auto terms = choose_deflate(
      "permessage-deflate; server_no_context_takeover; client_no_context_takeover; "
      "server_max_window_bits=10; "
      "client_max_window_bits=\"9\"");
  REQUIRE(terms);
  CHECK(terms->server_bits == 10);
  CHECK(terms->client_bits == 9);
  CHECK_FALSE(terms->server_takeover);
  CHECK_FALSE(terms->client_takeover);
  CHECK(choose_deflate("permessage-deflate; server_max_window_bits=8, permessage-deflate"));
  for (const char* bad :
       {"", "deflate", "permessage-deflate; unknown", "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=010",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; client_max_window_bits="})
    CHECK_FALSE(choose_deflate(bad));
}
