// Histograms for calibration: values counted in one pass over memory, and the errors of ranges.
//
// Built by dq/native.py and called through ctypes. Counts are integers, and every float operation
// has the order of torch's operators in dq/quant/observers, so results are equal bit for bit for any
// number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr int64_t kBlock = 1 << 12;    // Values whose bins are found before they are counted.
constexpr int64_t kSmall = 1 << 13;    // Fewer values than this are counted without tables.
constexpr int64_t kRow = 1 << 16;      // Values that a thread counts at once if none has a weight.
constexpr int kTables = 2;             // Equal values in a row need not wait for each other's count.
constexpr int kLanes = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Bins {  // See dq/quant/observers/histogram.py.
  int32_t first, shift, magnitudes;

  int64_t size() const { return 2 * int64_t(magnitudes) + 1; }
};

struct Extremes {
  float low = kInfinity, high = -kInfinity;

  void add(Extremes other) {
    low = std::min(low, other.low);
    high = std::max(high, other.high);
  }
};

// The bins of at most kBlock values, and the extremes of those that are finite.
Extremes find_bins(const float* x, uint16_t* index, int64_t n, Bins bins) {
  float low[kLanes], high[kLanes];
  for (int j = 0; j < kLanes; ++j) low[j] = kInfinity, high[j] = -kInfinity;
  auto step = [&](int64_t i, int j) {
    const float value = x[i + j];
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits &= 0x7fffffff;
    const bool finite = bits < 0x7f800000;
    int32_t magnitude = (bits >> bins.shift) - bins.first;
    magnitude = magnitude < 0 ? 0 : magnitude;
    magnitude = magnitude < bins.magnitudes ? magnitude : bins.magnitudes - 1;
    const int32_t bin =
        value < 0.0f ? bins.magnitudes - 1 - magnitude : bins.magnitudes + magnitude;
    index[i + j] = static_cast<uint16_t>(finite ? bin : 2 * bins.magnitudes);
    low[j] = (finite & (value < low[j])) ? value : low[j];
    high[j] = (finite & (value > high[j])) ? value : high[j];
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC ivdep
    for (int j = 0; j < kLanes; ++j) step(i, j);
  }
  for (int j = 0; i + j < n; ++j) step(i, j);
  Extremes found;
  for (int j = 0; j < kLanes; ++j) found.add({low[j], high[j]});
  return found;
}

// Rows of values; each value counts as often as its row's weight says.
struct Rows {
  const float* x;
  int64_t size, length;    // Of all values, and of a row; the last row may be shorter.
  const int64_t* weights;  // One for each of `channels` rows, which repeat; null for 1.
  int64_t channels;

  int64_t number() const { return (size + length - 1) / length; }
};

// Add the counts of some rows to `counts`, which other threads may add to as well.
Extremes count(const Rows& rows, int64_t first, int64_t last, Bins bins, int64_t* counts) {
  const int64_t width = bins.size();
  uint16_t index[kBlock];
  Extremes found;
  std::vector<int64_t> tables(rows.size < kSmall ? 0 : kTables * width);
  for (int64_t row = first; row < last; ++row) {
    const int64_t end = std::min(rows.size, (row + 1) * rows.length);
    const int64_t weight = rows.weights == nullptr ? 1 : rows.weights[row % rows.channels];
    for (int64_t begin = row * rows.length; begin < end; begin += kBlock) {
      const int64_t m = std::min(kBlock, end - begin);
      found.add(find_bins(rows.x + begin, index, m, bins));
      if (tables.empty()) {
        for (int64_t i = 0; i < m; ++i) counts[index[i]] += weight;
        continue;
      }
      int64_t* table = tables.data();
      int64_t i = 0;
      for (; i + kTables <= m; i += kTables) {
        for (int t = 0; t < kTables; ++t) table[t * width + index[i + t]] += weight;
      }
      for (; i < m; ++i) table[index[i]] += weight;
    }
  }
  if (!tables.empty()) {
#pragma omp critical
    for (int t = 0; t < kTables; ++t) {
      for (int64_t i = 0; i < width; ++i) counts[i] += tables[t * width + i];
    }
  }
  return found;
}

struct Range {  // A candidate: its scale, the scale's cube, its ends, and what a narrow bin is.
  double scale, cube, low, high, narrow;
};

// The integral from 0 to x of the squared error: see `mean_square_error`.
inline double integral(double x, const Range& r) {
  double inside = x > r.low ? x : r.low;
  inside = (inside < r.high ? inside : r.high) / r.scale;
  const double whole = std::nearbyint(inside), rest = inside - whole;
  const double teeth = r.cube * (whole / 12.0 + rest * rest * rest / 3.0);
  const double above = x - r.high > 0.0 ? x - r.high : 0.0;
  const double below = x - r.low < 0.0 ? x - r.low : 0.0;
  return teeth + (above * above * above + below * below * below) / 3.0;
}

// The sum over all bins of count times error. `until` and `terms` are scratch memory of `n` and of
// `padded` values, a power of two; the sum adds the upper half of the terms to the lower half until
// one is left.
double total_error(const double* begin, const double* end, const double* counts, int64_t n,
                   int64_t padded, const Range& r, double* until, double* since, double* terms) {
  for (int64_t i = 0; i < n; ++i) until[i] = integral(end[i], r);
  for (int64_t i = 0; i < n; ++i) {  // Most bins begin where the one before ends.
    since[i] = i > 0 && begin[i] == end[i - 1] ? until[i - 1] : integral(begin[i], r);
  }
  for (int64_t i = 0; i < n; ++i) {
    const double width = end[i] - begin[i];
    double mean = (until[i] - since[i]) / (width > 1e-300 ? width : 1e-300);
    mean = mean > 0.0 ? mean : 0.0;
    double clipped = begin[i] > r.low ? begin[i] : r.low;
    clipped = clipped < r.high ? clipped : r.high;
    const double away = begin[i] - std::nearbyint(clipped / r.scale) * r.scale;
    terms[i] = counts[i] * (width < r.narrow ? away * away : mean);
  }
  std::fill(terms + n, terms + padded, 0.0);
  for (int64_t half = padded / 2; half > 0; half /= 2) {
#pragma GCC ivdep
    for (int64_t i = 0; i < half; ++i) terms[i] += terms[i + half];
  }
  return terms[0];
}

}  // namespace

extern "C" {

// Add the number of values in each bin to `counts`, and merge the extremes of the finite ones into
// `lowest` and `highest`. With `weights`, `x` is `(any, channels, length)` and a value counts as often
// as its channel's weight says.
void dq_count(const float* x, int64_t n, const int64_t* weights, int64_t channels, int64_t length,
              int first, int shift, int magnitudes, int64_t* counts, float* lowest, float* highest,
              int num_threads) {
  const Bins bins{first, shift, magnitudes};
  const Rows rows{x, n, weights == nullptr ? kRow : length, weights, channels};
  const int64_t number = n == 0 ? 0 : rows.number();
  const int64_t parts = n < 16 * kSmall ? 1 : std::min<int64_t>(num_threads, number);
  float low = *lowest, high = *highest;
#pragma omp parallel for num_threads(parts) if (parts > 1) reduction(min : low) \
    reduction(max : high)
  for (int64_t k = 0; k < parts; ++k) {
    const Extremes found =
        count(rows, k * number / parts, (k + 1) * number / parts, bins, counts);
    low = std::min(low, found.low);
    high = std::max(high, found.high);
  }
  *lowest = low;
  *highest = high;
}

// Write the error of each candidate range over the bins. `ranges` is `(5, candidates)`, in the order
// of `Range`.
void dq_range_errors(const double* begin, const double* end, const double* counts, int64_t n,
                     const double* ranges, int64_t candidates, double* errors, int num_threads) {
  int64_t padded = 1;
  while (padded < n) padded *= 2;
  const double *scale = ranges, *cube = scale + candidates, *low = cube + candidates,
               *high = low + candidates, *narrow = high + candidates;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
  {
    std::vector<double> until(n), since(n), terms(padded);
#pragma omp for
    for (int64_t k = 0; k < candidates; ++k) {
      const Range r{scale[k], cube[k], low[k], high[k], narrow[k]};
      errors[k] = total_error(begin, end, counts, n, padded, r, until.data(), since.data(),
                              terms.data());
    }
  }
}

}  // extern "C"
