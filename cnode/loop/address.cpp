#include "cnode/loop/address.hpp"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <cstddef>
#include <cstring>

namespace loop {

PyObject* address_object(const sockaddr* address, socklen_t size) {
  if (size == 0) Py_RETURN_NONE;
  switch (address->sa_family) {
    case AF_INET: {
      const auto* v4 = reinterpret_cast<const sockaddr_in*>(address);
      char host[INET_ADDRSTRLEN];
      inet_ntop(AF_INET, &v4->sin_addr, host, sizeof host);
      return Py_BuildValue("(si)", host, static_cast<int>(ntohs(v4->sin_port)));
    }
    case AF_INET6: {
      // With the scope in the host, as the socket module has it.
      const auto* v6 = reinterpret_cast<const sockaddr_in6*>(address);
      char host[NI_MAXHOST];
      const int error = getnameinfo(address, size, host, sizeof host, nullptr, 0, NI_NUMERICHOST);
      if (error != 0) inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof host);
      return Py_BuildValue("(siII)", host, static_cast<int>(ntohs(v6->sin6_port)),
                           static_cast<unsigned>(ntohl(v6->sin6_flowinfo)),
                           static_cast<unsigned>(v6->sin6_scope_id));
    }
    case AF_UNIX: {
      const auto* local = reinterpret_cast<const sockaddr_un*>(address);
      const std::size_t used = size - offsetof(sockaddr_un, sun_path);
      if (used > 0 && local->sun_path[0] == '\0')
        return PyBytes_FromStringAndSize(local->sun_path, static_cast<Py_ssize_t>(used));
      return PyUnicode_DecodeFSDefaultAndSize(
          local->sun_path, static_cast<Py_ssize_t>(strnlen(local->sun_path, used)));
    }
    default:
      return Py_BuildValue("(iy#)", static_cast<int>(address->sa_family), address->sa_data,
                           static_cast<Py_ssize_t>(size - offsetof(sockaddr, sa_data)));
  }
}

}  // namespace loop
