"""The C library: a program as a header, an archive, a shared library and a CMake config.

The same plan and the same machine code as a Session's, behind C functions. Needs libc, libm and,
for more than one thread, POSIX threads.
"""
