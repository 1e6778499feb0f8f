// Names for the Asio pieces every coroutine here uses: errors come back as values, since a peer
// that closes is an ordinary return.
#pragma once

#include <asio/awaitable.hpp>
#include <asio/steady_timer.hpp>
#include <asio/use_awaitable.hpp>
#include <asio/version.hpp>
#if ASIO_VERSION >= 102400
#include <asio/as_tuple.hpp>
#else
#include <asio/experimental/as_tuple.hpp>
#endif

#include <chrono>

namespace dist {

#if ASIO_VERSION >= 102400
inline constexpr auto as_result = asio::as_tuple(asio::use_awaitable);
#else
inline constexpr auto as_result = asio::experimental::as_tuple(asio::use_awaitable);
#endif

inline asio::awaitable<void> sleep_for(std::chrono::steady_clock::duration delay) {
  asio::steady_timer timer(co_await asio::this_coro::executor, delay);
  auto [error] = co_await timer.async_wait(as_result);
  (void)error;
}

}  // namespace dist
