// Loads .gopt files with graphopt.hpp in all the ways that its tests ask for: see commands below.
#include "graphopt.hpp"

#include <cinttypes>
#include <fstream>
#include <iostream>
#include <map>

using graphopt::Keys;
using graphopt::Program;

static std::string outcome(const std::string &path, const Keys &keys) {
  try {
    Program program(path, 2, 0, keys);
    return "ok";
  } catch (const graphopt::Error &error) {
    return error.what();
  }
}

// load FILE…: a line for each.
static void load(const std::vector<std::string> &words, const Keys &keys) {
  for (const std::string &path : words) std::cout << outcome(path, keys) << "\n";
}

struct File {
  int handle;
  explicit File(const std::string &path) : handle(open(path.c_str(), O_RDWR | O_CLOEXEC)) {}
  ~File() { close(handle); }
};

static void report(const std::map<std::string, int> &counts) {
  for (const auto &entry : counts) std::cout << entry.second << "\t" << entry.first << "\n";
}

// flip FILE BEGIN END STEP: how often which outcome has a file with one bit changed.
static void flip(const std::vector<std::string> &words, const Keys &keys) {
  File file(words[0]);
  std::map<std::string, int> counts;
  for (long at = std::stol(words[1]); at < std::stol(words[2]); at += std::stol(words[3])) {
    unsigned char byte, bad;
    if (pread(file.handle, &byte, 1, at) != 1) std::abort();
    bad = static_cast<unsigned char>(byte ^ 1 << at % 8);
    if (pwrite(file.handle, &bad, 1, at) != 1) std::abort();
    counts[outcome(words[0], keys)]++;
    if (pwrite(file.handle, &byte, 1, at) != 1) std::abort();
  }
  report(counts);
}

// cut FILE: the same for a file that is shorter and shorter.
static void cut(const std::vector<std::string> &words, const Keys &keys) {
  File file(words[0]);
  std::map<std::string, int> counts;
  for (off_t size = lseek(file.handle, 0, SEEK_END); size-- > 0;) {
    if (ftruncate(file.handle, size)) std::abort();
    counts[outcome(words[0], keys)]++;
  }
  report(counts);
}

// run FILE INPUT: the first output's bytes in hexadecimal.
static void print_result(Program &program, const std::string &input) {
  std::vector<char> x(program.inputs()[0].bytes), y(program.outputs()[0].bytes);
  std::ifstream(input, std::ios::binary).read(x.data(), static_cast<std::streamsize>(x.size()));
  program.run({x.data()}, {y.data()});
  for (char byte : y) std::printf("%02x", static_cast<unsigned char>(byte));
}

static void run(const std::vector<std::string> &words, const Keys &keys) {
  Program program(words[0], 2, 0, keys);
  print_result(program, words[1]);
}

#ifdef GRAPHOPT_OPENSSL
// readme INPUT: run, with what the README shows.
static void readme(const std::vector<std::string> &words, const Keys &) {
#include "readme.inc"
  print_result(program, words[0]);
}
#endif

// Whether all bits of `inverted` turned over are somewhere in this process's memory.
static bool in_memory(const std::string &inverted) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    std::uintptr_t low, high;
    char readable;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " %c", &low, &high, &readable) != 3)
      std::abort();
    if (readable != 'r' || line.find("[v") != std::string::npos) continue;
    for (std::uintptr_t at = low; at + inverted.size() <= high; at++) {
      std::size_t same = 0;
      while (same < inverted.size() &&
             (reinterpret_cast<const char *>(at)[same] ^ inverted[same]) == -1)
        same++;
      if (same == inverted.size()) return true;
    }
  }
  return false;
}

// secrets FILE WEIGHTS KEY: whether memory holds these bytes, given with all bits turned over, while
// the program is there, and after.
static void secrets(const std::vector<std::string> &words, const Keys &keys) {
  auto found = [&] {
    for (int i : {1, 2}) {
      std::string inverted;
      for (std::size_t at = 0; at < words[i].size(); at += 2)
        inverted += static_cast<char>(std::stoi(words[i].substr(at, 2), nullptr, 16));
      std::cout << in_memory(inverted) << " ";
    }
  };
  {
    Program program(words[0], 2, 0, keys);
    found();
  }
  found();
}

// layout NAME:SIZE:CRC…: the zip around members, in hexadecimal.
static void layout(const std::vector<std::string> &words, const Keys &) {
  std::vector<graphopt::detail::Member> members;
  for (const std::string &word : words) {
    std::size_t first = word.find(':'), second = word.rfind(':');
    members.push_back({word.substr(0, first), std::stoull(word.substr(first + 1)),
                       std::stoull(word.substr(second + 1))});
  }
  auto made = graphopt::detail::layout(members);
  auto hex = [](const std::string &text) {
    for (char byte : text) std::printf("%02x", static_cast<unsigned char>(byte));
    std::printf("\n");
  };
  for (const auto &member : made.members) {
    std::printf("%" PRIu64 "\n", member.offset);
    hex(member.header);
  }
  std::printf("%" PRIu64 "\n", made.directory_offset);
  hex(made.directory);
  auto read = graphopt::detail::read_layout(made.directory_offset,
                                            made.directory + std::string(136, '\0'));
  if (read.directory != made.directory) std::abort();
}

int main(int argc, char **argv) {
  Keys keys;
  int at = 1;
  for (; at + 1 < argc && argv[at][0] == '-'; at += 2) {
    std::string option = argv[at], value = argv[at + 1];
    if (option == "--trust") keys.trusted.push_back(value);
    if (option == "--key-file") keys.key_file = value;
    if (option == "--passphrase") keys.passphrase = value;
  }
  const std::map<std::string, void (*)(const std::vector<std::string> &, const Keys &)> commands = {
      {"load", load},
      {"flip", flip},
      {"cut", cut},
      {"run", run},
#ifdef GRAPHOPT_OPENSSL
      {"readme", readme},
#endif
      {"secrets", secrets},
      {"layout", layout},
  };
  try {
    commands.at(argv[at])(std::vector<std::string>(argv + at + 1, argv + argc), keys);
  } catch (const graphopt::Error &error) {
    std::cout << error.what() << "\n";
  }
}
