#include "cnode/dist/digest.hpp"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/provider.h>

#include <memory>
#include <stdexcept>
#include <string>

namespace dist {

namespace {

// MD5 from OpenSSL's built-in provider, loaded into a context that no configuration file reaches.
class Md5 {
 public:
  Md5() : context_(OSSL_LIB_CTX_new()) {
    if (!context_) throw std::runtime_error("OpenSSL: no library context");
    provider_.reset(OSSL_PROVIDER_load(context_.get(), "default"));
    if (!provider_) throw std::runtime_error("OpenSSL: the default provider does not load");
    algorithm_.reset(EVP_MD_fetch(context_.get(), "MD5", nullptr));
    if (!algorithm_) throw std::runtime_error("OpenSSL: no MD5, which the handshake needs");
  }

  Digest of(std::string_view text) const {
    Digest out{};
    unsigned int size = 0;
    if (EVP_Digest(text.data(), text.size(), out.data(), &size, algorithm_.get(), nullptr) != 1 ||
        size != out.size()) {
      throw std::runtime_error("OpenSSL: MD5 failed");
    }
    return out;
  }

 private:
  struct Free {
    void operator()(OSSL_LIB_CTX* context) const { OSSL_LIB_CTX_free(context); }
    void operator()(OSSL_PROVIDER* provider) const { OSSL_PROVIDER_unload(provider); }
    void operator()(EVP_MD* algorithm) const { EVP_MD_free(algorithm); }
  };

  std::unique_ptr<OSSL_LIB_CTX, Free> context_;
  std::unique_ptr<OSSL_PROVIDER, Free> provider_;
  std::unique_ptr<EVP_MD, Free> algorithm_;
};

}  // namespace

Digest digest(std::string_view cookie, std::uint32_t challenge) {
  static const Md5 md5;
  std::string text(cookie);
  text += std::to_string(challenge);
  const Digest out = md5.of(text);
  OPENSSL_cleanse(text.data(), text.size());
  return out;
}

bool constant_time_equal(std::span<const std::uint8_t> left, std::span<const std::uint8_t> right) {
  return left.size() == right.size() && CRYPTO_memcmp(left.data(), right.data(), left.size()) == 0;
}

}  // namespace dist
