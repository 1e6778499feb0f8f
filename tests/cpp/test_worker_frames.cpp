#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "catch.hpp"
#include "cnode/bridge/worker_frames.hpp"

using bridge::CallHead;
using bridge::FrameFields;
using bridge::FrameReader;
using bridge::FrameWriter;
using bridge::FromWorker;
using bridge::ToWorker;

namespace {

etf::Bytes view(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

std::string text(etf::Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string frame_of(ToWorker kind, const std::string& body) {
  etf::Buffer out;
  FrameWriter(out, kind).raw(view(body)).end();
  return text(out.bytes());
}

// What the reader makes of these bytes when they come in pieces of at most `step`.
std::vector<std::string> read(FrameReader& reader, const std::string& bytes, std::size_t step) {
  std::vector<std::string> bodies;
  for (std::size_t at = 0; at < bytes.size();) {
    const auto room = reader.room();
    const std::size_t count = std::min({step, room.size(), bytes.size() - at});
    std::memcpy(room.data(), bytes.data() + at, count);
    reader.filled(count);
    at += count;
    for (;;) {
      auto frame = reader.next();
      REQUIRE(frame);
      if (!*frame) break;
      bodies.push_back(std::to_string((*frame)->kind) + text((*frame)->body));
    }
  }
  return bodies;
}

}  // namespace

TEST_CASE("frames come out whole wherever the bytes were cut", "[worker_frames]") {
  const std::string large(200'000, 'x');
  const std::string bytes = frame_of(ToWorker::kStop, "") +
                            frame_of(ToWorker::kCancel, "12345678") +
                            frame_of(ToWorker::kCall, large) + frame_of(ToWorker::kLook, "ab");
  const std::vector<std::string> expected{"8", "312345678", "2" + large, "6ab"};
  const std::size_t step = GENERATE(1, 2, 3, 5, 7, 4096, 65'536, 1'000'000);
  FrameReader reader(1 << 20);
  CHECK(read(reader, bytes, step) == expected);
}

TEST_CASE("a large frame's buffer can be taken over", "[worker_frames]") {
  const std::string bytes = frame_of(ToWorker::kCall, std::string(300'000, 'y'));
  FrameReader reader(1 << 20);
  etf::Buffer taken;
  for (std::size_t at = 0; at < bytes.size();) {
    const auto room = reader.room();
    const std::size_t count = std::min(room.size(), bytes.size() - at);
    std::memcpy(room.data(), bytes.data() + at, count);
    reader.filled(count);
    at += count;
    auto frame = reader.next();
    REQUIRE(frame);
    if (!*frame) continue;
    REQUIRE((*frame)->whole != nullptr);
    taken = std::move(*(*frame)->whole);
  }
  CHECK(taken.size() == 300'000);
  CHECK(read(reader, frame_of(ToWorker::kPing, "z"), 100) == std::vector<std::string>{"7z"});
}

TEST_CASE("a frame over the limit, or of no length, is an error and no allocation",
          "[worker_frames]") {
  const std::string head =
      GENERATE(std::string("\xFF\xFF\xFF\xFF\x01", 5), std::string("\x00\x01\x00\x02\x01", 5),
               std::string("\x00\x00\x00\x00\x01", 5));
  FrameReader reader(1 << 16);
  const auto room = reader.room();
  std::memcpy(room.data(), head.data(), head.size());
  reader.filled(head.size());
  CHECK_FALSE(reader.next());
}

TEST_CASE("a frame's announced length takes no memory before its bytes come", "[worker_frames]") {
  FrameReader reader(1 << 30);
  const std::string head("\x30\x00\x00\x00\x02", 5);
  const auto room = reader.room();
  std::memcpy(room.data(), head.data(), head.size());
  reader.filled(head.size());
  REQUIRE(reader.next());
  CHECK(reader.room().size() <= (1 << 20));
}

TEST_CASE("a call's head is read as it was written", "[worker_frames]") {
  const std::string pid("some pid");
  etf::Buffer out;
  FrameWriter(out, ToWorker::kCall)
      .head({77, 3, true, view(pid), "a.module", "function", "n@host"})
      .raw(view("rest"))
      .end();
  FrameReader reader(1 << 16);
  const auto frames = read(reader, text(out.bytes()), 4096);
  REQUIRE(frames.size() == 1);
  const std::string body = frames[0].substr(1);
  FrameFields fields(view(body));
  auto head = fields.head();
  REQUIRE(head);
  CHECK(head->number == 77);
  CHECK(head->kind == 3);
  CHECK(head->on_loop);
  CHECK(text(head->from) == pid);
  CHECK(head->module == "a.module");
  CHECK(head->function == "function");
  CHECK(head->peer == "n@host");
  CHECK(text(fields.rest()) == "rest");
}

TEST_CASE("fields that are cut off are not there, and nothing behind them is", "[worker_frames]") {
  etf::Buffer out;
  FrameWriter(out, ToWorker::kCall).head({1, 2, false, {}, "module", "f", ""}).end();
  const std::string whole = text(out.bytes()).substr(5);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const std::string cut = whole.substr(0, size);
    FrameFields fields(view(cut));
    CHECK_FALSE(fields.head());
  }
  const std::string short_one("\x00\x09x", 3);
  FrameFields fields(view(short_one));
  CHECK_FALSE(fields.sized());
  CHECK_FALSE(fields.u8());
  CHECK(fields.at_end());
}
