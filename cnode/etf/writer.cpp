#include "cnode/etf/writer.hpp"

#include <ei.h>

#include <algorithm>
#include <cassert>
#include <cstdlib>
#include <new>

namespace etf {
namespace {

// Runs one ei encoder at the end of `out`, which is given room for `most` bytes first.
template <class Encode>
void encode(Buffer& out, std::size_t most, Encode encode_at) {
  char* place = reinterpret_cast<char*>(out.prepare(most));
  int index = 0;
  [[maybe_unused]] const int status = encode_at(place, &index);
  assert(status == 0 && "ei refuses only values the caller promised not to pass");
  assert(static_cast<std::size_t>(index) <= most && "ei wrote more than was reserved");
  out.commit(static_cast<std::size_t>(index));
}

constexpr std::size_t kScalar = 16;  // the most a header, a 64-bit integer or a float takes

}  // namespace

Buffer::~Buffer() { std::free(data_); }

void Buffer::grow(std::size_t extra) {
  const std::size_t wanted = std::max({size_ + extra, capacity_ * 2, std::size_t{256}});
  void* moved = std::realloc(data_, wanted);
  if (moved == nullptr) throw std::bad_alloc();
  data_ = static_cast<std::uint8_t*>(moved);
  capacity_ = wanted;
}

Writer& Writer::version() {
  out_.append(kVersion);
  return *this;
}

Writer& Writer::tuple(std::uint32_t arity) {
  encode(out_, kScalar, [&](char* at, int* index) {
    return ei_encode_tuple_header(at, index, static_cast<int>(arity));
  });
  return *this;
}

Writer& Writer::map(std::uint32_t pairs) {
  encode(out_, kScalar, [&](char* at, int* index) {
    return ei_encode_map_header(at, index, static_cast<int>(pairs));
  });
  return *this;
}

Writer& Writer::list(std::uint32_t count) {
  encode(out_, kScalar, [&](char* at, int* index) {
    return ei_encode_list_header(at, index, static_cast<int>(count));
  });
  return *this;
}

Writer& Writer::nil() {
  out_.append(kNil);
  return *this;
}

Writer& Writer::atom(std::string_view utf8) {
  encode(out_, utf8.size() + 4, [&](char* at, int* index) {
    return ei_encode_atom_len_as(at, index, utf8.data(), static_cast<int>(utf8.size()), ERLANG_UTF8,
                                 ERLANG_UTF8);
  });
  return *this;
}

Writer& Writer::integer(std::int64_t value) {
  encode(out_, kScalar, [&](char* at, int* index) { return ei_encode_longlong(at, index, value); });
  return *this;
}

Writer& Writer::unsigned_integer(std::uint64_t value) {
  encode(out_, kScalar,
         [&](char* at, int* index) { return ei_encode_ulonglong(at, index, value); });
  return *this;
}

Writer& Writer::real(double value) {
  encode(out_, kScalar, [&](char* at, int* index) { return ei_encode_double(at, index, value); });
  return *this;
}

Writer& Writer::binary(Bytes bytes) {
  encode(out_, bytes.size() + 5, [&](char* at, int* index) {
    return ei_encode_binary(at, index, bytes.data(), static_cast<long>(bytes.size()));
  });
  return *this;
}

Writer& Writer::pid(const Pid& pid) {
  out_.append(kNewPid);
  atom(pid.node);
  std::uint8_t* at = out_.prepare(12);
  write_u32(at, pid.id);
  write_u32(at + 4, pid.serial);
  write_u32(at + 8, pid.creation);
  out_.commit(12);
  return *this;
}

Writer& Writer::reference(const Ref& ref) {
  std::uint8_t* at = out_.prepare(3);
  at[0] = kNewerReference;
  write_u16(at + 1, ref.count);
  out_.commit(3);
  atom(ref.node);
  at = out_.prepare(4 + 4 * kMaxReferenceWords);
  write_u32(at, ref.creation);
  for (std::size_t i = 0; i < ref.count; ++i) write_u32(at + 4 + 4 * i, ref.words[i]);
  out_.commit(4 + 4 * std::size_t{ref.count});
  return *this;
}

}  // namespace etf
