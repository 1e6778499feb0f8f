#include "cnode/web/request_parser.hpp"

#include <algorithm>
#include <cstdint>

namespace web {
namespace {

char to_lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

bool same_text(std::string_view value, std::string_view lower_case) {
  return std::equal(value.begin(), value.end(), lower_case.begin(), lower_case.end(),
                    [](char a, char b) { return to_lower(a) == b; });
}

constexpr std::size_t kMaxExtensions = 16 * 1024;
// Who keeps lengths with a sign reads another one beyond this.
constexpr std::uint64_t kMaxLength = INT64_MAX;

}  // namespace

// llhttp's callbacks; one that does not answer 0 ends the parsing.
struct RequestParser::Callbacks {
  static int begin(llhttp_t* parser) {
    of(parser).begin();
    return 0;
  }
  static int url(llhttp_t* parser, const char* data, std::size_t size) {
    RequestParser& self = of(parser);
    return self.add(self.target_, data, size);
  }
  static int field(llhttp_t* parser, const char* data, std::size_t size) {
    RequestParser& self = of(parser);
    if (self.head_done_) return self.extra(size);
    Span* span = self.name_span();
    if (span == nullptr) return self.refuse(431, "Request Header Fields Too Large");
    const std::size_t before = self.text_.size();
    if (const int refused = self.add(*span, data, size)) return refused;
    std::transform(self.text_.begin() + static_cast<std::ptrdiff_t>(before), self.text_.end(),
                   self.text_.begin() + static_cast<std::ptrdiff_t>(before), to_lower);
    return 0;
  }
  // An empty value is not told, its name's end is.
  static int field_complete(llhttp_t* parser) {
    of(parser).value_seen_ = true;
    return 0;
  }
  static int value(llhttp_t* parser, const char* data, std::size_t size) {
    RequestParser& self = of(parser);
    if (self.head_done_) return self.extra(size);
    return self.add(self.spans_.back().second, data, size);
  }
  static int headers_complete(llhttp_t* parser) { return of(parser).head_complete(); }
  static int chunk_size(llhttp_t* parser) {
    RequestParser& self = of(parser);
    if (parser->content_length > kMaxLength) return self.refuse(400, "Bad Request");
    if (self.limits_.body != 0 && parser->content_length > self.limits_.body - self.body_bytes_)
      return self.refuse(413, "Content Too Large");
    return 0;
  }
  static int body(llhttp_t* parser, const char* data, std::size_t size) {
    RequestParser& self = of(parser);
    self.body_bytes_ += size;
    if (self.limits_.body != 0 && self.body_bytes_ > self.limits_.body)
      return self.refuse(413, "Content Too Large");
    return self.told(self.sink_.on_body({data, size}));
  }
  static int extension(llhttp_t* parser, const char*, std::size_t size) {
    return of(parser).extra(size);
  }
  static int complete(llhttp_t* parser) {
    RequestParser& self = of(parser);
    self.in_request_ = false;
    if (const int stopped = self.told(self.sink_.on_end())) return stopped;
    return HPE_PAUSED;
  }

  static const llhttp_settings_t& settings() {
    static const llhttp_settings_t all = [] {
      llhttp_settings_t made;
      llhttp_settings_init(&made);
      made.on_message_begin = begin;
      made.on_url = url;
      made.on_header_field = field;
      made.on_header_field_complete = field_complete;
      made.on_header_value = value;
      made.on_headers_complete = headers_complete;
      made.on_chunk_header = chunk_size;
      made.on_body = body;
      made.on_chunk_extension_name = extension;
      made.on_chunk_extension_value = extension;
      made.on_message_complete = complete;
      return made;
    }();
    return all;
  }
};

RequestParser::RequestParser(const Limits& limits, Sink& sink) : limits_(limits), sink_(sink) {
  llhttp_init(&parser_, HTTP_REQUEST, &Callbacks::settings());
  parser_.data = this;
}

void RequestParser::begin() {
  in_request_ = true;
  head_done_ = false;
  value_seen_ = true;
  text_.clear();
  spans_.clear();
  headers_.clear();
  target_ = {};
  head_bytes_ = 0;
  extra_bytes_ = 0;
  body_bytes_ = 0;
}

int RequestParser::refuse(int status, std::string_view reason) {
  status_ = status;
  reason_ = reason;
  return HPE_USER;
}

int RequestParser::told(bool go_on) {
  if (go_on) return 0;
  stopped_ = true;
  return HPE_USER;
}

int RequestParser::extra(std::size_t size) {
  extra_bytes_ += size;
  return extra_bytes_ > kMaxExtensions ? refuse(431, "Request Header Fields Too Large") : 0;
}

int RequestParser::add(Span& span, const char* data, std::size_t size) {
  if (text_.size() + size > limits_.head) return refuse(431, "Request Header Fields Too Large");
  if (span.size == 0) span.begin = text_.size();
  text_.append(data, size);
  span.size += size;
  return 0;
}

// A name comes in pieces. Null if there are too many.
RequestParser::Span* RequestParser::name_span() {
  if (value_seen_) {
    if (spans_.size() >= limits_.headers) return nullptr;
    spans_.emplace_back();
    value_seen_ = false;
  }
  return &spans_.back().first;
}

int RequestParser::check_head() {
  if (parser_.http_major != 1 || parser_.http_minor > 1)
    return refuse(505, "HTTP Version Not Supported");
  std::size_t hosts = 0, codings = 0;
  for (const auto& header : headers_) {
    if (header.name == "host") ++hosts;
    if (header.name != "transfer-encoding") continue;
    ++codings;
    if (!same_text(header.value, "chunked")) return refuse(501, "Not Implemented");
  }
  if (hosts > 1 || (hosts == 0 && parser_.http_minor == 1)) return refuse(400, "Bad Request");
  // A length that an older server or proxy in front did not see.
  if (codings > 1 || (codings == 1 && parser_.http_minor == 0)) return refuse(400, "Bad Request");
  if ((parser_.flags & F_CONTENT_LENGTH) == 0) return 0;
  if (parser_.content_length > kMaxLength) return refuse(400, "Bad Request");
  if (limits_.body != 0 && parser_.content_length > limits_.body)
    return refuse(413, "Content Too Large");
  return 0;
}

int RequestParser::head_complete() {
  head_done_ = true;
  const auto view = [&](const Span& span) {
    return std::string_view(text_).substr(span.begin, span.size);
  };
  for (const auto& [name, value] : spans_) {
    std::string_view text = view(value);
    while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
    headers_.push_back({view(name), text});
  }
  if (const int refused = check_head()) return refused;
  const char* method = llhttp_method_name(static_cast<llhttp_method_t>(parser_.method));
  Head head{method,
            view(target_),
            parser_.http_minor,
            headers_,
            llhttp_should_keep_alive(&parser_) != 0,
            parser_.upgrade != 0,
            (parser_.flags & F_CHUNKED) != 0 || parser_.content_length > 0};
  head.expects_continue =
      head.minor == 1 && std::any_of(headers_.begin(), headers_.end(), [](const Header& one) {
        return one.name == "expect" && same_text(one.value, "100-continue");
      });
  // Whoever switches protocols stops us; for everybody else the request goes on as it is.
  parser_.upgrade = 0;
  return told(sink_.on_head(head));
}

// How many of the bytes may be parsed: up to one that the first line may not have, of which llhttp
// would not complain.
std::size_t RequestParser::take_line(std::string_view bytes) {
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const char c = bytes[i];
    if (c == '\r' || c == '\n') {
      if (line_bytes_ == 0) continue;  // an empty line before it
      in_line_ = false;
      return bytes.size();
    }
    if (++line_bytes_ > limits_.line) {
      refuse(414, "URI Too Long");
      return i;
    }
    if (c == ' ' && after_space_) {
      refuse(400, "Bad Request");
      return i;
    }
    after_space_ = c == ' ';
  }
  return bytes.size();
}

RequestParser::Outcome RequestParser::feed(std::string_view bytes) {
  if (!in_line_) return run(bytes);
  const std::size_t good = take_line(bytes);
  const Outcome outcome = run(bytes.substr(0, good));
  if (outcome.state != State::kMore || good == bytes.size()) return outcome;
  return {State::kRefused, good, status_, reason_};
}

RequestParser::Outcome RequestParser::run(std::string_view bytes) {
  const bool was_in_head = !head_done_ || !in_request_;
  const llhttp_errno_t error = llhttp_execute(&parser_, bytes.data(), bytes.size());
  if (error == HPE_OK) {
    if (was_in_head && !head_done_) {
      // Spaces and empty lines count, too, though nobody keeps them.
      head_bytes_ += bytes.size();
      if (head_bytes_ > limits_.head + limits_.line)
        return {State::kRefused, bytes.size(), 431, "Request Header Fields Too Large"};
    }
    return {State::kMore, bytes.size(), 0, {}};
  }
  const char* position = llhttp_get_error_pos(&parser_);
  const auto used =
      position == nullptr ? bytes.size() : static_cast<std::size_t>(position - bytes.data());
  if (error == HPE_PAUSED) return {State::kEnded, used, 0, {}};
  if (stopped_) return {State::kStopped, used, 0, {}};
  if (status_ != 0) return {State::kRefused, used, status_, reason_};
  return {State::kRefused, used, 400, "Bad Request"};
}

void RequestParser::next() {
  llhttp_resume(&parser_);
  head_done_ = false;
  in_line_ = true;
  after_space_ = false;
  line_bytes_ = 0;
}

}  // namespace web
