// half-precision numbers of CUDA: each operation in float, rounded to the nearest half, which gives
// the same bits as arithmetic in half does.
#pragma once

struct __half {
  _Float16 value;

  __half() = default;
  __half(const __half&) = default;
  __half(const volatile __half& other) : value(other.value) {}
  template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
  __half(T number) : value(static_cast<_Float16>(number)) {}
  __half& operator=(const __half&) = default;
  void operator=(const __half& other) volatile { value = other.value; }
  operator float() const { return static_cast<float>(value); }
  operator float() const volatile { return static_cast<float>(value); }
  __half operator-() const { return __half(-static_cast<float>(value)); }
};
using half = __half;

#define EMULATE_HALF(op)                                                          \
  inline half operator op(half a, half b) { return half(float(a) op float(b)); } \
  inline half& operator op##=(half& a, half b) { return a = a op b; }
EMULATE_HALF(+)
EMULATE_HALF(-)
EMULATE_HALF(*)
EMULATE_HALF(/)
#undef EMULATE_HALF
#define EMULATE_HALF(op) \
  inline bool operator op(half a, half b) { return float(a) op float(b); }
EMULATE_HALF(==)
EMULATE_HALF(!=)
EMULATE_HALF(<)
EMULATE_HALF(<=)
EMULATE_HALF(>)
EMULATE_HALF(>=)
#undef EMULATE_HALF

struct alignas(4) __half2 {
  half x, y;
};
using half2 = __half2;
inline half2 make_half2(half x, half y) { return {x, y}; }
inline half2 __halves2half2(half x, half y) { return {x, y}; }

inline half __float2half_rn(float x) { return half(x); }
inline half __float2half(float x) { return half(x); }
inline float __half2float(half x) { return float(x); }
inline bool __hgt(half a, half b) { return a > b; }
inline bool __hlt(half a, half b) { return a < b; }
inline bool __hisnan(half x) { return std::isnan(float(x)); }
inline half __hfma(half a, half b, half c) { return half(double(float(a)) * float(b) + float(c)); }
inline half2 __hfma2(half2 a, half2 b, half2 c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
inline short __half_as_short(half x) { return emulated_bits<short>(x); }
inline unsigned short __half_as_ushort(half x) { return emulated_bits<unsigned short>(x); }
inline half __short_as_half(short x) { return emulated_bits<half>(x); }
inline half __ushort_as_half(unsigned short x) { return emulated_bits<half>(x); }
inline half __habs(half x) { return half(std::fabs(float(x))); }
inline half __shfl_value(half x) { return x; }

#define EMULATE_HALF(name, function) \
  inline half name(half x) { return half(function(float(x))); }
EMULATE_HALF(hexp, std::exp)
EMULATE_HALF(hexp2, std::exp2)
EMULATE_HALF(hlog, std::log)
EMULATE_HALF(hlog2, std::log2)
EMULATE_HALF(hlog10, std::log10)
EMULATE_HALF(hsqrt, std::sqrt)
EMULATE_HALF(hrsqrt, 1.0f / std::sqrt)
EMULATE_HALF(hsin, std::sin)
EMULATE_HALF(hcos, std::cos)
EMULATE_HALF(htanh, std::tanh)
EMULATE_HALF(hfloor, std::floor)
EMULATE_HALF(hceil, std::ceil)
EMULATE_HALF(htrunc, std::trunc)
EMULATE_HALF(hrint, std::nearbyint)
EMULATE_HALF(hrcp, 1.0f /)
#undef EMULATE_HALF
