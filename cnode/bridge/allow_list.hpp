// AllowList: which functions peers may call. Without patterns everything is open, which main warns
// about once.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace bridge {

// A pattern is a dotted name such as 'math.sqrt', 'mymodule.*' or 'mypackage.**': '*' stands for
// any one segment, '**' for one or more at the end. Names with a segment that starts with an
// underscore match only a pattern that spells it out.
class AllowList {
 public:
  explicit AllowList(std::vector<std::string> patterns = {});

  bool open() const { return patterns_.empty(); }
  bool allows(std::string_view module, std::string_view function) const;

 private:
  std::vector<std::vector<std::string>> patterns_;
};

}  // namespace bridge
