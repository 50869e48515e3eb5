// A step of AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2), in float32 or float64.

#include <cmath>
#include <cstdint>

// Update a parameter and its moments in place:
//
//     first  = beta1 first + new1 gradient
//     second = beta2 second + new2 gradient^2
//     param  = param decay - rate first / (sqrt(second) / correction + eps)
//
// gradient, param, first, second: (count,).
// new1, new2: 1 - beta1 and 1 - beta2.
// decay:      1 - learning rate * weight decay.
// rate:       learning rate / bias correction of the first moment.
// correction: square root of the bias correction of the second moment.
template <class T> static inline void adamw(
    const T* __restrict__ gradient, int64_t count, T beta1, T beta2, T new1, T new2, T decay, T rate, T correction,
    T eps, T* __restrict__ param, T* __restrict__ first, T* __restrict__ second) {
    #pragma omp parallel for
    for (int64_t i = 0; i < count; i++) {
        const T value = gradient[i];
        first[i] = beta1 * first[i] + new1 * value;
        second[i] = beta2 * second[i] + new2 * value * value;
        param[i] = param[i] * decay - rate * first[i] / (std::sqrt(second[i]) / correction + eps);
    }
}
