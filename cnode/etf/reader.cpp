#include "cnode/etf/reader.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>

namespace etf {

using base::ErrorCode;
using base::Result;

namespace {

std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// The bytes of an atom at `at`: where its text starts, how long it is. 0 header when the tag is no
// atom.
struct AtomLayout {
  std::size_t header = 0;
  std::size_t length = 0;
  bool latin1 = false;
};

AtomLayout atom_layout(const std::uint8_t* at, std::size_t available) {
  const std::uint8_t tag = at[0];
  if (tag == kSmallAtomUtf8 || tag == kSmallAtom) {
    if (available < 2) return {};
    return {2, at[1], tag == kSmallAtom};
  }
  if (available < 3) return {};
  return {3, read_u16(at + 1), tag == kAtom};
}

bool is_atom_tag(std::uint8_t tag) {
  return tag == kSmallAtomUtf8 || tag == kAtomUtf8 || tag == kSmallAtom || tag == kAtom;
}

// Reads one atom at `at` (whose tag is an atom's); advances `at` past it.
ErrorCode take_atom(const std::uint8_t*& at, const std::uint8_t* end, AtomView& out, bool& ok) {
  const auto available = static_cast<std::size_t>(end - at);
  const AtomLayout layout = atom_layout(at, available);
  ok = false;
  if (layout.header == 0 || available - layout.header < layout.length) return ErrorCode::kTruncated;
  const std::string_view text = text_of(at + layout.header, layout.length);
  if (layout.latin1 ? text.size() > kMaxAtomCharacters : !is_utf8(text, kMaxAtomCharacters)) {
    return ErrorCode::kMalformed;
  }
  out = {text, layout.latin1};
  at += layout.header + layout.length;
  ok = true;
  return {};
}

// One open container while a term is walked: how many terms it still holds, and where it must end
// (funs only).
struct Open {
  std::uint64_t remaining;
  const std::uint8_t* must_end;
};

}  // namespace

std::string AtomView::utf8() const {
  if (!latin1) return std::string(text);
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<std::uint8_t>(c);
    if (byte < 0x80) {
      out += c;
    } else {
      out += static_cast<char>(0xC0 | (byte >> 6));
      out += static_cast<char>(0x80 | (byte & 0x3F));
    }
  }
  return out;
}

bool is_utf8(std::string_view text, std::size_t max_characters) {
  const auto* at = reinterpret_cast<const std::uint8_t*>(text.data());
  const auto* end = at + text.size();
  std::size_t characters = 0;
  while (at != end) {
    // Eight bytes of ASCII at a time, which is what most text is.
    for (std::uint64_t word = 0; end - at >= 8; at += 8) {
      std::memcpy(&word, at, sizeof word);
      if ((word & 0x8080808080808080u) != 0) break;
      if ((characters += 8) > max_characters) return false;
    }
    if (at == end) break;
    if (++characters > max_characters) return false;
    const std::uint8_t lead = *at;
    if (lead < 0x80) {
      ++at;
      continue;
    }
    std::size_t length = 0;
    if (lead >= 0xC2 && lead <= 0xDF) length = 2;
    if (lead >= 0xE0 && lead <= 0xEF) length = 3;
    if (lead >= 0xF0 && lead <= 0xF4) length = 4;
    if (length == 0 || static_cast<std::size_t>(end - at) < length) return false;
    for (std::size_t i = 1; i < length; ++i) {
      if ((at[i] & 0xC0) != 0x80) return false;
    }
    if (lead == 0xE0 && at[1] < 0xA0) return false;  // overlong
    if (lead == 0xED && at[1] > 0x9F) return false;  // surrogate
    if (lead == 0xF0 && at[1] < 0x90) return false;  // overlong
    if (lead == 0xF4 && at[1] > 0x8F) return false;  // beyond U+10FFFF
    at += length;
  }
  return true;
}

bool parse_float_text(const std::uint8_t* text, double& value) {
  const char* first = reinterpret_cast<const char*>(text);
  const char* last = std::find(first, first + kFloatText, '\0');
  const auto [end, error] = std::from_chars(first, last, value);
  return error == std::errc{} && end == last && std::isfinite(value);
}

Result<std::uint8_t> Reader::peek() const {
  if (at_end()) return fail(ErrorCode::kTruncated);
  return *cursor_;
}

Result<std::uint32_t> Reader::tuple() {
  if (remaining() < 2) return fail(ErrorCode::kTruncated);
  if (*cursor_ == kSmallTuple) {
    const std::uint32_t arity = cursor_[1];
    cursor_ += 2;
    return arity;
  }
  if (*cursor_ != kLargeTuple) return fail(ErrorCode::kWrongType);
  if (remaining() < 5) return fail(ErrorCode::kTruncated);
  const std::uint32_t arity = read_u32(cursor_ + 1);
  if (arity > remaining() - 5) return fail(ErrorCode::kTruncated);
  cursor_ += 5;
  return arity;
}

Result<std::uint32_t> Reader::map() {
  if (at_end()) return fail(ErrorCode::kTruncated);
  if (*cursor_ != kMap) return fail(ErrorCode::kWrongType);
  if (remaining() < 5) return fail(ErrorCode::kTruncated);
  const std::uint32_t pairs = read_u32(cursor_ + 1);
  if (pairs > (remaining() - 5) / 2) return fail(ErrorCode::kTruncated);
  cursor_ += 5;
  return pairs;
}

Result<std::uint32_t> Reader::list() {
  if (at_end()) return fail(ErrorCode::kTruncated);
  if (*cursor_ == kNil) {
    ++cursor_;
    return 0u;
  }
  if (*cursor_ != kList) return fail(ErrorCode::kWrongType);
  if (remaining() < 5) return fail(ErrorCode::kTruncated);
  const std::uint32_t count = read_u32(cursor_ + 1);
  if (count == 0) return fail(ErrorCode::kMalformed);  // [] has a tag of its own
  if (count > remaining() - 5) return fail(ErrorCode::kTruncated);
  cursor_ += 5;
  return count;
}

Result<AtomView> Reader::atom() {
  if (at_end()) return fail(ErrorCode::kTruncated);
  if (!is_atom_tag(*cursor_)) return fail(ErrorCode::kWrongType);
  AtomView view;
  bool ok = false;
  const ErrorCode code = take_atom(cursor_, end_, view, ok);
  if (!ok) return fail(code);
  return view;
}

Result<std::int64_t> Reader::integer() {
  if (remaining() < 2) return fail(ErrorCode::kTruncated);
  switch (*cursor_) {
    case kSmallInteger: {
      const std::int64_t value = cursor_[1];
      cursor_ += 2;
      return value;
    }
    case kInteger: {
      if (remaining() < 5) return fail(ErrorCode::kTruncated);
      const auto value = static_cast<std::int32_t>(read_u32(cursor_ + 1));
      cursor_ += 5;
      return static_cast<std::int64_t>(value);
    }
    case kSmallBig: {
      const std::size_t size = cursor_[1];
      if (remaining() < 3 + size) return fail(ErrorCode::kTruncated);
      if (size > 8 || cursor_[2] > 1) return fail(ErrorCode::kWrongType);
      std::uint64_t magnitude = 0;
      for (std::size_t i = size; i-- > 0;) magnitude = (magnitude << 8) | cursor_[3 + i];
      const bool negative = cursor_[2] == 1;
      const std::uint64_t most = std::uint64_t{1} << 63;
      if (magnitude > (negative ? most : most - 1)) return fail(ErrorCode::kWrongType);
      cursor_ += 3 + size;
      return static_cast<std::int64_t>(negative ? ~magnitude + 1 : magnitude);
    }
    default:
      return fail(ErrorCode::kWrongType);
  }
}

Result<std::uint64_t> Reader::unsigned_integer() {
  if (remaining() >= 3 && *cursor_ == kSmallBig && cursor_[1] == 8 && cursor_[2] == 0) {
    if (remaining() < 11) return fail(ErrorCode::kTruncated);
    std::uint64_t value = 0;
    for (std::size_t i = 8; i-- > 0;) value = (value << 8) | cursor_[3 + i];
    cursor_ += 11;
    return value;
  }
  const std::uint8_t* before = cursor_;
  auto value = integer();
  if (!value) return value.error();
  if (*value < 0) {
    cursor_ = before;
    return fail(ErrorCode::kWrongType);
  }
  return static_cast<std::uint64_t>(*value);
}

Result<PidView> Reader::pid() {
  if (at_end()) return fail(ErrorCode::kTruncated);
  const bool old = *cursor_ == kPid;
  if (!old && *cursor_ != kNewPid) return fail(ErrorCode::kWrongType);
  const std::uint8_t* at = cursor_ + 1;
  PidView view;
  bool ok = false;
  if (at == end_) return fail(ErrorCode::kTruncated);
  if (!is_atom_tag(*at)) return fail(ErrorCode::kMalformed, at);
  const ErrorCode code = take_atom(at, end_, view.node, ok);
  if (!ok) return fail(code, at);
  const std::size_t numbers = old ? 9 : 12;
  if (static_cast<std::size_t>(end_ - at) < numbers) return fail(ErrorCode::kTruncated, at);
  view.id = read_u32(at);
  view.serial = read_u32(at + 4);
  view.creation = old ? at[8] : read_u32(at + 8);
  at += numbers;
  view.raw = {cursor_, at};
  cursor_ = at;
  return view;
}

Result<RefView> Reader::reference() {
  if (at_end()) return fail(ErrorCode::kTruncated);
  const bool old = *cursor_ == kNewReference;
  if (!old && *cursor_ != kNewerReference) return fail(ErrorCode::kWrongType);
  if (remaining() < 4) return fail(ErrorCode::kTruncated);
  const std::size_t count = read_u16(cursor_ + 1);
  if (count == 0 || count > kMaxReferenceWords) return fail(ErrorCode::kMalformed);
  const std::uint8_t* at = cursor_ + 3;
  RefView view;
  bool ok = false;
  if (!is_atom_tag(*at)) return fail(ErrorCode::kMalformed, at);
  const ErrorCode code = take_atom(at, end_, view.node, ok);
  if (!ok) return fail(code, at);
  const std::size_t creation_size = old ? 1 : 4;
  if (static_cast<std::size_t>(end_ - at) < creation_size + 4 * count)
    return fail(ErrorCode::kTruncated, at);
  view.creation = old ? at[0] : read_u32(at);
  at += creation_size;
  view.count = static_cast<std::uint8_t>(count);
  for (std::size_t i = 0; i < count; ++i, at += 4) view.words[i] = read_u32(at);
  view.raw = {cursor_, at};
  cursor_ = at;
  return view;
}

Result<Bytes> Reader::binary() {
  if (at_end()) return fail(ErrorCode::kTruncated);
  if (*cursor_ != kBinary) return fail(ErrorCode::kWrongType);
  if (remaining() < 5) return fail(ErrorCode::kTruncated);
  const std::size_t size = read_u32(cursor_ + 1);
  if (size > remaining() - 5) return fail(ErrorCode::kTruncated);
  const Bytes bytes{cursor_ + 5, size};
  cursor_ += 5 + size;
  return bytes;
}

base::Status Reader::nil() {
  if (at_end()) return fail(ErrorCode::kTruncated);
  if (*cursor_ != kNil) return fail(ErrorCode::kWrongType);
  ++cursor_;
  return base::Done{};
}

base::Status Reader::version() {
  if (at_end()) return fail(ErrorCode::kTruncated);
  if (*cursor_ != kVersion) return fail(ErrorCode::kMalformed);
  ++cursor_;
  return base::Done{};
}

Result<Bytes> Reader::walk(std::size_t outer_depth, Nesting nesting) {
  const std::uint8_t* const start = cursor_;
  const std::uint8_t* at = cursor_;
  std::array<Open, kMaxDepth + 1> stack;  // NOLINT: only the part in use is ever initialized
  std::size_t depth = 0;
  stack[0] = {1, nullptr};

  const auto left = [&] { return static_cast<std::size_t>(end_ - at); };
  for (;;) {
    while (stack[depth].remaining == 0) {
      if (stack[depth].must_end != nullptr && stack[depth].must_end != at)
        return fail(ErrorCode::kMalformed, at);
      if (depth == 0) {
        const Bytes bytes{start, at};
        cursor_ = at;
        return bytes;
      }
      --depth;
    }
    --stack[depth].remaining;
    if (at == end_) return fail(ErrorCode::kTruncated, at);

    std::size_t size = 0;        // bytes of a plain value, its tag included
    std::uint64_t children = 0;  // terms that follow
    const std::uint8_t* must_end = nullptr;
    bool container = false;
    const std::size_t available = left();
    switch (*at) {
      case kSmallInteger:
        size = 2;
        break;
      case kInteger:
        size = 5;
        break;
      case kNewFloat: {
        size = 9;
        if (available < size) break;
        if (!std::isfinite(std::bit_cast<double>(read_u64(at + 1))))
          return fail(ErrorCode::kMalformed, at);
        break;
      }
      case kFloat: {
        size = 1 + kFloatText;
        if (available < size) break;
        double ignored = 0;
        if (!parse_float_text(at + 1, ignored)) return fail(ErrorCode::kMalformed, at);
        break;
      }
      case kNil:
        size = 1;
        break;
      case kString:
        if (available < 3) return fail(ErrorCode::kTruncated, at);
        size = 3 + std::size_t{read_u16(at + 1)};
        break;
      case kBinary:
        if (available < 5) return fail(ErrorCode::kTruncated, at);
        size = 5 + std::size_t{read_u32(at + 1)};
        break;
      case kBitBinary:
        if (available < 6) return fail(ErrorCode::kTruncated, at);
        if (at[5] > 8 || (at[5] == 0) != (read_u32(at + 1) == 0))
          return fail(ErrorCode::kMalformed, at);
        size = 6 + std::size_t{read_u32(at + 1)};
        break;
      case kSmallBig:
        if (available < 3) return fail(ErrorCode::kTruncated, at);
        if (at[2] > 1) return fail(ErrorCode::kMalformed, at);
        size = 3 + std::size_t{at[1]};
        break;
      case kLargeBig:
        if (available < 6) return fail(ErrorCode::kTruncated, at);
        if (at[5] > 1) return fail(ErrorCode::kMalformed, at);
        size = 6 + std::size_t{read_u32(at + 1)};
        break;
      case kAtom:
      case kSmallAtom:
      case kAtomUtf8:
      case kSmallAtomUtf8: {
        AtomView view;
        bool ok = false;
        const ErrorCode code = take_atom(at, end_, view, ok);
        if (!ok) return fail(code, at);
        continue;
      }
      case kPid:
      case kNewPid: {
        Reader inner({at, end_});
        auto pid = inner.pid();
        if (!pid) return fail(pid.error().code, at);
        at += inner.offset();
        continue;
      }
      case kNewReference:
      case kNewerReference: {
        Reader inner({at, end_});
        auto reference = inner.reference();
        if (!reference) return fail(reference.error().code, at);
        at += inner.offset();
        continue;
      }
      case kPort:
      case kNewPort:
      case kV4Port: {
        const std::size_t numbers = *at == kPort ? 5 : *at == kNewPort ? 8 : 12;
        const std::uint8_t* inner = at + 1;
        AtomView node;
        bool ok = false;
        if (inner == end_) return fail(ErrorCode::kTruncated, at);
        if (!is_atom_tag(*inner)) return fail(ErrorCode::kMalformed, at);
        const ErrorCode code = take_atom(inner, end_, node, ok);
        if (!ok) return fail(code, at);
        if (static_cast<std::size_t>(end_ - inner) < numbers)
          return fail(ErrorCode::kTruncated, at);
        at = inner + numbers;
        continue;
      }
      case kSmallTuple:
        if (available < 2) return fail(ErrorCode::kTruncated, at);
        children = at[1];
        size = 2;
        container = true;
        break;
      case kLargeTuple:
        if (available < 5) return fail(ErrorCode::kTruncated, at);
        children = read_u32(at + 1);
        size = 5;
        container = true;
        break;
      case kList:
        if (available < 5) return fail(ErrorCode::kTruncated, at);
        if (read_u32(at + 1) == 0) return fail(ErrorCode::kMalformed, at);
        children = std::uint64_t{read_u32(at + 1)} + 1;
        size = 5;
        container = true;
        break;
      case kMap:
        if (available < 5) return fail(ErrorCode::kTruncated, at);
        children = std::uint64_t{read_u32(at + 1)} * 2;
        size = 5;
        container = true;
        break;
      case kExport:
        // Module and function must be atoms, the arity a small integer.
        {
          Reader inner({at + 1, end_});
          auto module = inner.atom();
          if (!module) return fail(module.error().code, at);
          auto function = inner.atom();
          if (!function) return fail(function.error().code, at);
          auto tag = inner.peek();
          if (!tag) return fail(tag.error().code, at);
          if (*tag != kSmallInteger) return fail(ErrorCode::kMalformed, at);
          auto arity = inner.integer();
          if (!arity) return fail(arity.error().code, at);
          at += 1 + inner.offset();
          continue;
        }
      case kNewFun: {
        if (available < 30) return fail(ErrorCode::kTruncated, at);
        const std::size_t whole = read_u32(at + 1);  // counts itself, not the tag
        if (whole < 29 || whole > available - 1) return fail(ErrorCode::kTruncated, at);
        must_end = at + 1 + whole;
        children =
            std::uint64_t{4} + read_u32(at + 26);  // module, index, unique, pid, free variables
        Reader inner({at + 30, must_end});
        auto module = inner.atom();
        if (!module) return fail(ErrorCode::kMalformed, at);
        auto index = inner.integer();
        if (!index) return fail(ErrorCode::kMalformed, at);
        auto unique = inner.integer();
        if (!unique) return fail(ErrorCode::kMalformed, at);
        auto creator = inner.pid();
        if (!creator) return fail(ErrorCode::kMalformed, at);
        size = 30;
        container = true;
        break;
      }
      default:
        return fail(ErrorCode::kUnknownTag, at);
    }
    if (size > available) return fail(ErrorCode::kTruncated, at);
    at += size;
    if (!container) continue;
    if (children > left()) return fail(ErrorCode::kTruncated, at);
    if (children == 0 && must_end == nullptr) continue;
    if (outer_depth + depth >= kMaxDepth) {
      if (nesting == Nesting::kLimited) return fail(ErrorCode::kTooDeep, at);
      // Deeper levels only count what is still to come: no stack, and no check of where a fun ends.
      stack[depth].remaining += children;
      continue;
    }
    stack[++depth] = {children, must_end};
  }
}

}  // namespace etf
