// Attention where each query has a short list of keys: what models/encoders/listed.py calls.
//
// T is float or BFloat16; all sums are in float. Tensors are contiguous; a stride is in elements.

#include "vectors.h"

namespace {

inline void store(const V& x, float* p, int64_t count) { x.store(p, count); }
inline void store(const V& x, c10::BFloat16* p, int64_t count) { at::vec::convert_float_bfloat16(x, x).store(p, count); }

// y += a * x
template <typename T>
inline void add(float* y, float a, const T* x, int64_t n) {
  vectors(n, [&](int64_t i, int64_t c) {
    fmadd(V(a), load(x + i, c), V::loadu(y + i, c)).store(y + i, c);
  });
}

template <typename T>
inline void scaled(float a, const float* x, T* y, int64_t n) {
  vectors(n, [&](int64_t i, int64_t c) { store(V(a) * V::loadu(x + i, c), y + i, c); });
}

// The keys of query i are rows[last[i] - count[i] + 1] to rows[last[i]].
struct Keys {
  const int64_t *rows, *last, *count;
  const int64_t* begin(int64_t i) const { return rows + last[i] - count[i] + 1; }
};

// Softmax of scale * q.k over the keys of one query; `weight` has room for them.
template <typename T>
inline void weights(const float* q, const T* k, int64_t stride, const int64_t* rows, int64_t n, int64_t d, float* weight) {
  float most = -INFINITY, sum = 0;
  for (int64_t j = 0; j < n; ++j) most = std::max(most, weight[j] = dot(q, k + rows[j] * stride, d));
  vectors(n, [&](int64_t j, int64_t c) { (V::loadu(weight + j, c) - V(most)).exp().store(weight + j, c); });
  for (int64_t j = 0; j < n; ++j) sum += weight[j];
  for (int64_t j = 0; j < n; ++j) weight[j] /= sum;
}

template <typename T>
void attention(const T* q, const T* k, const T* v, T* out, Keys keys, int64_t queries, int64_t heads, int64_t d,
               int64_t q_stride, int64_t stride) {
  const int64_t longest = *std::max_element(keys.count, keys.count + queries);
  at::parallel_for(0, heads, 1, [&](int64_t first, int64_t end) {
    std::vector<float> weight(longest), query(d), sum(d);
    for (int64_t i = 0; i < queries; ++i) {
      const int64_t n = keys.count[i], *rows = keys.begin(i);
      for (int64_t h = first; h < end; ++h) {
        std::fill(query.begin(), query.end(), 0.f);
        add(query.data(), 1 / std::sqrt(float(d)), q + i * q_stride + h * d, d);
        weights(query.data(), k + h * d, stride, rows, n, d, weight.data());
        std::fill(sum.begin(), sum.end(), 0.f);
        for (int64_t j = 0; j < n; ++j) add(sum.data(), weight[j], v + h * d + rows[j] * stride, d);
        scaled(1, sum.data(), out + (i * heads + h) * d, d);
      }
    }
  });
}

// Slopes of the keys and values are added to `sums`, [rows, 2 heads d], or written to by_k and by_v where there is none:
// then each row is a key of one query.
template <typename T>
void attention_slopes(const T* grad, const T* q, const T* k, const T* v, T* by_q, T* by_k, T* by_v, float* sums,
                      Keys keys, int64_t queries, int64_t heads, int64_t d, int64_t q_stride, int64_t stride) {
  const int64_t longest = *std::max_element(keys.count, keys.count + queries);
  const float scale = 1 / std::sqrt(float(d));
  at::parallel_for(0, heads, 1, [&](int64_t first, int64_t end) {
    std::vector<float> weight(longest), slope(longest), query(d), up(d), sum(d);
    for (int64_t i = 0; i < queries; ++i) {
      const int64_t n = keys.count[i], *rows = keys.begin(i);
      for (int64_t h = first; h < end; ++h) {
        std::fill(query.begin(), query.end(), 0.f);
        add(query.data(), scale, q + i * q_stride + h * d, d);
        std::fill(up.begin(), up.end(), 0.f);
        add(up.data(), 1, grad + (i * heads + h) * d, d);
        weights(query.data(), k + h * d, stride, rows, n, d, weight.data());
        float mean = 0;
        for (int64_t j = 0; j < n; ++j) {
          slope[j] = dot(up.data(), v + h * d + rows[j] * stride, d);
          mean += weight[j] * slope[j];
        }
        std::fill(sum.begin(), sum.end(), 0.f);
        for (int64_t j = 0; j < n; ++j) {
          const float by_score = weight[j] * (slope[j] - mean);
          const int64_t place = h * d + rows[j] * stride;
          add(sum.data(), by_score, k + place, d);
          if (sums) {
            float* row = sums + rows[j] * 2 * heads * d + h * d;
            add(row, by_score, query.data(), d);
            add(row + heads * d, weight[j], up.data(), d);
          } else {
            scaled(by_score, query.data(), by_k + place, d);
            scaled(weight[j], up.data(), by_v + place, d);
          }
        }
        scaled(scale, sum.data(), by_q + i * q_stride + h * d, d);
      }
    }
  });
}

}  // namespace

extern "C" {

#define ATTENTION(name, T)                                                                                          \
  void attention_##name(const T* q, const T* k, const T* v, T* out, const int64_t* rows, const int64_t* last,       \
                        const int64_t* count, int64_t queries, int64_t heads, int64_t d, int64_t q_stride,          \
                        int64_t stride) {                                                                           \
    attention(q, k, v, out, {rows, last, count}, queries, heads, d, q_stride, stride);                              \
  }                                                                                                                 \
  void attention_slopes_##name(const T* grad, const T* q, const T* k, const T* v, T* by_q, T* by_k, T* by_v,        \
                               float* sums, const int64_t* rows, const int64_t* last, const int64_t* count,         \
                               int64_t queries, int64_t heads, int64_t d, int64_t q_stride, int64_t stride) {       \
    attention_slopes(grad, q, k, v, by_q, by_k, by_v, sums, {rows, last, count}, queries, heads, d, q_stride, stride); \
  }
ATTENTION(float32, float)
ATTENTION(bfloat16, c10::BFloat16)
}
