// graphopt.hpp: loads a .gopt file and runs it, in C++17, without graphopt, Python or TVM.
//
//   graphopt::Program program("model.gopt", 2);           // throws graphopt::Error with a reason
//   program.run({image.data()}, {probabilities.data()});  // in the order of inputs() and outputs()
//
// Every byte of the file is checked against its digest before anything of it is used; that tells
// damage, not who made the file: a .gopt is machine code, so load only what you trust. Linux only;
// compile with -rdynamic -pthread -ldl. Made by `graphopt cxx-header`.
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

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
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

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Tensor {
  std::string name, dtype;  // NumPy's name of the element type
  std::vector<std::int64_t> shape;
  std::size_t bytes;
};

namespace detail {

// Where a processor shows a feature: leaf, subleaf, register of CPUID and bits of XCR0 on x86-64, an
// entry of the auxiliary vector elsewhere; and the bit.
struct Feature {
  const char *name;
  unsigned where, subleaf, which, saved, bit;
};

@CONSTANTS@

inline std::uint64_t little(const unsigned char *at, int bytes) {
  std::uint64_t value = 0;
  for (int i = bytes; i-- > 0;) value = value << 8 | at[i];
  return value;
}

// BLAKE2b of 32 bytes as a node of a tree (RFC 7693; the BLAKE2 paper, section 2.10).
class Blake2b {
 public:
  Blake2b(std::uint64_t offset, int depth, bool last) : last_(last) {
    unsigned char block[64] = {32, 0, 0, 2};  // fan-out without limit, two levels
    for (int i = 0; i < 4; i++) block[4 + i] = static_cast<unsigned char>(kLeafBytes >> 8 * i);
    for (int i = 0; i < 8; i++) block[8 + i] = static_cast<unsigned char>(offset >> 8 * i);
    block[16] = static_cast<unsigned char>(depth);
    block[17] = 32;
    std::memcpy(block + 48, "graphopt.gopt.v1", 16);
    for (int i = 0; i < 8; i++) state_[i] = kInitial[i] ^ little(block + 8 * i, 8);
  }

  void update(const unsigned char *data, std::size_t size) {
    while (size) {
      if (held_ == sizeof buffer_) {
        counted_ += held_;
        compress(false);
        held_ = 0;
      }
      std::size_t part = std::min(size, sizeof buffer_ - held_);
      std::memcpy(buffer_ + held_, data, part);
      held_ += part, data += part, size -= part;
    }
  }

  std::vector<unsigned char> digest() {
    counted_ += held_;
    std::memset(buffer_ + held_, 0, sizeof buffer_ - held_);
    compress(true);
    std::vector<unsigned char> result(32);
    for (int i = 0; i < 32; i++)
      result[i] = static_cast<unsigned char>(state_[i / 8] >> 8 * (i % 8));
    return result;
  }

 private:
  static constexpr std::uint64_t kInitial[8] = {
      0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
      0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};
  static constexpr unsigned char kOrder[10][16] = {
      {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
      {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
      {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
      {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
      {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
      {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
      {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
      {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
      {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
      {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

  void compress(bool final) {
    std::uint64_t v[16], words[16];
    for (int i = 0; i < 8; i++) v[i] = state_[i], v[8 + i] = kInitial[i];
    for (int i = 0; i < 16; i++) words[i] = little(buffer_ + 8 * i, 8);
    v[12] ^= counted_;
    if (final) v[14] = ~v[14];
    if (final && last_) v[15] = ~v[15];
    auto rotate = [](std::uint64_t word, int by) { return word >> by | word << (64 - by); };
    for (int round = 0; round < 12; round++) {
      const unsigned char *order = kOrder[round % 10];
      for (int i = 0; i < 8; i++) {  // four columns, then four diagonals
        int turn = i / 4, column = i % 4;
        std::uint64_t &a = v[column], &b = v[4 + (column + turn) % 4];
        std::uint64_t &c = v[8 + (column + 2 * turn) % 4], &d = v[12 + (column + 3 * turn) % 4];
        a += b + words[order[2 * i]], d = rotate(d ^ a, 32);
        c += d, b = rotate(b ^ c, 24);
        a += b + words[order[2 * i + 1]], d = rotate(d ^ a, 16);
        c += d, b = rotate(b ^ c, 63);
      }
    }
    for (int i = 0; i < 8; i++) state_[i] ^= v[i] ^ v[8 + i];
  }

  bool last_;
  std::uint64_t state_[8], counted_ = 0;
  unsigned char buffer_[128];
  std::size_t held_ = 0;
};

inline std::vector<unsigned char> tree_digest(const unsigned char *data, std::size_t size) {
  std::uint64_t leaves = std::max<std::uint64_t>(1, (size + kLeafBytes - 1) / kLeafBytes);
  Blake2b root(0, 1, true);
  for (std::uint64_t i = 0; i < leaves; i++) {
    std::size_t begin = i * kLeafBytes;
    Blake2b leaf(i, 0, i + 1 == leaves);
    leaf.update(data + begin, std::min<std::size_t>(kLeafBytes, size - begin));
    root.update(leaf.digest().data(), 32);
  }
  return root.digest();
}

// A value of JSON, as far as a manifest needs it.
struct Json {
  std::string text;  // of a string
  std::int64_t number = 0;
  bool null = false;
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members;

  const Json &operator[](const char *name) const {
    for (const auto &member : members)
      if (member.first == name) return member.second;
    throw Error(std::string("the manifest has no ") + name);
  }
};

class JsonReader {
 public:
  explicit JsonReader(std::string text) : text_(std::move(text)) {}

  Json read(int depth = 0) {
    Json value;
    if (depth > 64) fail();
    switch (text_[at_]) {
      case '{':
        list('}', [&] {
          std::string name = string();
          expect(':');
          value.members.emplace_back(std::move(name), read(depth + 1));
        });
        break;
      case '[': list(']', [&] { value.items.push_back(read(depth + 1)); }); break;
      case '"': value.text = string(); break;
      case 'n': value.null = true; word("null"); break;
      case 't': value.number = 1; word("true"); break;
      case 'f': word("false"); break;
      default: number(value);
    }
    return value;
  }

 private:
  [[noreturn]] void fail() { throw Error("the manifest is not readable JSON"); }
  void expect(char c) {
    if (text_[at_++] != c) fail();  // behind the last character there is a 0
  }
  void word(const char *expected) {
    for (; *expected; expected++) expect(*expected);
  }
  template <class Item>
  void list(char end, Item item) {
    at_++;
    if (text_[at_] != end) {
      for (item(); text_[at_] == ','; item()) at_++;
    }
    expect(end);
  }
  void number(Json &value) {
    std::size_t length = text_.find_first_not_of("+-.0123456789eE", at_) - at_;
    std::string digits = text_.substr(at_, length);
    if (digits.empty()) fail();
    value.number = std::strtoll(digits.c_str(), nullptr, 10);
    at_ += digits.size();
  }
  std::string string() {
    std::string result;
    expect('"');
    while (text_[at_] != '"') {
      if (at_ >= text_.size()) fail();
      if (text_[at_] == '\\') {
        static const std::string names = "\"\\/bfnrt", values = "\"\\/\b\f\n\r\t";
        std::size_t which = names.find(text_[++at_]);
        if (text_[at_] == 'u') {  // only for control characters: the manifest is UTF-8
          result += static_cast<char>(std::strtol(text_.substr(at_ + 1, 4).c_str(), nullptr, 16));
          at_ += 4;
        } else if (which == std::string::npos) {
          fail();
        } else {
          result += values[which];
        }
      } else {
        result += text_[at_];
      }
      at_++;
    }
    at_++;
    return result;
  }

  std::string text_;
  std::size_t at_ = 0;
};

// A file in memory, unmapped at the end.
struct Mapping {
  unsigned char *data = nullptr;
  std::size_t size = 0;

  explicit Mapping(const std::string &path) {
    int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat about;
    if (file < 0) throw Error("cannot open " + path + ": " + std::strerror(errno));
    bool regular = fstat(file, &about) == 0 && S_ISREG(about.st_mode);
    size = regular ? static_cast<std::size_t>(about.st_size) : 0;
    void *memory = size ? mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
    close(file);
    if (memory == MAP_FAILED) throw Error(path + " is empty or no regular file");
    data = static_cast<unsigned char *>(memory);
  }
  ~Mapping() { munmap(data, size); }
  Mapping(const Mapping &) = delete;
  Mapping &operator=(const Mapping &) = delete;
};

struct Member {
  std::string name;
  std::uint64_t offset, size;
};

// The members of the zip, once the digest has shown that it is what graphopt wrote.
inline std::vector<Member> members(const Mapping &file) {
  const std::size_t unsealed = 96 + 32, seal = 8 + unsealed, end = 22;
  if (file.size < seal + end || std::memcmp(file.data + file.size - seal, "GOPTSEAL", 8))
    throw Error("the end is missing: the file is truncated, altered or not a .gopt");
  auto digest = tree_digest(file.data, file.size - unsealed);
  if (std::memcmp(digest.data(), file.data + file.size - 32, 32))
    throw Error("the content does not match its digest: the file is damaged or altered");
  const unsigned char *record = file.data + file.size - seal - end;
  std::uint64_t count = little(record + 10, 2), at = little(record + 16, 4);
  if (at == 0xFFFFFFFF) at = little(record - 20 - 56 + 48, 8);
  std::vector<Member> found;
  for (std::uint64_t i = 0; i < count; i++) {
    if (at + 46 > file.size) throw Error("the directory is damaged");
    const unsigned char *entry = file.data + at;
    std::uint64_t name = little(entry + 28, 2), extra = little(entry + 30, 2);
    std::uint64_t size = little(entry + 24, 4), start = little(entry + 42, 4);
    const unsigned char *large = entry + 46 + name + 4;  // zip64's 64-bit numbers
    if (size == 0xFFFFFFFF) size = little(large, 8), large += 16;
    if (start == 0xFFFFFFFF) start = little(large, 8);
    std::uint64_t offset = start + 30;
    if (offset > file.size) throw Error("the directory is damaged");
    offset += little(file.data + start + 26, 2) + little(file.data + start + 28, 2);
    if (offset > file.size || size > file.size - offset) throw Error("the directory is damaged");
    found.push_back({std::string(entry + 46, entry + 46 + name), offset, size});
    at += 46 + name + extra + little(entry + 32, 2);
  }
  return found;
}

inline bool offered(const Feature &feature) {
#if defined(__x86_64__)
  unsigned found[4] = {0}, saved = 0, high;
  if (__get_cpuid(1, &found[0], &found[1], &found[2], &found[3]) && (found[2] >> 27 & 1)) {
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  }
  if (!__get_cpuid_count(feature.where, feature.subleaf, &found[0], &found[1], &found[2], &found[3]))
    return false;
  return (found[feature.which] & feature.bit) && (saved & feature.saved) == feature.saved;
#else
  return getauxval(feature.where) & feature.bit;
#endif
}

// Why code for this architecture with these features cannot run here; empty if it can.
inline std::string unfit(const Json &entry) {
  if (entry["architecture"].text != kArchitecture)
    return "the program is for " + entry["architecture"].text + ", this is " + kArchitecture;
  for (const Json &wanted : entry["features"].items) {
    bool found = false;
    for (const Feature &feature : kFeatures) found |= wanted.text == feature.name && offered(feature);
    if (!found) return "this processor lacks " + wanted.text;
#if defined(__x86_64__)
    // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA: for all threads of the process from now on.
    if (wanted.text == "amx-tile" && syscall(SYS_arch_prctl, 0x1023, 18))
      return "the system does not permit tile registers";
#endif
  }
  return "";
}

inline std::size_t item_bytes(const std::string &dtype) {
  std::size_t digit = dtype.find_first_of("0123456789");
  std::size_t bits = digit == std::string::npos ? 8 : std::strtoul(&dtype[digit], nullptr, 10);
  return bits < 8 ? 1 : bits / 8;
}

inline std::vector<Tensor> tensors(const Json &specs) {
  std::vector<Tensor> found;
  for (const Json &spec : specs.items) {
    Tensor tensor{spec["name"].text, spec["dtype"].text, {}, item_bytes(spec["dtype"].text)};
    for (const Json &dim : spec["shape"].items) {
      tensor.shape.push_back(dim.number);
      tensor.bytes *= static_cast<std::size_t>(dim.number);
    }
    found.push_back(std::move(tensor));
  }
  return found;
}

// TVM's values: a type's number, and 8 bytes behind it.
struct Any {
  std::int32_t type = 0, zero = 0;
  union {
    std::int64_t number = 0;
    void *address;
  };
};
using Packed = int (*)(void *, Any *, std::int32_t, Any *);

struct Free {
  void operator()(void *memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<unsigned char, Free>;

inline Memory allocate(std::size_t bytes) {
  void *memory = nullptr;
  if (posix_memalign(&memory, 64, bytes + 64)) throw Error("there is no memory");
  return Memory(static_cast<unsigned char *>(memory));
}

struct Module {
  void *handle = nullptr;
  ~Module() {
    if (handle) dlclose(handle);
  }
};

// The workers beside the caller, each waiting at a semaphore of its own.
struct Team {
  Any *context = nullptr;
  unsigned char *semaphores = nullptr;
  std::vector<std::thread> workers;

  sem_t *semaphore(std::size_t task) {
    return reinterpret_cast<sem_t *>(semaphores + task * SEMAPHORE_STRIDE);
  }
  ~Team() {
    if (!workers.empty()) context[STOP].number = 1;
    for (std::size_t i = 0; i < workers.size(); i++) sem_post(semaphore(i + 1));
    for (std::thread &worker : workers) worker.join();
  }
};

}  // namespace detail

class Program {
 public:
  // Opens a file. `threads` share each run, at most those that it was compiled for; a file with
  // several programs, for several shapes of the inputs, gives that with the number `which`.
  explicit Program(const std::string &path, int threads = 1, std::size_t which = 0)
      : file_(path) {
    using namespace detail;
    std::vector<Member> members = detail::members(file_);
    auto text = [&](const Member &member) {
      return std::string(file_.data + member.offset, file_.data + member.offset + member.size);
    };
    if (members.empty() || members[0].name != "manifest.json") throw Error("there is no manifest");
    Json manifest = JsonReader(text(members[0])).read();
    if (manifest["schema"].number != kSchema || manifest["abi"].number != kAbi)
      throw Error("the file is of another version of graphopt than graphopt.hpp");
    if (!manifest["encryption"].null) throw Error("the file is encrypted");
    if (!manifest["hosts"].items.empty())
      throw Error("the program has control flow or shapes that depend on data, which need Python");
    if (which >= manifest["entries"].items.size() || members.size() < which + 3)
      throw Error("the file has no such program");
    const Json &entry = manifest["entries"].items[which], &plan = entry["plan"];
    std::string reason = unfit(entry);
    if (!reason.empty()) throw Error(reason);
    inputs_ = tensors(plan["inputs"]);
    outputs_ = tensors(plan["outputs"]);
    const Member &weights = members.back();
    std::uint64_t begin = static_cast<std::uint64_t>(entry["weights_offset"].number);
    std::uint64_t size = static_cast<std::uint64_t>(plan["weight_bytes"].number);
    if (begin > weights.size || size > weights.size - begin) throw Error("weights are missing");
    open_module(text(members[1 + which]));
    int tasks = std::max(1, std::min<int>(threads, static_cast<int>(plan["threads"].number)));
    prepare(plan["arena_bytes"].number, file_.data + weights.offset + begin, tasks);
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

  // From a private copy, so that the very bytes that were checked are executed.
  void open_module(const std::string &code) {
    int file = memfd_create("graphopt-module", MFD_CLOEXEC);
    std::size_t done = 0;
    while (file >= 0 && done < code.size()) {
      ssize_t part = write(file, code.data() + done, code.size() - done);
      if (part <= 0) break;
      done += static_cast<std::size_t>(part);
    }
    // The loader tells libraries apart by how their paths are spelled, and numbers of files recur.
    static std::atomic<unsigned> opened{0};
    std::string path = "/proc/self/fd/";
    for (unsigned number = opened++, i = 0; i < 32; i++) path += number >> i & 1 ? "./" : "/";
    if (done == code.size() && file >= 0)
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

  void prepare(std::int64_t arena_bytes, unsigned char *weights, int tasks) {
    using namespace detail;
    std::size_t count = inputs_.size() + outputs_.size();
    staging_.resize(count);
    std::size_t slots = (FIRST_IO + count) * sizeof(Any);
    std::size_t barriers = (slots + 63) / 64 * 64, semaphores = barriers + 2 * 64;
    std::size_t bytes = semaphores + static_cast<std::size_t>(tasks) * SEMAPHORE_STRIDE;
    shared_ = allocate(bytes);
    std::memset(shared_.get(), 0, bytes);
    arena_ = allocate(static_cast<std::size_t>(arena_bytes));
    context_ = team_.context = reinterpret_cast<Any *>(shared_.get());
    team_.semaphores = shared_.get() + semaphores;
    context_[NUM_TASKS].number = tasks;
    context_[BARRIER].address = shared_.get() + barriers;
    context_[SOLO_BARRIER].address = shared_.get() + barriers + 64;
    context_[SEMAPHORES].address = team_.semaphores;
    context_[ARENA].address = arena_.get();
    context_[WEIGHTS].address = weights;
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

  detail::Mapping file_;
  std::vector<Tensor> inputs_, outputs_;
  std::vector<detail::Memory> staging_;
  detail::Memory shared_, arena_;
  detail::Any *context_ = nullptr;
  detail::Module module_;
  detail::Packed run_ = nullptr, serve_ = nullptr;
  detail::Team team_;  // last: its threads end before what they use
};

}  // namespace graphopt

#endif
