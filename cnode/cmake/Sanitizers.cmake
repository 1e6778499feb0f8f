# CNODE_SANITIZE: a comma-separated list for -fsanitize (asan preset: address,undefined; tsan preset: thread).
# Every target has to be compiled with it, so this is the one place that speaks to all of them at once.
set(CNODE_SANITIZE "" CACHE STRING "Sanitizers to build everything with, as -fsanitize takes them")

if(CNODE_SANITIZE)
  add_compile_options(-fsanitize=${CNODE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${CNODE_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # Instrumented code looks uninitialized where it is not; and tsan cannot follow the fences inside asio, which
    # stand beside locks that it does follow.
    add_compile_options(-Wno-maybe-uninitialized -Wno-tsan)
  elseif(CMAKE_CXX_COMPILER_VERSION VERSION_LESS 15)
    # clang 14 writes broken assembly for coroutines under -fsanitize=function.
    add_compile_options(-fno-sanitize=function)
    add_link_options(-fno-sanitize=function)
  endif()
endif()

# Fuzz targets see coverage only in code compiled for it: the libraries too.
if(CNODE_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()
