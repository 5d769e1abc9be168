// Hyperbolic convolutions before and after torch's: hyperplane_ops.py and conv_fused.py hold the formulas and the
// reference implementations. Tensors of coordinates are [B, G, K, N]: images, groups, coordinates, positions.

#include "vectors.h"

namespace {

// One dimension of windows.
struct Axis {
  int64_t in, out, kernel, stride, padding, dilation;
};

// Sums of the taps of each window along the middle dimension, [outer, in, inner] -> [outer, out, inner]; BACK: the
// adjoint. `to` is overwritten.
template <bool BACK>
inline void taps(const float* from, float* to, int64_t outer, int64_t inner, const Axis& a) {
  const int64_t sources = BACK ? a.out : a.in, targets = BACK ? a.in : a.out;
  std::fill_n(to, outer * targets * inner, 0.f);
  for (int64_t o = 0; o < outer; ++o, from += sources * inner, to += targets * inner) {
    for (int64_t tap = 0; tap < a.kernel; ++tap) {
      // Window p takes position p stride + offset.
      const int64_t offset = tap * a.dilation - a.padding;
      const int64_t low = offset < 0 ? (a.stride - 1 - offset) / a.stride : 0;
      const int64_t high = a.in > offset ? std::min(a.out, (a.in - 1 - offset) / a.stride + 1) : 0;
      if (low >= high) continue;
      if (a.stride == 1) {
        const int64_t windows = low * inner, inputs = (low + offset) * inner, n = (high - low) * inner;
        const float* x = from + (BACK ? windows : inputs);
        float* y = to + (BACK ? inputs : windows);
        for (int64_t i = 0; i < n; ++i) y[i] += x[i];
        continue;
      }
      for (int64_t p = low; p < high; ++p) {
        const int64_t windows = p * inner, inputs = (p * a.stride + offset) * inner;
        const float* x = from + (BACK ? windows : inputs);
        float* y = to + (BACK ? inputs : windows);
        for (int64_t i = 0; i < inner; ++i) y[i] += x[i];
      }
    }
  }
}

// The windows of all dimensions, one after the other; the result is in the first of the two buffers.
template <bool BACK>
inline void windows(std::vector<float>& x, std::vector<float>& spare, int64_t groups, const Axis* axes, int64_t dims) {
  for (int64_t d = 0; d < dims; ++d) {
    int64_t outer = groups, inner = 1;
    for (int64_t e = 0; e < d; ++e) outer *= BACK ? axes[e].in : axes[e].out;
    for (int64_t e = d + 1; e < dims; ++e) inner *= BACK ? axes[e].out : axes[e].in;
    taps<BACK>(x.data(), spare.data(), outer, inner, axes[d]);
    x.swap(spare);
  }
}

// Positions before and after, and the largest number between.
struct Space {
  int64_t in = 1, out = 1, most;
  Space(const Axis* axes, int64_t dims) {
    for (int64_t d = 0; d < dims; ++d) in *= axes[d].in, out *= axes[d].out;
    most = std::max(in, out);
    for (int64_t d = 0, mixed = in, back = out; d < dims; ++d) {
      mixed = mixed / axes[d].in * axes[d].out, back = back / axes[d].out * axes[d].in;
      most = std::max({most, mixed, back});
    }
  }
};

// Of `count` points, at most BLOCK, from their squared angles: the factors of their space parts, and their time parts.
inline void lift(const float* square, int64_t count, double max_angle, float* radial, float* time) {
  vectors(count, [&](int64_t i, int64_t c) {
    const Radial p(V::loadu(square + i, c), static_cast<float>(max_angle));
    p.radial.store(radial + i);
    p.time.store(time + i);
  });
}

}  // namespace

extern "C" {

// Sums over the windows of the squared lengths of points, times factor: u [B, G, C, *space] -> s [B, G, *space'].
void window_squares(const float* u, float* s, int64_t batch, int64_t groups, int64_t width, const Axis* axes,
                    int64_t dims, double factor) {
  const Space space(axes, dims);
  at::parallel_for(0, batch, grain(groups * width * space.in), [&](int64_t begin, int64_t end) {
    std::vector<float> x(groups * space.most), spare(x);
    for (int64_t b = begin; b < end; ++b) {
      for (int64_t g = 0; g < groups; ++g) {
        const float* v = u + (b * groups + g) * width * space.in;
        float* y = x.data() + g * space.in;
        std::fill_n(y, space.in, 0.f);
        for (int64_t k = 0; k < width; ++k, v += space.in) {
          vectors(space.in, [&](int64_t i, int64_t c) {
            const V a = V::loadu(v + i, c);
            fmadd(a, a, V::loadu(y + i, c)).store(y + i, c);
          });
        }
      }
      windows<false>(x, spare, groups, axes, dims);
      const V times(static_cast<float>(factor));
      float* to = s + b * groups * space.out;
      vectors(groups * space.out, [&](int64_t i, int64_t c) { (V::loadu(x.data() + i, c) * times).store(to + i, c); });
    }
  });
}

// Slopes of `window_squares`, added to by_u [B, G, C, *space]: by_s [B, G, *space'].
void window_slopes(const float* u, const float* by_s, float* by_u, int64_t batch, int64_t groups, int64_t width,
                   const Axis* axes, int64_t dims, double factor) {
  const Space space(axes, dims);
  at::parallel_for(0, batch, grain(groups * width * space.in), [&](int64_t begin, int64_t end) {
    std::vector<float> x(groups * space.most), spare(x);
    for (int64_t b = begin; b < end; ++b) {
      std::copy_n(by_s + b * groups * space.out, groups * space.out, x.data());
      windows<true>(x, spare, groups, axes, dims);
      const V times(static_cast<float>(2 * factor));
      for (int64_t g = 0; g < groups; ++g) {
        const float* slope = x.data() + g * space.in;
        for (int64_t k = 0; k < width; ++k) {
          const int64_t at = ((b * groups + g) * width + k) * space.in;
          vectors(space.in, [&](int64_t i, int64_t c) {
            const V more = V::loadu(u + at + i, c) * times;
            fmadd(more, V::loadu(slope + i, c), V::loadu(by_u + at + i, c)).store(by_u + at + i, c);
          });
        }
      }
    }
  });
}

// Responses of hyperplanes: out [B, G, K, N] holds the products with them and becomes the outputs; s [B, G, N] squared
// angles; shift, power [G K] -> angle [B, G, K, N] (asinh of the signed distances' sinh), norm [B, N] (of w, squared).
void respond(float* out, float* angle, const float* s, const float* shift, const float* power, float* norm,
             int64_t batch, int64_t groups, int64_t width, int64_t positions, double rate, double max_angle,
             double max_exponent) {
  const int64_t all = groups * width;
  const V low(static_cast<float>(-max_exponent)), high(static_cast<float>(max_exponent)),
      per_rate(static_cast<float>(1 / rate));
  at::parallel_for(0, batch * blocks(positions), grain(all * BLOCK), [&](int64_t begin, int64_t end) {
    std::vector<float> held(all * BLOCK);
    float radial[BLOCK], time[BLOCK], sums[BLOCK];
    each_block(begin, end, positions, [&](int64_t b, int64_t first, int64_t count) {
      std::fill_n(sums, BLOCK, 0.f);
      for (int64_t g = 0; g < groups; ++g) {
        const float* square = s + (b * groups + g) * positions + first;
        lift(square, count, max_angle, radial, time);
        for (int64_t k = g * width; k < (g + 1) * width; ++k) {
          const int64_t at = (b * all + k) * positions + first;
          float* w = held.data() + k * BLOCK;
          const V off(shift[k]), by(power[k]);
          vectors(count, [&](int64_t i, int64_t c) {
            const V y = asinh(V::loadu(out + at + i, c) * V::loadu(radial + i) - V::loadu(time + i) * off);
            y.store(angle + at + i, c);
            const V x = sinh(at::vec::clamp(y * by, low, high));
            x.store(w + i);
            fmadd(x, x, V::loadu(sums + i)).store(sums + i);
          });
        }
      }
      vectors(count, [&](int64_t i, int64_t c) {
        const V n = V::loadu(sums + i);
        n.store(norm + b * positions + first + i, c);
        (asinhc(n) * per_rate).store(sums + i);
      });
      for (int64_t k = 0; k < all; ++k) {
        float *w = held.data() + k * BLOCK, *to = out + (b * all + k) * positions + first;
        vectors(count, [&](int64_t i, int64_t c) { (V::loadu(w + i) * V::loadu(sums + i)).store(to + i, c); });
      }
    });
  });
}

// Slopes of `respond`: d [B, G, K, N] in the products, by_s [B, G, N] in the squared angles, columns [2, G K] in the
// powers and the shifts; returns the slope in rate, for products and angles that are proportional to it.
double respond_slopes(const float* grad, const float* angle, const float* s, const float* shift, const float* power,
                      const float* norm, float* d, float* by_s, float* columns, int64_t batch, int64_t groups,
                      int64_t width, int64_t positions, double rate, double max_angle, double max_exponent) {
  const int64_t all = groups * width;
  const V one(1), two(2), low(static_cast<float>(-max_exponent)), high(static_cast<float>(max_exponent)),
      per_rate(static_cast<float>(1 / rate));
  Columns sums(2 * all + 1);
  at::parallel_for(0, batch * blocks(positions), grain(all * BLOCK), [&](int64_t begin, int64_t end) {
    Columns::Part part(sums);
    std::vector<float> held(all * BLOCK);
    float along[BLOCK], shrink[BLOCK], turn[BLOCK], radial[BLOCK], time[BLOCK], by_a[BLOCK], by_time[BLOCK];
    each_block(begin, end, positions, [&](int64_t b, int64_t first, int64_t count) {
      std::fill_n(along, BLOCK, 0.f);
      for (int64_t k = 0; k < all; ++k) {
        const int64_t at = (b * all + k) * positions + first;
        float* w = held.data() + k * BLOCK;
        const V by(power[k]);
        vectors(count, [&](int64_t i, int64_t c) {
          const V x = sinh(at::vec::clamp(V::loadu(angle + at + i, c) * by, low, high));
          x.store(w + i);
          fmadd(x, V::loadu(grad + at + i, c), V::loadu(along + i)).store(along + i);
        });
      }
      vectors(count, [&](int64_t i, int64_t c) {
        const V n = V::loadu(norm + b * positions + first + i, c), value = asinhc(n), a = V::loadu(along + i);
        (value * per_rate).store(shrink + i);
        (a * asinhc_slope(n, value) * two * per_rate).store(turn + i);
        part.add(2 * all, a * value * per_rate * V(-1));
      });
      for (int64_t g = 0; g < groups; ++g) {
        const float* square = s + (b * groups + g) * positions + first;
        lift(square, count, max_angle, radial, time);
        std::fill_n(by_a, BLOCK, 0.f);
        std::fill_n(by_time, BLOCK, 0.f);
        for (int64_t k = g * width; k < (g + 1) * width; ++k) {
          const int64_t at = (b * all + k) * positions + first;
          const float* w = held.data() + k * BLOCK;
          const V off(shift[k]), by(power[k] * 2);
          V by_power(0), by_shift(0);
          vectors(count, [&](int64_t i, int64_t c) {
            const V v = V::loadu(w + i), y = V::loadu(angle + at + i, c);
            V x = fmadd(v, V::loadu(turn + i), V::loadu(grad + at + i, c) * V::loadu(shrink + i));
            x = x * fmadd(v, v, one).sqrt();
            by_power = fmadd(x, y, by_power);
            const V e = exp(y.abs());
            x = x * by / (e + one / e);  // by cosh(angle)
            by_shift = by_shift - x * V::loadu(time + i);
            fmadd(x, sinh(y, e), V::loadu(by_a + i)).store(by_a + i);
            fmadd(x, off, V::loadu(by_time + i)).store(by_time + i);
            (x * V::loadu(radial + i)).store(d + at + i, c);
          });
          part.add(k, by_power);
          part.add(all + k, by_shift);
        }
        float* to = by_s + (b * groups + g) * positions + first;
        vectors(count, [&](int64_t i, int64_t c) {
          // a = radial m - time shift: the sums of d a and of d shift
          const Radial p(V::loadu(square + i, c), static_cast<float>(max_angle));
          const V by_t = V::loadu(by_time + i), by_m = fmadd(by_t, p.time, V::loadu(by_a + i));
          const V slope = by_m * p.slope() / p.radial - by_t * p.free(p.radial) * V(0.5f);
          slope.store(to + i, c);
          part.add(2 * all, fmadd(slope * p.s, two, by_m));
        });
      }
      part.row();
    });
  });
  std::vector<double> found(2 * all + 1);
  sums.store(found.data());
  std::copy_n(found.begin(), 2 * all, columns);
  return found[2 * all] / rate;
}

}  // extern "C"
