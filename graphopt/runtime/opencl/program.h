// A module of OpenCL kernels: their source, built for a device when it is first used there.
#pragma once

#include <tvm/ffi/cast.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/accessor.h>

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "devices.h"

namespace graphopt {

// What a kernel is called with: its arguments' types, then the extents of its launch by tag
// ("blockIdx.x", "threadIdx.y", …).
struct Signature {
  std::string name;
  std::vector<DLDataType> arguments;
  std::vector<std::string> tags;
};

// Little-endian pieces of a serialised module, which is refused where it ends too early.
class Reader {
 public:
  Reader(const char* data, size_t size) : at_(data), end_(data + size) {}
  const char* Take(uint64_t size) {
    if (static_cast<uint64_t>(end_ - at_) < size) {
      TVM_FFI_THROW(RuntimeError) << "the OpenCL module is truncated";
    }
    const char* here = at_;
    at_ += size;
    return here;
  }
  uint64_t Number() {
    uint64_t value;
    std::memcpy(&value, Take(sizeof value), sizeof value);
    return value;
  }
  // The number of items that follow, of at least `size` bytes each.
  size_t Count(size_t size) {
    uint64_t count = Number();
    if (count > static_cast<uint64_t>(end_ - at_) / size) Take(UINT64_MAX);
    return count;
  }
  std::string Text() {
    size_t size = Count(1);
    return std::string(Take(size), size);
  }

 private:
  const char *at_, *end_;
};

// A kernel as a device has it. Arguments belong to the kernel object, so threads take turns.
class BuiltKernel {
 public:
  BuiltKernel(const std::string& name, const std::string& source, OpenclDevice* device)
      : name_(name), device_(device) {
    const cl::Library& library = cl::Library::Get();
    const char* text = source.c_str();
    size_t size = source.size();
    cl::Int code = cl::kSuccess;
    cl::Program program =
        library.clCreateProgramWithSource(device->Context(), 1, &text, &size, &code);
    cl::Check(code, "clCreateProgramWithSource");
    // Without this a quotient may be wrong by 2.5 units in the last place, and rounding to bytes
    // would give other bytes than on the CPU.
    bool exact =
        DeviceInfo<cl::Bits>(device->id, cl::kSingleFpConfig) & cl::kCorrectlyRoundedDivideSqrt;
    const char* options = exact ? "-cl-fp32-correctly-rounded-divide-sqrt" : "";
    code = library.clBuildProgram(program, 1, &device->id, options, nullptr, nullptr);
    std::string log = code == cl::kSuccess ? "" : BuildLog(program);
    if (code == cl::kSuccess) kernel_.reset(library.clCreateKernel(program, name.c_str(), &code));
    library.clReleaseProgram(program);  // the kernel keeps what it needs
    if (code != cl::kSuccess) {
      TVM_FFI_THROW(RuntimeError) << "building the kernel " << name << ": " << cl::ErrorName(code)
                                  << ": " << log;
    }
    group_ = Limit<size_t>(cl::kKernelWorkGroupSize);
    uint64_t local = Limit<uint64_t>(cl::kKernelLocalMemSize);
    uint64_t most = DeviceInfo<uint64_t>(device->id, cl::kLocalMemSize);
    if (local > most) {
      TVM_FFI_THROW(RuntimeError) << "device limit: the kernel " << name << " needs " << local
                                  << " bytes of local memory; this device has " << most;
    }
    items_ = WorkItemSizes(device->id);
  }

  // groups, items: the extents of the grid and of a work-group along three axes.
  void Launch(const Signature& signature, const ffi::PackedArgs& arguments, const size_t* groups,
              const size_t* items) {
    CheckGroup(items);
    const cl::Library& library = cl::Library::Get();
    Recorder& recorder = Recorder::OfThread();
    size_t total[3];
    for (int axis = 0; axis < 3; ++axis) total[axis] = groups[axis] * items[axis];
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < signature.arguments.size(); ++i) {
      Set(static_cast<cl::UInt>(i), signature.arguments[i], arguments[i]);
    }
    cl::Event event = nullptr;
    cl::Queue queue = recorder.on() ? device_->TimedQueue() : device_->Queue();
    cl::Check(library.clEnqueueNDRangeKernel(queue, kernel_.get(), 3, nullptr, total, items, 0,
                                             nullptr, recorder.on() ? &event : nullptr),
              "clEnqueueNDRangeKernel");
    if (recorder.on()) recorder.Add(event);
  }

 private:
  template <typename T>
  T Limit(cl::UInt what) {
    T value{};
    cl::Check(cl::Library::Get().clGetKernelWorkGroupInfo(kernel_.get(), device_->id, what,
                                                          sizeof(T), &value, nullptr),
              "clGetKernelWorkGroupInfo");
    return value;
  }

  std::string BuildLog(cl::Program program) {
    const cl::Library& library = cl::Library::Get();
    size_t size = 0;
    library.clGetProgramBuildInfo(program, device_->id, cl::kBuildLog, 0, nullptr, &size);
    std::string log(size, '\0');
    library.clGetProgramBuildInfo(program, device_->id, cl::kBuildLog, size, &log[0], nullptr);
    return log.c_str();
  }

  void CheckGroup(const size_t* items) const {
    size_t size = items[0] * items[1] * items[2];
    if (size > group_) {
      TVM_FFI_THROW(RuntimeError) << "device limit: the kernel " << name_
                                  << " has work-groups of " << size
                                  << " work-items; this device allows it "
                                  << group_;
    }
    for (int axis = 0; axis < 3; ++axis) {
      if (items[axis] > items_[axis]) {
        TVM_FFI_THROW(RuntimeError) << "device limit: the kernel " << name_ << " has work-groups of "
                                    << items[axis] << " work-items along axis " << axis
                                    << "; this device allows " << items_[axis];
      }
    }
  }

  void Set(cl::UInt index, DLDataType type, const ffi::AnyView& value) {
    const cl::Library& library = cl::Library::Get();
    auto set = [&](size_t size, const void* bytes) {
      cl::Check(library.clSetKernelArg(kernel_.get(), index, size, bytes), "clSetKernelArg");
    };
    if (type.code == kDLOpaqueHandle) {
      cl::Memory memory = AsMemory(value.cast<void*>());
      set(sizeof memory, &memory);
    } else if (type.code == kDLFloat && type.bits == 32) {
      float number = static_cast<float>(value.cast<double>());
      set(sizeof number, &number);
    } else if (type.code == kDLFloat && type.bits == 64) {
      double number = value.cast<double>();
      set(sizeof number, &number);
    } else if (type.code == kDLInt || type.code == kDLUInt || type.code == kDLBool) {
      int64_t number = value.cast<int64_t>();  // little-endian: its low bytes are the value
      set(type.bits <= 8 ? 1 : type.bits / 8, &number);
    } else {
      TVM_FFI_THROW(TypeError) << "the kernel " << name_ << " takes a number of the type "
                               << ffi::DLDataTypeToString(type) << ", which cannot be passed";
    }
  }

  struct Release {
    void operator()(cl::Kernel kernel) const { cl::Library::Get().clReleaseKernel(kernel); }
  };

  std::string name_;
  OpenclDevice* device_;
  std::unique_ptr<cl::KernelObject, Release> kernel_;
  size_t group_ = 0;
  std::vector<size_t> items_;
  std::mutex mutex_;
};

class OpenclModule final : public ffi::ModuleObj {
 public:
  OpenclModule(std::string format, std::string code, std::vector<Signature> signatures)
      : format_(std::move(format)), code_(std::move(code)), signatures_(std::move(signatures)) {
    if (format_ != "cl") {
      TVM_FFI_THROW(RuntimeError) << "an OpenCL module of the format '" << format_
                                  << "' cannot be read; only source can";
    }
    for (const Signature& each : signatures_) by_name_[each.name] = &each;
    // TVM writes every kernel behind such a line, complete with the declarations that it needs.
    const std::string mark = "// Function: ";
    size_t at = code_.find(mark);
    while (at != std::string::npos) {
      size_t line = code_.find('\n', at), next = code_.find(mark, at + 1);
      if (line == std::string::npos) break;
      size_t size = next == std::string::npos ? next : next - at;
      sources_[code_.substr(at + mark.size(), line - at - mark.size())] = code_.substr(at, size);
      at = next;
    }
  }

  const char* kind() const final { return "opencl"; }
  int GetPropertyMask() const final {
    return ffi::Module::kBinarySerializable | ffi::Module::kRunnable;
  }
  ffi::String InspectSource(const ffi::String&) const final { return ffi::String(code_); }
  bool ImplementsFunction(const ffi::String& name) final { return by_name_.count(name) != 0; }

  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    auto found = by_name_.find(name);
    if (found == by_name_.end()) return std::nullopt;
    const Signature* signature = found->second;
    std::vector<int> slots;  // of each extent: axes 0 to 2 of the grid, 3 to 5 of the group
    for (const std::string& tag : signature->tags) {
      int first = tag.rfind("blockIdx.", 0) == 0 ? 0 : tag.rfind("threadIdx.", 0) == 0 ? 3 : -1;
      int axis = tag.empty() ? -1 : tag.back() - 'x';
      if (first < 0 || axis < 0 || axis > 2) {
        TVM_FFI_THROW(RuntimeError) << "the OpenCL kernel " << signature->name
                                    << " wants the launch parameter '" << tag
                                    << "', which OpenCL does not have";
      }
      slots.push_back(first + axis);
    }
    ffi::ObjectPtr<ffi::Object> self = ffi::GetObjectPtr<ffi::Object>(this);
    return ffi::Function::FromPacked(
        [this, self, signature, slots](ffi::PackedArgs arguments, ffi::Any*) {
          Launch(*signature, slots, arguments);
        });
  }

  // The encoding is that of TVM's code generator, which writes modules itself where the plug-in
  // is not loaded.
  ffi::Bytes SaveToBytes() const final {
    std::string out;
    auto number = [&](uint64_t value) {
      out.append(reinterpret_cast<const char*>(&value), sizeof value);
    };
    auto text = [&](const std::string& value) {
      number(value.size());
      out += value;
    };
    text(format_);
    number(signatures_.size());
    for (const Signature& each : signatures_) {
      text(each.name);
      text(each.name);
      number(each.arguments.size());
      for (const DLDataType& type : each.arguments) {
        out.append(reinterpret_cast<const char*>(&type), sizeof type);
      }
      number(each.tags.size());
      for (const std::string& tag : each.tags) text(tag);
      number(each.arguments.size());  // further marks of arguments, of which OpenCL has none
      out.append(4 * each.arguments.size(), '\0');
    }
    text(code_);
    return ffi::Bytes(std::move(out));
  }

  static ffi::Module LoadFromBytes(const ffi::Bytes& bytes) {
    Reader reader(bytes.data(), bytes.size());
    std::string format = reader.Text();
    std::vector<Signature> signatures(reader.Count(40));
    for (Signature& each : signatures) {
      reader.Text();  // the key, the same as the name
      each.name = reader.Text();
      each.arguments.resize(reader.Count(sizeof(DLDataType)));
      for (DLDataType& type : each.arguments) {
        std::memcpy(&type, reader.Take(sizeof type), sizeof type);
      }
      each.tags.resize(reader.Count(8));
      for (std::string& tag : each.tags) tag = reader.Text();
      reader.Take(4 * reader.Count(4));
    }
    std::string code = reader.Text();
    return ffi::Module(ffi::make_object<OpenclModule>(format, code, std::move(signatures)));
  }

  // What TVM's code generator calls with the source that it wrote.
  static ffi::Module Create(const ffi::Bytes& code, const ffi::String& format,
                            const ffi::Map<ffi::String, ffi::ObjectRef>& infos,
                            const ffi::Map<ffi::String, ffi::String>&) {
    // The class's header is not in TVM's wheel, but its fields can be asked for by name.
    static const ffi::reflection::FieldGetter types("runtime.FunctionInfo", "arg_types");
    static const ffi::reflection::FieldGetter tags("runtime.FunctionInfo", "launch_param_tags");
    std::vector<Signature> signatures;
    for (const auto& [name, info] : infos) {
      Signature each{name, {}, {}};
      for (DLDataType type : types(info).cast<ffi::Array<DLDataType>>()) {
        each.arguments.push_back(type);
      }
      for (ffi::String tag : tags(info).cast<ffi::Array<ffi::String>>()) each.tags.push_back(tag);
      signatures.push_back(std::move(each));
    }
    std::string text(code.data(), code.size());
    return ffi::Module(
        ffi::make_object<OpenclModule>(format, std::move(text), std::move(signatures)));
  }

 private:
  void Launch(const Signature& signature, const std::vector<int>& slots,
              const ffi::PackedArgs& arguments) {
    size_t count = signature.arguments.size();
    if (static_cast<size_t>(arguments.size()) != count + slots.size()) {
      TVM_FFI_THROW(TypeError) << "the OpenCL kernel " << signature.name << " takes "
                               << count + slots.size() << " arguments, not " << arguments.size();
    }
    size_t extents[6] = {1, 1, 1, 1, 1, 1};
    for (size_t i = 0; i < slots.size(); ++i) {
      int64_t extent = arguments[static_cast<int>(count + i)].cast<int64_t>();
      if (extent <= 0) return;  // an empty grid
      extents[slots[i]] = static_cast<size_t>(extent);
    }
    Built(signature.name, DeviceTable::Current()).Launch(signature, arguments, extents,
                                                         extents + 3);
  }

  BuiltKernel& Built(const std::string& name, int device) {
    std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<BuiltKernel>& built = built_[{device, name}];
    if (built == nullptr) {
      auto source = sources_.find(name);
      const std::string& text = source == sources_.end() ? code_ : source->second;
      built = std::make_unique<BuiltKernel>(name, text, &DeviceTable::Get().At(device));
    }
    return *built;
  }

  const std::string format_, code_;
  const std::vector<Signature> signatures_;
  std::unordered_map<std::string, const Signature*> by_name_;
  std::unordered_map<std::string, std::string> sources_;
  std::mutex mutex_;
  std::map<std::pair<int, std::string>, std::unique_ptr<BuiltKernel>> built_;
};

}  // namespace graphopt
