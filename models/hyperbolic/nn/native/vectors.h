// Vectors of floats, elementary functions of them, and sums over threads: what all kernels share.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace {

using at::vec::fmadd;
using V = at::vec::Vectorized<float>;
constexpr int64_t W = V::size();

// Calls f(offset, count) for each vector of n elements.
template <typename F>
inline void vectors(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + W <= n; i += W) f(i, W);
  if (i < n) f(i, n - i);
}

inline float total(const V& x) {
  return at::vec::vec_reduce_all<float>([](const V& a, const V& b) { return a + b; }, x);
}

inline V load(const float* p, int64_t count) { return V::loadu(p, count); }
inline V load(const c10::BFloat16* p, int64_t count) {
  if (count == W) {
    V out;
    at::vec::load_fp32_from_bf16(p, out);
    return out;
  }
  float wide[W] = {};
  for (int64_t i = 0; i < count; ++i) wide[i] = p[i];
  return V::loadu(wide);
}

template <typename T>
inline float dot(const float* a, const T* b, int64_t n) {
  V sum(0);
  vectors(n, [&](int64_t i, int64_t c) { sum = fmadd(V::loadu(a + i, c), load(b + i, c), sum); });
  return total(sum);
}

// c[0] + x c[1] + x^2 c[2] + ...
template <size_t N>
inline V polynomial(const V& x, const float (&c)[N]) {
  V sum(c[N - 1]);
  for (size_t i = N - 1; i-- > 0;) sum = fmadd(sum, x, V(c[i]));
  return sum;
}

// The elementary functions have a relative error of a few rounding units, also near zero. NaN is passed on.

using Bits = at::vec::Vectorized<int32_t>;
constexpr float LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;  // ln 2 in two parts; the first has few bits

// 2^k of whole k from -126 to 127.
inline V power_of_2(const Bits& k) { return at::vec::cast<float>((k + Bits(127)) << Bits(23)); }

// |x| up to 87.
inline V exp(const V& x) {
  const V k = (x * V(1.44269504f)).round(), r = fmadd(k, V(-LN2_LOW), fmadd(k, V(-LN2_HIGH), x));
  const V value = polynomial(r, {1.f, 1.f, 1.f / 2, 1.f / 6, 1.f / 24, 1.f / 120, 1.f / 720, 1.f / 5040});
  return value * power_of_2(at::vec::convert_to_int_of_same_size(k));
}

// log(1 + y), y from 0 to 1e38: with 1 + y = 2^k (1 + f), f from -0.3 to 0.42, log(1 + f) = 2 atanh(f / (2 + f)).
inline V log1p(const V& y) {
  const V one(1), two(2), u = y + one;
  const Bits bits = at::vec::cast<int32_t>(u), k = (bits - Bits(0x3f3504f3)) >> Bits(23);
  const V lost = (y - (u - one)) * power_of_2(Bits(0) - k);  // what rounding took from the sum
  const V f = at::vec::cast<float>(bits - (k << Bits(23))) - one + lost, s = f / (f + two), n = s * s;
  const V small = fmadd(s * n, polynomial(n, {2.f / 3, 2.f / 5, 2.f / 7, 2.f / 9}), s + s);
  const V times = at::vec::convert_to_fp_of_same_size<float>(k);
  return fmadd(times, V(LN2_HIGH), fmadd(times, V(LN2_LOW), small));
}

// asinh as log1p(|x| + x^2 / (1 + root)), like `_asinh` of ops.py; |x| up to 1e19.
inline V asinh(const V& x) {
  const V one(1), size = x.abs(), root = fmadd(x, x, one).sqrt();
  return log1p(fmadd(size, size / (root + one), size)) | (x & V(-0.f));
}

// sinh from e = exp(|x|), by its series below 1, where the exponentials cancel.
inline V sinh(const V& x, const V& e) {
  const V one(1), s = x * x;
  const V series = fmadd(s * x, polynomial(s, {1.f / 6, 1.f / 120, 1.f / 5040, 1.f / 362880}), x);
  return V::blendv(((e - one / e) * V(0.5f)) | (x & V(-0.f)), series, s < one);
}

inline V sinh(const V& x) { return sinh(x, exp(x.abs())); }

inline V least(const V& x, float bound) { return at::vec::clamp_min(x, V(bound)); }

// asinh(u) / u as a function of n = u^2, and its derivative in n from it.
inline V asinhc(const V& n) {
  const V one(1), s = least(n, 1e-30f), u = s.sqrt();
  return log1p(s / ((one + s).sqrt() + one) + u) / u;
}
inline V asinhc_slope(const V& n, const V& value) {
  const float limit = 0.08f;
  const V series = polynomial(n, {-1.f / 6, 3.f / 20, -15.f / 112, 35.f / 288, -0.11186080f, 0.10411659f});
  const V exact = (V(1) / (n + V(1)).sqrt() - value) / (least(n, limit) * V(2));
  return V::blendv(exact, series, n < V(limit));
}

// sinh(q) / r and cosh(q), q = min(r, max_angle), of s = r^2; slope: of the first in s.
struct Radial {
  V s, radial, time;
  float limit;
  Radial(const V& square, float max_angle) : s(square), limit(max_angle * max_angle) {
    const V r = least(square, 1e-30f).sqrt(), q = at::vec::clamp_max(r, V(max_angle)), e = exp(q);
    radial = sinh(q, e) / r;
    time = (e + V(1) / e) * V(0.5f);
  }
  V slope() const {
    const V series = polynomial(s, {1.f / 6, 1.f / 60, 1.f / 1680, 1.f / 90720, 1.2526054e-7f});
    return V::blendv((free(time) - radial) / (least(s, 1.f) * V(2)), series, s < V(1));
  }
  // x where s is within max_angle, else 0.
  V free(const V& x) const { return V::blendv(V(0), x, s < V(limit)); }
};

// Bound of at::get_thread_num(). Where torch came with another OpenMP runtime, that one's count says nothing.
inline int64_t threads() {
#ifdef _OPENMP
  return std::max(at::get_num_threads(), omp_get_max_threads());
#else
  return at::get_num_threads();
#endif
}

// Sums over rows of one number, a partial sum for each thread.
struct Total {
  std::vector<double> parts = std::vector<double>(threads(), 0.0);
  void add(double x) { parts[at::get_thread_num()] += x; }
  double sum() const { return std::accumulate(parts.begin(), parts.end(), 0.0); }
};

// Sums of columns: a thread adds vectors, whose sums of some rows are float; those of all rows are double.
struct Columns {
  int64_t count;
  std::vector<double> sums;
  explicit Columns(int64_t columns) : count(columns), sums(threads() * columns, 0.0) {}

  class Part {
   public:
    explicit Part(Columns& all) : all_(all), lanes_(all.count * W, 0.f) {}
    ~Part() { flush(); }
    void add(int64_t column, const V& x) {
      float* at = lanes_.data() + column * W;
      (V::loadu(at) + x).store(at);
    }
    // Called after each row.
    void row() {
      if (++rows_ == 64) flush();
    }

   private:
    void flush() {
      double* mine = all_.sums.data() + at::get_thread_num() * all_.count;
      for (int64_t k = 0; k < all_.count; ++k) mine[k] += total(V::loadu(lanes_.data() + k * W));
      std::fill(lanes_.begin(), lanes_.end(), 0.f);
      rows_ = 0;
    }
    Columns& all_;
    std::vector<float> lanes_;
    int rows_ = 0;
  };

  template <typename T>
  void store(T* out) const {
    for (int64_t k = 0; k < count; ++k) {
      double sum = 0;
      for (size_t i = k; i < sums.size(); i += count) sum += sums[i];
      out[k] = static_cast<T>(sum);
    }
  }
};

// About 16,000 elements for a thread at least.
inline int64_t grain(int64_t width) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width)); }

// Tensors [B, K, N] of points whose K coordinates lie N apart are worked on in blocks of positions: `each` calls
// f(image, first position, positions) for those of a range of blocks.
constexpr int64_t BLOCK = 64;
inline int64_t blocks(int64_t positions) { return (positions + BLOCK - 1) / BLOCK; }
template <typename F>
inline void each_block(int64_t begin, int64_t end, int64_t positions, const F& f) {
  for (int64_t r = begin; r < end; ++r) {
    const int64_t first = r % blocks(positions) * BLOCK;
    f(r / blocks(positions), first, std::min(BLOCK, positions - first));
  }
}

}  // namespace
