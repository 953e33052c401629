// The machine's OpenCL devices, and TVM's DeviceAPI on them.
//
// A tensor's data pointer is the cl_mem itself. Every device has one in-order queue, which all
// threads share: what one thread enqueues is done in its order, and a blocking copy waits for it.
// While a thread records times, its kernels go to a second queue that keeps them (see Recorder).
#pragma once

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/runtime/device_api.h>
#include <unistd.h>

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "cl.h"

namespace graphopt {
namespace ffi = tvm::ffi;

template <typename T>
T DeviceInfo(cl::Device device, cl::UInt what) {
  T value{};
  cl::Check(cl::Library::Get().clGetDeviceInfo(device, what, sizeof(T), &value, nullptr),
            "clGetDeviceInfo");
  return value;
}

inline std::string DeviceText(cl::Device device, cl::UInt what) {
  const cl::Library& library = cl::Library::Get();
  size_t size = 0;
  cl::Check(library.clGetDeviceInfo(device, what, 0, nullptr, &size), "clGetDeviceInfo");
  std::string text(size, '\0');
  cl::Check(library.clGetDeviceInfo(device, what, size, &text[0], nullptr), "clGetDeviceInfo");
  return text.c_str();  // up to the terminating zero
}

// Work-items along each of the axes that TVM uses; devices may have more axes.
inline std::vector<size_t> WorkItemSizes(cl::Device device) {
  const cl::Library& library = cl::Library::Get();
  size_t size = 0;
  cl::Check(library.clGetDeviceInfo(device, cl::kMaxWorkItemSizes, 0, nullptr, &size),
            "clGetDeviceInfo");
  std::vector<size_t> sizes(size / sizeof(size_t));
  cl::Check(library.clGetDeviceInfo(device, cl::kMaxWorkItemSizes, size, sizes.data(), nullptr),
            "clGetDeviceInfo");
  sizes.resize(3, 1);
  return sizes;
}

// One device; its context and queues are made when they are first needed.
class OpenclDevice {
 public:
  OpenclDevice(cl::Platform platform, cl::Device id) : platform(platform), id(id) {}

  const cl::Platform platform;
  const cl::Device id;

  cl::Context Context() {
    Open();
    return context_;
  }
  cl::Queue Queue() {
    Open();
    return queue_;
  }
  cl::Queue TimedQueue() {
    Open();
    std::lock_guard<std::mutex> lock(mutex_);
    if (timed_ == nullptr) timed_ = NewQueue(cl::kProfilingEnable);
    return timed_;
  }
  void Finish() { cl::Check(cl::Library::Get().clFinish(Queue()), "clFinish"); }
  // Waits for what is under way, if anything ever was; what fails fails unheard.
  void Drain() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (cl::Queue queue : {queue_, timed_}) {
      if (queue != nullptr) cl::Library::Get().clFinish(queue);
    }
  }

 private:
  void Open() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (queue_ != nullptr) return;
    if (context_ == nullptr) {
      cl::Int code = cl::kSuccess;
      context_ = cl::Library::Get().clCreateContext(nullptr, 1, &id, nullptr, nullptr, &code);
      cl::Check(code, "clCreateContext");
    }
    queue_ = NewQueue(0);
  }
  cl::Queue NewQueue(cl::Bits properties) {
    cl::Int code = cl::kSuccess;
    cl::Queue queue = cl::Library::Get().clCreateCommandQueue(context_, id, properties, &code);
    cl::Check(code, "clCreateCommandQueue");
    return queue;
  }

  std::mutex mutex_;
  cl::Context context_ = nullptr;
  cl::Queue queue_ = nullptr, timed_ = nullptr;
};

// All devices: GPUs, then accelerators, then CPUs, each in the order of the platforms.
class DeviceTable {
 public:
  static DeviceTable& Get() {
    static DeviceTable* table = new DeviceTable();
    return *table;
  }
  // The device that this thread launches kernels on.
  static int& Current() {
    static thread_local int index = 0;
    return index;
  }
  int64_t Count() const { return static_cast<int64_t>(devices_.size()); }
  OpenclDevice& At(int64_t index) const {
    // Drivers have threads, which a forked process lacks: it would wait for them for ever.
    if (getpid() != process_) {
      TVM_FFI_THROW(RuntimeError) << "OpenCL was started before this process was forked";
    }
    if (index < 0 || index >= Count()) {
      TVM_FFI_THROW(RuntimeError) << "there is no OpenCL device number " << index << "; found: "
                                  << Count();
    }
    return *devices_[index];
  }
  // Of this process; in a forked one there is nothing to wait for.
  void Drain() {
    if (getpid() != process_) return;
    for (const std::unique_ptr<OpenclDevice>& device : devices_) device->Drain();
  }
  // Why there is no device; empty where there is one.
  const std::string& Missing() const { return missing_; }

 private:
  DeviceTable() {
    const cl::Library& library = cl::Library::Get();
    missing_ = library.missing;
    if (!missing_.empty()) return;
    cl::UInt count = 0;
    cl::Int code = library.clGetPlatformIDs(0, nullptr, &count);
    if (code != cl::kSuccess || count == 0) {
      bool none = code == cl::kSuccess || code == cl::kPlatformNotFound;
      missing_ = none ? "no OpenCL driver is installed" : "clGetPlatformIDs: " + cl::ErrorName(code);
      return;
    }
    std::vector<cl::Platform> platforms(count);
    cl::Check(library.clGetPlatformIDs(count, platforms.data(), nullptr), "clGetPlatformIDs");
    for (cl::Bits type : {cl::kTypeGpu, cl::kTypeAccelerator, cl::kTypeCpu}) {
      for (cl::Platform platform : platforms) {
        if (library.clGetDeviceIDs(platform, type, 0, nullptr, &count) != cl::kSuccess) continue;
        std::vector<cl::Device> ids(count);
        cl::Check(library.clGetDeviceIDs(platform, type, count, ids.data(), nullptr),
                  "clGetDeviceIDs");
        for (cl::Device id : ids) devices_.push_back(std::make_unique<OpenclDevice>(platform, id));
      }
    }
    if (devices_.empty()) missing_ = "the installed OpenCL drivers offer no device";
  }

  const pid_t process_ = getpid();
  std::vector<std::unique_ptr<OpenclDevice>> devices_;
  std::string missing_;
};

// The times of the kernels that one thread launches, by the device's own clock, summed up between
// marks.
class Recorder {
 public:
  static Recorder& OfThread() {
    static thread_local Recorder recorder;
    return recorder;
  }
  bool on() const { return device_ != nullptr; }

  void Begin(OpenclDevice* device) {
    Drop();
    device->TimedQueue();
    device->Finish();  // nothing orders one queue's work after the other's
    device_ = device;
  }
  void Add(cl::Event event) { events_.push_back(event); }
  void Mark() { marks_.push_back(events_.size()); }

  // Nanoseconds of the kernels before each mark, and after the mark before that.
  ffi::Array<int64_t> End() {
    ffi::Array<int64_t> found;
    if (!on()) return found;
    const cl::Library& library = cl::Library::Get();
    cl::Int code = library.clFinish(device_->TimedQueue());
    size_t at = 0;
    for (size_t mark : marks_) {
      int64_t spent = 0;
      for (; at < mark && code == cl::kSuccess; ++at) {
        uint64_t start = 0, end = 0;
        code = library.clGetEventProfilingInfo(events_[at], cl::kCommandStart, 8, &start, nullptr);
        if (code != cl::kSuccess) break;
        code = library.clGetEventProfilingInfo(events_[at], cl::kCommandEnd, 8, &end, nullptr);
        spent += static_cast<int64_t>(end - start);
      }
      found.push_back(spent);
    }
    Drop();
    cl::Check(code, "clGetEventProfilingInfo");
    return found;
  }

 private:
  void Drop() {
    for (cl::Event event : events_) cl::Library::Get().clReleaseEvent(event);
    events_.clear();
    marks_.clear();
    device_ = nullptr;
  }

  OpenclDevice* device_ = nullptr;
  std::vector<cl::Event> events_;
  std::vector<size_t> marks_;
};

inline cl::Memory AsMemory(const void* pointer) {
  return static_cast<cl::Memory>(const_cast<void*>(pointer));
}

class OpenclDeviceAPI final : public tvm::runtime::DeviceAPI {
 public:
  using tvm::runtime::DeviceAPI::AllocDataSpace;
  using tvm::runtime::DeviceAPI::CopyDataFromTo;

  void SetDevice(DLDevice device) final { DeviceTable::Current() = device.device_id; }

  void GetAttr(DLDevice device, tvm::runtime::DeviceAttrKind kind, ffi::Any* result) final {
    using namespace tvm::runtime;
    DeviceTable& table = DeviceTable::Get();
    if (kind == kExist) {
      *result = static_cast<int64_t>(device.device_id < table.Count());
      return;
    }
    cl::Device id = table.At(device.device_id).id;
    auto number = [&](uint64_t value) { *result = static_cast<int64_t>(value); };
    switch (kind) {
      case kMaxThreadsPerBlock: return number(DeviceInfo<size_t>(id, cl::kMaxWorkGroupSize));
      case kMaxSharedMemoryPerBlock: return number(DeviceInfo<uint64_t>(id, cl::kLocalMemSize));
      case kMultiProcessorCount: return number(DeviceInfo<cl::UInt>(id, cl::kMaxComputeUnits));
      case kMaxClockRate:  // in kHz; OpenCL has MHz
        return number(uint64_t{1000} * DeviceInfo<cl::UInt>(id, cl::kMaxClockFrequency));
      case kL2CacheSizeBytes: return number(DeviceInfo<uint64_t>(id, cl::kGlobalMemCacheSize));
      case kTotalGlobalMemory: return number(DeviceInfo<uint64_t>(id, cl::kGlobalMemSize));
      case kWarpSize: return number(1);  // OpenCL 1.2 does not tell
      case kDeviceName: *result = ffi::String(DeviceText(id, cl::kDeviceName)); return;
      case kDriverVersion: *result = ffi::String(DeviceText(id, cl::kDriverVersion)); return;
      case kComputeVersion: *result = ffi::String(DeviceText(id, cl::kDeviceVersion)); return;
      case kMaxThreadDimensions: {
        std::vector<size_t> sizes = WorkItemSizes(id);
        *result = ffi::String("[" + std::to_string(sizes[0]) + ", " + std::to_string(sizes[1]) +
                              ", " + std::to_string(sizes[2]) + "]");
        return;
      }
      default: return;  // stays None: not known
    }
  }

  void* AllocDataSpace(DLDevice device, size_t nbytes, size_t, DLDataType) final {
    OpenclDevice& own = DeviceTable::Get().At(device.device_id);
    uint64_t most = DeviceInfo<uint64_t>(own.id, cl::kMaxMemAllocSize);
    cl::Int code = nbytes > most ? -61 : cl::kSuccess;  // some drivers would only fail later
    cl::Memory memory = nullptr;
    if (code == cl::kSuccess) {
      memory = cl::Library::Get().clCreateBuffer(own.Context(), cl::kReadWrite,
                                                 nbytes == 0 ? 1 : nbytes, nullptr, &code);
    }
    if (code != cl::kSuccess) {
      TVM_FFI_THROW(RuntimeError) << "clCreateBuffer: " << cl::ErrorName(code) << " (" << nbytes
                                  << " bytes; one piece may have " << most << ")";
    }
    return memory;
  }

  void FreeDataSpace(DLDevice, void* pointer) final {
    cl::Library::Get().clReleaseMemObject(AsMemory(pointer));
  }

  void StreamSync(DLDevice device, TVMStreamHandle) final {
    DeviceTable::Get().At(device.device_id).Finish();
  }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset,
                      size_t nbytes, DLDevice from_device, DLDevice to_device, DLDataType,
                      TVMStreamHandle) final {
    if (nbytes == 0) return;
    DeviceTable& table = DeviceTable::Get();
    bool reads = from_device.device_type == kDLOpenCL, writes = to_device.device_type == kDLOpenCL;
    if (reads && writes && from_device.device_id == to_device.device_id) {
      cl::Check(cl::Library::Get().clEnqueueCopyBuffer(
                    table.At(to_device.device_id).Queue(), AsMemory(from), AsMemory(to),
                    from_offset, to_offset, nbytes, 0, nullptr, nullptr),
                "clEnqueueCopyBuffer");
    } else if (reads && writes) {  // contexts differ, so it goes through the host
      std::vector<char> middle(nbytes);
      Read(table.At(from_device.device_id), from, from_offset, middle.data(), nbytes);
      Write(table.At(to_device.device_id), to, to_offset, middle.data(), nbytes);
    } else if (reads) {
      Read(table.At(from_device.device_id), from, from_offset, static_cast<char*>(to) + to_offset,
           nbytes);
    } else {
      Write(table.At(to_device.device_id), to, to_offset,
            static_cast<const char*>(from) + from_offset, nbytes);
    }
  }

 private:
  static void Read(OpenclDevice& device, const void* from, size_t offset, char* to, size_t nbytes) {
    cl::Check(cl::Library::Get().clEnqueueReadBuffer(device.Queue(), AsMemory(from), cl::kBlocking,
                                                     offset, nbytes, to, 0, nullptr, nullptr),
              "clEnqueueReadBuffer");
  }
  static void Write(OpenclDevice& device, void* to, size_t offset, const char* from,
                    size_t nbytes) {
    cl::Check(cl::Library::Get().clEnqueueWriteBuffer(device.Queue(), AsMemory(to), cl::kBlocking,
                                                      offset, nbytes, from, 0, nullptr, nullptr),
              "clEnqueueWriteBuffer");
  }
};

}  // namespace graphopt
