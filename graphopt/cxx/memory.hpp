struct Release {
  std::size_t secret = 0;  // as many bytes are wiped

  void operator()(char *memory) const {
    if (secret) explicit_bzero(memory, secret);
    std::free(memory);
  }
};
using Memory = std::unique_ptr<char, Release>;

inline Memory allocate(std::size_t bytes, bool secret = false) {
  void *memory = nullptr;
  if (bytes > SIZE_MAX - 64 || posix_memalign(&memory, 64, bytes + 64))
    throw Error("there is no memory");
  return Memory(static_cast<char *>(memory), Release{secret ? bytes : 0});
}

// Bytes that are wiped when they are released.
struct Secret {
  Memory data = nullptr;
  std::size_t size = 0;

  Secret() = default;
  explicit Secret(std::size_t bytes) : data(allocate(bytes, true)), size(bytes) {}
};
