// Fifo: a queue that owns no memory until something is in it, for objects of which there are very
// many and most of them idle.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace mailbox {

template <class T>
class Fifo {
 public:
  bool empty() const { return head_ == items_.size(); }
  std::size_t size() const { return items_.size() - head_; }
  T& front() { return items_[head_]; }
  const T& front() const { return items_[head_]; }

  void push(T item) { items_.push_back(std::move(item)); }

  T pop() {
    T item = std::move(items_[head_++]);
    if (empty()) {
      if (items_.capacity() > kKept) std::vector<T>().swap(items_);
      items_.clear();
      head_ = 0;
    } else if (head_ >= kSlack && head_ * 2 >= items_.size()) {
      items_.erase(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(head_));
      head_ = 0;
    }
    return item;
  }

  // Takes the first item the predicate likes out of its place.
  template <class Predicate>
  bool remove_if(Predicate likes) {
    for (std::size_t i = head_; i < items_.size(); ++i) {
      if (!likes(items_[i])) continue;
      items_.erase(items_.begin() + static_cast<std::ptrdiff_t>(i));
      return true;
    }
    return false;
  }

  template <class Predicate>
  void remove_all_if(Predicate likes) {
    const auto first = items_.begin() + static_cast<std::ptrdiff_t>(head_);
    items_.erase(std::remove_if(first, items_.end(), likes), items_.end());
  }

  void clear() {
    std::vector<T>().swap(items_);
    head_ = 0;
  }

 private:
  static constexpr std::size_t kSlack = 64;
  static constexpr std::size_t kKept = 1024;
  std::vector<T> items_;
  std::size_t head_ = 0;
};

}  // namespace mailbox
