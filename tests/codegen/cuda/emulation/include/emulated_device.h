// CUDA C++ for g++: the part of the language and library that generated kernels use.
//
// Included before each generated source. Threads run as fibers of the emulated driver (block.cc),
// which the functions called emulated_… lead to.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0
#define __CUDA_ARCH__ 900
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define alignas(n) __attribute__((aligned(n)))
// One block runs at a time. The section's bounds tell which memory a block shares.
#define __shared__ static __attribute__((section("emulated_shared")))
#define EMULATED_UNCHECKED __attribute__((no_sanitize_thread, noinline))

struct dim3 {
  unsigned x, y, z;
};

extern "C" {
extern struct EmulatedPosition {
  dim3 thread, block, block_extent, grid_extent;
} emulated_position;
void emulated_barrier(int line);
void* emulated_dynamic_shared();
uint32_t emulated_active_mask(int line);
void emulated_warp_barrier(uint32_t mask, int line);
unsigned emulated_lane();
void emulated_shuffle(void* value, size_t nbytes, uint32_t mask, int source, int line);
}

#define threadIdx emulated_position.thread
#define blockIdx emulated_position.block
#define blockDim emulated_position.block_extent
#define gridDim emulated_position.grid_extent

#define __syncthreads() emulated_barrier(__LINE__)
#define __syncwarp(...) emulated_warp_barrier(emulated_mask(__VA_ARGS__), __LINE__)
#define __activemask() emulated_active_mask(__LINE__)
#define __shfl_sync(...) emulated_shfl(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) emulated_shfl_up(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) emulated_shfl_down(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) emulated_shfl_xor(__LINE__, __VA_ARGS__)

inline uint32_t emulated_mask(uint32_t mask = ~0u) { return mask; }

// source: the lane to read within groups of `width` lanes; outside of the group, one's own.
template <typename T>
inline T emulated_exchange(int line, uint32_t mask, T value, int source, bool inside) {
  emulated_shuffle(&value, sizeof value, mask, inside ? source : -1, line);
  return value;
}
template <typename T>
inline T emulated_shfl(int line, uint32_t mask, T value, int source, int width = 32) {
  int first = emulated_lane() & ~(width - 1);
  return emulated_exchange(line, mask, value, first + (source & (width - 1)), true);
}
template <typename T>
inline T emulated_shfl_down(int line, uint32_t mask, T value, unsigned by, int width = 32) {
  int lane = emulated_lane(), in_group = lane & (width - 1);
  return emulated_exchange(line, mask, value, lane + by, in_group + by < unsigned(width));
}
template <typename T>
inline T emulated_shfl_up(int line, uint32_t mask, T value, unsigned by, int width = 32) {
  int lane = emulated_lane(), in_group = lane & (width - 1);
  return emulated_exchange(line, mask, value, lane - by, unsigned(in_group) >= by);
}
template <typename T>
inline T emulated_shfl_xor(int line, uint32_t mask, T value, int by, int width = 32) {
  int lane = emulated_lane();
  return emulated_exchange(line, mask, value, lane ^ by, (lane ^ by) / width == lane / width);
}

// One thread runs at a time, so a plain update is atomic; the detector is not told of it.
template <typename T>
EMULATED_UNCHECKED T atomicAdd(T* at, T value) {
  T old = *at;
  *at = old + value;
  return old;
}
template <typename T>
EMULATED_UNCHECKED T atomicMax(T* at, T value) {
  T old = *at;
  *at = old > value ? old : value;
  return old;
}
template <typename T>
EMULATED_UNCHECKED T atomicMin(T* at, T value) {
  T old = *at;
  *at = old < value ? old : value;
  return old;
}
template <typename T>
EMULATED_UNCHECKED T atomicExch(T* at, T value) {
  T old = *at;
  *at = value;
  return old;
}
template <typename T>
EMULATED_UNCHECKED T atomicCAS(T* at, T expected, T value) {
  T old = *at;
  if (old == expected) *at = value;
  return old;
}

#define EMULATE_VECTORS(T, name)                                               \
  struct name##1 { T x; };                                                     \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                           \
  struct name##3 { T x, y, z; };                                               \
  struct alignas(sizeof(T) < 8 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                   \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }           \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATE_VECTORS(signed char, char)
EMULATE_VECTORS(unsigned char, uchar)
EMULATE_VECTORS(short, short)
EMULATE_VECTORS(unsigned short, ushort)
EMULATE_VECTORS(int, int)
EMULATE_VECTORS(unsigned, uint)
EMULATE_VECTORS(long long, longlong)
EMULATE_VECTORS(unsigned long long, ulonglong)
EMULATE_VECTORS(float, float)
EMULATE_VECTORS(double, double)

template <typename A, typename B>
inline std::enable_if_t<std::is_arithmetic_v<A>, std::common_type_t<A, B>> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax(T(a), T(b));
  return T(a) > T(b) ? T(a) : T(b);
}
template <typename A, typename B>
inline std::enable_if_t<std::is_arithmetic_v<A>, std::common_type_t<A, B>> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin(T(a), T(b));
  return T(a) < T(b) ? T(a) : T(b);
}
template <typename T>
inline T __ldg(const T* at) { return *at; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(x); }
template <typename To, typename From>
inline To emulated_bits(From from) {
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline int __float_as_int(float x) { return emulated_bits<int>(x); }
inline float __int_as_float(int x) { return emulated_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }

// Products of four bytes: signed or unsigned by the type of the word, as CUDA overloads it.
template <typename A, typename B, typename C>
inline C __dp4a(A a, B b, C c) {
  using ByteA = std::conditional_t<std::is_signed_v<A>, int8_t, uint8_t>;
  using ByteB = std::conditional_t<std::is_signed_v<B>, int8_t, uint8_t>;
  for (int shift = 0; shift < 32; shift += 8) c += C(ByteA(a >> shift)) * C(ByteB(b >> shift));
  return c;
}
