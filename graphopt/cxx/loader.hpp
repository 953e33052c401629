// graphopt.hpp: loads a .gopt file and runs it, in C++17, without graphopt, Python or TVM.
//
//   graphopt::Program program("model.gopt", 2);           // throws graphopt::Error with a reason
//   program.run({image.data()}, {probabilities.data()});  // in the order of inputs() and outputs()
//
// Every byte of the file is checked against its digest before anything of it is used; that tells
// damage, not who made the file: a .gopt is machine code, so load only what you trust. Linux only;
// compile with -rdynamic -pthread -ldl. Made by `graphopt cxx-header`.
//
// With GRAPHOPT_OPENSSL defined (and -lcrypto, of OpenSSL 1.1.1 or later) it also tells who signed a
// file, and opens encrypted ones:
//
//   graphopt::Keys keys;
//   keys.trusted = {"public.pem"};
//   keys.key_file = "key.bin";
//   graphopt::Program program("secret.gopt", 2, 0, keys);
//
// A Program may be used by one thread at a time; any number of Programs at once.

#ifndef GRAPHOPT_HPP
#define GRAPHOPT_HPP

#include <dlfcn.h>
#include <fcntl.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#else
#include <sys/auxv.h>
#endif

#ifdef GRAPHOPT_OPENSSL
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/pem.h>
#endif

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

// What a program calls when its own arguments are wrong; TVM's own, where it is linked, is taken.
extern "C" __attribute__((weak, visibility("default"))) void TVMFFIErrorSetRaisedFromCStrParts(
    const char *kind, const char **parts, std::int32_t count) {
  std::fprintf(stderr, "%s: ", kind);
  for (std::int32_t i = 0; i < count; i++) std::fputs(parts[i], stderr);
}

namespace graphopt {

#ifdef GRAPHOPT_OPENSSL
inline namespace with_openssl {  // so that files compiled with and without it can be linked
#endif

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Tensor {
  std::string name, dtype;  // NumPy's name of the element type
  std::vector<std::int64_t> shape;
  std::size_t bytes;
};

struct Keys {
  // Public Ed25519 keys: PEM files, or the text of such. If there are any, one of them must have
  // signed the file, which is refused otherwise before its weights are read.
  std::vector<std::string> trusted;
  std::string passphrase, key_file;  // one of them, for an encrypted file; a path
};

namespace detail {

@CONSTANTS@

#include "blake2b.inc"
#include "json.hpp"
#include "memory.hpp"
#include "container.hpp"
#include "digest.hpp"
#ifdef GRAPHOPT_OPENSSL
#include "protection.hpp"
#else
#include "no_protection.hpp"
#endif
#include "sealed.hpp"
#include "machine.hpp"
#include "execution.hpp"
}  // namespace detail

class Program {
 public:
  // Opens a file. `threads` share each run, at most those that it was compiled for; a file with
  // several programs, for several shapes of the inputs, gives that with the number `which`.
  explicit Program(const std::string &path, int threads = 1, std::size_t which = 0,
                   const Keys &keys = Keys()) {
    using namespace detail;
    if (!keys.passphrase.empty() && !keys.key_file.empty())
      throw Error("give a key file or a passphrase, not both");
    Sealed sealed(path, TrustedKeys(keys));
    const std::string text = sealed.text(0);
    const Json manifest = JsonReader(text).read();
    const std::uint64_t any = std::numeric_limits<std::uint64_t>::max();
    if (manifest["schema"].integer(any) != kSchema || manifest["abi"].integer(any) != kAbi)
      throw Error("the file is of another version of graphopt than graphopt.hpp");
    if (!manifest["hosts"].list().empty())
      throw Error("the program has control flow or shapes that depend on data, which need Python");
    const std::vector<Json> &entries = manifest["entries"].list();
    if (entries.size() + 2 != sealed.layout.members.size())
      damaged("it has another number of modules than of programs");
    if (which >= entries.size()) throw Error("the file has no such program");
    const Json &entry = entries[which], &plan = entry["plan"];
    const std::string reason = unfit(entry);
    if (!reason.empty()) throw Error(reason);
    inputs_ = tensors(plan["inputs"]);
    outputs_ = tensors(plan["outputs"]);
    const std::uint64_t arena_bytes = plan["arena_bytes"].integer(kMaxBytes);
    const int most = static_cast<int>(plan["threads"].integer(kMaxThreads));
    open(sealed, which, manifest, text, keys);
    weights_ += entry["weights_offset"].integer(kMaxBytes);
    prepare(arena_bytes, std::max(1, std::min(threads, most)));
  }

  Program(const Program &) = delete;
  Program &operator=(const Program &) = delete;

  const std::vector<Tensor> &inputs() const { return inputs_; }
  const std::vector<Tensor> &outputs() const { return outputs_; }

  // Runs once. Tensors are row-major, of any alignment, and overlap no output.
  void run(const std::vector<const void *> &inputs, const std::vector<void *> &outputs) {
    using namespace detail;
    if (inputs.size() != inputs_.size() || outputs.size() != outputs_.size())
      throw Error("the number of inputs or outputs is wrong");
    Any *slots = context_ + FIRST_IO;
    for (std::size_t i = 0; i < inputs.size(); i++)
      if (!inputs[i] && inputs_[i].bytes) throw Error("the address of an input is null");
    for (std::size_t i = 0; i < outputs.size(); i++)
      if (!outputs[i] && outputs_[i].bytes) throw Error("the address of an output is null");
    for (std::size_t i = 0; i < inputs.size(); i++) {
      void *place = const_cast<void *>(inputs[i]);
      if (unaligned(place)) std::memcpy(place = staged(i), inputs[i], inputs_[i].bytes);
      slots[i].address = place;
    }
    for (std::size_t i = 0, at = inputs.size(); i < outputs.size(); i++, at++)
      slots[at].address = unaligned(outputs[i]) ? staged(at) : outputs[i];
    Any argument, result;
    argument.type = kPointer;
    argument.address = context_;
    if (run_(nullptr, &argument, 1, &result)) throw Error("the program refused its arguments");
    for (std::size_t i = 0; i < outputs.size(); i++)
      if (unaligned(outputs[i]))
        std::memcpy(outputs[i], staged(inputs.size() + i), outputs_[i].bytes);
  }

 private:
  static bool unaligned(const void *place) { return reinterpret_cast<std::uintptr_t>(place) % 64; }

  void *staged(std::size_t index) {
    if (!staging_[index]) {
      bool input = index < inputs_.size();
      const Tensor &tensor = input ? inputs_[index] : outputs_[index - inputs_.size()];
      staging_[index] = detail::allocate(tensor.bytes);
    }
    return staging_[index].get();
  }

  // Module and weights, decrypted where they are encrypted.
  void open(detail::Sealed &sealed, std::size_t which, const detail::Json &manifest,
            const std::string &text, const Keys &keys) {
    const detail::Json &encryption = manifest["encryption"];
    const std::vector<detail::Member> &members = sealed.layout.members;
    const detail::Member &module = members[1 + which], &weights = members.back();
    const char *code = sealed.head.data() + module.offset, *stored = sealed.file->data + weights.offset;
    if (encryption.kind == detail::Json::kNull) {
      require_weights(manifest, weights.size);
      open_module(code, module.size);
      weights_ = stored;
      file_ = std::move(sealed.file);
      return;
    }
    const detail::Cipher cipher(keys, encryption, text);
    decrypted_ = cipher.decrypted(members.size() - 2, stored, weights.size);
    weights_ = decrypted_.data.get();
    require_weights(manifest, decrypted_.size);
    if (!encryption["modules"].flag()) return open_module(code, module.size);
    const detail::Secret opened = cipher.decrypted(which, code, module.size);
    open_module(opened.data.get(), opened.size);
  }

  static void require_weights(const detail::Json &manifest, std::size_t size) {
    for (const detail::Json &entry : manifest["entries"].list()) {
      std::uint64_t begin = entry["weights_offset"].integer(detail::kMaxBytes);
      std::uint64_t needed = entry["plan"]["weight_bytes"].integer(detail::kMaxBytes);
      if (begin % 64 || begin > size || needed > size - begin)
        throw Error("a program needs other weights than there are");
    }
  }

  // From a private copy, so that the very bytes that were checked are executed.
  void open_module(const char *code, std::size_t size) {
    int file = memfd_create("graphopt-module", MFD_CLOEXEC);
    std::size_t done = 0;
    while (file >= 0 && done < size) {
      ssize_t part = write(file, code + done, size - done);
      if (part <= 0) break;
      done += static_cast<std::size_t>(part);
    }
    // The loader tells libraries apart by how their paths are spelled, and numbers of files recur.
    static std::atomic<unsigned> opened{0};
    std::string path = "/proc/self/fd/";
    for (unsigned number = opened++, i = 0; i < 32; i++) path += number >> i & 1 ? "./" : "/";
    if (done == size && file >= 0)
      module_.handle = dlopen((path + std::to_string(file)).c_str(), RTLD_LAZY | RTLD_LOCAL);
    if (file >= 0) close(file);
    if (!module_.handle) {
      const char *reason = dlerror();
      throw Error(std::string("the system cannot load the program: ") + (reason ? reason : "?"));
    }
    run_ = reinterpret_cast<detail::Packed>(dlsym(module_.handle, "__tvm_ffi_run"));
    serve_ = reinterpret_cast<detail::Packed>(dlsym(module_.handle, "__tvm_ffi_serve"));
    if (!run_ || !serve_) throw Error("the module lacks its entry points");
  }

  void prepare(std::size_t arena_bytes, int tasks) {
    using namespace detail;
    std::size_t count = inputs_.size() + outputs_.size();
    staging_.resize(count);
    std::size_t slots = (FIRST_IO + count) * sizeof(Any);
    std::size_t barriers = (slots + 63) / 64 * 64, semaphores = barriers + 2 * 64;
    std::size_t bytes = semaphores + static_cast<std::size_t>(tasks) * SEMAPHORE_STRIDE;
    shared_ = allocate(bytes);
    std::memset(shared_.get(), 0, bytes);
    arena_ = allocate(arena_bytes);
    context_ = team_.context = reinterpret_cast<Any *>(shared_.get());
    team_.semaphores = shared_.get() + semaphores;
    context_[NUM_TASKS].number = tasks;
    context_[BARRIER].address = shared_.get() + barriers;
    context_[SOLO_BARRIER].address = shared_.get() + barriers + 64;
    context_[SEMAPHORES].address = team_.semaphores;
    context_[ARENA].address = arena_.get();
    context_[WEIGHTS].address = const_cast<char *>(weights_);
    for (int task = 0; task < tasks; task++) sem_init(team_.semaphore(task), 0, 0);
    for (int task = 1; task < tasks; task++)
      team_.workers.emplace_back([this, task] {
        Any arguments[2], result;
        arguments[0].type = kPointer;
        arguments[0].address = context_;
        arguments[1].type = kInteger;
        arguments[1].number = task;
        serve_(nullptr, arguments, 2, &result);
      });
  }

  std::unique_ptr<detail::Mapping> file_;
  detail::Secret decrypted_;
  const char *weights_ = nullptr;  // in one of those
  std::vector<Tensor> inputs_, outputs_;
  std::vector<detail::Memory> staging_;
  detail::Memory shared_, arena_;
  detail::Any *context_ = nullptr;
  detail::Module module_;
  detail::Packed run_ = nullptr, serve_ = nullptr;
  detail::Team team_;  // last: its threads end before what they use
};

#ifdef GRAPHOPT_OPENSSL
}  // namespace with_openssl
#endif
}  // namespace graphopt

#endif
