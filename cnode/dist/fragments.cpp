#include "cnode/dist/fragments.hpp"

#include <algorithm>
#include <new>
#include <utility>

#include "cnode/dist/frame.hpp"
#include "cnode/etf/reader.hpp"

namespace dist {

using base::Error;
using base::ErrorCode;

namespace {

constexpr std::size_t kSetAside = std::size_t{1} << 20;  // shorter messages just grow

}  // namespace

Assembler::Outcome Assembler::on_first(std::uint64_t sequence, std::uint64_t fragment,
                                       etf::Bytes body, Clock::time_point now) {
  if (fragment == 0)
    return Error{ErrorCode::kMalformed, 0, "fragments are numbered down to 1, not 0"};
  const auto known = open_.find(sequence);
  if (known != open_.end()) {
    // A sender we forgot may come back with a new message; one in the middle of a message may not.
    if (known->second.fate != Fate::kForgotten) {
      return Error{ErrorCode::kMalformed, 0, "a second first fragment of one sequence"};
    }
    open_.erase(known);
  }
  if (open_.size() >= limits_.sequences) {
    std::erase_if(open_, [](const auto& entry) { return entry.second.fate == Fate::kForgotten; });
  }
  if (open_.size() >= limits_.sequences) {
    return Error{ErrorCode::kTooLarge, 0, "too many unfinished fragmented messages"};
  }
  const auto at = open_.try_emplace(sequence).first;
  at->second.next = fragment;
  if (limits_.budget && limits_.counts && limits_.counts(body)) {
    at->second.counted = true;
    at->second.charge = base::Charge(limits_.budget);
  }
  set_aside(at->second, fragment);
  return add(at, body, now);
}

void Assembler::set_aside(Sequence& sequence, std::uint64_t fragments) {
  if (fragments < kSetAside / kFragmentSize) return;
  const std::size_t size =
      fragments > limits_.message / kFragmentSize ? limits_.message : fragments * kFragmentSize;
  if (reserved_ + size > limits_.total) return;  // it grows as it comes
  try {
    sequence.bytes.reserve(size);
  } catch (const std::bad_alloc&) {
    return;  // where not even addresses are free; what really comes may still find room
  }
  sequence.reserved = size;
  reserved_ += size;
}

Assembler::Outcome Assembler::on_next(std::uint64_t sequence, std::uint64_t fragment,
                                      etf::Bytes data, Clock::time_point now) {
  const auto at = open_.find(sequence);
  if (at == open_.end())
    return Error{ErrorCode::kMalformed, 0, "a fragment of a sequence that was not begun"};
  if (at->second.next != fragment)
    return Error{ErrorCode::kMalformed, 0, "a fragment out of order"};
  return add(at, data, now);
}

std::size_t Assembler::drop_idle(Clock::time_point since) {
  std::size_t dropped = 0;
  for (auto& [number, sequence] : open_) {
    if (sequence.touched >= since || sequence.fate == Fate::kForgotten) continue;
    release(sequence);
    sequence.fate = Fate::kForgotten;
    ++dropped;
  }
  return dropped;
}

Assembler::Outcome Assembler::add(std::unordered_map<std::uint64_t, Sequence>::iterator at,
                                  etf::Bytes data, Clock::time_point now) {
  Sequence& sequence = at->second;
  sequence.touched = now;
  if (sequence.fate == Fate::kKept) {
    const std::size_t size = sequence.bytes.size();
    if (data.size() > limits_.message - size || held_ + data.size() > limits_.total) {
      if (auto status = shrink_to_control(sequence, data, Fate::kTooLarge); !status)
        return status.error();
    } else if (sequence.counted && !limits_.budget->admits(data.size(), size)) {
      if (auto status = shrink_to_control(sequence, data, Fate::kNoMemory); !status)
        return status.error();
    } else {
      sequence.bytes.append(data);
      held_ += data.size();
      sequence.charge.grow(data.size());
    }
  }
  if (--sequence.next > 0) return std::optional<Assembled>{};

  held_ -= sequence.bytes.size();
  reserved_ -= sequence.reserved;
  std::optional<Assembled> whole;
  if (sequence.fate != Fate::kForgotten) {
    whole.emplace(Assembled{std::move(sequence.bytes), sequence.fate != Fate::kKept,
                            sequence.fate == Fate::kNoMemory, std::move(sequence.charge)});
  }
  open_.erase(at);
  return whole;
}

// The control tuple lies whole in the first fragment: it is at the front of what is held, or of
// `data` when nothing is.
base::Status Assembler::shrink_to_control(Sequence& sequence, etf::Bytes data, Fate fate) {
  const etf::Bytes held = sequence.bytes.empty() ? data : sequence.bytes.bytes();
  etf::Reader reader(held);
  auto control = reader.term();
  if (!control) return control.error();
  const std::size_t size = control->size() + std::min(reader.remaining(), limits_.beginning);
  etf::Buffer kept;
  // What is kept may take a little more than the messages, so that those refused for the total
  // can be answered.
  const std::size_t room = limits_.total + limits_.total / 8;
  if (control->size() <= limits_.control && held_ - sequence.bytes.size() + size <= room) {
    kept.append(held.first(size));
  }
  release(sequence);
  held_ += kept.size();
  sequence.bytes = std::move(kept);
  sequence.fate = fate;
  return base::Done{};
}

void Assembler::release(Sequence& sequence) {
  held_ -= sequence.bytes.size();
  reserved_ -= std::exchange(sequence.reserved, 0);
  sequence.bytes = etf::Buffer();
  sequence.charge = base::Charge();
}

}  // namespace dist
