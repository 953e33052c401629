// A file in memory, unmapped at the end.
struct Mapping {
  const char *data = nullptr;
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
    data = static_cast<const char *>(memory);
  }
  ~Mapping() { munmap(const_cast<char *>(data), size); }
  Mapping(const Mapping &) = delete;
  Mapping &operator=(const Mapping &) = delete;
};

// A file whose structure, signature and digest are right. All but the weights is a private copy,
// and what was checked is that copy.
struct Sealed {
  std::unique_ptr<Mapping> file;
  std::string head, tail;
  Layout layout;

  Sealed(const std::string &path, const TrustedKeys &trusted) : file(new Mapping(path)) {
    std::uint64_t offset = read_directory(file->data, file->size);
    tail.assign(file->data + offset, file->size - offset);
    layout = read_layout(offset, tail);
    const Member &weights = layout.members.back();
    head.assign(file->data, weights.offset);
    for (const Member &member : layout.members)
      if (head.compare(member.offset - member.header.size(), member.header.size(), member.header))
        damaged("a member's header is altered");
    std::string directory = tail.substr(0, tail.size() - kUnsealed);
    std::string digest = tail.substr(tail.size() - kDigest);
    // Before the weights, which may be gigabytes, are looked at.
    trusted.require(tail.substr(directory.size(), kUnsealed - kDigest),
                    std::string(kPurpose, sizeof kPurpose) + plain_digest(head, 64) +
                        plain_digest(directory, 64) + digest);
    Part stored = {file->data + weights.offset, weights.size};
    if (tree_digest({{head.data(), head.size()}, stored, {tail.data(), directory.size()}}) != digest)
      damaged("its content does not match its digest; it is damaged or altered");
  }

  std::string text(std::size_t member) const {
    return head.substr(layout.members[member].offset, layout.members[member].size);
  }
};
