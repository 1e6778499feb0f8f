// Fork: what a child that Python code forks must not keep and must not do.
//
// A child has copies of every descriptor. With a link in its hands the peer would not see the
// node's end, with the listener and epmd's connection nobody could take its name. And a child that
// returns from the function a peer called would answer for its parent, on its parent's link.
#pragma once

namespace base {

// Closes this socket in every child forked from now on, for as long as it is open. Any thread.
void close_in_children(int socket);

// Ends the process if it is such a child.
void end_if_forked();

}  // namespace base
