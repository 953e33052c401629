// Tensor-core fragments of CUDA's mma.h, in software.
//
// How a matrix is spread over the lanes of a warp is unspecified. Here each lane keeps the whole of
// the two operands, as it loads them itself, and 1/32 of the accumulator: lane l owns elements
// l * n to l * n + n - 1 in row-major order. So no lane waits for another, and a store is as
// visible to the rest of the warp as any other write: only behind a synchronisation.
#pragma once
#include <cuda_fp16.h>

namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int m, int n, int k, typename T, typename Order = void>
struct fragment {
  static constexpr int rows = std::is_same_v<Use, matrix_b> ? k : m;
  static constexpr int columns = std::is_same_v<Use, matrix_a> ? k : n;
  static constexpr bool own = std::is_same_v<Use, accumulator>;
  static constexpr int num_elements = rows * columns / (own ? 32 : 1);
  T x[num_elements];
};

template <typename F, typename T>
inline void fill_fragment(F& fragment, T value) {
  for (auto& element : fragment.x) element = value;
}

template <typename Use, int m, int n, int k, typename T, typename Order>
inline void load_matrix_sync(fragment<Use, m, n, k, T, Order>& f, const T* memory, unsigned stride) {
  constexpr bool by_row = std::is_same_v<Order, row_major>;
  for (int r = 0; r < f.rows; ++r)
    for (int c = 0; c < f.columns; ++c)
      f.x[r * f.columns + c] = memory[by_row ? r * stride + c : c * stride + r];
}

// Element i of this lane's part of an accumulator, and where it lies in memory.
template <int columns>
inline unsigned emulated_place(int i, int owned, unsigned stride, layout_t layout) {
  unsigned element = emulated_lane() * owned + i, r = element / columns, c = element % columns;
  return layout == mem_row_major ? r * stride + c : c * stride + r;
}

template <int m, int n, int k, typename T>
inline void load_matrix_sync(fragment<accumulator, m, n, k, T>& f, const T* memory, unsigned stride,
                             layout_t layout) {
  for (int i = 0; i < f.num_elements; ++i)
    f.x[i] = memory[emulated_place<n>(i, f.num_elements, stride, layout)];
}

template <int m, int n, int k, typename T>
inline void store_matrix_sync(T* memory, const fragment<accumulator, m, n, k, T>& f, unsigned stride,
                              layout_t layout) {
  for (int i = 0; i < f.num_elements; ++i)
    memory[emulated_place<n>(i, f.num_elements, stride, layout)] = f.x[i];
}

template <int m, int n, int k, typename D, typename A, typename B, typename OA, typename OB>
inline void mma_sync(fragment<accumulator, m, n, k, D>& d, const fragment<matrix_a, m, n, k, A, OA>& a,
                     const fragment<matrix_b, m, n, k, B, OB>& b,
                     const fragment<accumulator, m, n, k, D>& c) {
  // Products are exact and sums are kept in a wider type, as in tensor cores.
  using Sum = std::conditional_t<std::is_same_v<D, int>, int, float>;
  for (int i = 0; i < d.num_elements; ++i) {
    int element = emulated_lane() * d.num_elements + i, r = element / n, col = element % n;
    Sum sum = c.x[i];
    for (int l = 0; l < k; ++l) sum += Sum(a.x[r * k + l]) * Sum(b.x[l * n + col]);
    d.x[i] = D(sum);
  }
}

}  // namespace wmma
}  // namespace nvcuda
