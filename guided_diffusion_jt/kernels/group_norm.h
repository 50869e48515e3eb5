// Group normalisation (Wu & He 2018, arXiv:1803.08494, eq. 1) and its gradient, in float32 or float64.
//
// Sums are taken in blocks, and the sums of the blocks are added in float64: one long float32 sum loses digits.

#include <algorithm>
#include <cmath>
#include <cstdint>

// Return f(0) + ... + f(count - 1), summed in blocks of 256.
template <class T, class F> static inline double blocked_sum(int64_t count, F f) {
    double total = 0;
    for (int64_t start = 0; start < count; start += 256) {
        const int64_t stop = std::min<int64_t>(start + 256, count);
        T part = 0;
        for (int64_t i = start; i < stop; i++) part += f(i);
        total += part;
    }
    return total;
}

// Compute out = (input - mean) / sqrt(variance + eps) * weight + bias, with the mean and variance of each group.
//
// input, out:      (images, groups, channels, positions), where `channels` are those of one group.
// weights, biases: (groups * channels,).
// means, scales:   (images, groups); set to the mean and to 1 / sqrt(variance + eps) of each group.
template <class T> static inline void group_norm(
    const T* __restrict__ input, const T* __restrict__ weights, const T* __restrict__ biases, int64_t images,
    int64_t groups, int64_t channels, int64_t positions, double eps, T* __restrict__ out, T* __restrict__ means,
    T* __restrict__ scales) {
    const int64_t count = channels * positions;
    #pragma omp parallel for
    for (int64_t group = 0; group < images * groups; group++) {
        const T* x = input + group * count;
        const T mean = blocked_sum<T>(count, [=](int64_t i) { return x[i]; }) / count;
        const double variance = blocked_sum<T>(
            count, [=](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / count;
        const T scale = 1 / std::sqrt(variance + eps);
        means[group] = mean;
        scales[group] = scale;
        for (int64_t c = 0; c < channels; c++) {
            const int64_t channel = group % groups * channels + c;
            const T weight = weights[channel], bias = biases[channel];
            for (int64_t i = c * positions; i < (c + 1) * positions; i++)
                out[group * count + i] = (x[i] - mean) * scale * weight + bias;
        }
    }
}

// Compute the gradients of `group_norm`. With y = (x - mean) scale and g = gradient weight, the gradient of the input
// is scale (g - <g> - y <g y>), where <> is the mean over a group.
//
// gradient, input, out:  (images, groups, channels, positions); out is set to the gradient of the input.
// means, scales:         (images, groups), the results of `group_norm`.
// to_weights, to_biases: (images, groups, channels); set to each image's part of the gradients of weights and biases.
template <class T> static inline void group_norm_gradient(
    const T* __restrict__ gradient, const T* __restrict__ input, const T* __restrict__ weights,
    const T* __restrict__ means, const T* __restrict__ scales, int64_t images, int64_t groups, int64_t channels,
    int64_t positions, T* __restrict__ out, T* __restrict__ to_weights, T* __restrict__ to_biases) {
    #pragma omp parallel for
    for (int64_t group = 0; group < images * groups; group++) {
        const T mean = means[group], scale = scales[group];
        const T* weight = weights + group % groups * channels;
        double sum = 0, product = 0;  // over the group: of g, and of g y
        for (int64_t c = 0; c < channels; c++) {
            const T* grad = gradient + (group * channels + c) * positions;
            const T* x = input + (group * channels + c) * positions;
            const double to_weight = scale * blocked_sum<T>(
                positions, [=](int64_t i) { return grad[i] * (x[i] - mean); });
            const double to_bias = blocked_sum<T>(positions, [=](int64_t i) { return grad[i]; });
            to_weights[group * channels + c] = to_weight;
            to_biases[group * channels + c] = to_bias;
            product += weight[c] * to_weight;
            sum += weight[c] * to_bias;
        }
        // shift = <g>, slope = scale <g y>
        const T shift = sum / (channels * positions), slope = product / (channels * positions) * scale;
        for (int64_t c = 0; c < channels; c++) {
            const int64_t start = (group * channels + c) * positions;
            const T factor = weight[c];
            for (int64_t i = start; i < start + positions; i++)
                out[i] = scale * (gradient[i] * factor - shift - (input[i] - mean) * slope);
        }
    }
}
