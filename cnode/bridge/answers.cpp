#include "cnode/bridge/answers.hpp"

#include <asio/post.hpp>

namespace bridge {

void Answers::link_up(const dist::LinkPtr& link, etf::Bytes py_pid) {
  const std::lock_guard lock(mutex_);
  // The node's identity never changes once a link is up, and other threads read this without a
  // lock.
  if (!py_pid_known_.load(std::memory_order_relaxed)) {
    py_pid_.assign(py_pid.begin(), py_pid.end());
    py_pid_known_.store(true, std::memory_order_release);
  }
  outboxes_[link->id()] = std::make_shared<Outbox>(link, py_pid);
}

void Answers::link_down(std::uint64_t link) {
  const std::lock_guard lock(mutex_);
  outboxes_.erase(link);
}

OutboxPtr Answers::outbox(std::uint64_t link) const {
  const std::lock_guard lock(mutex_);
  auto found = outboxes_.find(link);
  return found == outboxes_.end() ? nullptr : found->second;
}

void Answers::touched(const OutboxPtr& outbox) {
  if (!outbox->list()) return;
  const std::lock_guard lock(mutex_);
  dirty_.push_back(outbox);
  dirty_count_.store(dirty_.size(), std::memory_order_relaxed);
}

void Answers::flush() {
  if (!dirty()) return;
  if (results_ != nullptr) return results_->flush();
  std::vector<OutboxPtr> taken;
  {
    const std::lock_guard lock(mutex_);
    taken.swap(dirty_);
    dirty_count_.store(0, std::memory_order_relaxed);
  }
  for (const auto& outbox : taken) {
    outbox->unlist();  // before: what is added from now on lists it again
    outbox->flush();
  }
}

void Answers::post(std::function<void(dist::Node&)> work) {
  asio::post(reactor_, [this, work = std::move(work)] {
    if (node_ != nullptr) work(*node_);
  });
}

void Answers::exit_process(dist::ProcessId process, etf::Buffer reason) {
  bool first = false;
  {
    const std::lock_guard lock(exits_mutex_);
    first = exits_.empty();
    exits_.emplace_back(process, std::move(reason));
  }
  if (!first) return;
  asio::post(reactor_, [this] {
    // What these processes sent before they ended stands in the outboxes, and goes first.
    flush();
    std::vector<std::pair<dist::ProcessId, etf::Buffer>> taken;
    {
      const std::lock_guard lock(exits_mutex_);
      taken.swap(exits_);
    }
    if (node_ == nullptr) return;
    for (const auto& [id, why] : taken) node_->exit_process(id, why.bytes());
  });
}

void Answers::refuse(const Call& call, std::string_view reason) {
  Reply reply(call, *this);
  if (!reply.wanted()) return;
  reply.begin_error();
  reply.out().atom(reason);
  reply.finish(false);
}

void Answers::finish(const Call& call, bool ok, etf::Bytes value) {
  Reply reply(call, *this);
  if (!reply.wanted()) {
    call.done.store(true, std::memory_order_release);
    return;
  }
  if (ok)
    reply.begin_ok();
  else
    reply.begin_error();
  reply.out().raw(value);
  reply.finish(ok);
}

Reply::Reply(const Call& call, Answers& answers)
    : call_(call), answers_(answers), message_(), writer_(message_.bytes) {
  switch (call.kind) {
    case Call::Kind::kRequest:
      if (answers.results() == nullptr)
        message_ = dist::begin_gen_reply(*call.link, answers.py_pid(), call.from, call.tag);
      break;
    case Call::Kind::kBatchItem:
      if (answers.results() == nullptr) writer_.tuple(2).unsigned_integer(call.id);
      break;
    case Call::Kind::kSpawn:
    case Call::Kind::kErpc:
      break;
    case Call::Kind::kCast:
    case Call::Kind::kErpcCast:
    case Call::Kind::kFreeNamespace:
    case Call::Kind::kJob:
      wanted_ = false;
  }
  mark_ = message_.bytes.size();
}

void Reply::begin_ok() {
  if (answers_.results() != nullptr) return;
  if (call_.kind == Call::Kind::kErpc) {
    writer_.tuple(3).raw(call_.result_tag).atom("return");
  } else if (call_.kind != Call::Kind::kSpawn) {
    writer_.tuple(2).atom("ok");
  }
}

void Reply::begin_error() {
  if (answers_.results() != nullptr) return;
  if (call_.kind == Call::Kind::kErpc) {
    writer_.tuple(4).raw(call_.result_tag).atom("error");
  } else if (call_.kind != Call::Kind::kSpawn) {
    writer_.tuple(2).atom("error");
  }
}

void Reply::restart() { message_.bytes.truncate(mark_); }

void Reply::finish(bool ok) {
  call_.done.store(true, std::memory_order_release);
  const auto payload = [&] {
    return etf::Bytes{message_.bytes.data() + dist::Message::kHeadroom,
                      message_.bytes.size() - dist::Message::kHeadroom};
  };
  if (answers_.results() != nullptr) return answers_.results()->add(call_, ok, payload());
  switch (call_.kind) {
    case Call::Kind::kRequest: {
      const OutboxPtr outbox = call_.outbox ? call_.outbox : answers_.outbox(call_.link->id());
      if (!outbox) return;
      if (outbox->add(std::move(message_)) == Outbox::Added::kFlushNow) return outbox->flush();
      return answers_.touched(outbox);
    }
    case Call::Kind::kBatchItem: {
      const OutboxPtr outbox = call_.outbox ? call_.outbox : answers_.outbox(call_.link->id());
      if (!outbox) return;
      if (outbox->add_reply(call_.from, payload()) == Outbox::Added::kFlushNow)
        return outbox->flush();
      return answers_.touched(outbox);
    }
    case Call::Kind::kErpc:
      if (!ok) writer_.nil();  // no Erlang stack
      [[fallthrough]];
    case Call::Kind::kSpawn: {
      etf::Buffer reason(payload().size() + 8);
      if (ok && call_.kind == Call::Kind::kSpawn) {
        etf::Writer(reason).atom("normal");
      } else {
        reason.append(payload());
      }
      return answers_.exit_process(call_.process, std::move(reason));
    }
    default:
      return;
  }
}

}  // namespace bridge
