// Wakeup: a descriptor that becomes readable when somebody knocks; for consumers that wait in an
// event loop.
#pragma once

namespace mailbox {

class Wakeup {
 public:
  Wakeup();  // std::system_error when there is no descriptor left
  ~Wakeup();
  Wakeup(const Wakeup&) = delete;
  Wakeup& operator=(const Wakeup&) = delete;

  int descriptor() const { return descriptor_; }
  void knock();  // any thread
  void clear();  // the consumer, before it looks at its mailbox

 private:
  int descriptor_;
};

}  // namespace mailbox
