// Nodes that speak inside TLS, with certificates made here. What BEAMs think of it is told by
// tests/e2e/tls_SUITE.
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "cnode/dist/tls.hpp"
#include "tests/cpp/catch.hpp"
#include "tests/cpp/node_support.hpp"

using namespace node_support;

namespace {

using KeyPtr = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
using CertificatePtr = std::unique_ptr<X509, decltype(&X509_free)>;

KeyPtr make_key() { return {EVP_EC_gen("P-256"), &EVP_PKEY_free}; }

void add_extension(X509* certificate, int kind, const std::string& value) {
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, kind, value.c_str());
  REQUIRE(extension != nullptr);
  X509_add_ext(certificate, extension, -1);
  X509_EXTENSION_free(extension);
}

// Signed by `issuer`, or by itself where that is nullptr. `days`: from yesterday on.
CertificatePtr make_certificate(const std::string& name, EVP_PKEY* key, const std::string& hosts,
                                const X509* issuer, EVP_PKEY* issuer_key, long days) {
  CertificatePtr certificate(X509_new(), &X509_free);
  static std::atomic<long> serial{1};
  X509_set_version(certificate.get(), 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), serial++);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -86'400);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), (days - 1) * 86'400);
  X509_set_pubkey(certificate.get(), key);
  X509_NAME* subject = X509_get_subject_name(certificate.get());
  X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  X509_set_issuer_name(certificate.get(),
                       issuer != nullptr ? X509_get_subject_name(issuer) : subject);
  if (issuer == nullptr) {
    add_extension(certificate.get(), NID_basic_constraints, "critical,CA:TRUE");
  } else {
    add_extension(certificate.get(), NID_subject_alt_name, hosts);
  }
  REQUIRE(X509_sign(certificate.get(), issuer != nullptr ? issuer_key : key, EVP_sha256()) > 0);
  return certificate;
}

class Directory {
 public:
  Directory() {
    std::string pattern = "/tmp/sidewinder_tls_XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~Directory() {
    for (const auto& file : files_) unlink(file.c_str());
    rmdir(path_.c_str());
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  template <class Write>
  std::string file(const std::string& name, Write write) {
    const std::string path = path_ + "/" + name;
    const std::string fresh = path + ".new";
    std::FILE* out = std::fopen(fresh.c_str(), "w");
    write(out);
    std::fclose(out);
    chmod(fresh.c_str(), 0400);
    std::rename(fresh.c_str(), path.c_str());
    files_.push_back(path);
    return path;
  }

 private:
  std::string path_;
  std::vector<std::string> files_;
};

// An authority, and the certificates it signs, as files.
class Authority {
 public:
  explicit Authority(const std::string& name = "authority")
      : key_(make_key()),
        certificate_(make_certificate(name, key_.get(), {}, nullptr, nullptr, 30)) {}

  dist::TlsFiles issue(Directory& directory, const std::string& name,
                       const std::string& hosts = "IP:127.0.0.1", long days = 30) const {
    const KeyPtr key = make_key();
    const CertificatePtr certificate =
        make_certificate(name, key.get(), hosts, certificate_.get(), key_.get(), days);
    dist::TlsFiles files;
    files.certificate = directory.file(
        name + ".pem", [&](std::FILE* out) { PEM_write_X509(out, certificate.get()); });
    files.key = directory.file(name + ".key", [&](std::FILE* out) {
      PEM_write_PrivateKey(out, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
    });
    files.authorities = directory.file(
        name + ".ca", [&](std::FILE* out) { PEM_write_X509(out, certificate_.get()); });
    return files;
  }

 private:
  KeyPtr key_;
  CertificatePtr certificate_;
};

dist::NodeConfig secured(const std::string& name, const dist::TlsFiles& files) {
  auto config = config_of(name);
  config.tls = std::make_shared<dist::Tls>(files);
  return config;
}

dist::NodeConfig dialling(dist::NodeConfig config, const TestNode& peer) {
  config.peers.push_back({peer.name(), peer.port()});
  return config;
}

void never_link(TestNode& acceptor, TestNode& dialler) {
  CHECK(eventually([&] {
    return acceptor.node->counters().handshakes_failed.load() > 1 &&
           dialler.node->counters().handshakes_failed.load() > 1;
  }));
  CHECK(acceptor.recorder.count("up") == 0);
  CHECK(dialler.recorder.count("up") == 0);
}

}  // namespace

TEST_CASE("two nodes whose certificates one authority signed link up inside TLS", "[tls]") {
  Directory directory;
  const Authority authority;
  TestNode acceptor(secured("b@127.0.0.1", authority.issue(directory, "b")));
  TestNode dialler(dialling(secured("a@127.0.0.1", authority.issue(directory, "a")), acceptor));
  CHECK(acceptor.recorder.next("up").peer == "a@127.0.0.1");
  CHECK(dialler.recorder.next("up").peer == "b@127.0.0.1");
}

TEST_CASE("messages of many threads and of any size arrive whole and in order inside TLS",
          "[tls]") {
  Directory directory;
  const Authority authority;
  TestNode acceptor(secured("b@127.0.0.1", authority.issue(directory, "b")));
  acceptor.create("sink");
  TestNode dialler(dialling(secured("a@127.0.0.1", authority.issue(directory, "a")), acceptor));
  dialler.recorder.next("up");
  acceptor.recorder.next("up");
  const auto link = dialler.node->link_to("b@127.0.0.1");
  const auto owner = dialler.create();
  const Bytes pid = dialler.pid_of(owner);
  constexpr int kThreads = 4;
  constexpr int kEach = 200;
  const auto size_of = [](int number) {
    return static_cast<std::size_t>(number % 50 == 49 ? 300'000 : number * 37 % 5'000);
  };
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (int number = 0; number < kEach; ++number) {
        dist::Message message;
        etf::Writer out(message.bytes);
        dist::append_reg_send(out, pid, "sink");
        message.end_control();
        message.lane = static_cast<std::uint64_t>(thread) * 2 + 1;
        out.tuple(3).integer(thread).integer(number).binary(
            std::string(size_of(number), static_cast<char>('a' + thread)));
        link->send(std::move(message));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  std::vector<int> next(kThreads, 0);
  for (int count = 0; count < kThreads * kEach; ++count) {
    const Event event = acceptor.recorder.next("message");
    etf::Reader in(event.bytes);
    REQUIRE(in.tuple().ok());
    const auto thread = static_cast<std::size_t>(*in.integer());
    CHECK(*in.integer() == next[thread]);
    auto text = in.binary();
    REQUIRE(text.ok());
    CHECK(text->size() == size_of(next[thread]));
    ++next[thread];
  }
}

TEST_CASE("nodes whose certificates other authorities signed never link", "[tls]") {
  Directory directory;
  const Authority ours("ours");
  const Authority theirs("theirs");
  TestNode acceptor(secured("b@127.0.0.1", ours.issue(directory, "b")));
  TestNode dialler(dialling(secured("a@127.0.0.1", theirs.issue(directory, "a")), acceptor));
  never_link(acceptor, dialler);
}

TEST_CASE("a certificate that has ended leads to no link, on either side", "[tls]") {
  Directory directory;
  const Authority authority;
  const auto good = authority.issue(directory, "good");
  const auto ended = authority.issue(directory, "ended", "IP:127.0.0.1", 0);
  const bool acceptors = GENERATE(true, false);
  TestNode acceptor(secured("b@127.0.0.1", acceptors ? ended : good));
  TestNode dialler(dialling(secured("a@127.0.0.1", acceptors ? good : ended), acceptor));
  never_link(acceptor, dialler);
}

TEST_CASE("a certificate has to be for the host in the node's name, unless told otherwise",
          "[tls]") {
  Directory directory;
  const Authority authority;
  const auto here = authority.issue(directory, "here");
  const auto elsewhere = authority.issue(directory, "elsewhere", "DNS:elsewhere.test");
  SECTION("the dialler's") {
    TestNode acceptor(secured("b@127.0.0.1", here));
    TestNode dialler(dialling(secured("a@127.0.0.1", elsewhere), acceptor));
    never_link(acceptor, dialler);
  }
  SECTION("the acceptor's") {
    TestNode acceptor(secured("b@127.0.0.1", elsewhere));
    TestNode dialler(dialling(secured("a@127.0.0.1", here), acceptor));
    never_link(acceptor, dialler);
  }
  SECTION("neither, where hosts are not checked") {
    auto lax = elsewhere;
    lax.check_host = false;
    TestNode acceptor(secured("b@127.0.0.1", lax));
    TestNode dialler(dialling(secured("a@127.0.0.1", lax), acceptor));
    CHECK(acceptor.recorder.next("up").peer == "a@127.0.0.1");
  }
  SECTION("an address may stand in it as a name, as OTP wants it") {
    const auto named = authority.issue(directory, "named", "DNS:127.0.0.1");
    TestNode acceptor(secured("b@127.0.0.1", named));
    TestNode dialler(dialling(secured("a@127.0.0.1", named), acceptor));
    CHECK(acceptor.recorder.next("up").peer == "a@127.0.0.1");
  }
}

TEST_CASE("a node without TLS and one with it never link", "[tls]") {
  Directory directory;
  const Authority authority;
  auto config = secured("b@127.0.0.1", authority.issue(directory, "b"));
  config.handshake_step = std::chrono::milliseconds(300);
  TestNode acceptor(config);
  auto plain = config_of("a@127.0.0.1");
  plain.handshake_step = std::chrono::milliseconds(300);
  TestNode dialler(dialling(plain, acceptor));
  never_link(acceptor, dialler);
}

TEST_CASE("who connects to a node with TLS and says nothing is ended after the step's time",
          "[tls]") {
  Directory directory;
  const Authority authority;
  auto config = secured("b@127.0.0.1", authority.issue(directory, "b"));
  config.handshake_step = std::chrono::milliseconds(100);
  TestNode acceptor(config);
  const Descriptor silent = connect_to(acceptor.port());
  CHECK(readable(silent.get()));
  CHECK(eventually([&] { return acceptor.node->counters().handshakes_failed.load() == 1; }));
}

TEST_CASE("renewed files count for the next handshake, and links that stand keep standing",
          "[tls]") {
  Directory directory;
  const Authority old_authority("old");
  const Authority new_authority("new");
  TestNode acceptor(secured("b@127.0.0.1", old_authority.issue(directory, "b")));
  TestNode first(dialling(secured("a@127.0.0.1", old_authority.issue(directory, "a")), acceptor));
  first.recorder.next("up");
  new_authority.issue(directory, "b");
  TestNode second(dialling(secured("c@127.0.0.1", new_authority.issue(directory, "c")), acceptor));
  CHECK(second.recorder.next("up").peer == "b@127.0.0.1");
  CHECK(first.node->peers() == std::vector<std::string>{"b@127.0.0.1"});
}

TEST_CASE("files that cannot be used are told by their setting", "[tls]") {
  Directory directory;
  const Authority authority;
  const auto good = authority.issue(directory, "good");
  const auto error_of = [](const dist::TlsFiles& files) {
    try {
      const dist::Tls tls(files);
      return std::string("no error");
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
  };
  auto files = good;
  files.certificate += ".none";
  CHECK(error_of(files) == "tls-cert: cannot read '" + files.certificate + "'");
  files = good;
  files.authorities = good.key;
  CHECK(error_of(files).rfind("tls-ca: '" + files.authorities + "': ", 0) == 0);
  files = good;
  files.key = authority.issue(directory, "other").key;
  CHECK(error_of(files).rfind("tls-key: '" + files.key + "': ", 0) == 0);
  chmod(good.key.c_str(), 0444);
  CHECK(error_of(good) == "tls-key: '" + good.key + "' can be read by others; make it 0400");
}
