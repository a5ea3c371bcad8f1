// The four passes of a batch normalization over ranks on a CPU; each goes over memory once.
//
// Built by dq/native.py and called through ctypes on the data of float32 tensors. A tensor consists
// of `outer` times `channels` rows of `inner` values: contiguous (N, C, *), or, with inner = 1, a
// matrix with one column per channel (channels-last). The moments that ranks exchange are double.
//
// No sum suffers from cancellation: values are summed as deviations from a nearby mean, in float
// over blocks that fit the cache and in double over the blocks. A mean is passed as a float plus
// the rounding error of that float. Threads share channels or fixed parts of the rows, so results
// do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t kBlock = 1 << 12;  // Values of a channel summed in float: 16 KiB, half of an L1.
constexpr int64_t kChunk = 1 << 15;  // Values of a matrix summed in float: 128 KiB, fits an L2.
constexpr int64_t kMostRows = 256;   // ... but not more rows than this.
constexpr int64_t kMostParts = 64;   // Parts of a matrix that threads share.
constexpr int64_t kSmall = 1 << 14;  // Up to this many values one thread is faster.

typedef float Lanes __attribute__((vector_size(32)));
constexpr int kLanes = 8, kUnroll = 4;

inline Lanes load(const float* p) {
  Lanes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Lanes v) { std::memcpy(p, &v, sizeof v); }

inline double sum_of(const Lanes* lanes) {
  double sum = 0.0;
  for (int k = 0; k < kUnroll; ++k)
    for (int j = 0; j < kLanes; ++j) sum += lanes[k][j];
  return sum;
}

inline double not_negative(double x) { return x < 0.0 ? 0.0 : x; }  // A NaN stays NaN.

struct Shape {
  int64_t outer, channels, inner;
  bool is_matrix() const { return inner == 1; }
  int64_t size() const { return outer * channels * inner; }
  int64_t count() const { return outer * inner; }  // Samples of a channel.
};

struct Moments {  // Chan, Golub and LeVeque 1979, with a sum of squared deviations.
  double count = 0.0, mean = 0.0, squares = 0.0;

  void merge(double n, double other_mean, double other_squares) {
    const double total = count + n, delta = other_mean - mean;
    mean += delta * (n / total);
    squares += other_squares + delta * delta * (count * n / total);
    count = total;
  }
};

struct Pair {
  double first = 0.0, second = 0.0;
};

// ---- Values of a channel as rows, `stride` apart ------------------------------------------------

// Calls `work(begin, rows, columns)` for blocks of a channel that fit the cache.
template <typename Work>
void for_blocks(Shape s, int64_t channel, Work work) {
  const int64_t stride = s.channels * s.inner;
  const int64_t height = std::max<int64_t>(1, kBlock / s.inner);
  for (int64_t n = 0; n < s.outer; n += height) {
    const int64_t rows = std::min(height, s.outer - n);
    for (int64_t i = 0; i < s.inner; i += kBlock)
      work(n * stride + channel * s.inner + i, rows, std::min(kBlock, s.inner - i));
  }
}

double block_sum(const float* x, int64_t stride, int64_t rows, int64_t columns) {
  Lanes sums[kUnroll] = {};
  double rest = 0.0;
  for (int64_t r = 0; r < rows; ++r, x += stride) {
    int64_t i = 0;
    for (; i + kUnroll * kLanes <= columns; i += kUnroll * kLanes)
      for (int k = 0; k < kUnroll; ++k) sums[k] += load(x + i + k * kLanes);
    for (; i + kLanes <= columns; i += kLanes) sums[0] += load(x + i);
    for (; i < columns; ++i) rest += x[i];
  }
  return rest + sum_of(sums);
}

// Sums of deviations from `middle` and of their squares.
Pair block_deviations(const float* x, int64_t stride, int64_t rows, int64_t columns, float middle) {
  Lanes sums[kUnroll] = {}, squares[kUnroll] = {};
  Pair rest;
  for (int64_t r = 0; r < rows; ++r, x += stride) {
    int64_t i = 0;
    for (; i + kUnroll * kLanes <= columns; i += kUnroll * kLanes)
      for (int k = 0; k < kUnroll; ++k) {
        const Lanes d = load(x + i + k * kLanes) - middle;
        sums[k] += d;
        squares[k] += d * d;
      }
    for (; i + kLanes <= columns; i += kLanes) {
      const Lanes d = load(x + i) - middle;
      sums[0] += d;
      squares[0] += d * d;
    }
    for (; i < columns; ++i) {
      const double d = double(x[i]) - middle;
      rest.first += d;
      rest.second += d * d;
    }
  }
  return {rest.first + sum_of(sums), rest.second + sum_of(squares)};
}

Moments channel_moments(const float* x, Shape s, int64_t channel) {
  const int64_t stride = s.channels * s.inner;
  Moments found;
  for_blocks(s, channel, [&](int64_t begin, int64_t rows, int64_t columns) {
    const double n = double(rows) * columns;
    // Need not be exact: the mean is this value plus the mean deviation from it.
    const float middle = float(block_sum(x + begin, stride, rows, columns) / n);
    const Pair sums = block_deviations(x + begin, stride, rows, columns, middle);
    found.merge(n, middle + sums.first / n,
                not_negative(sums.second - sums.first * sums.first / n));
  });
  return found;
}

// Sums of the gradient and of its product with deviations from `middle`.
Pair channel_sums(const float* gradient, const float* x, Shape s, int64_t channel, float middle) {
  const int64_t stride = s.channels * s.inner;
  Pair found;
  for_blocks(s, channel, [&](int64_t begin, int64_t rows, int64_t columns) {
    Lanes sums[kUnroll] = {}, products[kUnroll] = {};
    for (int64_t r = 0; r < rows; ++r) {
      const float *row = x + begin + r * stride, *up = gradient + begin + r * stride;
      int64_t i = 0;
      for (; i + kUnroll * kLanes <= columns; i += kUnroll * kLanes)
        for (int k = 0; k < kUnroll; ++k) {
          const Lanes g = load(up + i + k * kLanes);
          sums[k] += g;
          products[k] += g * (load(row + i + k * kLanes) - middle);
        }
      for (; i + kLanes <= columns; i += kLanes) {
        const Lanes g = load(up + i);
        sums[0] += g;
        products[0] += g * (load(row + i) - middle);
      }
      for (; i < columns; ++i) {
        found.first += up[i];
        found.second += double(up[i]) * (row[i] - middle);
      }
    }
    found.first += sum_of(sums);
    found.second += sum_of(products);
  });
  return found;
}

// ---- A matrix with one column per channel -------------------------------------------------------

struct Parts {  // The rows of a matrix in parts of several chunks; depends only on its shape.
  int64_t rows, height, chunks, number;

  explicit Parts(Shape s)
      : rows(s.outer),
        height(std::max<int64_t>(8, std::min(kMostRows, kChunk / s.channels))),
        chunks((rows + height - 1) / height),
        number(std::min(kMostParts, chunks)) {}

  template <typename Work>  // Calls `work(first row, number of rows)` for each chunk of a part.
  void for_chunks(int64_t part, Work work) const {
    for (int64_t k = chunks * part / number; k < chunks * (part + 1) / number; ++k)
      work(k * height, std::min(height, rows - k * height));
  }
};

// Calls `four(row)` for four rows at a time and `one(row)` for the rest.
template <typename Four, typename One>
void for_rows(int64_t rows, Four four, One one) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) four(r);
  for (; r < rows; ++r) one(r);
}

void add_rows(const float* x, int64_t rows, int64_t n, float* __restrict sums) {
  for_rows(
      rows,
      [&](int64_t r) {
        const float *a = x + r * n, *b = a + n, *c = b + n, *d = c + n;
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i) sums[i] += (a[i] + b[i]) + (c[i] + d[i]);
      },
      [&](int64_t r) {
        const float* a = x + r * n;
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i) sums[i] += a[i];
      });
}

void add_deviations(const float* x, int64_t rows, int64_t n, const float* __restrict middle,
                    float* __restrict sums, float* __restrict squares) {
  for_rows(
      rows,
      [&](int64_t r) {
        const float *a = x + r * n, *b = a + n, *c = b + n, *d = c + n;
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i) {
          const float m = middle[i], p = a[i] - m, q = b[i] - m, u = c[i] - m, v = d[i] - m;
          sums[i] += (p + q) + (u + v);
          squares[i] += (p * p + q * q) + (u * u + v * v);
        }
      },
      [&](int64_t r) {
        const float* a = x + r * n;
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i) {
          const float p = a[i] - middle[i];
          sums[i] += p;
          squares[i] += p * p;
        }
      });
}

void add_products(const float* gradient, const float* x, int64_t rows, int64_t n,
                  const float* __restrict middle, float* __restrict sums,
                  float* __restrict products) {
  for_rows(
      rows,
      [&](int64_t r) {
        const float *a = x + r * n, *b = a + n, *c = b + n, *d = c + n;
        const float *e = gradient + r * n, *f = e + n, *g = f + n, *h = g + n;
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i) {
          const float m = middle[i];
          sums[i] += (e[i] + f[i]) + (g[i] + h[i]);
          products[i] += (e[i] * (a[i] - m) + f[i] * (b[i] - m)) +
                         (g[i] * (c[i] - m) + h[i] * (d[i] - m));
        }
      },
      [&](int64_t r) {
        const float *a = x + r * n, *e = gradient + r * n;
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i) {
          sums[i] += e[i];
          products[i] += e[i] * (a[i] - middle[i]);
        }
      });
}

// Means and sums of squared deviations of a part's columns; returns its number of rows.
double part_moments(const float* x, const Parts& parts, int64_t part, int64_t n,
                    double* __restrict means, double* __restrict squares) {
  std::vector<float> work(3 * n);
  float *middle = work.data(), *sum = middle + n, *square = sum + n;
  double count = 0.0;
  std::fill_n(means, n, 0.0);
  std::fill_n(squares, n, 0.0);
  parts.for_chunks(part, [&](int64_t first, int64_t rows) {
    const float* chunk = x + first * n;
    std::fill(work.begin(), work.end(), 0.0f);
    add_rows(chunk, rows, n, middle);
    for (int64_t c = 0; c < n; ++c) middle[c] /= float(rows);
    add_deviations(chunk, rows, n, middle, sum, square);
    const double total = count + rows, share = rows / total, both = count * share;
    for (int64_t c = 0; c < n; ++c) {
      const double rest = double(sum[c]) / rows, delta = middle[c] + rest - means[c];
      means[c] += delta * share;
      squares[c] += not_negative(square[c] - sum[c] * rest) + delta * delta * both;
    }
    count = total;
  });
  return count;
}

void matrix_moments(const float* x, Shape s, double* means, double* squares, int num_threads) {
  const Parts parts(s);
  const int64_t n = s.channels;
  std::vector<double> found(2 * parts.number * n), counts(parts.number);
#pragma omp parallel for num_threads(num_threads) if (s.size() > kSmall && num_threads > 1)
  for (int64_t k = 0; k < parts.number; ++k) {
    double* own = found.data() + 2 * k * n;
    counts[k] = part_moments(x, parts, k, n, own, own + n);
  }
  for (int64_t c = 0; c < n; ++c) {
    Moments all;
    for (int64_t k = 0; k < parts.number; ++k)
      all.merge(counts[k], found[2 * k * n + c], found[(2 * k + 1) * n + c]);
    means[c] = all.mean;
    squares[c] = all.squares;
  }
}

void matrix_sums(const float* gradient, const float* x, Shape s, const float* middle, double* sums,
                 double* products, int num_threads) {
  const Parts parts(s);
  const int64_t n = s.channels;
  std::vector<double> found(2 * parts.number * n);
#pragma omp parallel for num_threads(num_threads) if (s.size() > kSmall && num_threads > 1)
  for (int64_t k = 0; k < parts.number; ++k) {
    std::vector<float> work(2 * n);
    double* own = found.data() + 2 * k * n;
    parts.for_chunks(k, [&](int64_t first, int64_t rows) {
      std::fill(work.begin(), work.end(), 0.0f);
      add_products(gradient + first * n, x + first * n, rows, n, middle, work.data(),
                   work.data() + n);
      for (int64_t c = 0; c < 2 * n; ++c) own[c] += work[c];
    });
  }
  std::fill_n(sums, n, 0.0);
  std::fill_n(products, n, 0.0);
  for (int64_t k = 0; k < parts.number; ++k) {
    for (int64_t c = 0; c < n; ++c) {
      sums[c] += found[2 * k * n + c];
      products[c] += found[(2 * k + 1) * n + c];
    }
  }
}

// ---- Elementwise ---------------------------------------------------------------------------------

// Calls `work(begin, length, channel)` for each row of values; channel is -1 in a matrix.
template <typename Work>
void for_all_rows(Shape s, int num_threads, Work work) {
  const int64_t rows = s.is_matrix() ? s.outer : s.outer * s.channels;
  const int64_t length = s.is_matrix() ? s.channels : s.inner;
#pragma omp parallel for num_threads(num_threads) if (s.size() > kSmall && num_threads > 1)
  for (int64_t r = 0; r < rows; ++r)
    work(r * length, length, s.is_matrix() ? int64_t(-1) : r % s.channels);
}

struct Affine {  // y = (x - middle) * factor + shift
  const float *middle, *factor, *shift;
};

void normalize_row(const float* __restrict x, float* __restrict y, int64_t n, float middle,
                   float factor, float shift) {
  for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - middle) * factor + shift;
}

void normalize_columns(const float* __restrict x, float* __restrict y, int64_t n, Affine a) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - a.middle[i]) * a.factor[i] + a.shift[i];
}

struct Slope {  // result = ((gradient - mean) - (x - middle) * slope) * factor
  const float *mean, *middle, *slope, *factor;
};

void gradient_row(const float* __restrict g, const float* __restrict x, float* __restrict y,
                  int64_t n, float mean, float middle, float slope, float factor) {
  for (int64_t i = 0; i < n; ++i) y[i] = ((g[i] - mean) - (x[i] - middle) * slope) * factor;
}

void gradient_columns(const float* __restrict g, const float* __restrict x, float* __restrict y,
                      int64_t n, Slope s) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i)
    y[i] = ((g[i] - s.mean[i]) - (x[i] - s.middle[i]) * s.slope[i]) * s.factor[i];
}

}  // namespace

extern "C" {

// Writes each channel's mean, then sums of squared deviations, then the number of samples:
// `own` holds 2 * channels + 1.
void dq_norm_moments(const float* x, int64_t outer, int64_t channels, int64_t inner, double* own,
                     int num_threads) {
  const Shape s{outer, channels, inner};
  double *means = own, *squares = own + channels;
  own[2 * channels] = double(s.count());
  if (s.is_matrix()) {
    matrix_moments(x, s, means, squares, num_threads);
    return;
  }
#pragma omp parallel for num_threads(num_threads) if (s.size() > kSmall && num_threads > 1)
  for (int64_t c = 0; c < channels; ++c) {
    const Moments found = channel_moments(x, s, c);
    means[c] = found.mean;
    squares[c] = found.squares;
  }
}

// Merges the moments of `ranks` ranks, `gathered` (ranks, 2 * channels + 1), into mean, biased
// variance and number of samples, and normalizes by them. `weight` and `bias` may be null.
void dq_norm_normalize(const float* x, float* y, int64_t outer, int64_t channels, int64_t inner,
                       const double* gathered, int64_t ranks, const float* weight,
                       const float* bias, double eps, double* mean, double* variance,
                       double* count, int num_threads) {
  const Shape s{outer, channels, inner};
  const int64_t length = 2 * channels + 1;
  *count = 0.0;
  for (int64_t k = 0; k < ranks; ++k) *count += gathered[k * length + 2 * channels];
  const double total = std::max(*count, 1.0);
  std::vector<float> work(3 * channels);
  float *middle = work.data(), *factor = middle + channels, *shift = factor + channels;
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0.0, squares = 0.0;
    for (int64_t k = 0; k < ranks; ++k) {
      const double* other = gathered + k * length;
      sum += other[c] * other[2 * channels];
    }
    mean[c] = sum / total;
    for (int64_t k = 0; k < ranks; ++k) {
      const double* other = gathered + k * length;
      const double delta = other[c] - mean[c];
      squares += other[channels + c] + other[2 * channels] * (delta * delta);
    }
    variance[c] = squares / total;
    const double scale = (weight ? weight[c] : 1.0) / std::sqrt(variance[c] + eps);
    middle[c] = float(mean[c]);
    factor[c] = float(scale);
    shift[c] = float((bias ? bias[c] : 0.0) + (middle[c] - mean[c]) * scale);
  }
  for_all_rows(s, num_threads, [&](int64_t begin, int64_t n, int64_t c) {
    if (c < 0)
      normalize_columns(x + begin, y + begin, n, {middle, factor, shift});
    else
      normalize_row(x + begin, y + begin, n, middle[c], factor[c], shift[c]);
  });
}

// Each channel's sum of gradients, then of gradients times deviations from the mean: (2, channels).
void dq_norm_sums(const float* gradient, const float* x, int64_t outer, int64_t channels,
                  int64_t inner, const double* mean, double* sums, int num_threads) {
  const Shape s{outer, channels, inner};
  double* products = sums + channels;
  const std::vector<float> middle(mean, mean + channels);
  if (s.is_matrix()) {
    matrix_sums(gradient, x, s, middle.data(), sums, products, num_threads);
  } else {
#pragma omp parallel for num_threads(num_threads) if (s.size() > kSmall && num_threads > 1)
    for (int64_t c = 0; c < channels; ++c) {
      const Pair found = channel_sums(gradient, x, s, c, middle[c]);
      sums[c] = found.first;
      products[c] = found.second;
    }
  }
  for (int64_t c = 0; c < channels; ++c) products[c] += (middle[c] - mean[c]) * sums[c];
}

// The gradient of the input, from the results of `dq_norm_sums` summed over all ranks.
void dq_norm_gradient(const float* gradient, const float* x, float* result, int64_t outer,
                      int64_t channels, int64_t inner, const float* weight, const double* mean,
                      const double* inverse_deviation, const double* sums, const double* count,
                      int num_threads) {
  const Shape s{outer, channels, inner};
  const double total = std::max(*count, 1.0);
  std::vector<float> work(4 * channels);
  float *means = work.data(), *middle = means + channels, *slope = middle + channels,
        *factor = slope + channels;
  for (int64_t c = 0; c < channels; ++c) {
    const double inverse = inverse_deviation[c];
    const double by_deviation = sums[channels + c] / total * (inverse * inverse);
    middle[c] = float(mean[c]);
    means[c] = float(sums[c] / total + (middle[c] - mean[c]) * by_deviation);
    slope[c] = float(by_deviation);
    factor[c] = float(inverse * (weight ? weight[c] : 1.0));
  }
  for_all_rows(s, num_threads, [&](int64_t begin, int64_t n, int64_t c) {
    if (c < 0)
      gradient_columns(gradient + begin, x + begin, result + begin, n,
                       {means, middle, slope, factor});
    else
      gradient_row(gradient + begin, x + begin, result + begin, n, means[c], middle[c], slope[c],
                   factor[c]);
  });
}

}  // extern "C"
