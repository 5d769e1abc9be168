// Mobius sums of points [B, C, N]: residual.py has the formulas and the reference implementation. Numbers of points are
// [B, 4, N]: squared angles of x, y and their sum, and the product of x and y in the same unit, p, q, n and d.

#include "vectors.h"

namespace {

// The sum as a x + b y, and what its slopes take.
struct MobiusSum {
  Radial x, y;
  V d, a, part;
  MobiusSum(const V& p, const V& q, const V& inner, float max_angle) : x(p, max_angle), y(q, max_angle), d(inner) {
    part = x.radial / (V(1) + x.time);
    a = fmadd(part * y.radial, d, y.time) * x.radial;
  }
};

}  // namespace

extern "C" {

// x, y [B, C, N] -> out [B, C, N], numbers [B, 4, N].
void mobius_sums(const float* x, const float* y, float* out, float* numbers, int64_t batch, int64_t width,
                 int64_t positions, double rate, double max_angle) {
  const V scale(static_cast<float>(rate * rate));
  const float most = static_cast<float>(max_angle);
  at::parallel_for(0, batch * blocks(positions), grain(width * BLOCK), [&](int64_t begin, int64_t end) {
    std::vector<float> held(width * BLOCK);
    each_block(begin, end, positions, [&](int64_t b, int64_t first, int64_t count) {
      float p[BLOCK] = {}, q[BLOCK] = {}, d[BLOCK] = {}, n[BLOCK] = {};
      const int64_t start = b * width * positions + first;
      for (int64_t k = 0; k < width; ++k) {
        const float *v = x + start + k * positions, *w = y + start + k * positions;
        vectors(count, [&](int64_t i, int64_t c) {
          const V left = V::loadu(v + i, c), right = V::loadu(w + i, c);
          fmadd(left, left, V::loadu(p + i)).store(p + i);
          fmadd(right, right, V::loadu(q + i)).store(q + i);
          fmadd(left, right, V::loadu(d + i)).store(d + i);
        });
      }
      float* to = numbers + b * 4 * positions + first;
      vectors(count, [&](int64_t i, int64_t c) {
        const MobiusSum s(V::loadu(p + i) * scale, V::loadu(q + i) * scale, V::loadu(d + i) * scale, most);
        s.x.s.store(to + i, c);
        s.y.s.store(to + positions + i, c);
        s.d.store(to + 3 * positions + i, c);
        s.a.store(p + i);
        s.y.radial.store(q + i);
      });
      for (int64_t k = 0; k < width; ++k) {
        const float *v = x + start + k * positions, *w = y + start + k * positions;
        float* h = held.data() + k * BLOCK;
        vectors(count, [&](int64_t i, int64_t c) {
          const V sum = fmadd(V::loadu(v + i, c), V::loadu(p + i), V::loadu(w + i, c) * V::loadu(q + i));
          sum.store(h + i);
          fmadd(sum, sum, V::loadu(n + i)).store(n + i);
        });
      }
      vectors(count, [&](int64_t i, int64_t c) {
        const V square = V::loadu(n + i) * scale;
        square.store(to + 2 * positions + i, c);
        asinhc(square).store(n + i);
      });
      for (int64_t k = 0; k < width; ++k) {
        float *h = held.data() + k * BLOCK, *o = out + start + k * positions;
        vectors(count, [&](int64_t i, int64_t c) { (V::loadu(h + i) * V::loadu(n + i)).store(o + i, c); });
      }
    });
  });
}

// Slopes of `mobius_sums` in x and y; returns that in rate.
double mobius_slopes(const float* grad, const float* x, const float* y, const float* numbers, float* by_x, float* by_y,
                     int64_t batch, int64_t width, int64_t positions, double rate, double max_angle) {
  const V scale(static_cast<float>(rate * rate)), two(2), half(0.5f);
  const float most = static_cast<float>(max_angle);
  Columns rates(1);
  at::parallel_for(0, batch * blocks(positions), grain(width * BLOCK), [&](int64_t begin, int64_t end) {
    Columns::Part part(rates);
    each_block(begin, end, positions, [&](int64_t b, int64_t first, int64_t count) {
      float along_x[BLOCK] = {}, along_y[BLOCK] = {}, x_of_x[BLOCK], y_of_y[BLOCK], cross[BLOCK];
      const int64_t start = b * width * positions + first;
      for (int64_t k = 0; k < width; ++k) {
        const int64_t at = start + k * positions;
        vectors(count, [&](int64_t i, int64_t c) {
          const V g = V::loadu(grad + at + i, c);
          fmadd(g, V::loadu(x + at + i, c), V::loadu(along_x + i)).store(along_x + i);
          fmadd(g, V::loadu(y + at + i, c), V::loadu(along_y + i)).store(along_y + i);
        });
      }
      const float* from = numbers + b * 4 * positions + first;
      V by_rate(0);
      vectors(count, [&](int64_t i, int64_t c) {
        const V n = V::loadu(from + 2 * positions + i, c), value = asinhc(n);
        const MobiusSum s(V::loadu(from + i, c), V::loadu(from + positions + i, c),
                          V::loadu(from + 3 * positions + i, c), most);
        const V p = s.x.s, q = s.y.s, d = s.d, a = s.a, x_f = s.x.radial, y_f = s.y.radial;
        const V g_x = V::loadu(along_x + i), g_y = V::loadu(along_y + i);
        const V turn = asinhc_slope(n, value) * fmadd(a, g_x, y_f * g_y) * two;
        const V by_a = fmadd(fmadd(a, p, y_f * d), turn, value * g_x);
        const V by_inner = by_a * x_f * s.part;
        const V by_y_f = fmadd(fmadd(a, d, y_f * q), turn, fmadd(value, g_y, by_inner * d));
        const V by_d = by_inner * y_f, both = s.part * y_f * d;
        const V by_p = fmadd(both, two, s.y.time) * s.x.slope() * by_a - s.x.free(by_d * d) * s.part * half;
        const V by_q = fmadd(by_y_f, s.y.slope(), s.y.free(by_a * x_f * y_f) * half);
        const V more = fmadd(by_p, p, fmadd(by_q, q, fmadd(by_d, d, turn * n * half)));
        by_rate = V::set(by_rate, by_rate + more, c);
        (a * value).store(along_x + i);
        (y_f * value).store(along_y + i);
        (fmadd(turn * a, y_f, by_d) * scale).store(cross + i);
        (fmadd(a * a, turn, by_p * two) * scale).store(x_of_x + i);
        (fmadd(y_f * y_f, turn, by_q * two) * scale).store(y_of_y + i);
      });
      part.add(0, by_rate);
      part.row();
      for (int64_t k = 0; k < width; ++k) {
        const int64_t at = start + k * positions;
        vectors(count, [&](int64_t i, int64_t c) {
          const V g = V::loadu(grad + at + i, c), v = V::loadu(x + at + i, c), w = V::loadu(y + at + i, c),
                  both = V::loadu(cross + i);
          fmadd(g, V::loadu(along_x + i), fmadd(w, both, v * V::loadu(x_of_x + i))).store(by_x + at + i, c);
          fmadd(g, V::loadu(along_y + i), fmadd(v, both, w * V::loadu(y_of_y + i))).store(by_y + at + i, c);
        });
      }
    });
  });
  double found;
  rates.store(&found);
  return found * 2 / rate;
}

}  // extern "C"
