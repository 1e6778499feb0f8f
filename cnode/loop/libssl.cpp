#include "cnode/loop/libssl.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <new>
#include <string>

#include "cnode/py/error.hpp"

namespace loop {

// The one friend of Wire that OpenSSL's table of functions is made by.
struct WireMethod {
  static BIO_METHOD* make(const LibSsl& library) {
    const int type = library.BIO_get_new_index();
    if (type == -1) return nullptr;
    BIO_METHOD* method = library.BIO_meth_new(type | BIO_TYPE_SOURCE_SINK, "erlang_loop wire");
    if (method == nullptr) return nullptr;
    library.BIO_meth_set_read(method, Wire::read);
    library.BIO_meth_set_write(method, Wire::write);
    library.BIO_meth_set_ctrl(method, Wire::control);
    library.BIO_meth_set_create(method, Wire::create);
    return method;
  }
};

namespace {

// One for the process, as the library is; written once. Holds no Python object.
LibSsl g_library;
bool g_found = false;
std::once_flag g_once;

thread_local SslWatch* g_watch = nullptr;

// OpenSSL calls it for every SSL of the process.
void on_new_ssl(void* parent, void*, CRYPTO_EX_DATA*, int, long, void*) {
  if (g_watch != nullptr) g_watch->made(static_cast<SSL*>(parent));
}

void* find(void* handle, const char* name) { return dlsym(handle, name); }

void load(const std::string& file) {
  // A handle of what is loaded already: looks a name up in _ssl and in the libraries it was linked
  // with.
  void* handle = file.empty() ? nullptr : dlopen(file.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (handle == nullptr) handle = dlopen(nullptr, RTLD_LAZY);
  if (handle == nullptr) return;
  LibSsl library;
  bool complete = true;
#define LOOP_LIBSSL_FIND(name)                                                  \
  library.name = reinterpret_cast<decltype(library.name)>(find(handle, #name)); \
  complete = complete && library.name != nullptr;
  LOOP_LIBSSL(LOOP_LIBSSL_FIND)
#undef LOOP_LIBSSL_FIND
  if (!complete) return;
  g_library = library;
  g_library.wire_method = WireMethod::make(library);
  if (g_library.wire_method == nullptr) return;
  g_found = library.CRYPTO_get_ex_new_index(CRYPTO_EX_INDEX_SSL, 0, nullptr, on_new_ssl, nullptr,
                                            nullptr) >= 0;
}

std::string file_of(PyObject* extension) {
  py::Ref file = py::Ref::steal(PyObject_GetAttrString(extension, "__file__"));
  const char* text = file && PyUnicode_Check(file.get()) ? PyUnicode_AsUTF8(file.get()) : nullptr;
  if (text == nullptr) PyErr_Clear();  // built in to the interpreter
  return text == nullptr ? std::string() : std::string(text);
}

}  // namespace

const LibSsl* LibSsl::of(PyObject* extension) {
  std::call_once(g_once, [&] { load(file_of(extension)); });
  return g_found ? &g_library : nullptr;
}

SslWatch::SslWatch() : outer_(g_watch) { g_watch = this; }
SslWatch::~SslWatch() { g_watch = outer_; }

void SslWatch::made(SSL* ssl) {
  ssl_ = ssl;
  ++count_;
}

Wire::~Wire() {
  drop_sink();
  if (bio_ == nullptr) return;
  library_.BIO_set_data(bio_, nullptr);  // the SSL may outlive us, in the hands of a user
  library_.BIO_free(bio_);
}

bool Wire::attach(SSL* ssl) {
  bio_ = library_.BIO_new(library_.wire_method);
  if (bio_ == nullptr) return false;
  library_.BIO_set_data(bio_, this);
  library_.BIO_up_ref(bio_);
  library_.SSL_set_bio(ssl, bio_, bio_);  // takes one reference; the other is ours
  return true;
}

void Wire::offer(const char* data, std::size_t size) {
  if (unread_ == 0) {
    if (!held_.empty()) std::vector<char>().swap(held_);
    next_ = data;
    unread_ = size;
    borrowed_ = true;
    return;
  }
  keep();
  const std::size_t read = static_cast<std::size_t>(next_ - held_.data());
  if (read > held_.size() / 2) {
    held_.erase(held_.begin(), held_.begin() + static_cast<std::ptrdiff_t>(read));
    held_.insert(held_.end(), data, data + size);
    next_ = held_.data();
  } else {
    held_.insert(held_.end(), data, data + size);
    next_ = held_.data() + read;
  }
  unread_ += size;
}

void Wire::keep() {
  if (!borrowed_) return;
  borrowed_ = false;
  if (unread_ == 0) return;
  held_.assign(next_, next_ + unread_);
  next_ = held_.data();
}

void Wire::expect(std::size_t size, Scratch* scratch) {
  if (sink_ != nullptr || !out_.empty()) return;
  if (scratch != nullptr && !scratch->busy && size <= Scratch::kSize) {
    if (scratch->memory == nullptr) scratch->memory = new char[Scratch::kSize];
    scratch->busy = true;
    scratch_ = scratch;
    sink_ = scratch->memory;
  } else {
    bytes_ = py::check(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
    sink_ = PyBytes_AS_STRING(bytes_.get());
  }
  sink_size_ = size;
}

void Wire::drop_sink() {
  if (scratch_ != nullptr) std::exchange(scratch_, nullptr)->release();
  bytes_.reset();
  sink_ = nullptr;
  sink_size_ = sink_used_ = 0;
}

py::Ref Wire::take() {
  py::Ref taken;
  if (bytes_ && sink_used_ > 0) {
    PyObject* object = bytes_.release();
    if (sink_used_ != sink_size_ &&
        _PyBytes_Resize(&object, static_cast<Py_ssize_t>(sink_used_)) < 0)
      py::throw_fetched();
    taken = py::Ref::steal(object);
  } else if (sink_used_ > 0) {
    taken = py::check(PyBytes_FromStringAndSize(sink_, static_cast<Py_ssize_t>(sink_used_)));
  }
  drop_sink();
  if (out_.empty()) return taken;
  py::Ref rest =
      py::check(PyBytes_FromStringAndSize(out_.data(), static_cast<Py_ssize_t>(out_.size())));
  std::vector<char>().swap(out_);
  if (!taken) return rest;
  PyObject* whole = taken.release();
  PyBytes_Concat(&whole, rest.get());
  return py::check(whole);
}

void Wire::drop_unsent() {
  drop_sink();
  if (!out_.empty()) std::vector<char>().swap(out_);
}

// The following four are called by OpenSSL, now and then without the GIL; no exception may leave
// them.

int Wire::read(BIO* bio, char* to, int size) {
  auto* wire = static_cast<Wire*>(g_library.BIO_get_data(bio));
  if (wire == nullptr || size <= 0) return -1;
  g_library.BIO_clear_flags(bio, BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY);
  if (wire->unread_ == 0) {
    g_library.BIO_set_flags(bio, BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY);
    return -1;
  }
  const std::size_t count = std::min(static_cast<std::size_t>(size), wire->unread_);
  std::memcpy(to, wire->next_, count);
  wire->next_ += count;
  wire->unread_ -= count;
  wire->taken_ += count;
  return static_cast<int>(count);
}

int Wire::write(BIO* bio, const char* from, int size) {
  auto* wire = static_cast<Wire*>(g_library.BIO_get_data(bio));
  if (wire == nullptr || size < 0) return -1;
  g_library.BIO_clear_flags(bio, BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY);
  const auto count = static_cast<std::size_t>(size);
  if (wire->out_.empty() && wire->sink_size_ - wire->sink_used_ >= count) {
    std::memcpy(wire->sink_ + wire->sink_used_, from, count);
    wire->sink_used_ += count;
    return size;
  }
  try {
    wire->out_.insert(wire->out_.end(), from, from + count);
  } catch (const std::bad_alloc&) {
    return -1;
  }
  return size;
}

long Wire::control(BIO* bio, int command, long, void*) {
  auto* wire = static_cast<Wire*>(g_library.BIO_get_data(bio));
  switch (command) {
    case BIO_CTRL_FLUSH:
      return 1;
    case BIO_CTRL_PENDING:
      return wire == nullptr ? 0 : static_cast<long>(wire->unread_);
    case BIO_CTRL_WPENDING:
      return wire == nullptr ? 0 : static_cast<long>(wire->unsent());
    default:
      return 0;
  }
}

int Wire::create(BIO* bio) {
  g_library.BIO_set_init(bio, 1);
  return 1;
}

}  // namespace loop
