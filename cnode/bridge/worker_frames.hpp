// WorkerFrames: the bytes that pass between the node and one of its worker processes.
//
//   length:32  kind:8  body, which is length - 1 bytes          numbers are big-endian
//
// Neither side takes the other's word for anything: a length has a limit, a body is read with
// bounds, and memory follows the bytes that came, not the length that was announced.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "cnode/base/result.hpp"
#include "cnode/etf/reader.hpp"
#include "cnode/etf/writer.hpp"

namespace bridge {

// To a worker process.
enum class ToWorker : std::uint8_t {
  kSettings = 1,  // a term; the first frame
  kCall,          // CallHead, then the request or the arguments
  kCancel,        // number:64
  kForget,        // an encoded pid: its namespace is not needed any more
  kGiveBack,      // empty: what no thread has begun
  kLook,          // id:64 size:16 module function: is it a coroutine function?
  kPing,          // empty; answered by Python's loop
  kStop,          // empty
  kAnswer,        // id:64 told:8 matched:8 then what was told
};

// From one.
enum class FromWorker : std::uint8_t {
  kHello = 1,  // empty: Python and its imports are there
  kResult,     // number:64 flags:8 then the value or the reason
  kOver,       // number:64 flags:8 outcome:8: ended, and nobody to tell
  kTask,       // number:64: runs as a coroutine from now on, on no thread
  kGivenBack,  // number:64 of each call
  kLooked,     // id:64 yes:8
  kPong,       // empty
  kAsk,        // id:64 kind:8 call:64 thread:64 then what front.hpp says
  kForgetAsk,  // id:64: nobody waits for it any more
  kDistrust,   // number:64: its caller sent what no honest peer sends; before its result
};

inline constexpr std::uint8_t kResultError = 1;
inline constexpr std::uint8_t kResultKnown = 2;  // there is such a function; for the metrics
inline constexpr std::uint8_t kNoOutcome = 255;  // of CallMetrics::Result

// What a worker process has to know of a call.
struct CallHead {
  std::uint64_t number = 0;
  std::uint8_t kind = 0;  // Call::Kind
  bool on_loop = false;   // a coroutine function: its loop is to take it, not a thread
  etf::Bytes from;        // an encoded pid; may be empty
  std::string_view module;
  std::string_view function;
  std::string_view peer;  // the node it came from
};

// A frame while it is written into `out`; its length is filled in by end().
class FrameWriter {
 public:
  FrameWriter(etf::Buffer& out, std::uint8_t kind);
  FrameWriter(etf::Buffer& out, ToWorker kind)
      : FrameWriter(out, static_cast<std::uint8_t>(kind)) {}
  FrameWriter(etf::Buffer& out, FromWorker kind)
      : FrameWriter(out, static_cast<std::uint8_t>(kind)) {}

  FrameWriter& u8(std::uint8_t value);
  FrameWriter& u16(std::uint16_t value);
  FrameWriter& u64(std::uint64_t value);
  FrameWriter& sized(etf::Bytes bytes);  // size:16, then as many
  FrameWriter& sized(std::string_view text);
  FrameWriter& raw(etf::Bytes bytes);
  FrameWriter& head(const CallHead& head);
  // `following` bytes of the body are sent by themselves, behind this buffer.
  void end(std::size_t following = 0);

 private:
  etf::Buffer& out_;
  const std::size_t start_;
};

// A frame's body, read from front to back. What is not there is nullopt, and nothing after it is
// read either.
class FrameFields {
 public:
  explicit FrameFields(etf::Bytes body) : left_(body) {}

  std::optional<std::uint8_t> u8();
  std::optional<std::uint16_t> u16();
  std::optional<std::uint64_t> u64();
  std::optional<etf::Bytes> sized();
  std::optional<CallHead> head();
  etf::Bytes rest() const { return left_; }
  bool at_end() const { return left_.empty(); }

 private:
  std::optional<etf::Bytes> take(std::size_t count);

  etf::Bytes left_;
};

// Cuts frames out of what arrives.
class FrameReader {
 public:
  struct Frame {
    std::uint8_t kind = 0;
    etf::Bytes body;  // valid until room() is called again
    // Of a large frame the buffer itself, which may be taken over; else nullptr.
    etf::Buffer* whole = nullptr;
  };

  explicit FrameReader(std::size_t limit) : limit_(limit) {}

  // Where to put what arrives next, and how much of it was filled.
  std::span<std::uint8_t> room();
  void filled(std::size_t count);
  // The next whole frame, or nullopt while it is not there.
  base::Result<std::optional<Frame>> next();

 private:
  const std::size_t limit_;
  etf::Buffer small_;       // frames, and the beginning of one more
  std::size_t at_ = 0;      // of it, already handed out
  etf::Buffer large_;       // the body of a frame that is being received by itself
  std::size_t wanted_ = 0;  // its size; 0: there is none
  std::uint8_t large_kind_ = 0;
};

}  // namespace bridge
