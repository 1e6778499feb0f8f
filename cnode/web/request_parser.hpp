// RequestParser: the requests of one connection, cut out of its bytes by llhttp, within limits.
//
//   bytes ──▶ feed() ──▶ on_head, on_body*, on_end ─┐   stops behind every request: what follows it
//             ▲                                     │   (pipelining) is fed when it has been
//             answered └──────────── next() ◀────────────────┘
//
// llhttp is strict here: no bare line feeds, no folded lines, no space before a colon, one length.
// What it leaves to its users is added: limits, one space between the parts of the first line,
// exactly one Host, codings other than chunked, versions, lengths beyond 63 bits.
#pragma once

#include <llhttp.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace web {

class RequestParser {
 public:
  struct Limits {
    std::size_t line = 8192;    // bytes of the first line: method, target and version
    std::size_t head = 65536;   // bytes from the first to the empty line; of trailers, too
    std::size_t headers = 128;  // how many
    std::uint64_t body = 0;     // bytes; 0: no bound
  };

  struct Header {
    std::string_view name;  // lower case
    std::string_view value;
  };

  // Good until the next request is fed.
  struct Head {
    std::string_view method;
    std::string_view target;
    unsigned minor = 1;  // of HTTP/1.minor
    const std::vector<Header>& headers;
    bool keep_alive = true;
    bool upgrade = false;  // Connection: upgrade, with the header Upgrade
    bool has_body = false;
    bool expects_continue = false;
  };

  // Hears what was found. `false` stops the parser: nothing more is read.
  class Sink {
   public:
    virtual bool on_head(const Head& head) = 0;
    virtual bool on_body(std::string_view bytes) = 0;
    virtual bool on_end() = 0;

   protected:
    ~Sink() = default;
  };

  enum class State {
    kMore,     // everything was used
    kEnded,    // a request is complete; `used` may be less than what was fed
    kRefused,  // `status` and `reason` say how; the connection is of no use any more
    kStopped,  // the sink said so
  };
  struct Outcome {
    State state = State::kMore;
    std::size_t used = 0;
    int status = 0;
    std::string_view reason;
  };

  RequestParser(const Limits& limits, Sink& sink);
  RequestParser(const RequestParser&) = delete;
  RequestParser& operator=(const RequestParser&) = delete;

  Outcome feed(std::string_view bytes);
  // After kEnded: the next request may be fed.
  void next();
  // Whether a request has begun and not ended.
  bool in_request() const { return in_request_; }
  bool in_head() const { return in_request_ && !head_done_; }

 private:
  struct Span {
    std::size_t begin = 0;
    std::size_t size = 0;
  };
  struct Callbacks;

  static RequestParser& of(llhttp_t* parser) { return *static_cast<RequestParser*>(parser->data); }
  std::size_t take_line(std::string_view bytes);
  Outcome run(std::string_view bytes);
  int refuse(int status, std::string_view reason);
  int told(bool go_on);
  int extra(std::size_t size);
  int add(Span& span, const char* data, std::size_t size);
  int head_complete();
  int check_head();
  void begin();
  Span* name_span();

  const Limits limits_;
  Sink& sink_;
  llhttp_t parser_{};
  bool in_line_ = true;  // the first line is not complete
  bool after_space_ = false;
  std::size_t line_bytes_ = 0;
  bool in_request_ = false;
  bool head_done_ = false;
  bool stopped_ = false;
  bool value_seen_ = true;  // the name of the last header is complete
  std::string text_;        // target, names and values, one behind the other
  Span target_;
  std::vector<std::pair<Span, Span>> spans_;
  std::vector<Header> headers_;
  std::size_t head_bytes_ = 0;
  std::size_t extra_bytes_ = 0;  // of chunk extensions and trailers
  std::uint64_t body_bytes_ = 0;
  int status_ = 0;
  std::string_view reason_;
};

}  // namespace web
