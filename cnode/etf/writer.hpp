// Buffer and Writer: terms as bytes, encoded by erl_interface (ei).
//
// ei writes into memory that must be large enough; the Writer reserves the most a value can take,
// hands ei the place, and counts what it wrote, so there is one pass and no reallocation per value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>

#include "cnode/etf/values.hpp"

namespace etf {

// A growing run of bytes. Moves, never copies.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t capacity) { reserve(capacity); }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  std::uint8_t* data() { return data_; }
  const std::uint8_t* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::size_t capacity() const { return capacity_; }
  bool empty() const { return size_ == 0; }
  Bytes bytes() const { return {data_, size_}; }

  void clear() { size_ = 0; }
  void truncate(std::size_t size) { size_ = size; }
  void reserve(std::size_t extra) {
    if (capacity_ - size_ < extra) grow(extra);
  }
  // Room for `extra` more bytes; commit() says how many were filled.
  std::uint8_t* prepare(std::size_t extra) {
    reserve(extra);
    return data_ + size_;
  }
  void commit(std::size_t count) { size_ += count; }
  void append(Bytes bytes) {
    if (bytes.empty()) return;
    std::memcpy(prepare(bytes.size()), bytes.data(), bytes.size());
    size_ += bytes.size();
  }
  void append(std::uint8_t byte) {
    *prepare(1) = byte;
    ++size_;
  }

 private:
  void grow(std::size_t extra);  // std::bad_alloc when there is no memory
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
  }

  std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

// Appends terms to a Buffer. The caller keeps the shape right: a header is followed by what it
// announces.
class Writer {
 public:
  explicit Writer(Buffer& out) : out_(out) {}

  Buffer& buffer() { return out_; }

  Writer& version();
  Writer& tuple(std::uint32_t arity);
  Writer& map(std::uint32_t pairs);
  Writer& list(
      std::uint32_t count);  // of 0: the empty list; otherwise the elements follow, then the tail
  Writer& nil();
  Writer& atom(std::string_view utf8);  // at most 255 characters, well-formed: the caller's promise
  Writer& integer(std::int64_t value);
  Writer& unsigned_integer(std::uint64_t value);
  Writer& real(double value);  // finite
  Writer& binary(Bytes bytes);
  Writer& binary(std::string_view text) {
    return binary(Bytes{reinterpret_cast<const std::uint8_t*>(text.data()), text.size()});
  }
  Writer& pid(const Pid& pid);
  Writer& reference(const Ref& ref);
  Writer& raw(Bytes term) {  // a whole term, already encoded
    out_.append(term);
    return *this;
  }

 private:
  Buffer& out_;
};

inline void write_u16(std::uint8_t* at, std::uint16_t value) {
  at[0] = static_cast<std::uint8_t>(value >> 8);
  at[1] = static_cast<std::uint8_t>(value);
}
inline void write_u32(std::uint8_t* at, std::uint32_t value) {
  at[0] = static_cast<std::uint8_t>(value >> 24);
  at[1] = static_cast<std::uint8_t>(value >> 16);
  at[2] = static_cast<std::uint8_t>(value >> 8);
  at[3] = static_cast<std::uint8_t>(value);
}
inline void write_u64(std::uint8_t* at, std::uint64_t value) {
  write_u32(at, static_cast<std::uint32_t>(value >> 32));
  write_u32(at + 4, static_cast<std::uint32_t>(value));
}

}  // namespace etf
