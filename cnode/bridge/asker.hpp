// Asker: what this node asks of others, and the answers on their way back to who asked.
//
//   any thread ── Question ──▶ call:     item in a '$py_calls' batch ──▶ py_callback_link on the
//   BEAM
//                          └─▶ request:  monitor and '$gen_call'     ──▶ any process of any peer
//                          └─▶ remote:   spawn request erpc:execute_call ──▶ any BEAM
//   reactor ◀── '$py_results', a reply to our alias, DOWN, the loss of the link
//       └──▶ the one Question with that id or reference ──▶ its waiter, once
//
// An answer is taken from the link the question went over and from no other; after it, or after
// who asked has left, the question is unknown and a late answer is dropped. All monitors are those
// of `py`.
//
// Calls go to the coordinator of our node on a BEAM, which that BEAM's py_callback tells us when we
// say hello: on each link that comes up, and again at a call when it did not answer then.
#pragma once

#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "cnode/base/trace.hpp"
#include "cnode/bridge/answers.hpp"
#include "cnode/bridge/call.hpp"
#include "cnode/mailbox/channel_queue.hpp"

namespace bridge {

// What somebody asked. Made by who asks; answered once, by the reactor, before the waiter is woken.
struct Question {
  enum class Kind : std::uint8_t { kCall, kRequest, kRemote };
  enum class Told : std::uint8_t {
    kNothing,       // not answered yet
    kAnswer,        // `bytes`: a Result of '$py_results', the reply, or erpc's exit reason
    kDown,          // who was asked ended, or is none; `bytes`: the reason
    kNoConnection,  // there is no link to its node any more
    kRefused,       // the peer spawns nothing; `bytes`: why, an atom
  };

  Kind kind = Kind::kCall;
  std::uint8_t items = 1;      // kCall: its trace context travels as one in front of it
  bool from_thread = false;    // which waits for the answer, and may ask again at once
  bool expected_back = false;  // by the asker, once it is answered; written before `told`
  std::uint64_t id = 0;
  mailbox::WaiterPtr waiter;
  etf::Ref ref;  // kRequest, kRemote
  // Written while it is sent.
  std::uint64_t link = 0;  // 0: to a process of this node
  dist::Raw8 target;       // kRequest: the pid or name that is monitored
  // Written before `told`.
  Payload payload;
  etf::Bytes bytes;
  std::atomic<Told> told{Told::kNothing};

  bool answered() const { return told.load(std::memory_order_acquire) != Told::kNothing; }
};
using QuestionPtr = std::shared_ptr<Question>;

// {trace, Id, TraceParent, TraceState}, in front of a call's own item.
void write_trace(etf::Writer& out, Question& question, const base::TraceContext& trace);

class Asker : public std::enable_shared_from_this<Asker> {
 public:
  // Hands a message to Python code that is a process of this node.
  enum class Delivered { kYes, kFull, kNoProcess };
  using Deliver = std::function<Delivered(dist::ProcessId, etf::Buffer)>;

  Asker(asio::io_context& reactor, Answers& answers, Deliver deliver)
      : reactor_(reactor), answers_(answers), deliver_(std::move(deliver)) {}
  Asker(const Asker&) = delete;
  Asker& operator=(const Asker&) = delete;

  // Reactor.
  void attach(dist::Node& node) { node_ = &node; }
  void link_up(const dist::LinkPtr& link);
  void link_down(dist::Link& link);
  // {'$py_callback', Pid}: the coordinator for this node. False when it cannot be understood.
  bool on_coordinator(dist::Link& link, etf::Bytes message);
  // {'$py_results', [{Id, Result}]}; likewise.
  bool on_results(dist::Link& link, const Payload& payload, etf::Bytes message);
  // {[alias | Ref], Reply} or {Ref, Reply} with a reference of ours. False when it is something
  // else.
  bool on_reply(std::uint64_t link, etf::Bytes message);
  // The end of what `py` watches. False when it was not for us.
  bool on_down(std::uint64_t link, const dist::RefKey& ref, etf::Bytes reason);
  void on_spawn_refused(std::uint64_t link, const dist::RefKey& ref, std::string_view reason);
  // Whether this process is a thread's address and nothing else.
  bool owns(dist::ProcessId id) const { return addresses_.contains(id); }

  // Any thread.
  std::uint64_t next_id() { return next_id_.fetch_add(1, std::memory_order_relaxed); }
  // An item {call, Id, …} for the coordinator on that node, which goes out when the outboxes are
  // flushed: by a coroutine at the end of its loop's turn, by a thread if may_flush() says so.
  void call(const QuestionPtr& question, std::string_view node, etf::Buffer item);
  // Whether a thread that has just asked is to flush. Not while others that were answered together
  // are still expected to ask again: the last of them flushes for all, so that their calls travel
  // together; or a timer does, should one of them do something else first. `was_expected` says that
  // the thread is one of those itself.
  bool may_flush(bool was_expected);
  // An item that nobody waits for. False where the peer is not known to run the application.
  bool tell_coordinator(std::string_view node, etf::Bytes item);
  struct Target {
    std::string node;
    std::optional<etf::Pid> pid;  // else by name
    std::string name;
  };
  // Monitors a process of a peer and sends it a message, or one of this node.
  void request(const QuestionPtr& question, const Target& target, etf::Buffer message);
  // Applies erpc:execute_call/4 to the arguments, an encoded list, on that node.
  void spawn(const QuestionPtr& question, std::string_view node, etf::Bytes arguments);
  // Who asked waits no longer.
  void forget(const QuestionPtr& question);
  // The peer that has run the application for longest; empty when there is none.
  std::string first_peer() const;
  // A pid for a thread's requests; empty when the node is stopping.
  std::string make_address();
  void thread_ended(std::uint64_t caller, const std::string& address,
                    const std::vector<std::uint64_t>& links);
  std::uint64_t next_thread() {
    threads_.fetch_add(1, std::memory_order_relaxed);
    return next_thread_.fetch_add(1, std::memory_order_relaxed);
  }
  // The node stops: whoever waits hears kNoConnection, and so does who asks from now on.
  void close();
  std::size_t open() const;  // questions
  std::size_t threads() const { return threads_.load(std::memory_order_relaxed); }

 private:
  // A peer, as one that answers calls.
  struct Remote {
    enum class State : std::uint8_t { kUnknown, kAsking, kKnown };
    std::uint64_t link = 0;
    std::string name;
    OutboxPtr outbox;
    State state = State::kUnknown;
    std::uint64_t known_since = 0;  // a count, to tell who came first
    std::shared_ptr<const dist::Raw8> coordinator;
    // Until the coordinator is known.
    std::vector<std::pair<std::uint64_t, etf::Buffer>> waiting;  // ids and items
    // Reactor.
    std::optional<etf::Ref> monitor;  // of py_callback while we ask, then of the coordinator
    dist::Raw8 monitored;
    std::unique_ptr<asio::steady_timer> patience;
  };
  using RemotePtr = std::shared_ptr<Remote>;

  void greet(const RemotePtr& remote);
  void look_for_coordinator(const RemotePtr& remote);
  void watch(const RemotePtr& remote, dist::Raw8 process);
  void stop_watching(const RemotePtr& remote);
  void give_up(const RemotePtr& remote, etf::Bytes reason);
  RemotePtr find(std::uint64_t link) const;
  bool enter(const QuestionPtr& question, std::uint64_t link);
  void expect(std::size_t threads);
  QuestionPtr take(std::uint64_t link, const dist::RefKey& ref,
                   std::optional<Question::Kind> kind = std::nullopt);
  void send_item(Remote& remote, const dist::Raw8& coordinator, etf::Bytes item,
                 std::uint32_t items = 1);
  void demonitor(const Question& question);
  void deliver_here(const QuestionPtr& question, const Target& target, etf::Buffer message);
  static void tell(Question& question, Question::Told told, Payload payload, etf::Bytes bytes);
  static void tell(Question& question, Question::Told told, etf::Bytes reason);

  asio::io_context& reactor_;
  Answers& answers_;
  const Deliver deliver_;
  std::atomic<std::uint64_t> next_id_{1};
  std::atomic<std::uint64_t> next_thread_{1};
  std::atomic<std::size_t> threads_{0};  // that have a mailbox
  dist::Node* node_ = nullptr;           // set before anybody asks

  std::atomic<std::size_t> expected_{0};  // threads that were answered and may ask again

  // Reactor.
  asio::steady_timer impatience_{reactor_};
  bool impatient_ = false;
  std::unordered_set<dist::ProcessId> addresses_;
  std::unordered_map<dist::RefKey, RemotePtr, dist::KeyHash> watched_;

  mutable std::mutex mutex_;
  std::unordered_map<std::uint64_t, RemotePtr> remotes_;  // by link
  std::uint64_t greeted_ = 0;
  bool closed_ = false;
  std::unordered_map<std::uint64_t, QuestionPtr> questions_;
  std::unordered_map<dist::RefKey, std::uint64_t, dist::KeyHash> by_ref_;
};

// The address and number of a thread that asks, made at its first question and given back when the
// thread ends.
class ThreadMailbox {
 public:
  ~ThreadMailbox();
  ThreadMailbox(const ThreadMailbox&) = delete;
  ThreadMailbox& operator=(const ThreadMailbox&) = delete;

  static ThreadMailbox& mine(const std::shared_ptr<Asker>& asker);

  std::uint64_t number() const { return number_; }
  // Without the GIL at its first call, which asks the reactor. An encoded pid.
  const std::string& address();
  void used(std::uint64_t link);
  // Whether the asker counts on this thread's next call; told by its last question.
  bool expected_back = false;

 private:
  explicit ThreadMailbox(const std::shared_ptr<Asker>& asker);

  const std::weak_ptr<Asker> asker_;
  const std::uint64_t number_;
  std::string address_;
  std::vector<std::uint64_t> links_;
};

}  // namespace bridge
