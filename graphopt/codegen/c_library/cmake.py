"""The text of a C library's config for CMake's find_package()."""

from __future__ import annotations

_TEXT = """\
# find_package({name} CONFIG REQUIRED), then link {name}::{name}: the shared library if
# BUILD_SHARED_LIBS is on, else the archive; or {name}::static or {name}::shared.
cmake_minimum_required(VERSION 3.10)
{dependencies}
if(NOT TARGET {name}::{name})
  add_library({name}::static STATIC IMPORTED)
  set_target_properties({name}::static PROPERTIES
    IMPORTED_LOCATION "${{CMAKE_CURRENT_LIST_DIR}}/lib{name}.a"
    INTERFACE_INCLUDE_DIRECTORIES "${{CMAKE_CURRENT_LIST_DIR}}"
    INTERFACE_LINK_LIBRARIES "{libraries}")
  add_library({name}::shared SHARED IMPORTED)
  set_target_properties({name}::shared PROPERTIES
    IMPORTED_LOCATION "${{CMAKE_CURRENT_LIST_DIR}}/lib{name}.so"
    IMPORTED_SONAME "lib{name}.so"
    INTERFACE_INCLUDE_DIRECTORIES "${{CMAKE_CURRENT_LIST_DIR}}")
  add_library({name}::{name} INTERFACE IMPORTED)
  if(BUILD_SHARED_LIBS)
    set_target_properties({name}::{name} PROPERTIES INTERFACE_LINK_LIBRARIES {name}::shared)
  else()
    set_target_properties({name}::{name} PROPERTIES INTERFACE_LINK_LIBRARIES {name}::static)
  endif()
endif()
"""

_THREADS = """\
include(CMakeFindDependencyMacro)
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_dependency(Threads)
"""


def config(name: str, threads: int) -> str:
    """The text of NAMEConfig.cmake, which lies beside the library.

    Args:
        threads: of the program; one needs no library for threads.
    """
    threaded = threads > 1
    return _TEXT.format(
        name=name,
        dependencies=_THREADS if threaded else "",
        libraries="m;Threads::Threads" if threaded else "m",
    )
