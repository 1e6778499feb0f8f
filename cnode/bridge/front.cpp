#include "cnode/bridge/front.hpp"

namespace bridge {
namespace {

Front* g_front = nullptr;  // set and cleared under the GIL

}  // namespace

Front* Front::current() { return g_front; }

Front::Front() { g_front = this; }

Front::~Front() {
  if (g_front == this) g_front = nullptr;
}

}  // namespace bridge
