// A block of emulated CUDA threads: fibers on one CPU thread, and a detector of races among them.
//
// Everything here is compiled into the emulated driver. Kernels see it through the functions that
// include/emulated_device.h declares, and through the calls that -fsanitize=thread plants before
// each of their memory accesses (the sanitizer's own library is not used).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace emulation {

struct Extent {
  unsigned x, y, z;
  unsigned count() const { return x * y * z; }
};

// Calls the kernel for the current thread; made by the toolkit for each kernel.
using Body = void (*)(void** arguments);

struct Launch {
  Body body;
  void** arguments;
  Extent grid, block;
  size_t dynamic_shared;                 // bytes
  unsigned char *shared, *shared_end;    // the kernel's __shared__ variables
  const unsigned char *image, *image_end;  // the library that the kernel is in
};

// Runs a grid, one block after another. Returns what went wrong; empty if nothing did.
std::string run(const Launch& launch);

// Device memory: only kernels and copies may touch it.
void* allocate(size_t nbytes);
size_t release(void* memory);  // how many bytes it was; 0: not an allocation
bool is_allocated(const void* memory, size_t nbytes);
// Forgets which threads have accessed device memory: a new kernel is ordered behind the last.
void forget_accesses();

// What the detector reports of an access by a thread; empty if it is allowed.
struct Access {
  const unsigned char* at;
  size_t nbytes;
  bool write;
};

// Who accesses memory, and what happened before: clocks count synchronisations.
struct Observer {
  uint32_t thread;        // of the grid: block * 1024 + thread of the block
  uint32_t now;           // current clock
  uint32_t block_synced;  // clock of the block's last barrier (or its start)
  uint32_t warp_synced;   // clock of the warp's last __syncwarp
};

// Notes an access to memory that is `shared` by a block, or device memory; returns the other
// thread's number + 1 if it is not ordered with that thread's access, else 0.
uint32_t conflict_in_shared(const Observer& who, size_t offset, size_t nbytes, bool write);
uint32_t conflict_in_device(const Observer& who, const Access& access, uint32_t launch_start);
void size_shared(size_t nbytes);

}  // namespace emulation
