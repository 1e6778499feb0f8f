#include "cnode/bridge/allow_list.hpp"
#include "tests/cpp/catch.hpp"

using bridge::AllowList;

TEST_CASE("without patterns everything is allowed", "[allow_list]") {
  const AllowList list;
  CHECK(list.open());
  CHECK(list.allows("os", "system"));
  CHECK(list.allows("", ""));
  CHECK(list.allows("a", "_private"));
}

TEST_CASE("a full name allows that function alone", "[allow_list]") {
  const AllowList list({"math.sqrt"});
  CHECK_FALSE(list.open());
  CHECK(list.allows("math", "sqrt"));
  CHECK_FALSE(list.allows("math", "sqrtx"));
  CHECK_FALSE(list.allows("math", "sqr"));
  CHECK_FALSE(list.allows("math", "pow"));
  CHECK_FALSE(list.allows("cmath", "sqrt"));
  CHECK_FALSE(list.allows("math", "sqrt.x"));
  CHECK_FALSE(list.allows("a.math", "sqrt"));
  CHECK_FALSE(list.allows("math", ""));
}

TEST_CASE("a star stands for exactly one segment", "[allow_list]") {
  const AllowList list({"mymodule.*"});
  CHECK(list.allows("mymodule", "work"));
  CHECK_FALSE(list.allows("mymodule", "os.system"));
  CHECK_FALSE(list.allows("mymodule.sub", "work"));
  CHECK_FALSE(list.allows("mymodule", ""));
  CHECK_FALSE(list.allows("othermodule", "work"));
  CHECK_FALSE(list.allows("mymodule2", "work"));
}

TEST_CASE("a star may stand in the middle", "[allow_list]") {
  const AllowList list({"package.*.run"});
  CHECK(list.allows("package.a", "run"));
  CHECK(list.allows("package", "b.run"));
  CHECK_FALSE(list.allows("package.a", "stop"));
  CHECK_FALSE(list.allows("package", "run"));
  CHECK_FALSE(list.allows("package.a.b", "run"));
}

TEST_CASE("two stars at the end stand for one segment or more", "[allow_list]") {
  const AllowList list({"package.**"});
  CHECK(list.allows("package", "work"));
  CHECK(list.allows("package.sub", "work"));
  CHECK(list.allows("package.sub.deeper", "Class.method"));
  CHECK_FALSE(list.allows("package", ""));
  CHECK_FALSE(list.allows("package2.sub", "work"));
  CHECK_FALSE(list.allows("other", "package.work"));
}

TEST_CASE("a star within a name is an ordinary character", "[allow_list]") {
  const AllowList list({"math.s*", "m*.sqrt"});
  CHECK_FALSE(list.allows("math", "sqrt"));
  CHECK_FALSE(list.allows("math", "sin"));
}

TEST_CASE("names that start with an underscore match only what spells them out", "[allow_list]") {
  const AllowList stars({"mymodule.*", "package.**"});
  CHECK_FALSE(stars.allows("mymodule", "_hidden"));
  CHECK_FALSE(stars.allows("mymodule", "__dict__"));
  CHECK_FALSE(stars.allows("package", "Class.__init__"));
  CHECK_FALSE(stars.allows("package._private", "work"));
  CHECK_FALSE(stars.allows("package.sub", "_a.b"));
  CHECK(stars.allows("package", "Class.init_"));
  const AllowList spelled({"mymodule._hidden", "package._private.*"});
  CHECK(spelled.allows("mymodule", "_hidden"));
  CHECK(spelled.allows("package._private", "work"));
  CHECK_FALSE(spelled.allows("package._private", "_work"));
}

TEST_CASE("empty segments are never matched by a star", "[allow_list]") {
  const AllowList list({"mymodule.**", "*.*"});
  CHECK_FALSE(list.allows("mymodule.", "work"));
  CHECK_FALSE(list.allows("mymodule", ".work"));
  CHECK_FALSE(list.allows("mymodule", "a..b"));
  CHECK_FALSE(list.allows("", "work"));
}

TEST_CASE("any one pattern is enough", "[allow_list]") {
  const AllowList list({"math.sqrt", "json.*"});
  CHECK(list.allows("math", "sqrt"));
  CHECK(list.allows("json", "dumps"));
  CHECK_FALSE(list.allows("math", "pow"));
}

TEST_CASE("it does not matter where module and function are divided", "[allow_list]") {
  const AllowList list({"os.path.join"});
  CHECK(list.allows("os", "path.join"));
  CHECK(list.allows("os.path", "join"));
}

TEST_CASE("an empty pattern closes everything", "[allow_list]") {
  const AllowList list({""});
  CHECK_FALSE(list.open());
  CHECK_FALSE(list.allows("math", "sqrt"));
  CHECK_FALSE(list.allows("", ""));
}

TEST_CASE("entry modules may be called whatever the list says, by plain public names",
          "[allow_list]") {
  const AllowList list({"math.*"});
  CHECK(list.allows("erlang._objects", "call"));
  CHECK(list.allows("erlang._batch", "run"));
  CHECK_FALSE(list.allows("erlang._state", "state_put"));
  CHECK_FALSE(list.allows("erlang._objects", "_table"));
  CHECK_FALSE(list.allows("erlang._objects", "call.__globals__"));
  CHECK_FALSE(list.allows("erlang._objects", ""));
  CHECK_FALSE(list.allows("erlang._backend", "native"));
  CHECK_FALSE(list.allows("erlang", "_objects.call"));
}
