// Group norm, scale and shift, and SiLU in one go over maps, and its gradient.
//
// Maps are (rows, pixels, channels), the channels side by side in memory and a multiple of 16.
// A row stays in the cache between the passes over it. Sums are of float32 and about the first
// pixel, so that maps with a large mean lose no digits.

#include <cmath>
#include <cstdint>
#include <vector>

namespace {

constexpr int WIDTH = 16;
typedef float Floats __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef uint32_t Bits __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH), aligned(2)));

Floats load(const float *from) { return *(const Floats *)from; }

Floats load(const uint16_t *from) {
  return (Floats)(__builtin_convertvector(*(const Halves *)from, Bits) << 16);
}

void store(float *to, Floats x) { *(Floats *)to = x; }

void store(uint16_t *to, Floats x) {  // to the nearest bfloat16, ties to even
  Bits bits = (Bits)x;
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *(Halves *)to = __builtin_convertvector(bits, Halves);
}

// 1 / (1 + exp(-x)), to 2e-7: exp(-x) = 2^n 2^r with |r| <= 1/2, the latter by its series.
Floats sigmoid(Floats x) {
  const Floats least = Floats{} - 87, most = Floats{} + 87;
  x = x < least ? least : x;
  x = x > most ? most : x;
  const float rounder = 12582912;  // 1.5 * 2^23: what is added to it becomes an integer
  const Floats shifted = x * -1.44269504f + rounder;
  const Floats r = x * -1.44269504f - (shifted - rounder);
  Floats series = r * 1.54035304e-4f + 1.33335581e-3f;
  series = series * r + 9.61812911e-3f;
  series = series * r + 5.55041087e-2f;
  series = series * r + 2.40226507e-1f;
  series = series * r + 6.93147181e-1f;
  series = series * r + 1;
  return 1 / (1 + (Floats)((Ints)series + ((Ints)shifted << 23)));
}

}  // namespace

struct Problem {
  int64_t rows, pixels, channels, groups;
  float eps;
  int32_t silu;
  const float *weight, *bias;  // (channels)
  const float *scale_shift;    // (rows, 2 * channels), or null
};

namespace {

// What each channel of a row is multiplied by after the norm's weight, and then added to it.
float scale(const Problem &p, int64_t row, int64_t c) {
  return p.scale_shift ? 1 + p.scale_shift[2 * row * p.channels + c] : 1;
}

float shift(const Problem &p, int64_t row, int64_t c) {
  return p.scale_shift ? p.scale_shift[(2 * row + 1) * p.channels + c] : 0;
}

// The line x -> slope * x + offset that a channel undergoes before the SiLU.
struct Lines {
  std::vector<float> slope, offset;

  Lines(const Problem &p, int64_t row, const float *mean, const float *rstd)
      : slope(p.channels), offset(p.channels) {
    for (int64_t c = 0; c < p.channels; c++) {
      const int64_t group = c / (p.channels / p.groups);
      const float gain = rstd[group] * p.weight[c], by = scale(p, row, c);
      slope[c] = gain * by;
      offset[c] = (p.bias[c] - mean[group] * gain) * by + shift(p, row, c);
    }
  }
};

template <typename T>
void statistics(const Problem &p, const T *x, float *mean, float *rstd) {
  std::vector<float> means(p.channels), variances(p.channels);
  for (int64_t c = 0; c < p.channels; c += WIDTH) {
    const Floats first = load(x + c);
    Floats sum = {}, squares = {};
    for (int64_t at = c; at < p.pixels * p.channels; at += p.channels) {
      const Floats moved = load(x + at) - first;
      sum += moved;
      squares += moved * moved;
    }
    sum /= (float)p.pixels;
    store(&means[c], first + sum);
    store(&variances[c], squares / (float)p.pixels - sum * sum);
  }
  const int64_t size = p.channels / p.groups;
  for (int64_t group = 0; group < p.groups; group++) {
    float centre = 0, variance = 0;
    for (int64_t c = group * size; c < (group + 1) * size; c++) centre += means[c] / size;
    for (int64_t c = group * size; c < (group + 1) * size; c++) {
      const float off = means[c] - centre;
      variance += (variances[c] + off * off) / size;
    }
    mean[group] = centre;
    rstd[group] = 1 / std::sqrt((variance < 0 ? 0 : variance) + p.eps);
  }
}

template <typename T>
void forward_row(const Problem &p, int64_t row, const T *x, T *y, float *mean, float *rstd) {
  statistics(p, x, mean, rstd);
  const Lines lines(p, row, mean, rstd);
  for (int64_t c = 0; c < p.channels; c += WIDTH) {
    const Floats slope = load(&lines.slope[c]), offset = load(&lines.offset[c]);
    for (int64_t at = c; at < p.pixels * p.channels; at += p.channels) {
      const Floats u = load(x + at) * slope + offset;
      store(y + at, p.silu ? u * sigmoid(u) : u);
    }
  }
}

// Gradients before the SiLU go into `inner`; their sums over the pixels, plain and times the
// normed map, into `sums` (2, channels).
template <typename T>
void inner_gradients(const Problem &p, const Lines &lines, const T *grad, const T *x,
                     const float *mean, const float *rstd, float *sums, float *inner) {
  const int64_t size = p.channels / p.groups;
  for (int64_t c = 0; c < p.channels; c += WIDTH) {
    const Floats slope = load(&lines.slope[c]), offset = load(&lines.offset[c]);
    Floats centre, spread;
    for (int k = 0; k < WIDTH; k++) {
      centre[k] = mean[(c + k) / size];
      spread[k] = rstd[(c + k) / size];
    }
    Floats plain = {}, weighted = {};
    for (int64_t at = c; at < p.pixels * p.channels; at += p.channels) {
      const Floats value = load(x + at);
      Floats du = load(grad + at);
      if (p.silu) {
        const Floats u = value * slope + offset, s = sigmoid(u);
        du *= s + u * s * (1 - s);
      }
      plain += du;
      weighted += du * (value - centre);
      store(inner + at, du);
    }
    store(sums + c, plain);
    store(sums + p.channels + c, weighted * spread);
  }
}

template <typename T>
void backward_row(const Problem &p, int64_t row, const T *grad, const T *x, T *dx,
                  const float *mean, const float *rstd, float *sums, float *inner) {
  const Lines lines(p, row, mean, rstd);
  inner_gradients(p, lines, grad, x, mean, rstd, sums, inner);
  std::vector<float> along(p.channels), constant(p.channels);
  const int64_t size = p.channels / p.groups;
  for (int64_t group = 0; group < p.groups; group++) {
    float plain = 0, weighted = 0;
    for (int64_t c = group * size; c < (group + 1) * size; c++) {
      const float gain = p.weight[c] * scale(p, row, c);
      plain += gain * sums[c] / (size * p.pixels);
      weighted += gain * sums[p.channels + c] / (size * p.pixels);
    }
    for (int64_t c = group * size; c < (group + 1) * size; c++) {
      along[c] = -rstd[group] * rstd[group] * weighted;
      constant[c] = -rstd[group] * plain - along[c] * mean[group];
    }
  }
  for (int64_t c = 0; c < p.channels; c += WIDTH) {
    const Floats slope = load(&lines.slope[c]);
    const Floats a = load(&along[c]), b = load(&constant[c]);
    for (int64_t at = c; at < p.pixels * p.channels; at += p.channels)
      store(dx + at, load(inner + at) * slope + load(x + at) * a + b);
  }
}

template <typename T>
void forward(const Problem &p, const T *x, T *y, float *mean, float *rstd) {
#pragma omp parallel for
  for (int64_t row = 0; row < p.rows; row++) {
    const int64_t start = row * p.pixels * p.channels, group = row * p.groups;
    forward_row(p, row, x + start, y + start, mean + group, rstd + group);
  }
}

template <typename T>
void backward(const Problem &p, const T *grad, const T *x, T *dx, const float *mean,
              const float *rstd, float *sums) {
#pragma omp parallel
  {
    std::vector<float> inner(p.pixels * p.channels);
#pragma omp for
    for (int64_t row = 0; row < p.rows; row++) {
      const int64_t start = row * p.pixels * p.channels, group = row * p.groups;
      backward_row(p, row, grad + start, x + start, dx + start, mean + group, rstd + group,
                   sums + 2 * row * p.channels, inner.data());
    }
  }
}

}  // namespace

extern "C" {

void forward_float32(const Problem *p, const float *x, float *y, float *mean, float *rstd) {
  forward(*p, x, y, mean, rstd);
}

void forward_bfloat16(const Problem *p, const uint16_t *x, uint16_t *y, float *mean,
                      float *rstd) {
  forward(*p, x, y, mean, rstd);
}

void backward_float32(const Problem *p, const float *grad, const float *x, float *dx,
                      const float *mean, const float *rstd, float *sums) {
  backward(*p, grad, x, dx, mean, rstd, sums);
}

void backward_bfloat16(const Problem *p, const uint16_t *grad, const uint16_t *x, uint16_t *dx,
                       const float *mean, const float *rstd, float *sums) {
  backward(*p, grad, x, dx, mean, rstd, sums);
}
}
