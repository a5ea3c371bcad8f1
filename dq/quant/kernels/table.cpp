// A function between two quantizers in one pass over memory, for training on a CPU.
//
// A tensor that is quantized to at most 8 bits has at most 256 values, and so has every function of
// its elements. The function, the rounding of its result and the gradient of both are computed once
// for each of these values; here they are only looked up. Built by dq/native.py and called through
// ctypes on the data of float32 tensors.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace {

constexpr int64_t kChunk = 1 << 14;  // Values per work item of a thread: 64 KiB, half of an L2.
constexpr int kLanes = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Grid {
  float inverse, zero_point, quant_min, quant_max;
};

struct Extremes {
  float low = kInfinity, high = -kInfinity;
};

struct Observed {
  Extremes before, between;
  bool finite = true;
};

template <bool observes, bool indexes>
Observed look_up(const float* x, float* y, uint16_t* index, int64_t n, Grid g,
                 const float* between, const float* after) {
  float low[kLanes], high[kLanes], bad[kLanes], least[kLanes], most[kLanes];
  for (int j = 0; j < kLanes; ++j) {
    low[j] = least[j] = kInfinity, high[j] = most[j] = -kInfinity, bad[j] = 0.0f;
  }
  const int32_t outside = static_cast<int32_t>(g.quant_max - g.quant_min) + 1;
  auto step = [&](int64_t i, int j) {
    const float value = x[i + j];
    const float integer = std::nearbyintf(value * g.inverse) + g.zero_point;
    float limited = integer > g.quant_min ? integer : g.quant_min;  // A NaN becomes quant_min.
    limited = limited < g.quant_max ? limited : g.quant_max;
    const int32_t place = static_cast<int32_t>(limited - g.quant_min);
    if (observes) {
      low[j] = value < low[j] ? value : low[j];
      high[j] = value > high[j] ? value : high[j];
      bad[j] += value * 0.0f;  // NaN as soon as a value is not finite.
      const float inner = between[place];
      least[j] = inner < least[j] ? inner : least[j];
      most[j] = inner > most[j] ? inner : most[j];
    }
    if (indexes) index[i + j] = static_cast<uint16_t>(integer == limited ? place : outside);
    y[i + j] = after[place];
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC ivdep
    for (int j = 0; j < kLanes; ++j) step(i, j);
  }
  for (int j = 0; i + j < n; ++j) step(i, j);
  Observed found;
  if (observes) {
    float sum = 0.0f;
    for (int j = 0; j < kLanes; ++j) {
      found.before.low = std::min(found.before.low, low[j]);
      found.before.high = std::max(found.before.high, high[j]);
      found.between.low = std::min(found.between.low, least[j]);
      found.between.high = std::max(found.between.high, most[j]);
      sum += bad[j];
    }
    found.finite = sum == 0.0f;
  }
  return found;
}

int64_t num_chunks(int64_t n) { return (n + kChunk - 1) / kChunk; }

void record(float* smallest, float* largest, float low, float high) {
  if (smallest == nullptr || !(low <= high)) return;
  *smallest = std::min(*smallest, low);
  *largest = std::max(*largest, high);
}

}  // namespace

extern "C" {

// Write `after` of each value's integer to `y`, which may be `x`. `index`, if given, gets the place
// of each value in the tables, or their length where the value is outside of the range. The last four
// pointers, if given, hold the smallest and largest value of `x` and of `values` so far; a tensor
// with a value that is not finite does not change the first two.
void dq_table(const float* x, float* y, uint16_t* index, int64_t n, float scale, int zero_point,
              int quant_min, int quant_max, const float* values, const float* after, float* x_min,
              float* x_max, float* values_min, float* values_max, int num_threads) {
  const Grid g{1.0f / scale, float(zero_point), float(quant_min), float(quant_max)};
  const bool observes = x_min != nullptr || values_min != nullptr;
  const auto work = observes ? (index != nullptr ? look_up<true, true> : look_up<true, false>)
                                      : (index != nullptr ? look_up<false, true> : look_up<false, false>);
  const int64_t chunks = num_chunks(n);
  float low = kInfinity, high = -kInfinity, least = kInfinity, most = -kInfinity;
  int bad = 0;
#pragma omp parallel for num_threads(num_threads) if (chunks > 1 && num_threads > 1) \
    reduction(min : low, least) reduction(max : high, most) reduction(| : bad)
  for (int64_t k = 0; k < chunks; ++k) {
    const int64_t begin = k * kChunk, size = std::min(kChunk, n - begin);
    const Observed found = work(x + begin, y + begin, index == nullptr ? nullptr : index + begin,
                                size, g, values, after);
    low = std::min(low, found.before.low);
    high = std::max(high, found.before.high);
    least = std::min(least, found.between.low);
    most = std::max(most, found.between.high);
    bad |= !found.finite;
  }
  if (!bad) record(x_min, x_max, low, high);
  record(values_min, values_max, least, most);
}

// The gradient of `dq_table`: `derivative` has one entry for each place.
void dq_table_backward(const float* gradient, const uint16_t* index, float* result, int64_t n,
                       const float* derivative, int size, int num_threads) {
  const int64_t chunks = num_chunks(n);
#pragma omp parallel for num_threads(num_threads) if (chunks > 1 && num_threads > 1)
  for (int64_t k = 0; k < chunks; ++k) {
    const int64_t begin = k * kChunk, end = std::min(begin + kChunk, n);
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i) {
      const int32_t place = index[i];
      const float factor = derivative[place < size ? place : 0];
      result[i] = place < size ? gradient[i] * factor : 0.0f;
    }
  }
}

}  // extern "C"
