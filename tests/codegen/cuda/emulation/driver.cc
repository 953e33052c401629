// libcuda.so.1 of the emulated GPU: the calls of NVIDIA's driver that TVM's CUDA runtime makes.
//
// Declared here as far as needed, so that no toolkit has to be installed. A "fat binary" is the
// real one's magic number, padded to 16 bytes, and a shared library made by the emulated nvcc.
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#include "block.h"

namespace {

enum Result { kSuccess = 0, kInvalidValue = 1, kInvalidImage = 200, kNotFound = 500, kLaunch = 719 };
constexpr unsigned kMagic = 0xBA55ED50;
constexpr size_t kHeader = 16;
enum Attribute { kMajor = 75, kMinor = 76 };

struct LaunchConfig {  // CUlaunchConfig
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  void* attributes;
  unsigned attribute_count;
};

struct Function {  // what a kernel's library says of it, see toolkit.py
  emulation::Body body;
  unsigned char *shared, *shared_end;
  const unsigned char *image, *image_end;
};

std::string last_failure = "no error";
std::mutex one_at_a_time;

int architecture() {
  const char* text = std::getenv("EMULATED_SM");
  return text == nullptr ? 90 : std::atoi(text);
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return kSuccess; }
int cuDriverGetVersion(int* version) {
  *version = 13000;
  return kSuccess;
}
int cuDeviceGetCount(int* count) {
  *count = 1;
  return kSuccess;
}
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? kSuccess : kInvalidValue;
}
int cuDeviceGetName(char* name, int size, int) {
  std::snprintf(name, size, "Emulated GPU");
  return kSuccess;
}
int cuDeviceTotalMem_v2(size_t* nbytes, int) {
  *nbytes = size_t{1} << 30;
  return kSuccess;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case kMajor: *value = architecture() / 10; break;
    case kMinor: *value = architecture() % 10; break;
    case 1: *value = 1024; break;             // threads in a block
    case 8: *value = 48 << 10; break;         // bytes that they share
    case 10: *value = 32; break;              // threads in a warp
    case 16: *value = 1; break;               // multiprocessors
    default: *value = 1;
  }
  return kSuccess;
}

int cuModuleLoadData(void** module, const void* image) {
  if (std::memcmp(image, &kMagic, sizeof kMagic) != 0) return kInvalidImage;
  uint64_t nbytes;
  std::memcpy(&nbytes, static_cast<const char*>(image) + 8, sizeof nbytes);
  int file = memfd_create("kernels", 0);
  const char* data = static_cast<const char*>(image) + kHeader;
  if (file < 0 || write(file, data, nbytes) != static_cast<ssize_t>(nbytes)) return kInvalidImage;
  // dlopen takes two files of the same name for one, and descriptors are used again.
  static int spelling = 0;
  std::string path = "/proc/self/fd/";
  for (int bits = ++spelling; bits != 0; bits >>= 1) path += bits & 1 ? "./" : "/";
  path += std::to_string(file);
  *module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  close(file);
  if (*module != nullptr) return kSuccess;
  last_failure = dlerror();
  std::fprintf(stderr, "%s\n", last_failure.c_str());
  return kInvalidImage;
}
int cuModuleUnload(void* module) { return dlclose(module) == 0 ? kSuccess : kInvalidValue; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = dlsym(module, (std::string("emulated_") + name).c_str());
  return *function != nullptr ? kSuccess : kNotFound;
}
int cuFuncSetAttribute(void*, int, int) { return kSuccess; }

int cuLaunchKernelEx(const LaunchConfig* config, void* handle, void** arguments, void**) {
  std::lock_guard<std::mutex> lock(one_at_a_time);
  const auto* function = static_cast<const Function*>(handle);
  const unsigned *grid = config->grid, *block = config->block;
  if (const char* trace = std::getenv("EMULATED_TRACE")) {
    FILE* file = std::fopen(trace, "a");
    std::fprintf(file, "grid %ux%ux%u, block %ux%ux%u\n", grid[0], grid[1], grid[2], block[0],
                 block[1], block[2]);
    std::fclose(file);
  }
  if (grid[1] > 65535 || grid[2] > 65535 || block[2] > 64) return kInvalidValue;
  // What all kernels of a library share statically lies together here, and is nvcc's to limit.
  if (config->shared_bytes > 48 << 10) return kInvalidValue;
  emulation::forget_accesses();
  last_failure = emulation::run({function->body, arguments, {grid[0], grid[1], grid[2]},
                                 {block[0], block[1], block[2]}, config->shared_bytes,
                                 function->shared, function->shared_end, function->image,
                                 function->image_end});
  return last_failure.empty() ? kSuccess : kLaunch;
}

int cuGetErrorName(int result, const char** name) {
  static thread_local std::string text;
  text = result == kLaunch ? last_failure : "error " + std::to_string(result) + " " + last_failure;
  *name = text.c_str();
  return kSuccess;
}
int cuGetErrorString(int result, const char** text) { return cuGetErrorName(result, text); }
int cuTensorMapEncodeTiled(...) { return kInvalidValue; }

// For the emulated libcudart.
void* emulated_allocate(size_t nbytes) { return emulation::allocate(nbytes); }
size_t emulated_release(void* memory) { return emulation::release(memory); }
bool emulated_is_allocated(const void* at, size_t n) { return emulation::is_allocated(at, n); }
int emulated_architecture() { return architecture(); }

}  // extern "C"
