#include "cnode/bridge/front_desk.hpp"

#include <optional>
#include <string>

#include "cnode/bridge/runtime.hpp"
#include "cnode/dist/control.hpp"

namespace bridge {
namespace {

std::optional<std::string> text(FrameFields& fields) {
  auto bytes = fields.sized();
  if (!bytes) return std::nullopt;
  std::string value(reinterpret_cast<const char*>(bytes->data()), bytes->size());
  if (!etf::is_utf8(value)) return std::nullopt;
  return value;
}

// An atom's text.
std::optional<std::string> name(FrameFields& fields) {
  auto value = text(fields);
  if (!value || !etf::is_utf8(*value, 255)) return std::nullopt;
  return value;
}

// The rest, if it is one term.
std::optional<etf::Bytes> term(FrameFields& fields) {
  etf::Reader in(fields.rest());
  auto whole = in.term();
  if (!whole || !in.at_end()) return std::nullopt;
  return *whole;
}

std::optional<etf::Bytes> list(FrameFields& fields) {
  auto whole = term(fields);
  if (!whole) return std::nullopt;
  etf::Reader in(*whole);
  if (auto count = in.list(); !count) return std::nullopt;
  return whole;
}

void tell(const QuestionPtr& question, Question::Told told, etf::Buffer bytes = {}) {
  auto payload = std::make_shared<const etf::Buffer>(std::move(bytes));
  question->bytes = payload->bytes();
  question->payload = std::move(payload);
  question->told.store(told, std::memory_order_release);
  if (question->waiter) question->waiter->wake();
}

struct Address {
  Asker::Target to;
  etf::Bytes raw;  // of the pid, when it is one
};

std::optional<Address> address(FrameFields& fields, const std::string& own_node) {
  auto wanted = name(fields);
  auto node = name(fields);
  auto pid = fields.sized();
  if (!wanted || !node || !pid) return std::nullopt;
  Address address;
  if (pid->empty()) {
    if (wanted->empty()) return std::nullopt;
    address.to.name = *wanted;
    address.to.node = node->empty() ? own_node : *node;
    return address;
  }
  etf::Reader in(*pid);
  auto view = in.pid();
  if (!view || !in.at_end()) return std::nullopt;
  address.raw = *pid;
  address.to.pid = view->value();
  address.to.node = view->node.utf8();
  return address;
}

}  // namespace

bool FrontDesk::serve(const QuestionPtr& question, AskKind kind, std::uint64_t caller,
                      FrameFields fields) {
  switch (kind) {
    case AskKind::kCall:
      return call(question, caller, fields);
    case AskKind::kRequest:
      return request(question, fields);
    case AskKind::kRemote:
      return remote(question, fields);
    case AskKind::kSend:
      return send(question, fields);
    case AskKind::kLog:
      return log(fields);
    case AskKind::kInfo:
      return info(question, fields);
  }
  return false;
}

// Named, or served, or home, or the first.
std::string FrontDesk::peer_for(std::string_view node) const {
  if (!node.empty() && node != runtime_.node().name()) return std::string(node);
  return runtime_.home().empty() ? runtime_.asker().first_peer() : runtime_.home();
}

bool FrontDesk::call(const QuestionPtr& question, std::uint64_t caller, FrameFields& fields) {
  auto function = text(fields);
  auto node = name(fields);
  auto parent = text(fields);
  auto state = text(fields);
  if (!function || !node || !parent || !state) return false;
  auto arguments = list(fields);
  if (!arguments) return false;
  const std::string peer = peer_for(*node);
  if (peer.empty()) {
    tell(question, Question::Told::kNoConnection);
    return true;
  }
  question->kind = Question::Kind::kCall;
  question->id = runtime_.asker().next_id();
  etf::Buffer item(64 + arguments->size());
  etf::Writer out(item);
  if (const auto trace = base::TraceContext::of(*parent, *state))
    write_trace(out, *question, *trace);
  out.tuple(5)
      .atom("call")
      .unsigned_integer(question->id)
      .unsigned_integer(caller)
      .binary(std::string_view(*function))
      .raw(*arguments);
  runtime_.asker().call(question, peer, std::move(item));
  runtime_.answers().flush();
  return true;
}

bool FrontDesk::request(const QuestionPtr& question, FrameFields& fields) {
  auto target = address(fields, runtime_.node().name());
  if (!target) return false;
  auto wanted = term(fields);
  if (!wanted) return false;
  question->kind = Question::Kind::kRequest;
  question->id = runtime_.asker().next_id();
  question->ref = runtime_.node().make_ref();
  etf::Buffer message(128 + wanted->size());
  etf::Writer out(message);
  out.tuple(3).atom("$gen_call").tuple(2).raw(runtime_.answers().py_pid());
  out.list(1).atom("alias").reference(question->ref).raw(*wanted);
  runtime_.asker().request(question, target->to, std::move(message));
  return true;
}

bool FrontDesk::remote(const QuestionPtr& question, FrameFields& fields) {
  auto node = name(fields);
  auto module = name(fields);
  auto function = name(fields);
  if (!node || !module || !function) return false;
  auto arguments = list(fields);
  if (!arguments) return false;
  question->kind = Question::Kind::kRemote;
  question->id = runtime_.asker().next_id();
  question->ref = runtime_.node().make_ref();
  etf::Buffer all(256 + arguments->size());
  etf::Writer out(all);
  out.list(4).reference(question->ref).atom(*module).atom(*function).raw(*arguments).nil();
  runtime_.asker().spawn(question, *node, all.bytes());
  return true;
}

bool FrontDesk::send(const QuestionPtr& question, FrameFields& fields) {
  auto target = address(fields, runtime_.node().name());
  if (!target) return false;
  auto message = term(fields);
  if (!message) return false;
  const auto done = [&](bool delivered) {
    etf::Buffer word;
    etf::Writer(word).atom(delivered ? "ok" : "full");
    tell(question, Question::Told::kAnswer, std::move(word));
    return true;
  };
  const Asker::Target& to = target->to;
  if (to.node == runtime_.node().name()) {
    dist::Process* process = nullptr;
    if (!to.pid) {
      process = runtime_.node().processes().find(to.name);
    } else if (to.pid->creation == runtime_.node().creation()) {
      process =
          runtime_.node().processes().find((std::uint64_t{to.pid->serial} << 32) | to.pid->id);
    }
    if (process == nullptr) return done(true);
    if (auto channel = runtime_.channels().find(process->id)) {
      const auto payload = std::make_shared<const etf::Buffer>(Processes::copy(*message));
      runtime_.channels().deliver(channel, payload, payload->bytes());
      return done(true);
    }
    return done(runtime_.processes().deliver(process->id, *message));
  }
  auto link = runtime_.node().link_to(to.node);
  if (!link) {
    tell(question, Question::Told::kNoConnection);
    return true;
  }
  const etf::Bytes from = runtime_.answers().py_pid();
  dist::Message out_message(256 + message->size());
  etf::Writer out(out_message.bytes);
  if (to.pid) {
    if (link->has(dist::kSendSender))
      dist::append_send_sender(out, from, target->raw);
    else
      dist::append_send(out, target->raw);
    etf::Reader in(target->raw);
    out_message.lane = dist::lane_of(*in.pid());
  } else {
    dist::append_reg_send(out, from, to.name);
    out_message.lane = std::hash<std::string>{}(to.name) | 1;
  }
  out_message.end_control();
  out.raw(*message);
  if (auto outbox = runtime_.answers().outbox(link->id())) {
    outbox->add(std::move(out_message));
    outbox->flush();
  }
  return done(true);
}

bool FrontDesk::log(FrameFields& fields) {
  auto node = name(fields);
  if (!node) return false;
  auto item = term(fields);
  if (!item) return false;
  if (const std::string peer = peer_for(*node); !peer.empty())
    runtime_.asker().tell_coordinator(peer, *item);
  return true;
}

bool FrontDesk::info(const QuestionPtr& question, FrameFields& fields) {
  auto what = text(fields);
  auto argument = text(fields);
  if (!what || !argument) return false;
  etf::Buffer answer;
  etf::Writer out(answer);
  const auto atoms = [&](const std::vector<std::string>& names) {
    out.list(static_cast<std::uint32_t>(names.size()));
    for (const auto& one : names) out.atom(one);
    if (!names.empty()) out.nil();
  };
  if (*what == "node") {
    out.atom(runtime_.node().name());
  } else if (*what == "nodes") {
    atoms(runtime_.node().peers());
  } else if (*what == "registered") {
    atoms(runtime_.node().processes().names());
  } else if (*what == "whereis") {
    dist::Process* process = runtime_.node().processes().find(*argument);
    if (process == nullptr)
      out.atom("none");
    else
      out.raw(dist::view(process->pid));
  } else if (*what == "server_pid") {
    const etf::Bytes pid = runtime_.answers().py_pid();
    if (pid.empty())
      out.atom("none");
    else
      out.raw(pid);
  } else {
    return false;
  }
  tell(question, Question::Told::kAnswer, std::move(answer));
  return true;
}

}  // namespace bridge
