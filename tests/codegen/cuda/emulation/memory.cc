// Device memory of the emulated GPU, and which threads accessed which byte last.
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "block.h"

namespace emulation {
namespace {

constexpr uint32_t kNobody = 0xFFFFFFFF, kMany = 0xFFFFFFFE;
constexpr size_t kGuard = 4096;  // bytes on both sides of an allocation that nothing else is in

// The last writer and reader of a byte, and the clocks of their accesses.
struct Shadow {
  uint32_t writer = kNobody, wrote = 0, reader = kNobody, read = 0;
};

struct Allocation {
  size_t nbytes;
  std::vector<Shadow> bytes;  // made when a kernel first accesses it
};

std::map<const unsigned char*, Allocation>& allocations() {
  static auto* all = new std::map<const unsigned char*, Allocation>();
  return *all;
}

std::vector<Shadow> shared_bytes;

std::map<const unsigned char*, Allocation>::iterator find(const unsigned char* at) {
  auto& all = allocations();
  auto next = all.upper_bound(at);
  if (next == all.begin()) return all.end();
  --next;
  return at < next->first + next->second.nbytes ? next : all.end();
}

bool ordered(const Observer& who, uint32_t other, uint32_t clock, uint32_t launch_start) {
  if (other == kNobody || other == who.thread || clock < launch_start) return true;
  if (other == kMany) return clock < who.block_synced;
  if (other >> 10 != who.thread >> 10) return false;  // blocks are never ordered
  if (clock < who.block_synced) return true;
  return other >> 5 == who.thread >> 5 && clock < who.warp_synced;
}

uint32_t conflict(Shadow* bytes, size_t count, const Observer& who, bool write, uint32_t start) {
  for (size_t i = 0; i < count; ++i) {
    Shadow& byte = bytes[i];
    if (!ordered(who, byte.writer, byte.wrote, start)) return byte.writer + 1;
    if (write) {
      if (!ordered(who, byte.reader, byte.read, start)) return byte.reader + 1;
      byte.writer = who.thread;
      byte.wrote = who.now;
      byte.reader = kNobody;
    } else {
      bool alone = byte.reader == kNobody || byte.reader == who.thread ||
                   ordered(who, byte.reader, byte.read, start);
      byte.reader = alone ? who.thread : kMany;
      byte.read = who.now;
    }
  }
  return 0;
}

}  // namespace

void* allocate(size_t nbytes) {
  size_t room = (nbytes + 2 * kGuard + 255) / 256 * 256;
  auto* memory = static_cast<unsigned char*>(std::aligned_alloc(256, room));
  if (memory == nullptr) return nullptr;
  std::memset(memory, 0xFF, room);  // NaN in every float: what is read before it is written shows
  allocations()[memory + kGuard] = {nbytes, {}};
  return memory + kGuard;
}

size_t release(void* memory) {
  auto found = allocations().find(static_cast<unsigned char*>(memory));
  if (found == allocations().end()) return 0;
  size_t nbytes = found->second.nbytes;
  allocations().erase(found);
  std::free(static_cast<unsigned char*>(memory) - kGuard);
  return nbytes;
}

bool is_allocated(const void* memory, size_t nbytes) {
  auto at = static_cast<const unsigned char*>(memory);
  auto found = find(at);
  return found != allocations().end() && at + nbytes <= found->first + found->second.nbytes;
}

void forget_accesses() {
  for (auto& [_, allocation] : allocations()) allocation.bytes.clear();
}

void size_shared(size_t nbytes) { shared_bytes.assign(nbytes, Shadow()); }

uint32_t conflict_in_shared(const Observer& who, size_t offset, size_t nbytes, bool write) {
  return conflict(&shared_bytes[offset], nbytes, who, write, 0);
}

uint32_t conflict_in_device(const Observer& who, const Access& access, uint32_t launch_start) {
  auto found = find(access.at);
  Allocation& allocation = found->second;
  if (allocation.bytes.empty()) allocation.bytes.resize(allocation.nbytes);
  Shadow* bytes = &allocation.bytes[access.at - found->first];
  return conflict(bytes, access.nbytes, who, access.write, launch_start);
}

}  // namespace emulation
