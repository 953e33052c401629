// The zip around the members has one canonical form. From the names, sizes and checksums in the
// directory all headers are built anew and compared with the file's, so there are no gaps, hidden
// members, second meanings or compressed members. (Fields: PKWARE's APPNOTE 6.3.10, 4.3 to 4.5.)

constexpr std::uint64_t kPage = 4096, kLimit = 0xFFFFFFFF, kMaxDirectory = 1 << 20;
constexpr std::size_t kDigest = 32, kUnsealed = 96 + kDigest, kSeal = 8 + kUnsealed;
constexpr std::size_t kEnd = 22, kEnd64 = 56, kLocator64 = 20, kCentral = 46;

struct Member {
  std::string name;
  std::uint64_t size, crc;
  std::string header = {};  // ends where the member's bytes begin,
  std::uint64_t offset = 0;  // here
};

struct Layout {
  std::vector<Member> members;
  std::string directory;  // with the end records, without the seal
  std::uint64_t directory_offset;
};

[[noreturn]] inline void damaged(const std::string &reason) {
  throw Error("the file is refused: " + reason);
}

inline std::uint64_t little(const char *at, int bytes) {
  std::uint64_t value = 0;
  for (int i = bytes; i-- > 0;) value = value << 8 | static_cast<unsigned char>(at[i]);
  return value;
}

// Numbers, little-endian, each with its bytes.
inline std::string packed(std::initializer_list<std::pair<std::uint64_t, int>> fields) {
  std::string result;
  for (const auto &field : fields)
    for (int i = 0; i < field.second; i++) result += static_cast<char>(field.first >> 8 * i);
  return result;
}

constexpr std::uint64_t kDate = 1 << 5 | 1;  // 1980-01-01

inline std::string local_header(const Member &member, std::uint64_t start) {
  bool big = member.size >= kLimit;
  std::string extra;
  if (big) extra = packed({{1, 2}, {16, 2}, {member.size, 8}, {member.size, 8}});
  if (member.name == "weights.bin") {  // which begin on a page
    std::uint64_t used = start + 30 + member.name.size() + extra.size() + 6;
    std::uint64_t padding = (kPage - used % kPage) % kPage;
    extra += packed({{0xD935, 2}, {2 + padding, 2}, {kPage, 2}}) + std::string(padding, '\0');
  }
  std::uint64_t size = big ? kLimit : member.size, version = big ? 45 : 20;
  return packed({{0x04034B50, 4}, {version, 2}, {0, 2}, {0, 2}, {0, 2}, {kDate, 2},
                 {member.crc, 4}, {size, 4}, {size, 4}, {member.name.size(), 2},
                 {extra.size(), 2}}) +
         member.name + extra;
}

inline std::string central_header(const Member &member, std::uint64_t start) {
  std::string values;
  std::uint64_t size = member.size, offset = start;
  if (member.size >= kLimit) values = packed({{size, 8}, {size, 8}}), size = kLimit;
  if (start >= kLimit) values += packed({{start, 8}}), offset = kLimit;
  std::string extra = values.empty() ? "" : packed({{1, 2}, {values.size(), 2}}) + values;
  std::uint64_t version = values.empty() ? 20 : 45;
  return packed({{0x02014B50, 4}, {3 << 8 | version, 2}, {version, 2}, {0, 2}, {0, 2}, {0, 2},
                 {kDate, 2}, {member.crc, 4}, {size, 4}, {size, 4}, {member.name.size(), 2},
                 {extra.size(), 2}, {0, 2}, {0, 2}, {0, 2}, {0100644u << 16, 4}, {offset, 4}}) +
         member.name + extra;
}

// The one layout of members, which have names, sizes and checksums, in this order.
inline Layout layout(std::vector<Member> members) {
  std::uint64_t at = 0, count = members.size();
  std::string directory;
  for (Member &member : members) {
    member.header = local_header(member, at);
    directory += central_header(member, at);
    member.offset = at + member.header.size();
    at = member.offset + member.size;
  }
  std::uint64_t length = directory.size();
  if (at >= kLimit)
    directory += packed({{0x06064B50, 4}, {kEnd64 - 12, 8}, {3 << 8 | 45, 2}, {45, 2}, {0, 4},
                         {0, 4}, {count, 8}, {count, 8}, {length, 8}, {at, 8}}) +
                 packed({{0x07064B50, 4}, {0, 4}, {at + length, 8}, {1, 4}});
  directory += packed({{0x06054B50, 4}, {0, 2}, {0, 2}, {count, 2}, {count, 2}, {length, 4},
                       {std::min(at, kLimit), 4}, {kSeal, 2}});
  return {std::move(members), std::move(directory), at};
}

// Where the directory begins in a file of `size` bytes.
inline std::uint64_t read_directory(const char *data, std::size_t size) {
  if (size < kSeal + kEnd || std::memcmp(data + size - kSeal, "GOPTSEAL", 8))
    damaged("its end is missing: it is truncated, altered or not a .gopt");
  const char *end = data + size - kSeal - kEnd;
  std::uint64_t length = little(end + 12, 4), offset = little(end + 16, 4), records = kEnd;
  if (length == kLimit || offset == kLimit) {
    records += kEnd64 + kLocator64;
    if (size < records + kSeal) damaged("its end record is altered");
    end -= kEnd64 + kLocator64;
    length = little(end + 40, 8), offset = little(end + 48, 8);
  }
  if (length > kMaxDirectory) damaged("its directory is too large");
  if (offset > size || offset + length + records + kSeal != size)
    damaged("bytes are missing or were added");
  return offset;
}

// The layout of a file whose bytes from `offset` to the end are `tail`. Every byte of `tail` but
// the seal is accounted for; the headers elsewhere are for the caller to compare.
inline Layout read_layout(std::uint64_t offset, const std::string &tail) {
  std::vector<Member> members;
  std::size_t at = 0;
  while (tail.size() - at >= kCentral && little(&tail[at], 4) == 0x02014B50) {
    const char *entry = &tail[at];
    std::uint64_t packed_size = little(entry + 20, 4), size = little(entry + 24, 4);
    std::uint64_t name = little(entry + 28, 2), extra = little(entry + 30, 2);
    std::string which = "member " + std::to_string(members.size());
    at += kCentral + name + extra + little(entry + 32, 2);
    if (at > tail.size()) damaged("its directory is truncated");
    if (little(entry + 8, 2) & 1) damaged(which + " is encrypted as zips are");
    if (little(entry + 10, 2)) damaged(which + " is compressed; a .gopt stores its members");
    if (size == kLimit || packed_size == kLimit) {
      if (extra < 20) damaged("the sizes of " + which + " are missing");
      size = little(entry + kCentral + name + 4, 8);
      packed_size = little(entry + kCentral + name + 12, 8);
    }
    if (size != packed_size || size > offset) damaged(which + " claims another size than it has");
    members.push_back({std::string(entry + kCentral, name), size, little(entry + 16, 4)});
  }
  for (std::size_t i = 0, count = members.size(); i < count; i++) {
    std::string name = "entries/" + std::to_string(i - 1) + "/module.so";
    if (i == 0) name = "manifest.json";
    if (i + 1 == count) name = "weights.bin";
    if (members[i].name != name)
      damaged("member " + std::to_string(i) + " is not " + name + ", which belongs there");
  }
  if (members.size() < 2) damaged("it has no manifest or no weights");
  Layout made = layout(std::move(members));
  if (made.directory_offset != offset || made.directory != tail.substr(0, tail.size() - kSeal))
    damaged("its directory is not the one graphopt writes for these members");
  return made;
}
