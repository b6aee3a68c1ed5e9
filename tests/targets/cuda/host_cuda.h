// CUDA on the host, as far as generated kernels need it: a thread for each of a block's threads, blocks one by one.
// A fragment is the whole matrix in every thread: loading, multiplying and storing it needs no other thread then.
#pragma once
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#define alignas(n) __attribute__((aligned(n)))
#define __global__
#define __device__
#define __shared__ static
#define __restrict__
#define __launch_bounds__(n)
#define uint unsigned int
#define uchar unsigned char
#define ushort unsigned short

struct Dim3 { int x = 0, y = 0, z = 0; };
inline thread_local Dim3 threadIdx, blockIdx;
inline std::barrier<>* block_barrier = nullptr;
inline void __syncthreads() { block_barrier->arrive_and_wait(); }

using half = _Float16;
template <class T> struct alignas(4 * sizeof(T)) Four { T x, y, z, w; };
template <class T> struct alignas(2 * sizeof(T)) Two { T x, y; };
using half4 = Four<half>; using half2 = Two<half>;
using float4 = Four<float>; using float2 = Two<float>;
using int4 = Four<int>; using int2 = Two<int>;
using char4 = Four<signed char>;
template <class T> Four<T> four(T x, T y, T z, T w) { return {x, y, z, w}; }
inline half4 make_half4(half x, half y, half z, half w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline half2 make_half2(half x, half y) { return {x, y}; }
inline half __float2half_rn(float x) { return half(x); }
using std::max;
using std::min;

namespace nvcuda::wmma {
struct matrix_a; struct matrix_b; struct accumulator;
struct row_major { static constexpr bool by_row = true; };
struct col_major { static constexpr bool by_row = false; };
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class T, class Layout = row_major>
struct fragment { T at[16][16]; };

template <class F, class T> void fill_fragment(F& f, T value) {
  for (auto& row : f.at) for (auto& element : row) element = value;
}
template <class Use, int M, int N, int K, class T, class L>
void load_matrix_sync(fragment<Use, M, N, K, T, L>& f, const T* from, unsigned stride) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) f.at[i][j] = L::by_row ? from[i * stride + j] : from[j * stride + i];
}
template <int M, int N, int K, class T, class L>
void store_matrix_sync(T* to, const fragment<accumulator, M, N, K, T, L>& f, unsigned stride, layout_t) {
  for (int i = 0; i < 16; ++i) for (int j = 0; j < 16; ++j) to[i * stride + j] = f.at[i][j];
}
template <class D, class A, class B, class C> void mma_sync(D& d, const A& a, const B& b, const C& c) {
  D result = c;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j)
      for (int k = 0; k < 16; ++k) {
        using T = decltype(result.at[0][0] + 0);
        result.at[i][j] += T(a.at[i][k]) * T(b.at[k][j]);
      }
  d = result;
}
}  // namespace nvcuda::wmma

template <class Kernel> void launch(long groups, int threads, Kernel kernel) {
  std::barrier<> barrier(threads);
  block_barrier = &barrier;
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t)
    pool.emplace_back([&, t] {
      threadIdx.x = t;
      for (long group = 0; group < groups; ++group) {
        blockIdx.x = int(group);
        kernel();
        barrier.arrive_and_wait();  // the next block has the same shared memory
      }
    });
  for (auto& thread : pool) thread.join();
}
