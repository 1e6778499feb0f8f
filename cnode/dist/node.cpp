#include "cnode/dist/node.hpp"

#include <asio/bind_executor.hpp>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/ip/v6_only.hpp>
#include <asio/read.hpp>
#include <asio/write.hpp>

#include <algorithm>
#include <array>
#include <stdexcept>

#include "cnode/base/fork.hpp"
#include "cnode/base/log.hpp"
#include "cnode/base/random.hpp"
#include "cnode/dist/async.hpp"
#include "cnode/dist/tls.hpp"

namespace dist {

using asio::ip::tcp;
using base::Error;
using base::ErrorCode;

namespace {

constexpr std::string_view kNetKernel = "net_kernel";
constexpr std::chrono::minutes kFragmentsIdle{
    10};  // then an unfinished message will never be finished
constexpr std::size_t kMaxWatchers =
    2'000'000;  // of one process; a peer that wants more is dropped

std::string_view alive_part(std::string_view name) { return name.substr(0, name.find('@')); }
std::string_view host_part(std::string_view name) {
  const auto at = name.find('@');
  return at == std::string_view::npos ? name : name.substr(at + 1);
}

std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 64)) out += c >= 0x20 && c < 0x7F ? c : '?';
  return out;
}

// Closes the socket when a step takes too long; the operation under way then ends with an error.
struct StepDeadline {
  explicit StepDeadline(tcp::socket& socket_in)
      : socket(socket_in), timer(socket_in.get_executor()) {}
  ~StepDeadline() { *alive = false; }
  StepDeadline(const StepDeadline&) = delete;
  StepDeadline& operator=(const StepDeadline&) = delete;

  void arm(std::chrono::milliseconds limit) {
    timer.expires_after(limit);
    timer.async_wait([this, still = alive](asio::error_code error) {
      if (error || !*still) return;
      expired = true;
      asio::error_code ignored;
      socket.close(ignored);
    });
  }

  tcp::socket& socket;
  asio::steady_timer timer;
  std::shared_ptr<bool> alive = std::make_shared<bool>(true);
  bool expired = false;
};

etf::Bytes bytes_of(const etf::Buffer& buffer) { return buffer.bytes(); }

const etf::Buffer& noproc() {
  static const etf::Buffer atom = encode_atom("noproc");
  return atom;
}

// Stands for an exit reason nested beyond the limit: legal in a BEAM, and no reason to drop a link.
const etf::Buffer& too_deep() {
  static const etf::Buffer atom = encode_atom("reason_too_deep");
  return atom;
}

const etf::Buffer& noconnection() {
  static const etf::Buffer atom = encode_atom("noconnection");
  return atom;
}

}  // namespace

etf::Buffer encode_atom(std::string_view text) {
  etf::Buffer bytes(text.size() + 4);
  etf::Writer(bytes).atom(text);
  return bytes;
}

std::uint64_t lane_of(const etf::PidView& pid) {
  return mix((std::uint64_t{pid.serial} << 32) | pid.id, pid.creation) | 1;
}

Message begin_gen_reply(const Link& link, etf::Bytes our_pid, const etf::PidView& to,
                        etf::Bytes tag) {
  Message message;
  etf::Writer out(message.bytes);
  // [alias | Ref], as gen:call and erlang:monitor(…, [{alias, _}]) make it.
  etf::Reader in(tag);
  std::optional<etf::RefView> alias;
  if (auto count = in.list(); count && *count == 1) {
    if (auto word = in.atom(); word && *word == "alias") {
      if (auto ref = in.reference()) alias = *ref;
    }
  }
  if (alias && link.has(kAltactSig)) {
    append_altact_send(out, kAltactAlias, our_pid, alias->raw);
  } else if (alias && link.has(kAlias)) {
    append_alias_send(out, our_pid, alias->raw);
  } else if (link.has(kSendSender)) {
    append_send_sender(out, our_pid, to.raw);
  } else {
    append_send(out, to.raw);
  }
  message.end_control();
  message.lane = lane_of(to);
  out.tuple(2).raw(tag);
  return message;
}

Node::Node(asio::io_context& reactor, NodeConfig config, NodeDelegate& delegate)
    : reactor_(reactor), config_(std::move(config)), delegate_(delegate) {
  // Any 32-bit value from 4 on; a fresh one at each start is what makes pids and references of an
  // earlier incarnation recognizable.
  creation_ = std::max(std::uint32_t{4}, base::secure_random_u32());
  if (config_.name.find('@') != std::string::npos) set_identity(config_.name, creation_);
}

Node::~Node() = default;

void Node::set_identity(std::string name, std::uint32_t creation) {
  creation_ = creation;
  table_.set_identity(name, creation);
  const std::lock_guard lock(names_mutex_);
  name_ = std::move(name);
}

// --- joining
// -----------------------------------------------------------------------------------------------------

void Node::start(std::function<void(std::string)> fatal) {
  fatal_ = std::move(fatal);
  create_process(std::string(kNetKernel), true);
  const bool named = !name().empty();
  if (config_.listens && named) {
    bind();
    for (auto& acceptor : acceptors_)
      asio::co_spawn(reactor_, accept_loop(acceptor), asio::detached);
    join_epmd();
  }
  for (const auto& peer : config_.peers) asio::co_spawn(reactor_, dial_loop(peer), asio::detached);
}

void Node::join_epmd() {
  if (config_.epmd_use == EpmdUse::kNone) return;
  // Made now: other threads ask registered().
  epmd_server_ = std::make_unique<EpmdServer>(reactor_.get_executor());
  if (config_.epmd_use == EpmdUse::kBuiltIn) {
    if (auto status = serve_epmd(); !status)
      throw std::runtime_error("epmd: cannot listen on " + status.error().detail);
    return;
  }
  epmd_ = std::make_unique<EpmdClient>(reactor_.get_executor(), config_.epmd);
  auto refused = [this] { fatal_("name: another node is registered with epmd as " + name()); };
  EpmdClient::Absent absent;
  if (config_.epmd_use == EpmdUse::kAuto) {
    // What cannot be had now (the port was just taken) is tried again as the client's next try.
    absent = [this] { return serve_epmd().ok(); };
  }
  asio::co_spawn(reactor_,
                 epmd_->keep_registered(std::string(alive_part(name())), port_, std::move(refused),
                                        std::move(absent)),
                 asio::detached);
}

base::Status Node::serve_epmd() {
  std::vector<asio::ip::address> addresses;
  for (const auto& text : config_.epmd_addresses) {
    asio::error_code error;
    addresses.push_back(asio::ip::make_address(text, error));
    if (error) return Error{ErrorCode::kMalformed, 0, "'" + text + "': no address"};
  }
  if (addresses.empty()) {
    for (const auto& acceptor : acceptors_)
      addresses.push_back(acceptor.local_endpoint().address());
  }
  auto status = epmd_server_->start(addresses, config_.epmd.port);
  if (!status) return status;
  spdlog::info("serving as epmd on port {}", epmd_server_->port());
  return epmd_server_->add_own(std::string(alive_part(name())), port_);
}

bool Node::registered() const {
  if (config_.epmd_use == EpmdUse::kNone) return true;
  return (epmd_ && epmd_->registered()) || (epmd_server_ && epmd_server_->serving());
}

void Node::bind() {
  std::vector<std::string> hosts = config_.listen;
  if (hosts.empty()) hosts.emplace_back(host_part(config_.name));
  tcp::resolver resolver(reactor_);
  std::set<asio::ip::address> addresses;
  for (const auto& host : hosts) {
    asio::error_code error;
    const auto results = resolver.resolve(host, "0", tcp::resolver::passive, error);
    if (error)
      throw std::runtime_error("listen: cannot resolve '" + host + "': " + error.message());
    for (const auto& result : results) addresses.insert(result.endpoint().address());
  }
  const std::uint16_t last = std::max(config_.first_port, config_.last_port);
  std::string why;
  for (std::uint32_t port = config_.first_port; port <= last; ++port) {
    acceptors_.clear();
    std::uint16_t bound = static_cast<std::uint16_t>(port);
    why.clear();
    std::string missing;
    for (const auto& address : addresses) {
      tcp::acceptor acceptor(reactor_);
      asio::error_code error;
      const tcp::endpoint endpoint(address, bound);
      acceptor.open(endpoint.protocol(), error);
      if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
      if (!error && address.is_v6()) acceptor.set_option(asio::ip::v6_only(true), error);
      if (!error) acceptor.bind(endpoint, error);
      if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
      if (error) {
        const std::string here =
            address.to_string() + " port " + std::to_string(bound) + ": " + error.message();
        // A host name often has an address that this machine lacks (IPv6 switched off): the others
        // will do.
        const bool lacking = error == std::errc::address_not_available ||
                             error == std::errc::address_family_not_supported;
        if (lacking && config_.listen.empty()) {
          missing = here;
          continue;
        }
        why = here;
        break;
      }
      base::close_in_children(acceptor.native_handle());
      bound = acceptor.local_endpoint().port();
      acceptors_.push_back(std::move(acceptor));
    }
    if (why.empty() && acceptors_.empty()) why = missing;
    if (why.empty()) {
      port_ = bound;
      spdlog::info("listening on {} port {}",
                   acceptors_.front().local_endpoint().address().to_string(), bound);
      return;
    }
  }
  throw std::runtime_error("listen: cannot listen on " + why);
}

asio::awaitable<void> Node::accept_loop(tcp::acceptor& acceptor) {
  auto next_report = std::chrono::steady_clock::now();
  while (!stopping_) {
    auto [error, socket] = co_await acceptor.async_accept(as_result);
    if (stopping_ || error == asio::error::operation_aborted) co_return;
    if (error) {
      if (const auto now = std::chrono::steady_clock::now(); now >= next_report) {
        spdlog::warn("cannot accept connections ({}); trying on", error.message());
        next_report = now + std::chrono::minutes(1);
      }
      co_await sleep_for(std::chrono::milliseconds(100));
      continue;
    }
    while (pending_.size() >= config_.max_pending) {
      asio::error_code ignored;
      spdlog::warn("{} unfinished handshakes: ended the oldest, from {}", pending_.size(),
                   pending_.front().address);
      pending_.front().socket->close(ignored);
      pending_.pop_front();
    }
    asio::co_spawn(reactor_, accept_peer(std::move(socket)), asio::detached);
  }
}

HandshakeConfig Node::handshake_config() const {
  HandshakeConfig config;
  config.name = name();
  config.creation = creation_;
  if (config.name.empty()) {
    config.name = config_.name;
    config.flags |= kNameMe;
  }
  config.cookie = [this](std::string_view) {
    return config_.current_cookie ? config_.current_cookie() : config_.cookie;
  };
  return config;
}

asio::awaitable<void> Node::accept_peer(Socket socket) {
  configure(socket);
  if (config_.tls) {
    co_await admit<TlsTransport>(config_.tls->accept(std::move(socket)));
  } else {
    co_await admit<TcpTransport>(std::move(socket));
  }
}

template <class Transport>
asio::awaitable<void> Node::admit(typename Transport::Stream stream) {
  Socket& socket = Transport::socket(stream);
  asio::error_code ignored;
  const auto endpoint = socket.remote_endpoint(ignored);
  const std::string address =
      endpoint.address().to_string() + ":" + std::to_string(endpoint.port());
  pending_.push_back(Pending{&socket, address});
  Handshake handshake(Handshake::Role::kAcceptor, handshake_config());
  auto peer = co_await shake_hands<Transport>(stream, handshake);
  // The entry may have been taken away when too many were pending; then the socket is closed.
  pending_.remove_if([&](const Pending& one) { return one.socket == &socket; });
  if (!peer) {
    counters_.handshakes_failed.add(peer.error().code);
    spdlog::warn("handshake with {} failed: {}", address, peer.error().detail);
    socket.close(ignored);
    co_return;
  }
  open_link<Transport>(std::move(stream), std::move(*peer));
}

// Whether whoever is at the other end may be the node it says it is.
template <class Transport>
bool Node::vouched(typename Transport::Stream& stream, std::string_view peer) const {
  if constexpr (std::is_same_v<Transport, TlsTransport>) {
    return config_.tls->vouches_for(stream, peer);
  }
  return true;
}

// What has to happen before the first packet.
template <class Transport>
asio::awaitable<base::Status> Node::secure(typename Transport::Stream& stream,
                                           Handshake& handshake) {
  if constexpr (std::is_same_v<Transport, TlsTransport>) {
    const bool accepts = handshake.role() == Handshake::Role::kAcceptor;
    auto [error] = co_await stream.async_handshake(
        accepts ? asio::ssl::stream_base::server : asio::ssl::stream_base::client, as_result);
    if (error) co_return Error{ErrorCode::kRefused, 0, "TLS: " + Tls::reason(stream, error)};
    // An acceptor learns later who it is to be for.
    if (!accepts && !vouched<Transport>(stream, handshake.expected_peer())) {
      co_return Error{ErrorCode::kRefused, 0,
                      "TLS: the certificate of " + printable(handshake.expected_peer()) +
                          " is not for its host"};
    }
  }
  co_return base::Done{};
}

template <class Transport>
asio::awaitable<base::Result<PeerInfo>> Node::shake_hands(typename Transport::Stream& stream,
                                                          Handshake& handshake) {
  constexpr std::size_t kHeader = Transport::kHandshakeHeader;
  StepDeadline deadline(Transport::socket(stream));
  std::array<std::uint8_t, kMaxHandshakePacket> packet{};
  auto failure = [&](const asio::error_code& error) {
    if (deadline.expired) return Error{ErrorCode::kTimeout, 0, "no packet in time"};
    const bool spoken = error && error.category() == asio::error::get_ssl_category();
    return Error{ErrorCode::kClosed, 0,
                 spoken ? "TLS: " + error.message() : "the connection was closed"};
  };
  auto send = [](typename Transport::Stream& to,
                 const std::vector<std::vector<std::uint8_t>>& packets)
      -> asio::awaitable<asio::error_code> {
    etf::Buffer out;
    for (const auto& one : packets) {
      std::array<std::uint8_t, 4> head{};
      etf::write_u32(head.data(), static_cast<std::uint32_t>(one.size()));
      out.append(etf::Bytes{head.data() + 4 - kHeader, kHeader});
      out.append(etf::Bytes{one.data(), one.size()});
    }
    auto [error, count] =
        co_await asio::async_write(to, asio::buffer(out.data(), out.size()), as_result);
    co_return error;
  };

  deadline.arm(config_.handshake_step);
  auto secured = co_await secure<Transport>(stream, handshake);
  if (!secured) {
    if (deadline.expired) co_return failure({});
    co_return secured.error();
  }
  deadline.arm(config_.handshake_step);
  Handshake::Step step = handshake.start();
  for (;;) {
    if (!step.send.empty()) {
      const asio::error_code unsent = co_await send(stream, step.send);
      if (unsent) co_return failure(unsent);
    }
    if (step.next == Handshake::Step::Next::kDone) co_return handshake.peer();
    if (step.next == Handshake::Step::Next::kClose) {
      co_return Error{ErrorCode::kRefused, 0, "refused " + printable(handshake.peer().name)};
    }
    if (step.next == Handshake::Step::Next::kNeedDecision) {
      // First of all: decide() may end an attempt of ours in favour of this one.
      if (!vouched<Transport>(stream, handshake.peer().name)) {
        auto refused = handshake.decide(Decision::kNotAllowed);
        if (refused) co_await send(stream, refused->send);
        co_return Error{
            ErrorCode::kRefused, 0,
            "TLS: the certificate of " + printable(handshake.peer().name) + " is not for its host"};
      }
      auto decided = handshake.decide(decide(handshake.peer()));
      if (!decided) co_return decided.error();
      step = std::move(*decided);
      continue;
    }
    deadline.arm(config_.handshake_step);
    auto head = asio::buffer(packet.data(), kHeader);
    auto [head_error, head_size] = co_await asio::async_read(stream, head, as_result);
    if (head_error) co_return failure(head_error);
    std::size_t length = 0;
    for (std::size_t i = 0; i < kHeader; ++i) length = (length << 8) | packet[i];
    if (length > packet.size()) {
      co_return Error{ErrorCode::kTooLarge, 0,
                      "a handshake packet of " + std::to_string(length) + " bytes"};
    }
    auto body = asio::buffer(packet.data(), length);
    auto [body_error, body_size] = co_await asio::async_read(stream, body, as_result);
    if (body_error) co_return failure(body_error);
    auto next = handshake.on_packet({packet.data(), length});
    if (!next) {
      const auto& refusal = handshake.refusal();
      if (!refusal.empty()) {
        const std::vector<std::vector<std::uint8_t>> packets{refusal};
        co_await send(stream, packets);
      }
      co_return next.error();
    }
    step = std::move(*next);
  }
}

Decision Node::decide(const PeerInfo& peer) {
  if (stopping_ || links_.size() >= config_.max_links || peer.name == name())
    return Decision::kNotAllowed;
  if (auto dialing = dialing_.find(peer.name); dialing != dialing_.end()) {
    if (simultaneous_winner(name(), peer.name)) return Decision::kNok;
    asio::error_code ignored;
    dialing->second->close(ignored);
    return Decision::kOkSimultaneous;
  }
  return link_to(peer.name) ? Decision::kAlive : Decision::kOk;
}

asio::awaitable<void> Node::dial_loop(PeerAddress peer) {
  std::chrono::milliseconds pause{100};
  auto next_report = std::chrono::steady_clock::now();
  while (!stopping_) {
    if (!link_to(peer.name)) {
      auto status = co_await dial(peer);
      if (status) {
        pause = std::chrono::milliseconds(100);
      } else if (std::chrono::steady_clock::now() >= next_report) {
        spdlog::warn("cannot reach peer {} ({}); trying on", peer.name, status.error().detail);
        next_report = std::chrono::steady_clock::now() + std::chrono::minutes(1);
      }
    } else {
      pause = std::chrono::milliseconds(100);
    }
    // Half to whole of the pause: many nodes that lost the same peer do not come back in step.
    const auto half = static_cast<std::uint64_t>(pause.count() / 2);
    co_await sleep_for(std::chrono::milliseconds(half + base::secure_random_u64() % (half + 1)));
    pause = std::min<std::chrono::milliseconds>(pause * 2, std::chrono::milliseconds(10'000));
  }
}

asio::awaitable<base::Status> Node::dial(PeerAddress peer) {
  const std::string host(host_part(peer.name));
  std::uint16_t port = peer.port;
  if (port == 0) {
    auto found =
        co_await EpmdClient::look_up(host, config_.epmd.port, std::string(alive_part(peer.name)));
    if (!found) co_return found.error();
    port = *found;
  }
  Socket socket(reactor_);
  auto connected = co_await connect(socket, host, port, config_.handshake_step);
  if (!connected) co_return connected;
  if (link_to(peer.name)) co_return base::Done{};
  configure(socket);
  if (config_.tls) {
    auto stream = config_.tls->connect(std::move(socket), host);
    co_return co_await introduce<TlsTransport>(std::move(stream), peer.name);
  }
  co_return co_await introduce<TcpTransport>(std::move(socket), peer.name);
}

template <class Transport>
asio::awaitable<base::Status> Node::introduce(typename Transport::Stream stream, std::string peer) {
  Socket& socket = Transport::socket(stream);
  dialing_[peer] = &socket;
  Handshake handshake(Handshake::Role::kInitiator, handshake_config(), peer);
  auto info = co_await shake_hands<Transport>(stream, handshake);
  if (auto mine = dialing_.find(peer); mine != dialing_.end() && mine->second == &socket)
    dialing_.erase(mine);
  if (!info) {
    counters_.handshakes_failed.add(info.error().code);
    co_return info.error();
  }
  if (stopping_) co_return Error{ErrorCode::kClosed, 0, "stopping"};
  open_link<Transport>(std::move(stream), std::move(*info));
  co_return base::Done{};
}

template <class Transport>
void Node::open_link(typename Transport::Stream stream, PeerInfo peer) {
  if (name().empty()) set_identity(peer.our_name, peer.our_creation);
  if (auto old = link_to(peer.name)) {
    spdlog::info("{}: a new connection replaces the old one", peer.name);
    old->close("replaced by a new connection");
    on_link_closed(*old, "replaced by a new connection");
  }
  LinkLimits limits;
  limits.ticktime = config_.ticktime;
  limits.max_frame = config_.max_message + kFragmentSize;
  FragmentLimits fragments;
  fragments.message = config_.max_message;
  fragments.total = 2 * config_.max_message;
  const std::uint64_t id = next_link_++;
  auto link = std::make_shared<Connection<Transport>>(id, peer, std::move(stream),
                                                      static_cast<LinkHandler&>(*this), limits);
  if (config_.budget) {
    link->set_budget(std::make_shared<base::MemoryBudget>(config_.peer_budget, config_.budget));
    fragments.budget = link->budget();
    fragments.counts = [this](etf::Bytes first) { return delegate_.can_refuse(first); };
  }
  links_[id] = link;
  assemblers_.try_emplace(id, fragments);
  {
    const std::lock_guard lock(names_mutex_);
    links_by_name_[peer.name] = link;
  }
  ++counters_.links_opened;
  spdlog::info("{} is up", peer.name);
  delegate_.on_link_up(link);
  link->start({});
}

void Node::on_link_closed(Link& link, const std::string& reason) {
  auto found = links_.find(link.id());
  if (found == links_.end()) return;  // was replaced
  const LinkPtr keep_alive = found->second;
  links_.erase(found);
  assemblers_.erase(link.id());
  {
    const std::lock_guard lock(names_mutex_);
    auto named = links_by_name_.find(link.peer().name);
    if (named != links_by_name_.end() && named->second->id() == link.id())
      links_by_name_.erase(named);
  }
  ++counters_.links_closed;
  past_.add(link);
  spdlog::info("{} is down: {}", link.peer().name, reason);
  drop_peer(link.id());
  delegate_.on_link_down(link);
}

Traffic Node::traffic() const {
  Traffic all = past_;
  for (const auto& [id, link] : links_) all.add(*link);
  return all;
}

std::map<std::string, bool> Node::known_peers() const {
  std::map<std::string, bool> known;
  for (const PeerAddress& peer : config_.peers) known[peer.name] = false;
  for (const auto& [id, link] : links_) known[link->peer().name] = true;
  return known;
}

void Node::drop_peer(std::uint64_t link) {
  struct Lost {
    ProcessId process;
    RefKey ref;
    Monitor monitor;
  };
  std::vector<Lost> lost;
  std::vector<std::pair<ProcessId, Raw8>> exits;
  table_.for_each([&](Process& process) {
    process.watchers.erase_if([&](const auto& entry) { return entry.second.link == link; });
    process.links.erase_if([&](const auto& entry) {
      if (entry.second.link != link) return false;
      if (entry.second.unlinking == 0) exits.emplace_back(process.id, entry.second.pid);
      return true;
    });
    process.monitors.erase_if([&](const auto& entry) {
      if (entry.second.link != link) return false;
      lost.push_back({process.id, entry.first, entry.second});
      return true;
    });
  });
  for (const auto& one : lost) {
    if (Process* owner = table_.find(one.process))
      delegate_.on_down(*owner, one.ref, one.monitor, noconnection().bytes());
  }
  for (const auto& [id, from] : exits) {
    if (Process* process = table_.find(id)) {
      delegate_.on_exit(*process, view(from), noconnection().bytes(), ExitKind::kLink);
    }
  }
}

std::optional<std::int64_t> Node::certificate_end() const {
  if (!config_.tls) return std::nullopt;
  return config_.tls->expires();
}

void Node::stop_accepting() {
  stopping_ = true;
  asio::error_code ignored;
  for (auto& acceptor : acceptors_) acceptor.close(ignored);
  for (auto& pending : pending_) pending.socket->close(ignored);
  for (auto& [name, socket] : dialing_) socket->close(ignored);
  if (epmd_) epmd_->stop();
  if (epmd_server_) epmd_server_->remove_own(std::string(alive_part(name())));
}

void Node::close_links(const std::string& reason) {
  auto links = links_;
  for (auto& [id, link] : links) link->close(reason);
}

bool Node::links_flushed() const {
  return std::all_of(links_.begin(), links_.end(),
                     [](const auto& entry) { return entry.second->flushed(); });
}

std::string Node::name() const {
  const std::lock_guard lock(names_mutex_);
  return name_;
}

bool Node::ready() const {
  const std::lock_guard lock(names_mutex_);
  return !links_by_name_.empty() || (port_ != 0 && registered());
}

LinkPtr Node::link_to(std::string_view node) const {
  const std::lock_guard lock(names_mutex_);
  auto found = links_by_name_.find(node);
  return found == links_by_name_.end() ? nullptr : found->second;
}

std::vector<std::string> Node::peers() const {
  const std::lock_guard lock(names_mutex_);
  std::vector<std::string> names;
  for (const auto& [name, link] : links_by_name_) names.push_back(name);
  return names;
}

LinkPtr Node::find_link(std::uint64_t id) const {
  auto found = links_.find(id);
  return found == links_.end() ? nullptr : found->second;
}

etf::Ref Node::make_ref() {
  const std::uint64_t number = next_ref_.fetch_add(1, std::memory_order_relaxed);
  etf::Ref ref;
  ref.node = name();
  ref.creation = creation_;
  ref.count = 3;
  // The first word of a reference has 18 bits on nodes that still look at it.
  ref.words = {static_cast<std::uint32_t>(number & 0x3FFFF),
               static_cast<std::uint32_t>(number >> 18), static_cast<std::uint32_t>(number >> 50)};
  return ref;
}

// --- signals in
// --------------------------------------------------------------------------------------------------

void Node::reject(Link& link, const Error& error, std::string_view what) {
  counters_.frames_rejected.add(error.code);
  spdlog::warn("{}: {} ({}); closing the link", link.peer().name, what, error.message());
  link.close(std::string(what));
}

void Node::on_frame(Link& link, etf::Bytes bytes, std::size_t whole_size) {
  auto frame = parse_frame(bytes, link.has(kFragments));
  if (!frame) return reject(link, frame.error(), "a frame that cannot be understood");
  const bool too_large = whole_size > bytes.size();
  auto assembler = assemblers_.find(link.id());
  if (assembler == assemblers_.end()) return;
  switch (frame->kind) {
    case Frame::Kind::kTick:
      return;
    case Frame::Kind::kPassThrough:
      return on_signal(link, Incoming{frame->body}, true, too_large);
    case Frame::Kind::kWhole:
      return on_signal(link, Incoming{frame->body}, false, too_large);
    case Frame::Kind::kFirstFragment:
    case Frame::Kind::kFragment: {
      if (too_large)
        return reject(link, {ErrorCode::kTooLarge, 0, {}}, "a fragment over the limit");
      if (frame->kind == Frame::Kind::kFirstFragment && assembler->second.open() > 0)
        drop_idle_fragments();
      auto whole = frame->kind == Frame::Kind::kFirstFragment
                       ? assembler->second.on_first(frame->sequence, frame->fragment, frame->body)
                       : assembler->second.on_next(frame->sequence, frame->fragment, frame->body);
      if (!whole) return reject(link, whole.error(), "fragments out of order");
      if (!*whole) return;
      return on_signal(
          link, {(*whole)->bytes.bytes(), &(*whole)->bytes, &(*whole)->charge, (*whole)->no_memory},
          false, (*whole)->too_large);
    }
  }
}

// Seldom, since it looks at every unfinished message.
void Node::drop_idle_fragments() {
  const auto now = Assembler::Clock::now();
  if (now < next_fragment_sweep_) return;
  next_fragment_sweep_ = now + kFragmentsIdle / 10;
  for (auto& [link, assembler] : assemblers_) assembler.drop_idle(now - kFragmentsIdle);
}

void Node::on_signal(Link& link, Incoming body, bool pass_through, bool too_large) {
  etf::Reader in(body.bytes);
  if (pass_through) {
    if (auto version = in.version(); !version)
      return reject(link, version.error(), "a frame without version byte");
  }
  auto control = parse_control(in);
  if (!control) {
    if (too_large) {
      spdlog::warn("{}: dropped a message over the limit", link.peer().name);
      return;
    }
    return reject(link, control.error(), "a control message that cannot be understood");
  }
  if (pass_through && control->has_payload) {
    if (auto version = in.version(); !version)
      return reject(link, version.error(), "a message without version byte");
  }
  on_signal(link, *control, Incoming{in.rest(), body.whole, body.charge, body.no_memory},
            too_large);
}

Process* Node::target(const Party& to) {
  switch (to.kind) {
    case Party::Kind::kPid:
      return table_.find(to.pid);
    case Party::Kind::kName:
      return table_.find(to.name.text);
    default:
      return nullptr;
  }
}

void Node::on_signal(Link& link, const Control& control, Incoming incoming, bool too_large) {
  const etf::Bytes message = incoming.bytes;
  switch (control.op) {
    case Op::kSend:
    case Op::kSendTt:
    case Op::kSendSender:
    case Op::kSendSenderTt:
    case Op::kRegSend:
    case Op::kRegSendTt:
      return deliver(link, target(control.to), control, incoming, too_large);
    case Op::kAliasSend:
    case Op::kAliasSendTt:
      return delegate_.on_alias_message(link, control.to.alias, message);
    case Op::kAltactSigSend:
      if ((control.flags & kAltactExit) != 0) return on_exit(link, control, message);
      if (control.to.kind == Party::Kind::kAlias)
        return delegate_.on_alias_message(link, control.to.alias, message);
      return deliver(link, target(control.to), control, incoming, too_large);
    case Op::kMonitorP:
      return on_monitor(link, control);
    case Op::kDemonitorP:
      return on_demonitor(link, control);
    case Op::kMonitorPExit:
      return on_down(link, control, control.reason);
    case Op::kPayloadMonitorPExit:
      return on_down(link, control, message);
    case Op::kLink:
      return on_link(link, control);
    case Op::kUnlinkId:
      return on_unlink(link, control);
    case Op::kUnlinkIdAck:
      return on_unlink_ack(link, control);
    case Op::kExit:
    case Op::kExitTt:
    case Op::kExit2:
    case Op::kExit2Tt:
      return on_exit(link, control, control.reason);
    case Op::kPayloadExit:
    case Op::kPayloadExitTt:
    case Op::kPayloadExit2:
    case Op::kPayloadExit2Tt:
      return on_exit(link, control, message);
    case Op::kSpawnRequest:
    case Op::kSpawnRequestTt:
      if (too_large) return on_spawn(link, control, {});
      return on_spawn(link, control, message);
    case Op::kSpawnReply:
    case Op::kSpawnReplyTt:
      if (control.spawned.kind == Party::Kind::kName)
        delegate_.on_spawn_refused(link, RefKey::of(0, control.ref), control.spawned.name.text);
      return;
    case Op::kGroupLeader:
      return;  // our processes have none
    case Op::kUnlink:
    case Op::kNodeLink:
    case Op::kUnknown:
      ++counters_.unknown_controls;
      spdlog::warn("{}: ignored control message {}", link.peer().name, control.opcode);
      return;
  }
}

void Node::deliver(Link& link, Process* to, const Control& control, Incoming message,
                   bool too_large) {
  if (to == nullptr) {
    spdlog::debug("{}: a message to a process that does not exist", link.peer().name);
    return;
  }
  if (to->system && to->name == kNetKernel) return on_net_kernel(link, message.bytes);
  const bool told = control.from.kind == Party::Kind::kPid;
  if (message.no_memory)
    return delegate_.on_no_memory(link, told ? &control.from.pid : nullptr, message.bytes);
  if (too_large)
    return delegate_.on_too_large(link, told ? &control.from.pid : nullptr, message.bytes);
  delegate_.on_message(link, *to, told ? &control.from.pid : nullptr, message);
}

void Node::on_net_kernel(Link& link, etf::Bytes message) {
  // {'$gen_call', {Pid, Tag}, {is_auth, Node}}: somebody pings. Anything else is not for us.
  etf::Reader in(message);
  auto arity = in.tuple();
  if (!arity || *arity != 3) return;
  auto label = in.atom();
  if (!label || !(*label == "$gen_call")) return;
  auto from = in.tuple();
  if (!from || *from != 2) return;
  auto pid = in.pid();
  if (!pid) return;
  auto tag = in.term();
  if (!tag) return;
  auto request = in.tuple();
  if (!request || *request != 2) return;
  auto word = in.atom();
  if (!word || !(*word == "is_auth")) return;
  Message reply = begin_gen_reply(link, view(table_.find(kNetKernel)->pid), *pid, *tag);
  etf::Writer(reply.bytes).atom("yes");
  link.send(std::move(reply));
}

void Node::on_monitor(Link& link, const Control& control) {
  Process* process = target(control.to);
  const bool by_name = control.to.kind == Party::Kind::kName;
  const etf::Buffer name = by_name ? encode_atom(control.to.name.utf8()) : etf::Buffer();
  if (process == nullptr) {
    return send_down(link, by_name ? bytes_of(name) : control.to.pid.raw, control.from.pid.raw,
                     control.ref.raw, noproc().bytes());
  }
  if (process->watchers.size() >= kMaxWatchers) {
    return reject(link, {ErrorCode::kTooLarge, 0, {}}, "more monitors than a process may have");
  }
  process->watchers[RefKey::of(link.id(), control.ref)] = Watcher{
      link.id(), 0, keep(control.from.pid.raw), keep(control.ref.raw), keep(bytes_of(name))};
}

void Node::on_demonitor(Link& link, const Control& control) {
  Process* process = target(control.to);
  const RefKey key = RefKey::of(link.id(), control.ref);
  if (process != nullptr) process->watchers.erase(key);
  delegate_.on_demonitor(key, process);
}

void Node::on_link(Link& link, const Control& control) {
  Process* process = target(control.to);
  if (process == nullptr)
    return send_exit(link, control.to.pid.raw, control.from.pid.raw, noproc().bytes());
  auto& linked = process->links[PidKey::of(link.id(), control.from.pid)];
  linked.link = link.id();
  linked.pid = keep(control.from.pid.raw);
}

void Node::on_unlink(Link& link, const Control& control) {
  if (Process* process = target(control.to)) {
    const PidKey key = PidKey::of(link.id(), control.from.pid);
    auto found = process->links.find(key);
    if (found != process->links.end() && found->second.unlinking == 0) process->links.erase(found);
  }
  Message message;
  etf::Writer out(message.bytes);
  append_unlink_id_ack(out, control.id, control.to.pid.raw, control.from.pid.raw);
  message.end_control();
  message.lane = lane_of(control.from.pid);
  link.send(std::move(message));
}

void Node::on_unlink_ack(Link& link, const Control& control) {
  Process* process = target(control.to);
  if (process == nullptr) return;
  auto found = process->links.find(PidKey::of(link.id(), control.from.pid));
  if (found != process->links.end() && found->second.unlinking == control.id)
    process->links.erase(found);
}

void Node::on_exit(Link& link, const Control& control, etf::Bytes reason) {
  etf::Reader in(reason);
  auto checked = in.term();  // it is passed on to others, byte for byte
  if (!checked && checked.error().code == ErrorCode::kTooDeep) checked = too_deep().bytes();
  if (!checked) return reject(link, checked.error(), "an exit reason that cannot be understood");
  Process* process = target(control.to);
  if (process == nullptr) return;
  const bool is_signal = control.op == Op::kExit2 || control.op == Op::kExit2Tt ||
                         control.op == Op::kPayloadExit2 || control.op == Op::kPayloadExit2Tt ||
                         control.op == Op::kAltactSigSend;
  if (!is_signal) {
    auto found = process->links.find(PidKey::of(link.id(), control.from.pid));
    if (found == process->links.end() || found->second.unlinking != 0) return;  // no longer linked
    process->links.erase(found);
  }
  delegate_.on_exit(*process, control.from.pid.raw, *checked,
                    is_signal ? ExitKind::kSignal : ExitKind::kLink);
}

void Node::on_down(Link& link, const Control& control, etf::Bytes reason) {
  etf::Reader in(reason);
  auto checked = in.term();
  if (!checked && checked.error().code == ErrorCode::kTooDeep) checked = too_deep().bytes();
  if (!checked) return reject(link, checked.error(), "an exit reason that cannot be understood");
  Process* owner = target(control.to);
  if (owner == nullptr) return;
  const RefKey key = RefKey::of(0, control.ref);
  auto found = owner->monitors.find(key);
  if (found == owner->monitors.end()) return delegate_.on_own_down(link, *owner, key, *checked);
  if (found->second.link != link.id()) return;
  const Monitor monitor = std::move(found->second);
  owner->monitors.erase(found);
  delegate_.on_down(*owner, key, monitor, *checked);
}

void Node::on_spawn(Link& link, const Control& control, etf::Bytes arguments) {
  auto reply = [&](std::uint64_t flags, etf::Bytes result) {
    Message message;
    etf::Writer out(message.bytes);
    append_spawn_reply(out, control.ref.raw, control.from.pid.raw, flags, result);
    message.end_control();
    message.lane = lane_of(control.from.pid);
    link.send(std::move(message));
  };
  auto options = parse_spawn_options(control.options);
  SpawnRequest request;
  request.from = control.from.pid;
  request.request = control.ref;
  request.module = control.module.text;
  request.function = control.function.text;
  request.arity = control.arity;
  request.arguments = arguments;
  if (!options || arguments.empty())
    return reply(0, encode_atom(options ? "system_limit" : "badopt").bytes());
  request.monitor = options->monitor;
  request.link = options->link;
  if (auto refused = delegate_.refuse_spawn(link, request))
    return reply(0, encode_atom(*refused).bytes());

  Process& process = create_process();
  request.process = process.id;
  std::uint64_t flags = 0;
  if (options->monitor) {
    flags |= kSpawnedWithMonitor;
    process.watchers[RefKey::of(link.id(), control.ref)] =
        Watcher{link.id(), 0, keep(control.from.pid.raw), keep(control.ref.raw), {}};
  }
  if (options->link) {
    flags |= kSpawnedWithLink;
    process.links[PidKey::of(link.id(), control.from.pid)] =
        Linked{link.id(), 0, keep(control.from.pid.raw), 0};
  }
  reply(flags, view(process.pid));
  delegate_.on_spawn(link, request);
}

// --- signals out
// -------------------------------------------------------------------------------------------------

void Node::send_down(Link& link, etf::Bytes process, etf::Bytes to, etf::Bytes ref,
                     etf::Bytes reason) {
  Message message(128 + reason.size());
  etf::Writer out(message.bytes);
  etf::Reader in(to);
  if (auto pid = in.pid()) message.lane = lane_of(*pid);
  if (link.has(kExitPayload)) {
    append_payload_monitor_p_exit(out, process, to, ref);
    message.end_control();
    out.raw(reason);
  } else {
    append_monitor_p_exit(out, process, to, ref, reason);
    message.end_control();
  }
  link.send(std::move(message));
}

void Node::send_exit(Link& link, etf::Bytes from, etf::Bytes to, etf::Bytes reason) {
  Message message(128 + reason.size());
  etf::Writer out(message.bytes);
  etf::Reader in(to);
  if (auto pid = in.pid()) message.lane = lane_of(*pid);
  if (link.has(kExitPayload)) {
    append_payload_exit(out, from, to);
    message.end_control();
    out.raw(reason);
  } else {
    append_exit(out, from, to, reason);
    message.end_control();
  }
  link.send(std::move(message));
}

Process& Node::create_process(std::string process_name, bool system) {
  Process& process = table_.create();
  process.system = system;
  if (!process_name.empty()) table_.register_name(process, std::move(process_name));
  return process;
}

void Node::exit_process(ProcessId id, etf::Bytes reason) {
  auto process = table_.remove(id);
  if (!process) return;
  for (const auto& [key, watcher] : process->watchers) {
    if (watcher.link == 0) {
      Process* owner = table_.find(watcher.local);
      if (owner == nullptr) continue;
      auto found = owner->monitors.find(key);
      if (found == owner->monitors.end()) continue;
      const Monitor monitor = std::move(found->second);
      owner->monitors.erase(found);
      delegate_.on_down(*owner, key, monitor, reason);
      continue;
    }
    auto link = find_link(watcher.link);
    if (!link) continue;
    send_down(*link, view(watcher.name.empty() ? process->pid : watcher.name), view(watcher.pid),
              view(watcher.ref), reason);
  }
  for (const auto& [key, linked] : process->links) {
    if (linked.unlinking != 0) continue;
    if (linked.link == 0) {
      Process* other = table_.find(linked.local);
      if (other == nullptr) continue;
      etf::Reader in(view(process->pid));
      auto pid = in.pid();
      other->links.erase(PidKey::of(0, *pid));
      delegate_.on_exit(*other, view(process->pid), reason, ExitKind::kLink);
      continue;
    }
    if (auto link = find_link(linked.link))
      send_exit(*link, view(process->pid), view(linked.pid), reason);
  }
  for (const auto& [key, monitor] : process->monitors) {
    if (monitor.link == 0) {
      if (Process* watched = table_.find(monitor.local)) watched->watchers.erase(key);
      continue;
    }
    auto link = find_link(monitor.link);
    if (!link) continue;
    Message message;
    etf::Writer out(message.bytes);
    append_demonitor_p(out, view(process->pid), view(monitor.target), view(monitor.ref));
    message.end_control();
    link->send(std::move(message));
  }
}

RefKey Node::monitor(Process& owner, const std::string& node, etf::Bytes target_raw, etf::Ref ref) {
  etf::Buffer encoded;
  etf::Writer(encoded).reference(ref);
  etf::Reader in(encoded.bytes());
  const RefKey key = RefKey::of(0, *in.reference());
  Monitor monitor{0, 0, keep(target_raw), keep(encoded.bytes()), node};

  if (node == name()) {
    etf::Reader reader(target_raw);
    Process* watched = nullptr;
    if (auto pid = reader.pid()) {
      watched = table_.find(*pid);
    } else if (auto atom = etf::Reader(target_raw).atom()) {
      watched = table_.find(atom->text);
    }
    if (watched == nullptr) {
      delegate_.on_down(owner, key, monitor, noproc().bytes());
      return key;
    }
    monitor.local = watched->id;
    watched->watchers[key] = Watcher{0, owner.id, owner.pid, monitor.ref, {}};
    owner.monitors[key] = std::move(monitor);
    return key;
  }

  auto link = link_to(node);
  if (!link) {
    delegate_.on_down(owner, key, monitor, noconnection().bytes());
    return key;
  }
  monitor.link = link->id();
  Message message;
  etf::Writer out(message.bytes);
  append_monitor_p(out, view(owner.pid), target_raw, encoded.bytes());
  message.end_control();
  owner.monitors[key] = std::move(monitor);
  link->send(std::move(message));
  return key;
}

void Node::demonitor(Process& owner, const RefKey& ref) {
  auto found = owner.monitors.find(ref);
  if (found == owner.monitors.end()) return;
  const Monitor monitor = std::move(found->second);
  owner.monitors.erase(found);
  if (monitor.link == 0) {
    if (Process* watched = table_.find(monitor.local)) watched->watchers.erase(ref);
    return;
  }
  auto link = find_link(monitor.link);
  if (!link) return;
  Message message;
  etf::Writer out(message.bytes);
  append_demonitor_p(out, view(owner.pid), view(monitor.target), view(monitor.ref));
  message.end_control();
  link->send(std::move(message));
}

void Node::link(Process& process, const std::string& node, const etf::PidView& pid) {
  if (node == name()) {
    Process* other = table_.find(pid);
    if (other == nullptr)
      return delegate_.on_exit(process, pid.raw, noproc().bytes(), ExitKind::kLink);
    if (other == &process) return;
    etf::Reader in(view(process.pid));
    process.links[PidKey::of(0, pid)] = Linked{0, other->id, other->pid, 0};
    other->links[PidKey::of(0, *in.pid())] = Linked{0, process.id, process.pid, 0};
    return;
  }
  auto peer = link_to(node);
  if (!peer) return delegate_.on_exit(process, pid.raw, noconnection().bytes(), ExitKind::kLink);
  auto& linked = process.links[PidKey::of(peer->id(), pid)];
  if (linked.link != 0 && linked.unlinking == 0) return;
  linked = Linked{peer->id(), 0, keep(pid.raw), 0};
  Message message;
  etf::Writer out(message.bytes);
  append_link(out, view(process.pid), pid.raw);
  message.end_control();
  message.lane = lane_of(pid);
  peer->send(std::move(message));
}

bool Node::exit_signal(etf::Bytes from, const std::string& node, const etf::PidView& pid,
                       etf::Bytes reason) {
  if (node == name()) {
    if (Process* process = table_.find(pid))
      delegate_.on_exit(*process, from, reason, ExitKind::kSignal);
    return true;
  }
  auto peer = link_to(node);
  if (!peer) return false;
  Message message(128 + reason.size());
  etf::Writer out(message.bytes);
  message.lane = lane_of(pid);
  if (peer->has(kExitPayload)) {
    append_payload_exit2(out, from, pid.raw);
    message.end_control();
    out.raw(reason);
  } else {
    append_exit2(out, from, pid.raw, reason);
    message.end_control();
  }
  peer->send(std::move(message));
  return true;
}

void Node::unlink(Process& process, const etf::PidView& pid) {
  const std::string node = pid.node.utf8();
  if (node == name()) {
    etf::Reader in(view(process.pid));
    process.links.erase(PidKey::of(0, pid));
    if (Process* other = table_.find(pid)) other->links.erase(PidKey::of(0, *in.pid()));
    return;
  }
  auto peer = link_to(node);
  if (!peer) return;
  auto found = process.links.find(PidKey::of(peer->id(), pid));
  if (found == process.links.end() || found->second.unlinking != 0) return;
  found->second.unlinking = next_ref_.fetch_add(1, std::memory_order_relaxed);
  Message message;
  etf::Writer out(message.bytes);
  append_unlink_id(out, found->second.unlinking, view(process.pid), pid.raw);
  message.end_control();
  message.lane = lane_of(pid);
  peer->send(std::move(message));
}

}  // namespace dist
