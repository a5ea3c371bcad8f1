// Fake quantization of whole tensors in one pass over memory, for training on a CPU.
//
// Built by dq/native.py and called through ctypes on the data of float32 tensors. Every function
// uses the order of operations of torch's operators, so results are equal bit for bit. Sums
// (gradients of scales and factors) are taken in double precision over chunks of fixed size, so
// they do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

constexpr int64_t kChunk = 1 << 14;  // Values per work item of a thread: 64 KiB, half of an L2.
constexpr int kLanes = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Grid {  // Scale, zero point and integer range of a tensor or channel.
  float scale, inverse, zero_point, quant_min, quant_max;
};

struct Clip {  // Bounds of a clipping activation function: ReLU is (0, inf).
  float low, high;
};

struct Extremes {
  float low = kInfinity, high = -kInfinity;
  bool finite = true;
};

inline float clipped(float x, Clip clip) {  // A NaN stays a NaN.
  x = x < clip.low ? clip.low : x;
  return x > clip.high ? clip.high : x;
}

inline float integer_of(float x, const Grid& g) {
  return std::nearbyintf(x * g.inverse) + g.zero_point;
}

inline float on_grid(float integer, const Grid& g) {  // A NaN becomes quant_min.
  integer = integer > g.quant_min ? integer : g.quant_min;
  integer = integer < g.quant_max ? integer : g.quant_max;
  return (integer - g.zero_point) * g.scale;
}

inline bool inside(float integer, const Grid& g) {
  return (integer >= g.quant_min) & (integer <= g.quant_max);
}

inline bool passes(float x, Clip clip) {  // The gradient mask of ReLU and Hardtanh.
  return !((x <= clip.low) | (x >= clip.high));
}

template <bool observes, bool rounds, bool masks>
Extremes activation_chunk(const float* x, float* y, uint8_t* mask, int64_t n, Clip clip, Grid g) {
  float low[kLanes], high[kLanes], bad[kLanes];
  for (int j = 0; j < kLanes; ++j) low[j] = kInfinity, high[j] = -kInfinity, bad[j] = 0.0f;
  auto step = [&](int64_t i, int j) {
    const float value = x[i + j];
    const float c = clipped(value, clip);
    if (observes) {
      low[j] = c < low[j] ? c : low[j];
      high[j] = c > high[j] ? c : high[j];
      bad[j] += c * 0.0f;  // NaN as soon as a value is not finite.
    }
    if (rounds) {
      const float integer = integer_of(c, g);
      if (masks) mask[i + j] = inside(integer, g) & passes(value, clip);
      y[i + j] = on_grid(integer, g);
    } else if (y != nullptr) {
      if (masks) mask[i + j] = passes(value, clip);
      y[i + j] = c;
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC ivdep
    for (int j = 0; j < kLanes; ++j) step(i, j);
  }
  for (int j = 0; i + j < n; ++j) step(i, j);
  Extremes found;
  if (observes) {
    float sum = 0.0f;
    for (int j = 0; j < kLanes; ++j) {
      found.low = std::min(found.low, low[j]);
      found.high = std::max(found.high, high[j]);
      sum += bad[j];
    }
    found.finite = sum == 0.0f;
  }
  return found;
}

using Activation = Extremes (*)(const float*, float*, uint8_t*, int64_t, Clip, Grid);

Activation activation_kind(bool observes, bool rounds, bool masks) {
  if (observes) {
    if (rounds) return masks ? activation_chunk<true, true, true> : activation_chunk<true, true, false>;
    return masks ? activation_chunk<true, false, true> : activation_chunk<true, false, false>;
  }
  if (rounds) return masks ? activation_chunk<false, true, true> : activation_chunk<false, true, false>;
  return masks ? activation_chunk<false, false, true> : activation_chunk<false, false, false>;
}

constexpr int64_t kBlock = 64 * kLanes;  // Values summed in float, 64 per lane, before double.

struct Sums {
  double scale = 0.0, offset = 0.0;
};

// The gradients of at most kBlock values, and their parts of the sums for scale and offset.
Sums learned_block(const float* gradient, const float* x, float* result, int64_t n, Clip clip,
                   Grid g, float shift) {
  float by_scale[kLanes] = {}, by_offset[kLanes] = {};
  auto step = [&](int64_t i, int j) {
    const float value = x[i + j], upstream = gradient[i + j];
    const float steps = clipped(value, clip) * g.inverse;
    const float integer = std::nearbyintf(steps) + g.zero_point;
    float limited = integer > g.quant_min ? integer : g.quant_min;
    limited = limited < g.quant_max ? limited : g.quant_max;
    const bool is_inside = inside(integer, g);
    by_scale[j] += upstream * (is_inside ? integer - g.zero_point - steps : limited - shift);
    by_offset[j] += is_inside ? 0.0f : upstream;
    result[i + j] = (is_inside & passes(value, clip)) ? upstream : 0.0f;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC ivdep
    for (int j = 0; j < kLanes; ++j) step(i, j);
  }
  for (int j = 0; i + j < n; ++j) step(i, j);
  Sums sums;
  for (int j = 0; j < kLanes; ++j) {
    sums.scale += by_scale[j];
    sums.offset += by_offset[j];
  }
  return sums;
}

Grid grid(float scale, int32_t zero_point, int quant_min, int quant_max) {
  return {scale, 1.0f / scale, static_cast<float>(zero_point), static_cast<float>(quant_min),
          static_cast<float>(quant_max)};
}

int64_t num_chunks(int64_t n) { return (n + kChunk - 1) / kChunk; }

struct WeightSpec {
  int quant_min, quant_max;
  bool is_signed, symmetric, power_of_two;
};

float next_power_of_two(float x) {
  if (!std::isfinite(x)) return x;
  union {
    float real;
    int32_t bits;
  } value{x};
  constexpr int32_t mantissa = (1 << 23) - 1;
  value.bits = (value.bits + mantissa) & ~mantissa;
  return value.real;
}

// See dq.quant.numerics.affine.scale_and_zero_point.
Grid grid_of_range(float range_min, float range_max, bool has_nan, WeightSpec spec) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  if (has_nan) return {nan, nan, 0.0f, float(spec.quant_min), float(spec.quant_max)};
  const float limit = std::numeric_limits<float>::max() / 4;
  const float low = std::min(std::max(range_min, -limit), 0.0f);
  const float high = std::max(std::min(range_max, limit), 0.0f);
  float levels = float(spec.quant_max - spec.quant_min), width = high - low;
  if (spec.symmetric && spec.is_signed) {
    width = std::max(-low, high);
    levels = float(spec.quant_max);
  } else if (spec.symmetric) {
    width = high;
  }
  const bool empty = width <= 0 || range_min > range_max;
  float scale = empty ? 1.0f : width / levels;
  scale = std::max(scale, std::ldexp(1.0f, -120));
  if (spec.power_of_two) scale = next_power_of_two(scale);
  float zero_point = 0.0f;
  if (!spec.symmetric) {
    zero_point = empty ? 0.0f : std::nearbyintf(spec.quant_min - low / scale);
    zero_point = std::min(std::max(zero_point, float(spec.quant_min)), float(spec.quant_max));
  }
  return {scale, 1.0f / scale, zero_point, float(spec.quant_min), float(spec.quant_max)};
}

struct Range {
  float low = kInfinity, high = -kInfinity;
  bool has_nan = false;
};

// The range of a row times its factor.
Range range_of_row(const float* w, float factor, int64_t n) {
  float low = kInfinity, high = -kInfinity, sum = 0.0f;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const float v = w[i] * factor;
    low = v < low ? v : low;
    high = v > high ? v : high;
    sum += v * 0.0f;  // NaN as soon as a value is not finite.
  }
  Range range{low, high, false};
  if (sum != 0.0f) {  // Rare: an infinity has a range, a NaN has none.
    for (int64_t i = 0; i < n; ++i) range.has_nan |= std::isnan(w[i] * factor);
  }
  return range;
}

constexpr float kSmallestFactor = 1e-12f;  // dq.quant.quantizers.batch_norm_fold.SMALLEST_FACTOR

// The grid of each row of a weight: from given scales, or from the range of the folded weight.
class WeightGrids {
 public:
  WeightGrids(WeightSpec spec, bool per_channel, const float* weight, const float* factor,
              const float* scale, const int32_t* zero_point, int64_t rows, int64_t columns)
      : spec_(spec), per_channel_(per_channel), weight_(weight), factor_(factor), scale_(scale),
        zero_point_(zero_point), columns_(columns) {
    if (per_channel) return;
    if (scale != nullptr) {
      whole_ = grid(*scale, *zero_point, spec.quant_min, spec.quant_max);
    } else {
      Range whole;
      for (int64_t r = 0; r < rows; ++r) {
        const Range row = range_of(r);
        whole.low = std::min(whole.low, row.low);
        whole.high = std::max(whole.high, row.high);
        whole.has_nan |= row.has_nan;
      }
      whole_ = grid_of_range(whole.low, whole.high, whole.has_nan, spec);
    }
  }

  Grid of_row(int64_t r) const {
    if (!per_channel_) return whole_;
    if (scale_ != nullptr) return grid(scale_[r], zero_point_[r], spec_.quant_min, spec_.quant_max);
    const Range range = range_of(r);
    return grid_of_range(range.low, range.high, range.has_nan, spec_);
  }

 private:
  Range range_of(int64_t r) const {
    return range_of_row(weight_ + r * columns_, factor_ ? factor_[r] : 1.0f, columns_);
  }

  WeightSpec spec_;
  bool per_channel_;
  const float *weight_, *factor_, *scale_;
  const int32_t* zero_point_;
  int64_t columns_;
  Grid whole_{};
};

// One row of a weight in the backward pass.
struct WeightRow {
  const float *gradient, *weight;
  int64_t n;
  float factor;
  bool all_pass;
  Grid g;

  void pass(float times, float* result) const {
    if (all_pass) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) result[i] = gradient[i] * times;
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i)
        result[i] = inside(integer_of(weight[i] * factor, g), g) ? gradient[i] * times : 0.0f;
    }
  }

  // The gradient of the factor for a folded weight.
  double sum_folded() const {
    if (all_pass) return sum([&](float w) { return w; });
    return sum([&](float w) { return inside(integer_of(w * factor, g), g) ? w : 0.0f; });
  }

  // The same if the fake-quantized weight is divided by the factor again.
  double sum_unfolded() const {
    return sum([&](float w) {
      const float integer = integer_of(w * factor, g);
      const float kept = all_pass | inside(integer, g) ? w : 0.0f;
      return kept - on_grid(integer, g) / factor;
    });
  }

  double sum_scale() const {
    return sum([&](float w) {
      const float steps = w * factor * g.inverse;
      const float integer = std::nearbyintf(steps) + g.zero_point;
      float limited = integer > g.quant_min ? integer : g.quant_min;
      limited = limited < g.quant_max ? limited : g.quant_max;
      const float within = integer - g.zero_point - steps, beyond = limited - g.zero_point;
      return inside(integer, g) ? within : beyond;
    });
  }

 private:
  // The sum of gradient times term(weight), in double precision.
  template <typename Term>
  double sum(Term term) const {
    double total = 0.0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; ++i) total += double(gradient[i]) * term(weight[i]);
    return total;
  }
};

}  // namespace

extern "C" {

// Clip, record minimum and maximum, and fake-quantize, each if its arguments are given. `y` may be
// `x`, or null to record only. `record_min` and `record_max` hold the extremes so far; a tensor with
// a value that is not finite does not change them.
void dq_activation(const float* x, float* y, uint8_t* mask, int64_t n, float clip_low,
                   float clip_high, const float* scale, const int32_t* zero_point, int quant_min,
                   int quant_max, float* record_min, float* record_max, int num_threads) {
  const bool rounds = scale != nullptr, observes = record_min != nullptr;
  const Grid g = rounds ? grid(*scale, *zero_point, quant_min, quant_max) : Grid{};
  const Activation work = activation_kind(observes, rounds, mask != nullptr);
  const Clip clip{clip_low, clip_high};
  const int64_t chunks = num_chunks(n);
  float low = kInfinity, high = -kInfinity;
  int bad = 0;
#pragma omp parallel for num_threads(num_threads) if (chunks > 1 && num_threads > 1) \
    reduction(min : low) reduction(max : high) reduction(| : bad)
  for (int64_t k = 0; k < chunks; ++k) {
    const int64_t begin = k * kChunk, size = std::min(kChunk, n - begin);
    const Extremes found = work(x + begin, y == nullptr ? nullptr : y + begin,
                                mask == nullptr ? nullptr : mask + begin, size, clip, g);
    low = std::min(low, found.low);
    high = std::max(high, found.high);
    bad |= !found.finite;
  }
  if (observes && !bad && low <= high) {
    *record_min = std::min(*record_min, low);
    *record_max = std::max(*record_max, high);
  }
}

// The gradient where the mask is 1, zero elsewhere; on integer bits, which vectorizes best.
void dq_masked(const int32_t* gradient, const uint8_t* mask, int32_t* result, int64_t n,
               int num_threads) {
  const int64_t chunks = num_chunks(n);
#pragma omp parallel for num_threads(num_threads) if (chunks > 1 && num_threads > 1)
  for (int64_t k = 0; k < chunks; ++k) {
    const int64_t begin = k * kChunk, end = std::min(begin + kChunk, n);
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i) result[i] = gradient[i] & -static_cast<int32_t>(mask[i]);
  }
}

// Gradients of a clip and a learned fake quantization: of the values, the scale and the offset.
void dq_learned_backward(const float* gradient, const float* x, float* result, int64_t n,
                         float clip_low, float clip_high, const float* scale,
                         const int32_t* zero_point, int quant_min, int quant_max, int has_offset,
                         double* d_scale, double* d_offset, int num_threads) {
  const Grid g = grid(*scale, *zero_point, quant_min, quant_max);
  const Clip clip{clip_low, clip_high};
  const int64_t chunks = num_chunks(n);
  std::vector<double> scales(chunks), offsets(chunks);
  const float shift = has_offset ? 0.0f : g.zero_point;
#pragma omp parallel for num_threads(num_threads) if (chunks > 1 && num_threads > 1)
  for (int64_t k = 0; k < chunks; ++k) {
    const int64_t begin = k * kChunk, end = std::min(begin + kChunk, n);
    double sum_scale = 0.0, sum_offset = 0.0;
    for (int64_t i = begin; i < end; i += kBlock) {
      const Sums sums = learned_block(gradient + i, x + i, result + i, std::min(kBlock, end - i),
                                      clip, g, shift);
      sum_scale += sums.scale;
      sum_offset += sums.offset;
    }
    scales[k] = sum_scale;
    offsets[k] = sum_offset;
  }
  *d_scale = *d_offset = 0.0;
  for (int64_t k = 0; k < chunks; ++k) {
    *d_scale += scales[k];
    *d_offset += offsets[k];
  }
}

// Fake-quantize `weight * factor` (one factor per row) with given scales or scales from its range,
// and divide by the factor again if `unfolds`. Rows are output channels.
void dq_weight(const float* weight, const float* factor, const float* given_scale,
               const int32_t* given_zero_point, int64_t rows, int64_t columns, int quant_min,
               int quant_max, int is_signed, int symmetric, int power_of_two, int per_channel,
               int unfolds, float* result, int num_threads) {
  const WeightGrids grids({quant_min, quant_max, is_signed != 0, symmetric != 0, power_of_two != 0},
                          per_channel != 0, weight, factor, given_scale, given_zero_point, rows,
                          columns);
#pragma omp parallel for num_threads(num_threads) if (rows * columns > kChunk && num_threads > 1)
  for (int64_t r = 0; r < rows; ++r) {
    const float f = factor ? factor[r] : 1.0f;
    const bool dead = unfolds && std::fabs(f) < kSmallestFactor;
    const float* w = weight + r * columns;
    float* y = result + r * columns;
    const Grid g = grids.of_row(r);
    if (dead) {
      std::copy(w, w + columns, y);
      continue;
    }
    const float divisor = unfolds ? f : 1.0f;
#pragma omp simd
    for (int64_t i = 0; i < columns; ++i) y[i] = on_grid(integer_of(w[i] * f, g), g) / divisor;
  }
}

// Gradients of `dq_weight`: of the weight, the factor and a given scale; the last two may be null.
// The fake-quantized weight is recomputed from the arguments of the forward pass.
void dq_weight_backward(const float* gradient, const float* weight, const float* factor,
                        const float* given_scale, const int32_t* given_zero_point, int64_t rows,
                        int64_t columns, int quant_min, int quant_max, int is_signed, int symmetric,
                        int power_of_two, int per_channel, int unfolds, float* d_weight,
                        float* d_factor, double* d_scale, int num_threads) {
  const WeightSpec spec{quant_min, quant_max, is_signed != 0, symmetric != 0, power_of_two != 0};
  const WeightGrids grids(spec, per_channel != 0, weight, factor, given_scale, given_zero_point,
                          rows, columns);
  // A symmetric range computed from the weight contains every value.
  const bool all_inside = given_scale == nullptr && spec.symmetric && spec.is_signed;
#pragma omp parallel for num_threads(num_threads) if (rows * columns > kChunk && num_threads > 1)
  for (int64_t r = 0; r < rows; ++r) {
    const float f = factor ? factor[r] : 1.0f;
    const bool dead = unfolds && std::fabs(f) < kSmallestFactor;
    const WeightRow row{gradient + r * columns, weight + r * columns, columns, f,
                        dead || all_inside, grids.of_row(r)};
    row.pass(unfolds ? 1.0f : f, d_weight + r * columns);
    const double divisor = unfolds ? f : 1.0;
    if (d_factor != nullptr) {
      const double sum = dead ? 0.0 : unfolds ? row.sum_unfolded() / f : row.sum_folded();
      d_factor[r] = static_cast<float>(sum);
    }
    if (d_scale != nullptr) d_scale[r] = dead ? 0.0 : row.sum_scale() / divisor;
  }
}

}  // extern "C"
