// libcudart.so.13 of the emulated GPU: the calls of NVIDIA's runtime that TVM's CUDA runtime makes.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

extern "C" {

void* emulated_allocate(size_t nbytes);
size_t emulated_release(void* memory);
bool emulated_is_allocated(const void* memory, size_t nbytes);
int emulated_architecture();

enum { kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNotSupported = 801 };
enum { kHostToHost, kHostToDevice, kDeviceToHost, kDeviceToDevice };
constexpr size_t kMemory = size_t{1} << 30;  // bytes of the device
static size_t used = 0;

int cudaGetDeviceCount(int* count) {
  *count = 1;
  return kSuccess;
}
int cudaGetDevice(int* device) {
  *device = 0;
  return kSuccess;
}
int cudaSetDevice(int device) { return device == 0 ? kSuccess : 101; }
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case 1: *value = 1024; break;  // threads in a block
    case 2: case 3: *value = 1024; break;
    case 4: *value = 64; break;
    case 8: *value = 48 << 10; break;  // bytes that they share
    case 10: *value = 32; break;       // threads in a warp
    case 16: *value = 1; break;        // multiprocessors
    case 75: *value = emulated_architecture() / 10; break;
    case 76: *value = emulated_architecture() % 10; break;
    default: *value = 65536;
  }
  return kSuccess;
}
int cudaGetDeviceProperties(void* properties, int) {
  auto* bytes = static_cast<char*>(properties);
  std::strcpy(bytes, "Emulated GPU");
  std::memcpy(bytes + 288, &kMemory, sizeof kMemory);  // totalGlobalMem
  return kSuccess;
}

int cudaMalloc(void** memory, size_t nbytes) {
  if (nbytes > kMemory - used) return kOutOfMemory;
  size_t taken = nbytes == 0 ? 1 : nbytes;
  *memory = emulated_allocate(taken);
  if (*memory == nullptr) return kOutOfMemory;
  used += taken;
  return kSuccess;
}
int cudaFree(void* memory) {
  if (memory == nullptr) return kSuccess;
  size_t nbytes = emulated_release(memory);
  used -= nbytes;
  return nbytes ? kSuccess : kInvalidValue;
}
int cudaMallocHost(void** memory, size_t nbytes) {
  *memory = std::malloc(nbytes);
  return kSuccess;
}
int cudaFreeHost(void* memory) {
  std::free(memory);
  return kSuccess;
}
int cudaMemcpyAsync(void* to, const void* from, size_t nbytes, int kind, void*) {
  bool to_device = kind == kHostToDevice || kind == kDeviceToDevice;
  bool from_device = kind == kDeviceToHost || kind == kDeviceToDevice;
  if (emulated_is_allocated(to, nbytes) != to_device && nbytes) return kInvalidValue;
  if (emulated_is_allocated(from, nbytes) != from_device && nbytes) return kInvalidValue;
  std::memmove(to, from, nbytes);
  return kSuccess;
}
int cudaMemcpyPeerAsync(void*, int, const void*, int, size_t, void*) { return kNotSupported; }
int cudaMemGetInfo(size_t* free, size_t* total) {
  *free = kMemory - used;
  *total = kMemory;
  return kSuccess;
}

static double milliseconds() {
  using namespace std::chrono;
  return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}
int cudaEventCreate(double** event) {
  *event = new double(0);
  return kSuccess;
}
int cudaEventDestroy(double* event) {
  delete event;
  return kSuccess;
}
int cudaEventRecord(double* event, void*) {
  *event = milliseconds();
  return kSuccess;
}
int cudaEventSynchronize(double*) { return kSuccess; }
int cudaEventElapsedTime(float* elapsed, double* start, double* end) {
  *elapsed = static_cast<float>(*end - *start);
  return kSuccess;
}
static int make_stream(void** stream) {
  *stream = std::malloc(1);
  return kSuccess;
}
int cudaStreamCreate(void** stream) { return make_stream(stream); }
int cudaStreamCreateWithFlags(void** stream, unsigned) { return make_stream(stream); }
int cudaStreamDestroy(void* stream) {
  std::free(stream);
  return kSuccess;
}
int cudaStreamSynchronize(void*) { return kSuccess; }
int cudaStreamWaitEvent(void*, double*, unsigned) { return kSuccess; }
int cudaGetLastError() { return kSuccess; }
int cudaPeekAtLastError() { return kSuccess; }
const char* cudaGetErrorName(int error) {
  return error == kOutOfMemory ? "cudaErrorMemoryAllocation" : "cudaError";
}
const char* cudaGetErrorString(int error) {
  return error == kOutOfMemory ? "out of memory" : "emulated error";
}
int cudaStreamBeginCapture(...) { return kNotSupported; }
int cudaStreamEndCapture(...) { return kNotSupported; }
int cudaGraphInstantiate(...) { return kNotSupported; }
int cudaGraphLaunch(...) { return kNotSupported; }
int cudaGraphDestroy(...) { return kNotSupported; }
int cudaGraphExecDestroy(...) { return kNotSupported; }

}  // extern "C"
