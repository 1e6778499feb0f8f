#include "cnode/bridge/worker_socket.hpp"

#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <asio/post.hpp>

#include <array>
#include <cerrno>
#include <cstring>

namespace bridge {
namespace {

constexpr std::size_t kTurn = std::size_t{4} << 20;  // bytes read before others have theirs
constexpr std::size_t kPieces = 64;
constexpr std::size_t kJoin = 4096;        // a tail up to this size is copied behind its frame
constexpr std::size_t kPiece = 64 * 1024;  // small frames are gathered up to here

}  // namespace

WorkerSocket::WorkerSocket(asio::io_context& reactor, int descriptor, std::size_t limit)
    : reactor_(reactor),
      socket_(reactor, asio::local::stream_protocol(), descriptor),
      reader_(limit) {
  socket_.non_blocking(true);
}

void WorkerSocket::start(Hooks hooks) {
  hooks_ = std::move(hooks);
  wait_readable();
}

void WorkerSocket::close() {
  closed_ = true;
  const std::lock_guard lock(mutex_);
  broken_ = true;
  pieces_.clear();
  unsent_ = 0;
  asio::error_code ignored;
  socket_.close(ignored);
}

// --- reading
// -----------------------------------------------------------------------------------------------------

void WorkerSocket::wait_readable() {
  socket_.async_wait(asio::socket_base::wait_read,
                     [self = shared_from_this()](asio::error_code error) {
                       if (!error && !self->closed_) self->on_readable();
                     });
}

void WorkerSocket::on_readable() {
  const Left left = read_turn(kTurn);
  if (closed_) return;
  if (left == Left::kEnded) return fail("closed by the other side");
  wait_readable();
}

void WorkerSocket::read_what_is_there() {
  if (!closed_) read_turn(SIZE_MAX);
}

WorkerSocket::Left WorkerSocket::read_turn(std::size_t limit) {
  const auto self = shared_from_this();  // a hook may drop us
  Left left = Left::kSome;
  for (std::size_t taken = 0; taken < limit && !closed_;) {
    const auto room = reader_.room();
    const ssize_t count = recv(socket_.native_handle(), room.data(), room.size(), MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      left = Left::kNothing;
      break;
    }
    if (count <= 0) {
      left = Left::kEnded;
      break;
    }
    reader_.filled(static_cast<std::size_t>(count));
    taken += static_cast<std::size_t>(count);
    if (!hand_out()) break;
    if (static_cast<std::size_t>(count) < room.size()) {
      left = Left::kNothing;
      break;
    }
  }
  if (!closed_ && hooks_.on_turn) hooks_.on_turn();
  return left;
}

bool WorkerSocket::hand_out() {
  while (!closed_) {
    auto frame = reader_.next();
    if (!frame) {
      fail("sent what is no frame: " + frame.error().message());
      return false;
    }
    if (!*frame) return true;
    const std::uint8_t kind = (*frame)->kind;
    if (!hooks_.on_frame(**frame)) {
      fail("sent what cannot be understood: a frame of kind " + std::to_string(kind));
      return false;
    }
  }
  return false;
}

void WorkerSocket::fail(const std::string& why) {
  if (closed_) return;
  close();
  if (hooks_.on_closed) hooks_.on_closed(why);
}

// --- writing
// -----------------------------------------------------------------------------------------------------

void WorkerSocket::add(etf::Buffer frames, Payload payload, etf::Bytes tail) {
  const std::lock_guard lock(mutex_);
  if (broken_) return;
  unsent_ += frames.size() + tail.size();
  if (tail.size() <= kJoin) {
    frames.append(tail);
    tail = {};
    payload = nullptr;
    if (!pieces_.empty() && pieces_.back().tail.empty() && pieces_.back().size() < kPiece) {
      pieces_.back().frames.append(frames.bytes());
      return;
    }
  }
  pieces_.push_back({std::move(frames), std::move(payload), tail});
}

void WorkerSocket::flush() {
  const std::lock_guard lock(mutex_);
  if (waiting_ || broken_ || pieces_.empty()) return;
  if (write_some()) return;
  waiting_ = true;
  asio::post(reactor_, [self = shared_from_this()] { self->wait_writable(); });
}

bool WorkerSocket::write_some() {
  while (!pieces_.empty()) {
    std::array<iovec, 2 * kPieces> parts{};
    std::size_t count = 0;
    std::size_t skip = written_;
    for (auto& piece : pieces_) {
      if (count + 2 > parts.size()) break;
      for (const etf::Bytes bytes : {piece.frames.bytes(), piece.tail}) {
        const std::size_t here = std::min(skip, bytes.size());
        skip -= here;
        if (here == bytes.size()) continue;
        parts[count++] = {const_cast<std::uint8_t*>(bytes.data()) + here, bytes.size() - here};
      }
    }
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = count;
    const ssize_t sent = sendmsg(socket_.native_handle(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return false;
    if (sent < 0) {
      // The reading side learns of the end, and says so.
      broken_ = true;
      pieces_.clear();
      unsent_ = 0;
      return true;
    }
    unsent_ -= static_cast<std::size_t>(sent);
    written_ += static_cast<std::size_t>(sent);
    while (!pieces_.empty() && written_ >= pieces_.front().size()) {
      written_ -= pieces_.front().size();
      pieces_.pop_front();
    }
  }
  return true;
}

void WorkerSocket::wait_writable() {
  if (closed_) return;
  socket_.async_wait(asio::socket_base::wait_write,
                     [self = shared_from_this()](asio::error_code error) {
                       if (error || self->closed_) return;
                       bool done = false;
                       {
                         const std::lock_guard lock(self->mutex_);
                         done = self->write_some();
                         self->waiting_ = !done;
                       }
                       if (!done) return self->wait_writable();
                       if (self->hooks_.on_turn) self->hooks_.on_turn();
                     });
}

}  // namespace bridge
