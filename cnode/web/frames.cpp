#include "cnode/web/frames.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace web {
namespace {

// Less than this grows when it is compressed.
constexpr std::size_t kWorthCompressing = 64;
// What wslay says of a frame that it cannot read: a close without a code; and what is said instead.
constexpr std::string_view kCloseWithoutCode("\x88\x00", 2);
constexpr std::string_view kProtocolError("\x88\x02\x03\xea", 4);

const std::uint8_t* bytes_of(std::string_view text) {
  return reinterpret_cast<const std::uint8_t*>(text.data());
}

}  // namespace

struct Frames::Callbacks {
  static Frames& of(void* user) { return *static_cast<Frames*>(user); }

  static ssize_t receive(wslay_event_context_ptr context, std::uint8_t* room, std::size_t size, int,
                         void* user) {
    Frames& self = of(user);
    if (self.input_.empty()) {
      wslay_event_set_error(context, WSLAY_ERR_WOULDBLOCK);
      return -1;
    }
    const std::size_t count = std::min(size, self.input_.size());
    std::memcpy(room, self.input_.data(), count);
    self.input_.remove_prefix(count);
    return static_cast<ssize_t>(count);
  }
  static ssize_t send(wslay_event_context_ptr, const std::uint8_t* data, std::size_t size, int,
                      void* user) {
    of(user).output_.append(reinterpret_cast<const char*>(data), size);
    return static_cast<ssize_t>(size);
  }
  static void begin(wslay_event_context_ptr, const wslay_event_on_frame_recv_start_arg* arg,
                    void* user) {
    of(user).in_close_ = arg->opcode == WSLAY_CONNECTION_CLOSE;
  }
  static void piece(wslay_event_context_ptr, const wslay_event_on_frame_recv_chunk_arg* arg,
                    void* user) {
    Frames& self = of(user);
    if (self.in_close_)
      self.closing_.append(reinterpret_cast<const char*>(arg->data), arg->data_length);
  }
  static void end(wslay_event_context_ptr, void* user) {
    if (of(user).in_close_) of(user).take_close();
  }
  static void message(wslay_event_context_ptr, const wslay_event_on_msg_recv_arg* arg, void* user) {
    of(user).message(*arg);
  }
};

Frames::Frames(Sink& sink, std::size_t max_message, const std::optional<DeflateTerms>& deflate)
    : sink_(sink), max_message_(max_message) {
  if (deflate) {
    inflater_ = std::make_unique<Inflater>(*deflate);
    deflater_ = std::make_unique<Deflater>(*deflate);
  }
  const wslay_event_callbacks callbacks{Callbacks::receive, Callbacks::send,  nullptr,
                                        Callbacks::begin,   Callbacks::piece, Callbacks::end,
                                        Callbacks::message};
  if (wslay_event_context_server_init(&context_, &callbacks, this) != 0) throw std::bad_alloc();
  wslay_event_config_set_max_recv_msg_length(context_, max_message_);
  if (deflate) wslay_event_config_set_allowed_rsv_bits(context_, WSLAY_RSV1_BIT);
}

Frames::~Frames() { wslay_event_context_free(context_); }

void Frames::feed(std::string_view bytes) {
  if (failed_) return;
  const bool said = close_sent();
  input_ = bytes;
  const int status = wslay_event_recv(context_);
  input_ = {};
  flush();
  if (status != 0) {  // a frame that is none, or no memory
    failed_ = true;
    if (!said && output_.ends_with(kCloseWithoutCode))
      output_.replace(output_.size() - kCloseWithoutCode.size(), std::string::npos, kProtocolError);
  }
  // wslay says what is wrong with a frame in a close frame of its own and reads no more.
  const bool reads = wslay_event_get_read_enabled(context_) != 0;
  if ((!failed_ && reads) || std::exchange(told_, true)) return;
  const auto code = failed_ ? std::uint16_t{WSLAY_CODE_PROTOCOL_ERROR}
                            : wslay_event_get_status_code_sent(context_);
  sink_.on_close(code, {});
}

void Frames::message(const wslay_event_on_msg_recv_arg& arg) {
  if (failed_) return;
  if (arg.opcode != WSLAY_TEXT_FRAME && arg.opcode != WSLAY_BINARY_FRAME) return;
  if (close_sent()) return;  // what was on its way when we closed
  const std::string_view bytes(reinterpret_cast<const char*>(arg.msg), arg.msg_length);
  const Kind kind = arg.opcode == WSLAY_TEXT_FRAME ? Kind::kText : Kind::kBinary;
  if (wslay_get_rsv1(arg.rsv) == 0) return sink_.on_message(kind, bytes);
  std::string inflated;
  switch (inflater_->inflate(bytes, max_message_, inflated)) {
    case Inflater::Result::kDone:
      return sink_.on_message(kind, inflated);
    case Inflater::Result::kBroken:
      return fail(WSLAY_CODE_PROTOCOL_ERROR);
    case Inflater::Result::kTooLarge:
      return fail(WSLAY_CODE_MESSAGE_TOO_BIG);
  }
}

// Before wslay judges it: the first close frame counts.
void Frames::take_close() {
  if (failed_ || wslay_event_get_read_enabled(context_) == 0) return;
  if (closing_.empty()) {
    peer_closed_ = true;
    if (!std::exchange(told_, true)) sink_.on_close(WSLAY_CODE_NO_STATUS_RCVD, {});
    return;
  }
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(closing_[i]); };
  const long code = closing_.size() < 2 ? 0 : byte(0) * 256L + byte(1);
  if (!is_close_code(code)) return fail(WSLAY_CODE_PROTOCOL_ERROR);
  const std::string_view reason = std::string_view(closing_).substr(2);
  peer_closed_ = true;
  close(static_cast<std::uint16_t>(code), reason);
  if (!std::exchange(told_, true)) sink_.on_close(static_cast<std::uint16_t>(code), reason);
}

bool Frames::send(Kind kind, std::string_view bytes) {
  if (close_sent() || failed_) return false;
  wslay_event_msg message{};
  message.opcode = kind == Kind::kText ? WSLAY_TEXT_FRAME : WSLAY_BINARY_FRAME;
  std::string deflated;
  std::uint8_t reserved = WSLAY_RSV_NONE;
  if (deflater_ && bytes.size() >= kWorthCompressing) {
    deflated = deflater_->deflate(bytes);
    bytes = deflated;
    reserved = WSLAY_RSV1_BIT;
  }
  message.msg = bytes_of(bytes);
  message.msg_length = bytes.size();
  if (wslay_event_queue_msg_ex(context_, &message, reserved) != 0) return false;
  flush();
  return true;
}

void Frames::ping() {
  if (close_sent() || failed_) return;
  const wslay_event_msg message{WSLAY_PING, nullptr, 0};
  wslay_event_queue_msg(context_, &message);
  flush();
}

void Frames::close(std::uint16_t code, std::string_view reason) {
  if (code == WSLAY_CODE_NO_STATUS_RCVD) code = 0;
  wslay_event_queue_close(context_, code, bytes_of(reason), code == 0 ? 0 : reason.size());
  flush();
}

void Frames::fail(std::uint16_t code) {
  if (std::exchange(failed_, true)) return;
  wslay_event_queue_close(context_, code, nullptr, 0);
  wslay_event_shutdown_read(context_);
  flush();
  if (!std::exchange(told_, true)) sink_.on_close(code, {});
}

bool Frames::close_sent() const { return wslay_event_get_close_sent(context_) != 0; }

bool Frames::is_close_code(long code) {
  const bool named = code >= 1000 && code <= 1014;  // 1012 to 1014 came after the RFC
  return (named && code != 1004 && code != 1005 && code != 1006) || (code >= 3000 && code <= 4999);
}

bool Frames::finished() const {
  return failed_ || wslay_event_get_read_enabled(context_) == 0 ||
         (close_sent() && wslay_event_get_close_received(context_) != 0);
}

void Frames::flush() { wslay_event_send(context_); }

}  // namespace web
