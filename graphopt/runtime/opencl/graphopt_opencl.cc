// graphopt's OpenCL runtime for TVM, whose wheel generates OpenCL code and cannot run it.
//
// Registers with tvm_ffi what TVM looks for by name:
//   device_api.opencl                    the DeviceAPI
//   ffi.Module.create.opencl             makes a module of generated source
//   ffi.Module.load_from_bytes.opencl    makes one of a saved program
// and what graphopt's own runtime uses (runtime/opencl/devices.py, runtime/device_session.py):
//   graphopt.opencl.devices              a map of facts for each device
//   graphopt.opencl.missing              why there is none, or ""
//   graphopt.opencl.view                 (memory, offset, bytes) → a sub-buffer as memory
//   graphopt.opencl.release              gives a sub-buffer back
//   graphopt.opencl.drain                waits until no device has anything left to do
//   graphopt.opencl.record               (device) this thread's kernels are timed from now on
//   graphopt.opencl.mark                 what comes now counts for another row
//   graphopt.opencl.recorded             ends that; nanoseconds before each mark
#include <tvm/ffi/reflection/registry.h>

#include "program.h"

namespace graphopt {
namespace {

using Facts = ffi::Map<ffi::String, ffi::Any>;

Facts Describe(const OpenclDevice& device) {
  cl::Device id = device.id;
  auto text = [&](cl::UInt what) { return ffi::String(DeviceText(id, what)); };
  auto number = [](uint64_t value) { return static_cast<int64_t>(value); };
  char platform[256] = "";
  cl::Library::Get().clGetPlatformInfo(device.platform, cl::kPlatformName, sizeof platform - 1,
                                       platform, nullptr);
  ffi::Array<int64_t> items;
  for (size_t size : WorkItemSizes(id)) items.push_back(number(size));
  Facts facts;
  facts.Set("platform", ffi::String(platform));
  facts.Set("name", text(cl::kDeviceName));
  facts.Set("vendor", text(cl::kDeviceVendor));
  facts.Set("version", text(cl::kDeviceVersion));
  facts.Set("driver", text(cl::kDriverVersion));
  facts.Set("extensions", text(cl::kDeviceExtensions));
  facts.Set("type", number(DeviceInfo<cl::Bits>(id, cl::kDeviceType)));
  facts.Set("compute_units", number(DeviceInfo<cl::UInt>(id, cl::kMaxComputeUnits)));
  facts.Set("max_work_group", number(DeviceInfo<size_t>(id, cl::kMaxWorkGroupSize)));
  facts.Set("work_item_sizes", items);
  facts.Set("local_bytes", number(DeviceInfo<uint64_t>(id, cl::kLocalMemSize)));
  facts.Set("global_bytes", number(DeviceInfo<uint64_t>(id, cl::kGlobalMemSize)));
  facts.Set("max_alloc_bytes", number(DeviceInfo<uint64_t>(id, cl::kMaxMemAllocSize)));
  facts.Set("base_align_bytes", number(DeviceInfo<cl::UInt>(id, cl::kMemBaseAddrAlign) / 8));
  // Devices without double precision may refuse the question.
  cl::Bits doubles = 0;
  cl::Library::Get().clGetDeviceInfo(id, cl::kDoubleFpConfig, sizeof doubles, &doubles, nullptr);
  facts.Set("doubles", number(doubles));
  return facts;
}

ffi::Array<Facts> Devices() {
  ffi::Array<Facts> found;
  DeviceTable& table = DeviceTable::Get();
  for (int64_t index = 0; index < table.Count(); ++index) {
    found.push_back(Describe(table.At(index)));
  }
  return found;
}

void* View(void* memory, int64_t offset, int64_t nbytes) {
  cl::Region region{static_cast<size_t>(offset), static_cast<size_t>(nbytes)};
  cl::Int code = cl::kSuccess;
  cl::Memory view = cl::Library::Get().clCreateSubBuffer(AsMemory(memory), cl::kReadWrite,
                                                         cl::kRegion, &region, &code);
  if (code != cl::kSuccess) {
    TVM_FFI_THROW(RuntimeError) << "clCreateSubBuffer: " << cl::ErrorName(code) << " (" << nbytes
                                << " bytes at " << offset << ")";
  }
  return view;
}

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef()
      .def("device_api.opencl",
           []() {
             static tvm::runtime::DeviceAPI* api = new OpenclDeviceAPI();
             return static_cast<void*>(api);
           })
      .def("ffi.Module.create.opencl", OpenclModule::Create)
      .def("ffi.Module.load_from_bytes.opencl", OpenclModule::LoadFromBytes)
      .def("graphopt.opencl.devices", Devices)
      .def("graphopt.opencl.missing",
           []() { return ffi::String(DeviceTable::Get().Missing()); })
      .def("graphopt.opencl.view", View)
      .def("graphopt.opencl.release",
           [](void* view) { cl::Library::Get().clReleaseMemObject(AsMemory(view)); })
      .def("graphopt.opencl.drain", []() { DeviceTable::Get().Drain(); })
      .def("graphopt.opencl.record",
           [](int64_t device) { Recorder::OfThread().Begin(&DeviceTable::Get().At(device)); })
      .def("graphopt.opencl.mark", []() { Recorder::OfThread().Mark(); })
      .def("graphopt.opencl.recorded", []() { return Recorder::OfThread().End(); });
}

}  // namespace
}  // namespace graphopt
