// Invoker: runs calls in Python. Everything here happens under the GIL.
//
//   bytes ── parse ──▶ module, function, arguments ── vectorcall ──▶ value ── encode ──▶ Reply
//                                                              └──▶ coroutine ──▶ AsyncLoop ──▶
//                                                              Reply
//
// Exceptions become {python, Type, Message, Traceback} in one place, report().
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "cnode/bridge/allow_list.hpp"
#include "cnode/bridge/answers.hpp"
#include "cnode/bridge/call.hpp"
#include "cnode/bridge/call_metrics.hpp"
#include "cnode/py/error.hpp"
#include "cnode/py/ref.hpp"
#include "cnode/term/codec.hpp"

namespace bridge {

class Invoker {
 public:
  struct Options {
    AllowList allow;
    bool eval = true;
    term::BinaryPolicy binary = term::BinaryPolicy::kAuto;
  };
  struct Hooks {
    // Takes a coroutine over; the loop thread answers the call when it ends. False: too many run
    // already.
    std::function<bool(const CallPtr&, const py::Ref& coroutine)> start_task;
    // Puts a call back in front of the queue.
    std::function<void(CallPtr)> run_again;
    // A caller's namespace was made: watch the caller. `pid` is encoded.
    std::function<void(std::string pid)> watch;
  };

  Invoker(term::Codec& codec, Answers& answers, CallMetrics& metrics, Options options, Hooks hooks);
  ~Invoker();
  Invoker(const Invoker&) = delete;
  Invoker& operator=(const Invoker&) = delete;

  void run(const CallPtr& call) noexcept;
  // Around what happens in a call's trace context; nothing for a call without. Under the GIL.
  py::Ref enter_trace(const Call& call) const;
  void leave_trace(const py::Ref& tokens) const noexcept;
  // Whether the call's function is a coroutine function of a module already imported.
  bool is_async(const CallPtr& call) noexcept;
  // Reactor: whether the call's function was a coroutine function when it was last called, so that
  // it can go to the loop thread straight.
  bool was_async(const Call& call) const;
  // Loop thread: it is none any more.
  void forget_async(const Call& call);
  // Loop thread: what a task came to; exactly one of the two is set.
  void finish(const Call& call, PyObject* value, PyObject* exception) noexcept;

  PyObject* interruption() const { return cancelled_.get(); }
  std::size_t namespaces() const { return namespaces_.size(); }

 private:
  struct Request;
  struct NotAllowed {};  // thrown while a name is resolved
  struct Namespace {
    py::Ref globals;
    bool busy = false;
    std::deque<CallPtr> waiting;  // eval and exec of one caller run one after the other
  };

  class Tracing;
  struct FunctionName {
    std::string_view module, function;
  };
  // Names of functions, looked up without making a string of them.
  struct NameHash {
    using is_transparent = void;
    std::size_t operator()(const FunctionName& name) const;
    std::size_t operator()(const std::pair<std::string, std::string>& name) const;
  };
  struct NameEqual {
    using is_transparent = void;
    template <typename Left, typename Right>
    bool operator()(const Left& left, const Right& right) const {
      return text(left) == text(right);
    }
    static std::pair<std::string_view, std::string_view> text(const FunctionName& name) {
      return {name.module, name.function};
    }
    static std::pair<std::string_view, std::string_view> text(
        const std::pair<std::string, std::string>& name) {
      return name;
    }
  };

  static std::optional<FunctionName> name_of(const Call& call);
  void note_async(const Request& request);
  base::Result<Request> parse(const Call& call) const;
  static std::optional<base::Error> read_options(etf::Reader& in, Request& request);
  void run_parsed(const CallPtr& call, const Request& request);
  void call_function(const CallPtr& call, const Request& request);
  void run_code(const CallPtr& call, const Request& request);
  void free_namespace(const std::string& caller);
  py::Ref evaluate(Namespace& space, const Request& request);
  py::Ref resolve(std::string_view module, std::string_view function);
  void check_module(PyObject* object, std::string_view name);
  void check_no_evaluation(PyObject* object);
  py::Ref module(std::string_view name);
  PyObject* interned(std::string_view text);
  void deliver(const CallPtr& call, py::Ref value);
  void answer(const Call& call, PyObject* value);
  void report(const Call& call, const py::Error& error);
  void report_bad_term(const Call& call, const base::Error& error);
  using Result = CallMetrics::Result;
  void over(const Call& call, Result result, CallMetrics::Clock::time_point ran);
  void refuse(const Call& call, std::string_view reason, Result result = Result::kRefused);
  void refuse(const Call& call, const std::function<void(etf::Writer&)>& reason,
              Result result = Result::kRefused);
  bool allowed(const Call& call, const Request& request);
  void refuse_not_allowed(const Call& call, std::string_view module, std::string_view function);

  term::Codec& codec_;
  Answers& answers_;
  CallMetrics& metrics_;
  const Options options_;
  const Hooks hooks_;
  py::Ref enter_trace_, leave_trace_;  // of erlang._trace
  py::Ref cancelled_;                  // erlang.Cancelled
  py::Ref async_cancelled_;            // asyncio.CancelledError
  std::vector<py::Ref> evaluators_;
  std::unordered_map<std::string, py::Ref> names_;    // interned attribute and module names
  std::unordered_map<std::string, py::Ref> modules_;  // fully imported ones
  std::unordered_map<std::string, Namespace> namespaces_;
  mutable std::mutex async_mutex_;
  std::unordered_set<std::pair<std::string, std::string>, NameHash, NameEqual> async_;
  std::atomic<bool> knows_async_{false};  // spares most calls the lock where nothing is
};

}  // namespace bridge
