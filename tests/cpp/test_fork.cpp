#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <functional>

#include "cnode/base/fork.hpp"
#include "tests/cpp/catch.hpp"

namespace {

// The exit code of a child that runs `body`.
int in_child(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

struct Pair {
  Pair() { REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) == 0); }
  ~Pair() {
    for (const int end : ends) close(end);
  }
  Pair(const Pair&) = delete;
  Pair& operator=(const Pair&) = delete;
  std::array<int, 2> ends{};
};

bool is_open(int descriptor) {
  char byte = 0;
  return recv(descriptor, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == -1 && errno != EBADF;
}

}  // namespace

TEST_CASE("a socket that a child must not keep is closed in it, and others stay open", "[fork]") {
  const Pair kept, ours;
  base::close_in_children(ours.ends[0]);
  const int found = in_child([&] {
    return (is_open(ours.ends[0]) ? 1 : 0) +
           (is_open(ours.ends[1]) && is_open(kept.ends[0]) ? 0 : 2);
  });
  CHECK(found == 0);
  CHECK(is_open(ours.ends[0]));
}

TEST_CASE("a number that has become another socket's is left alone in a child", "[fork]") {
  int number = 0;
  {
    const Pair closed;
    number = closed.ends[0];
    base::close_in_children(number);
  }
  const Pair later;
  REQUIRE((later.ends[0] == number || later.ends[1] == number));
  CHECK(in_child([&] { return is_open(number) ? 0 : 1; }) == 0);
}

TEST_CASE("only a forked child is ended", "[fork]") {
  const Pair any;
  base::close_in_children(any.ends[0]);
  base::end_if_forked();
  CHECK(in_child([] {
          base::end_if_forked();
          return 0;
        }) == 1);
}
