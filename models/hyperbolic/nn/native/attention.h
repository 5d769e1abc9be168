// Fused elementwise parts of the hyperbolic attention layer, in float32; matrix products stay with torch.
//
// The arithmetic is that of projection_ops.py and attention_ops.py, which hold the formulas and the reference
// implementations. It is done in vectors of float: of the elements of a row, or of the numbers that W rows have one of
// each (`by_lanes`). Sums over rows and what cancels are double.
// Rows are points or groups of coordinates. All tensors are contiguous unless a stride is given, in elements.

#include "vectors.h"

namespace {

// asinh(u) / u, and its derivative in n = u^2 from it.
inline double asinhc(double n) {
  const double u = std::sqrt(n);
  return u < 1e-8 ? 1.0 : std::asinh(u) / u;
}
inline double asinhc_slope(double n, double value) {
  if (n < 1e-4) return -1.0 / 6 + n * (3.0 / 20 - n * (15.0 / 112));
  return (1 / std::sqrt(1 + n) - value) / (2 * n);
}

// A number for each of W rows.
struct Lanes {
  float at[W] = {};
  float& operator[](int64_t k) { return at[k]; }
  V load() const { return V::loadu(at); }
  void operator=(const V& x) { x.store(at); }
};

// Calls one(lane, row), then all(), then other(lane, row) for the rows of a range, W rows at a time.
template <typename F, typename G, typename H>
inline void by_lanes(int64_t begin, int64_t end, const F& one, const G& all, const H& other) {
  for (int64_t r = begin; r < end; r += W) {
    const int64_t some = std::min(W, end - r);
    for (int64_t k = 0; k < some; ++k) one(k, r + k);
    all();
    for (int64_t k = 0; k < some; ++k) other(k, r + k);
  }
}

// Points of W tangent vectors: f is the space part per unit of the vector, beyond is the time part - 1. It is taken
// from the f that is stored, so that a point lies on the hyperboloid as well as float has it.
struct Lifts {
  V square, f, beyond, time;
  Radial radial;
  Lifts(const V& square_, float rate, float max_angle)
      : square(square_), radial(square_ * V(rate * rate), max_angle) {
    f = radial.radial * V(rate);
    const V n = square * f * f;
    beyond = n / ((n + V(1)).sqrt() + V(1));
    time = beyond + V(1);
  }
};

// Calls use(row, f, time) with those of the point of each row of u [R, I] in a range.
template <typename F>
inline void each_lifted(const float* u, int64_t in, int64_t begin, int64_t end, float rate, float max_angle, const F& use) {
  Lanes square, f, time;
  by_lanes(begin, end, [&](int64_t k, int64_t r) { square[k] = dot(u + r * in, u + r * in, in); }, [&] {
    const Lifts p(square.load(), rate, max_angle);
    f = p.f;
    time = p.time;
  }, [&](int64_t k, int64_t r) { use(r, V(f[k]), V(time[k])); });
}

// Slopes of lifts from those in the time part and along f: in f itself, the factor of u, and in rate.
struct LiftSlopes {
  V outward, rate;
  LiftSlopes(const Lifts& p, const V& by_time, const V& along, float rate_) {
    const V by_n = by_time * p.f / p.time, by_f = fmadd(by_n, p.square, along);
    const V by_s = by_f * p.radial.slope() * V(2 * rate_ * rate_);
    outward = fmadd(by_n, p.f, by_s * V(rate_));
    rate = fmadd(by_s, p.square, by_f * p.radial.radial);
  }
};

// Heads: of the B H pairs of a batch item and a head, those from `first` on. Where row r, a point of one of them, lies
// in a tensor [B, N, H D] with strides sb and sn.
struct Rows {
  int64_t first, heads, count, dim, sb, sn;
  int64_t head(int64_t r) const { return (first + r / count) % heads; }
  int64_t operator[](int64_t r) const {
    const int64_t l = first + r / count;
    return l / heads * sb + r % count * sn + l % heads * dim;
  }
};

// A hyperplane: the length of its weights (1 where they have no direction), cosh and sinh of its offset.
struct Plane {
  bool known;
  double size = 1, cosh = 1, sinh = 0;
  Plane(double square, const float* bias, double rate, double max_offset)
      : known(square > std::pow(std::numeric_limits<float>::min(), 0.6)) {
    if (known) size = std::sqrt(square);
    if (bias != nullptr) {
      const double r = std::clamp(rate * *bias, -max_offset, max_offset);
      cosh = std::cosh(r);
      sinh = std::sinh(r);
    }
  }
};

}  // namespace

extern "C" {

// Hyperplanes of weight [K, I] and bias [K] or null -> columns [3, K]: factors of the weights, sinh of the offsets,
// powers.
void planes(const float* weight, const float* bias, float* columns, int64_t count, int64_t in, double rate,
            double max_offset) {
  at::parallel_for(0, count, grain(in), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const Plane p(dot(weight + k * in, weight + k * in, in), bias ? bias + k : nullptr, rate, max_offset);
      columns[k] = static_cast<float>(p.cosh / p.size);
      columns[count + k] = static_cast<float>(p.sinh);
      columns[2 * count + k] = static_cast<float>(p.known ? 2 * p.size : 0);
    }
  });
}

// Backward of `planes`: by_columns [2, K] in powers and sinh of the offsets; by_weight [K, I] holds the slopes in the
// weights times their factors and becomes those in the weights; by_bias [K] or null. Returns the slope in rate.
double plane_slopes(const float* weight, const float* bias, const float* by_columns, float* by_weight, float* by_bias,
                    int64_t count, int64_t in, double rate, double max_offset) {
  Total by_rate;
  at::parallel_for(0, count, grain(in), [&](int64_t begin, int64_t end) {
    double rates = 0;
    for (int64_t k = begin; k < end; ++k) {
      const float* w = weight + k * in;
      float* y = by_weight + k * in;
      const Plane p(dot(w, w, in), bias ? bias + k : nullptr, rate, max_offset);
      const double along = dot(w, y, in), by_size = p.known ? 2 * by_columns[k] - along / p.size : 0;
      const V outward(static_cast<float>(by_size / p.size));
      vectors(in, [&](int64_t i, int64_t c) {
        fmadd(V::loadu(w + i, c), outward, V::loadu(y + i, c)).store(y + i, c);
      });
      if (bias != nullptr) {
        const double by_r = along * p.sinh / p.cosh + by_columns[count + k] * p.cosh;
        by_bias[k] = static_cast<float>(by_r * rate);
        rates += by_r * bias[k];
      }
    }
    by_rate.add(rates);
  });
  return by_rate.sum();
}

// Outputs of hyperplanes: u [R, I], angle [R, G O] (in: products of u with the weights; out: asinh of the signed
// distances), scale, shift, power [G O] -> out [R, G O], n and value [R, G].
void project(const float* u, float* angle, const float* scale, const float* shift, const float* power, float* out,
             float* norm, float* value, int64_t rows, int64_t in, int64_t groups, int64_t width, double rate,
             double max_angle, double max_exponent) {
  const V low(static_cast<float>(-max_exponent)), high(static_cast<float>(max_exponent));
  at::parallel_for(0, rows, grain(groups * width), [&](int64_t begin, int64_t end) {
    each_lifted(u, in, begin, end, rate, max_angle, [&](int64_t r, const V& f, const V& time) {
      for (int64_t g = 0; g < groups; ++g) {
        float *a = angle + (r * groups + g) * width, *o = out + (r * groups + g) * width;
        const float *s = scale + g * width, *t = shift + g * width, *e = power + g * width;
        V sum(0);
        vectors(width, [&](int64_t i, int64_t c) {
          const V product = V::loadu(a + i, c) * f * V::loadu(s + i, c);
          const V y = asinh(product - time * V::loadu(t + i, c));
          y.store(a + i, c);
          const V w = sinh(at::vec::clamp(y * V::loadu(e + i, c), low, high));
          w.store(o + i, c);
          sum = fmadd(w, w, sum);
        });
        const double n = total(sum), v = asinhc(n);
        norm[r * groups + g] = static_cast<float>(n);
        value[r * groups + g] = static_cast<float>(v);
        const V shrink(static_cast<float>(v / rate));
        vectors(width, [&](int64_t i, int64_t c) { (V::loadu(o + i, c) * shrink).store(o + i, c); });
      }
    });
  });
}

// Slopes of `project`: d [R, G O] in the products with the weights, by_time [R] in the time parts of the points, columns
// [2, G O] in the powers and in the shifts; returns the slope in rate of the outputs.
double project_slopes(const float* grad, const float* u, const float* angle, const float* out, const float* norm,
                      const float* scale, const float* shift, const float* power, float* d, float* by_time,
                      float* columns, int64_t rows, int64_t in, int64_t groups, int64_t width, double rate,
                      double max_angle) {
  const int64_t all = groups * width;
  Columns sums(2 * all);
  Total by_rate;
  at::parallel_for(0, rows, grain(all), [&](int64_t begin, int64_t end) {
    // Sums of some rows in float, of those in double.
    std::vector<float> part(2 * all, 0.f);
    float *by_power = part.data(), *by_shift = by_power + all;
    double *mine = sums.sums.data() + at::get_thread_num() * 2 * all, rates = 0;
    each_lifted(u, in, begin, end, rate, max_angle, [&](int64_t r, const V& f, const V& time) {
      const V one(1);
      V times(0);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t at = (r * groups + g) * width, column = g * width;
        const double n = norm[r * groups + g], v = asinhc(n), stretch = rate / v;
        const double along = dot(grad + at, out + at, width) * stretch;
        rates -= along * v;
        const V wide(static_cast<float>(stretch)), shrink(static_cast<float>(v / rate)),
            outer(static_cast<float>(along * 2 / rate * asinhc_slope(n, v)));
        vectors(width, [&](int64_t i, int64_t c) {
          const V w = V::loadu(out + at + i, c) * wide, y = V::loadu(angle + at + i, c);
          V x = fmadd(w, outer, V::loadu(grad + at + i, c) * shrink) * fmadd(w, w, one).sqrt();
          float *pow = by_power + column + i, *off = by_shift + column + i;
          fmadd(x, y, V::loadu(pow, c)).store(pow, c);
          const V e = y.abs().exp_u20();
          // by cosh(angle), the slope of sinh; tails of V are 0 and stay 0
          x = x * V::loadu(power + column + i, c) * V(2) / (e + one / e);
          (V::loadu(off, c) - x * time).store(off, c);
          times = times - x * V::loadu(shift + column + i, c);
          (x * f * V::loadu(scale + column + i, c)).store(d + at + i, c);
        });
      }
      by_time[r] = total(times);
      if ((r - begin) % 64 == 63 || r + 1 == end) {
        for (int64_t k = 0; k < 2 * all; ++k) mine[k] += part[k];
        std::fill(part.begin(), part.end(), 0.f);
      }
    });
    by_rate.add(rates / (rate * rate));
  });
  sums.store(columns);
  return by_rate.sum();
}

// Slopes in u [R, I], in place of x: the slopes in the space parts times f; by_time [R]. Returns the slope in rate.
double unlift(const float* u, const float* by_time, float* x, int64_t rows, int64_t in, double rate,
              double max_angle) {
  Total by_rate;
  at::parallel_for(0, rows, grain(in), [&](int64_t begin, int64_t end) {
    double rates = 0;
    Lanes square, along, time, outwards, by_rates;
    by_lanes(begin, end, [&](int64_t k, int64_t r) {
      square[k] = dot(u + r * in, u + r * in, in);
      along[k] = dot(u + r * in, x + r * in, in);
      time[k] = by_time[r];
    }, [&] {
      const Lifts p(square.load(), rate, max_angle);
      const LiftSlopes slopes(p, time.load(), along.load() / p.f, rate);
      outwards = slopes.outward;
      by_rates = slopes.rate;
    }, [&](int64_t k, int64_t r) {
      const V outward(outwards[k]);
      vectors(in, [&](int64_t i, int64_t c) {
        fmadd(V::loadu(u + r * in + i, c), outward, V::loadu(x + r * in + i, c)).store(x + r * in + i, c);
      });
      rates += by_rates[k];
    });
    by_rate.add(rates);
  });
  return by_rate.sum();
}

// Points of heads: u [B, N, H D] with strides sb, sn -> point [L, N, 2 + D], (t - 1, 1, s), or with mirror
// (t, t - 1, -s). Returns the largest t - 1, or infinity where one is NaN.
double lift_heads(const float* u, float* point, int64_t first, int64_t blocks, int64_t heads, int64_t count, int64_t dim, int64_t sb,
                  int64_t sn, double rate, double max_angle, bool mirror) {
  const Rows rows{first, heads, count, dim, sb, sn};
  std::vector<double> far(threads(), 0.0);
  at::parallel_for(0, blocks * count, grain(dim), [&](int64_t begin, int64_t end) {
    double most = 0;
    Lanes square, f, beyond, time;
    by_lanes(begin, end, [&](int64_t k, int64_t r) { square[k] = dot(u + rows[r], u + rows[r], dim); }, [&] {
      const Lifts lift(square.load(), rate, max_angle);
      f = mirror ? lift.f.neg() : lift.f;
      beyond = lift.beyond;
      time = lift.time;
    }, [&](int64_t k, int64_t r) {
      const float* v = u + rows[r];
      float* p = point + r * (dim + 2);
      p[0] = mirror ? time[k] : beyond[k];
      p[1] = mirror ? beyond[k] : 1;
      const V each(f[k]);
      vectors(dim, [&](int64_t i, int64_t c) { (V::loadu(v + i, c) * each).store(p + 2 + i, c); });
      if (!(beyond[k] <= most)) most = std::isnan(beyond[k]) ? INFINITY : beyond[k];
    });
    far[at::get_thread_num()] = std::max(far[at::get_thread_num()], most);
  });
  return *std::max_element(far.begin(), far.end());
}

// Slopes of `lift_heads`: by_point [L, N, 2 + D] times factor [H] -> by_u [B, N, H D] with strides sb, sn; u has
// strides ub, un. Returns the slope in rate.
double unlift_heads(const float* u, const float* by_point, const float* factor, float* by_u, int64_t first,
                    int64_t blocks, int64_t heads, int64_t count, int64_t dim, int64_t ub, int64_t un, int64_t sb, int64_t sn,
                    double rate, double max_angle, bool mirror) {
  const Rows from{first, heads, count, dim, ub, un}, to{first, heads, count, dim, sb, sn};
  Total by_rate;
  at::parallel_for(0, blocks * count, grain(dim), [&](int64_t begin, int64_t end) {
    double rates = 0;
    Lanes square, along, by_time, outwards, fs, by_rates;
    by_lanes(begin, end, [&](int64_t k, int64_t r) {
      const float *v = u + from[r], *x = by_point + r * (dim + 2), each = factor[from.head(r)];
      square[k] = dot(v, v, dim);
      along[k] = (mirror ? -each : each) * dot(v, x + 2, dim);
      by_time[k] = each * (mirror ? x[0] + x[1] : x[0]);
    }, [&] {
      const Lifts p(square.load(), rate, max_angle);
      const LiftSlopes slopes(p, by_time.load(), along.load(), rate);
      outwards = slopes.outward;
      fs = p.f;
      by_rates = slopes.rate;
    }, [&](int64_t k, int64_t r) {
      const float *v = u + from[r], *x = by_point + r * (dim + 2), each = factor[from.head(r)];
      float* y = by_u + to[r];
      const V outward(outwards[k]), straight((mirror ? -each : each) * fs[k]);
      vectors(dim, [&](int64_t i, int64_t c) {
        fmadd(V::loadu(v + i, c), outward, V::loadu(x + 2 + i, c) * straight).store(y + i, c);
      });
      rates += by_rates[k];
    });
    by_rate.add(rates);
  });
  return by_rate.sum();
}

// Midpoints: weighted sums of points, sums [L, N, 2 + D] -> out [B, N, H D] and the sums' time parts [B H, N].
void means(const float* sums, float* out, float* time, int64_t first, int64_t blocks, int64_t heads, int64_t count, int64_t dim,
           double rate, double least) {
  const Rows rows{first, heads, count, dim, count * heads * dim, heads * dim};
  at::parallel_for(0, blocks * count, grain(dim), [&](int64_t begin, int64_t end) {
    Lanes sinh2, norms, shrinks;
    by_lanes(begin, end, [&](int64_t k, int64_t r) {
      const float* p = sums + r * (dim + 2);
      const double t = static_cast<double>(p[0]) + p[1], square = dot(p + 2, p + 2, dim), length = std::sqrt(square);
      double norm = (t - length) * (t + length);
      norm = norm < least * least ? least * least : norm;
      sinh2[k] = static_cast<float>(square / norm);
      norms[k] = static_cast<float>(norm);
      time[first * count + r] = static_cast<float>(t);
    }, [&] { shrinks = asinhc(sinh2.load()) / (norms.load().sqrt() * V(rate)); }, [&](int64_t k, int64_t r) {
      const float* p = sums + r * (dim + 2) + 2;
      float* o = out + rows[r];
      const V shrink(shrinks[k]);
      vectors(dim, [&](int64_t i, int64_t c) { (V::loadu(p + i, c) * shrink).store(o + i, c); });
    });
  });
}

// Slopes of `means`: grad and out [B, N, H D], time [B H, N] -> by_sums [L, N, 2 + D]; returns the slope in rate.
double mean_slopes(const float* grad, const float* out, const float* time, float* by_sums, int64_t first,
                   int64_t blocks, int64_t heads, int64_t count, int64_t dim, double rate) {
  const Rows rows{first, heads, count, dim, count * heads * dim, heads * dim};
  Total by_rate;
  at::parallel_for(0, blocks * count, grain(dim), [&](int64_t begin, int64_t end) {
    double rates = 0;
    Lanes square, along, sums_time, by_time, of_d, of_m;
    by_lanes(begin, end, [&](int64_t k, int64_t r) {
      const float *d = grad + rows[r], *m = out + rows[r];
      square[k] = dot(m, m, dim);
      along[k] = dot(d, m, dim);
      sums_time[k] = time[first * count + r];
      rates -= along[k] / rate;
    }, [&] {
      const V one(1), angle2 = square.load() * V(rate * rate);
      const Radial mean(angle2, 40);  // further out than a mean of points can lie
      const V stretch = mean.radial, shrink = one / stretch, norm = angle2 * stretch * stretch, t = (norm + one).sqrt();
      const V per_norm = t / sums_time.load(), radial = per_norm * along.load() * stretch;
      by_time = radial.neg();
      of_d = per_norm * shrink * V(1 / rate);
      of_m = radial * stretch * V(rate) * fmadd(asinhc_slope(norm, shrink), V(2), one / t);
    }, [&](int64_t k, int64_t r) {
      const float *d = grad + rows[r], *m = out + rows[r];
      float* y = by_sums + r * (dim + 2);
      y[0] = y[1] = by_time[k];
      const V each_d(of_d[k]), each_m(of_m[k]);
      vectors(dim, [&](int64_t i, int64_t c) {
        fmadd(V::loadu(m + i, c), each_m, V::loadu(d + i, c) * each_d).store(y + 2 + i, c);
      });
    });
    by_rate.add(rates);
  });
  return by_rate.sum();
}

}  // extern "C"

namespace {

// angle^2 and angle / sinh(angle) of cosh(angle) - 1, by polynomials (Chebyshev interpolation): below 4 in that, in which
// both are smooth; above, with y = cosh(angle), in log y and in 1 / y^2.
inline void near_angle(const V& beyond, V& square, V& ratio) {
  const V x = fmadd(beyond, V(0.5f), V(-1));
  square = beyond * polynomial(x, {1.55363882f, -0.307188272f, 0.0897702351f, -0.030577084f, 0.0113092195f,
                                   -0.00440928619f, 0.00182744185f, -0.000769627979f, 0.000244866824f, -9.6022959e-05f,
                                   0.000114806171f, -5.43241731e-05f});
  ratio = polynomial(x, {0.623225272f, -0.217418775f, 0.0887896791f, -0.0385188423f, 0.0172588266f, -0.00785360113f,
                         0.00362795289f, -0.00182115496f, 0.000882746885f, -0.000214850079f, 8.16093598e-05f,
                         -0.00020243859f, 0.000104264946f});
}
inline void far_angle(const V& beyond, V& square, V& ratio) {
  const V one(1), y = beyond + one, i = one / y, z = i * i;
  const Bits bits = at::vec::cast<int32_t>(y), k = (bits - Bits(0x3f3504f3)) >> Bits(23);
  const V f = at::vec::cast<float>(bits - (k << Bits(23))) - one;  // y = 2^k (1 + f)
  const V rest = polynomial(z, {0.693147182f, -0.250000596f, -0.093677789f, -0.0549327433f});
  const V log = f * polynomial(f, {1.f, -0.499999881f, 0.333341837f, -0.250021547f, 0.199569777f, -0.165606961f,
                                   0.149490952f, -0.143773302f, 0.0874394551f});
  const V angle = fmadd(at::vec::convert_to_fp_of_same_size<float>(k), V(0.693147182f), rest + log);
  square = angle * angle;
  ratio = angle * i * polynomial(z, {1.f, 0.500004709f, 0.374414265f, 0.335534245f});
}
inline void angles(const V& beyond, V& square, V& ratio) {
  const V close = beyond < V(4);  // NaN is not
  const int far = close.zero_mask();
  if (far == 0) return near_angle(beyond, square, ratio);
  far_angle(beyond, square, ratio);
  if (far == (1 << W) - 1) return;
  V near_square, near_ratio;
  near_angle(beyond, near_square, near_ratio);
  square = V::blendv(square, near_square, close);
  ratio = V::blendv(ratio, near_ratio, close);
}

// Logits -scale angle^2 / 2 of a row of cosh(angle) - 1, in place; keeps angle^2 and angle / sinh(angle) where asked to.
// Returns the largest that the mask lets be seen.
template <bool KEEP>
inline float row_logits(float* row, float* squares, float* ratios, const bool* mask, int64_t step, int64_t m,
                        float scale) {
  const V zero(0), factor(-0.5f * scale);
  V most(std::numeric_limits<float>::lowest());
  vectors(m, [&](int64_t i, int64_t c) {
    V square, ratio;
    angles(at::vec::maximum(V::loadu(row + i, c), zero), square, ratio);
    const V logit = square * factor;
    if (KEEP) {
      square.store(squares + i, c);
      ratio.store(ratios + i, c);
    }
    logit.store(row + i, c);
    most = V::set(most, at::vec::maximum(most, logit), c);
  });
  if (mask == nullptr) {
    return at::vec::vec_reduce_all<float>([](const V& a, const V& b) { return at::vec::maximum(a, b); }, most);
  }
  float top = std::numeric_limits<float>::lowest();
  for (int64_t j = 0; j < m; ++j) {
    row[j] = mask[j * step] ? row[j] : std::numeric_limits<float>::lowest();
    top = std::max(top, row[j]);
  }
  return top;
}

// The mask's row of query r % count of head r / count, of a block that begins at head `first`; null without a mask.
struct Mask {
  const bool* mask;
  int64_t heads, count, sb, sh, sn, sm;
  const bool* row(int64_t r, int64_t first) const {
    if (mask == nullptr) return nullptr;
    const int64_t n = r % count, l = first + r / count;
    return mask + l / heads * sb + l % heads * sh + n * sn;
  }
};
}  // namespace

extern "C" {

// Shares of keys in place of cosh(angle) - 1, without a common factor, the largest of a row being 1: the mean does not
// depend on their sum. pairs [L, N, M]; scale [H]; mask [B, H, N, M] with strides sb, sh, sn, sm, or null.
void shares(float* pairs, const float* scale, const bool* mask, int64_t first, int64_t blocks, int64_t heads,
            int64_t count, int64_t m, int64_t sb, int64_t sh, int64_t sn, int64_t sm) {
  const Mask hidden{mask, heads, count, sb, sh, sn};
  at::parallel_for(0, blocks * count, grain(m), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* row = pairs + r * m;
      const V top(row_logits<false>(row, nullptr, nullptr, hidden.row(r, first), sm, m,
                                    scale[(first + r / count) % heads]));
      vectors(m, [&](int64_t i, int64_t c) { (V::loadu(row + i, c) - top).exp_u20().store(row + i, c); });
    }
  });
}

// Backward of `shares`: pairs as there, becomes the shares; slopes [L, N, M] in the shares becomes the slope in
// cosh(angle) without its factor -scale; by_scale [L N] in the scales without their factor -1/2.
void share_slopes(float* pairs, float* slopes, float* by_scale, const float* scale, const bool* mask, int64_t first,
                  int64_t blocks, int64_t heads, int64_t count, int64_t m, int64_t sb, int64_t sh, int64_t sn,
                  int64_t sm) {
  const Mask hidden{mask, heads, count, sb, sh, sn};
  at::parallel_for(0, blocks * count, grain(m), [&](int64_t begin, int64_t end) {
    std::vector<float> squares(m), ratios(m);
    for (int64_t r = begin; r < end; ++r) {
      float *share = pairs + r * m, *slope = slopes + r * m;
      const bool* seen = hidden.row(r, first);
      const V top(row_logits<true>(share, squares.data(), ratios.data(), seen, sm, m, scale[(first + r / count) % heads]));
      if (seen != nullptr) {  // the shares of a row that may look nowhere do not depend on its angles
        for (int64_t j = 0; j < m; ++j) slope[j] = seen[j * sm] ? slope[j] : 0.f;
      }
      V sum(0);
      vectors(m, [&](int64_t i, int64_t c) {
        // The sum of share times slope is 0: the mean does not depend on the size of (T, S).
        const V e = (V::loadu(share + i, c) - top).exp_u20(), x = e * V::loadu(slope + i, c);
        sum = V::set(sum, fmadd(x, V::loadu(squares.data() + i, c), sum), c);
        e.store(share + i, c);
        (x * V::loadu(ratios.data() + i, c)).store(slope + i, c);
      });
      by_scale[r] = total(sum);
    }
  });
}

}  // extern "C"
