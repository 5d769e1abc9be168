// Batch normalisation of points [B, C, N] about their midpoint: batchnorm_ops.py and batchnorm_fused.py hold the
// formulas and the reference implementations. A pass works on blocks of positions; what belongs to a point is computed
// again in each pass from its squared length and its products with the two means, and what belongs to the batch is
// double.

#include "vectors.h"

namespace {

constexpr float TINY = 1e-30f, EPS8 = 8 * std::numeric_limits<float>::epsilon();

// The means of the points and of the results as space parts [2, C], and numbers of them.
struct Ends {
  double mean_t, bias_t;  // time parts
  double mean_less;       // mean_t - 1
  double between;         // cosh of their distance
  double lift;            // the learned mean's space part is lift times the tangent vector
  double length;          // of that tangent vector
  double free;            // 1 where it is below its cap, else 0
};

// What a pass over the points takes.
struct Batch {
  const float *x, *square, *along;  // [B, C, N], [B, N], [B, 2, N]
  int64_t count, width, positions;
  double rate, max_angle, max_turn, gain;

  const float* coordinate(int64_t b, int64_t c, int64_t n) const { return x + (b * width + c) * positions + n; }
  int64_t number(int64_t b, int64_t of, int64_t k, int64_t n) const { return (b * of + k) * positions + n; }
  // Calls f(image, first position, positions, sums) for each block, and adds up what it adds to the sums.
  template <typename F>
  std::vector<double> sums(int64_t columns, const F& f) const {
    Columns all(columns);
    at::parallel_for(0, count * blocks(positions), grain(width * BLOCK), [&](int64_t begin, int64_t end) {
      Columns::Part part(all);
      each_block(begin, end, positions, [&](int64_t b, int64_t first, int64_t n) {
        f(b, first, n, part);
        part.row();
      });
    });
    std::vector<double> found(columns);
    all.store(found.data());
    return found;
  }
};

// A point: its angle, time part, the factor of its space part, and its time part - 1.
struct Point {
  V r, t, f, less, free;
  Point(const V& square, const Batch& p) {
    const V one(1), zero(0), rate(static_cast<float>(p.rate)), most(static_cast<float>(p.max_angle));
    r = least(square, TINY).sqrt() * rate;
    const V s = sinh(at::vec::clamp_max(r, most)), n = s * s;
    t = (n + one).sqrt();
    f = s * rate / r;
    less = n / (t + one);
    free = V::blendv(zero, one, r < most);
  }
};

// Its way from the mean: half the angle, half of the angle's sinh, cosh of the angles from both means.
struct Way {
  V cosh, cosh_bias, half, sinh;
  Way(const Point& x, const V& along, const V& along_bias, const Ends& e) {
    const V one(1), mean_t(static_cast<float>(e.mean_t));
    cosh = x.t * mean_t - x.f * along;
    cosh_bias = x.t * V(static_cast<float>(e.bias_t)) - x.f * along_bias;
    const V sum = fmadd(x.less, mean_t, V(static_cast<float>(e.mean_less))) - x.f * along;
    const V half2 = least(sum * V(0.5f), TINY), sinh_half = half2.sqrt(), cosh_half = (half2 + one).sqrt();
    half = log1p(half2 / (cosh_half + one) + sinh_half);
    sinh = sinh_half * cosh_half;
  }
};

// The result: shrink (k f x + mean of_mean + bias of_bias). Names are those of batchnorm_fused.py.
struct Result {
  V turn, sinh_out, cosh_out, k, mixed, mixed_bias, of_mean, of_bias, time, n2, shrink;
  Result(const Point& x, const Way& way, const Ends& e, const Batch& p) {
    const V one(1), mean_t(static_cast<float>(e.mean_t)), bias_t(static_cast<float>(e.bias_t)),
        per(static_cast<float>(1 / (1 + e.between))), between(static_cast<float>(e.between));
    turn = at::vec::clamp_max(way.half * V(static_cast<float>(2 * p.gain)), V(static_cast<float>(p.max_turn)));
    sinh_out = sinh(turn);
    cosh_out = fmadd(sinh_out, sinh_out, one).sqrt();
    k = sinh_out / way.sinh * V(0.5f);
    mixed = (way.cosh + way.cosh_bias) * per * V(-1);
    mixed_bias = (way.cosh * between - way.cosh_bias) * per;
    of_mean = mixed * k;
    of_bias = fmadd(mixed_bias, k, cosh_out);
    time = fmadd(of_mean, mean_t, fmadd(of_bias, bias_t, k * x.t));
    n2 = least(fmadd(time, time, V(-1)), TINY);
    const V n = n2.sqrt();
    shrink = log1p(n2 / (time + one) + n) / (n * V(static_cast<float>(p.rate)));
  }
};

// Slopes in these numbers, from those in the result: of_x, of_mean, of_bias are its products with x and the means.
struct ResultSlope {
  V by_shrink, by_k_f, by_time, by_mean, by_bias, log_k, log_turn, log_gain, moves;
  ResultSlope(const V& of_x, const V& of_mean, const V& of_bias, const Point& x, const Result& o, const Ends& e,
              const Batch& p) {
    const V one(1), zero(0), per_rate(static_cast<float>(1 / p.rate)), k_f = o.k * x.f;
    by_shrink = fmadd(of_x, k_f, fmadd(of_mean, o.of_mean, of_bias * o.of_bias));
    by_k_f = of_x * o.shrink;
    by_time = (per_rate - o.shrink * o.time) * by_shrink / least(o.n2, EPS8);
    by_mean = fmadd(of_mean, o.shrink, by_time * V(static_cast<float>(e.mean_t)));
    by_bias = fmadd(of_bias, o.shrink, by_time * V(static_cast<float>(e.bias_t)));
    log_k = fmadd(fmadd(by_mean, o.mixed, fmadd(by_bias, o.mixed_bias, by_time * x.t)), o.k, by_k_f * k_f);
    log_turn = (o.turn * o.cosh_out / o.sinh_out - one) * log_k;
    moves = V::blendv(zero, one, o.turn < V(static_cast<float>(p.max_turn)));
    log_gain = fmadd(by_bias, o.sinh_out * o.turn, log_turn + log_k) * moves;
  }
};

}  // namespace

extern "C" {

// Squared lengths [B, N] of points, and sums [C + 1] of their space parts and of their time parts - 1.
void norm_sums(const Batch* batch, float* square, double* sums) {
  const Batch& p = *batch;
  const auto found = p.sums(p.width + 1, [&](int64_t b, int64_t first, int64_t n, Columns::Part& part) {
    float factor[BLOCK] = {};
    for (int64_t k = 0; k < p.width; ++k) {
      const float* x = p.coordinate(b, k, first);
      vectors(n, [&](int64_t i, int64_t c) {
        const V v = V::loadu(x + i, c);
        fmadd(v, v, V::loadu(factor + i)).store(factor + i);
      });
    }
    V less(0);
    vectors(n, [&](int64_t i, int64_t c) {
      const V s = V::loadu(factor + i);
      s.store(square + p.number(b, 1, 0, first) + i, c);
      const Point v(s, p);
      v.f.store(factor + i);
      less = V::set(less, less + v.less, c);
    });
    part.add(p.width, less);
    for (int64_t k = 0; k < p.width; ++k) {
      const float* x = p.coordinate(b, k, first);
      V sum(0);
      vectors(n, [&](int64_t i, int64_t c) { sum = fmadd(V::loadu(x + i, c), V::loadu(factor + i), sum); });
      part.add(k, sum);
    }
  });
  std::copy(found.begin(), found.end(), sums);
}

// Means as space parts, pair [2, C], and their numbers, from the sums of `norm_sums` over `count` points, or where that
// is 0 from a mean that pair already has; bias [C] is the learned mean, a tangent vector.
void norm_ends(const double* sums, double count, const float* bias, double* pair, Ends* ends, int64_t width,
               double rate, double max_angle) {
  double *mean = pair, *end = pair + width, square = 0, n = 0, inner = 0;
  if (count > 0) {
    for (int64_t k = 0; k < width; ++k) square += sums[k] * sums[k];
    const double total = sums[width] + count, length = std::sqrt(square);
    const double scale = 1 / std::sqrt(std::max((total - length) * (total + length), count * count));
    for (int64_t k = 0; k < width; ++k) mean[k] = sums[k] * scale;
  }
  square = 0;
  for (int64_t k = 0; k < width; ++k) {
    square += mean[k] * mean[k];
    n += static_cast<double>(bias[k]) * bias[k];
  }
  ends->length = n = std::sqrt(std::max(n, 1e-30));
  ends->lift = std::sinh(std::min(n * rate, max_angle)) / n;
  ends->free = n * rate < max_angle;
  for (int64_t k = 0; k < width; ++k) {
    end[k] = bias[k] * ends->lift;
    inner += mean[k] * end[k];
  }
  ends->mean_t = std::sqrt(1 + square);
  ends->bias_t = std::sqrt(1 + n * n * ends->lift * ends->lift);
  ends->mean_less = square / (1 + ends->mean_t);
  ends->between = ends->mean_t * ends->bias_t - inner;
}

// Products [B, 2, N] of the points with the means; returns the sum of the squares of half their angles from the first.
double norm_angles(const Batch* batch, float* along, const double* pair, const Ends* ends) {
  const Batch& p = *batch;
  return p.sums(1, [&](int64_t b, int64_t first, int64_t n, Columns::Part& part) {
    float of_mean[BLOCK] = {}, of_bias[BLOCK] = {};
    for (int64_t k = 0; k < p.width; ++k) {
      const float* x = p.coordinate(b, k, first);
      const V mean(static_cast<float>(pair[k])), bias(static_cast<float>(pair[p.width + k]));
      vectors(n, [&](int64_t i, int64_t c) {
        const V v = V::loadu(x + i, c);
        fmadd(v, mean, V::loadu(of_mean + i)).store(of_mean + i);
        fmadd(v, bias, V::loadu(of_bias + i)).store(of_bias + i);
      });
    }
    V sum(0);
    vectors(n, [&](int64_t i, int64_t c) {
      const V mean = V::loadu(of_mean + i), bias = V::loadu(of_bias + i);
      mean.store(along + p.number(b, 2, 0, first) + i, c);
      bias.store(along + p.number(b, 2, 1, first) + i, c);
      const Point x(V::loadu(p.square + p.number(b, 1, 0, first) + i, c), p);
      const V half = Way(x, mean, bias, *ends).half;
      sum = V::set(sum, fmadd(half, half, sum), c);
    });
    part.add(0, sum);
  })[0];
}

// The result [B, C, N].
void norm_results(const Batch* batch, const double* pair, const Ends* ends, float* out) {
  const Batch& p = *batch;
  p.sums(0, [&](int64_t b, int64_t first, int64_t n, Columns::Part&) {
    float of_x[BLOCK], of_mean[BLOCK], of_bias[BLOCK];
    vectors(n, [&](int64_t i, int64_t c) {
      const Point x(V::loadu(p.square + p.number(b, 1, 0, first) + i, c), p);
      const Way way(x, V::loadu(p.along + p.number(b, 2, 0, first) + i, c),
                    V::loadu(p.along + p.number(b, 2, 1, first) + i, c), *ends);
      const Result o(x, way, *ends, p);
      (o.k * x.f * o.shrink).store(of_x + i);
      (o.of_mean * o.shrink).store(of_mean + i);
      (o.of_bias * o.shrink).store(of_bias + i);
    });
    for (int64_t k = 0; k < p.width; ++k) {
      const float* x = p.coordinate(b, k, first);
      float* to = out + p.number(b, p.width, k, first);
      const V mean(static_cast<float>(pair[k])), bias(static_cast<float>(pair[p.width + k]));
      vectors(n, [&](int64_t i, int64_t c) {
        const V w = fmadd(mean, V::loadu(of_mean + i), bias * V::loadu(of_bias + i));
        fmadd(V::loadu(x + i, c), V::loadu(of_x + i), w).store(to + i, c);
      });
    }
  });
}

// First of three passes of the gradient: products [B, 3, N] of grad with x and both means; returns the slope in log gain.
double norm_gain_slope(const Batch* batch, const float* grad, const double* pair, const Ends* ends, float* products) {
  const Batch& p = *batch;
  return p.sums(1, [&](int64_t b, int64_t first, int64_t n, Columns::Part& part) {
    float of_x[BLOCK] = {}, of_mean[BLOCK] = {}, of_bias[BLOCK] = {};
    for (int64_t k = 0; k < p.width; ++k) {
      const float *x = p.coordinate(b, k, first), *g = grad + p.number(b, p.width, k, first);
      const V mean(static_cast<float>(pair[k])), bias(static_cast<float>(pair[p.width + k]));
      vectors(n, [&](int64_t i, int64_t c) {
        const V d = V::loadu(g + i, c);
        fmadd(V::loadu(x + i, c), d, V::loadu(of_x + i)).store(of_x + i);
        fmadd(mean, d, V::loadu(of_mean + i)).store(of_mean + i);
        fmadd(bias, d, V::loadu(of_bias + i)).store(of_bias + i);
      });
    }
    V sum(0);
    vectors(n, [&](int64_t i, int64_t c) {
      const V by_x = V::loadu(of_x + i), by_mean = V::loadu(of_mean + i), by_bias = V::loadu(of_bias + i);
      by_x.store(products + p.number(b, 3, 0, first) + i, c);
      by_mean.store(products + p.number(b, 3, 1, first) + i, c);
      by_bias.store(products + p.number(b, 3, 2, first) + i, c);
      const Point x(V::loadu(p.square + p.number(b, 1, 0, first) + i, c), p);
      const Way way(x, V::loadu(p.along + p.number(b, 2, 0, first) + i, c),
                    V::loadu(p.along + p.number(b, 2, 1, first) + i, c), *ends);
      const ResultSlope d(by_x, by_mean, by_bias, x, Result(x, way, *ends, p), *ends, p);
      sum = V::set(sum, sum + d.log_gain, c);
    });
    part.add(0, sum);
  })[0];
}

// Second pass: slopes in both means as space parts, by_pair [2, C]; in rate, as far as it enters behind the points. The
// products of the first pass become slopes: factors [B, 5, N] of grad and of the means in by_x, slopes in t and f.
// per_square: slope in the square of a point's angle from the mean.
double norm_mean_slopes(const Batch* batch, const float* grad, const double* pair, const Ends* ends,
                        const float* products, double per_square, float* factors, double* by_pair) {
  const Batch& p = *batch;
  const V one(1), zero(0), gain(static_cast<float>(p.gain)), mean_t(static_cast<float>(ends->mean_t)),
      bias_t(static_cast<float>(ends->bias_t)), per(static_cast<float>(1 / (1 + ends->between))),
      between(static_cast<float>(ends->between)), by_square(static_cast<float>(2 * per_square));
  const int64_t c2 = 2 * p.width;
  const auto sums = p.sums(c2 + 4, [&](int64_t b, int64_t first, int64_t n, Columns::Part& part) {
    float of_mean[BLOCK], of_bias[BLOCK], row_mean[BLOCK], row_bias[BLOCK];
    V by_mean_t(0), by_bias_t(0), by_between(0), by_rate(0);
    vectors(n, [&](int64_t i, int64_t c) {
      const V along = V::loadu(p.along + p.number(b, 2, 0, first) + i, c),
              along_bias = V::loadu(p.along + p.number(b, 2, 1, first) + i, c);
      const Point x(V::loadu(p.square + p.number(b, 1, 0, first) + i, c), p);
      const Way way(x, along, along_bias, *ends);
      const Result o(x, way, *ends, p);
      const ResultSlope d(V::loadu(products + p.number(b, 3, 0, first) + i, c),
                          V::loadu(products + p.number(b, 3, 1, first) + i, c),
                          V::loadu(products + p.number(b, 3, 2, first) + i, c), x, o, *ends, p);
      // By the cosine of the angle, whose slope in the logarithm of the angle is angle sinh(angle).
      const V ratio = way.half / way.sinh;
      const V growth = (ratio * way.cosh - d.moves) / least(way.half * way.sinh * V(4), EPS8);
      V by_angle = d.log_turn / least(o.turn * o.turn, EPS8) * ratio * gain;
      by_angle = fmadd(d.by_bias, o.k, by_angle) * d.moves * gain;
      by_angle = by_angle - d.log_k * growth;
      by_angle = fmadd(ratio, by_square, by_angle);
      // Where rounding has put the cosine below 1 the angle is clamped to zero.
      by_angle = V::blendv(zero, by_angle, way.cosh >= one);
      const V by_mixed = d.by_mean * o.k, by_mixed_bias = d.by_bias * o.k;
      const V by_cosh = (by_mixed_bias * between - by_mixed) * per + by_angle;
      const V by_cosh_bias = (by_mixed + by_mixed_bias) * per * V(-1);
      const V by_t = fmadd(mean_t, by_cosh, fmadd(bias_t, by_cosh_bias, d.by_time * o.k));
      const V by_f = d.by_k_f * o.k - fmadd(by_cosh, along, by_cosh_bias * along_bias);
      const V mean_row = by_cosh * x.f, bias_row = by_cosh_bias * x.f;
      by_between = V::set(by_between, fmadd(by_mixed + by_mixed_bias, way.cosh + way.cosh_bias, by_between), c);
      by_mean_t = V::set(by_mean_t, fmadd(by_cosh, x.t, fmadd(o.of_mean, d.by_time, by_mean_t)), c);
      by_bias_t = V::set(by_bias_t, fmadd(by_cosh_bias, x.t, fmadd(o.of_bias, d.by_time, by_bias_t)), c);
      by_rate = V::set(by_rate, by_rate - d.by_shrink * o.shrink, c);
      (o.of_mean * o.shrink).store(of_mean + i);
      (o.of_bias * o.shrink).store(of_bias + i);
      mean_row.store(row_mean + i);
      bias_row.store(row_bias + i);
      (o.k * x.f * o.shrink).store(factors + p.number(b, 5, 0, first) + i, c);
      mean_row.store(factors + p.number(b, 5, 1, first) + i, c);
      bias_row.store(factors + p.number(b, 5, 2, first) + i, c);
      by_t.store(factors + p.number(b, 5, 3, first) + i, c);
      by_f.store(factors + p.number(b, 5, 4, first) + i, c);
    });
    part.add(c2, by_mean_t);
    part.add(c2 + 1, by_bias_t);
    part.add(c2 + 2, by_between);
    part.add(c2 + 3, by_rate);
    for (int64_t k = 0; k < p.width; ++k) {
      const float *x = p.coordinate(b, k, first), *g = grad + p.number(b, p.width, k, first);
      V by_mean(0), by_bias(0);
      vectors(n, [&](int64_t i, int64_t c) {
        const V d = V::loadu(g + i, c), v = V::loadu(x + i, c) * V(-1);
        by_mean = fmadd(d, V::loadu(of_mean + i), fmadd(v, V::loadu(row_mean + i), by_mean));
        by_bias = fmadd(d, V::loadu(of_bias + i), fmadd(v, V::loadu(row_bias + i), by_bias));
      });
      part.add(k, by_mean);
      part.add(p.width + k, by_bias);
    }
  });
  const double by_between = sums[c2 + 2] / ((1 + ends->between) * (1 + ends->between));
  const double in_mean = (sums[c2] + by_between * ends->bias_t) / ends->mean_t,
               in_bias = (sums[c2 + 1] + by_between * ends->mean_t) / ends->bias_t;
  for (int64_t k = 0; k < p.width; ++k) {
    const double mean = pair[k], bias = pair[p.width + k];
    by_pair[k] = sums[k] + in_mean * mean - by_between * bias;
    by_pair[p.width + k] = sums[p.width + k] + in_bias * bias - by_between * mean;
  }
  return sums[c2 + 3] / p.rate;
}

// Slopes in the sums of `norm_sums` [C + 1], from that in their midpoint [C]; count points.
void norm_sum_slopes(const double* sums, double count, const double* pair, const Ends* ends, const double* by_mean,
                     double* by_sums, int64_t width) {
  const double total = sums[width] + count, scale = ends->mean_t / total;
  double along = 0;
  for (int64_t k = 0; k < width; ++k) along += by_mean[k] * pair[k];
  along *= count * scale < 1 ? scale : 0;
  for (int64_t k = 0; k < width; ++k) by_sums[k] = by_mean[k] * scale + along * pair[k];
  by_sums[width] = -along * total * scale;
}

// Slopes in the learned mean's tangent vector [C], from those in its space part; returns that in rate.
double norm_bias_slopes(const float* bias, const Ends* ends, const double* by_space, float* by_bias, int64_t width,
                        double rate) {
  double along = 0;
  for (int64_t k = 0; k < width; ++k) along += by_space[k] * bias[k];
  const double n2 = ends->length * ends->length, cosh = ends->bias_t * ends->free;
  const double outward = (rate * cosh - ends->lift) * along / n2;
  for (int64_t k = 0; k < width; ++k) by_bias[k] = static_cast<float>(by_space[k] * ends->lift + outward * bias[k]);
  return along * cosh;
}

// Third pass: slopes in x [B, C, N], from the factors of the second and the slopes in sums or null; returns that in
// rate, as far as it enters by the points.
double norm_slopes(const Batch* batch, const float* grad, const double* pair, const float* factors,
                   const double* by_sums, float* by_x) {
  const Batch& p = *batch;
  const std::vector<double> none(p.width + 1, 0.0);
  const double* of_sum = by_sums ? by_sums : none.data();
  const V one(1), rate(static_cast<float>(p.rate)), by_total(static_cast<float>(of_sum[p.width])),
      per_rate(static_cast<float>(1 / p.rate));
  return p.sums(1, [&](int64_t b, int64_t first, int64_t n, Columns::Part& part) {
    float along[BLOCK] = {}, f[BLOCK], of_x[BLOCK];
    for (int64_t k = 0; k < p.width && by_sums; ++k) {
      const float* x = p.coordinate(b, k, first);
      const V each(static_cast<float>(of_sum[k]));
      vectors(n, [&](int64_t i, int64_t c) {
        fmadd(V::loadu(x + i, c), each, V::loadu(along + i)).store(along + i);
      });
    }
    V by_rate(0);
    vectors(n, [&](int64_t i, int64_t c) {
      const Point x(V::loadu(p.square + p.number(b, 1, 0, first) + i, c), p);
      const V by_t = (V::loadu(factors + p.number(b, 5, 3, first) + i, c) + by_total) * x.free;
      const V by_f = V::loadu(factors + p.number(b, 5, 4, first) + i, c) + V::loadu(along + i);
      const V r2 = x.r * x.r;
      const V radial = (x.t * x.free * rate / x.f - one) / least(r2, EPS8) * by_f;
      const V outward = fmadd(radial, rate, by_t) * x.f * rate;
      const V more = fmadd(outward * r2, per_rate * per_rate, by_f * x.f);
      by_rate = V::set(by_rate, by_rate + more, c);
      x.f.store(f + i);
      outward.store(of_x + i);
    });
    part.add(0, by_rate);
    const float* own = factors + p.number(b, 5, 0, first);
    const float *row_mean = factors + p.number(b, 5, 1, first), *row_bias = factors + p.number(b, 5, 2, first);
    for (int64_t k = 0; k < p.width; ++k) {
      const int64_t at = p.number(b, p.width, k, first);
      const V mean(static_cast<float>(-pair[k])), bias(static_cast<float>(-pair[p.width + k])),
          sum(static_cast<float>(of_sum[k]));
      vectors(n, [&](int64_t i, int64_t c) {
        V y = V::loadu(p.x + at + i, c) * V::loadu(of_x + i);
        y = fmadd(V::loadu(grad + at + i, c), V::loadu(own + i, c), y);
        y = fmadd(V::loadu(row_mean + i, c), mean, fmadd(V::loadu(row_bias + i, c), bias, y));
        fmadd(V::loadu(f + i), sum, y).store(by_x + at + i, c);
      });
    }
  })[0] / p.rate;
}

// Moves running statistics to those of a batch: the mean [C] to a point between, by the gain of a Kalman filter that is
// at least `least`, or by `weight` where that is positive; see `_track` and `_share` of batchnorm.py.
void norm_track(const double* mean, float* running_mean, float* running_var, float* movement, int64_t width,
                double spread, double curvature, double rate, double count, double least, double weight,
                double smoothing, double most) {
  double n = 0, square = 0, apart = 0;
  for (int64_t k = 0; k < width; ++k) {
    n += static_cast<double>(running_mean[k]) * running_mean[k];
    square += mean[k] * mean[k];
  }
  n = std::sqrt(std::max(n, 1e-30));
  const double stretch = std::sinh(n * rate) / n, time = std::cosh(n * rate), later = std::sqrt(1 + square) - time;
  for (int64_t k = 0; k < width; ++k) {
    const double way = mean[k] - running_mean[k] * stretch;
    apart += way * way;
  }
  if (!(weight > 0) && least != 0) {
    const double noise = spread / ((1 + spread) * count);
    const double moved = std::clamp((apart - later * later) / std::max(noise, 1e-30), 0.0, most);
    *movement += static_cast<float>(smoothing * (moved - *movement));
    weight = std::max(1 - 1 / static_cast<double>(*movement), least);
  }
  std::vector<double> space(width);
  double length = 0;
  for (int64_t k = 0; k < width; ++k) {
    const double old = running_mean[k] * stretch;
    space[k] = old + weight * (mean[k] - old);
    length += space[k] * space[k];
  }
  const double total = time + weight * later, size = std::sqrt(length);
  const double scale = 1 / std::sqrt(std::max((total - size) * (total + size), 1.0));
  const double sinh = std::max(size * scale, 1e-15), shrink = std::asinh(sinh) / sinh / rate * scale;
  for (int64_t k = 0; k < width; ++k) running_mean[k] = static_cast<float>(space[k] * shrink);
  *running_var += static_cast<float>(weight * (spread / curvature - *running_var));
}

}  // extern "C"
