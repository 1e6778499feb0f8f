// Frames: the WebSocket side of a connection that has switched protocols (RFC 6455, RFC 7692), by
// wslay and zlib.
//
//   bytes ──▶ feed() ──▶ Sink::on_message, on_close
//   send(), ping(), close() ──▶ output(), to be written by whoever owns us
//
// Pings are answered, fragments put together, text is valid UTF-8 unless it was compressed: then
// that is for the sink to see, and to call fail(1007). Close frames are read here: wslay knows the
// codes of the RFC and not those registered since, and lets one of a single byte pass.
#pragma once

#include <wslay/wslay.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "cnode/web/deflate.hpp"

namespace web {

class Frames {
 public:
  enum class Kind { kText, kBinary };

  class Sink {
   public:
    virtual void on_message(Kind kind, std::string_view bytes) = 0;
    // The peer's close frame, or what we closed with on its account. 1005: it gave no code.
    virtual void on_close(std::uint16_t code, std::string_view reason) = 0;

   protected:
    ~Sink() = default;
  };

  Frames(Sink& sink, std::size_t max_message, const std::optional<DeflateTerms>& deflate);
  ~Frames();
  Frames(const Frames&) = delete;
  Frames& operator=(const Frames&) = delete;

  void feed(std::string_view bytes);
  // False once a close frame was sent: the message is dropped.
  bool send(Kind kind, std::string_view bytes);
  void ping();
  // The first of these counts.
  void close(std::uint16_t code, std::string_view reason);
  // For what the peer did wrong: says so, and reads no more.
  void fail(std::uint16_t code);

  std::string& output() { return output_; }
  bool close_sent() const;
  bool close_received() const { return peer_closed_; }
  // Whether a close frame may have it: by the RFC, or by what IANA has registered since.
  static bool is_close_code(long code);
  // Nothing more will come, nor has anything more to be said: the connection can go.
  bool finished() const;

 private:
  struct Callbacks;
  void flush();
  void message(const wslay_event_on_msg_recv_arg& arg);
  void take_close();

  Sink& sink_;
  const std::size_t max_message_;
  std::unique_ptr<Inflater> inflater_;
  std::unique_ptr<Deflater> deflater_;
  wslay_event_context_ptr context_ = nullptr;
  std::string_view input_;
  bool peer_closed_ = false;  // with a close frame that is one
  bool in_close_ = false;     // the frame that is being read is a close frame
  std::string closing_;       // its payload
  std::string output_;
  bool failed_ = false;
  bool told_ = false;  // on_close was called
};

}  // namespace web
