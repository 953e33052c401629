using Part = std::pair<const char *, std::size_t>;

inline std::string blake2b_digest(const unsigned char *parameters, bool last_node,
                                  const std::vector<Part> &parts) {
  blake2b hash;
  blake2b_begin(&hash, parameters, last_node);
  for (const Part &part : parts)
    blake2b_update(&hash, reinterpret_cast<const unsigned char *>(part.first), part.second);
  std::string digest(parameters[0], '\0');
  blake2b_end(&hash, reinterpret_cast<unsigned char *>(&digest[0]));
  return digest;
}

inline std::string plain_digest(const std::string &text, unsigned char size) {
  const unsigned char parameters[64] = {size, 0, 1, 1};
  return blake2b_digest(parameters, false, {{text.data(), text.size()}});
}

// BLAKE2b in its tree mode (the BLAKE2 paper, section 2.10): two levels, fan-out without limit.
inline std::string tree_digest(const std::vector<Part> &parts) {
  std::uint64_t total = 0;
  for (const Part &part : parts) total += part.second;
  auto node = [](std::uint64_t offset, unsigned char depth, bool last, const std::vector<Part> &of) {
    std::string block = packed({{kDigest, 1}, {0, 1}, {0, 1}, {2, 1}, {kLeafBytes, 4}, {offset, 8},
                                {depth, 1}, {kDigest, 1}}) +
                        std::string(30, '\0') + kPerson;
    return blake2b_digest(reinterpret_cast<const unsigned char *>(block.data()), last, of);
  };
  std::uint64_t leaves = std::max<std::uint64_t>(1, (total + kLeafBytes - 1) / kLeafBytes);
  std::string found;
  for (std::uint64_t i = 0; i < leaves; i++) {
    std::uint64_t skip = i * kLeafBytes, left = kLeafBytes;
    std::vector<Part> leaf;
    for (const Part &part : parts) {
      std::uint64_t from = std::min<std::uint64_t>(skip, part.second);
      std::uint64_t size = std::min<std::uint64_t>(left, part.second - from);
      leaf.push_back({part.first + from, size});
      skip -= from, left -= size;
    }
    found += node(i, 0, i + 1 == leaves, leaf);
  }
  return node(0, 1, true, {{found.data(), found.size()}});
}
