// The part of OpenCL 1.2's C interface that the plug-in uses, looked up in libOpenCL at run time.
//
// Neither OpenCL's headers nor libOpenCL are needed to build: types and constants are declared here
// as the specification gives them (The OpenCL Specification, version 1.2, and its header registry).
#pragma once

#include <dlfcn.h>
#include <tvm/ffi/error.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace graphopt {
namespace cl {

using Int = int32_t;
using UInt = uint32_t;
using Bits = uint64_t;
using Platform = struct PlatformObject*;
using Device = struct DeviceObject*;
using Context = struct ContextObject*;
using Queue = struct QueueObject*;
using Memory = struct MemoryObject*;
using Program = struct ProgramObject*;
using Kernel = struct KernelObject*;
using Event = struct EventObject*;
struct Region {
  size_t origin, size;
};

constexpr Int kSuccess = 0, kPlatformNotFound = -1001;
constexpr UInt kBlocking = 1;
constexpr UInt kPlatformName = 0x0902;
constexpr Bits kTypeCpu = 2, kTypeGpu = 4, kTypeAccelerator = 8;
constexpr UInt kDeviceType = 0x1000, kMaxComputeUnits = 0x1002, kMaxWorkGroupSize = 0x1004,
               kMaxWorkItemSizes = 0x1005, kMaxClockFrequency = 0x100C, kMaxMemAllocSize = 0x1010,
               kMemBaseAddrAlign = 0x1019, kSingleFpConfig = 0x101B, kGlobalMemCacheSize = 0x101E,
               kGlobalMemSize = 0x101F, kLocalMemSize = 0x1023, kDeviceName = 0x102B,
               kDeviceVendor = 0x102C, kDriverVersion = 0x102D, kDeviceVersion = 0x102F,
               kDeviceExtensions = 0x1030, kDoubleFpConfig = 0x1032;
constexpr Bits kCorrectlyRoundedDivideSqrt = 1 << 7;
constexpr Bits kReadWrite = 1, kProfilingEnable = 2;
constexpr UInt kRegion = 0x1220;
constexpr UInt kBuildLog = 0x1183;
constexpr UInt kKernelWorkGroupSize = 0x11B0, kKernelLocalMemSize = 0x11B2;
constexpr UInt kCommandStart = 0x1282, kCommandEnd = 0x1283;

using ContextNotify = void (*)(const char*, const void*, size_t, void*);
using BuildNotify = void (*)(Program, void*);

#define GRAPHOPT_CL_FUNCTIONS(F)                                                                   \
  F(clGetPlatformIDs, Int(UInt, Platform*, UInt*))                                                 \
  F(clGetPlatformInfo, Int(Platform, UInt, size_t, void*, size_t*))                                \
  F(clGetDeviceIDs, Int(Platform, Bits, UInt, Device*, UInt*))                                     \
  F(clGetDeviceInfo, Int(Device, UInt, size_t, void*, size_t*))                                    \
  F(clCreateContext, Context(const intptr_t*, UInt, const Device*, ContextNotify, void*, Int*))    \
  F(clCreateCommandQueue, Queue(Context, Device, Bits, Int*))                                      \
  F(clFinish, Int(Queue))                                                                          \
  F(clCreateBuffer, Memory(Context, Bits, size_t, void*, Int*))                                    \
  F(clCreateSubBuffer, Memory(Memory, Bits, UInt, const void*, Int*))                              \
  F(clReleaseMemObject, Int(Memory))                                                               \
  F(clEnqueueReadBuffer,                                                                           \
    Int(Queue, Memory, UInt, size_t, size_t, void*, UInt, const Event*, Event*))                   \
  F(clEnqueueWriteBuffer,                                                                          \
    Int(Queue, Memory, UInt, size_t, size_t, const void*, UInt, const Event*, Event*))             \
  F(clEnqueueCopyBuffer,                                                                           \
    Int(Queue, Memory, Memory, size_t, size_t, size_t, UInt, const Event*, Event*))                \
  F(clCreateProgramWithSource, Program(Context, UInt, const char**, const size_t*, Int*))          \
  F(clBuildProgram, Int(Program, UInt, const Device*, const char*, BuildNotify, void*))            \
  F(clGetProgramBuildInfo, Int(Program, Device, UInt, size_t, void*, size_t*))                     \
  F(clReleaseProgram, Int(Program))                                                                \
  F(clCreateKernel, Kernel(Program, const char*, Int*))                                            \
  F(clReleaseKernel, Int(Kernel))                                                                  \
  F(clSetKernelArg, Int(Kernel, UInt, size_t, const void*))                                        \
  F(clGetKernelWorkGroupInfo, Int(Kernel, Device, UInt, size_t, void*, size_t*))                   \
  F(clEnqueueNDRangeKernel, Int(Queue, Kernel, UInt, const size_t*, const size_t*, const size_t*,  \
                                UInt, const Event*, Event*))                                       \
  F(clGetEventProfilingInfo, Int(Event, UInt, size_t, void*, size_t*))                             \
  F(clReleaseEvent, Int(Event))

// libOpenCL's functions, or the reason why there are none.
struct Library {
#define GRAPHOPT_CL_DECLARE(name, type) std::add_pointer_t<type> name = nullptr;
  GRAPHOPT_CL_FUNCTIONS(GRAPHOPT_CL_DECLARE)
#undef GRAPHOPT_CL_DECLARE
  std::string missing;

  // Never closed: drivers have threads of their own, which outlive every static object.
  static const Library& Get() {
    static const Library* library = new Library();
    return *library;
  }

 private:
  Library() {
    void* handle = nullptr;
    for (const char* name : {"libOpenCL.so.1", "libOpenCL.so"}) {
      handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (handle != nullptr) break;
      if (missing.empty()) missing = dlerror();
    }
    if (handle == nullptr) return;
    missing.clear();
#define GRAPHOPT_CL_RESOLVE(name, type)                                    \
  name = reinterpret_cast<std::add_pointer_t<type>>(dlsym(handle, #name)); \
  if (name == nullptr && missing.empty()) missing = "libOpenCL lacks " #name;
    GRAPHOPT_CL_FUNCTIONS(GRAPHOPT_CL_RESOLVE)
#undef GRAPHOPT_CL_RESOLVE
  }
};

inline std::string ErrorName(Int code) {
  switch (code) {
    case -2: return "CL_DEVICE_NOT_AVAILABLE";
    case -3: return "CL_COMPILER_NOT_AVAILABLE";
    case -4: return "CL_MEM_OBJECT_ALLOCATION_FAILURE";
    case -5: return "CL_OUT_OF_RESOURCES";
    case -6: return "CL_OUT_OF_HOST_MEMORY";
    case -11: return "CL_BUILD_PROGRAM_FAILURE";
    case -13: return "CL_MISALIGNED_SUB_BUFFER_OFFSET";
    case -14: return "CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST";
    case -30: return "CL_INVALID_VALUE";
    case -38: return "CL_INVALID_MEM_OBJECT";
    case -46: return "CL_INVALID_KERNEL_NAME";
    case -52: return "CL_INVALID_KERNEL_ARGS";
    case -54: return "CL_INVALID_WORK_GROUP_SIZE";
    case -55: return "CL_INVALID_WORK_ITEM_SIZE";
    case -61: return "CL_INVALID_BUFFER_SIZE";
    case -1001: return "CL_PLATFORM_NOT_FOUND_KHR";
    default: return "OpenCL error " + std::to_string(code);
  }
}

// The session recognises errors by these names (runtime/device_errors.py).
inline void Check(Int code, const char* function) {
  if (code != kSuccess) TVM_FFI_THROW(RuntimeError) << function << ": " << ErrorName(code);
}

}  // namespace cl
}  // namespace graphopt
