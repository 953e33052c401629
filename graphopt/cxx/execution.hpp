inline std::size_t item_bytes(const std::string &dtype) {
  static const std::pair<const char *, std::size_t> sizes[] = {
@ITEM_BYTES@
  };
  for (const auto &size : sizes)
    if (dtype == size.first) return size.second;
  throw Error("the manifest has an unknown element type");
}

inline std::vector<Tensor> tensors(const Json &specs) {
  std::vector<Tensor> found;
  for (const Json &spec : specs.list()) {
    const std::string &dtype = spec["dtype"].string();
    Tensor tensor{spec["name"].string(), dtype, {}, item_bytes(dtype)};
    for (const Json &item : spec["shape"].list()) {
      std::uint64_t dim = item.integer(kMaxBytes);
      tensor.shape.push_back(static_cast<std::int64_t>(dim));
      if (__builtin_mul_overflow(tensor.bytes, dim, &tensor.bytes) || tensor.bytes > kMaxBytes)
        throw Error("a tensor is larger than memory");
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

struct Module {
  void *handle = nullptr;
  ~Module() {
    if (handle) dlclose(handle);
  }
};

// The workers beside the caller, each waiting at a semaphore of its own.
struct Team {
  Any *context = nullptr;
  char *semaphores = nullptr;
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
