// Runs the threads of a block as fibers, in a chosen order, and finds what a GPU may do otherwise.
#include "block.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <vector>

using emulation::Extent;

// What kernels read as threadIdx and so on: those of the thread that runs.
extern "C" {
struct Position {
  Extent thread, block, block_extent, grid_extent;
} emulated_position;
}

namespace emulation {
namespace {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 256 << 10;
constexpr size_t kGuard = 4096;  // around shared variables there are no constants of the library

enum class State { kReady, kAtBarrier, kInWarp, kDone };
enum class WarpCall { kShuffle, kSync, kActiveMask };

struct Fiber {
  ucontext_t first;
  jmp_buf resume;
  bool started = false;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state = State::kDone;
  Extent index{};
  int line = 0;  // of the barrier or warp function that it waits in
  // A warp function's call and result:
  WarpCall call{};
  uint32_t mask = 0, active = 0;
  int source = 0;  // lane to read; negative: its own
  unsigned char value[16], result[16];
};

// Fibers are kept for the next launch: one that is done waits to run its kernel again.
std::vector<std::unique_ptr<Fiber>> fibers;
jmp_buf scheduler;
Fiber* current = nullptr;
Launch launch;
std::string failure;

std::vector<unsigned char> dynamic;  // shared memory of dynamic size, aligned by hand
unsigned char* dynamic_start = nullptr;

Observer observer;
uint32_t clock_now = 1, launch_start = 1, block_synced = 1;
std::vector<uint32_t> warp_synced;
int barrier_line = 0;

unsigned thread_count() { return launch.block.count(); }

std::string place(uint32_t thread) {
  std::ostringstream text;
  text << "thread " << (thread & 1023) << " of block " << (thread >> 10);
  return text.str();
}

// Leaves the current fiber until the scheduler resumes it.
__attribute__((noinline)) void wait() {
  Fiber* me = current;
  if (_setjmp(me->resume) == 0) _longjmp(scheduler, 1);
  asm volatile("" ::: "memory");
}

[[noreturn]] void fail(const std::string& reason) {
  if (failure.empty()) failure = reason;
  current->started = false;  // abandoned in the middle of the kernel: starts afresh next time
  _longjmp(scheduler, 1);
}

void fiber_main() {
  for (;;) {
    launch.body(launch.arguments);
    current->state = State::kDone;
    wait();
  }
}

__attribute__((noinline)) void resume(unsigned thread) {
  Fiber* fiber = current = fibers[thread].get();
  emulated_position.thread = fiber->index;
  observer.thread = (observer.thread & ~1023u) | thread;
  observer.warp_synced = warp_synced[thread / kWarp];
  if (_setjmp(scheduler) != 0) return;
  if (fiber->started) _longjmp(fiber->resume, 1);
  fiber->started = true;
  getcontext(&fiber->first);
  fiber->first.uc_stack = {fiber->stack.get(), 0, kStack};
  fiber->first.uc_link = nullptr;
  makecontext(&fiber->first, fiber_main, 0);
  setcontext(&fiber->first);
}

// Completes the warp function that lanes [begin, end) wait in; false if none waits.
bool release_warp(unsigned begin, unsigned end) {
  uint32_t waiting = 0, asking = 0;
  for (unsigned i = begin; i < end; ++i) {
    if (fibers[i]->state != State::kInWarp) continue;
    waiting |= 1u << (i - begin);
    if (fibers[i]->call == WarpCall::kActiveMask) asking |= 1u << (i - begin);
  }
  if (waiting == 0) return false;
  // Lanes that ask which are active go on first, so that they may meet the others.
  uint32_t going = asking ? asking : waiting;
  const Fiber& one = *fibers[begin + __builtin_ctz(going)];
  for (unsigned i = begin; i < end; ++i) {
    if (!(going >> (i - begin) & 1)) continue;
    Fiber& lane = *fibers[i];
    lane.active = going;
    lane.state = State::kReady;
    if (asking) continue;
    if (lane.call != one.call || lane.line != one.line || lane.mask != one.mask ||
        lane.mask != going) {
      std::ostringstream text;
      text << "a warp function in line " << lane.line << " is called with the mask " << std::hex
           << lane.mask << " by the lanes " << going;
      failure = text.str();
      return true;
    }
    if (lane.call != WarpCall::kShuffle) continue;
    int source = lane.source < 0 ? static_cast<int>(i - begin) : lane.source;
    if (going >> source & 1) {
      std::memcpy(lane.result, fibers[begin + source]->value, sizeof lane.result);
    } else {
      std::memset(lane.result, 0xFF, sizeof lane.result);  // undefined: an inactive lane's value
    }
  }
  if (!asking && one.call == WarpCall::kSync) warp_synced[begin / kWarp] = ++clock_now;
  observer.now = clock_now;
  return true;
}

// Completes a barrier that all threads that are left wait at; false if all are done.
bool release_barrier() {
  int line = 0;
  for (unsigned i = 0; i < thread_count(); ++i) {
    Fiber& fiber = *fibers[i];
    if (fiber.state != State::kAtBarrier) continue;
    if (line != 0 && fiber.line != line) {
      std::ostringstream text;
      text << "threads of a block wait at different barriers, in lines " << line << " and "
           << fiber.line;
      failure = text.str();
    }
    line = fiber.line;
    fiber.state = State::kReady;
  }
  if (line == 0) return false;
  barrier_line = line;
  observer.block_synced = block_synced = observer.now = ++clock_now;
  return true;
}

// The order in which threads and blocks run: EMULATED_ORDER is forward, reverse or a seed.
class Order {
 public:
  Order() {
    const char* text = std::getenv("EMULATED_ORDER");
    name_ = text == nullptr ? "forward" : text;
    random_.seed(static_cast<unsigned>(std::atoi(name_.c_str())));
  }
  std::vector<unsigned> of(unsigned count) {
    std::vector<unsigned> order(count);
    std::iota(order.begin(), order.end(), 0u);
    if (name_ == "reverse") {
      std::reverse(order.begin(), order.end());
    } else if (name_ != "forward") {
      std::shuffle(order.begin(), order.end(), random_);
    }
    return order;
  }

 private:
  std::string name_;
  std::mt19937 random_;
};

void run_block(Order& order) {
  unsigned threads = thread_count();
  std::memset(launch.shared, 0xFF, launch.shared_end - launch.shared);
  std::memset(dynamic_start, 0xFF, launch.dynamic_shared);
  barrier_line = 0;
  observer.block_synced = block_synced = observer.now = ++clock_now;
  size_shared(launch.shared_end - launch.shared + launch.dynamic_shared);
  warp_synced.assign((threads + kWarp - 1) / kWarp, clock_now);
  for (unsigned i = 0; i < threads; ++i) fibers[i]->state = State::kReady;
  for (;;) {
    bool ran = false;
    for (unsigned i : order.of(threads)) {
      if (fibers[i]->state != State::kReady) continue;
      resume(i);
      ran = true;
      if (!failure.empty()) return;
    }
    if (ran) continue;
    bool released = false;
    for (unsigned i = 0; i < threads; i += kWarp)
      released |= release_warp(i, std::min(threads, i + kWarp));
    if (!released) released = release_barrier();
    if (!failure.empty() || !released) return;
  }
}

// How the current thread may not access memory; empty if it may.
std::string refusal(const Access& access) {
  auto inside = [&](const void* begin, const void* end) {
    return access.at >= begin && access.at + access.nbytes <= end;
  };
  if (inside(current->stack.get(), current->stack.get() + kStack)) return "";
  if (inside(&emulated_position, &emulated_position + 1)) return "";
  const char* what = access.write ? " writes" : " reads";
  uint32_t other = 0;
  const char* memory = "shared";
  size_t fixed = launch.shared_end - launch.shared;
  if (inside(launch.shared, launch.shared_end)) {
    other = conflict_in_shared(observer, access.at - launch.shared, access.nbytes, access.write);
  } else if (inside(dynamic_start, dynamic_start + launch.dynamic_shared)) {
    size_t offset = fixed + (access.at - dynamic_start);
    other = conflict_in_shared(observer, offset, access.nbytes, access.write);
  } else if (is_allocated(access.at, access.nbytes)) {
    memory = "device";
    other = conflict_in_device(observer, access, launch_start);
  } else if (access.write || !inside(launch.image, launch.image_end) ||
             inside(launch.shared - kGuard, launch.shared_end + kGuard)) {
    std::ostringstream text;
    text << place(observer.thread) << what << " " << access.nbytes
         << " bytes outside of its memory, behind the barrier in line " << barrier_line;
    return text.str();
  }
  if (other == 0) return "";
  std::ostringstream text;
  text << "race: " << place(observer.thread) << what << " " << memory << " memory that "
       << (other - 1 >= 0xFFFFFFFE ? std::string("other threads") : place(other - 1))
       << " accesses at the same time, behind the barrier in line " << barrier_line;
  return text.str();
}

}  // namespace

std::string run(const Launch& what) {
  launch = what;
  failure.clear();
  if (launch.block.count() == 0 || launch.block.count() > 1024) return "invalid block";
  if (launch.grid.count() == 0) return "invalid grid";
  while (fibers.size() < launch.block.count()) fibers.push_back(std::make_unique<Fiber>());
  for (unsigned i = 0; i < launch.block.count(); ++i) {
    unsigned x = launch.block.x, y = launch.block.y;
    fibers[i]->index = {i % x, i / x % y, i / x / y};
  }
  dynamic.resize(launch.dynamic_shared + 256);
  auto address = reinterpret_cast<uintptr_t>(dynamic.data());
  dynamic_start = dynamic.data() + (256 - address % 256);
  emulated_position.block_extent = launch.block;
  emulated_position.grid_extent = launch.grid;
  launch_start = ++clock_now;
  Order order;
  for (unsigned block : order.of(launch.grid.count())) {
    unsigned x = launch.grid.x, y = launch.grid.y;
    emulated_position.block = {block % x, block / x % y, block / x / y};
    observer.thread = block << 10;
    run_block(order);
    if (!failure.empty()) {
      for (auto& fiber : fibers) fiber->started = false;
      break;
    }
  }
  return failure;
}

}  // namespace emulation

// What kernels call: see include/emulated_device.h.
using emulation::current;
using emulation::State;
using emulation::WarpCall;

extern "C" {

void emulated_barrier(int line) {
  current->line = line;
  current->state = State::kAtBarrier;
  emulation::wait();
}

void* emulated_dynamic_shared() { return emulation::dynamic_start; }

static void warp_call(WarpCall call, uint32_t mask, int line) {
  current->call = call;
  current->mask = mask;
  current->line = line;
  current->state = State::kInWarp;
  emulation::wait();
}

// The lanes of a warp that a block has.
static uint32_t lanes() {
  unsigned first = (emulation::observer.thread & 1023) / 32 * 32;
  unsigned count = std::min(32u, emulation::thread_count() - first);
  return count == 32 ? ~0u : (1u << count) - 1;
}

uint32_t emulated_active_mask(int line) {
  warp_call(WarpCall::kActiveMask, 0, line);
  return current->active;
}

void emulated_warp_barrier(uint32_t mask, int line) {
  warp_call(WarpCall::kSync, mask & lanes(), line);
  emulation::observer.warp_synced =
      emulation::warp_synced[(emulation::observer.thread & 1023) / 32];
}

unsigned emulated_lane() { return emulation::observer.thread % 32; }

void emulated_shuffle(void* value, size_t nbytes, uint32_t mask, int source, int line) {
  std::memcpy(current->value, value, nbytes);
  current->source = source;
  warp_call(WarpCall::kShuffle, mask & lanes(), line);
  std::memcpy(value, current->result, nbytes);
}

static void check(const void* at, size_t nbytes, bool write) {
  std::string reason =
      emulation::refusal({static_cast<const unsigned char*>(at), nbytes, write});
  if (!reason.empty()) emulation::fail(reason);
}

// The calls that g++ plants with -fsanitize=thread.
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
#define EMULATE_ACCESS(size)                                            \
  void __tsan_read##size(void* at) { check(at, size, false); }          \
  void __tsan_write##size(void* at) { check(at, size, true); }          \
  void __tsan_unaligned_read##size(void* at) { check(at, size, false); } \
  void __tsan_unaligned_write##size(void* at) { check(at, size, true); }
EMULATE_ACCESS(1)
EMULATE_ACCESS(2)
EMULATE_ACCESS(4)
EMULATE_ACCESS(8)
EMULATE_ACCESS(16)
void __tsan_read_range(void* at, size_t nbytes) { check(at, nbytes, false); }
void __tsan_write_range(void* at, size_t nbytes) { check(at, nbytes, true); }

// g++ guards static variables of classes, even where there is nothing to initialise.
char __tsan_atomic8_load(const volatile char* at, int) { return *at; }

}  // extern "C"
